"""What the committed tables of operators promise."""

from __future__ import annotations

import csv
from collections import defaultdict
from pathlib import Path

import pytest

import benchmarks
from benchmarks.harness import FASTNAS

TABLES = sorted((Path(benchmarks.__file__).parent / "results").glob("cpu-*-ops.csv"))
LEAST = 0.25  # of the floor, unless the row says why not


def rows(table: Path) -> dict[tuple[str, str, str], dict[str, dict[str, str]]]:
    """(operator, case, mode) → contender → its row."""
    found: dict[tuple[str, str, str], dict[str, dict[str, str]]] = defaultdict(dict)
    with table.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            found[row["benchmark"], row["case"], row["mode"]][row["contender"]] = row
    return found


def test_both_instruction_sets_are_there() -> None:
    assert [table.name for table in TABLES] == ["cpu-avx2-ops.csv", "cpu-avx512-ops.csv"]


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.name)
def test_no_operator_is_slower_than_what_it_replaces_or_far_from_its_floor_without_a_reason(table: Path) -> None:
    for case, contenders in rows(table).items():
        own = contenders.pop(FASTNAS)
        assert contenders, case
        for name, row in contenders.items():
            assert float(row["fastnas_speed_up"]) >= 1, (case, name)
        assert float(own["floor_fraction"]) >= LEAST or own["note"], case
