"""A cell of the supernet on the fused operators, forward and backward.

Plain torch writes a tensor after every ReLU, convolution, normalisation, product and addition. Here a state is read
once for all candidates that leave it (`stage`, `pool`, `preprocess`), their raw outputs are written once, and a node is
one sum over all of them that normalises on the way (`node_sum`). Nothing normalised or weighted is stored but states.

The backward pass goes through the states from the last to the first. Once the gradient G of a node is known, that of a
raw output y is a·G + b·(y - mean) + c with numbers a, b, c for each channel: the weight of the candidate and the
backward pass of BatchNorm in one (b = c = 0 where statistics are constants). It is not stored either: operators are
given G, y and the numbers, a row (a, b, mean, c) of a table [K, 4, C] for each candidate.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

import fastnas.ops  # noqa: F401  (registers torch.ops.fastnas)
from fastnas.nn.batch_norm import BatchNorm
from fastnas.nn.cell_plan import CellPlan, CellWeights, StatePlan

if TYPE_CHECKING:
    from fastnas.nn.cell import SearchCell

_stage = torch.ops.fastnas.stage.default
_stage_grad = torch.ops.fastnas.stage_grad.default
_pool = torch.ops.fastnas.pool.default
_pool_grad = torch.ops.fastnas.pool_grad.default
_preprocess = torch.ops.fastnas.preprocess.default
_preprocess_grad = torch.ops.fastnas.preprocess_grad.default
_node_sum = torch.ops.fastnas.node_sum.default
_node_sum_into = torch.ops.fastnas.node_sum_into.default
_node_sum_grad = torch.ops.fastnas.node_sum_grad.default
_bypass_grad = torch.ops.fastnas.bypass_grad.default

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
        weights: of the convolutions.
        running: the statistics that normalise, unless the batch's do.
        keep: whether the backward pass will need the outputs of the candidates.
    """

    def __init__(
        self,
        plan: CellPlan,
        settings: Settings,
        inputs: Sequence[Tensor],
        op_weights: Tensor,
        weights: CellWeights,
        running: Running | None,
        keep: bool,
    ) -> None:
        self.plan, self.settings, self.weights, self.running, self.keep = plan, settings, weights, running, keep
        self.op_weights = op_weights
        self.images = inputs[0].shape[0] // self._individuals(0)  # B
        self.batches: list[Batch] = []  # in the order of CellPlan.all_norms
        self.preprocess_rstd: list[Tensor] = []  # [1, P, C]
        self.states = [self._preprocess(index, x) for index, x in enumerate(inputs)]  # [N or B, C, H, W]
        shape = (3, len(plan.row_norms), settings.individuals, self.states[0].shape[1] // settings.parts)
        self.table = op_weights.new_zeros(shape)  # mean, variance, rstd of the rows [K, P, C/k]
        self.table[2] = 1
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
        individuals, batch = self._individuals(index), self.settings.batch
        matrices = self.weights.preprocess[index]
        offsets, stride = ([0], 1) if len(matrices) == 1 else ([0, 1], 2)
        raw, mean, variance = _preprocess([x], matrices, offsets, stride, individuals, batch)  # [N, C, H, W], [P, C]
        if self.running is not None:
            mean, variance = (part.expand(individuals, -1) for part in self.running.preprocess[index])
        else:
            self.batches.append(Batch(mean, variance, count(raw)))
        rstd = self._rstd(variance)
        self.preprocess_rstd.append(rstd)
        one = mean.new_ones(individuals, 1)
        images = raw.shape[0] // individuals
        return _node_sum([raw], mean[None], rstd[None], one, [], None, individuals, images, [int(batch)])

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
        if self.settings.parts > 1:
            self.bypass.append(bypass(state, channels, plan.stride))

    def _enter(self, rows: Tensor, mean: Tensor, variance: Tensor) -> None:
        """Statistics [rows, P or 1, C/k] into the tables."""
        self.table[:, rows] = torch.stack([mean, variance, self._rstd(variance)])

    def _node(self, index: int) -> Tensor:
        part = slice(*self.plan.first_row[index : index + 2])
        rows, individuals = self.rows[part], self.settings.individuals
        mean, rstd, weights = self.mean[part], self.rstd[part], self.op_weights[:, part]
        if torch.compiler.is_compiling():
            # Autograd keeps the tables, and other rows of them are still to change.
            mean, rstd = mean.clone(), rstd.clone()
            normalised = self.plan.normalised(self.settings.batch)[part]
            return _node_sum(rows, mean, rstd, weights, self.bypass, None, individuals, self.images, normalised)
        nodes, channels = len(self.plan.states) - 1, self.states[0].shape[1]
        if self._written is None:
            shape = (individuals * self.images, nodes * channels, *cast(Tensor, rows[0]).shape[2:])
            like = self.states[0]
            self._written = torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=torch.channels_last)
        node = self._written.narrow(1, index * channels, channels)
        _node_sum_into(node, rows, mean, rstd, weights, self.bypass, None, individuals, self.images)
        if not self.keep:
            self.rows[part] = [None] * len(rows)
        return node


