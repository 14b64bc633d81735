"""FASTNAS_TEST_SEED repeats what a test saw, hypothesis included, and a failing test says so."""

from __future__ import annotations

import re
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
    SEEN.append(number)

@given(st.just(0))
def test_values(number):
    SEEN.append(torch.rand(()).item())

def test_failure():
    raise AssertionError(f"seen {SEEN} and {torch.rand(()).item()}")
"""


@pytest.fixture
def seen(pytester, monkeypatch):
    """Runs the tests with a seed or with none: the numbers, the values in examples and the one outside that they saw,
    and all that pytest printed."""
    pytester.makepyfile(EXAMPLES)

    def run(seed: str | None) -> tuple[list[str], str]:
        monkeypatch.delenv("FASTNAS_TEST_SEED", raising=False)
        if seed is not None:
            monkeypatch.setenv("FASTNAS_TEST_SEED", seed)
        monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
        # In a process of its own: hypothesis draws constants of whatever modules are there, too.
        result = pytester.runpytest_subprocess("-p", "conftest", "-p", "no:xdist", "-p", "no:cacheprovider")
        result.assert_outcomes(passed=2, failed=1)
        line = next(line for line in result.outlines if line.startswith("E ") and "seen [" in line)
        *numbers, inside, outside = re.findall(r"[0-9.]+(?:e-\d+)?", line.partition("seen ")[2])
        return [" ".join(numbers), inside, outside], str(result.stdout)

    return run


def test_a_seed_repeats_torch_and_hypothesis(seen):
    once, again, other = seen("3"), seen("3"), seen("4")
    assert once[0] == again[0]
    assert all(one != another for one, another in zip(once[0], other[0], strict=True))
    assert "repeat with FASTNAS_TEST_SEED=3" in once[1]


def test_seeds_are_fresh_without_one(seen):
    once, again = seen(None), seen(None)
    assert all(one != another for one, another in zip(once[0], again[0], strict=True))
    assert "repeat with FASTNAS_TEST_SEED=" in once[1]
