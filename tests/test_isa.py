"""FASTNAS_ISA chooses the instruction set of a process; one that it cannot have is an error."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from fastnas._library import _C
from fastnas.env import instruction_sets

NAMES = {"portable": "portable", "avx2": "AVX2", "avx512": "AVX-512"}


def run(value: str) -> subprocess.CompletedProcess[str]:
    code = "from fastnas._library import _C; print(_C.cpu_capability())"
    environment = {**os.environ, "FASTNAS_ISA": value}
    return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("value", NAMES)
def test_a_process_uses_what_the_variable_names(value: str) -> None:
    sets = _C.build_info()["instruction_sets"]
    best = list(NAMES.values()).index(_C.best_cpu_capability())
    result = run(value)
    if NAMES[value] in sets and list(NAMES).index(value) <= best:
        assert result.stdout.strip() == NAMES[value]
    else:
        assert result.returncode == 1
        assert f"FASTNAS_ISA is {value}, but this processor or this build lacks it" in result.stderr


def test_the_instruction_sets_of_this_machine_are_those_that_it_takes() -> None:
    sets = instruction_sets()
    assert sets == [value for value in NAMES if run(value).returncode == 0]
    assert NAMES[sets[-1]] == _C.best_cpu_capability()


def test_unknown_values_are_an_error() -> None:
    result = run("sse9")
    assert result.returncode == 1
    assert "FASTNAS_ISA is 'sse9', expected portable, avx2 or avx512: set it to another value" in result.stderr
    assert "did not load" not in result.stderr
    assert run("").returncode == 0
