"""Sets of options as a study writes them: some override others, and some belong to a later stage.

A key is the name of an option, "group.name" where its group is to be said, or either of them after "train." or
"evaluate.": what the training or the evaluation gets. Nested mappings say the same: `train: {recipe: {epochs: 3}}`.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import Any

from fastnas.errors import UserError

LATER = ("train", "evaluate")
"""Stages that get options of their own; all others belong to the first stage of a study."""
MANAGED = ("out", "resume", "from", "search_run", "seed", "seeds", "stop_after", "dry_run", "print_config")
"""Options that the study itself gives to every run."""

Settings = dict[str, Any]


def flattened(where: str, options: Any) -> Settings:
    """Options without nested mappings.

    Args:
        where: for messages.
        options: a mapping, perhaps nested.

    Raises:
        UserError: it is none, or a value is neither a word nor a number.
    """
    if not isinstance(options, Mapping):
        raise UserError(f"{where} is {options!r}, expected options and their values.")
    found: Settings = {}
    for key, value in _leaves(options):
        value = os.fspath(value) if isinstance(value, os.PathLike) else value
        if split(key)[2] == "seeds" and isinstance(value, list | tuple):
            value = ",".join(map(str, value))
        if not isinstance(value, str | bool | int | float | None):
            raise UserError(f"{where}: {key} is a {type(value).__name__}, expected a word or a number.")
        put(found, key.removesuffix(".name") if key.endswith("strategy.name") else key, value)
    return found


def _leaves(options: Mapping[Any, Any], before: str = "") -> Iterable[tuple[str, Any]]:
    for key, value in options.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{before}{key}.")
        else:
            yield f"{before}{key}".replace("-", "_"), value


def split(key: str) -> tuple[str, str, str]:
    """Stage, group and name of a key; "" for the first stage, and for a group that is not said."""
    stage, dot, rest = key.partition(".")
    stage, rest = (stage, rest) if dot and stage in LATER else ("", key)
    group, _, name = rest.rpartition(".")
    return stage, group, name


def short(key: str) -> str:
    """A key without its group."""
    stage, _, name = split(key)
    return f"{stage}.{name}" if stage else name


def put(options: Settings, key: str, value: Any) -> None:
    """Sets an option in place of whatever said the same before, and another strategy without the options of the one
    before."""
    stage, group, name = split(key)
    another = name == "strategy" and options.get(key, value) != value
    for other in list(options):
        its_stage, its_group, its_name = split(other)
        same = its_name == name and (its_group == group or not (its_group and group))
        if its_stage == stage and (same or (another and its_group == "strategy")):
            del options[other]
    options[key] = value


def overridden(options: Mapping[str, Any], *others: Mapping[str, Any]) -> Settings:
    """The options of the first set, overridden by those of each that follows."""
    result = dict(options)
    for each in others:
        for key, value in each.items():
            put(result, key, value)
    return result


def of_stage(options: Mapping[str, Any], stage: str) -> Settings:
    """The options of one stage, without its name; "" for the first."""
    return {
        f"{group}.{name}" if group else name: value
        for (its_stage, group, name), value in ((split(key), value) for key, value in options.items())
        if its_stage == stage
    }


def check_not_managed(where: str, options: Iterable[str], allowed: Iterable[str] = ()) -> None:
    """UserError for an option that the study itself sets."""
    for key in options:
        _, group, name = split(key)
        if name in MANAGED and group in ("", "run") and key not in allowed:
            advice = "list the seeds as seeds" if name.startswith("seed") else "leave it out"
            raise UserError(f"{where}: {name} is set by the study for every run: {advice}.")
