"""Every strategy searches every space, or refuses it before the first step; `test_every_strategy` has the others."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from test_every_strategy import make

from fastnas.errors import UserError
from fastnas.report import write_report
from fastnas.spaces import SPACES
from fastnas.strategies import STRATEGIES

OTHERS = [(name, space) for name, kind in STRATEGIES.items() for space in SPACES if space != kind.default_space]
SMALL = {"limit": 40, "batch_size": 8, "epochs": 1, "warm_up": 0, "fitness_batch_size": 8, "evaluations": 4}
OWN = {"p-darts": {"epochs": 3}, ("multi-level", "nb201"): {"layers": 3}, ("snas", "nb201"): {"resource": "none"}}
STRATEGY_OPTIONS = ("warm_up", "fitness_batch_size", "evaluations", "resource")
REFUSED = {
    ("p-darts", "egnas"): "fewer than 3 are left for the last stage: lower --drop-1 or --drop-2",
    ("p-darts", "nb201"): "p-darts needs cells with two inputs and skip connections",
    ("enas", "nb201"): "enas chooses the sources of nodes, which this space fixes",
}


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
    assert "could not be read" not in write_report(search.directory).read_text()
