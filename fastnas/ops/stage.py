"""stage: the step that separable and dilated candidates are made of, for all edges that leave a state at once.

One stage is normalise → ReLU → depthwise K×K → pointwise 1×1 (DARTS, Liu et al. 2019, section 3.1.1), and a
normalisation follows. Plain torch writes a tensor after each of them; the fused operator reads an image once, keeps it,
padded and rectified, in the cache for every stage that reads it, and writes only what comes out, with its mean and
variance. What lies between is computed again in the backward pass. Raw outputs are normalised by the operator that
reads them next: another `stage`, or `node_sum`.
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

_forward = torch.ops.fastnas.stage.default
_grad = torch.ops.fastnas.stage_grad.default

Outputs = tuple[list[Tensor], Tensor, Tensor]
Options = tuple[list[int], int, int, bool, bool]  # dilations, stride, individuals, statistics, normalized


def stage_reference(
    inputs: Sequence[Tensor],
    depthwise: Sequence[Tensor],
    pointwise: Sequence[Tensor],
    dilations: Sequence[int] | None = None,
    stride: int = 1,
    mean: Tensor | None = None,
    rstd: Tensor | None = None,
    individuals: int = 1,
) -> Outputs:
    """The same in plain torch: the oracle of the tests and the baseline of the benchmarks.

    Gradients flow through `mean` and `rstd` too, if they are computed from the inputs.
    """
    outputs = []
    for j, (taps, matrix) in enumerate(zip(depthwise, pointwise, strict=True)):
        i = 0 if len(inputs) == 1 else j
        x = inputs[i].to(taps.dtype)  # [N, C, H, W]
        if mean is not None and rstd is not None:
            each = x.unflatten(0, (individuals, -1))  # [P, B, C, H, W]
            each = (each - mean[i][:, None, :, None, None]) * rstd[i][:, None, :, None, None]
            x = each.flatten(0, 1)
        dilation = 1 if dilations is None else dilations[j]
        padding = dilation * (taps.shape[-1] - 1) // 2
        z = F.conv2d(F.relu(x), taps, None, stride, padding, dilation, groups=len(taps))  # [N, C, H', W']
        outputs.append(F.conv2d(z, matrix))  # [N, C, H', W']
    each = torch.stack(outputs).detach().unflatten(1, (individuals, -1))  # [J, P, B, C, H', W']
    variance, average = torch.var_mean(each, dim=(2, 4, 5), correction=0)  # [J, P, C]
    return [y.to(inputs[0].dtype) for y in outputs], average, variance


def stage(
    inputs: Sequence[Tensor],
    depthwise: Sequence[Tensor],
    pointwise: Sequence[Tensor],
    dilations: Sequence[int] | None = None,
    stride: int = 1,
    mean: Tensor | None = None,
    rstd: Tensor | None = None,
    *,
    normalized: bool = True,
    individuals: int = 1,
    statistics: bool = False,
) -> Outputs:
    """J stages, either all of one input or each of its own.

    Args:
        inputs: one tensor [N, C, H, W], or J. Channels-last is read in place, the first channels of a wider tensor
            (``x[:, :C]``) too; anything else is copied. float16, bfloat16, float32 or float64.
        depthwise: J weights [C, 1, K, K], K odd. Zero padding keeps the size at stride 1. Weights and statistics are
            used as float32 (float64 for float64 inputs), in which sums are accumulated, too.
        pointwise: J weights [C, C, 1, 1].
        dilations: of each stage; 1 by default. At most 1024, or the larger side of the images.
        stride: 1 or 2, of all stages.
        mean, rstd: [I, P, C] for I inputs that come raw: they are read as (x - mean) · rstd.
        normalized: whether these are the statistics of the inputs' own batch, whose dependence on the inputs then is
            part of their gradient, as in training; False where they are constants, as in evaluation. No gradient flows
            to `mean` and `rstd` themselves.
        individuals: P; the N images are those of P individuals of a population, one individual after the other.
        statistics: whether the last two results are wanted.

    Returns:
        J outputs [N, C, ceil(H/stride), ceil(W/stride)] in the dtype of the inputs, channels-last, not normalised; and
        their mean and biased variance [J, P, C] per individual (empty without `statistics`), which carry no gradient:
        code that normalises by them, such as `node_sum`, adds their share to that of the outputs. Differentiable once
        in inputs and weights, for one individual.

    Raises:
        RuntimeError: the shapes, dtypes or devices do not fit; the message names the argument and its shape.

    >>> import torch
    >>> from fastnas import ops
    >>> x = torch.randn(2, 16, 8, 8).contiguous(memory_format=torch.channels_last)
    >>> taps = [torch.randn(16, 1, k, k, requires_grad=True) for k in (3, 5)]
    >>> matrices = [torch.randn(16, 16, 1, 1, requires_grad=True) for _ in taps]
    >>> first, mean, variance = ops.stage([x], taps, matrices, statistics=True)  # two stages of one state
    >>> rstd = (variance + 1e-5).rsqrt()  # [2, 1, 16]
    >>> second, _, _ = ops.stage(first, taps, matrices, mean=mean, rstd=rstd)  # normalises what it reads
    >>> len(second), second[0].shape
    (2, torch.Size([2, 16, 8, 8]))
    """
    inputs, depthwise, pointwise = list(inputs), list(depthwise), list(pointwise)
    dilations = [1] * len(depthwise) if dilations is None else list(dilations)
    if inputs:
        dtype = acc_dtype(inputs[0].dtype)
        depthwise = [weight.to(dtype) for weight in depthwise]
        pointwise = [weight.to(dtype) for weight in pointwise]
        mean = None if mean is None else mean.detach().to(dtype)
        rstd = None if rstd is None else rstd.detach().to(dtype)
    options = (dilations, stride, individuals, statistics, normalized)
    tensors = [*inputs, *depthwise, *pointwise]
    if torch.compiler.is_compiling():
        return _forward(inputs, mean, rstd, depthwise, pointwise, *options)
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors):
        results = _Stage.apply(mean, rstd, options, len(depthwise), *tensors)
        return list(results[:-2]), results[-2], results[-1]
    return _forward(inputs, mean, rstd, depthwise, pointwise, *options)


def _split(tensors: Sequence[Tensor], stages: int) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Inputs, depthwise and pointwise weights."""
    first = len(tensors) - 2 * stages
    return list(tensors[:first]), list(tensors[first : first + stages]), list(tensors[first + stages :])