def bypass(state: Tensor, channels: int, stride: int) -> Tensor:
    """What candidates do not see of a state [N, C, H, W]: the channels from `channels` on, pooled 2×2 at stride 2."""
    rest = state.narrow(1, channels, state.shape[1] - channels)
    return rest if stride == 1 else F.max_pool2d(rest, 2, 2, ceil_mode=True)


class Backward:
    """The gradients of a cell: those of the inputs, of the weights of the rows [1, K] and of the convolutions.

    Args:
        states: of the forward pass, all of them; inputs: as they came.
        mean, rstd: [K, 1, C/k] of the rows.
        grad: [N, nodes·C, H', W'].
    """

    def __init__(
        self,
        plan: CellPlan,
        settings: Settings,
        inputs: Sequence[Tensor],
        states: Sequence[Tensor],
        outputs: Sequence[Outputs],
        op_weights: Tensor,
        weights: CellWeights,
        mean: Tensor,
        rstd: Tensor,
        preprocess_rstd: Sequence[Tensor],
        grad: Tensor,
    ) -> None:
        self.plan, self.settings, self.weights = plan, settings, weights
        self.states, self.outputs, self.mean, self.rstd = states, outputs, mean, rstd
        channels = mean.shape[-1]
        self.rows: list[Tensor | None] = [None] * len(plan.row_norms)
        for state, part, out in zip(states, plan.states, outputs, strict=False):
            out.place(self.rows, part, state.narrow(1, 0, channels))
        self.scale = op_weights[0, :, None] * rstd[:, 0]  # [K, C/k]
        self.normalised = mean.new_tensor(plan.normalised(settings.batch))[:, None]  # [K, 1]
        self.table = mean.new_zeros(len(plan.row_norms), 4, channels)  # (a, b, mean, c) of each row
        self.table[:, 0] = self.scale
        self.table[:, 2] = mean[:, 0]
        self.grad_op_weights = torch.zeros_like(op_weights)  # [1, K]
        self.grad_weights = plan.arrange(weights.flat())  # replaced one after the other
        self.grads: dict[int, Tensor] = {}  # of each node [N, C, H', W']
        self.processed: dict[int, Tensor] = {}  # the part of it that the candidates contributed to [N, C/k, H', W']
        self.inputs: list[Tensor] = [grad, grad]
        width = states[2].shape[1]
        for source in reversed(range(len(states))):
            from_outside = [grad.narrow(1, (source - 2) * width, width)] if source >= 2 else []
            if source < len(plan.states):
                total = self._state(source, plan.states[source], from_outside)  # [N, C, H, W]
            else:
                total = from_outside[0]
            if source >= 2:
                self._node(source, total)
            else:
                self.inputs[source] = self._preprocess(source, inputs[source], preprocess_rstd[source], total)

    def _node(self, node: int, grad: Tensor) -> None:
        """From the gradient of a node to those of its weights, and to the numbers of its rows."""
        part = slice(*self.plan.first_row[node - 2 : node])
        processed, sums, dots, _ = _node_sum_grad(grad, self.rows[part], self.mean[part], self.rstd[part], [])
        self.grads[node] = grad
        self.processed[node] = grad if self.settings.parts == 1 else processed
        self.grad_op_weights[0, part] = dots.sum(1)
        share = self.scale[part] * self.normalised[part] / max(1, count(grad))  # [K, C/k]
        self.table[part, 1] = -share * self.rstd[part, 0] * dots
        self.table[part, 3] = -share * sums

    def _state(self, source: int, plan: StatePlan, from_outside: list[Tensor]) -> Tensor:
        """The gradient of a state, from all candidates that read it."""
        state, out = self.states[source], self.outputs[source]
        channels = self.mean.shape[-1]
        x = state.narrow(1, 0, channels)
        grads = [self.processed[node] for node in plan.nodes]
        addends = list(from_outside) if self.settings.parts == 1 else []
        if plan.stages:
            addends.append(self._stages(source, plan, x, grads))
        if plan.reduces:
            numbers = self.table[plan.reduce_rows].transpose(0, 1).flatten(1)  # [4, reduces·C/k]
            (grad_x,), self.grad_weights.reduce[source] = _preprocess_grad(
                [grads[node] for node, *_ in plan.reduces],
                out.reduces[0],
                numbers,
                [x],
                self.weights.reduce[source],
                [0, 1] * len(plan.reduces),
                2,
            )
            addends.append(grad_x)
        total = self._pools(plan, x, out, grads, addends)
        if self.settings.parts == 1:
            return total
        whole = [self.grads[node] for node in plan.nodes]
        ones = self.mean.new_ones(len(whole))
        if plan.stride == 1:
            return _bypass_grad(total, whole, ones, from_outside, channels)
        halved = _bypass_grad(None, whole, ones, [], channels)  # [N, C, H', W']
        rest = bypass_backward(state, channels, halved.narrow(1, channels, halved.shape[1] - channels))
        return torch.cat([total, rest], 1)  # only inputs are halved: nothing comes from outside

    def _stages(self, source: int, plan: StatePlan, x: Tensor, grads: list[Tensor]) -> Tensor:
        out, weights = self.outputs[source], self.weights
        into = self.grad_weights
        stage_grads = [x] * len(plan.stages)
        for stage, node, _ in plan.targets:
            stage_grads[stage] = grads[node]
        numbers = self.table[plan.stage_rows]
        if plan.seconds:
            mean, rstd = out.first  # [seconds, 1, C/k]
            seconds, into.second_depthwise[source], into.second_pointwise[source], sums = _stage_grad(
                [grads[node] for _, node, *_ in plan.seconds],
                out.seconds,
                self.table[plan.second_rows],
                [out.stages[first] for first in plan.firsts],
                mean,
                rstd,
                weights.second_depthwise[source],
                weights.second_pointwise[source],
                plan.second_dilations,
                1,
            )
            for first, grad in zip(plan.firsts, seconds, strict=True):
                stage_grads[first] = grad
            numbers[plan.first_index] = normalisation_numbers(mean[:, 0], rstd[:, 0], sums, self._count(out.stages[0]))
        (grad_x,), into.depthwise[source], into.pointwise[source], _ = _stage_grad(
            stage_grads,
            out.stages,
            numbers,
            [x],
            None,
            None,
            weights.depthwise[source],
            weights.pointwise[source],
            plan.dilations,
            plan.stride,
        )
        return grad_x

    def _pools(self, plan: StatePlan, x: Tensor, out: Outputs, grads: list[Tensor], addends: list[Tensor]) -> Tensor:
        """Everything that flows back through pools and identities, added to `addends`."""
        if not plan.pools and not plan.skips and len(addends) == 1:
            return addends[0]
        nodes, channels = len(grads), x.shape[1]
        scale = self.table[:, 0]  # [K, C/k]
        scales = self.table.new_zeros(2 * nodes, channels).index_add_(0, plan.pool_slots, scale[plan.pool_rows])
        skip = None
        if plan.skips:
            skip = self.table.new_zeros(nodes, channels).index_add_(0, plan.skip_nodes, scale[plan.skip_rows])
        outputs, corrections = [], None
        if self.settings.batch and plan.pools_normalised:
            rows, kinds = self.table[plan.normalised_pool_rows], plan.normalised_pool_kinds
            numbers = self.table.new_zeros(2, 4, channels).index_add_(0, kinds, rows)
            numbers[:, 2].index_copy_(0, kinds, rows[:, 2])  # one mean, whatever the edge
            outputs, corrections = out.pools, numbers[:, 1:]
        scales = scales.unflatten(0, (2, nodes))  # [2, nodes, C/k]
        return _pool_grad(x, grads, scales, outputs, corrections, skip, addends, plan.stride)

    def _preprocess(self, index: int, x: Tensor, rstd: Tensor, grad: Tensor) -> Tensor:
        state, matrices = self.states[index], self.weights.preprocess[index]
        zeros, ones = rstd.new_zeros(1, 1, state.shape[1]), rstd.new_ones(1, 1, state.shape[1])
        _, sums, dots, _ = _node_sum_grad(grad, [state], zeros, ones, [])
        # The normalised state stands for the raw output here: its mean is 0, and its slope has one factor rstd less.
        numbers = normalisation_numbers(zeros[0], rstd, torch.stack([sums, dots[0]])[None], self._count(state))[0]
        numbers[1] /= rstd[0]
        offsets, stride = ([0], 1) if len(matrices) == 1 else ([0, 1], 2)
        (grad_x,), self.grad_weights.preprocess[index] = _preprocess_grad(
            [grad], state, numbers, [x], matrices, offsets, stride
        )
        return grad_x

    def _count(self, images: Tensor) -> int:
        """Values of a channel that its statistics were taken of; 0 where they are constants."""
        return count(images) if self.settings.batch else 0


