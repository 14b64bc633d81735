"""Genotypes: as files, as mappings, and as what stands behind --genotype."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

import torch
from fuzz.cases import Case, outcome, run_kind
from fuzz.mutations import change_bytes, change_tree, spell, values
from hypothesis import strategies as st

from fastnas import Genotype
from fastnas.nn import DerivedNetwork
from fastnas.spaces.nb201 import CANDIDATES, NB201Genotype

texts = st.one_of(
    st.text(max_size=40),
    st.text(st.characters(codec=None), min_size=200, max_size=400),
    st.sampled_from([".", "..", "/", "~", "~nobody/x", "a\0b", "x" * 5000, "/dev/zero", "/dev/stdin", "DARTS_V2 "]),
)


@cache
def _seeds() -> list[dict[str, Any]]:
    """Genotypes of every form, as mappings."""
    published = [Genotype.published(name) for name in Genotype.published_names()]
    low = published[0]
    nested = Genotype(
        [[("skip_connect", 0)], [("none", 0), ("sep_conv_3x3", 1), ("max_pool_3x3", 2)]], [2, 3], low.reduce, [2]
    )
    levels = Genotype.multi_level([(low.normal, low.normal_concat)] * 5)
    return [each.to_dict() for each in (*published, nested, levels)]


def check(genotype: Genotype) -> None:
    assert Genotype.from_dict(genotype.to_dict()) == genotype
    assert Genotype.from_dict(json.loads(genotype.to_text())) == genotype
    assert eval(repr(genotype), {"Genotype": Genotype}) == genotype
    with torch.device("meta"):
        DerivedNetwork(genotype, channels=2, layers=3, auxiliary=False)


def check_cell(cell: NB201Genotype) -> None:
    assert NB201Genotype.from_string(str(cell)) == cell


def one(case: Case) -> str:
    rng = case.rng
    seed = rng.choice(_seeds())
    path = case.folder / "genotype.json"
    same = None
    match rng.randrange(8):
        case 6 | 7:
            same = Genotype.from_dict(seed)
            content = spell(rng, seed)
        case 0:
            content = change_bytes(rng, json.dumps(seed).encode())
        case 1 | 2:
            content = json.dumps(change_tree(rng, seed, case.draw(values))).encode()
        case 3:
            tree = change_tree(rng, change_tree(rng, seed, case.draw(values)), None)
            case.given = repr(tree)
            return outcome(lambda: Genotype.from_dict(tree), check)
        case 4:
            text = case.given = case.draw(texts)
            return outcome(lambda: Genotype.load(text), check)
        case 5:
            cell = NB201Genotype(tuple(rng.choices(CANDIDATES, k=6)))
            content = change_bytes(rng, cell.to_text().encode(), 2)
            case.given = repr(content)
            path.write_bytes(content)
            return outcome(lambda: NB201Genotype.from_json(path), check_cell)
    case.given = repr(content)
    path.write_bytes(content)
    if same is not None:
        assert Genotype.load(str(path)) == same
    return outcome(lambda: Genotype.load(str(path)), check)


def run(deadline: float, seed: int) -> dict[str, int]:
    """See `fuzz.cases.run_kind`."""
    return run_kind(one, deadline, seed)
