"""Random architectures of about the size of the one that a study has chosen."""

from __future__ import annotations

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

    def parameters(genotype: Genotype) -> int:
        with torch.device("meta"):
            return count_parameters(build_derived(options, genotype, source))

    space = spaces.find(baseline.space or _space_of(run))
    encoding, size = encoding_of(space), parameters(chosen)
    random = Random(f"{SEED_KEY} {unit.seed} {json.dumps(chosen.to_dict())}")
    found: dict[Genotype, int] = {}
    for _ in range(MOST_DRAWN):
        genotype = encoding.decode(encoding.canonical(encoding.sample(random)))
        if not isinstance(genotype, Genotype):
            raise UserError(f"fastnas train does not build the networks of the space {space.name}: take another one.")
        if genotype in found or genotype == chosen:
            continue
        count = parameters(genotype)
        if abs(count - size) <= baseline.within * size:
            found[genotype] = count
            if len(found) == baseline.random:
                break
    else:
        raise UserError(
            f"of {MOST_DRAWN:,} random architectures only {len(found)} have {size:,} parameters to within "
            f"{baseline.within:.1%}, as {baseline.random} should: raise within of baseline."
        )
    drawn = [{"genotype": each.to_dict(), "parameters": count} for each, count in found.items()]
    return {"chosen": chosen.to_dict(), "parameters": size, "space": space.name, "genotypes": drawn}


def _space_of(run: Path | None) -> str:
    """The space of a search; DARTS where there was none."""
    if run is None:
        return "darts"
    searched = read_run(run)
    return str(searched.option("network", "space") or searched.network.get("space") or "darts")
