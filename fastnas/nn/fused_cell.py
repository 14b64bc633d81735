"""A cell of the supernet on the fused operators, forward and backward.

Plain torch writes a tensor after every ReLU, convolution, normalisation, product and addition. Here a state is read once
for all candidates that leave it (`stage`, `pool`, `preprocess`), their raw outputs are written once, and a node is one
sum over all of them that normalises on the way (`node_sum`). Nothing normalised or weighted is stored but the states.

The backward pass goes through the states from the last to the first. Once the gradient G of a node is known, that of a
raw output y is a·G + b·(y - mean) + c with numbers a, b, c for each channel: the weight of the candidate and BatchNorm's
backward pass in one (b = c = 0 where statistics are constants). It is not stored either: operators are given G, y and
the numbers, a row (a, b, mean, c) of a table [K, 4, C] for each candidate.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

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
    """Running statistics, where they are what normalises: mean and variance of preprocessings, first stages and rows."""

    preprocess: list[Moments]  # [1, C]
    first: list[Moments]  # of each state, [seconds, 1, C/k]
    rows: Moments  # [K, 1, C/k]


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
        shape = (len(plan.norms), settings.individuals, self.states[0].shape[1] // settings.parts)
        self.mean = op_weights.new_zeros(shape)  # [K, P, C/k]
        self.variance = torch.zeros_like(self.mean)
        self.rstd = torch.ones_like(self.mean)
        if running is not None:
            self._enter([(row, row) for row in range(len(plan.norms))], *running.rows)
        self.rows: list[Tensor | None] = [None] * len(plan.norms)
        self.outputs: list[Outputs] = []
        self.bypass: list[Tensor] = []
        for source, state in enumerate(plan.states):
            if source >= 2:
                self.states.append(self._node(source - 2))
            self._candidates(source, state)
        self.states.append(self._node(len(plan.states) - 2))
        self.output = torch.cat(self.states[2:], 1)  # [N, nodes·C, H', W']
        entries = [row for row, norm in enumerate(plan.norms) if norm is not None]
        if running is None:
            self.batches.append(Batch(self.mean[entries, 0], self.variance[entries, 0], count(self.output)))

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
        if plan.pools:
            normalised = batch and any(self.plan.norms[row] is not None for *_, row in plan.pools)
            average, maximum, mean, variance = _pool(x, plan.stride, individuals, normalised)
            out.pools = [average, maximum]
            self._enter([(row, kind) for kind, _, row in plan.pools], mean, variance)
        if plan.stages:
            dilations = [stage.depthwise.dilation[0] for stage in plan.stages]
            taps, matrices = weights.depthwise[source], weights.pointwise[source]
            out.stages, mean, variance = _stage(
                [x], None, None, taps, matrices, dilations, plan.stride, individuals, batch, batch
            )
            self._enter([(row, stage) for stage, _, row in plan.targets], mean, variance)
        if plan.seconds:
            firsts = [first for first, *_ in plan.seconds]
            if self.running is not None:
                mean, variance = (part.expand(-1, individuals, -1) for part in self.running.first[source])
            else:
                mean, variance = mean[firsts], variance[firsts]  # [seconds, P, C/k]
                self.batches.append(Batch(mean[:, 0], variance[:, 0], count(out.stages[0])))
            out.first = [mean.contiguous(), self._rstd(variance)]
            inputs = [out.stages[first] for first in firsts]
            dilations = [stage.depthwise.dilation[0] for *_, stage in plan.seconds]
            taps, matrices = weights.second_depthwise[source], weights.second_pointwise[source]
            out.seconds, mean, variance = _stage(
                inputs, *out.first, taps, matrices, dilations, 1, individuals, batch, batch
            )
            self._enter([(row, index) for index, (_, _, row, _) in enumerate(plan.seconds)], mean, variance)
        if plan.reduces:
            offsets = [0, 1] * len(plan.reduces)
            raw, mean, variance = _preprocess([x], weights.reduce[source], offsets, 2, individuals, batch)
            out.reduces = [raw]  # [N, reduces·C/k, H', W']
            if batch:
                mean, variance = (part.unflatten(-1, (-1, channels)).transpose(0, 1) for part in (mean, variance))
            self._enter([(row, index) for index, (_, row, _) in enumerate(plan.reduces)], mean, variance)
        out.place(self.rows, plan, x)
        if self.keep:
            self.outputs.append(out)
        if self.settings.parts > 1:
            self.bypass.append(bypass(state, channels, plan.stride))

    def _enter(self, entries: list[tuple[int, int]], mean: Tensor, variance: Tensor) -> None:
        """Statistics [.., P or 1, C/k] into the tables; entries: (row, index in the statistics)."""
        entries = [(row, index) for row, index in entries if self.plan.norms[row] is not None]
        if not entries or not mean.numel():
            return
        rows, indices = torch.tensor(entries).unbind(1)
        self.mean[rows] = mean[indices].expand(-1, self.settings.individuals, -1)
        self.variance[rows] = variance[indices].expand(-1, self.settings.individuals, -1)
        self.rstd[rows] = self._rstd(self.variance[rows])

    def _node(self, index: int) -> Tensor:
        part = slice(*self.plan.first_row[index : index + 2])
        mean, rstd = self.mean[part], self.rstd[part]
        if torch.compiler.is_compiling():  # autograd keeps them, and the tables will change in other rows
            mean, rstd = mean.clone(), rstd.clone()
        node = _node_sum(
            self.rows[part],
            mean,
            rstd,
            self.op_weights[:, part],
            self.bypass,
            None,
            self.settings.individuals,
            self.images,
            self.plan.normalised(self.settings.batch)[part],
        )  # [N, C, H', W']
        if not self.keep:
            self.rows[part] = [None] * (part.stop - part.start)
        return node


def bypass(state: Tensor, channels: int, stride: int) -> Tensor:
    """What the candidates do not see of a state [N, C, H, W]: the channels from `channels` on, pooled 2×2 at stride 2."""
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
        self.rows: list[Tensor | None] = [None] * len(plan.norms)
        for state, part, out in zip(states, plan.states, outputs, strict=False):
            out.place(self.rows, part, state.narrow(1, 0, channels))
        self.scale = op_weights[0, :, None] * rstd[:, 0]  # [K, C/k]
        self.normalised = mean.new_tensor(plan.normalised(settings.batch))[:, None]  # [K, 1]
        self.table = mean.new_zeros(len(plan.norms), 4, channels)  # (a, b, mean, c) of each row
        self.table[:, 0] = self.scale
        self.table[:, 2] = mean[:, 0]
        self.grad_op_weights = torch.zeros_like(op_weights)  # [1, K]
        self.grad_weights = weights.like([w for w in weights.flat()])
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
            rows = [row for _, row, _ in plan.reduces]
            numbers = self.table[rows].transpose(0, 1).flatten(1)  # [4, reduces·C/k]
            (grad_x,), self.grad_weights.reduce[source] = _preprocess_grad(
                [grads[node] for node, *_ in plan.reduces],
                out.reduces[0],
                numbers,
                [x],
                self.weights.reduce[source],
                [0, 1] * len(rows),
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
        numbers = self.table.new_zeros(len(plan.stages), 4, x.shape[1])
        for stage, node, row in plan.targets:
            stage_grads[stage] = grads[node]
            numbers[stage] = self.table[row]
        if plan.seconds:
            firsts = [first for first, *_ in plan.seconds]
            mean, rstd = out.first  # [seconds, 1, C/k]
            seconds, into.second_depthwise[source], into.second_pointwise[source], sums = _stage_grad(
                [grads[node] for _, node, *_ in plan.seconds],
                out.seconds,
                self.table[[row for _, _, row, _ in plan.seconds]],
                [out.stages[first] for first in firsts],
                mean,
                rstd,
                weights.second_depthwise[source],
                weights.second_pointwise[source],
                [stage.depthwise.dilation[0] for *_, stage in plan.seconds],
                1,
            )
            for first, grad in zip(firsts, seconds, strict=True):
                stage_grads[first] = grad
            numbers[firsts] = normalisation_numbers(mean[:, 0], rstd[:, 0], sums, self._count(out.stages[0]))
        (grad_x,), into.depthwise[source], into.pointwise[source], _ = _stage_grad(
            stage_grads,
            out.stages,
            numbers,
            [x],
            None,
            None,
            weights.depthwise[source],
            weights.pointwise[source],
            [stage.depthwise.dilation[0] for stage in plan.stages],
            plan.stride,
        )
        return grad_x

    def _pools(self, plan: StatePlan, x: Tensor, out: Outputs, grads: list[Tensor], addends: list[Tensor]) -> Tensor:
        """Everything that flows back through pools and identities, added to `addends`."""
        channels = x.shape[1]
        scales = self.table.new_zeros(2, len(plan.nodes), channels)
        corrections = self.table.new_zeros(2, 3, channels)  # slope, mean, offset
        corrected = False
        for kind, node, row in plan.pools:
            scales[kind, node] += self.table[row, 0]
            if self.settings.batch and self.plan.norms[row] is not None:
                corrected = True
                corrections[kind, 0] += self.table[row, 1]
                corrections[kind, 1] = self.table[row, 2]
                corrections[kind, 2] += self.table[row, 3]
        skip = None
        if plan.skips:
            skip = self.table.new_zeros(len(plan.nodes), channels)
            for node, row in plan.skips:
                skip[node] += self.table[row, 0]
        if not plan.pools and skip is None and len(addends) == 1:
            return addends[0]
        outputs, numbers = (out.pools, corrections) if corrected else ([], None)
        return _pool_grad(x, grads, scales, outputs, numbers, skip, addends, plan.stride)

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
        cell = Forward(plan, settings, (s0, s1), op_weights, plan.weights().like(weights), running, keep=True)
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
        weights = plan.weights().like([next(tensors) for _ in range(ctx.weights)])
        mean, rstd, rstd0, rstd1, state0, state1, output = (next(tensors) for _ in range(7))
        outputs = [Outputs(*([next(tensors) for _ in range(size)] for size in sizes)) for sizes in ctx.sizes]
        states = [state0, state1, *output.split(state0.shape[1], 1)]
        grad = grad.contiguous(memory_format=torch.channels_last)
        done = Backward(
            plan, settings, (s0, s1), states, outputs, op_weights, weights, mean, rstd, (rstd0, rstd1), grad
        )
        return None, None, None, None, *done.inputs, done.grad_op_weights, *done.grad_weights.flat()


def fused_cell(cell: SearchCell, plan: CellPlan, s0: Tensor, s1: Tensor, op_weights: Tensor) -> Tensor | None:
    """The output of a cell as `SearchCell.forward` describes it, or None where the operators cannot compute it.

    s0, s1 [B, C, H, W] and op_weights [E, O]; for a population [P or 1, B, C, H, W] and [P, E, O].
    """
    norms = plan.all_norms()
    training, images, eps, momentum = norms[0].training, norms[0].images, norms[0].eps, norms[0].momentum
    alike = len({(norm.training, norm.images, norm.eps, norm.momentum) for norm in norms}) == 1
    if not (s0.is_cpu and s0.is_floating_point()) or not alike or momentum is None:
        return None
    individuals = op_weights.shape[0] if s0.dim() == 5 else 1
    batch = training or images is not None
    if batch and images != s0.shape[-4] and (individuals > 1 or images is not None):
        return None  # one batch of all individuals, or several of one: statistics that the operators do not take
    weights = plan.weights().flat()
    differentiable = torch.is_grad_enabled() and any(t.requires_grad for t in (s0, s1, op_weights, *weights))
    if differentiable and individuals > 1:
        return None
    lowered = torch.is_autocast_enabled("cpu") and s0.dtype != torch.float64  # which autocast leaves alone
    dtype = torch.get_autocast_dtype("cpu") if lowered else s0.dtype
    numbers = torch.float64 if dtype == torch.float64 else torch.float32
    inputs = [s.flatten(0, -4).to(dtype).contiguous(memory_format=torch.channels_last) for s in (s0, s1)]
    shared = tuple(individuals > 1 and s.shape[0] == 1 for s in (s0, s1))
    settings = Settings(batch, individuals, shared, cell.edges[0].partial_channels, eps)
    weights = [weight.to(numbers) for weight in weights]
    rows = op_weights.reshape(individuals, -1)[:, plan.columns].to(numbers)  # [P, K]
    running = None if batch else _running(plan, numbers)
    batches: list[Batch] = []
    if differentiable and not torch.compiler.is_compiling():
        output = _Cell.apply(plan, settings, running, batches, *inputs, rows, *weights)
    else:
        forward = Forward(plan, settings, inputs, rows, plan.weights().like(weights), running, keep=differentiable)
        output, batches = forward.output, forward.batches
    if batch and images is None:
        _follow(norms, batches)
    return output.unflatten(0, (individuals, -1)) if s0.dim() == 5 else output


def _running(plan: CellPlan, dtype: torch.dtype) -> Running:
    def stacked(norms: Sequence[BatchNorm | None]) -> Moments:
        known = [norm for norm in norms if norm is not None]
        of = iter(range(len(known)))
        indices = [next(of) if norm is not None else 0 for norm in norms]
        mean, variance = (
            torch.stack([getattr(norm, name) for norm in known])[indices, None].to(dtype)  # [.., 1, C]
            for name in ("running_mean", "running_var")
        )
        return mean, variance

    empty = torch.empty(0, dtype=dtype)
    return Running(
        preprocess=[tuple(part[0] for part in stacked([module.norm])) for module in plan.preprocess],
        first=[stacked(norms) if norms else (empty, empty) for norms in plan.first_norms()],
        rows=stacked(plan.norms) if any(plan.norms) else (empty, empty),
    )


@torch.no_grad()
def _follow(norms: Sequence[BatchNorm], batches: Sequence[Batch]) -> None:
    """Moves running statistics towards those of the batch, as BatchNorm does while training."""
    means = [mean for batch in batches for mean in batch.mean.unbind(0)]
    variances = [v for batch in batches for v in (batch.variance * (batch.count / max(1, batch.count - 1))).unbind(0)]
    momentum = norms[0].momentum
    dtype = norms[0].running_mean.dtype
    torch._foreach_lerp_([norm.running_mean for norm in norms], [mean.to(dtype) for mean in means], momentum)
    torch._foreach_lerp_([norm.running_var for norm in norms], [variance.to(dtype) for variance in variances], momentum)
    torch._foreach_add_([norm.num_batches_tracked for norm in norms], 1)
