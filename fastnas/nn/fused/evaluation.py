"""A fused cell in evaluation mode, without gradients: how populations are scored; see `cell`.

Statistics are constants here, so the candidates of an edge are summed where they are computed (`edge_sum`), and a node
adds up its edges. Neither the candidates nor what lies between their stages is ever written.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor

import fastnas.ops  # noqa: F401  (registers torch.ops.fastnas)
from fastnas.nn.fused.batch_norm import Normalizer
from fastnas.nn.fused.branch import ForwardPass
from fastnas.nn.fused.forward import Settings, bypass, bypassing_of, incoming, preprocess
from fastnas.nn.fused.plan import CellLayout, CellWeights, SumPlan
from fastnas.ops.layout import empty_images

_edge_sum = torch.ops.fastnas.edge_sum.default
_node_sum_into = torch.ops.fastnas.node_sum_into.default


def evaluate(
    layout: CellLayout,
    settings: Settings,
    inputs: Sequence[Tensor],
    op_weights: Tensor,
    edge_weights: Tensor | None,
    weights: CellWeights,
    normalizer: Normalizer,
) -> Tensor:
    """The output [P·B, nodes·C, H', W'] of a cell all of whose states have a `SumPlan`.

    Args:
        inputs: [N, C_i, H_i, W_i], of B images where all individuals share them.
        op_weights: [P, K], of the rows.
        edge_weights: [P, E], of the channels that bypass the candidates; ones by default.
    """
    individuals, indices = settings.individuals, layout.indices.tensors()
    images = inputs[0].shape[0] // settings.individuals_of(0)  # B
    states: list[Tensor] = []  # [N or B, C, H, W]
    for index, x in enumerate(inputs):
        pattern, matrices = layout.preprocess[index], weights.preprocess[index]
        states.append(preprocess(normalizer, settings.individuals_of(index), x, pattern, matrices)[0])
    channels = states[0].shape[1]
    seen = channels // settings.parts  # by the candidates, C/k

    # One more row than there are: for a term that an edge lacks, and for an edge's sum, which is added unchanged.
    mean, rstd = op_weights.new_zeros(2, len(layout.row_norms) + 1, 1, seen)  # [K + 1, 1, C/k]
    rstd += 1
    if row_norms := [norm for norm in layout.row_norms if norm is not None]:
        of_norms = indices[layout.normalised_rows]
        mean[of_norms], variance, _ = normalizer.running(row_norms)
        rstd[of_norms] = torch.rsqrt(variance + settings.eps)
    none, one = op_weights.new_zeros(individuals, 1), op_weights.new_ones(individuals, 1)
    scales = torch.cat([op_weights, none], 1)[..., None] * rstd[:, 0]  # [P, K + 1, C/k]
    offsets = -scales * mean[:, 0]  # [P, K + 1, C/k]
    op_weights = torch.cat([op_weights, one], 1)  # [P, K + 1]
    mean, rstd = mean.expand(-1, individuals, -1), rstd.expand(-1, individuals, -1)  # [K + 1, P, C/k]

    sums: list[list[Tensor]] = [[] for _ in layout.states]  # of each node
    bypasses: list[Tensor] = []
    output: Tensor | None = None
    for source, plan in enumerate(layout.states):
        state, of_branches = states[source], weights.branches[source]
        x = state.narrow(1, 0, seen)  # [N, C/k, H, W]
        sum_plan = cast(SumPlan, plan.sum_plan)
        inner = op_weights.new_empty(2, sum_plan.edges, 0, seen)  # [2, E, S - J, C/k]
        if norms := [norm for branch in plan.branches for norm in branch.inner_norms]:
            inner = torch.stack(normalizer.normalization(norms, None)[:2]).view(2, sum_plan.edges, -1, seen)
        rows = indices[sum_plan.rows].view(sum_plan.edges, -1)  # [E, M]
        edge_sums = _edge_sum(
            x,
            *sum_plan.weights(of_branches),
            sum_plan.depths,
            sum_plan.dilations,
            inner[1],
            -inner[0] * inner[1],
            scales[:, rows],
            offsets[:, rows].sum(2),
            plan.stride,
            settings.individuals_of(source) < individuals,
        )
        for leads_to, edge_sum in zip(plan.nodes, edge_sums, strict=True):
            sums[leads_to - 2].append(edge_sum)
        run = ForwardPass(normalizer, settings.individuals_of(source), indices)
        for branch, of_branch in zip(plan.branches, of_branches, strict=True):
            if not branch.in_edge_sum:
                raws = branch.raw(branch.forward(run, [x], of_branch)[0], x)
                for slot, raw in zip(branch.slots, raws, strict=True):
                    sums[plan.nodes[slot.node] - 2].append(raw)
        if settings.parts > 1 and (source < 2 or edge_weights is not None):
            bypasses.append(bypass(state, seen, plan.stride))
        if source == 0:
            continue
        node = source - 1  # all of its edges are there now
        if output is None:
            shape = (individuals * images, (len(layout.states) - 1) * channels, *edge_sums[0].shape[2:])
            output = empty_images(x, shape)
        of_node = indices[layout.sum_rows[node]]
        node_state = output.narrow(1, node * channels, channels)
        edges = None if edge_weights is None else edge_weights[:, incoming(node)].contiguous()
        bypassing, prev_node = bypassing_of(settings, edges, node, bypasses, state)
        _node_sum_into(
            node_state,
            sums[node],
            mean[of_node],
            rstd[of_node],
            op_weights[:, of_node],
            bypassing,
            edges,
            individuals,
            images,
            prev_node,
        )
        sums[node] = []
        states.append(node_state)
    return cast(Tensor, output)
