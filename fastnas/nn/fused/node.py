"""The sum of a few candidates, each of its own input: a node of a derived network, on the fused operators.

The sum normalises the raw outputs of all candidates on the way (see `branches`). `cell` does the same for the
cells of a supernet, where many more candidates share what they read.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

import fastnas.ops  # noqa: F401  (registers torch.ops.fastnas)
from fastnas.nn.fused.autograd import below_autograd, first_order, flattened, nested, structure_of
from fastnas.nn.fused.batch_norm import (
    Affine,
    BatchStats,
    Normalization,
    Normalizer,
    count_values,
    uses_batch,
)
from fastnas.nn.fused.branch import BackwardPass, Branch, BranchOutput, ForwardPass, Slot
from fastnas.nn.fused.branches import IdentityBranch, PointwiseBranch, ZeroBranch, branch_of, match_op
from fastnas.nn.fused.patterns import IdentityPattern
from fastnas.ops.layout import DEVICE_TYPES, acc_dtype, computation_dtype
from fastnas.ops.norm_rows import norm_rows_grad

_node_sum = torch.ops.fastnas.node_sum.default
_node_sum_grad = torch.ops.fastnas.node_sum_grad.default


@dataclass
class Term:
    """One candidate of the sum, or its gradients."""

    states: list[Tensor]  # [N, C, H, W], what it reads; several are side by side in the channels
    weights: list[Tensor]  # of its branch; None, as below, where nothing is learned
    affine: list[Tensor]  # γ, β and the shift of its last BatchNorm, see `Affine`; none where it has none

    @property
    def lists(self) -> list[list[Tensor]]:
        return [self.states, self.weights, self.affine]


@dataclass
class SavedNode:
    """What the backward pass of a sum needs from its forward pass."""

    weights: Tensor | None  # [K]
    terms: list[Term]
    norms: list[Normalization]
    outputs: list[BranchOutput]
    raws: list[Tensor]  # [N, C', H', W'] of each
    masks: list[Tensor | None]  # [N] each

    def save(self, ctx: Any) -> None:
        """Gives the tensors to autograd."""
        terms = [term.lists for term in self.terms]
        norms = [[tensor for tensor in norm if tensor is not None] for norm in self.norms]
        outputs = [[each.first, each.second, each.norm] for each in self.outputs]
        lists = [[self.weights], terms, norms, outputs, self.raws, self.masks]
        ctx.structure = structure_of(lists)
        ctx.save_for_backward(*flattened(lists))

    @classmethod
    def restore(cls, ctx: Any) -> SavedNode:
        """What `save` saved."""
        (weights,), terms, norms, outputs, raws, masks = nested(ctx.structure, iter(ctx.saved_tensors))
        return cls(
            weights,
            [Term(*each) for each in terms],
            [Normalization(*each) for each in norms],
            [BranchOutput(*each) for each in outputs],
            raws,
            masks,
        )


class _FusedSum(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        branches: list[Branch],
        normalizer: Normalizer,
        structure: Any,
        masks: list[Tensor | None],
        weights: Tensor | None,
        *tensors: Tensor | None,
    ) -> Tensor:
        terms = [Term(*each) for each in nested(structure, iter(tensors))]
        with below_autograd():
            saved, result = _forward(branches, normalizer, terms, masks, weights)
        ctx.branches, ctx.batch = branches, normalizer.batch
        saved.save(ctx)
        return result

    @staticmethod
    @first_order
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        with below_autograd():
            return None, None, None, None, *_backward(ctx.branches, ctx.batch, SavedNode.restore(ctx), grad)


def _forward(
    branches: Sequence[Branch],
    normalizer: Normalizer,
    terms: list[Term],
    masks: list[Tensor | None],
    weights: Tensor | None,
) -> tuple[SavedNode, Tensor]:
    """What the backward pass needs, and the sum [N, C', H', W']."""
    norms: list[Normalization] = []  # [1, 1, C'] each
    outputs: list[BranchOutput] = []
    raws: list[Tensor] = []  # [N, C', H', W'] each
    for branch, term in zip(branches, terms, strict=True):
        output, stats = branch.forward(ForwardPass(normalizer), term.states, term.weights)
        outputs.append(output)
        raws += branch.raw(output, term.states[0])
        norms.append(_normalization(branch, normalizer, stats, term.affine, raws[-1]))
    saved = SavedNode(weights, terms, norms, outputs, raws, masks)
    means, scales = (
        torch.cat(parts) for parts in zip(*((norm.folded_mean, norm.scale) for norm in norms), strict=True)
    )  # [K, 1, C]
    if weights is None:
        weights = scales.new_ones(len(raws))  # [K]
    return saved, masked_sum(raws, means, scales, weights, masks)


def masked_sum(
    raws: Sequence[Tensor], means: Tensor, scales: Tensor, weights: Tensor, masks: Sequence[Tensor | None]
) -> Tensor:
    """Σ_k weight_k · mask_k · (raw_k - mean_k) · scale_k: weights [K], tables [K, 1, C], masks [N] or None for ones."""
    if all(mask is None for mask in masks):
        return cast(Tensor, _node_sum(raws, means, scales, weights[None], [], None, 1))
    # Every image is an individual of its own, with weights of its own.
    images = raws[0].shape[0]
    ones = scales.new_ones(images)  # [N]
    of_images = weights * torch.stack([ones if mask is None else mask for mask in masks], 1)  # [N, K]
    means, scales = (table.expand(-1, images, -1).contiguous() for table in (means, scales))  # [K, N, C]
    return cast(Tensor, _node_sum(raws, means, scales, of_images, [], None, images, 1))


def _backward(branches: Sequence[Branch], batch: bool, saved: SavedNode, grad: Tensor) -> list[Tensor | None]:
    """From the gradient of the sum [N, C', H', W'] to those of its weights and of the tensors of its terms."""
    weights, raws = saved.weights, saved.raws
    if grad.stride(1) != 1:  # a slice of channels needs no copy: the channels of a pixel are still adjacent
        grad = grad.contiguous(memory_format=torch.channels_last)
    masked = [
        grad if mask is None else grad * mask.to(grad.dtype).view(-1, 1, 1, 1) for mask in saved.masks
    ]  # [N, C', H', W'] each
    sums = _sums(branches, masked, raws, saved.norms, weights is not None)
    grad_weights = None
    if weights is not None:
        products = [_of_output(norm, *each) for norm, each in zip(saved.norms, sums, strict=True)]
        grad_weights = torch.stack([product.sum() for product in products])  # [K]
        sums = [(weight * dy, weight * dy_xhat) for weight, (dy, dy_xhat) in zip(weights, sums, strict=True)]
    grads: list[Tensor | None] = [grad_weights]
    for k, (branch, term, norm) in enumerate(zip(branches, saved.terms, saved.norms, strict=True)):
        if isinstance(branch, IdentityBranch):
            grad_x = masked[k] if weights is None else masked[k] * weights[k].to(grad.dtype)
            of_term = Term([grad_x], [], [])
        else:
            normalised = branch.last_norms[0] is not None
            count = count_values(raws[k]) if batch and normalised else 0
            mean, rstd, scale = norm.mean[:, 0], norm.rstd[:, 0], norm.scale[:, 0]  # [1, C']
            coeffs = mean.new_empty(1, 4, mean.shape[1])  # [1, 4, C']
            norm_rows_grad(*sums[k], mean, rstd, scale, count, coeffs)
            if weights is not None:
                coeffs[:, 0] *= weights[k]
            back = BackwardPass(term.states, [masked[k]], coeffs, batch)
            of_weights = branch.backward(back, saved.outputs[k], term.weights)
            of_states = back.grad_states or [back.total(branch.stride)]
            affine = norm.affine_grads(*sums[k], batch) if normalised else []
            of_term = Term(of_states, of_weights, affine)
        pairs = zip(flattened(term.lists), flattened(of_term.lists), strict=True)
        grads += [None if tensor is None else gradient for tensor, gradient in pairs]
    return grads


def _normalization(
    branch: Branch, normalizer: Normalizer, stats: list[BatchStats], affine: list[Tensor], raw: Tensor
) -> Normalization:
    """What the last BatchNorm of a lone candidate does [1, 1, C']."""
    norm = branch.last_norms[0]
    if norm is None:
        one = torch.ones(1, 1, raw.shape[1], dtype=normalizer.acc_dtype, device=raw.device)
        return Normalization.of(torch.zeros_like(one), one)
    own = branch.stats_of(stats, 0) if normalizer.batch else None
    return normalizer.normalization([norm], own, [Affine(*affine)])


def _of_output(norm: Normalization, sum_dy: Tensor, sum_dy_xhat: Tensor) -> Tensor:
    """Σ dy·(γ·x̂ + β) [1, C]."""
    if norm.gamma is None or norm.beta is None:
        return sum_dy_xhat
    return norm.gamma[:, 0] * sum_dy_xhat + norm.beta[:, 0] * sum_dy


def _sums(
    branches: Sequence[Branch],
    grads: Sequence[Tensor],
    raws: Sequence[Tensor],
    norms: Sequence[Normalization],
    all_of_them: bool,
) -> list[tuple[Tensor, Tensor]]:
    """Σ dy and Σ dy·x̂ [1, C'] of every candidate, or zeros where it is not normalised; a dy that several share is read
    once."""
    sums: dict[int, tuple[Tensor, Tensor]] = {}
    wanted = [k for k, branch in enumerate(branches) if all_of_them or branch.last_norms[0] is not None]
    for grad in {id(grads[k]): grads[k] for k in wanted}.values():
        group = [k for k in wanted if grads[k] is grad]
        mean = torch.cat([norms[k].mean for k in group])  # [K, 1, C']
        rstd = torch.cat([norms[k].rstd for k in group])  # [K, 1, C']
        _, total, products, _ = _node_sum_grad(grad, [raws[k] for k in group], mean, rstd, [])
        sums |= {k: (total[None], product[None]) for k, product in zip(group, products, strict=True)}
    for k in range(len(branches)):
        if k not in sums:
            zeros = torch.zeros_like(norms[k].mean[:, 0])
            sums[k] = zeros, zeros
    return [sums[k] for k in range(len(branches))]


States = Tensor | tuple[Tensor, ...]
"""A state [N, C, H, W], or what it consists of, side by side in its channels."""


def joined(states: States) -> Tensor:
    return torch.cat(states, 1) if isinstance(states, tuple) else states


def can_fuse(x: Tensor) -> bool:
    """Whether the operators can compute with such images, and torch.compile is not tracing."""
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
        masks: [N] each, None for ones: factors of the images by drop path, divided by the share that it keeps already.
        weights: [K], differentiable; ones by default.
        branches: how the operators compute each candidate, None where they do not know it; by default found by the
            classes of the modules.

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
    acc = acc_dtype(dtype)
    known: list[Branch] = []
    tensors: list[list[list[Tensor | None]]] = []  # as in `Term`
    for k in live:
        branch, given = branches[k], inputs[k]
        if not isinstance(branch, PointwiseBranch):
            given = joined(given)
        if branch is None:
            branch, given = IdentityBranch([Slot(IdentityPattern())]), modules[k](cast(Tensor, given))
        states = given if isinstance(given, tuple) else (given,)  # [N, C, H, W] each
        affine = [] if branch.last_norms[0] is None else branch.affine()
        learned = [[None if each is None else each.to(acc) for each in some] for some in (branch.weights(), affine)]
        known.append(branch)
        tensors.append([[x.to(dtype).contiguous(memory_format=torch.channels_last) for x in states], *learned])
    normalizer = Normalizer(batch == {True}, acc)
    dropped = [None if masks is None or (mask := masks[k]) is None else mask.to(acc) for k in live]
    of_live = None if weights is None else weights.to(acc)
    if of_live is not None and len(live) < len(modules):
        columns = of_live.unbind()
        of_live = torch.stack([columns[k] for k in live])  # indices would have to be copied to the device
    output: Tensor = _FusedSum.apply(known, normalizer, structure_of(tensors), dropped, of_live, *flattened(tensors))
    normalizer.follow()
    return output
