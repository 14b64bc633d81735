"""The forward pass of a fused cell; see `cell`."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

import fastnas.ops.halve  # noqa: F401  (registers torch.ops.fastnas)
from fastnas.nn.fused.batch_norm import BatchStats, Normalizer, count_values
from fastnas.nn.fused.branch import BranchOutput, ForwardPass
from fastnas.nn.fused.patterns import PointwisePattern
from fastnas.nn.fused.plan import CellLayout, CellWeights
from fastnas.ops.layout import empty_images
from fastnas.ops.norm_rows import norm_rows

_halve = torch.ops.fastnas.halve.default
_preprocess = torch.ops.fastnas.preprocess.default
_node_sum = torch.ops.fastnas.node_sum.default
_node_sum_into = torch.ops.fastnas.node_sum_into.default

FOLDING = frozenset({"cpu"})
"""Devices on which constant statistics are folded into `preprocess`. On a GPU the channel of ones that this needs would
keep the others from being read 16 bytes at a time."""


@dataclass(frozen=True)
class Settings:
    """How a cell is run: what does not change from step to step."""

    batch: bool  # normalise by the batch; else by running averages
    individuals: int  # P
    shared: tuple[bool, bool]  # whether each input is the same for all individuals
    parts: int  # k of the partial channels
    eps: float

    def individuals_of(self, state: int) -> int:
        """How many individuals the images of a state belong to."""
        return 1 if state < 2 and self.shared[state] else self.individuals


@dataclass
class ForwardResult:
    """What one pass over a cell gives, and what its backward pass needs."""

    output: Tensor  # [N, nodes·C, H', W']
    states: list[Tensor]  # [N or B, C, H, W], of the inputs and the nodes
    mean: Tensor  # [K, P, C/k] of the rows
    rstd: Tensor  # [K, P, C/k]
    preprocess_rstd: list[Tensor]  # [P, C]
    branches: list[list[BranchOutput]]  # by state; none unless they are kept


def run_forward(
    layout: CellLayout,
    settings: Settings,
    inputs: Sequence[Tensor],
    op_weights: Tensor,
    edge_weights: Tensor | None,
    weights: CellWeights,
    normalizer: Normalizer,
    keep: bool,
    masks: Tensor | None = None,
) -> ForwardResult:
    """One pass over a cell.

    Args:
        layout, settings: what is computed, and how.
        inputs: [N, C_i, H_i, W_i], of B images where all individuals share them.
        op_weights: [P, K], of the rows.
        edge_weights: [P, E], of the channels that bypass the candidates; ones by default.
        weights: of the convolutions.
        normalizer: gives and collects statistics.
        keep: whether the backward pass will need the outputs of the candidates.
        masks: [E, N], factors of whole edges for each image, for one individual; then bypassing channels have weights.
    """
    individuals, indices = settings.individuals, layout.indices.tensors()
    images = inputs[0].shape[0] // settings.individuals_of(0)  # B
    states: list[Tensor] = []  # [N or B, C, H, W]
    preprocess_rstd: list[Tensor] = []  # [P, C]
    for index, x in enumerate(inputs):
        pattern, matrices = layout.preprocess[index], weights.preprocess[index]
        state, rstd_of_input = preprocess(normalizer, settings.individuals_of(index), x, pattern, matrices)
        states.append(state)
        preprocess_rstd.append(rstd_of_input)
    channels = states[0].shape[1]
    seen = channels // settings.parts  # by the candidates, C/k
    table = op_weights.new_zeros(3, len(layout.row_norms), individuals, seen)  # mean, variance, rstd of the rows
    table[2].fill_(1)
    row_norms = [norm for norm in layout.row_norms if norm is not None]
    if not settings.batch and row_norms:
        mean, variance, _ = normalizer.running(row_norms)  # [norms, 1, C/k]
        entries = torch.stack([mean, variance, torch.rsqrt(variance + settings.eps)])  # [3, norms, 1, C/k]
        table[:, indices[layout.normalised_rows]] = entries
    mean, variance, rstd = table  # views
    kept: list[list[BranchOutput]] = []
    rows: list[Tensor | None] = [None] * len(layout.row_norms)
    bypasses: list[Tensor] = []
    of_images = None if masks is None else op_weights * masks_of_rows(layout, masks).T  # [N, K]
    # Nodes are written straight into the output, except under torch.compile, which differentiates `node_sum` itself.
    written: Tensor | None = None
    for source, plan in enumerate(layout.states):
        state = states[source]
        x = state.narrow(1, 0, seen)  # [N, C/k, H, W]
        run = ForwardPass(normalizer, settings.individuals_of(source), indices)
        outputs: list[BranchOutput] = []
        stats: list[BatchStats] = []
        for branch, of_branch in zip(plan.branches, weights.branches[source], strict=True):
            of_output, of_stats = branch.forward(run, [x], of_branch)
            outputs.append(of_output)
            stats += of_stats
            for slot, y in zip(branch.slots, branch.raw(of_output, x), strict=True):
                rows[slot.row] = y
        if settings.batch and plan.stat_rows:
            means, variances = [each.mean for each in stats], [each.variance for each in stats]
            norm_rows(means, variances, plan.stat_places, plan.stat_rows, settings.eps, table)
        if keep:
            kept.append(outputs)
        if settings.parts > 1 and (source < 2 or edge_weights is not None):
            bypasses.append(bypass(state, seen, plan.stride))
        if source == 0:
            continue
        node = source - 1  # all of its edges are there now
        part = slice(*layout.first_row[node : node + 2])
        edges = None if edge_weights is None else edge_weights[:, incoming(node)].contiguous()
        bypassing, prev_node = bypassing_of(settings, edges, node, bypasses, state)
        of_node = rows[part], mean[part], rstd[part], op_weights[:, part]
        shares = individuals, images
        if masks is not None and of_images is not None:
            # Every image is an individual of its own, with weights of its own.
            shares = images, 1
            # [K, N, C/k] each
            of_mean, of_rstd = (table[part].expand(-1, images, -1).contiguous() for table in (mean, rstd))
            of_node = rows[part], of_mean, of_rstd, of_images[:, part].contiguous()
            edges = None if edges is None else (edges * masks[incoming(node)].T).contiguous()  # [N, E]
        if torch.compiler.is_compiling():
            # Autograd saves the tables, of which other rows are still to be written.
            candidates, of_mean, of_rstd, of_weights = of_node
            normalised = layout.normalised(settings.batch)[part]
            tables = of_mean.clone(), of_rstd.clone(), of_weights, bypassing, edges, individuals, images
            states.append(_node_sum(candidates, *tables, normalised, prev_node))
            continue
        if written is None:
            size = cast(Tensor, rows[part][0]).shape[2:]
            written = empty_images(states[0], (individuals * images, (len(layout.states) - 1) * channels, *size))
        states.append(written.narrow(1, node * channels, channels))
        _node_sum_into(states[-1], *of_node, bypassing, edges, *shares, prev_node)
        if not keep:
            rows[part] = [None] * len(rows[part])
    output = torch.cat(states[2:], 1) if written is None else written
    if settings.batch and row_norms:
        of_norms = indices[layout.normalised_rows]
        normalizer.record(row_norms, BatchStats(mean[of_norms], variance[of_norms], count_values(output)))
    return ForwardResult(output, states, mean, rstd, preprocess_rstd, kept)


def masks_of_rows(layout: CellLayout, masks: Tensor) -> Tensor:
    """masks [E, N] of the edges → [K, N] of the rows."""
    counts = [last - first for first, last in itertools.pairwise(layout.first_row_of_edge)]
    return torch.cat([mask.expand(count, -1) for mask, count in zip(masks.split(1), counts, strict=True)])


def preprocess(
    normalizer: Normalizer, individuals: int, x: Tensor, pattern: PointwisePattern, matrices: list[Tensor]
) -> tuple[Tensor, Tensor]:
    """A state [N, C, H, W] of an input of a cell, and its rstd [P, C]."""
    offsets, stride = list(range(pattern.stride)), pattern.stride
    odd = x.shape[2] % 2 or x.shape[3] % 2  # beyond the edge the ones are 0, too: no offset
    batch = normalizer.batch
    if not batch and x.device.type in FOLDING and not (stride == 2 and odd):
        # One pass: constants are folded into the matrices, and the offset is the weight of a channel of ones.
        mean, rstd, *_ = normalizer.normalization([pattern.norm], None)  # [1, 1, C]
        table = rstd[0, 0, :, None] * torch.cat([torch.cat(matrices), -mean[0, 0, :, None]], 1)  # [C, C_i + 1]
        ones = torch.ones(x.shape[0], 1, *x.shape[2:], dtype=x.dtype, device=x.device)  # [N, 1, H, W]
        state, *_ = _preprocess([x, ones], list(table.chunk(len(matrices))), offsets, stride, individuals, False)
        return state, rstd[0].expand(individuals, -1)
    raw, mean, variance = _preprocess([x], matrices, offsets, stride, individuals, batch)  # [P, C]
    stats = BatchStats(mean[None], variance[None], count_values(raw)) if batch else None
    mean, rstd, *_ = normalizer.normalization([pattern.norm], stats, (), individuals)  # [1, P, C]
    one = mean.new_ones(individuals, 1)
    images = raw.shape[0] // individuals
    state = _node_sum([raw], mean, rstd, one, [], None, individuals, images, [int(batch)])
    return state, rstd[0]


def incoming(node: int) -> slice:
    """The edges that enter the intermediate node `node`, counted from 0."""
    first = node * (node + 3) // 2
    return slice(first, first + node + 2)


def bypassing_of(
    settings: Settings, edge_weights: Tensor | None, node: int, bypasses: list[Tensor], prev_node: Tensor
) -> tuple[list[Tensor], Tensor | None]:
    """What bypasses the candidates of a node, as `node_sum` takes it.

    Either the bypassing channels of every earlier state; or, for all nodes but the first and without edge weights, the
    previous node, whose groups from 1 on hold the sum of what bypassed it.
    """
    if node == 0 or settings.parts == 1 or edge_weights is not None:
        return bypasses, None
    return [], prev_node


def bypass(state: Tensor, channels: int, stride: int) -> Tensor:
    """What candidates do not see of a state [N, C, H, W]: the channels from `channels` on, halved at stride 2."""
    return _halve(state, channels) if stride == 2 else state.narrow(1, channels, state.shape[1] - channels)
