"""Fixtures of the tests of strategies."""

from __future__ import annotations

import pytest
from egnas_search import Recorder


@pytest.fixture
def cma_runs(monkeypatch: pytest.MonkeyPatch) -> list[Recorder]:
    """The runs of CMA-ES that strategies begin during the test."""
    runs: list[Recorder] = []
    monkeypatch.setattr(Recorder, "runs", runs, raising=False)
    monkeypatch.setattr("fastnas.strategies.egnas.CMAES", Recorder)
    return runs
