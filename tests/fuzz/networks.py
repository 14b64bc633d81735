"""Saved networks: the description and the weights beside it, and weights of other code to begin a search with."""

from __future__ import annotations

import json
import shutil
from functools import cache
from pathlib import Path
from typing import Any

import torch
from fuzz.cases import Case, outcome, run_kind
from fuzz.mutations import change_bytes, change_tree, spell, values
from torch import Tensor

from fastnas import Genotype
from fastnas.compat import foreign_state_dict
from fastnas.engine.initial_weights import load_initial_weights
from fastnas.engine.trained import image_size_of, load_trained, open_source
from fastnas.nn import DerivedNetwork, Supernet
from fastnas.spaces import CellSpace

ABOUT = {
    "images": {
        "classes": [str(number) for number in range(10)], "image_size": [8, 8], "evaluated_share": None, "mean": [0.5],
        "std": [0.25],
    },
    "seed": 1,
}  # fmt: skip
SPACE = CellSpace("tiny", ("skip_connect", "sep_conv_3x3"), pool_norm=True, nodes=1)


def prepare(folder: Path) -> None:
    torch.manual_seed(0)
    pairs = [("sep_conv_3x3", 0), ("skip_connect", 1)]
    network = DerivedNetwork(
        Genotype(pairs, [2], pairs, [2]), channels=2, layers=1, num_classes=10, in_channels=1, auxiliary=False
    )
    (folder / "saved").mkdir()
    network.save(folder / "saved" / "network", about=ABOUT)
    torch.save(foreign_state_dict(_supernet(), "egnas"), folder / "foreign.pt")


@cache
def _supernet() -> Supernet:
    return Supernet(SPACE, channels=4, layers=1)


def one(case: Case) -> str:
    return _saved(case) if case.chance(0.7) else _foreign(case)


def _saved(case: Case) -> str:
    rng = case.rng
    folder = case.folder / "saved"
    shutil.copytree(case.folder.parent / "saved", folder)
    path = folder / "network.json"
    before = load_trained(path)
    tree, unchanged = json.loads(path.read_text()), False
    match rng.randrange(5):
        case 0:
            path.write_bytes(change_bytes(rng, path.read_bytes()))
        case 1 | 2:
            path.write_text(json.dumps(change_tree(rng, tree, case.draw(values))))
        case 3:
            weights = path.with_suffix(".safetensors")
            weights.write_bytes(change_bytes(rng, weights.read_bytes(), 2))
        case 4:
            unchanged = True
            path.write_bytes(spell(rng, tree))
    case.given = path.read_bytes().decode("utf-8", "replace")

    def read() -> tuple[DerivedNetwork, Any]:
        network = load_trained(rng.choice([path, folder]))
        image_size_of(network)
        return network, open_source(network, "digits", "test", limit=20)

    def check(found: tuple[DerivedNetwork, Any]) -> None:
        network, source = found
        again = DerivedNetwork.load(network.save(case.folder / "again"))
        assert again.options == network.options
        assert again.genotype == network.genotype
        assert _equal(again.state_dict(), network.state_dict())
        assert _equal(network.state_dict(), before.state_dict()), "other weights were read"
        images = torch.zeros(1, network.options["in_channels"], *source.image_size)
        assert torch.equal(again(images), network(images))

    if unchanged:
        check(read())
        return "result"
    return outcome(read, check)


def _foreign(case: Case) -> str:
    rng = case.rng
    path = case.folder / "weights.pt"
    state = torch.load(case.folder.parent / "foreign.pt", weights_only=True)
    whole = dict(state)
    match rng.randrange(5):
        case 0:
            path.write_bytes(change_bytes(rng, (case.folder.parent / "foreign.pt").read_bytes(), 2))
            case.given = "bytes"
        case 1 | 2:
            others = [case.draw(values), torch.zeros(3), torch.zeros(()), torch.zeros(2, 2, dtype=torch.int8), b"x"]
            others += [torch.zeros(1).expand(10**6, 10**6), torch.eye(3).to_sparse(), torch.zeros(4, 12, 1, 1)]
            state = change_tree(rng, state, rng.choice(others))
        case 3:
            state = rng.choice([{"state_dict": state}, {**state, 0: 1}, {**state, "module.x": torch.ones(1)}])
        case 4:
            state = {f"module.{name}": value for name, value in state.items()}
    if not path.exists():
        torch.save(state, path)
        shapes = state.items() if isinstance(state, dict) else []
        case.given = repr({name: getattr(value, "shape", value) for name, value in shapes})[-3000:]
    network = Supernet(SPACE, channels=4, layers=1)

    def check(betas: dict[str, Tensor]) -> None:
        assert betas == {}
        found = foreign_state_dict(network, "egnas")
        assert found.keys() == whole.keys()

    return outcome(lambda: load_initial_weights(network, path), check)


def _equal(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def run(deadline: float, seed: int) -> dict[str, int]:
    """See `fuzz.cases.run_kind`."""
    return run_kind(one, deadline, seed, prepare)
