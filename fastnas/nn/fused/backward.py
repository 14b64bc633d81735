"""The backward pass of a fused cell; see `fused_cell`."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

import fastnas.ops  # noqa: F401  (registers torch.ops.fastnas)
from fastnas.nn.fused.forward import Outputs, Settings, bypass, count, incoming
from fastnas.nn.fused.plan import CellLayout, CellWeights, StatePlan

_stage_grad = torch.ops.fastnas.stage_grad.default
_pool_grad = torch.ops.fastnas.pool_grad.default
_preprocess_grad = torch.ops.fastnas.preprocess_grad.default
_node_sum_grad = torch.ops.fastnas.node_sum_grad.default
_bypass_grad = torch.ops.fastnas.bypass_grad.default
_halve_grad = torch.ops.fastnas.halve_grad.default


class Backward:
    """The gradients of a cell: those of the inputs, of the weights of the rows [1, K] and of the convolutions.

    Args:
        states: of the forward pass, all of them; inputs: as they came.
        mean, rstd: [K, 1, C/k] of the rows.
        grad: [N, nodes·C, H', W'].
    """

    def __init__(
        self,
        plan: CellLayout,
        settings: Settings,
        inputs: Sequence[Tensor],
        states: Sequence[Tensor],
        outputs: Sequence[Outputs],
        op_weights: Tensor,
        edge_weights: Tensor | None,
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
        # How much of the gradient goes to the statistics: none where they are constants.
        self.share = self.scale * plan.has_norm if settings.batch else torch.zeros_like(self.scale)  # [K, C/k]
        self.table = mean.new_zeros(len(plan.row_norms), 4, channels)  # (a, b, mean, c) of each row
        self.table[:, 0] = self.scale
        self.table[:, 2] = mean[:, 0]
        self.edge_weights = edge_weights  # [1, E]
        self.grad_edge_weights = None if edge_weights is None else torch.zeros_like(edge_weights)
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
        """From the gradient of a node to those of its weights, and to the numbers of its rows.

        It is that of all nodes behind it as well, in the channels in which it passes on what bypassed it.
        """
        part = slice(*self.plan.first_row[node - 2 : node])
        passing = []
        if self.edge_weights is not None:
            sources = zip(self.states, self.plan.states[:node], strict=False)
            passing = [bypass(state, self.mean.shape[-1], plan.stride) for state, plan in sources]
        own = self.processed.get(node, grad)
        processed, sums, dots, edge_dots = _node_sum_grad(
            own, self.rows[part], self.mean[part], self.rstd[part], passing
        )
        if self.grad_edge_weights is not None:
            self.grad_edge_weights[0, incoming(node - 2)] = edge_dots
        self.grads[node] = grad
        self.processed[node] = processed if own.shape[1] > self.mean.shape[-1] else own
        self.grad_op_weights[0, part] = dots.sum(1)
        share = self.share[part] / max(1, count(grad))  # [K, C/k]
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
        if self.edge_weights is None:
            next_node = max(2, source + 1)
            whole, factors = [self.grads[next_node]], self.mean.new_ones(1)
        else:
            whole, factors = [self.grads[node] for node in plan.nodes], self.edge_weights[0, plan.edge_index]
        if plan.stride == 1:
            passes_on = source >= 2 and self.edge_weights is None
            grad, own = _bypass_grad(total, whole, factors, from_outside, channels, passes_on)
            if passes_on:
                self.processed[source] = own
            return grad
        halved, _ = _bypass_grad(None, whole, factors, [], channels)  # [N, C, H', W']
        # Only inputs are halved: nothing comes from outside.
        return _halve_grad(halved.narrow(1, channels, halved.shape[1] - channels), state, total)

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