class _Stage(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        mean: Tensor | None,
        rstd: Tensor | None,
        options: Options,
        stages: int,
        *tensors: Tensor,
    ) -> tuple[Tensor, ...]:
        inputs, depthwise, pointwise = _split(tensors, stages)
        outputs, average, variance = _forward(inputs, mean, rstd, depthwise, pointwise, *options)
        ctx.options, ctx.stages = options, stages
        ctx.output = outputs[0].shape
        ctx.save_for_backward(mean, rstd, *tensors)
        ctx.mark_non_differentiable(average, variance)
        return *outputs, average, variance

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        mean, rstd, *tensors = ctx.saved_tensors
        gradients = _gradients(grads[:-2], mean, rstd, tensors, ctx.options, ctx.stages, ctx.output)
        return None, None, None, None, *gradients


def _gradients(
    grads: Sequence[Tensor | None],
    mean: Tensor | None,
    rstd: Tensor | None,
    tensors: Sequence[Tensor],
    options: Options,
    stages: int,
    output: torch.Size,
) -> list[Tensor]:
    """Of inputs, depthwise and pointwise weights."""
    inputs, depthwise, pointwise = _split(tensors, stages)
    dilations, stride, individuals, _, normalized = options
    if individuals != 1:
        raise RuntimeError(f"fastnas::stage: no gradient for individuals={individuals}; differentiate them one by one")
    full = [inputs[0].new_zeros(output) if grad is None else grad.to(inputs[0].dtype) for grad in grads]
    grad_inputs, grad_depthwise, grad_pointwise, bn_sums = _grad(
        full, [], None, inputs, mean, rstd, depthwise, pointwise, dilations, stride
    )
    if mean is not None and rstd is not None:
        grad_inputs = [
            _bn_backward(grad, x, mean[i, 0], rstd[i, 0], bn_sums[i] if normalized else None)
            for i, (grad, x) in enumerate(zip(grad_inputs, inputs, strict=True))
        ]
    return [*grad_inputs, *grad_depthwise, *grad_pointwise]