def normalisation_numbers(mean: Tensor, rstd: Tensor, sums: Tensor, values: int) -> Tensor:
    """The numbers [I, 4, C] by which the gradient of x̂ = (x - mean)·rstd becomes that of x.

    mean, rstd [I, C]; sums [I, 2, C]: Σ grad and Σ grad·x̂ over `values` values, 0 where mean and rstd are constants.
    """
    share = rstd / values if values else torch.zeros_like(rstd)
    return torch.stack([rstd, -share * rstd * sums[:, 1], mean, -share * sums[:, 0]], 1)


def bypass_backward(state: Tensor, channels: int, grad: Tensor) -> Tensor:
    """The gradient of `bypass` at stride 2."""
    rest = state.narrow(1, channels, state.shape[1] - channels).contiguous(memory_format=torch.channels_last)
    geometry: tuple[Any, ...] = ([2, 2], [2, 2], [0, 0], [1, 1], True)
    _, indices = torch.ops.aten.max_pool2d_with_indices(rest, *geometry)
    grad = grad.contiguous(memory_format=torch.channels_last)
    return torch.ops.aten.max_pool2d_with_indices_backward(grad, rest, *geometry, indices)


class _Cell(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        plan: CellPlan,
        settings: Settings,
        running: Running | None,
        batches: list[Batch],
        s0: Tensor,
        s1: Tensor,
        op_weights: Tensor,
        *weights: Tensor,
    ) -> Tensor:
        cell = Forward(plan, settings, (s0, s1), op_weights, plan.arrange(weights), running, keep=True)
        batches += cell.batches
        ctx.plan, ctx.settings, ctx.weights = plan, settings, len(weights)
        ctx.sizes = [[len(part) for part in vars(out).values()] for out in cell.outputs]
        saved = [tensor for out in cell.outputs for part in vars(out).values() for tensor in part]
        # The other states are slices of the output.
        ctx.save_for_backward(
            s0,
            s1,
            op_weights,
            *weights,
            cell.mean,
            cell.rstd,
            *cell.preprocess_rstd,
            *cell.states[:2],
            cell.output,
            *saved,
        )
        return cell.output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        plan, settings = ctx.plan, ctx.settings
        tensors = iter(ctx.saved_tensors)
        s0, s1, op_weights = (next(tensors) for _ in range(3))
        weights = plan.arrange([next(tensors) for _ in range(ctx.weights)])
        mean, rstd, rstd0, rstd1, state0, state1, output = (next(tensors) for _ in range(7))
        outputs = [Outputs(*([next(tensors) for _ in range(size)] for size in sizes)) for sizes in ctx.sizes]
        states = [state0, state1, *output.split(state0.shape[1], 1)]
        grad = grad.contiguous(memory_format=torch.channels_last)
        done = Backward(
            plan, settings, (s0, s1), states, outputs, op_weights, weights, mean, rstd, (rstd0, rstd1), grad
        )
        return None, None, None, None, *done.inputs, done.grad_op_weights, *done.grad_weights.flat()


