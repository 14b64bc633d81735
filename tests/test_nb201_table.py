"""What the table of NAS-Bench-201 says of sizes, against formulas and against our network."""

from __future__ import annotations

import csv
import gzip
import re
from pathlib import Path
from typing import Any

import pytest

from fastnas.counting import count_macs, count_parameters
from fastnas.nn.nb201 import NB201Network
from fastnas.spaces.nb201 import CANDIDATES, NB201Genotype

PAGE = Path(__file__).parents[1] / "docs" / "results" / "nb201.md"
CLASSES = 10  # the table's multiply-adds count the classifier's bias, `count_macs` does not


def parameters(cell: NB201Genotype) -> int:
    wide, narrow = (cell.operations.count(f"nor_conv_{k}x{k}") for k in (3, 1))
    return 73_306 + 243_040 * wide + 28_000 * narrow


def macs(cell: NB201Genotype) -> int:
    wide, narrow = (cell.operations.count(f"nor_conv_{k}x{k}") for k in (3, 1))
    return 7_783_040 + 35_389_440 * wide + 3_932_160 * narrow


@pytest.fixture(scope="module")
def rows() -> list[dict[str, Any]]:
    path = Path(__file__).resolve().parents[1] / ".." / "shared" / "data" / "nb201_cifar10.csv.gz"
    if not path.exists():
        pytest.skip("needs ../shared/data/nb201_cifar10.csv.gz")
    with gzip.open(path, "rt") as file:
        return list(csv.DictReader(file))


def named() -> list[int]:
    """The numbers of the rows that the page calls one convolution off."""
    (numbers,) = re.findall(r"one convolution off.*?```text\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.S)
    return [int(word) for word in numbers.split()]


def test_sizes_in_the_table_follow_from_the_convolutions(rows):
    off = []
    for row in rows:
        cell = NB201Genotype.from_string(row["arch"])
        difference = round(1e6 * float(row["params_m"])) - parameters(cell)
        operations = 1e6 * float(row["mflops"]) - CLASSES - macs(cell)
        if difference == 0:
            assert abs(operations) < 20, row  # the table has five decimals of a million
        else:
            assert abs(difference) in (243_040, 28_000), row
            per_convolution = {243_040: 35_389_440, 28_000: 3_932_160}[abs(difference)]
            assert abs(abs(operations) - per_convolution) < 20, row
            off.append(int(row["index"]))
    assert (len(rows) - len(off), len(off)) == (15_475, 150)
    assert off == named()


@pytest.mark.parametrize("name", CANDIDATES)
def test_our_network_has_the_sizes_of_the_formulas(name):
    """Six times the same candidate, which settles what each of them adds."""
    cell = NB201Genotype((name,) * 6)
    network = NB201Network(cell, channels=16, layers=15)
    assert count_parameters(network) == parameters(cell)
    assert count_macs(network, (3, 32, 32)) == macs(cell)
