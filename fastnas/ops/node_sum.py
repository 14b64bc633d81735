"""node_sum: a node of a cell, the weighted sum of all normalised candidates of all its incoming edges.

Plain torch normalises, weighs and adds one candidate after another, a whole tensor each time; the fused operator reads
each raw candidate once and writes the node once. Partial channels (Xu et al. 2020, PC-DARTS) cost nothing more: the
channels that bypass the candidates and the channel shuffle only decide where the sum is written.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from functools import reduce
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from fastnas import _library  # noqa: F401  (registers torch.ops.fastnas)
from fastnas.ops.layout import acc_dtype, empty_channels_last

_forward = torch.ops.fastnas.node_sum.default
_grad = torch.ops.fastnas.node_sum_grad.default
_grad_candidates = torch.ops.fastnas.node_sum_grad_candidates.default
_bypass_grad = torch.ops.fastnas.bypass_grad.default


def node_sum_reference(
    candidates: Sequence[Tensor],
    mean: Tensor,
    rstd: Tensor,
    weights: Tensor,
    bypass: Sequence[Tensor] = (),
    bypass_weights: Tensor | None = None,
    *,
    prev_node: Tensor | None = None,
    individuals: int = 1,
    normalized: Sequence[bool] | None = None,
    images: int | None = None,
) -> Tensor:
    """The same in plain torch: the oracle of the tests and the baseline of the benchmarks.

    For normalised candidates it takes the values of the given statistics, and the derivatives of the batch's.
    """
    channels = candidates[0].shape[1]
    bypass = list(bypass)
    others = bypass if prev_node is None else [*bypass, prev_node]
    dtype = _common_dtype([*candidates, *others])
    summed = acc_dtype(dtype)
    mean, rstd = mean.to(summed), rstd.to(summed)  # [K, P, C]
    weights = weights.to(summed).view(individuals, -1)  # [P, K]
    if images is None:
        images = _images([*candidates, *others], individuals)
    bypassed: list[Tensor] = []
    if prev_node is not None:
        by_group = prev_node.unflatten(1, (channels, -1)).transpose(1, 2)  # [N, g, C, H, W]
        bypassed = [prev_node[:, channels:], by_group[:, 1:].flatten(1, 2)]  # [N, R, H, W] each

    def split(x: Tensor) -> Tensor:  # [N or B, C, H, W] → [P or 1, B, C, H, W]
        shape = (individuals if x.shape[0] == images * individuals else 1, images, *x.shape[1:])
        return x.to(summed).reshape(shape)

    def over_images(table: Tensor) -> Tensor:  # [P or 1, C] → [P or 1, 1, C, 1, 1]
        return table[:, None, :, None, None]

    total = torch.zeros((), dtype=summed, device=weights.device)
    for k, candidate in enumerate(candidates):
        y = split(candidate)  # [P or 1, B, C, H, W]
        m, r = mean[k], rstd[k]  # [P, C]
        if normalized is None or normalized[k]:
            batch_variance, batch_mean = torch.var_mean(y, dim=(1, 3, 4), correction=0)  # [P or 1, C]
            m = m + (batch_mean - batch_mean.detach())
            r = (r**-2 + (batch_variance - batch_variance.detach())) ** -0.5
        total = total + weights[:, k].view(-1, 1, 1, 1, 1) * (y - over_images(m)) * over_images(r)
    if others:
        edges = torch.ones(individuals, len(bypass), dtype=summed, device=total.device)
        if bypass_weights is not None:
            edges = bypass_weights.to(summed).view(individuals, -1)  # [P, E]
        products = [edges[:, e].view(-1, 1, 1, 1, 1) * split(x) for e, x in enumerate(bypass)]
        joined = reduce(torch.add, [*products, *map(split, bypassed)])  # [P or 1, B, R, H, W]
        total = torch.cat([total, joined.expand(individuals, *joined.shape[1:])], 2)  # [P, B, C + R, H, W]
        total = F.channel_shuffle(total.flatten(0, 1), total.shape[2] // channels)
    else:
        total = total.flatten(0, 1)
    return total.to(dtype)  # [N, C + R, H, W]


def node_sum(
    candidates: Sequence[Tensor],
    mean: Tensor,
    rstd: Tensor,
    weights: Tensor,
    bypass: Sequence[Tensor] = (),
    bypass_weights: Tensor | None = None,
    *,
    prev_node: Tensor | None = None,
    individuals: int = 1,
    normalized: Sequence[bool] | None = None,
    images: int | None = None,
    previous: Tensor | None = None,
) -> Tensor:
    """Σ_k weights[k] · rstd[k] · (candidates[k] - mean[k]), and the channels that bypass the candidates.

    Args:
        candidates: K raw outputs y_k [N, C, H, W], 1 ≤ K ≤ 128, of N = P·B images, individual after individual; or
            [B, C, H, W] where all P individuals share one. Channels-last images, and the first channels of wider ones,
            are read in place, anything else is copied first. float16, bfloat16, float32 or float64; different dtypes
            are promoted as arithmetic would.
        mean: [K, P, C], of every candidate's channels, for each individual. This, rstd and the weights are used as
            float32 (float64 for float64 candidates), in which the sum is also accumulated.
        rstd: [K, P, C], 1 / √(variance + ε).
        weights: [P, K], or [K] for one individual; already normalised (softmax, one-hot, ...).
        bypass: E ≥ 0 images [N or B, R, H, W] of the channels that skip the candidates, R = (g - 1)·C. Their weighted
            sum is joined to that of the candidates and the channels are shuffled in g groups: channel i of group q,
            where group 0 is the sum of the candidates, becomes channel i·g + q.
        bypass_weights: [P, E], or [E] for one individual (the edge weights of PC-DARTS); ones by default.
        prev_node: [N or B, C + R, H, W], the node before this one in its cell. Its groups 1 to g - 1 hold the sum of
            what bypassed it, which bypasses this node too, and so do its own channels from C on: one tensor instead of
            a bypass of every earlier state.
        individuals: P.
        normalized: for each candidate, whether mean and rstd are those of this batch, so that its gradient contains
            their share (as BatchNorm's does in training); otherwise they are constants. By default all are. mean and
            rstd themselves get no gradient.
        images: B; needed only where all individuals share all candidates and bypasses: otherwise tensors of equal
            size are assumed to hold each individual's own images.
        previous: the former name of prev_node, deprecated.

    Returns:
        [N, C + R, H, W], channels-last, in the dtype of the images. Differentiable once in the candidates, the weights,
        the bypass and its weights, for one individual.

    Raises:
        RuntimeError: the shapes, dtypes or devices do not fit; the message names the argument and its shape.

    >>> import torch
    >>> from fastnas import ops
    >>> candidates = [torch.randn(4, 8, 6, 6, requires_grad=True) for _ in range(3)]
    >>> weights = torch.softmax(torch.randn(3, requires_grad=True), dim=0)
    >>> variance, mean = torch.var_mean(torch.stack(candidates).detach(), dim=(1, 3, 4), correction=0)  # [3, 8]
    >>> y = ops.node_sum(candidates, mean[:, None], (variance[:, None] + 1e-5).rsqrt(), weights)  # [4, 8, 6, 6]
    >>> norm = torch.nn.BatchNorm2d(8, affine=False)
    >>> torch.allclose(y, sum(w * norm(c) for w, c in zip(weights, candidates)), atol=1e-5)
    True
    """
    if previous is not None:
        warnings.warn("node_sum: previous is called prev_node now", DeprecationWarning, stacklevel=2)
        prev_node = previous
    candidates, bypass = list(candidates), list(bypass)
    if candidates:
        dtype = _common_dtype([*candidates, *bypass, *([] if prev_node is None else [prev_node])])
        prev_node = None if prev_node is None else prev_node.to(dtype)
        candidates = [y if y.dtype == dtype else y.to(dtype) for y in candidates]
        bypass = [x if x.dtype == dtype else x.to(dtype) for x in bypass]
        summed = acc_dtype(dtype)
        mean, rstd = mean.detach().to(summed), rstd.detach().to(summed)
        weights = _rows(weights.to(summed))
        bypass_weights = None if bypass_weights is None else _rows(bypass_weights.to(summed))
    if normalized is None:
        normalized = [True] * len(candidates)
    elif len(normalized) != len(candidates):
        raise RuntimeError(
            f"node_sum: normalized has {len(normalized)} entries, but there are {len(candidates)} candidates"
        )
    inputs = [weights, bypass_weights, prev_node, *candidates, *bypass]
    if torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in inputs):
        if torch.compiler.is_compiling():
            flags = [int(flag) for flag in normalized]
            return _forward(
                candidates, mean, rstd, weights, bypass, bypass_weights, individuals, images, flags, prev_node
            )
        # An autograd.Function costs a third of what an operator with registered autograd costs in eager mode.
        settings = ([bool(flag) for flag in normalized], individuals, images)
        return _NodeSum.apply(settings, mean, rstd, weights, bypass_weights, prev_node, *candidates, *bypass)
    return _forward(candidates, mean, rstd, weights, bypass, bypass_weights, individuals, images, None, prev_node)


def _rows(weights: Tensor) -> Tensor:
    return weights[None] if weights.dim() == 1 else weights


def _common_dtype(tensors: Sequence[Tensor]) -> torch.dtype:
    return reduce(torch.promote_types, (tensor.dtype for tensor in tensors))


def _images(tensors: Sequence[Tensor], individuals: int) -> int:
    """B where it is not given: the least number of images or, if all tensors have the same, N / P."""
    sizes = [tensor.shape[0] for tensor in tensors]
    return min(sizes) if min(sizes) < max(sizes) else sizes[0] // individuals


def _backward(
    grad: Tensor,
    candidates: list[Tensor],
    mean: Tensor,
    rstd: Tensor,
    weights: Tensor,
    bypass: list[Tensor],
    bypass_weights: Tensor | None,
    normalized: list[bool],
    needs: tuple[bool, bool, bool, bool, bool],
) -> tuple[list[Tensor] | None, Tensor | None, list[Tensor] | None, Tensor | None, Tensor | None]:
    """The gradients of candidates, weights, bypass, bypass weights and the node before, as far as `needs` asks for
    them."""
    needs_candidates, needs_weights, needs_bypass, needs_bypass_weights, needs_prev_node = needs
    grad_candidates = grad_weights = grad_bypass = grad_bypass_weights = grad_prev_node = None
    channels = mean.shape[-1]
    if needs_candidates or needs_weights or needs_bypass_weights:
        grad_group0, sum_dy, sum_dy_xhat, edge_sums = _grad(grad, candidates, mean, rstd, bypass)
        if needs_weights:
            grad_weights = sum_dy_xhat.sum(1)[None]  # [1, K]
        if needs_bypass_weights:
            grad_bypass_weights = edge_sums[None]  # [1, E]
        if needs_candidates:
            group0 = grad_group0 if grad.shape[1] > channels else grad  # [N, C, H, W]
            grad_candidates = _grad_candidates(group0, candidates, mean, rstd, weights, sum_dy, sum_dy_xhat, normalized)
    if needs_bypass:
        if bypass_weights is None:
            bypass_weights = weights.new_ones(1, len(bypass))
        grad_bypass = [
            _bypass_grad(None, [grad], bypass_weights[0, e : e + 1], [], channels)[0][:, channels:]
            for e in range(len(bypass))
        ]
    if needs_prev_node:
        grad_prev_node, _ = _bypass_grad(None, [grad], weights.new_ones(1), [], channels, True)
    return grad_candidates, grad_weights, grad_bypass, grad_bypass_weights, grad_prev_node


def _or_none(grads: list[Tensor] | None, count: int) -> Sequence[Tensor | None]:
    return [None] * count if grads is None else grads


class _NodeSum(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        settings: tuple[list[bool], int, int | None],
        mean: Tensor,
        rstd: Tensor,
        weights: Tensor,
        bypass_weights: Tensor | None,
        prev_node: Tensor | None,
        *inputs: Tensor,
    ) -> Tensor:
        ctx.normalized, individuals, images = settings
        ctx.save_for_backward(mean, rstd, weights, bypass_weights, *inputs)
        count = len(ctx.normalized)
        candidates, bypass = list(inputs[:count]), list(inputs[count:])
        return _forward(candidates, mean, rstd, weights, bypass, bypass_weights, individuals, images, None, prev_node)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        mean, rstd, weights, bypass_weights, *inputs = ctx.saved_tensors
        count = len(ctx.normalized)
        candidates, bypass = inputs[:count], inputs[count:]
        _, _, _, needs_weights, needs_bypass_weights, needs_prev_node, *needs = ctx.needs_input_grad
        grad_candidates, grad_weights, grad_bypass, grad_bypass_weights, grad_prev_node = _backward(
            grad,
            candidates,
            mean,
            rstd,
            weights,
            bypass,
            bypass_weights,
            ctx.normalized,
            (any(needs[:count]), needs_weights, any(needs[count:]), needs_bypass_weights, needs_prev_node),
        )
        images = [*_or_none(grad_candidates, count), *_or_none(grad_bypass, len(bypass))]
        return None, None, None, grad_weights, grad_bypass_weights, grad_prev_node, *images


# --- torch.compile, export, opcheck: the same, as registrations of the operators ---


@torch.library.register_fake("fastnas::node_sum")
def _(
    candidates: Sequence[Tensor],
    mean: Tensor,
    rstd: Tensor,
    weights: Tensor,
    bypass: Sequence[Tensor],
    bypass_weights: Tensor | None,
    individuals: int,
    images: int | None = None,
    normalized: Sequence[int] | None = None,
    prev_node: Tensor | None = None,
) -> Tensor:
    others = [*bypass, *([] if prev_node is None else [prev_node])]
    if images is None:
        images = _images([*candidates, *others], individuals)
    _, channels, height, width = candidates[0].shape
    if prev_node is not None:
        channels = prev_node.shape[1]
    elif bypass:
        channels += bypass[0].shape[1]
    return empty_channels_last(candidates[0], (individuals * images, channels, height, width))


@torch.library.register_fake("fastnas::node_sum_into")
def _(
    out: Tensor,
    candidates: Sequence[Tensor],
    mean: Tensor,
    rstd: Tensor,
    weights: Tensor,
    bypass: Sequence[Tensor],
    bypass_weights: Tensor | None,
    individuals: int,
    images: int,
    prev_node: Tensor | None = None,
) -> None:
    """The sum, written to `out`: a tensor of its size, or as many channels of a wider one. Has no gradient."""


@torch.library.register_fake("fastnas::node_sum_grad")
def _(
    grad: Tensor, candidates: Sequence[Tensor], mean: Tensor, rstd: Tensor, bypass: Sequence[Tensor]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    count, _, channels = mean.shape
    images, _, height, width = grad.shape
    bypassed = grad.shape[1] > channels
    grad_group0 = empty_channels_last(grad, (images, channels, height, width)) if bypassed else grad.new_empty(0)
    return grad_group0, mean.new_empty(channels), mean.new_empty(count, channels), mean.new_empty(len(bypass))


@torch.library.register_fake("fastnas::node_sum_grad_candidates")
def _(
    grad_group0: Tensor,
    candidates: Sequence[Tensor],
    mean: Tensor,
    rstd: Tensor,
    weights: Tensor,
    sum_dy: Tensor,
    sum_dy_xhat: Tensor,
    normalized: Sequence[int],
) -> list[Tensor]:
    return [empty_channels_last(grad_group0, grad_group0.shape) for _ in candidates]


@torch.library.register_fake("fastnas::bypass_grad")
def _(
    seen_grad: Tensor | None,
    grads: Sequence[Tensor],
    weights: Tensor,
    addends: Sequence[Tensor],
    channels: int,
    of_prev_node: bool = False,
) -> tuple[Tensor, Tensor]:
    images, _, height, width = grads[0].shape
    group0 = empty_channels_last(grads[0], (images, channels, height, width)) if of_prev_node else grads[0].new_empty(0)
    return empty_channels_last(grads[0], grads[0].shape), group0


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    candidates, mean, rstd, weights, bypass, bypass_weights, _, _, normalized, _ = inputs
    ctx.count = len(candidates)
    ctx.normalized = [True] * len(candidates) if normalized is None else [bool(flag) for flag in normalized]
    ctx.save_for_backward(mean, rstd, weights, bypass_weights, *candidates, *bypass)


def _backward_registered(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    mean, rstd, weights, bypass_weights, *inputs = ctx.saved_tensors
    candidates, bypass = inputs[: ctx.count], inputs[ctx.count :]
    needs_candidates, _, _, needs_weights, needs_bypass, needs_bypass_weights, *_, needs_prev_node = (
        ctx.needs_input_grad
    )
    grad_candidates, grad_weights, grad_bypass, grad_bypass_weights, grad_prev_node = _backward(
        grad,
        candidates,
        mean,
        rstd,
        weights,
        bypass,
        bypass_weights,
        ctx.normalized,
        (any(needs_candidates), needs_weights, any(needs_bypass), needs_bypass_weights, needs_prev_node),
    )
    grad_images = _or_none(grad_candidates, ctx.count), _or_none(grad_bypass, len(bypass))
    return (grad_images[0], None, None, grad_weights, grad_images[1], grad_bypass_weights, *[None] * 3, grad_prev_node)


torch.library.register_autograd("fastnas::node_sum", _backward_registered, setup_context=_setup_context)