_ALIKE = ("training", "images", "eps", "momentum")  # in what normalisations of a cell must agree


def fused_cell(cell: SearchCell, plan: CellPlan, s0: Tensor, s1: Tensor, op_weights: Tensor) -> Tensor | None:
    """The output of a cell as `SearchCell.forward` describes it, or None where the operators cannot compute it.

    s0, s1 [B, C, H, W] and op_weights [E, O]; for a population [P or 1, B, C, H, W] and [P, E, O].
    """
    training, images, eps, momentum = (getattr(plan.norms[0], name) for name in _ALIKE)
    alike = len({tuple(getattr(norm, name) for name in _ALIKE) for norm in plan.norms}) == 1
    if not (s0.is_cpu and s0.is_floating_point() and alike) or momentum is None:
        return None
    individuals = op_weights.shape[0] if s0.dim() == 5 else 1
    batch = training or images is not None
    if batch and images != s0.shape[-4] and (individuals > 1 or images is not None):
        return None  # one batch of all individuals, or several of one: statistics that the operators do not take
    stride = plan.states[0].stride
    if training and s1.shape[-4] * math.ceil(s1.shape[-2] / stride) * math.ceil(s1.shape[-1] / stride) == 1:
        return None  # one value per channel, which BatchNorm refuses
    weights = plan.weights().flat()
    differentiable = torch.is_grad_enabled() and any(t.requires_grad for t in (s0, s1, op_weights, *weights))
    if differentiable and individuals > 1:
        return None
    lowered = torch.is_autocast_enabled("cpu") and s0.dtype != torch.float64  # which autocast leaves alone
    dtype = torch.get_autocast_dtype("cpu") if lowered else s0.dtype
    numbers = torch.float64 if dtype == torch.float64 else torch.float32
    inputs = [s.flatten(0, -4).to(dtype).contiguous(memory_format=torch.channels_last) for s in (s0, s1)]
    shared = individuals > 1 and s0.shape[0] == 1, individuals > 1 and s1.shape[0] == 1
    settings = Settings(batch, individuals, shared, cell.partial_channels, eps)
    weights = [weight if weight.dtype == numbers else weight.to(numbers) for weight in weights]
    rows = op_weights.reshape(individuals, -1).index_select(1, plan.columns).to(numbers)  # [P, K]
    running = None if batch else _running(plan, numbers)
    batches: list[Batch] = []
    if differentiable and not torch.compiler.is_compiling():
        output = _Cell.apply(plan, settings, running, batches, *inputs, rows, *weights)
    else:
        forward = Forward(plan, settings, inputs, rows, plan.arrange(weights), running, keep=differentiable)
        output, batches = forward.output, forward.batches
    if batch and images is None:
        _follow(plan.norms, batches)
    return output.unflatten(0, (individuals, -1)) if s0.dim() == 5 else output


