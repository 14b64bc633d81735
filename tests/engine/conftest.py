"""Searches so small that a test can run several."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from run_files import SMALL

from fastnas.cli.configuration import parse_search
from fastnas.engine.search import Search
from fastnas.search import prepare


@pytest.fixture
def small(tmp_path: Path) -> Callable[..., Search]:
    """Prepares a small search: small("name", "--flag", "value", …); an existing run of that name is resumed."""

    def make(name: str, *flags: str) -> Search:
        directory = tmp_path / name
        resumed = (directory / "checkpoint.pt").exists()
        arguments = [*(["--resume", str(directory)] if resumed else [*SMALL, "--out", str(directory)]), *flags]
        # Whatever state the process is in, a search must not depend on it.
        torch.rand(7)
        return prepare(parse_search(arguments, "test", ""), arguments)

    return make
