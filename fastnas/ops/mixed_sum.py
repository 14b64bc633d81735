"""mixed_sum: the weighted sum of candidate outputs, Σ_k w_k · o_k (DARTS, Liu et al. 2019, equation 2).

Plain torch reads and writes a whole tensor for every product and every addition; the fused operator reads each
candidate once and writes the sum once, forward and backward, and keeps no product.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from fastnas import _library  # noqa: F401  (registers torch.ops.fastnas)
from fastnas.ops.layout import acc_dtype

_forward = torch.ops.fastnas.mixed_sum.default
_grad_outputs = torch.ops.fastnas.mixed_sum_grad_outputs.default
_grad_weights = torch.ops.fastnas.mixed_sum_grad_weights.default


def mixed_sum_reference(outputs: Sequence[Tensor], weights: Tensor) -> Tensor:
    """The same in plain torch: the oracle of the tests and the baseline of the benchmarks."""
    dtype = _common_dtype(outputs)
    summed = acc_dtype(dtype)
    total = None
    for k, output in enumerate(outputs):
        weight = weights[..., k].to(summed)  # [] or [P]
        if weights.dim() == 2:
            weight = weight.view(-1, *[1] * (output.dim() - 1))  # [P, 1, …]
        product = weight * output.to(summed)
        total = product if total is None else total + product
    assert total is not None, "mixed_sum: outputs must hold at least one tensor"
    return total.to(dtype)


def mixed_sum(outputs: Sequence[Tensor], weights: Tensor) -> Tensor:
    """Weighted sum of K candidate outputs, for one architecture or for a population of P.

    Args:
        outputs: K tensors, 1 ≤ K ≤ 64. With weights [K] all have one shape [...]. With weights [P, K] each is
            [P, ...] (one value per individual) or [1, ...] (shared by all). float16, bfloat16, float32 or float64;
            different dtypes are promoted as arithmetic would. Contiguous and channels-last are read in place,
            anything else is copied first.
        weights: [K] or [P, K], already normalised (softmax, Gumbel, one-hot, ...). Used as float32 (float64 for float64
            outputs), in which the sum is also accumulated.

    Returns:
        [...] or [P, ...], in the dtype and the memory format of ``outputs[0]``. Differentiable once in the outputs
        and in the weights; the outputs are kept for the backward pass only where the weights need a gradient.

    Raises:
        RuntimeError: the shapes, dtypes or devices do not fit; the message names the argument and its shape.

    >>> import torch
    >>> from fastnas import ops
    >>> outputs = [torch.randn(2, 16, 8, 8, requires_grad=True) for _ in range(3)]
    >>> weights = torch.softmax(torch.zeros(3, requires_grad=True), dim=0)
    >>> y = ops.mixed_sum(outputs, weights)  # [2, 16, 8, 8], differentiable
    >>> torch.allclose(y, (outputs[0] + outputs[1] + outputs[2]) / 3, atol=1e-6)
    True
    """
    outputs = list(outputs)
    if outputs:
        dtype = _common_dtype(outputs)
        outputs = [output if output.dtype == dtype else output.to(dtype) for output in outputs]
        weights = weights.to(acc_dtype(dtype))
    if torch.compiler.is_compiling():
        return _forward(outputs, weights)
    # An autograd.Function costs a third of what an operator with registered autograd costs in eager mode.
    if torch.is_grad_enabled() and (weights.requires_grad or any(output.requires_grad for output in outputs)):
        return _MixedSum.apply(weights, *outputs)
    return _forward(outputs, weights)


def _common_dtype(outputs: Sequence[Tensor]) -> torch.dtype:
    dtype = outputs[0].dtype
    for output in outputs:
        if output.dtype != dtype:
            dtype = torch.promote_types(dtype, output.dtype)
    return dtype


def _save(ctx: Any, outputs: Sequence[Tensor], weights: Tensor, keep_outputs: bool) -> None:
    ctx.leading_sizes = [output.shape[0] if weights.dim() == 2 else 1 for output in outputs]
    ctx.save_for_backward(weights, *(outputs if keep_outputs else ()))


class _MixedSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weights: Tensor, *outputs: Tensor) -> Tensor:
        result: Tensor = _forward(outputs, weights)  # checks what _save reads
        _save(ctx, outputs, weights, keep_outputs=ctx.needs_input_grad[0])
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        weights, *outputs = ctx.saved_tensors
        grad_weights = _grad_weights(grad, outputs, weights) if ctx.needs_input_grad[0] else None
        grad_outputs: list[Tensor | None] = [None] * len(ctx.leading_sizes)
        if any(ctx.needs_input_grad[1:]):
            grad_outputs = list(_grad_outputs(grad, weights, ctx.leading_sizes))
        return grad_weights, *grad_outputs


# --- torch.compile, export, opcheck: the same, as registrations of the operators ---


def _dense_like(like: Tensor, leading: Sequence[int]) -> Tensor:
    """What the operators allocate: channels-last where the image dimensions of `like` are, else contiguous."""
    sizes = like.shape[len(leading) :]
    first = like[0] if leading and len(like) else like
    if first.dim() == 4 and not first.is_contiguous() and first.is_contiguous(memory_format=torch.channels_last):
        _, channels, height, width = sizes
        strides = (height * width * channels, 1, width * channels, channels)
        return like.new_empty_strided((*leading, *sizes), (*[sizes.numel()] * len(leading), *strides))
    return like.new_empty((*leading, *sizes))


@torch.library.register_fake("fastnas::mixed_sum")
def _(outputs: Sequence[Tensor], weights: Tensor) -> Tensor:
    return _dense_like(outputs[0], weights.shape[:-1])


@torch.library.register_fake("fastnas::mixed_sum_grad_outputs")
def _(grad: Tensor, weights: Tensor, leading_sizes: Sequence[int]) -> list[Tensor]:
    return [_dense_like(grad, [size] if weights.dim() == 2 else []) for size in leading_sizes]


@torch.library.register_fake("fastnas::mixed_sum_grad_weights")
def _(grad: Tensor, outputs: Sequence[Tensor], weights: Tensor) -> Tensor:
    return weights.new_empty(weights.shape)


def _setup_context(ctx: Any, inputs: tuple[list[Tensor], Tensor], output: Tensor) -> None:
    outputs, weights = inputs
    # Here torch counts every tensor of the list; in _backward it hands them over as nested as the arguments are.
    _save(ctx, outputs, weights, keep_outputs=ctx.needs_input_grad[len(outputs)])


def _backward(ctx: Any, grad: Tensor) -> tuple[list[Tensor] | list[None], Tensor | None]:
    weights, *outputs = ctx.saved_tensors
    needs_outputs, needs_weights = ctx.needs_input_grad
    grad_outputs = (
        _grad_outputs(grad, weights, ctx.leading_sizes) if any(needs_outputs) else [None] * len(needs_outputs)
    )
    return grad_outputs, _grad_weights(grad, outputs, weights) if needs_weights else None


torch.library.register_autograd("fastnas::mixed_sum", _backward, setup_context=_setup_context)
