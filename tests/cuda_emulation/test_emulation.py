"""The emulation runs every CUDA kernel, and notices when one is wrong. The emulator's own tests run in ctest."""

from __future__ import annotations

import ctypes
import re
from collections import Counter
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from cuda_emulation import emulation
from cuda_emulation.faults import FAULTS

from benchmarks.analysis.counting import LAUNCHES
from fastnas.nn import Supernet
from fastnas.ops import mixed_sum, node_sum

pytestmark = [
    pytest.mark.emulated,
    pytest.mark.skipif(
        not emulation.library_path().is_file(), reason="the CUDA kernels are not built for the CPU: make emulation"
    ),
]

KERNELS = Path(__file__).resolve().parents[2] / "csrc" / "cuda"


def search_a_little() -> None:
    """Calls every operator, backward passes included: a weight step and a population in both modes of each space."""
    for individuals in (None, 3):
        leading = () if individuals is None else (individuals,)
        outputs = [torch.randn(*leading, 2, 4, 6, 6, requires_grad=True), torch.randn(*leading, 2, 4, 6, 6)]
        if individuals:
            outputs.append(torch.randn(1, 2, 4, 6, 6, requires_grad=True))
        weights = torch.rand(*leading, len(outputs), requires_grad=True)
        mixed_sum(outputs, weights).sum().backward()
    pixels = torch.randint(0, 256, (3, 8, 8, 3), dtype=torch.uint8)  # [N, H, W, 3]
    torch.ops.fastnas.augment_batch(pixels, torch.rand(3, 256), None, None, 0, 0)
    torch.ops.fastnas.color_jitter(pixels, torch.rand(3, 4) / 2)
    torch.ops.fastnas.philox(torch.arange(5), 1, 2)
    outputs = [torch.randn(2, 4, 6, 6, requires_grad=True) for _ in range(2)]
    bypass, shares = [torch.randn(2, 12, 6, 6, requires_grad=True)], torch.rand(1, requires_grad=True)
    statistics = torch.rand(2, 2, 1, 4)
    node_sum(outputs, *statistics, torch.rand(2), bypass, shares).sum().backward()
    images, labels = torch.randn(2, 3, 8, 8), torch.tensor([1, 0])
    for space, parts in (("egnas", 4), ("darts", 1)):
        network = Supernet(space, channels=8, layers=3, num_classes=2, partial_channels=parts)
        F.cross_entropy(network(images), labels).backward()
        alphas = {kind: torch.randn(2, *alpha.shape) for kind, alpha in network.alphas.items()}
        for mode in ("running", "batch"):
            network.population_logits(images, alphas, bn_mode=mode)


SOURCES = {path.name: path.read_text() for path in KERNELS.iterdir()}
# By name, as the launchers call them; the two of a header are given theirs by whoever includes it.
LAUNCHED = set(re.findall(r"\b(?:launch|merge_statistics|prepare_weights)\(\s*\"(\w+)\"", "\n".join(SOURCES.values())))


def test_every_kernel_is_launched():
    for file, text in SOURCES.items():
        kernels = set(re.findall(r"__global__ [^;{]*?\b(\w+_kernel)\(", text))
        without = re.sub(r"\b\w+_kernel\(", "", text)  # what is left names them to launch them
        assert kernels == {kernel for kernel in kernels if re.search(rf"\b{kernel}\b", without)}, file
        assert len(kernels) == text.count("__global__ "), file


def test_every_kernel_runs_and_agrees_with_the_cpu(seed):
    assert LAUNCHED, "the launches of csrc/cuda were not found"
    emulation.take_launches()
    with emulation.emulated("shuffled", seed):
        search_a_little()
    launched = set(emulation.take_launches())
    assert launched == LAUNCHED


def test_every_kernel_has_been_broken_on_purpose():
    """By `break_kernels.py`; docs/results/broken-kernels.md says what caught it."""
    assert {fault.kernel for fault in FAULTS} == LAUNCHED
    for fault in FAULTS:
        assert SOURCES[fault.file].count(fault.old) == 1, f"{fault.file}, {fault.what}: no such line"
    record = (KERNELS.parents[1] / "docs" / "results" / "broken-kernels.md").read_text()
    unseen = [fault for fault in FAULTS if f"| `{fault.kernel}` | `{fault.file}` | {fault.what} |" not in record]
    assert not unseen, "broken, but not recorded: run break_kernels.py"
    assert "nobody" not in record


def test_the_state_of_proof_names_every_kernel():
    page = (KERNELS.parents[1] / "docs" / "gpu.md").read_text()
    rows = dict(re.findall(r"^\| `(\w+)` \| `\w+\.cu` \| yes \| (\d+) \|", page, re.MULTILINE))
    assert {kernel: int(count) for kernel, count in rows.items()} == Counter(fault.kernel for fault in FAULTS)


def test_launches_are_as_many_as_the_roofline_says():
    with emulation.counting() as calls:
        search_a_little()
    assert set(calls) == set(emulation.operators()), "an operator with CUDA kernels was not called"
    most = {name: max(launches.total() for launches in of_operator) for name, of_operator in calls.items()}
    assert most == {name: LAUNCHES[f"fastnas.{name}"] for name in most}


@pytest.mark.skipif(torch.version.cuda is None, reason="a torch without CUDA has no streams")
def test_the_stream_of_torch_is_found():
    """Without a GPU it cannot be asked for, but where it comes from is there."""
    find = emulation._library_handle().emulated_finds_the_stream
    find.restype = ctypes.c_bool
    assert find()


def test_orders_give_the_same_bits():
    outputs = [torch.randn(3, 5, 33, 33) for _ in range(4)]
    weights, grad = torch.rand(4), torch.randn(3, 5, 33, 33)
    results = []
    for order in emulation.ORDERS:
        with emulation.emulated(order, seed=3):
            results.append(torch.ops.fastnas.mixed_sum_grad_weights(grad, outputs, weights))
    assert all(torch.equal(result, results[0]) for result in results)


def test_a_wrong_result_is_seen(monkeypatch):
    """Of a kernel that adds 1e-4 of the largest value to one element."""
    right = emulation.kernel

    def wrong(name: str):
        kernel = right(name)
        if name != "mixed_sum":
            return kernel

        class Wrong:
            _schema = kernel._schema

            def __call__(self, *args):
                result = kernel(*args)
                result.view(-1)[-1] += 1e-4 * result.abs().max()
                return result

        return Wrong()

    monkeypatch.setattr(emulation, "kernel", wrong)
    with emulation.emulated(), pytest.raises(AssertionError, match=r"mixed_sum, result 0\[0\] differs from the CPU's"):
        mixed_sum([torch.randn(3, 5), torch.randn(3, 5)], torch.tensor([0.5, 0.5]))


def test_the_cpu_kernels_come_back():
    emulation.take_launches()
    with emulation.emulated():
        mixed_sum([torch.ones(2)], torch.ones(1))
    assert emulation.take_launches() == Counter(mixed_sum_forward=1)
    mixed_sum([torch.ones(2)], torch.ones(1))
    assert emulation.take_launches() == Counter()
