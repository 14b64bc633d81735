"""pool: average and maximum of the 3×3 windows of a state, both candidates of an edge without parameters.

They are the same on every edge that leaves a state, so a cell computes them once for each (state, stride), from one
reading, and takes the statistics for the BatchNorms after them in the same pass. `pool_grad` collects everything that
reaches a state without passing a convolution: through both pools, through their normalisation and through identities.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from fastnas import _library  # noqa: F401  (registers torch.ops.fastnas)
from fastnas.ops.layout import acc_dtype, empty_channels_last

_forward = torch.ops.fastnas.pool.default
_grad = torch.ops.fastnas.pool_grad.default

Pooled = tuple[Tensor, Tensor, Tensor, Tensor]


def pool_reference(x: Tensor, stride: int = 1, *, individuals: int = 1, statistics: bool = False) -> Pooled:
    """The same in plain torch: the oracle of the tests and the baseline of the benchmarks."""
    average = F.avg_pool2d(x, 3, stride, 1, count_include_pad=False)  # [N, C, H', W']
    maximum = F.max_pool2d(x, 3, stride, 1)  # [N, C, H', W']
    dtype = acc_dtype(x.dtype)
    if not statistics:
        return average, maximum, x.new_empty(0, dtype=dtype), x.new_empty(0, dtype=dtype)
    both = torch.stack([average, maximum]).detach().to(torch.float64)  # [2, N, C, H', W']
    both = both.unflatten(1, (individuals, -1)).transpose(2, 3).flatten(3)  # [2, P, C, B·H'·W']
    return average, maximum, both.mean(-1).to(dtype), both.var(-1, correction=0).to(dtype)


def pool(x: Tensor, stride: int = 1, *, individuals: int = 1, statistics: bool = False) -> Pooled:
    """Average and max pooling, 3×3 with padding 1, of one state.

    Args:
        x: [N, C, H, W], float16, bfloat16, float32 or float64; averages and statistics are accumulated in float32
            (float64 for float64). Channels-last and the first channels of a wider channels-last tensor are read in
            place, anything else is copied first.
        stride: 1 or 2.
        individuals: P. The images are those of P individuals of a population, one individual after the other; P must
            divide N.
        statistics: also return mean and variance.

    Returns:
        average: [N, C, ⌈H/stride⌉, ⌈W/stride⌉], channels-last; pixels outside the image do not count
            (``count_include_pad=False``).
        maximum: the same shape. A NaN wins; of equal values the first of a window gets the gradient, as in torch.
        mean, variance: [2, P, C], of average and maximum over the images and pixels of an individual; the biased
            variance. float32 (float64 for float64); [0] without ``statistics``. They carry no gradient: code that
            normalises with them must fold their dependence on the outputs into the gradient of the outputs, as
            `BatchNorm` does.

        Differentiable once in x, through average and maximum.

    Raises:
        RuntimeError: a shape, stride or number of individuals does not fit; the message names it.

    >>> import torch
    >>> from fastnas import ops
    >>> x = torch.randn(2, 16, 8, 8, requires_grad=True)
    >>> average, maximum, mean, variance = ops.pool(x, stride=2, statistics=True)
    >>> average.shape, mean.shape
    (torch.Size([2, 16, 4, 4]), torch.Size([2, 1, 16]))
    >>> torch.equal(maximum, torch.nn.functional.max_pool2d(x, 3, stride=2, padding=1))
    True
    """
    if not torch.compiler.is_compiling() and torch.is_grad_enabled() and x.requires_grad:
        result: Pooled = _Pool.apply(x, stride, individuals, statistics)
        return result
    return _forward(x, stride, individuals, statistics)


def _save(ctx: Any, x: Tensor, stride: int, output: Pooled) -> None:
    ctx.save_for_backward(x)
    ctx.stride = stride
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(*output[2:])


def _grad_of_outputs(ctx: Any, average: Tensor | None, maximum: Tensor | None) -> Tensor | None:
    (x,) = ctx.saved_tensors
    grads = [grad for grad in (average, maximum) if grad is not None]
    if not grads:
        return None
    unit = torch.eye(2, dtype=acc_dtype(x.dtype), device=x.device)
    unit = unit[int(average is None) :][: len(grads)].T  # [2, G]: which pool each gradient is of
    scales = unit.unsqueeze(-1).expand(-1, -1, x.shape[1])  # [2, G, C]
    result: Tensor = _grad(x, grads, scales, [], None, None, [], ctx.stride)
    return result


class _Pool(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, stride: int, individuals: int, statistics: bool) -> Pooled:
        output: Pooled = _forward(x, stride, individuals, statistics)
        _save(ctx, x, stride, output)
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, average: Tensor | None, maximum: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
        return _grad_of_outputs(ctx, average, maximum), None, None, None


# --- torch.compile, export, opcheck: the same, as registrations of the operators ---


@torch.library.register_fake("fastnas::pool")
def _(x: Tensor, stride: int, individuals: int, statistics: bool) -> Pooled:
    height, width = ((size + stride - 1) // stride for size in x.shape[2:])
    sizes = (2, individuals, x.shape[1]) if statistics else (0,)
    mean, variance = (x.new_empty(sizes, dtype=acc_dtype(x.dtype)) for _ in range(2))
    sizes = (*x.shape[:2], height, width)
    return empty_channels_last(x, sizes), empty_channels_last(x, sizes), mean, variance


@torch.library.register_fake("fastnas::pool_grad")
def _(
    x: Tensor,
    grads: Sequence[Tensor],
    scales: Tensor,
    outputs: Sequence[Tensor],
    bn_coeffs: Tensor | None,
    skip: Tensor | None,
    addends: Sequence[Tensor],
    stride: int,
) -> Tensor:
    return empty_channels_last(x, x.shape)


def _setup_context(ctx: Any, inputs: tuple[Tensor, int, int, bool], output: Pooled) -> None:
    x, stride, _, _ = inputs
    _save(ctx, x, stride, output)


def _backward(ctx: Any, average: Tensor | None, maximum: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
    return _grad_of_outputs(ctx, average, maximum), None, None, None


torch.library.register_autograd("fastnas::pool", _backward, setup_context=_setup_context)
