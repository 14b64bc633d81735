"""Whole steps on a GPU that is not there: on the fused operators, without host traffic, ready for a CUDA graph."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from fake_cuda import HostTraffic, OnDevice, backward, fake_cuda
from fused_pair import forbid_fallback
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException

from fastnas import Genotype
from fastnas.nn import DerivedNetwork, Supernet


@pytest.fixture(autouse=True)
def device() -> Iterator[None]:
    with fake_cuda():
        yield


@contextmanager
def precision(name: str) -> Iterator[None]:
    """Parameters and images in this dtype, or in float32 with autocast to it: "autocast float16"."""
    how, dtype = name.split()[:-1], getattr(torch, name.split()[-1])
    # torch.autocast does nothing where there is no GPU.
    torch.set_autocast_enabled("cuda", bool(how))
    torch.set_autocast_dtype("cuda", dtype if how else torch.float16)
    torch.set_default_dtype(torch.float32 if how else dtype)
    try:
        yield
    finally:
        torch.set_autocast_enabled("cuda", False)
        torch.set_autocast_dtype("cuda", torch.float16)
        torch.set_default_dtype(torch.float32)


def supernet(space: str, **options: Any) -> Supernet:
    network = Supernet(space, **({"channels": 16, "layers": 3, "num_classes": 5} | options))
    if space != "nb201":
        forbid_fallback(network)
    return network


def step(network: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, labels: Tensor, *tables: Any) -> None:
    optimizer.zero_grad(set_to_none=True)
    logits = network(x, *tables)
    logits, auxiliary = logits if isinstance(logits, tuple) else (logits, logits)
    backward(F.cross_entropy(logits.float(), labels) + 0.4 * F.cross_entropy(auxiliary.float(), labels))
    nn.utils.clip_grad_norm_(network.parameters(), 5.0)
    optimizer.step()


def watched_step(network: nn.Module, x: Tensor, *tables: Any) -> dict[str, int]:
    """The operators of the second step, to which the first one leaves what is made once."""
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    labels = torch.empty(len(x), dtype=torch.int64)
    step(network, optimizer, x, labels, *tables)
    with OnDevice() as watch:
        step(network, optimizer, x, labels, *tables)
    # Not every kind of cells is there in a network of few layers.
    untouched = [name for name, parameter in network.named_parameters() if parameter.grad is None]
    assert all(name.startswith("alphas.") for name in untouched), untouched
    assert len(untouched) < max(1, len(getattr(network, "alphas", {})))
    return watch.calls


def images(size: int = 16) -> Tensor:
    return torch.empty(4, 3, size, size).contiguous(memory_format=torch.channels_last)


SPACES = [("darts", {}), ("egnas", {"partial_channels": 4}), ("multi-level", {"partial_channels": 2}), ("nb201", {})]
PRECISIONS = ["bfloat16", "float16", "float64", "autocast float16", "autocast bfloat16"]


@pytest.mark.parametrize(
    ("space", "options", "dtype"),
    [
        *((space, options, "float32") for space, options in SPACES),
        *(("egnas", {"partial_channels": 4}, dtype) for dtype in PRECISIONS),
    ],
)
def test_weight_step_of_a_supernet(space: str, options: dict[str, Any], dtype: str) -> None:
    with precision(dtype):
        calls = watched_step(supernet(space, **options), images())
    assert calls["fastnas::node_sum_grad" if space == "nb201" else "fastnas::stage_grad"] > 0
    assert "aten::convolution" in calls  # of the stem


def test_weight_step_in_evaluation_mode_and_with_edge_weights() -> None:
    network = supernet("darts", partial_channels=2, layers=2).eval()
    edges = {kind: torch.empty(14) for kind in network.alphas}
    calls = watched_step(network, images(), None, edges)
    assert calls["fastnas::bypass_grad"] > 0
    assert calls["fastnas::stage_grad"] > 0


@pytest.mark.parametrize("mode", ["running", "batch"])
@pytest.mark.parametrize(("space", "options"), SPACES, ids=[space for space, _ in SPACES])
def test_population(space: str, options: dict[str, Any], mode: Any) -> None:
    network, x = supernet(space, **options), images()
    alphas = {kind: torch.empty(5, *network.alphas[kind].shape) for kind in network.alphas}
    network.population_logits(x, alphas, chunk=2, bn_mode=mode)
    with OnDevice() as watch:
        logits = network.population_logits(x, alphas, chunk=2, bn_mode=mode)
    assert (logits.shape, logits.device.type) == ((5, 4, 5), "cuda")
    if space != "nb201":
        assert watch.calls["fastnas::edge_sum" if mode == "running" else "fastnas::stage"] > 0


@pytest.mark.parametrize("drop_path", [0.0, 0.2])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "autocast float16"])
def test_step_of_a_derived_network(drop_path: float, dtype: str) -> None:
    with precision(dtype):
        network = DerivedNetwork(
            Genotype.published("DARTS_V2"), channels=8, layers=3, num_classes=5, drop_path=drop_path
        )
        calls = watched_step(network, images(32))
    assert calls["fastnas::stage_grad"] > 0
    assert calls["fastnas::node_sum"] > 0
    # Of the stem and of the auxiliary head alone.
    assert calls["aten::convolution"] == 3


def test_a_derived_network_with_an_average_of_all_batches() -> None:
    network = DerivedNetwork(Genotype.published("DARTS_V2"), channels=8, layers=1, num_classes=5, auxiliary=False)
    for module in network.cells.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
    assert watched_step(network, images())["fastnas::node_sum"] > 0


OFFENCES: list[Callable[[Tensor], Any]] = [
    lambda x: x[:, [0, 1]],
    lambda x: x.new_tensor([1.0, 2.0]),
    lambda x: torch.tensor([1.0, 2.0]),
    lambda x: x + torch.ones(3, device="cpu"),
    lambda x: x[:, torch.zeros(2, dtype=torch.int64, device="cpu")],
    lambda x: x.cpu(),
    lambda x: x.sum().item(),
    lambda x: bool(x.sum() > 0),
    lambda x: x.tolist(),
    lambda x: x[x > 0],
]


@pytest.mark.parametrize("offence", OFFENCES)
def test_host_traffic_is_seen(offence: Callable[[Tensor], Any]) -> None:
    x = torch.empty(3, 3)
    refused = (HostTraffic, DataDependentOutputException, DynamicOutputShapeException, RuntimeError)
    with OnDevice(), pytest.raises(refused):
        offence(x)
