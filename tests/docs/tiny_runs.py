"""Everything that the pages run, made small: the commands stay as they are printed, and only their options shrink.

FASTNAS_DOCS_TINY=0 runs them at full size, which takes days on a CPU. No other code reads this variable.
"""

from __future__ import annotations

import dataclasses
import os
from typing import Any

import pytest

from fastnas import compare
from fastnas.cli import configuration
from fastnas.cli.configuration import SearchOptions
from fastnas.cli.options import CompareOptions

TINY = os.environ.get("FASTNAS_DOCS_TINY", "1") != "0"

SEARCH = {
    "weights": {"epochs": 2},
    "network": {"channels": 4, "layers": 3},
    "data": {"batch_size": 16, "limit": 144},
    "strategy": {"warm_up": 1, "population": 4, "samples": 1, "fitness_batch_size": 8, "evaluations": 6},
}
TRAINING = {
    "recipe": {"epochs": 1},
    "network": {"channels": 2, "layers": 3},
    "data": {"batch_size": 48, "limit": 144},
    "run": {},
}
COMPARISON = {"runs": 2, "processes": 1, "budget": 1500.0}
REAL_SECONDS = 0.2


def at_most(options: Any, most: dict[str, Any]) -> Any:
    """The options, none of the numbers in `most` larger than there."""
    values = {field.name: getattr(options, field.name) for field in dataclasses.fields(options) if field.init}
    small = {name: limit if values[name] is None else min(values[name], limit) for name, limit in most.items()
             if name in values}  # fmt: skip
    return dataclasses.replace(options, **small)


def shrink(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes searches, trainings and comparisons small in this process, however they are called."""
    if not TINY:
        return
    parse = configuration._parse_layers
    run_comparison = compare.compare

    def parse_tiny(*arguments: Any) -> Any:
        options = parse(*arguments)
        limits = SEARCH if isinstance(options, SearchOptions) else TRAINING
        return dataclasses.replace(
            options, **{group: at_most(getattr(options, group), most) for group, most in limits.items()}
        )

    def compare_tiny(options: CompareOptions, console: Any) -> Any:
        budget = COMPARISON["budget"] if options.evaluator.startswith("nb201:") else REAL_SECONDS
        return run_comparison(at_most(options, {**COMPARISON, "budget": budget}), console)

    monkeypatch.setattr(configuration, "_parse_layers", parse_tiny)
    monkeypatch.setattr(compare, "compare", compare_tiny)
