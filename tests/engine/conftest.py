"""Searches so small that a test can run several."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from fastnas.configuration import parse
from fastnas.engine.search import Search
from fastnas.search import prepare

SMALL = (
    "--data digits --limit 120 --batch-size 16 --image-size 8 --channels 4 --layers 3 --epochs 4 --learning-rate 0.05 "
    "--warm-up 1 --population 4 --samples 2 --fitness-batch-size 20 --device cpu"
).split()


@pytest.fixture()
def small(tmp_path: Path) -> Callable[..., Search]:
    """Prepares a small search: small("name", "--flag", "value", …); an existing run of that name is resumed."""

    def make(name: str, *flags: str) -> Search:
        directory = tmp_path / name
        resumed = (directory / "checkpoint.pt").exists()
        arguments = [*(["--resume", str(directory)] if resumed else [*SMALL, "--out", str(directory)]), *flags]
        # Whatever state the process is in, a search must not depend on it.
        torch.rand(7)
        return prepare(parse(arguments, "test", ""), arguments)

    return make
