"""Pairs of a fused network and its reference, and what tests compare of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastnas.nn import Supernet
from fastnas.nn.batch_norm import BatchNorm
from fastnas.nn.cell import SearchCell
from fastnas.nn.mixed_op import MixedOp
from fastnas.spaces import SPACES, CellSpace

SMALL = {name: dataclasses.replace(space, nodes=2) for name, space in SPACES.items()}
UNUSUAL = [
    CellSpace("seven", ("dil_conv_3x3", "sep_conv_7x7", "none", "sep_conv_3x3"), False, 3),
    CellSpace(
        "twice",
        ("max_pool_3x3", "avg_pool_3x3", "max_pool_3x3", "skip_connect", "dil_conv_5x5", "skip_connect"),
        True,
        2,
    ),
    CellSpace("no pools", ("sep_conv_3x3", "skip_connect", "dil_conv_3x3", "sep_conv_3x3"), True, 3),
    CellSpace("skip", ("none", "skip_connect"), True, 3),
    CellSpace("pools", ("avg_pool_3x3", "max_pool_3x3"), False, 3),
    CellSpace("one", ("dil_conv_5x5",), True, 1),
]
FEW = CellSpace("few", ("none", "max_pool_3x3", "skip_connect", "sep_conv_3x3", "dil_conv_3x3"), True, 2)

Pair = tuple[Supernet, Supernet]


def pair(space: str | CellSpace = SMALL["darts"], *, fallback: bool = False, **options: Any) -> Pair:
    """A fused network, which fails where it computes edge by edge, and the reference, in float64 with the same state.

    α is spread, so that every row matters, and no running statistic has its initial value.
    """
    options = {"channels": 4, "layers": 3, "num_classes": 5} | options
    fused = Supernet(space, backend="fused", **options).double()
    for alpha in fused.alphas.values():
        nn.init.normal_(alpha)
    for norm in norms(fused):
        nn.init.normal_(norm.running_mean, std=0.1)
        nn.init.uniform_(norm.running_var, 0.5, 1.5)
    reference = Supernet(space, backend="reference", **options).double()
    reference.load_state_dict(fused.state_dict(), strict=True)
    if not fallback:
        forbid_fallback(fused)
    return fused, reference


class Fallback(Exception):  # noqa: N818 (not an error of fastnas)
    """An edge of the fused network was computed alone."""


def _fail(*_: Any) -> None:
    raise Fallback


def forbid_fallback(network: Supernet) -> None:
    for module in network.modules():
        if isinstance(module, MixedOp):
            module.register_forward_pre_hook(_fail)


def cells(network: nn.Module) -> list[SearchCell]:
    return [module for module in network.modules() if isinstance(module, SearchCell)]


def edge(network: nn.Module, cell: int, index: int) -> Any:
    return cells(network)[cell].edges[index]


def norms(network: nn.Module) -> list[BatchNorm]:
    return [module for module in network.modules() if isinstance(module, BatchNorm)]


def images(batch: int = 3, height: int = 16, width: int = 16) -> Tensor:
    return torch.randn(batch, 3, height, width, dtype=torch.float64)


def outcome(network: Supernet, x: Tensor, **options: Any) -> list[Tensor]:
    """The logits, and the gradients of the images and of every parameter: "none" gets one through the softmax.

    Up to two layers there are no normal cells, and none of the gradients of their α.
    """
    x = x.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    network.zero_grad()
    logits = network(x, **options)
    direction = torch.linspace(-1, 1, logits.numel(), dtype=logits.dtype).view_as(logits).sin()
    (logits * direction).sum().backward()
    used = {cell.kind for cell in cells(network)}
    tensors = [x, *network.weight_parameters(), *(network.alphas[kind] for kind in sorted(used))]
    assert all(tensor.grad is not None for tensor in tensors)
    return [logits.detach(), *(cast(Tensor, tensor.grad) for tensor in tensors)]


def error(actual: Tensor, expected: Tensor) -> float:
    """The largest difference, relative to the largest value."""
    assert actual.shape == expected.shape
    return ((actual.double() - expected).abs().max() / expected.abs().max().clamp_min(1e-30)).item()


def agree(actual: Sequence[Tensor], expected: Sequence[Tensor], bound: float = 1e-10) -> None:
    """A tensor that is 0 but for rounding, such as the gradient of a lone α, is measured by the largest of all."""
    floor = 1e-3 * max(tensor.abs().max().item() for tensor in expected)
    for index, (a, b) in enumerate(zip(actual, expected, strict=True)):
        assert a.shape == b.shape
        scale = b.abs().max().item()
        assert (a.double() - b).abs().max().item() <= bound * (scale if scale > 1e-12 else floor), f"tensor {index}"


def train(network: Supernet, steps: Sequence[tuple[Tensor, Tensor]], rate: float = 0.1) -> list[Tensor]:
    """Steps of SGD on all parameters; the losses."""
    optimizer = torch.optim.SGD(network.parameters(), lr=rate, momentum=0.9)
    losses = []
    for x, labels in steps:
        optimizer.zero_grad()
        loss = F.cross_entropy(network(x), labels)
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return losses
