"""What all tests share: fresh seeds that are printed where a test fails, and the data beside the repository."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(autouse=True)
def seed(request: pytest.FixtureRequest) -> int:
    """A fresh seed for torch's generator; FASTNAS_TEST_SEED repeats a failure."""
    value = int(os.environ.get("FASTNAS_TEST_SEED", secrets.randbelow(2**31)))
    torch.manual_seed(value)
    request.node.user_properties.append(("FASTNAS_TEST_SEED", value))
    return value


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    outcome = yield
    report = outcome.get_result()
    if report.failed:
        for name, value in item.user_properties:
            report.sections.append(("seed", f"repeat with {name}={value}"))


@pytest.fixture
def shared_data() -> Path:
    """Data that lies beside the repository, not in it."""
    if not SHARED_DATA.is_dir():
        pytest.skip("needs ../shared/data, which is not part of the repository")
    return SHARED_DATA