def _bn_backward(dy: Tensor, x: Tensor, mean: Tensor, rstd: Tensor, bn_sums: Tensor | None) -> Tensor:
    """From the gradient of the normalised input to that of the raw one: BatchNorm's backward pass.

    dy, x [N, C, H, W]; mean, rstd [C]; bn_sums [2, C]: sum_dy = Σ dy and sum_dy_xhat = Σ dy · x̂, or None where mean and
    rstd are constants.
    """
    rstd = rstd.view(-1, 1, 1)  # [C, 1, 1]
    dy_acc = dy.to(rstd.dtype)
    if bn_sums is None:
        return (dy_acc * rstd).to(dy.dtype)
    # rstd · (dy - sum_dy / count - x̂ · sum_dy_xhat / count) in three passes
    count = max(1, x.numel() // max(1, x.shape[1]))
    shift, slope = bn_sums.view(2, -1, 1, 1) * (-rstd / count)  # [C, 1, 1] each
    dx = torch.addcmul(shift, x - mean.view(-1, 1, 1), slope * rstd)  # [N, C, H, W]
    return dx.addcmul_(dy_acc, rstd).to(dy.dtype)


# --- torch.compile, export, opcheck: the same, as registrations of the operator ---


@torch.library.register_fake("fastnas::stage")
def _(
    inputs: Sequence[Tensor],
    mean: Tensor | None,
    rstd: Tensor | None,
    depthwise: Sequence[Tensor],
    pointwise: Sequence[Tensor],
    dilations: Sequence[int],
    stride: int,
    individuals: int,
    statistics: bool,
    normalized: bool,
) -> Outputs:
    count, channels, height, width = inputs[0].shape
    sizes = (count, channels, (height + stride - 1) // stride, (width + stride - 1) // stride)
    shape = (len(depthwise), individuals, channels) if statistics else (0,)
    average, variance = (depthwise[0].new_empty(shape) for _ in range(2))
    return [empty_channels_last(inputs[0], sizes) for _ in depthwise], average, variance


@torch.library.register_fake("fastnas::stage_grad")
def _(
    grads: Sequence[Tensor],
    outputs: Sequence[Tensor],
    bn_coeffs: Tensor | None,
    inputs: Sequence[Tensor],
    mean: Tensor | None,
    rstd: Tensor | None,
    depthwise: Sequence[Tensor],
    pointwise: Sequence[Tensor],
    dilations: Sequence[int],
    stride: int,
) -> tuple[list[Tensor], list[Tensor], list[Tensor], Tensor]:
    bn_sums = (len(inputs), 2, depthwise[0].shape[0]) if mean is not None else (0,)
    return (
        [empty_channels_last(x, x.shape) for x in inputs],
        [weight.new_empty(weight.shape) for weight in depthwise],
        [weight.new_empty(weight.shape) for weight in pointwise],
        depthwise[0].new_empty(bn_sums),
    )


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Outputs) -> None:
    xs, mean, rstd, depthwise, pointwise, *options = inputs
    ctx.options, ctx.stages, ctx.output = tuple(options), len(depthwise), output[0][0].shape
    ctx.save_for_backward(mean, rstd, *xs, *depthwise, *pointwise)


def _backward(ctx: Any, grads: Sequence[Tensor | None], *_: Tensor | None) -> tuple[Any, ...]:
    mean, rstd, *tensors = ctx.saved_tensors
    gradients = _gradients(grads, mean, rstd, tensors, ctx.options, ctx.stages, ctx.output)
    inputs, depthwise, pointwise = _split(gradients, ctx.stages)
    return inputs, None, None, depthwise, pointwise, None, None, None, None, None


torch.library.register_autograd("fastnas::stage", _backward, setup_context=_setup_context)
