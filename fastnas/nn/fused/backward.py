"""The backward pass of a fused cell; see `cell`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

import fastnas.ops  # noqa: F401  (registers torch.ops.fastnas)
from fastnas.nn.fused.autograd import flattened, nested, structure_of
from fastnas.nn.fused.batch_norm import count_values
from fastnas.nn.fused.branch import BackwardPass, BranchOutput
from fastnas.nn.fused.forward import Settings, bypass, incoming
from fastnas.nn.fused.plan import CellLayout, CellWeights
from fastnas.ops.norm_rows import norm_rows_grad

_preprocess_grad = torch.ops.fastnas.preprocess_grad.default
_node_sum_grad = torch.ops.fastnas.node_sum_grad.default
_bypass_grad = torch.ops.fastnas.bypass_grad.default
_halve_grad = torch.ops.fastnas.halve_grad.default


@dataclass
class SavedCell:
    """What the backward pass of a cell needs from its forward pass, for one individual."""

    inputs: list[Tensor]  # as they came [N, C_i, H_i, W_i]
    op_weights: Tensor  # [1, K], of the rows
    edge_weights: Tensor | None  # [1, E]
    masks: Tensor | None  # [E, N]
    weights: CellWeights
    mean: Tensor  # [K, 1, C/k] of the rows
    rstd: Tensor  # [K, 1, C/k]
    preprocess_rstd: list[Tensor]  # [1, C]
    preprocessed: list[Tensor]  # the states of the inputs [N, C, H, W]
    output: Tensor  # [N, nodes·C, H', W']; the other states are slices of it
    branches: list[list[BranchOutput]]  # by state

    def save(self, ctx: Any) -> None:
        """Gives the tensors to autograd."""
        tensors = [self.op_weights, self.edge_weights, self.masks, self.mean, self.rstd, self.output]
        outputs = [[[each.first, each.second, each.norm] for each in state] for state in self.branches]
        lists = [tensors, self.inputs, self.preprocess_rstd, self.preprocessed, list(self.weights), outputs]
        ctx.structure = structure_of(lists)
        ctx.save_for_backward(*flattened(lists))

    @classmethod
    def restore(cls, ctx: Any) -> SavedCell:
        """What `save` saved."""
        tensors, inputs, preprocess_rstd, preprocessed, weights, outputs = nested(
            ctx.structure, iter(ctx.saved_tensors)
        )
        op_weights, edge_weights, masks, mean, rstd, output = tensors
        branches = [[BranchOutput(*each) for each in state] for state in outputs]
        return cls(
            inputs,
            op_weights,
            edge_weights,
            masks,
            CellWeights(*weights),
            mean,
            rstd,
            preprocess_rstd,
            preprocessed,
            output,
            branches,
        )


@dataclass
class CellGrads:
    inputs: list[Tensor]  # [N, C_i, H_i, W_i]
    op_weights: Tensor  # [1, K]
    edge_weights: Tensor | None  # [1, E]
    weights: CellWeights


def run_backward(layout: CellLayout, settings: Settings, saved: SavedCell, grad: Tensor) -> CellGrads:
    """The gradients of a cell from that of its output [N, nodes·C, H', W'], which is channels-last."""
    width = saved.preprocessed[0].shape[1]
    run = _CellBackward(layout, settings, saved, [*saved.preprocessed, *saved.output.split(width, 1)])
    grad_inputs = [grad, grad]
    for source in reversed(range(len(run.states))):
        from_outside = [grad.narrow(1, (source - 2) * width, width)] if source >= 2 else []
        total = run.through_state(source, from_outside) if source < len(layout.states) else from_outside[0]
        if source >= 2:
            run.through_node(source, total)
        else:
            grad_inputs[source] = run.through_preprocess(source, total)
    return CellGrads(grad_inputs, run.grad_op_weights, run.grad_edge_weights, run.grad_weights)


class _CellBackward:
    """The state of a backward pass on its way from the last state to the first."""

    def __init__(self, layout: CellLayout, settings: Settings, saved: SavedCell, states: list[Tensor]) -> None:
        self.layout, self.settings, self.saved, self.states = layout, settings, saved, states
        self.indices = layout.indices.tensors()
        self.seen = saved.mean.shape[-1]  # channels that candidates see, C/k
        self.ones = saved.mean.new_ones(1, 1, saved.preprocessed[0].shape[1])  # [1, 1, C]
        self.zeros = torch.zeros_like(self.ones)
        self.mean, self.rstd = saved.mean[:, 0], saved.rstd[:, 0]  # [K, C/k]
        self.scale = saved.op_weights[0, :, None] * self.rstd  # [K, C/k]
        # (scale, slope, mean, offset) of each row.
        self.coeffs = saved.mean.new_zeros(len(layout.row_norms), 4, self.seen)  # [K, 4, C/k]
        self.grad_op_weights = torch.zeros_like(saved.op_weights)
        self.grad_edge_weights = None if saved.edge_weights is None else torch.zeros_like(saved.edge_weights)
        self.grad_weights = CellWeights([[], []], [[] for _ in layout.states])
        self.grads: dict[int, Tensor] = {}  # of each node [N, C, H', W']
        self.grads_group0: dict[int, Tensor] = {}  # the part of it that candidates contributed to [N, C/k, H', W']
        self.grads_of_edges: dict[int, tuple[Tensor, Tensor]] = {}  # the two for each edge, where there are masks
        self.rows: list[Tensor | None] = [None] * len(layout.row_norms)  # raw outputs of the candidates
        for state, plan, outputs in zip(states, layout.states, saved.branches, strict=False):
            x = state.narrow(1, 0, self.seen)
            for branch, output in zip(plan.branches, outputs, strict=True):
                for slot, y in zip(branch.slots, branch.raw(output, x), strict=True):
                    self.rows[slot.row] = y

    def through_node(self, node: int, grad: Tensor) -> None:
        """From the gradient of a node to those of its weights, and to the coefficients of its rows.

        `grad` includes those of all later nodes, in the channels that pass on to them what bypassed this node.
        """
        bypasses = []
        if self.grad_edge_weights is not None:
            sources = zip(self.states, self.layout.states[:node], strict=False)
            bypasses = [bypass(state, self.seen, plan.stride) for state, plan in sources]
        if self.saved.masks is not None:
            for source, edge in enumerate(range(len(self.saved.masks))[incoming(node - 2)]):
                mask = self.saved.masks[edge].to(grad.dtype).view(-1, 1, 1, 1)
                masked = grad * mask  # [N, C, H', W']
                rows = slice(*self.layout.first_row_of_edge[edge : edge + 2])
                group0 = self._through_rows(rows, masked, bypasses[source : source + 1], slice(edge, edge + 1))
                self.grads_of_edges[edge] = masked, group0
            return
        known = self.grads_group0.get(node, grad)
        part = slice(*self.layout.first_row[node - 2 : node])
        group0 = self._through_rows(part, known, bypasses, incoming(node - 2))
        self.grads[node] = grad
        self.grads_group0[node] = group0

    def _through_rows(self, part: slice, grad: Tensor, bypasses: list[Tensor], edges: slice) -> Tensor:
        """From the gradient of a sum to those of the weights of its rows and edges, and to the coefficients of its
        rows. Returns the part of the gradient that candidates contributed to [N, C/k, H', W']."""
        if part.start == part.stop and not bypasses:
            return grad
        rows = part if part.start < part.stop else slice(0, 1)  # the operator needs one
        group0, sum_dy, sum_dy_xhat, of_edges = _node_sum_grad(
            grad, self.rows[rows], self.saved.mean[rows], self.saved.rstd[rows], bypasses
        )
        if self.grad_edge_weights is not None:
            self.grad_edge_weights[0, edges] = of_edges
        if part.start < part.stop:
            torch.sum(sum_dy_xhat, 1, out=self.grad_op_weights[0, part])
            tables = self.mean[part], self.rstd[part], self.scale[part]
            norm_rows_grad(sum_dy, sum_dy_xhat, *tables, self._count(grad), self.coeffs[part])
        return group0 if grad.shape[1] > self.seen else grad

    def through_state(self, source: int, from_outside: list[Tensor]) -> Tensor:
        """The gradient of a state [N, C, H, W], from all candidates that read it."""
        plan, state, parts = self.layout.states[source], self.states[source], self.settings.parts
        of_nodes = [self._of_edge(source, node) for node in plan.nodes]
        back = BackwardPass(
            states=[state.narrow(1, 0, self.seen)],
            grads=[group0 for _, group0 in of_nodes],
            coeffs=self.coeffs,
            batch=self.settings.batch,
            indices=self.indices,
            grad_states=list(from_outside) if parts == 1 else [],
        )
        self.grad_weights.branches[source] = [
            branch.backward(back, output, weights)
            for branch, output, weights in zip(
                plan.branches, self.saved.branches[source], self.saved.weights.branches[source], strict=True
            )
        ]
        total = back.total(plan.stride)
        if parts == 1:
            return total
        edge_weights = self.saved.edge_weights
        if edge_weights is None:
            whole, factors = [self.grads[max(2, source + 1)]], self.ones[0, 0, :1]
        else:
            whole, factors = [grad for grad, _ in of_nodes], edge_weights[0, self.indices[plan.edges]]
        if plan.stride == 1:
            passes_on = source >= 2 and edge_weights is None
            grad, group0 = _bypass_grad(total, whole, factors, from_outside, self.seen, passes_on)
            if passes_on:
                self.grads_group0[source] = group0
            return grad
        halved, _ = _bypass_grad(None, whole, factors, [], self.seen)  # [N, C, H', W']
        # Only inputs are halved: nothing comes from outside.
        return _halve_grad(halved.narrow(1, self.seen, halved.shape[1] - self.seen), state, total)

    def _of_edge(self, source: int, node: int) -> tuple[Tensor, Tensor]:
        """The gradient of the output of an edge [N, C, H', W'], and the part that candidates contributed to."""
        if self.saved.masks is not None:
            return self.grads_of_edges[incoming(node - 2).start + source]
        return self.grads[node], self.grads_group0[node]

    def through_preprocess(self, index: int, grad: Tensor) -> Tensor:
        """The gradient of an input [N, C_i, H_i, W_i]."""
        state, rstd, x = self.states[index], self.saved.preprocess_rstd[index], self.saved.inputs[index]
        _, sum_dy, sum_dy_xhat, _ = _node_sum_grad(grad, [state], self.zeros, self.ones, [])
        # The normalised state stands for the raw output here: its mean is 0, and its slope has one factor rstd less.
        coeffs = rstd.new_empty(1, 4, state.shape[1])
        norm_rows_grad(sum_dy, sum_dy_xhat, self.zeros[0], self.ones[0], rstd, self._count(state), coeffs)
        pattern, matrices = self.layout.preprocess[index], self.saved.weights.preprocess[index]
        (grad_x,), self.grad_weights.preprocess[index] = _preprocess_grad(
            [grad], state, coeffs[0], [x], matrices, list(range(pattern.stride)), pattern.stride
        )
        return cast(Tensor, grad_x)

    def _count(self, images: Tensor) -> int:
        """The number of values of a channel behind its statistics; 0 where these are constants."""
        return count_values(images) if self.settings.batch else 0
