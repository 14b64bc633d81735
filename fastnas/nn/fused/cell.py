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
from typing import Any, cast

import torch
from torch import Tensor, nn

from fastnas.nn.fused.autograd import first_order
from fastnas.nn.fused.backward import Backward
from fastnas.nn.fused.evaluation import evaluate
from fastnas.nn.fused.forward import Batch, Forward, Moments, Outputs, Running, Settings
from fastnas.nn.fused.plan import CellLayout
from fastnas.ops.layout import DEVICE_TYPES, acc_dtype, computation_dtype
from fastnas.ops.running_statistics import running_statistics


class _Cell(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        plan: CellLayout,
        settings: Settings,
        running: Running | None,
        batches: list[Batch],
        s0: Tensor,
        s1: Tensor,
        op_weights: Tensor,
        edge_weights: Tensor | None,
        *weights: Tensor,
    ) -> Tensor:
        with torch._C._AutoDispatchBelowAutograd():  # or each operator would ask Python whether it is to be recorded
            cell = Forward(
                plan, settings, (s0, s1), op_weights, edge_weights, plan.arrange(weights), running, keep=True
            )
        batches += cell.batches
        ctx.plan, ctx.settings, ctx.weights = plan, settings, len(weights)
        ctx.sizes = [[len(part) for part in vars(out).values()] for out in cell.outputs]
        saved = [tensor for out in cell.outputs for part in vars(out).values() for tensor in part]
        # The other states are slices of the output.
        ctx.save_for_backward(
            s0,
            s1,
            op_weights,
            edge_weights,
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
    @first_order
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        plan, settings = ctx.plan, ctx.settings
        tensors = iter(ctx.saved_tensors)
        s0, s1, op_weights, edge_weights = (next(tensors) for _ in range(4))
        weights = plan.arrange([next(tensors) for _ in range(ctx.weights)])
        mean, rstd, rstd0, rstd1, state0, state1, output = (next(tensors) for _ in range(7))
        outputs = [Outputs(*([next(tensors) for _ in range(size)] for size in sizes)) for sizes in ctx.sizes]
        states = [state0, state1, *output.split(state0.shape[1], 1)]
        grad = grad.contiguous(memory_format=torch.channels_last)
        done = Backward(
            plan,
            settings,
            (s0, s1),
            states,
            outputs,
            op_weights,
            edge_weights,
            weights,
            mean,
            rstd,
            (rstd0, rstd1),
            grad,
        )
        grads = (done.grad_op_weights, done.grad_edge_weights, *done.grad_weights.flat())
        return None, None, None, None, *done.inputs, *grads


def _kind(norm: nn.BatchNorm2d) -> tuple[bool, bool, int | None, float, float | None]:
    """In what all normalisations of a cell must agree; `images` is that of `BatchNorm`."""
    # Not norm.weight and norm.running_mean: attributes that modules look for in several places take ten times as long.
    plain = norm._parameters["weight"] is None and norm._buffers["running_mean"] is not None
    return plain, norm.training, getattr(norm, "images", None), norm.eps, norm.momentum


def fused_cell(
    plan: CellLayout, s0: Tensor, s1: Tensor, op_weights: Tensor, edge_weights: Tensor | None = None
) -> Tensor | None:
    """The output of a cell as `SearchCell.forward` describes it, or None where the operators cannot compute it.

    s0, s1 [B, C, H, W], op_weights [E, O] and edge_weights [E]; for a population [P or 1, B, C, H, W], [P, E, O], [P,
    E].
    """
    plain, training, images, eps, momentum = _kind(plan.norms[0])
    alike = len({_kind(norm) for norm in plan.norms}) == 1
    if not (s0.device.type in DEVICE_TYPES and s0.is_floating_point() and plain and alike) or momentum is None:
        return None
    individuals = op_weights.shape[0] if s0.dim() == 5 else 1
    batch = training or images is not None
    if batch and images != s0.shape[-4] and (individuals > 1 or images is not None):
        return None  # one batch of all individuals, or several of one: statistics that the operators do not take
    stride = plan.states[0].stride
    if training and s1.shape[-4] * math.ceil(s1.shape[-2] / stride) * math.ceil(s1.shape[-1] / stride) == 1:
        return None  # one value per channel, which BatchNorm refuses
    weights = plan.weights().flat()
    edges = op_weights if edge_weights is None else edge_weights
    differentiable = torch.is_grad_enabled() and any(t.requires_grad for t in (s0, s1, op_weights, edges, *weights))
    if differentiable and individuals > 1:
        return None
    dtype = computation_dtype(s0)
    numbers = acc_dtype(dtype)
    inputs = [s.flatten(0, -4).to(dtype).contiguous(memory_format=torch.channels_last) for s in (s0, s1)]
    shared = individuals > 1 and s0.shape[0] == 1, individuals > 1 and s1.shape[0] == 1
    settings = Settings(batch, individuals, shared, plan.parts, eps)
    weights = [weight if weight.dtype == numbers else weight.to(numbers) for weight in weights]
    if edge_weights is not None:
        op_weights = op_weights * edge_weights[..., None]
    rows = op_weights.reshape(individuals, -1).index_select(1, plan.columns).to(numbers)  # [P, K]
    passing = None  # [P, E]: without partial channels nothing passes the candidates
    if edge_weights is not None and plan.parts > 1:
        passing = edge_weights.reshape(individuals, -1).to(numbers)
    running = None if batch else _running(plan, numbers)
    batches: list[Batch] = []
    if differentiable and not torch.compiler.is_compiling():
        output = _Cell.apply(plan, settings, running, batches, *inputs, rows, passing, *weights)
    elif running is not None and plan.sums and not torch.compiler.is_compiling():
        output = evaluate(plan, settings, inputs, rows, passing, plan.arrange(weights), running)
    else:
        forward = Forward(plan, settings, inputs, rows, passing, plan.arrange(weights), running, keep=differentiable)
        output, batches = forward.output, forward.batches
    if batch and images is None:
        _follow(plan.norms, batches)
    return output.unflatten(0, (individuals, -1)) if s0.dim() == 5 else output


def _running(plan: CellLayout, dtype: torch.dtype) -> Running:
    def stacked(norms: Sequence[nn.BatchNorm2d | None]) -> Moments:
        known = [norm for norm in norms if norm is not None]
        if not known:
            return torch.empty(0, 1, 1, dtype=dtype), torch.empty(0, 1, 1, dtype=dtype)
        mean = torch.stack([cast(Tensor, norm.running_mean) for norm in known])
        variance = torch.stack([cast(Tensor, norm.running_var) for norm in known])
        return mean[:, None].to(dtype), variance[:, None].to(dtype)  # [norms, 1, C]

    of_inputs = [stacked([pattern.norm]) for pattern in plan.preprocess]
    return Running(
        preprocess=[(mean[0], variance[0]) for mean, variance in of_inputs],
        first=[stacked(state.first_norms) for state in plan.states],
        rows=stacked(plan.row_norms),
    )


@torch.no_grad()
def _follow(norms: Sequence[nn.BatchNorm2d], batches: Sequence[Batch]) -> None:
    """Moves running statistics towards those of the batch, as BatchNorm does while training."""
    buffers = [norm._buffers for norm in norms]
    running_statistics(
        [cast(Tensor, each["running_mean"]) for each in buffers],
        [cast(Tensor, each["running_var"]) for each in buffers],
        [cast(Tensor, each["num_batches_tracked"]) for each in buffers],
        [batch.mean for batch in batches],
        [batch.variance for batch in batches],
        [batch.count for batch in batches],
        cast(float, norms[0].momentum),
    )
