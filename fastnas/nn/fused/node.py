"""The sum of what a few candidates make of their inputs: a node of a derived network, on the fused operators.

The sum normalises the raw outputs of all candidates on the way (see `branches`). `cell` does the same for the
cells of a supernet, where many more candidates share what they read.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any, cast

import torch
from torch import Tensor, nn

import fastnas.ops  # noqa: F401  (registers torch.ops.fastnas)
from fastnas.nn.fused.autograd import first_order
from fastnas.nn.fused.branches import (
    Branch,
    IdentityBranch,
    Moments,
    PointwiseBranch,
    Raw,
    Statistics,
    ZeroBranch,
    branch_of,
    uses_batch,
    values_of,
)
from fastnas.nn.fused.patterns import match_op
from fastnas.ops.layout import DEVICE_TYPES, acc_dtype, computation_dtype

_node_sum = torch.ops.fastnas.node_sum.default
_node_sum_grad = torch.ops.fastnas.node_sum_grad.default


class _FusedSum(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        branches: list[Branch],
        sizes: list[tuple[int, int]],
        statistics: Statistics,
        masks: list[Tensor | None],
        shares: Tensor | None,
        *tensors: Tensor | None,
    ) -> Tensor:
        raws, moments = [], []
        for branch, (states, weights) in zip(
            branches, _parts(iter(cast(Sequence[Tensor], tensors)), sizes), strict=True
        ):
            raw = branch.forward(states, _own(branch, weights), statistics)
            raws.append(raw)
            if branch.norm is None:
                one = torch.ones(raw.y.shape[1], dtype=statistics.dtype, device=raw.y.device)  # [C]
                moments.append(Moments(torch.zeros_like(one), one, one, torch.zeros_like(one)))
            else:
                moments.append(statistics.moments(branch.norm, raw, weights[-3:]))
        ctx.branches, ctx.sizes, ctx.batch = branches, sizes, statistics.batch
        ctx.kept = [len(raw.kept) for raw in raws]
        ctx.save_for_backward(
            shares,
            *tensors,
            *(number for each in moments for number in each),
            *(tensor for raw in raws for tensor in (raw.y, *raw.kept)),
            *masks,
        )
        folded = [each.folded() for each in moments]
        shifts, scales = (torch.stack([pair[i] for pair in folded])[:, None] for i in (0, 1))  # [K, 1, C]
        outputs = [raw.y for raw in raws]
        if shares is None:
            shares = scales.new_ones(len(raws))  # [K]
        if all(mask is None for mask in masks):
            return _node_sum(outputs, shifts, scales, shares[None], [], None, 1)
        # Every image is an individual of its own, with weights of its own.
        images = outputs[0].shape[0]
        ones = scales.new_ones(images)  # [N]
        of_images = shares * torch.stack([ones if mask is None else mask for mask in masks], 1)  # [N, K]
        shifts, scales = (table.expand(-1, images, -1).contiguous() for table in (shifts, scales))  # [K, N, C]
        return _node_sum(outputs, shifts, scales, of_images, [], None, images, 1)

    @staticmethod
    @first_order
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        shares, *rest = ctx.saved_tensors
        saved = iter(rest)
        parts = _parts(saved, ctx.sizes)
        moments = [Moments(*islice(saved, 4)) for _ in parts]
        raws = [Raw(y := next(saved), y, y, list(islice(saved, kept))) for kept in ctx.kept]
        masks = list(saved)
        if grad.stride(1) != 1:  # the channels of one pixel are neighbours also in a slice of the channels
            grad = grad.contiguous(memory_format=torch.channels_last)  # [N, C, H', W']
        own = [
            grad if mask is None else grad * mask.to(grad.dtype).view(-1, 1, 1, 1) for mask in masks
        ]  # [N, C, H', W']
        totals, dots = _sums(ctx.branches, own, raws, moments, shares is not None)
        grad_shares = None
        if shares is not None:
            products = [each.gamma * dots[k] + each.beta * totals[k] for k, each in enumerate(moments)]  # [C] each
            grad_shares = torch.stack([product.sum() for product in products])  # [K]
            totals = [share * total for share, total in zip(shares, totals, strict=True)]
            dots = [share * dot for share, dot in zip(shares, dots, strict=True)]
        grads: list[Tensor | None] = []
        for k, (branch, (states, weights), raw) in enumerate(zip(ctx.branches, parts, raws, strict=True)):
            normalised = branch.norm is not None
            values = values_of(raw.y) if ctx.batch and normalised else 0
            numbers = moments[k].numbers(totals[k], moments[k].gamma * dots[k], values)  # [4, C]
            if shares is not None:
                numbers[0] *= shares[k]
                if isinstance(branch, IdentityBranch):
                    own[k] = own[k] * shares[k].to(grad.dtype)
            of_states, of_weights = branch.backward(own[k], numbers, states, raw, _own(branch, weights), ctx.batch)
            affine = moments[k].affine_grads(totals[k], dots[k], ctx.batch) if normalised else []
            pairs = zip((*states, *weights), (*of_states, *of_weights, *affine), strict=True)
            grads += [None if tensor is None else gradient for tensor, gradient in pairs]
        return None, None, None, None, grad_shares, *grads


def _sums(
    branches: Sequence[Branch],
    grads: Sequence[Tensor],
    raws: Sequence[Raw],
    moments: Sequence[Moments],
    all_of_them: bool,
) -> tuple[list[Tensor], list[Tensor]]:
    """Σ G and Σ G·ŷ [C] of every candidate, or 0 where it is not normalised; one reading of a G that several share."""
    totals, dots = ([torch.zeros_like(each.mean) for each in moments] for _ in range(2))
    wanted = [k for k, branch in enumerate(branches) if all_of_them or branch.norm is not None]
    for grad in {id(grads[k]): grads[k] for k in wanted}.values():
        group = [k for k in wanted if grads[k] is grad]
        mean, rstd = (torch.stack([moments[k][i] for k in group])[:, None] for i in (0, 1))  # [K, 1, C]
        _, total, of_group, _ = _node_sum_grad(grad, [raws[k].y for k in group], mean, rstd, [])
        for k, dot in zip(group, of_group, strict=True):
            totals[k], dots[k] = total, dot
    return totals, dots


def _own(branch: Branch, weights: list[Tensor]) -> list[Tensor]:
    """Without the affine numbers of the last BatchNorm, which belong to the sum."""
    return weights if branch.norm is None else weights[:-3]


def _parts(tensors: Iterator[Tensor], sizes: Sequence[tuple[int, int]]) -> list[tuple[list[Tensor], list[Tensor]]]:
    """Of each candidate: its states; the weights of its chain, with the affine numbers of the last BatchNorm."""
    return [(list(islice(tensors, states)), list(islice(tensors, weights))) for states, weights in sizes]


States = Tensor | tuple[Tensor, ...]
"""A state [N, C, H, W], or what it consists of, side by side in its channels."""


def joined(states: States) -> Tensor:
    return torch.cat(states, 1) if isinstance(states, tuple) else states


def can_fuse(x: Tensor) -> bool:
    """Whether the operators take images like these here."""
    return x.device.type in DEVICE_TYPES and x.is_floating_point() and not torch.compiler.is_compiling()


def fused_sum(
    modules: Sequence[Callable[[Tensor], Tensor]],
    inputs: Sequence[States],
    masks: Sequence[Tensor | None] | None = None,
    *,
    weights: Tensor | None = None,
    branches: Sequence[Branch | None] | None = None,
) -> Tensor | None:
    """Σ_k weight_k · mask_k · modules[k](inputs[k]), or None where the operators cannot compute it.

    Args:
        modules: K candidates. Those that the operators do not know are computed in plain torch.
        inputs: [N, C, H, W] each, or its parts.
        masks: [N] each, None for ones: what drop path makes of the images; already divided by the share that it keeps.
        weights: [K], differentiable; ones by default.
        chains: how the operators compute each candidate, None where they do not know it; by default what the modules'
            classes say.

    Returns:
        [N, C', H', W'], channels-last.
    """
    x = inputs[0][0] if isinstance(inputs[0], tuple) else inputs[0]
    if not can_fuse(x):
        return None
    if branches is None:
        branches = [branch_of(match_op(cast(nn.Module, module))) for module in modules]
    live = [k for k, branch in enumerate(branches) if not isinstance(branch, ZeroBranch)]
    if all(branches[k] is None for k in live):
        return None
    batch = {uses_batch(norm) for k in live if (branch := branches[k]) is not None for norm in branch.norms()}
    smallest = x.shape[0] * math.ceil(x.shape[2] / 2) * math.ceil(x.shape[3] / 2)
    if len(batch) > 1 or (batch == {True} and smallest <= 1):
        return None  # mixed modes, or perhaps one value per channel, which BatchNorm refuses
    dtype = computation_dtype(x)
    numbers = acc_dtype(dtype)
    terms: list[Branch] = []
    sizes: list[tuple[int, int]] = []
    tensors: list[Tensor | None] = []
    for k in live:
        known, given = branches[k], inputs[k]
        if not isinstance(known, PointwiseBranch):
            given = joined(given)
        if known is None:
            given = modules[k](cast(Tensor, given))
        parts = given if isinstance(given, tuple) else (given,)  # [N, C, H, W] each
        branch = IdentityBranch() if known is None else known
        learned = [None if each is None else each.to(numbers) for each in (*branch.weights(), *branch.affine())]
        terms.append(branch)
        sizes.append((len(parts), len(learned)))
        tensors += [part.to(dtype).contiguous(memory_format=torch.channels_last) for part in parts]
        tensors += learned
    statistics = Statistics(batch == {True}, numbers)
    dropped = [None if masks is None or (mask := masks[k]) is None else mask.to(numbers) for k in live]
    shares = None if weights is None else weights.to(numbers)
    if shares is not None and len(live) < len(modules):
        columns = shares.unbind()
        shares = torch.stack([columns[k] for k in live])  # not by index, which would have to be copied to the device
    output: Tensor = _FusedSum.apply(terms, sizes, statistics, dropped, shares, *tensors)
    statistics.follow()
    return output