def _running(plan: CellPlan, dtype: torch.dtype) -> Running:
    def stacked(norms: Sequence[BatchNorm | None]) -> Moments:
        known = [norm for norm in norms if norm is not None]
        if not known:
            return torch.empty(0, 1, 1, dtype=dtype), torch.empty(0, 1, 1, dtype=dtype)
        mean = torch.stack([cast(Tensor, norm.running_mean) for norm in known])
        variance = torch.stack([cast(Tensor, norm.running_var) for norm in known])
        return mean[:, None].to(dtype), variance[:, None].to(dtype)  # [norms, 1, C]

    of_inputs = [stacked([cast(BatchNorm, module.norm)]) for module in plan.preprocess]
    return Running(
        preprocess=[(mean[0], variance[0]) for mean, variance in of_inputs],
        first=[stacked(state.first_norms) for state in plan.states],
        rows=stacked(plan.row_norms),
    )


@torch.no_grad()
def _follow(norms: Sequence[BatchNorm], batches: Sequence[Batch]) -> None:
    """Moves running statistics towards those of the batch, as BatchNorm does while training."""
    means = [mean for batch in batches for mean in batch.mean.unbind(0)]
    variances = [v for batch in batches for v in (batch.variance * (batch.count / max(1, batch.count - 1))).unbind(0)]
    momentum = cast(float, norms[0].momentum)
    for name, values in (("running_mean", means), ("running_var", variances)):
        buffers = [norm._buffers[name] for norm in norms]
        dtype = cast(Tensor, buffers[0]).dtype
        torch._foreach_lerp_(cast(list[Tensor], buffers), [value.to(dtype) for value in values], momentum)
    torch._foreach_add_([cast(Tensor, norm._buffers["num_batches_tracked"]) for norm in norms], 1)
