"""`fused_sum` with weights, as mixed operations take it, against plain torch."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from fastnas.nn.batch_norm import BatchNorm
from fastnas.nn.fused.branch import Branch
from fastnas.nn.fused.branches import branch_of
from fastnas.nn.fused.node import fused_sum
from fastnas.nn.fused.patterns import PointwisePattern, SeparablePattern, Stage
from fastnas.nn.primitives import FactorizedReduce, Zero, make_primitive

pytestmark = [pytest.mark.usefixtures("backend"), pytest.mark.emulated_cases(6)]

NORMS: dict[str, Callable[[int], nn.Module]] = {
    "affine": nn.BatchNorm2d,
    "plain": functools.partial(BatchNorm, affine=False),
    "no statistics": functools.partial(nn.BatchNorm2d, affine=False, track_running_stats=False),
}
NAMES = ("none", "max_pool_3x3", "avg_pool_3x3", "skip_connect", "sep_conv_3x3", "dil_conv_5x5", "nor_conv_3x3")


def candidates(norm: str, stride: int, pool_norm: bool) -> nn.ModuleList:
    """The operators do not know the last one."""
    made = nn.ModuleList(make_primitive(name, 4, stride, norm=NORMS[norm], pool_norm=pool_norm) for name in NAMES)
    for layer in made.modules():
        if isinstance(layer, nn.BatchNorm2d):
            if layer.affine:
                nn.init.uniform_(layer.weight, -0.5, 1.5)
                nn.init.normal_(layer.bias)
            if layer.running_mean is not None:
                layer.running_mean.normal_(0, 0.3)
                layer.running_var.uniform_(0.5, 2)
    return made.double()


def results(total: Tensor, sources: list[Tensor], modules: nn.ModuleList) -> list[Tensor]:
    direction = torch.linspace(-2, 2, total.numel(), dtype=total.dtype).view_as(total)
    grads = torch.autograd.grad((total * direction).sum(), sources, allow_unused=True, materialize_grads=True)
    return [total, *grads, *modules.buffers()]


def assert_same(actual: list[Tensor], expected: list[Tensor]) -> None:
    for a, b in zip(actual, expected, strict=True):
        scale = max(1.0, b.abs().max().item())
        torch.testing.assert_close(a, b, rtol=0, atol=1e-9 * scale)


def both(
    modules: nn.ModuleList, x: Tensor, masks: list[Tensor | None] | None, branches: list[Branch | None] | None = None
) -> None:
    twin = copy.deepcopy(modules)
    outcomes = []
    weights = torch.randn(len(modules), dtype=torch.float64)
    for fused, network in ((True, modules), (False, twin)):
        given, row = x.clone().requires_grad_(), weights.clone().requires_grad_()
        if fused:
            total = fused_sum(list(network), [given] * len(network), masks, weights=row, branches=branches)
            assert total is not None
        else:
            shares = [
                torch.ones(len(x), dtype=x.dtype) if masks is None or m is None else m for m in masks or [None] * 99
            ]
            total = sum(
                w * m.view(-1, 1, 1, 1) * module(given) for w, m, module in zip(row, shares, network, strict=False)
            )
        outcomes.append(results(total, [given, row, *network.parameters()], network))
    assert_same(*outcomes)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("pool_norm", [True, False])
def test_equals_plain_torch(norm: str, stride: int, training: bool, pool_norm: bool) -> None:
    modules = candidates(norm, stride, pool_norm).train(training)
    both(modules, torch.randn(3, 4, 7, 6, dtype=torch.float64), None)


def test_weights_and_masks() -> None:
    masks = [None if k % 2 else torch.tensor([0.0, 2.0, 1.5], dtype=torch.float64) for k in range(len(NAMES))]
    both(candidates("affine", 1, True), torch.randn(3, 4, 6, 6, dtype=torch.float64), masks)


class Biased(nn.Module):
    """A separable convolution of two stages, or a factorized reduction, all of whose convolutions have biases."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        if kind == "reduction":
            self.inner: nn.Module = FactorizedReduce(4, 4, nn.BatchNorm2d)
            self.inner.conv_even = nn.Conv2d(4, 2, 1, 2)
            self.inner.conv_odd = nn.Conv2d(4, 2, 1, 2)
            self.pattern = PointwisePattern((self.inner.conv_even, self.inner.conv_odd), self.inner.norm)
            return
        stages = []
        layers: list[nn.Module] = []
        for stride in (2, 1):
            stage = Stage(nn.Conv2d(4, 4, 3, stride, 1, groups=4), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4))
            stages.append(stage)
            layers += [nn.ReLU(), *stage]
        self.inner = nn.Sequential(*layers)
        self.pattern = SeparablePattern(tuple(stages))

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("kind", ["reduction", "separable"])
def test_biases(kind: str, training: bool) -> None:
    modules = nn.ModuleList([Biased(kind), Zero(2)]).double()
    for layer in modules.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean.normal_()
    modules.train(training)
    x = torch.randn(3, 4, 8, 8, dtype=torch.float64)
    # A copy of the module would have a pattern of the original's layers.
    twin = copy.deepcopy(modules)
    twin[0].pattern = None
    outcomes = []
    row = torch.tensor([0.7, 0.3], dtype=torch.float64, requires_grad=True)
    for network in (modules, twin):
        given = x.clone().requires_grad_()
        if network is modules:
            branches = [branch_of(network[0].pattern), branch_of(None)]
            total = fused_sum(list(network), [given] * 2, weights=row, branches=branches)
        else:
            total = row[0] * network[0](given) + row[1] * network[1](given)
        outcomes.append(results(total, [given, row, *network.parameters()], network))
    assert_same(*outcomes)


def test_nothing_but_zeros_is_left_to_plain_torch() -> None:
    x = torch.randn(2, 4, 6, 6)
    assert fused_sum([Zero(1), Zero(1)], [x, x], weights=torch.ones(2)) is None


def test_gradcheck() -> None:
    modules = candidates("affine", 1, True)
    x = torch.randn(2, 4, 3, 3, dtype=torch.float64, requires_grad=True)
    weights = torch.randn(len(modules), dtype=torch.float64, requires_grad=True)

    def function(x: Tensor, weights: Tensor) -> Tensor:
        total = fused_sum(list(copy.deepcopy(modules)), [x] * len(modules), weights=weights)
        assert total is not None
        return total

    assert torch.autograd.gradcheck(function, (x, weights), atol=1e-6)
