"""What all tests share: fresh seeds that are printed where a test fails, the backends of the operators, and the data
beside the repository.

A test's seed is that of torch's generator and of hypothesis, which remembers no failures of its own: whatever failed,
FASTNAS_TEST_SEED=… repeats it, on any machine.

A test that asks for `backend` runs with the CPU kernels, with the CUDA kernels on the CPU (cuda_emulation/) and on a
GPU. Test files of operators do so as a whole, with `pytestmark = pytest.mark.usefixtures("backend")`; a test that
concerns only the CPU kernels is marked `cpu_only`.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import torch
from cuda_emulation import emulation

from fastnas import primitive_names
from fastnas.nn.primitives import PRIMITIVES
from fastnas.spaces import SPACES
from fastnas.strategies import STRATEGIES

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


class TorchRandom:
    """torch's generator for hypothesis, which would begin every example with one seed, and every test with the same."""

    test_seed = 0

    def seed(self, value: int) -> None:
        torch.manual_seed(self.test_seed + value)

    def getstate(self) -> torch.Tensor:
        return torch.get_rng_state()

    def setstate(self, state: torch.Tensor) -> None:
        torch.set_rng_state(state)


# Autograd starts its threads at the first backward pass, one for each device of that moment. If a test pretends then
# that there is a GPU, no process that is forked later can differentiate.
torch.zeros((), requires_grad=True).backward()

TORCH_RANDOM = TorchRandom()
hypothesis.register_random(TORCH_RANDOM)


@pytest.fixture(autouse=True)
def seed(request: pytest.FixtureRequest) -> int:
    """A fresh seed for torch's generator and for hypothesis; FASTNAS_TEST_SEED repeats a failure."""
    value = int(os.environ.get("FASTNAS_TEST_SEED", secrets.randbelow(2**31)))
    torch.manual_seed(value)
    TORCH_RANDOM.test_seed = value
    if hypothesis.is_hypothesis_test(request.function):
        hypothesis.seed(value)(request.function)
    request.node.user_properties.append(("FASTNAS_TEST_SEED", value))
    return value


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    """Commands set the number of threads of the process; sums of the next test would be rounded in another order."""
    before = torch.get_num_threads()
    yield
    if torch.get_num_threads() != before:
        torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def registries() -> Iterator[None]:
    """What a test registers is forgotten after it."""
    tables: list[dict[str, Any]] = [PRIMITIVES, primitive_names._names, STRATEGIES, SPACES]
    before = [dict(table) for table in tables]
    yield
    for table, entries in zip(tables, before, strict=True):
        table.clear()
        table.update(entries)


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    outcome = yield
    report = outcome.get_result()
    if report.failed:
        for name, value in item.user_properties:
            report.sections.append(("seed", f"repeat with {name}={value}"))


BACKENDS = [
    "cpu",
    pytest.param("emulated", marks=pytest.mark.emulated),
    pytest.param("cuda", marks=pytest.mark.cuda),
]
# Emulated cases of one test function, unless all are asked for, or the test is marked `emulated_cases(n)`.
EMULATED_CASES = 12


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--all-emulated",
        action="store_true",
        help=f"run all emulated cases of every test, in every order of threads; by default {EMULATED_CASES} of each",
    )
    parser.addoption(
        "--shared-kib",
        type=int,
        choices=emulation.SHARED_KIB,
        default=163,
        help="shared memory that an emulated card allows a block (default: 163, compute capability 8.0)",
    )


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    own = any("backend" in mark.args[0] for mark in metafunc.definition.iter_markers("parametrize"))
    if "backend" in metafunc.fixturenames and not own:  # the backends of networks are "fused" and "reference"
        cpu_only = metafunc.definition.get_closest_marker("cpu_only")
        metafunc.parametrize("backend", ["cpu"] if cpu_only else BACKENDS, indirect=True)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--all-emulated"):
        return
    cases: dict[str, list[pytest.Item]] = {}
    for item in items:
        if item.get_closest_marker("emulated"):
            cases.setdefault(item.nodeid.partition("[")[0], []).append(item)
    left_out: set[pytest.Item] = set()
    for group in cases.values():
        mark = group[0].get_closest_marker("emulated_cases")
        count = mark.args[0] if mark else EMULATED_CASES
        kept = {group[i * len(group) // count] for i in range(count)}
        left_out.update(item for item in group if item not in kept)
    if left_out:
        config.hook.pytest_deselected(items=[item for item in items if item in left_out])
        items[:] = [item for item in items if item not in left_out]


@pytest.fixture
def backend(request: pytest.FixtureRequest, seed: int) -> Iterator[str]:
    """The kernels that the test's operators run: "cpu", "emulated" or "cuda"; for the last, tensors are made there."""
    if request.param == "cuda":
        if not torch.cuda.is_available():
            pytest.skip("no CUDA device")
        with torch.device("cuda"), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            yield request.param
    elif request.param == "emulated":
        if not emulation.library_path().is_file():
            pytest.skip("the CUDA kernels are not built for the CPU: make emulation")
        with emulation.emulated("shuffled", seed, request.config.getoption("--shared-kib")):
            yield request.param
    else:
        yield request.param


@pytest.fixture
def shared_data() -> Path:
    """Data that lies beside the repository, not in it."""
    if not SHARED_DATA.is_dir():
        pytest.skip("needs ../shared/data, which is not part of the repository")
    return SHARED_DATA
