"""From the options of a unit to those of a command, through the command's own parser."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any

from rich.console import Console

from fastnas import spaces
from fastnas.cli.comparison import discrete, split_names
from fastnas.cli.configuration import SearchOptions, TrainOptions, keyword_flags, parse_search, parse_train
from fastnas.cli.evaluating import EvaluateOptions
from fastnas.cli.keywords import flags, options_of
from fastnas.cli.options import CompareOptions
from fastnas.cli.run import write_config
from fastnas.cli.run_directory import RECORDS
from fastnas.errors import UserError
from fastnas.spaces.encoding import encoding_of
from fastnas.study.option_sets import Settings
from fastnas.study.plan import Cell, StudyPlan

COMMANDS = {"search": "fastnas search", "train": "fastnas train"}
_COMMAND_FLAGS = ("preset", "config", "strategy")

Parsed = tuple[Any, list[str]]
"""Options of a command, and the words that a user would type for them."""


def search_options(settings: Settings, seed: int, directory: Path | None = None) -> tuple[SearchOptions, list[str]]:
    """Of a search. directory: of the run. UserError for an option that cannot be."""
    given, keywords = _divided(settings)
    keywords |= {"seed": seed} | _out(directory)
    options = parse_search(given, COMMANDS["search"], "", keywords)
    return options, [*given, *keyword_flags(COMMANDS["search"], keywords, options)]


def train_options(
    settings: Settings,
    seed: int,
    directory: Path | None = None,
    search_run: Path | None = None,
    genotype: Path | None = None,
) -> tuple[TrainOptions, list[str]]:
    """Of a training.

    Args:
        settings: what the study says.
        seed: of the training.
        directory: of the run.
        search_run: the directory of the search from which it takes images and recipe, and its genotype, too, unless
            another one is given.
        genotype: path of a file.

    Raises:
        UserError: an option that cannot be.
    """
    given, keywords = _divided(settings)
    given += flags(**{"from": search_run})
    keywords |= {"seeds": str(seed)} | _out(directory) | ({} if genotype is None else {"genotype": str(genotype)})
    options = parse_train(given, COMMANDS["train"], "", keywords)
    return options, [*given, *keyword_flags(COMMANDS["train"], keywords, options)]


def stand_in(search: SearchOptions, folder: Path, image_size: Sequence[int] = ()) -> Path:
    """Makes of a folder the run directory of a search as it would be, with a random cell: a training that would take
    its options from such a search can be prepared before there is one.

    Args:
        search: its options.
        folder: is there.
        image_size: (H, W), where it is known.
    """
    space = spaces.find(search.network.space or search.strategy.default_space)
    encoding = encoding_of(space)
    write_config(folder, search)
    encoding.decode(encoding.sample(Random(0))).to_json(folder / "genotype.json")
    start = {"event": "run", "command": "search", "data": {"image_size": list(image_size)}}
    (folder / RECORDS).write_text(json.dumps(start) + "\n", encoding="utf-8")
    return folder


def evaluate_options(settings: Settings, network: Path, directory: Path) -> EvaluateOptions:
    """Of an evaluation of the training in `network`, whose results are to be in `directory`."""
    keywords = {**_ungrouped(settings), "network": network}
    keywords |= {"report": directory / "evaluation.html", "json": directory / "evaluate.json"}
    return options_of("evaluate", EvaluateOptions, keywords)


def compare_options(settings: Settings, seed: int, directory: Path) -> CompareOptions:
    """Of a comparison, whose first run has this seed, in one process."""
    keywords = {**_ungrouped(settings), "seed": seed, "out": directory}
    for name in ("strategies", "evaluator"):
        if name not in keywords:
            raise UserError(f"a comparison needs {name}: see fastnas compare --help.")
    if "processes" in keywords:
        raise UserError("processes is set by the study for every run: leave it out.")
    return options_of("compare", CompareOptions, {**keywords, "processes": 1})


def check(plan: StudyPlan, console: Console) -> dict[tuple[str, str], int]:
    """Parses the options of every cell and stage, before any work.

    Returns:
        The epochs of searches and trainings, by the slug of the cell and the stage.

    Raises:
        UserError: an option that cannot be, with the cell.
    """
    epochs: dict[tuple[str, str], int] = {}
    stages = {unit.stage for unit in plan.units.values()}
    with console.status("checking the options"):
        for cell in plan.cells:
            for stage in sorted(stages - {"baseline"}):
                try:
                    planned = _check(plan, cell, stage)
                except UserError as error:
                    raise UserError(f"cell {cell.label}: {error}") from error
                if planned is not None:
                    epochs[cell.slug, stage] = planned
                    epochs[cell.slug, "baseline"] = planned
    return epochs


def _check(plan: StudyPlan, cell: Cell, stage: str) -> int | None:
    settings, definition = plan.settings(cell, stage), plan.definition
    nowhere = Path("nowhere")
    if stage == "search":
        options, _ = search_options(settings, definition.seeds[0])
        if options.run.budget is None:
            options.strategy.check_epochs(options.weights.epochs)
        space = spaces.find(options.network.space or options.strategy.default_space)
        if "train" in definition.stages and space.inputs == 1:
            raise UserError(f"fastnas train does not build the networks of the space {space.name}: leave out train.")
        return options.weights.epochs
    if stage == "train":
        seed = (definition.train_seeds or definition.seeds)[0]
        if "search" not in definition.stages:
            training, _ = train_options(settings, seed)
            if training.network.genotype is None:
                raise UserError("the training has no genotype: give one, or the stage search.")
            return training.recipe.epochs
        with TemporaryDirectory() as folder:
            searching, _ = search_options(plan.settings(cell, "search"), definition.seeds[0])
            training, _ = train_options(settings, seed, None, stand_in(searching, Path(folder)))
            return training.recipe.epochs
    if stage == "evaluate":
        evaluate_options(settings, nowhere, nowhere)
    else:
        comparison = compare_options(settings, definition.seeds[0], nowhere)
        for name in split_names(comparison.strategies):
            discrete(name)
    return None


def _divided(settings: Mapping[str, Any]) -> tuple[list[str], dict[str, Any]]:
    """The flags that say where other options come from, and the rest as keywords."""
    given = flags(**{name: settings.get(name) for name in _COMMAND_FLAGS})
    return given, {name: value for name, value in settings.items() if name not in _COMMAND_FLAGS}


def _ungrouped(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {name.rpartition(".")[2]: value for name, value in settings.items()}


def _out(directory: Path | None) -> dict[str, Any]:
    return {} if directory is None else {"out": str(directory)}
