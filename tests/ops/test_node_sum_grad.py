"""The raw operators of node_sum's backward pass, and bypass_grad, against plain torch."""

from __future__ import annotations

import pytest
import torch
from closeness import SHARES, assert_close
from node_sum_cases import OPS, check_bypass_grad, make
from torch import Tensor

from fastnas.ops import node_sum

pytestmark = pytest.mark.usefixtures("backend")


def check_sum(ours: Tensor, terms: Tensor, dims: tuple[int, ...] = (0, 2, 3)) -> None:
    assert_close([ours], [terms.sum(dims)], [terms.abs().sum(dims)])


def test_sums_of_the_gradient():
    inputs = make((2, 4, 9, 7, 4)).to(torch.float32)
    grad = torch.randn(inputs(node_sum).shape)
    grad_group0, sum_dy, sum_dy_xhat, grad_bypass_weights = OPS.node_sum_grad(
        grad, inputs.candidates, inputs.mean, inputs.rstd, inputs.bypass
    )
    groups = grad.unflatten(1, (4, 4)).transpose(1, 2)  # [N, g, C, H, W]
    assert torch.equal(grad_group0, groups[:, 0])
    check_sum(sum_dy, groups[:, 0].double())
    for k, y in enumerate(inputs.candidates):
        normal = (y.double() - inputs.mean[k, 0][:, None, None]) * inputs.rstd[k, 0][:, None, None]
        check_sum(sum_dy_xhat[k], groups[:, 0] * normal)
    for e, x in enumerate(inputs.bypass):
        check_sum(grad_bypass_weights[e], groups[:, 1:].flatten(1, 2).double() * x, (0, 1, 2, 3))
    assert OPS.node_sum_grad(grad[:, :4], inputs.candidates, inputs.mean, inputs.rstd, [])[0].shape == (0,)


def test_sums_of_more_chunks_than_are_merged_at_once():
    y, grad = (torch.randn(1, 16, 66, 70).contiguous(memory_format=torch.channels_last) for _ in range(2))
    _, sum_dy, sum_dy_xhat, _ = OPS.node_sum_grad(grad, [y], torch.zeros(1, 1, 16), torch.ones(1, 1, 16), [])
    check_sum(sum_dy, grad.double())
    check_sum(sum_dy_xhat[0], grad.double() * y)


@pytest.mark.parametrize("dtype", SHARES, ids=str)
@pytest.mark.parametrize("groups", [2, 3, 4])
@pytest.mark.parametrize("channels", [1, 4, 5, 16])
def test_bypass_grad(channels, groups, dtype):
    check_bypass_grad(channels, groups, dtype)
    check_bypass_grad(channels, groups, dtype, seen=False, addends=0)


def test_errors_of_the_raw_operators():
    inputs = make().to(torch.float32)
    y, mean, rstd, weights = inputs.candidates, inputs.mean, inputs.rstd, inputs.weights
    grad = torch.randn(2, 16, 9, 7)
    with pytest.raises(RuntimeError, match=r"weights must be float32"):
        OPS.node_sum(y, mean, rstd, weights.double(), [], None, 1)
    with pytest.raises(RuntimeError, match=r"candidates\[1\] must have the dtype and the device of the first"):
        OPS.node_sum([y[0], y[1].double()], mean, rstd, weights, [], None, 1)
    with pytest.raises(RuntimeError, match=r"node_sum_grad: mean has shape \[4, 2, 4\]; there are gradients for one"):
        OPS.node_sum_grad(grad[:, :4], y, mean.expand(-1, 2, -1), rstd, [])
    with pytest.raises(RuntimeError, match=r"candidates\[0\] has shape \[2, 4, 9, 7\], but there are 1 images"):
        OPS.node_sum_grad(grad[:1, :4], y, mean, rstd, [])
    sum_dy, sum_dy_xhat = torch.rand(4), torch.rand(4, 4)
    with pytest.raises(RuntimeError, match=r"node_sum_grad_candidates: normalized has 1 entries"):
        OPS.node_sum_grad_candidates(grad[:, :4], y, mean, rstd, weights, sum_dy, sum_dy_xhat, [1])
    with pytest.raises(RuntimeError, match=r"sum_dy_xhat has shape \[4\], expected \[4, 4\]"):
        OPS.node_sum_grad_candidates(grad[:, :4], y, mean, rstd, weights, sum_dy, sum_dy, [1] * 4)
    with pytest.raises(RuntimeError, match=r"bypass_grad: 11 channels bypass the 5"):
        OPS.bypass_grad(None, [grad], torch.rand(1), [], 5)
    with pytest.raises(RuntimeError, match=r"seen_grad has shape \[2, 16, 9, 7\], expected \[N, 4, 9, 7\]"):
        OPS.bypass_grad(grad, [grad], torch.rand(1), [], 4)
    with pytest.raises(RuntimeError, match=r"bypass_grad: weights has shape \[2\], expected \[1\]"):
        OPS.bypass_grad(None, [grad], torch.rand(2), [], 4)
