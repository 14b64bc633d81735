"""A few seconds of the fuzz of the operators' arguments; `python tests/fuzz/operators.py --seconds …` for more."""

from __future__ import annotations

import time

import pytest
import torch
from fuzz import operators
from fuzz.operator_cases import SCHEMAS

from fastnas import ops  # noqa: F401  (registers the operators)


def test_every_call_gives_a_result_or_is_refused():
    """The same calls every time; `tests/fuzz/run.py` draws new ones."""
    counts = operators.run(time.monotonic() + 6, seed=101)
    assert counts["result"] > 0, counts
    assert counts["refused"] > 0, counts


def test_every_schema_of_the_library_has_cases():
    schemas = [schema.name.split("::") for schema in torch._C._jit_get_all_schemas()]
    assert {name for namespace, name in schemas if namespace == "fastnas"} == set(SCHEMAS)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("import os; os.kill(os.getpid(), 11)", "ended with -11"),
        ("print('wrong', flush=True)", "wrong"),
        ("import time; time.sleep(60)", "hang"),
    ],
)
def test_crashes_wrong_results_and_hangs_are_told_with_the_case(line, message, monkeypatch, tmp_path):
    worker = tmp_path / "worker.py"
    worker.write_text(f"print('case 5', flush=True); {line}")
    monkeypatch.setattr(operators, "__file__", str(worker))
    monkeypatch.setattr(operators, "PATIENCE_SECONDS", 3)
    with pytest.raises(AssertionError, match=rf"(?s){message}.*--seed 11 --number 5"):
        operators.run(time.monotonic() + 1, 11)
