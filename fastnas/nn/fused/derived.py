"""A cell of a derived network on the fused operators, forward and backward: training.

As in a cell of the supernet (`cell`), all candidates of one kind that read a state are computed together, one branch
for each kind, and a node is one sum that normalises on the way. What differs is what a genotype asks for: few
candidates, affine normalisations, drop path for each candidate, and states that arrive in parts. The gradients that
reach a state are added in one pass.

Where nothing is differentiated, `node` computes one sum after another and keeps less in memory; so it does for cells
with candidates that the operators do not know.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
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
    is_known,
    uses_batch,
)
from fastnas.nn.fused.branch import BackwardPass, BranchOutput, ForwardPass
from fastnas.nn.fused.derived_layout import DerivedLayout
from fastnas.nn.fused.node import States, can_fuse, masked_sum
from fastnas.ops.layout import acc_dtype, computation_dtype
from fastnas.ops.norm_rows import norm_rows_grad

_node_sum = torch.ops.fastnas.node_sum.default
_node_sum_grad = torch.ops.fastnas.node_sum_grad.default


@dataclass
class SavedDerivedCell:
    """What the backward pass of a cell needs from its forward pass."""

    inputs: list[list[Tensor]]  # of each, its parts [N, C_i, H_i, W_i]
    weights: list[list[Tensor]]  # of each branch
    states: list[Tensor]  # [N, C, H, W]
    outputs: list[BranchOutput]  # of each branch
    norms: list[Normalization | None]  # of the inputs, then of the normalised edges of each node [M, 1, C]
    masks: list[Tensor | None]  # [N], of each edge

    def save(self, ctx: Any) -> None:
        """Gives the tensors to autograd."""
        outputs = [[each.first, each.second, each.norm] for each in self.outputs]
        norms = [[tensor for tensor in norm or () if tensor is not None] for norm in self.norms]
        lists = [self.inputs, self.weights, self.states, outputs, norms, self.masks]
        ctx.structure = structure_of(lists)
        ctx.save_for_backward(*flattened(lists))

    @classmethod
    def restore(cls, ctx: Any) -> SavedDerivedCell:
        """What `save` saved."""
        inputs, weights, states, outputs, norms, masks = nested(ctx.structure, iter(ctx.saved_tensors))
        outputs = [BranchOutput(*each) for each in outputs]
        return cls(inputs, weights, states, outputs, [Normalization(*each) if each else None for each in norms], masks)


class _DerivedCell(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        layout: DerivedLayout,
        normalizer: Normalizer,
        structure: Any,
        masks: list[Tensor | None],
        *tensors: Tensor | None,
    ) -> tuple[Tensor, ...]:
        inputs, weights, affine = nested(structure, iter(tensors))
        with below_autograd():
            saved = _forward(layout, normalizer, inputs, weights, affine, masks)
        ctx.layout, ctx.batch = layout, normalizer.batch
        ctx.learned = [tensor is not None for tensor in tensors]
        ctx.set_materialize_grads(False)
        saved.save(ctx)
        return tuple(saved.states[state] for state in layout.concat)

    @staticmethod
    @first_order
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        with below_autograd():
            back = _DerivedBackward(ctx.layout, ctx.batch, SavedDerivedCell.restore(ctx))
            found = back.run(grads)
        given = (gradient if learned else None for gradient, learned in zip(found, ctx.learned, strict=True))
        return None, None, None, None, *given


def _forward(
    layout: DerivedLayout,
    normalizer: Normalizer,
    inputs: list[list[Tensor]],
    weights: list[list[Tensor]],
    affine: list[list[Tensor | None]],
    masks: list[Tensor | None],
) -> SavedDerivedCell:
    run = ForwardPass(normalizer)
    saved = SavedDerivedCell(inputs, weights, [], [], [], masks)
    for i, (branch, parts) in enumerate(zip(layout.preprocess, inputs, strict=True)):
        output, stats = branch.forward(run, parts, weights[i])
        saved.outputs.append(output)
        own = [branch.stats_of(stats, 0)] if normalizer.batch else []
        norm = _normalization(normalizer, branch.last_norms, own, affine[i : i + 1])
        saved.norms.append(norm)
        saved.states.append(_sum(branch.raw(output, parts[0]), [None], norm, norm))
    raws: list[Tensor | None] = [None] * len(layout.norms)  # of each edge [N, C, H', W']
    statistics: list[BatchStats | None] = [None] * len(layout.norms)
    for state, (reads, skips) in enumerate(zip(layout.reads, layout.skips, strict=True)):
        if state >= 2:
            edges = layout.nodes[state - 2]
            last = [layout.norms[edge] for edge in edges.normalised]
            own = [of_edge for edge in edges.normalised if (of_edge := statistics[edge]) is not None]
            norm = _normalization(normalizer, last, own, [affine[2 + edge] for edge in edges.normalised])
            saved.norms.append(norm)
            of_node = [raw for edge in edges.all if (raw := raws[edge]) is not None]
            saved.states.append(_sum(of_node, [masks[edge] for edge in edges.all], norm, saved.norms[0]))
        x = saved.states[state]
        for read in reads:
            branch = read.branch
            output, stats = branch.forward(run, [x], weights[len(saved.outputs)])
            saved.outputs.append(output)
            for place, (edge, raw) in enumerate(zip(read.edges, branch.raw(output, x), strict=True)):
                raws[edge] = raw
                if normalizer.batch and branch.last_norms[place] is not None:
                    statistics[edge] = branch.stats_of(stats, place)
        for edge in skips:
            raws[edge] = x
    return saved


def _normalization(
    normalizer: Normalizer,
    norms: Sequence[nn.BatchNorm2d | None],
    stats: Sequence[BatchStats],
    affine: Sequence[Sequence[Tensor | None]],
) -> Normalization | None:
    """What the last BatchNorms of the candidates of a node do [M, 1, C]; None where there are none."""
    if not norms:
        return None
    joined = None
    if stats:
        mean, variance = (torch.cat(parts) for parts in ([s.mean for s in stats], [s.variance for s in stats]))
        joined = BatchStats(mean, variance, stats[0].values)
    return normalizer.normalization(norms, joined, [Affine(*each) for each in affine])  # type: ignore[arg-type]


def _sum(
    raws: list[Tensor], masks: Sequence[Tensor | None], norm: Normalization | None, like: Normalization | None
) -> Tensor:
    """A node [N, C, H', W'], of raw outputs of which the first ones are normalised; like: of any others."""
    tables = [] if norm is None else [(norm.folded_mean, norm.scale)]
    if bare := len(raws) - (0 if norm is None else len(norm.scale)):
        one = cast(Normalization, like).scale.new_ones(bare, 1, raws[0].shape[1])
        tables.append((torch.zeros_like(one), one))
    means, scales = tables[0] if len(tables) == 1 else (torch.cat(parts) for parts in zip(*tables, strict=True))
    return masked_sum(raws, means, scales, scales.new_ones(len(raws)), masks)


class _DerivedBackward:
    """A backward pass, from the last state to the first."""

    def __init__(self, layout: DerivedLayout, batch: bool, saved: SavedDerivedCell) -> None:
        self.layout, self.batch, self.saved = layout, batch, saved
        self.raws: dict[int, Tensor] = {}  # of each edge [N, C, H', W']
        self.grads: dict[int, Tensor] = {}  # of what each edge gives its node [N, C, H', W']
        self.coeffs: dict[int, Tensor] = {}  # [1, 4, C] of each edge
        self.grad_weights: list[list[Tensor]] = [[] for _ in saved.weights]
        self.grad_affine: list[list[Tensor]] = [[] for _ in range(2 + len(layout.norms))]
        self.first_read = [2]  # of each state, among the branches
        for state, reads in enumerate(layout.reads):
            for place, read in enumerate(reads, self.first_read[state]):
                raws = read.branch.raw(saved.outputs[place], saved.states[state])
                self.raws |= dict(zip(read.edges, raws, strict=True))
            self.first_read.append(self.first_read[-1] + len(reads))

    def run(self, grads: Sequence[Tensor | None]) -> list[Tensor]:
        """From the gradients of what leaves the cell to those of the tensors of its forward pass, as one flat list."""
        outside = dict(zip(self.layout.concat, grads, strict=True))
        grad_inputs: list[list[Tensor]] = [[], []]
        for state in reversed(range(len(self.saved.states))):
            total = self._through_state(state, outside.get(state))
            if state >= 2:
                self._through_node(state, total)
            else:
                grad_inputs[state] = self._through_preprocess(state, total)
        return flattened([grad_inputs, self.grad_weights, self.grad_affine])

    def _through_state(self, state: int, outside: Tensor | None) -> Tensor:
        """The gradient of a state [N, C, H, W], from outside and from all that read it."""
        x = self.saved.states[state]
        addends: list[Tensor] = []
        if outside is not None:
            # A slice of channels needs no copy: the channels of a pixel are adjacent. One value for all pixels does,
            # once instead of in every operator that reads it.
            adjacent = outside.stride(1) == 1 and outside.stride(3) >= outside.shape[1]
            addends.append(outside if adjacent else outside.contiguous(memory_format=torch.channels_last))
        pools: BackwardPass | None = None
        for place, read in enumerate(self.layout.reads[state], self.first_read[state]):
            coeffs = [self.coeffs[edge] for edge in read.edges]
            back = BackwardPass(
                states=[x],
                grads=[self.grads[edge] for edge in read.edges],
                coeffs=coeffs[0] if len(coeffs) == 1 else torch.cat(coeffs),
                batch=self.batch,
            )
            self.grad_weights[place] = read.branch.backward(back, self.saved.outputs[place], self.saved.weights[place])
            addends += back.grad_states
            pools = back if back.entries else pools
        addends += [self.grads[edge] for edge in self.layout.skips[state]]
        if pools is not None:
            pools.grad_states = addends
            return pools.total(self.layout.strides[state])
        if len(addends) == 1:
            return addends[0]
        if not addends:
            return torch.zeros_like(x)
        ones = self._like().new_ones(len(addends), 1, x.shape[1])  # [K, 1, C]
        return cast(Tensor, _node_sum(addends, torch.zeros_like(ones), ones, ones[None, :, 0, 0], [], None, 1))

    def _through_node(self, state: int, grad: Tensor) -> None:
        """From the gradient of a node to what the branches that lead to it need."""
        edges, norm = self.layout.nodes[state - 2], self.saved.norms[state]
        for edge in edges.all:
            mask = self.saved.masks[edge]
            self.grads[edge] = grad if mask is None else grad * mask.to(grad.dtype).view(-1, 1, 1, 1)
        if norm is not None:
            raws, grads = ([of_edge[edge] for edge in edges.normalised] for of_edge in (self.raws, self.grads))
            coeffs, of_affine = self._through_norms(grads, raws, norm)
            for place, edge in enumerate(edges.normalised):
                self.coeffs[edge], self.grad_affine[2 + edge] = coeffs[place : place + 1], of_affine[place]
        if edges.bare:
            one = self._like().new_zeros(1, 4, grad.shape[1])
            one[:, 0].fill_(1)
            self.coeffs |= dict.fromkeys(edges.bare, one)

    def _through_preprocess(self, index: int, grad: Tensor) -> list[Tensor]:
        """The gradients of the parts of an input [N, C_i, H_i, W_i]."""
        branch, output, parts = self.layout.preprocess[index], self.saved.outputs[index], self.saved.inputs[index]
        norm = cast(Normalization, self.saved.norms[index])
        coeffs, (self.grad_affine[index],) = self._through_norms([grad], branch.raw(output, parts[0]), norm)
        back = BackwardPass(parts, [grad], coeffs, self.batch)
        self.grad_weights[index] = branch.backward(back, output, self.saved.weights[index])
        return back.grad_states

    def _through_norms(
        self, grads: Sequence[Tensor], raws: Sequence[Tensor], norm: Normalization
    ) -> tuple[Tensor, list[list[Tensor]]]:
        """From the gradients of what is normalised to the coefficients of the raw outputs [M, 4, C], and to the
        gradients of γ, β and the shift of each."""
        mean, rstd, scale = norm.mean[:, 0], norm.rstd[:, 0], norm.scale[:, 0]  # [M, C]
        coeffs = mean.new_empty(len(raws), 4, mean.shape[1])
        count = count_values(raws[0]) if self.batch else 0
        of_affine: list[list[Tensor]] = []
        alike = all(grad is grads[0] for grad in grads)  # then it is read once
        for part in [slice(0, len(raws))] if alike else [slice(i, i + 1) for i in range(len(raws))]:
            _, sum_dy, sum_dy_xhat, _ = _node_sum_grad(
                grads[part.start], raws[part], norm.mean[part], norm.rstd[part], []
            )  # [C], [M, C]
            norm_rows_grad(sum_dy, sum_dy_xhat, mean[part], rstd[part], scale[part], count, coeffs[part])
            # Zeros and not None: an optimizer decays a bias whose gradient is 0.
            shifts = torch.zeros_like(sum_dy_xhat) if self.batch else scale[part] * sum_dy  # [M, C]
            of_affine += [[sum_dy_xhat[i], sum_dy, shifts[i]] for i in range(len(shifts))]
        return coeffs, of_affine

    def _like(self) -> Tensor:
        """A tensor in the dtype of sums."""
        return cast(Normalization, self.saved.norms[0]).scale


def fused_derived_cell(
    layout: DerivedLayout, s0: States, s1: States, masks: Sequence[Tensor | None]
) -> tuple[Tensor, ...] | None:
    """What leaves a cell, or None where nothing is differentiated or the operators cannot compute it.

    Args:
        layout: of the cell.
        s0, s1: the inputs [N, C_i, H_i, W_i], or their parts.
        masks: [N] of each edge, factors of the images by drop path; None for ones.

    Returns:
        The states of `concat` [N, C, H', W'], channels-last.
    """
    inputs = [s if isinstance(s, tuple) else (s,) for s in (s0, s1)]
    x = inputs[1][0]
    if not (layout.known and can_fuse(x) and torch.is_grad_enabled()):
        return None
    if not all(is_known(norm) for norm in layout.all_norms) or len({_mode(norm) for norm in layout.all_norms}) != 1:
        return None
    batch = uses_batch(layout.all_norms[0])
    if batch and x.shape[0] * math.ceil(x.shape[2] / 2) * math.ceil(x.shape[3] / 2) <= 1:
        return None  # perhaps one value per channel, which BatchNorm refuses
    dtype = computation_dtype(x)
    acc = acc_dtype(dtype)
    affine: list[Affine | tuple[()]] = [*(branch.affine() for branch in layout.preprocess), *([()] * len(layout.norms))]
    for read in layout.all_reads():
        for place, edge in enumerate(read.edges):
            if layout.norms[edge] is not None:
                affine[2 + edge] = read.branch.affine(place)
    weights = [branch.weights() for branch in layout.branches()]
    learned = [
        [[None if each is None else each.to(acc) for each in some] for some in lists] for lists in (weights, affine)
    ]
    parts = [[part.to(dtype).contiguous(memory_format=torch.channels_last) for part in each] for each in inputs]
    lists = [parts, *learned]
    dropped = [None if mask is None else mask.to(acc) for mask in masks]
    normalizer = Normalizer(batch, acc)
    nodes = _DerivedCell.apply(layout, normalizer, structure_of(lists), dropped, *flattened(lists))
    normalizer.follow()
    return cast(tuple[Tensor, ...], nodes)


def _mode(norm: nn.BatchNorm2d) -> tuple[bool, bool, float, float | None]:
    """What all normalisations of a cell must have in common."""
    return norm.training, norm._buffers["running_mean"] is None, norm.eps, norm.momentum
