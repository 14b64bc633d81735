"""The sum of what a few candidates make of their inputs: a node of a derived network, on the fused operators.

The sum normalises the raw outputs of all candidates on the way (see `fused_chain`). `fused_cell` does the same for the
cells of a supernet, where many more candidates share what they read.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

import fastnas.ops  # noqa: F401  (registers torch.ops.fastnas)
from fastnas.nn.fused_chain import Chain, IdentityChain, Moments, PointwiseChain, Raw, Statistics, chain_of, values_of
from fastnas.nn.primitives import Zero
from fastnas.ops.layout import DEVICE_TYPES, accumulate_dtype, computation_dtype

_node_sum = torch.ops.fastnas.node_sum.default
_node_sum_grad = torch.ops.fastnas.node_sum_grad.default


class _FusedSum(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        chains: list[Chain],
        sizes: list[tuple[int, int]],
        statistics: Statistics,
        masks: list[Tensor | None],
        *tensors: Tensor,
    ) -> Tensor:
        raws, moments = [], []
        for chain, (states, weights) in zip(chains, _parts(iter(tensors), sizes), strict=True):
            raw = chain.forward(states, _own(chain, weights), statistics)
            raws.append(raw)
            if chain.norm is None:
                one = torch.ones(raw.y.shape[1], dtype=statistics.dtype, device=raw.y.device)  # [C]
                moments.append(Moments(torch.zeros_like(one), one, one, torch.zeros_like(one)))
            else:
                moments.append(statistics.moments(chain.norm, raw))
        ctx.chains, ctx.sizes, ctx.batch = chains, sizes, statistics.batch
        ctx.kept = [len(raw.kept) for raw in raws]
        ctx.save_for_backward(
            *tensors,
            *(number for each in moments for number in each),
            *(tensor for raw in raws for tensor in (raw.y, *raw.kept)),
            *masks,
        )
        folded = [each.folded() for each in moments]
        shifts, scales = (torch.stack([pair[i] for pair in folded])[:, None] for i in (0, 1))  # [K, 1, C]
        outputs = [raw.y for raw in raws]
        if all(mask is None for mask in masks):
            return _node_sum(outputs, shifts, scales, scales.new_ones(1, len(raws)), [], None, 1)
        # Every image is an individual of its own, with weights of its own.
        images = outputs[0].shape[0]
        ones = scales.new_ones(images)  # [N]
        shares = torch.stack([ones if mask is None else mask for mask in masks], 1)  # [N, K]
        shifts, scales = (table.expand(-1, images, -1).contiguous() for table in (shifts, scales))  # [K, N, C]
        return _node_sum(outputs, shifts, scales, shares, [], None, images, 1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        saved = iter(ctx.saved_tensors)
        parts = _parts(saved, ctx.sizes)
        moments = [Moments(*islice(saved, 4)) for _ in parts]
        raws = [Raw(y := next(saved), y, y, list(islice(saved, kept))) for kept in ctx.kept]
        masks = list(saved)
        if grad.stride(1) != 1:  # the channels of one pixel are neighbours also in a slice of the channels
            grad = grad.contiguous(memory_format=torch.channels_last)  # [N, C, H', W']
        own = [
            grad if mask is None else grad * mask.to(grad.dtype).view(-1, 1, 1, 1) for mask in masks
        ]  # [N, C, H', W']
        totals, dots = _sums(ctx.chains, own, raws, moments)
        grads: list[Tensor] = []
        for k, (chain, (states, weights), raw) in enumerate(zip(ctx.chains, parts, raws, strict=True)):
            affine = [] if chain.norm is None else [dots[k], totals[k]]
            values = values_of(raw.y) if ctx.batch and affine else 0
            numbers = moments[k].numbers(totals[k], moments[k].gamma * dots[k], values)  # [4, C]
            of_states, of_weights = chain.backward(own[k], numbers, states, raw, _own(chain, weights), ctx.batch)
            grads += [*of_states, *of_weights, *affine]
        return None, None, None, None, *grads


def _sums(
    chains: Sequence[Chain], grads: Sequence[Tensor], raws: Sequence[Raw], moments: Sequence[Moments]
) -> tuple[list[Tensor], list[Tensor]]:
    """Σ G and Σ G·ŷ [C] of every candidate, 0 where it is not normalised; one reading of a G that several share."""
    totals, dots = ([torch.zeros_like(each.mean) for each in moments] for _ in range(2))
    normalised = [k for k, chain in enumerate(chains) if chain.norm is not None]
    for grad in {id(grads[k]): grads[k] for k in normalised}.values():
        group = [k for k in normalised if grads[k] is grad]
        mean, rstd = (torch.stack([moments[k][i] for k in group])[:, None] for i in (0, 1))  # [K, 1, C]
        _, total, of_group, _ = _node_sum_grad(grad, [raws[k].y for k in group], mean, rstd, [])
        for k, dot in zip(group, of_group, strict=True):
            totals[k], dots[k] = total, dot
    return totals, dots


def _own(chain: Chain, weights: list[Tensor]) -> list[Tensor]:
    """Without γ and β of the last BatchNorm, which belong to the sum."""
    return weights if chain.norm is None else weights[:-2]


def _parts(tensors: Iterator[Tensor], sizes: Sequence[tuple[int, int]]) -> list[tuple[list[Tensor], list[Tensor]]]:
    """Of each candidate: its states; the weights of its chain, with γ and β of the last BatchNorm."""
    return [(list(islice(tensors, states)), list(islice(tensors, weights))) for states, weights in sizes]


States = Tensor | tuple[Tensor, ...]
"""A state [N, C, H, W], or what it consists of, side by side in its channels."""


def joined(states: States) -> Tensor:
    return torch.cat(states, 1) if isinstance(states, tuple) else states


def can_fuse(x: Tensor) -> bool:
    """Whether the operators take images like these here."""
    return x.device.type in DEVICE_TYPES and x.is_floating_point() and not torch.compiler.is_compiling()


def fused_sum(
    modules: Sequence[nn.Module], inputs: Sequence[States], masks: Sequence[Tensor | None] | None = None
) -> Tensor | None:
    """Σ_k mask_k · modules[k](inputs[k]), or None where the operators cannot compute it.

    Args:
        modules: K candidates. Those that the operators do not know are computed in plain torch.
        inputs: [N, C, H, W] each, or its parts.
        masks: [N] each, None for ones: what drop path makes of the images; already divided by the share that it keeps.

    Returns:
        [N, C', H', W'], channels-last.
    """
    x = inputs[0][0] if isinstance(inputs[0], tuple) else inputs[0]
    if not can_fuse(x):
        return None
    live = [k for k, module in enumerate(modules) if not isinstance(module, Zero)]
    chains = [chain_of(modules[k]) for k in live]
    if all(chain is None for chain in chains):
        return None
    norms = [norm for chain in chains if chain is not None for norm in chain.norms()]
    training = {norm.training for norm in norms}
    smallest = x.shape[0] * math.ceil(x.shape[2] / 2) * math.ceil(x.shape[3] / 2)
    if len(training) > 1 or (training == {True} and smallest <= 1):
        return None  # mixed modes, or perhaps one value per channel, which BatchNorm refuses
    dtype = computation_dtype(x)
    numbers = accumulate_dtype(dtype)
    terms: list[Chain] = []
    sizes: list[tuple[int, int]] = []
    tensors: list[Tensor] = []
    for known, k in zip(chains, live, strict=True):
        given = inputs[k]
        if not isinstance(known, PointwiseChain):
            given = joined(given)
        if known is None:
            given = modules[k](given)
        parts = given if isinstance(given, tuple) else (given,)  # [N, C, H, W] each
        chain = IdentityChain() if known is None else known
        affine = [] if chain.norm is None else [chain.norm.weight, chain.norm.bias]
        weights = [weight.to(numbers) for weight in (*chain.weights(), *affine)]
        terms.append(chain)
        sizes.append((len(parts), len(weights)))
        tensors += [part.to(dtype).contiguous(memory_format=torch.channels_last) for part in parts] + weights
    statistics = Statistics(training == {True}, numbers)
    dropped = [None if masks is None or (mask := masks[k]) is None else mask.to(numbers) for k in live]
    output: Tensor = _FusedSum.apply(terms, sizes, statistics, dropped, *tensors)
    statistics.follow()
    return output
