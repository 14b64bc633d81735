"""From the definition of a study to its units: the runs that it consists of, and what each of them waits for."""

from __future__ import annotations

import itertools
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import PurePosixPath
from typing import Any

from fastnas.errors import UserError
from fastnas.study.definition import Definition
from fastnas.study.option_sets import Settings, of_stage, overridden, short

FILE = "plan.json"
MOST_UNITS = 20_000
LONGEST = 80  # characters of a folder's name


@dataclass(frozen=True)
class Cell:
    """One set of options.

    Args:
        slug: the name of its folder.
        label: for people.
        options: that grid and list set.
    """

    slug: str
    label: str
    options: Settings


@dataclass(frozen=True)
class Unit:
    """One run of a study.

    Args:
        id: its directory without the first folder.
        stage: search, train, evaluate, baseline or compare.
        cell: whose options it has.
        seed: of the run.
        needs: ids of the units whose results it takes: of all searches among which one is chosen, or of one.
        number: of a baseline, from 0.
    """

    id: str
    stage: str
    cell: Cell
    seed: int
    needs: tuple[str, ...] = ()
    number: int | None = None

    @property
    def directory(self) -> PurePosixPath:
        return PurePosixPath("cells", self.id)

    def to_dict(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "stage": self.stage,
            "cell": self.cell.slug,
            "label": self.cell.label,
            "options": {short(name): value for name, value in self.cell.options.items()},
            "seed": self.seed,
            "directory": str(self.directory),
            "needs": list(self.needs),
        }


@dataclass(frozen=True)
class StudyPlan:
    """A study and its units, cell by cell."""

    definition: Definition

    @cached_property
    def cells(self) -> tuple[Cell, ...]:
        """UserError for two cells with the same options."""
        return tuple(_cells(self.definition))

    @cached_property
    def units(self) -> dict[str, Unit]:
        """By id, in an order in which no unit needs a later one. UserError if there are more than 20,000."""
        units = {unit.id: unit for cell in self.cells for unit in _units_of(self.definition, cell)}
        if len(units) > MOST_UNITS:
            raise UserError(f"the study has {len(units):,} runs, expected at most {MOST_UNITS:,}.")
        return units

    @property
    def chooses(self) -> bool:
        """Whether one search of each cell is chosen for the stages after it."""
        return "search" in self.definition.stages and self.definition.choose == "best"

    def settings(self, cell: Cell, stage: str) -> Settings:
        """The options of a stage in a cell."""
        every = overridden(self.definition.base, cell.options)
        stage = "train" if stage == "baseline" else stage
        return of_stage(every, "" if stage == self.definition.first else stage)

    def searches(self, cell: Cell) -> list[Unit]:
        return [unit for unit in self.units.values() if unit.stage == "search" and unit.cell == cell]

    def to_dict(self) -> dict[str, Any]:
        """What plan.json holds."""
        definition = self.definition
        return {
            "name": definition.name,
            "title": definition.title,
            "note": definition.note,
            "scale": definition.scale,
            "stages": list(definition.stages),
            "grid": {short(name): list(values) for name, values in definition.grid.items()},
            "seeds": list(definition.seeds),
            "published": definition.published,
            "units": [unit.to_dict() for unit in self.units.values()],
        }


def _cells(definition: Definition) -> Iterator[Cell]:
    labels: dict[str, str] = {}  # by slug
    for name, options in definition.sets or [(None, {})]:
        for values in itertools.product(*definition.grid.values()):
            point = dict(zip(definition.grid, values, strict=True))
            every = overridden(options, point)
            if len(every) < len(options) + len(point):
                raise UserError(f"grid and list set the same option: {', '.join({*options, *point} - {*every})}.")
            said = [(short(option), _word(value)) for option, value in (point if name else every).items()]
            named = [name] if name else []
            label = ", ".join([*named, *(f"{option} {value}" for option, value in said)]) or definition.title
            slug = _slug("_".join([*named, *(f"{option}-{value}" for option, value in said)]) or "base")
            if labels.get(slug) == label:
                raise UserError(f"two cells have the same options: {label}.")
            if slug in labels:  # of signs that are in no name of a folder
                slug += f"-{zlib.crc32(label.encode()):08x}"
            labels[slug] = label
            yield Cell(slug, label, every)


def _word(value: Any) -> str:
    return {"True": "yes", "False": "no", "None": "none"}.get(repr(value), str(value))


def _slug(text: str) -> str:
    slug = re.sub(r"[^A-Za-z0-9.+_-]+", "-", text).strip("-.") or "cell"
    return slug if len(slug) <= LONGEST else f"{slug[:LONGEST]}-{zlib.crc32(text.encode()):08x}"


def _units_of(definition: Definition, cell: Cell) -> Iterator[Unit]:
    stages, seeds = definition.stages, definition.seeds

    def unit(stage: str, folder: str, seed: int, **more: Any) -> Unit:
        return Unit(f"{cell.slug}/{folder}", stage, cell, seed, **more)

    if definition.first == "compare":
        for seed in seeds:
            yield unit("compare", f"seed-{seed}/compare", seed)
        return
    searches = [unit("search", f"seed-{seed}/search", seed) for seed in seeds] if "search" in stages else []
    yield from searches
    if "train" not in stages:
        return
    # Whose results a training takes, in which folder it is, and with which seeds the genotype is trained.
    groups: list[tuple[tuple[str, ...], list[tuple[str, int]]]]
    if not searches:
        groups = [((), [(f"seed-{seed}/", seed) for seed in seeds])]
    elif definition.choose == "best":
        every = tuple(search.id for search in searches)
        groups = [(every, [(f"seed-{seed}/", seed) for seed in definition.train_seeds or seeds[:1]])]
    else:
        groups = [
            ((search.id,), [(f"seed-{search.seed}/", seed) for seed in definition.train_seeds or (search.seed,)])
            for search in searches
        ]
    for needs, trainings in groups:
        distinct = len({folder for folder, _ in trainings}) == len(trainings)
        for folder, seed in trainings:
            after = "" if distinct else f"-{seed}"
            training = unit("train", f"{folder}train{after}", seed, needs=needs)
            yield training
            if "evaluate" in stages:
                yield unit("evaluate", f"{folder}evaluate{after}", seed, needs=(training.id,))
        for number in range(definition.baseline.random if definition.baseline else 0):
            folder, seed = trainings[0]
            yield unit("baseline", f"{folder}baseline-{number}", seed, needs=needs, number=number)


def changed(before: StudyPlan, now: StudyPlan) -> str | None:
    """What keeps a directory with the units of `before` from being that of `now`, in words; None if `now` only adds
    cells and seeds."""
    old, new = before.definition, now.definition
    for name in ("choose", "baseline"):
        if (was := getattr(old, name)) != (is_now := getattr(new, name)):
            return f"{name} is {is_now!r} but was {was!r}"
    for unit in before.units.values():
        other = now.units.get(unit.id)
        if other is None:
            return f"it has no {unit.id} any more"
        was, is_now = before.settings(unit.cell, unit.stage), now.settings(other.cell, other.stage)
        for name in {**was, **is_now}:
            if was.get(name) != is_now.get(name):
                return f"{name} of {unit.id} is {is_now.get(name)!r} but was {was.get(name)!r}"
    return None


def moves_choice(before: StudyPlan, now: StudyPlan) -> bool:
    """Whether searches were added among which one is chosen."""
    return now.chooses and any(unit.needs != now.units[unit.id].needs for unit in before.units.values())
