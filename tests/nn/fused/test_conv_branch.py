"""Plain 3×3 convolutions as a kind of candidate: in a cell, and alone, against plain torch."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from fused_pair import agree, images, outcome, pair
from torch import nn

from fastnas.nn.fused.node import fused_sum
from fastnas.nn.primitives import make_primitive
from fastnas.spaces import CellSpace

SPACE = CellSpace("convolutions", ("nor_conv_3x3", "skip_connect", "sep_conv_3x3"), False, 2)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("parts", [1, 2])
def test_in_a_cell(training: bool, parts: int) -> None:
    fused, reference = (network.train(training) for network in pair(SPACE, partial_channels=parts))
    x = images()
    agree(outcome(fused, x), outcome(reference, x))
    agree(list(fused.buffers()), list(reference.buffers()))


@pytest.mark.parametrize("mode", ["running", "batch"])
def test_of_a_population(mode: Any) -> None:
    fused, reference = pair(SPACE)
    alphas = {kind: torch.randn(3, *fused.alphas[kind].shape, dtype=torch.float64) for kind in fused.alphas}
    x = images()
    agree([fused.population_logits(x, alphas, bn_mode=mode)], [reference.population_logits(x, alphas, bn_mode=mode)])


@pytest.mark.parametrize("stride", [1, 2])
def test_alone(stride: int) -> None:
    module = make_primitive("nor_conv_3x3", 4, stride, norm=nn.BatchNorm2d).double()
    twin = copy.deepcopy(module)
    x = torch.randn(3, 4, 7, 6, dtype=torch.float64)
    y = fused_sum([module], [x])
    assert y is not None
    y.square().sum().backward()
    twin(x).square().sum().backward()
    agree([p.grad for p in module.parameters()], [p.grad for p in twin.parameters()])
