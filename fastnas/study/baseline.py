"""Random architectures of about the size of the one that a study has chosen."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from random import Random

import torch

from fastnas import spaces
from fastnas.atomic_file import replace_file
from fastnas.cli.images import open_train_sources
from fastnas.cli.networks import build_derived
from fastnas.cli.own_code import import_space
from fastnas.counting import count_parameters
from fastnas.errors import UserError
from fastnas.genotype import Genotype
from fastnas.input_file import read_json
from fastnas.nn.primitives import make_primitive
from fastnas.report.run import read_run
from fastnas.spaces.encoding import encoding_of
from fastnas.study.directory import StudyDirectory
from fastnas.study.plan import Unit
from fastnas.study.unit_options import train_options

FILE = "baseline.json"
MOST_DRAWN = 2000
SEED_KEY = "baseline"


def genotype_of(study: StudyDirectory, unit: Unit) -> Path:
    """The file with the genotype of a unit of the baseline. All of one group are drawn at once, by the first process
    that needs one, and every process would draw the same.

    Raises:
        UserError: so few random architectures have the wanted size that they were not found.
    """
    folder = study.folder(unit)
    drawn = folder.with_name(FILE)
    if not drawn.exists():
        found = _draw(study, unit)
        replace_file(drawn, json.dumps(found, indent=1) + "\n", "the baseline")
    found = read_json(drawn, str(drawn), "remove it: it is drawn again")
    path = study.beside(unit, ".genotype.json")
    Genotype.from_dict(found["genotypes"][unit.number]["genotype"]).to_json(path)
    return path


def _draw(study: StudyDirectory, unit: Unit) -> dict[str, object]:
    baseline = study.plan.definition.baseline
    assert baseline is not None
    search = study.source(unit)
    run = None if search is None else study.folder(search)
    options, _ = train_options(study.plan.settings(unit.cell, "train"), unit.seed, None, run)
    import_space(options.network.space)
    assert options.network.genotype is not None
    chosen = Genotype.load(options.network.genotype)
    source = open_train_sources(options).train

    space = spaces.find(baseline.space or _space_of(run))
    encoding = encoding_of(space)
    random = Random(f"{SEED_KEY} {unit.seed} {json.dumps(chosen.to_dict())}")

    def drawn() -> Genotype:
        genotype = encoding.decode(encoding.canonical(encoding.sample(random)))
        if not isinstance(genotype, Genotype):
            raise UserError(f"fastnas train does not build the networks of the space {space.name}: take another one.")
        return genotype

    def whole(genotype: Genotype) -> int:
        with torch.device("meta"):
            return count_parameters(build_derived(options, genotype, source))

    first = drawn()
    costs = _Costs(options.network.layers, options.network.channels)
    size, rest = whole(chosen), whole(first) - costs.of(first)
    found: dict[Genotype, int] = {}
    for genotype in [first, *(drawn() for _ in range(MOST_DRAWN - 1))]:
        count = rest + costs.of(genotype)
        if genotype != chosen and abs(count - size) <= baseline.within * size:
            found.setdefault(genotype, count)
    if len(found) < baseline.random:
        raise UserError(
            f"of {MOST_DRAWN:,} random architectures only {len(found)} have {size:,} parameters to within "
            f"{baseline.within:.1%}, not {baseline.random}: raise within of baseline."
        )
    genotypes = [
        {"genotype": each.to_dict(), "parameters": count}
        for each, count in itertools.islice(found.items(), baseline.random)
    ]
    return {"chosen": chosen.to_dict(), "parameters": size, "space": space.name, "genotypes": genotypes}


class _Costs:
    """Parameters of the operations of a derived network; the rest of it is the same for all cells of a space.

    Args:
        layers: number of cells.
        channels: of the first one.
    """

    def __init__(self, layers: int, channels: int) -> None:
        self._layers, self._channels = layers, channels
        self._known: dict[tuple[str, int, int], int] = {}

    def of(self, genotype: Genotype) -> int:
        total, channels = 0, self._channels
        for kind in genotype.layout(self._layers):
            reduces = kind.endswith("reduce")
            channels *= 2 if reduces else 1
            for node in genotype.pairs(kind):
                total += sum(self._one(name, channels, 2 if reduces and source < 2 else 1) for name, source in node)
        return total

    def _one(self, name: str, channels: int, stride: int) -> int:
        key = name, channels, stride
        if key not in self._known:
            with torch.device("meta"):
                self._known[key] = count_parameters(make_primitive(*key, norm=torch.nn.BatchNorm2d))
        return self._known[key]


def _space_of(run: Path | None) -> str:
    """The space of a search; DARTS where there was none."""
    if run is None:
        return "darts"
    searched = read_run(run)
    return str(searched.option("network", "space") or searched.network.get("space") or "darts")
