"""Every strategy searches every space, or refuses it before the first step; `test_every_strategy` has the others."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from test_every_strategy import make

from fastnas.cli import searching
from fastnas.engine import search as engine
from fastnas.errors import UserError
from fastnas.report import write_report
from fastnas.spaces import SPACES
from fastnas.strategies import STRATEGIES

OTHERS = [(name, space) for name, kind in STRATEGIES.items() for space in SPACES if space != kind.default_space]
SMALL = {
    "limit": 40,
    "batch_size": 8,
    "epochs": 1,
    "warm_up": 0,
    "fitness_batch_size": 8,
    "evaluations": 4,
    "finalists": 2,
}
OWN = {
    "p-darts": {"epochs": 3},
    "enas": {"finalists": 0},
    "nsga2": {"finalists": 0},
    ("multi-level", "nb201"): {"layers": 3},
    ("snas", "nb201"): {"resource": "none"},
}
STRATEGY_OPTIONS = ("warm_up", "fitness_batch_size", "evaluations", "finalists", "resource")
REFUSED = {
    ("p-darts", "egnas"): "fewer than 3 are left for the last stage: lower --drop-1 or --drop-2",
    ("p-darts", "nb201"): "p-darts needs cells with two inputs and skip connections",
    ("enas", "nb201"): "enas chooses the sources of nodes, which this space fixes",
}
REPORTED = ("egnas", "nsga2")
"""With α and evolution, and with evaluations and a front; `test_every_strategy` writes the pages of all."""


def once_for_each_space(function: Callable[..., Any]) -> Callable[..., Any]:
    known: dict[str, Any] = {}

    def call(network: Any, *arguments: Any) -> Any:
        if network.space.name not in known:
            known[network.space.name] = function(network, *arguments)
        return known[network.space.name]

    return call


SIZES = {
    (searching, "supernet_macs"): once_for_each_space(searching.supernet_macs),
    (engine, "derived_sizes"): once_for_each_space(engine.derived_sizes),
}


@pytest.fixture(autouse=True)
def what_is_the_same_for_all_strategies_is_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """How large networks are depends on the space; counting takes longer than such a small search."""
    for (module, name), function in SIZES.items():
        monkeypatch.setattr(module, name, function)
    monkeypatch.setattr("fastnas.engine.evidence.RANDOM_CELLS", 3)
    monkeypatch.setattr("fastnas.engine.evidence.DRAWN", 40)


@pytest.mark.parametrize(("name", "space"), OTHERS)
def test_every_strategy_searches_every_space(name: str, space: str, tmp_path: Path):
    own = {field.name for field in dataclasses.fields(STRATEGIES[name])}
    small = SMALL | OWN.get(name, {}) | OWN.get((name, space), {})
    known = {option: value for option, value in small.items() if option in own or option not in STRATEGY_OPTIONS}
    flags = [word for option, value in known.items() for word in (f"--{option.replace('_', '-')}", str(value))]
    if (name, space) in REFUSED:
        with pytest.raises(UserError, match=REFUSED[name, space]):
            make(tmp_path / "run", name, *flags, "--space", space)
        return
    search = make(tmp_path / "run", name, *flags, "--space", space)
    outcome = search.run()
    assert outcome.status == "finished"
    assert search.network.space.name == space
    assert set(outcome.genotype.kinds) == set(SPACES[space].kinds)
    if name in REPORTED:
        assert "could not be read" not in write_report(search.directory).read_text()
