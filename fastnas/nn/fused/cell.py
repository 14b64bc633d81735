"""A cell of the supernet on the fused operators, forward and backward.

Plain torch writes a tensor after every ReLU, convolution, normalisation, product and addition. Here a state is read
once for all candidates that leave it, one branch for each kind (`branches`), their raw outputs are written once, and a
node is one sum over all of them that normalises on the way (`node_sum`). No normalised or weighted tensor is stored
except the states.

The backward pass goes through the states from the last to the first. Once the gradient dy of a node is known, that of
a raw output y is scale·dy + slope·(y - mean) + offset with coefficients for each channel: the weight of the candidate
and the backward pass of BatchNorm in one (slope and offset are 0 where statistics are constants; see `batch_norm`). It
is not stored either: operators are given dy, y and the coefficients, a row of a table [K, 4, C] for each candidate.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from fastnas.nn.fused.autograd import below_autograd, first_order, flattened, nested, structure_of
from fastnas.nn.fused.backward import SavedCell, run_backward
from fastnas.nn.fused.batch_norm import Normalizer
from fastnas.nn.fused.evaluation import evaluate
from fastnas.nn.fused.forward import Settings, run_forward
from fastnas.nn.fused.plan import CellLayout, CellWeights
from fastnas.ops.layout import DEVICE_TYPES, acc_dtype, computation_dtype


class _Cell(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        layout: CellLayout,
        settings: Settings,
        normalizer: Normalizer,
        structure: Any,
        s0: Tensor,
        s1: Tensor,
        op_weights: Tensor,
        edge_weights: Tensor | None,
        masks: Tensor | None,
        *tensors: Tensor,
    ) -> Tensor:
        inputs, weights = [s0, s1], CellWeights(*nested(structure, iter(tensors)))
        with below_autograd():
            done = run_forward(layout, settings, inputs, op_weights, edge_weights, weights, normalizer, True, masks)
        ctx.layout, ctx.settings = layout, settings
        saved = SavedCell(
            inputs=inputs,
            op_weights=op_weights,
            edge_weights=edge_weights,
            masks=masks,
            weights=weights,
            mean=done.mean,
            rstd=done.rstd,
            preprocess_rstd=done.preprocess_rstd,
            preprocessed=done.states[:2],
            output=done.output,
            branches=done.branches,
        )
        saved.save(ctx)
        return done.output

    @staticmethod
    @first_order
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        grad = grad.contiguous(memory_format=torch.channels_last)
        with below_autograd():
            grads = run_backward(ctx.layout, ctx.settings, SavedCell.restore(ctx), grad)
        of_weights = flattened(list(grads.weights))
        return None, None, None, None, *grads.inputs, grads.op_weights, grads.edge_weights, None, *of_weights


def _mode(norm: nn.BatchNorm2d) -> tuple[bool, bool, int | None, float, float | None]:
    """What all normalisations of a cell must have in common; `images` is that of `BatchNorm`."""
    # Not norm.weight and norm.running_mean: nn.Module.__getattr__ takes ten times as long.
    plain = norm._parameters["weight"] is None and norm._buffers["running_mean"] is not None
    return plain, norm.training, getattr(norm, "images", None), norm.eps, norm.momentum


def fused_cell(
    layout: CellLayout,
    s0: Tensor,
    s1: Tensor,
    op_weights: Tensor,
    edge_weights: Tensor | None = None,
    masks: Tensor | None = None,
) -> Tensor | None:
    """The output of a cell as `SearchCell.forward` describes it, or None where the operators cannot compute it.

    s0, s1 [B, C, H, W], op_weights [E, O], edge_weights [E] and masks [E, B]; for a population [P or 1, B, C, H, W],
    [P, E, O], [P, E] and no masks.
    """
    plain, training, images, eps, momentum = _mode(layout.norms[0])
    alike = len({_mode(norm) for norm in layout.norms}) == 1
    if not (s0.device.type in DEVICE_TYPES and s0.is_floating_point() and plain and alike) or momentum is None:
        return None
    if masks is not None and (s0.dim() == 5 or torch.compiler.is_compiling()):
        return None
    individuals = op_weights.shape[0] if s0.dim() == 5 else 1
    batch = training or images is not None
    if batch and images != s0.shape[-4] and (individuals > 1 or images is not None):
        return None  # statistics over all individuals, or over parts of one, which the operators do not compute
    stride = layout.states[0].stride
    if training and s1.shape[-4] * math.ceil(s1.shape[-2] / stride) * math.ceil(s1.shape[-1] / stride) == 1:
        return None  # one value per channel, which BatchNorm refuses
    weights = list(layout.weights())
    tensors: list[Tensor] = flattened(weights)
    edges = op_weights if edge_weights is None else edge_weights
    differentiable = torch.is_grad_enabled() and any(t.requires_grad for t in (s0, s1, op_weights, edges, *tensors))
    if differentiable and individuals > 1:
        return None
    dtype = computation_dtype(s0)
    acc = acc_dtype(dtype)
    inputs = [s.flatten(0, -4).to(dtype).contiguous(memory_format=torch.channels_last) for s in (s0, s1)]
    shared = individuals > 1 and s0.shape[0] == 1, individuals > 1 and s1.shape[0] == 1
    settings = Settings(batch, individuals, shared, layout.parts, eps)
    structure = structure_of(weights)
    tensors = [weight if weight.dtype == acc else weight.to(acc) for weight in tensors]
    if edge_weights is not None:
        op_weights = op_weights * edge_weights[..., None]
    columns = layout.indices.tensors()[layout.columns]
    rows = op_weights.reshape(individuals, -1).index_select(1, columns).to(acc)  # [P, K]
    of_bypasses = None  # [P, E]: without partial channels nothing bypasses the candidates
    if layout.parts > 1 and edge_weights is not None:
        of_bypasses = edge_weights.reshape(individuals, -1).to(acc)
    elif layout.parts > 1 and masks is not None:
        of_bypasses = rows.new_ones(1, len(masks))
    masks = None if masks is None else masks.to(acc)
    normalizer = Normalizer(batch, acc, follows=images is None)
    arguments = layout, settings, inputs, rows, of_bypasses, CellWeights(*nested(structure, iter(tensors))), normalizer
    if torch.compiler.is_compiling():
        output = run_forward(*arguments, keep=differentiable, masks=masks).output
    elif differentiable:
        output = _Cell.apply(layout, settings, normalizer, structure, *inputs, rows, of_bypasses, masks, *tensors)
    else:
        with below_autograd():
            sums = masks is None and not batch and layout.sums
            output = evaluate(*arguments) if sums else run_forward(*arguments, keep=False, masks=masks).output
    normalizer.follow()
    return output.unflatten(0, (individuals, -1)) if s0.dim() == 5 else output
