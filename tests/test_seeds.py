"""FASTNAS_TEST_SEED repeats what a test saw, hypothesis included, and a failing test says so."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest_plugins = ["pytester"]

EXAMPLES = """
import torch
from hypothesis import given, settings, strategies as st

SEEN = []

@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**9))
def test_numbers(number):
    SEEN.append((number, torch.rand(()).item()))

def test_failure():
    raise AssertionError(f"seen {SEEN[:20]} and {torch.rand(()).item()}")
"""


@pytest.fixture
def seen(pytester, monkeypatch):
    """Runs the two tests with a seed, or with none; what they saw, and all that pytest printed."""
    pytester.makepyfile(EXAMPLES)

    def run(seed: str | None) -> tuple[str, str]:
        monkeypatch.delenv("FASTNAS_TEST_SEED", raising=False)
        if seed is not None:
            monkeypatch.setenv("FASTNAS_TEST_SEED", seed)
        monkeypatch.syspath_prepend(Path(__file__).parent)
        result = pytester.runpytest_inprocess("-p", "conftest", "-p", "no:xdist", "-p", "no:cacheprovider")
        result.assert_outcomes(passed=1, failed=1)
        line = next(line for line in result.outlines if line.startswith("E ") and "seen [" in line)
        return line, str(result.stdout)

    return run


def test_a_seed_repeats_torch_and_hypothesis(seen):
    once, again, other = seen("3"), seen("3"), seen("4")
    assert once[0] == again[0] != other[0]
    assert "repeat with FASTNAS_TEST_SEED=3" in once[1]


def test_seeds_are_fresh_without_one(seen):
    once, again = seen(None), seen(None)
    assert once[0] != again[0]
    assert "repeat with FASTNAS_TEST_SEED=" in once[1]
