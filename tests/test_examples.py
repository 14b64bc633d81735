"""The programs in examples/ run, at tiny sizes."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from fastnas import ops

ROOT = Path(__file__).parents[1]
SEARCH = ["darts_search.py", *["--epochs", "2", "--images", "60", "--channels", "4", "--batch", "16"]]


def run(*command: str) -> str:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples" / command[0]), *command[1:]],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


def epochs(output: str) -> list[list[float]]:
    """Loss, training and validation accuracy of each epoch."""
    lines = re.findall(r"^epoch .*?loss (\S+)  train +(\S+)%  valid +(\S+)%  +\d+ ms/step$", output, re.MULTILINE)
    return [[float(number) for number in line] for line in lines]


def test_a_search_before_and_after_the_one_line() -> None:
    before, after = run(*SEARCH), run(*SEARCH, "--accelerate")
    assert len(epochs(before)) == 2
    for plain, fused in zip(epochs(before), epochs(after), strict=True):
        assert fused[0] == pytest.approx(plain[0], abs=2e-3)
        assert fused[1:] == pytest.approx(plain[1:], abs=100 / 30 + 0.1)  # one image of 30
    for output in (before, after):
        assert (
            len(re.findall(r"^  node \d:  \w+ +of (?:input|node) \d  \+  \w+ +of (?:input|node) \d$", output, re.M))
            == 8
        )
    assert "whole normal cell" in after
    assert "nothing" not in after


def test_accelerating_is_one_line() -> None:
    text = (ROOT / "examples" / "darts_search.py").read_text(encoding="utf-8")
    assert text.count("fastnas.compat.accelerate(") == 1
    assert "fastnas" not in (ROOT / "examples" / "darts_network.py").read_text(encoding="utf-8").split('"""', 2)[2]


def test_the_tour_of_the_operators() -> None:
    output = run("operators.py", "--tiny")
    shown = re.findall(r"^(\w+) ", output, re.MULTILINE)
    names = {name for name in ops.__all__ if not name.endswith("_reference")} - {"normalization_table", "philox"}
    assert set(shown) == names | {"MixedOp"}
