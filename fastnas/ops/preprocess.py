"""preprocess: 1×1 convolutions of relu(x), where x is a concatenation of states that is never built.

It covers the ReLU and the convolution of both preprocessings of a cell (DARTS, Liu et al. 2019): ReLU-Conv-BN, and
factorized reduction, whose two convolutions of stride 2 read the pixels at even and at odd rows and columns. Plain
torch writes the concatenation, its ReLU and the crop of the odd pixels to memory and reads each again; the
fused operator reads the states once and gives the mean and variance that the normalisation needs on the way.
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

_forward = torch.ops.fastnas.preprocess.default
_grad = torch.ops.fastnas.preprocess_grad.default


def preprocess_reference(
    inputs: Tensor | Sequence[Tensor],
    weights: Tensor | Sequence[Tensor],
    offsets: Sequence[int] = (0,),
    stride: int = 1,
    *,
    individuals: int = 1,
    statistics: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """The same in plain torch: the oracle of the tests and the baseline of the benchmarks."""
    inputs, weights, dtype = _arguments(inputs, weights)
    x = F.relu(torch.cat(inputs, dim=1).to(acc_dtype(dtype)))  # [N, Cin, H, W]
    height, width = x.shape[-2:]
    parts = []
    for weight, offset in zip(weights, offsets, strict=True):
        # A negative pad crops; the zeros at the end are what an odd size lacks beyond its edge.
        read = F.pad(x, (-1, width % 2, -1, height % 2)) if offset else x
        parts.append(F.conv2d(read, weight[:, :, None, None], stride=stride))  # [N, O, H', W']
    output = torch.cat(parts, dim=1)  # [N, ΣO, H', W']
    if statistics:
        grouped = output.detach().unflatten(0, (individuals, -1))  # [P, B, ΣO, H', W']
        variance, mean = torch.var_mean(grouped, dim=(1, 3, 4), correction=0)  # [P, ΣO] each
    else:
        mean, variance = weights[0].new_empty(0), weights[0].new_empty(0)
    return output.to(dtype), mean, variance


def preprocess(
    inputs: Tensor | Sequence[Tensor],
    weights: Tensor | Sequence[Tensor],
    offsets: Sequence[int] = (0,),
    stride: int = 1,
    *,
    individuals: int = 1,
    statistics: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """1×1 convolutions of relu(cat(inputs, 1)), and the statistics of what they give.

    Args:
        inputs: x, or the 1 to 64 tensors [N, C_i, H, W] that make up the channels of x [N, Cin, H, W]. float16,
            bfloat16, float32 or float64; different dtypes are promoted as arithmetic would. Channels-last tensors and
            the first channels of wider ones are read in place, anything else is copied first.
        weights: one matrix, or 1 to 64, [O_m, Cin] each. Used as float32 (float64 for float64 inputs), in which the
            sums are also accumulated.
        offsets: for each matrix the row and column, 0 or 1, at which it begins to read x. 1 needs stride 2; pixels
            beyond the edge of an odd size are zero.
        stride: 1 or 2.
        individuals: P, which divides N; the images of an individual follow each other.
        statistics: whether to compute mean and variance.

    Returns:
        output [N, ΣO_m, ceil(H / stride), ceil(W / stride)], channels-last, the channels of one matrix after those of
        another; mean and (biased) variance [P, ΣO_m] of its channels over the images and pixels of each individual,
        in the dtype of the weights, or two empty tensors [0]. Those of no pixels are 0. They are taken before the
        output is rounded to its dtype.

        The output is differentiable once in inputs and weights. Mean and variance are not differentiable: code that
        normalises with them must add their share to the gradient of the output (``bn_coeffs`` of the operator
        ``fastnas::preprocess_grad`` do so, see csrc/ops/bn_backward.h).

    Raises:
        RuntimeError: the shapes, dtypes, devices or options do not fit; the message names the argument.

    >>> import torch
    >>> from fastnas import ops
    >>> s0, s1 = torch.randn(2, 16, 8, 8), torch.randn(2, 48, 8, 8)
    >>> matrix = torch.randn(32, 64, requires_grad=True)
    >>> y, mean, variance = ops.preprocess([s0, s1], matrix, statistics=True)  # [2, 32, 8, 8], [1, 32], [1, 32]
    >>> even, odd = torch.randn(8, 16), torch.randn(8, 16)
    >>> ops.preprocess(s0, [even, odd], offsets=[0, 1], stride=2)[0].shape  # a factorized reduction
    torch.Size([2, 16, 4, 4])
    """
    inputs, weights, _ = _arguments(inputs, weights)
    offsets = list(offsets)
    if torch.compiler.is_compiling():
        return _forward(inputs, weights, offsets, stride, individuals, statistics)
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (*inputs, *weights)):
        return _Preprocess.apply(offsets, stride, individuals, statistics, len(inputs), *inputs, *weights)
    return _forward(inputs, weights, offsets, stride, individuals, statistics)


def _arguments(
    inputs: Tensor | Sequence[Tensor], weights: Tensor | Sequence[Tensor]
) -> tuple[list[Tensor], list[Tensor], torch.dtype]:
    """Both as lists, in the dtypes of the computation, and the dtype of the inputs."""
    inputs = [inputs] if isinstance(inputs, Tensor) else list(inputs)
    weights = [weights] if isinstance(weights, Tensor) else list(weights)
    dtype = inputs[0].dtype if inputs else torch.float32
    for tensor in inputs:
        if tensor.dtype != dtype:
            dtype = torch.promote_types(dtype, tensor.dtype)
    return (
        [tensor if tensor.dtype == dtype else tensor.to(dtype) for tensor in inputs],
        [weight.to(acc_dtype(dtype)) for weight in weights],
        dtype,
    )


class _Preprocess(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, offsets: list[int], stride: int, individuals: int, statistics: bool, count: int, *tensors: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        ctx.offsets, ctx.stride, ctx.count = offsets, stride, count
        ctx.save_for_backward(*tensors)
        output, mean, variance = _forward(tensors[:count], tensors[count:], offsets, stride, individuals, statistics)
        ctx.mark_non_differentiable(mean, variance)
        return output, mean, variance

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        inputs, weights = ctx.saved_tensors[: ctx.count], ctx.saved_tensors[ctx.count :]
        grad_inputs, grad_weights = _grad([grad], None, None, inputs, weights, ctx.offsets, ctx.stride)
        return None, None, None, None, None, *grad_inputs, *grad_weights


# --- torch.compile, export, opcheck: the same, as registrations of the operators ---


@torch.library.register_fake("fastnas::preprocess")
def _(
    inputs: Sequence[Tensor],
    weights: Sequence[Tensor],
    offsets: Sequence[int],
    stride: int,
    individuals: int,
    statistics: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    images, _, height, width = inputs[0].shape
    outputs = sum(weight.shape[0] for weight in weights)
    sizes = (images, outputs, (height + stride - 1) // stride, (width + stride - 1) // stride)
    mean, variance = (weights[0].new_empty((individuals, outputs) if statistics else (0,)) for _ in range(2))
    return empty_channels_last(inputs[0], sizes), mean, variance


@torch.library.register_fake("fastnas::preprocess_grad")
def _(
    grads: Sequence[Tensor],
    output: Tensor | None,
    bn_coeffs: Tensor | None,
    inputs: Sequence[Tensor],
    weights: Sequence[Tensor],
    offsets: Sequence[int],
    stride: int,
) -> tuple[list[Tensor], list[Tensor]]:
    return [empty_channels_last(x, x.shape) for x in inputs], [weight.new_empty(weight.shape) for weight in weights]


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    states, weights, ctx.offsets, ctx.stride, _, _ = inputs
    ctx.count = len(states)
    ctx.save_for_backward(*states, *weights)
    ctx.mark_non_differentiable(*output[1:])


def _backward(ctx: Any, grad: Tensor, *_: Any) -> tuple[Any, ...]:
    inputs, weights = ctx.saved_tensors[: ctx.count], ctx.saved_tensors[ctx.count :]
    return (*_grad([grad], None, None, inputs, weights, ctx.offsets, ctx.stride), None, None, None, None)


torch.library.register_autograd("fastnas::preprocess", _backward, setup_context=_setup_context)
