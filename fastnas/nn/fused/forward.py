"""The forward pass of a fused cell; see `fused_cell`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import cast

import torch
from torch import Tensor

import fastnas.ops.halve  # noqa: F401  (registers torch.ops.fastnas)
from fastnas.nn.fused.plan import CellLayout, CellWeights, StatePlan
from fastnas.ops.layout import empty_images

_stage = torch.ops.fastnas.stage.default
_halve = torch.ops.fastnas.halve.default
_pool = torch.ops.fastnas.pool.default
_preprocess = torch.ops.fastnas.preprocess.default
_node_sum = torch.ops.fastnas.node_sum.default
_node_sum_into = torch.ops.fastnas.node_sum_into.default

FOLDING = frozenset({"cpu"})
"""Devices on which constant statistics are folded into `preprocess`. On a GPU the channel of ones that it takes would
keep the others from being read 16 bytes at a time."""

Moments = tuple[Tensor, Tensor]  # mean and variance [.., P, C]


@dataclass(frozen=True)
class Settings:
    """How a cell is run: what does not change from step to step."""

    batch: bool  # normalise by the batch; else by running statistics
    individuals: int  # P
    shared: tuple[bool, bool]  # whether each input is the same for all individuals
    parts: int  # k of the partial channels
    eps: float


@dataclass
class Running:
    """Running statistics, where they are what normalises."""

    preprocess: list[Moments]  # [1, C]
    first: list[Moments]  # of each state, [seconds, 1, C/k]
    rows: Moments  # of the rows that are normalised, [.., 1, C/k]


@dataclass
class Batch:
    """Statistics [norms, C] that were taken of `count` values each."""

    mean: Tensor
    variance: Tensor
    count: int


def count(images: Tensor) -> int:
    """Values of a channel of [N, C, H, W]."""
    return images.numel() // max(1, images.shape[1])


@dataclass
class Outputs:
    """The raw outputs of the candidates that read one state, for its nodes and for the backward pass."""

    pools: list[Tensor] = field(default_factory=list)  # average and maximum, or nothing
    stages: list[Tensor] = field(default_factory=list)
    first: list[Tensor] = field(default_factory=list)  # mean and rstd [seconds, P, C] of the inputs of second stages
    seconds: list[Tensor] = field(default_factory=list)
    reduces: list[Tensor] = field(default_factory=list)  # one tensor, the candidates side by side in its channels

    def place(self, rows: list[Tensor | None], plan: StatePlan, x: Tensor) -> None:
        """Enters the candidates into the rows of their nodes; x: the channels of the state that they see."""
        for kind, _, row in plan.pools:
            rows[row] = self.pools[kind]
        for _, row in plan.skips:
            rows[row] = x
        for stage, _, row in plan.targets:
            rows[row] = self.stages[stage]
        for index, (_, _, row, _) in enumerate(plan.seconds):
            rows[row] = self.seconds[index]
        for index, (_, row, _) in enumerate(plan.reduces):
            rows[row] = self.reduces[0].narrow(1, index * x.shape[1], x.shape[1])


class Forward:
    """One pass over a cell; `output` is its result, `batches` what running statistics follow.

    Args:
        plan, settings: what is computed, and how.
        inputs: [N, C_i, H_i, W_i], of B images where all individuals share them.
        op_weights: [P, K], of the rows.
        edge_weights: [P, E], of the channels that pass the candidates; ones by default.
        weights: of the convolutions.
        running: the statistics that normalise, unless the batch's do.
        keep: whether the backward pass will need the outputs of the candidates.
    """

    def __init__(
        self,
        plan: CellLayout,
        settings: Settings,
        inputs: Sequence[Tensor],
        op_weights: Tensor,
        edge_weights: Tensor | None,
        weights: CellWeights,
        running: Running | None,
        keep: bool,
    ) -> None:
        self.plan, self.settings, self.weights, self.running, self.keep = plan, settings, weights, running, keep
        self.op_weights, self.edge_weights = op_weights, edge_weights
        self.images = inputs[0].shape[0] // self._individuals(0)  # B
        self.batches: list[Batch] = []  # in the order of CellPlan.norms
        self.preprocess_rstd: list[Tensor] = []  # [P, C]
        self.states = [self._preprocess(index, x) for index, x in enumerate(inputs)]  # [N or B, C, H, W]
        shape = (3, len(plan.row_norms), settings.individuals, self.states[0].shape[1] // settings.parts)
        self.table = op_weights.new_zeros(shape)  # mean, variance, rstd of the rows [K, P, C/k]
        self.table[2].fill_(1)
        if running is not None:
            self._enter(plan.normalised_rows, *running.rows)
        self.mean, self.variance, self.rstd = self.table  # views
        self.rows: list[Tensor | None] = [None] * len(plan.row_norms)
        self.outputs: list[Outputs] = []
        self.bypass: list[Tensor] = []
        # Nodes are written where they belong in the output, unless an operator's result is wanted to differentiate it.
        self._written: Tensor | None = None
        for source, state in enumerate(plan.states):
            if source >= 2:
                self.states.append(self._node(source - 2))
            self._candidates(source, state)
        self.states.append(self._node(len(plan.states) - 2))
        self.output = torch.cat(self.states[2:], 1) if self._written is None else self._written  # [N, nodes·C, H', W']
        if running is None:
            rows = plan.normalised_rows
            self.batches.append(Batch(self.mean[rows, 0], self.variance[rows, 0], count(self.output)))

    def _individuals(self, source: int) -> int:
        return 1 if source < 2 and self.settings.shared[source] else self.settings.individuals

    def _rstd(self, variance: Tensor) -> Tensor:
        return torch.rsqrt(variance + self.settings.eps)

    def _preprocess(self, index: int, x: Tensor) -> Tensor:
        running = None if self.running is None else self.running.preprocess[index]
        individuals = self._individuals(index)
        state, rstd, batch = preprocess(self.settings, individuals, x, self.weights.preprocess[index], running)
        self.preprocess_rstd.append(rstd)
        if batch is not None:
            self.batches.append(batch)
        return state

    def _candidates(self, source: int, plan: StatePlan) -> None:
        individuals, batch, weights = self._individuals(source), self.settings.batch, self.weights
        state = self.states[source]  # [N, C, H, W]
        channels = self.mean.shape[-1]
        x = state.narrow(1, 0, channels)  # [N, C/k, H, W]
        out = Outputs()
        moments: list[Moments] = []
        if plan.pools:
            normalised = batch and plan.pools_normalised
            average, maximum, *of_pools = _pool(x, plan.stride, individuals, normalised)
            out.pools = [average, maximum]
            if normalised:
                moments.append((of_pools[0], of_pools[1]))
        if plan.stages:
            taps, matrices = weights.depthwise[source], weights.pointwise[source]
            out.stages, mean, variance = _stage(
                [x], None, None, taps, matrices, plan.dilations, plan.stride, individuals, batch, batch
            )
            moments.append((mean, variance))
        if plan.seconds:
            if self.running is not None:
                mean, variance = (part.expand(-1, individuals, -1) for part in self.running.first[source])
            else:
                mean, variance = mean[plan.first_index], variance[plan.first_index]  # [seconds, P, C/k]
                self.batches.append(Batch(mean[:, 0], variance[:, 0], count(out.stages[0])))
            out.first = [mean.contiguous(), self._rstd(variance)]
            inputs = [out.stages[first] for first in plan.firsts]
            taps, matrices = weights.second_depthwise[source], weights.second_pointwise[source]
            out.seconds, mean, variance = _stage(
                inputs, *out.first, taps, matrices, plan.second_dilations, 1, individuals, batch, batch
            )
            moments.append((mean, variance))
        if plan.reduces:
            offsets = [0, 1] * len(plan.reduces)
            raw, mean, variance = _preprocess([x], weights.reduce[source], offsets, 2, individuals, batch)
            out.reduces = [raw]  # [N, reduces·C/k, H', W']
            if batch:
                mean, variance = (part.unflatten(-1, (-1, channels)).transpose(0, 1) for part in (mean, variance))
                moments.append((mean, variance))
        if batch and len(plan.entry_rows):
            mean, variance = (
                torch.cat(parts).index_select(0, plan.entry_places) for parts in zip(*moments, strict=True)
            )
            self._enter(plan.entry_rows, mean, variance)
        out.place(self.rows, plan, x)
        if self.keep:
            self.outputs.append(out)
        if self.settings.parts > 1 and (source < 2 or self.edge_weights is not None):
            self.bypass.append(bypass(state, channels, plan.stride))

    def _enter(self, rows: Tensor, mean: Tensor, variance: Tensor) -> None:
        """Statistics [rows, P or 1, C/k] into the tables."""
        self.table[:, rows] = torch.stack([mean, variance, self._rstd(variance)])

    def _node(self, index: int) -> Tensor:
        part = slice(*self.plan.first_row[index : index + 2])
        rows, individuals = self.rows[part], self.settings.individuals
        edges = None if self.edge_weights is None else self.edge_weights[:, incoming(index)].contiguous()
        bypass, previous = bypassing(self.settings, edges, index, self.bypass, self.states[-1])
        mean, rstd, weights = self.mean[part], self.rstd[part], self.op_weights[:, part]
        if torch.compiler.is_compiling():
            # Autograd keeps the tables, and other rows of them are still to change.
            mean, rstd = mean.clone(), rstd.clone()
            normalised = self.plan.normalised(self.settings.batch)[part]
            return _node_sum(rows, mean, rstd, weights, bypass, edges, individuals, self.images, normalised, previous)
        nodes, channels = len(self.plan.states) - 1, self.states[0].shape[1]
        if self._written is None:
            shape = (individuals * self.images, nodes * channels, *cast(Tensor, rows[0]).shape[2:])
            self._written = empty_images(self.states[0], shape)
        node = self._written.narrow(1, index * channels, channels)
        _node_sum_into(node, rows, mean, rstd, weights, bypass, edges, individuals, self.images, previous)
        if not self.keep:
            self.rows[part] = [None] * len(rows)
        return node


def preprocess(
    settings: Settings, individuals: int, x: Tensor, matrices: list[Tensor], running: Moments | None
) -> tuple[Tensor, Tensor, Batch | None]:
    """A state [N, C, H, W] of an input of a cell, its rstd [P, C], and its statistics where they are the batch's."""
    offsets, stride = ([0], 1) if len(matrices) == 1 else ([0, 1], 2)
    odd = x.shape[2] % 2 or x.shape[3] % 2  # what is beyond the edge is 0, whatever would be added
    if running is not None and x.device.type in FOLDING and not (stride == 2 and odd):
        # One pass: constants are folded into the matrices, and what is added is the weight of a channel of ones.
        mean, rstd = running[0], torch.rsqrt(running[1] + settings.eps)  # [1, C]
        table = rstd[0, :, None] * torch.cat([torch.cat(matrices), -mean[0, :, None]], 1)  # [C, C_i + 1]
        ones = torch.ones(x.shape[0], 1, *x.shape[2:], dtype=x.dtype, device=x.device)  # [N, 1, H, W]
        state, *_ = _preprocess([x, ones], list(table.chunk(len(matrices))), offsets, stride, individuals, False)
        return state, rstd.expand(individuals, -1), None
    raw, mean, variance = _preprocess([x], matrices, offsets, stride, individuals, running is None)  # [P, C]
    batch = None
    if running is not None:
        mean, variance = (part.expand(individuals, -1) for part in running)
    else:
        batch = Batch(mean, variance, count(raw))
    rstd = torch.rsqrt(variance + settings.eps)
    one = mean.new_ones(individuals, 1)
    images = raw.shape[0] // individuals
    state = _node_sum([raw], mean[None], rstd[None], one, [], None, individuals, images, [int(running is None)])
    return state, rstd, batch


def incoming(index: int) -> slice:
    """The edges that enter the intermediate node `index`, from 0."""
    first = index * (index + 3) // 2
    return slice(first, first + index + 2)


def bypassing(
    settings: Settings, edge_weights: Tensor | None, index: int, bypasses: list[Tensor], last: Tensor
) -> tuple[list[Tensor], Tensor | None]:
    """What bypasses the candidates of node `index`, as `node_sum` takes it.

    The channels of the states themselves, or for all nodes but the first the state before them, `last`, which passes on
    what bypassed it. Not so where edges have weights of their own.
    """
    if index == 0 or settings.parts == 1 or edge_weights is not None:
        return bypasses, None
    return [], last


def bypass(state: Tensor, channels: int, stride: int) -> Tensor:
    """What candidates do not see of a state [N, C, H, W]: the channels from `channels` on, halved at stride 2."""
    return _halve(state, channels) if stride == 2 else state.narrow(1, channels, state.shape[1] - channels)
