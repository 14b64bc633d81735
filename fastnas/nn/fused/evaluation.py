"""A fused cell in evaluation mode, without gradients: how populations are scored; see `fused_cell`.

Statistics are constants here, so the candidates of an edge are summed where they are computed (`edge_sum`), and a node
adds up its edges. Neither candidates nor what is between the stages of one are ever written.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor

import fastnas.ops  # noqa: F401  (registers torch.ops.fastnas)
from fastnas.nn.fused.forward import Running, Settings, bypass, bypassing, incoming, preprocess
from fastnas.nn.fused.plan import CellLayout, CellWeights, SumPlan
from fastnas.ops.layout import empty_images

_edge_sum = torch.ops.fastnas.edge_sum.default
_preprocess = torch.ops.fastnas.preprocess.default
_node_sum_into = torch.ops.fastnas.node_sum_into.default


def evaluate(
    plan: CellLayout,
    settings: Settings,
    inputs: Sequence[Tensor],
    op_weights: Tensor,
    edge_weights: Tensor | None,
    weights: CellWeights,
    running: Running,
) -> Tensor:
    """The output [P·B, nodes·C, H', W'] of a cell all of whose states have a `SumPlan`.

    Args:
        inputs: [N, C_i, H_i, W_i], of B images where all individuals share them.
        op_weights: [P, K], of the rows.
        edge_weights: [P, E], of the channels that pass the candidates; ones by default.
    """
    individuals = settings.individuals
    sharing = [settings.shared[source] if source < 2 else False for source in range(len(plan.states))]
    images = inputs[0].shape[0] // (1 if sharing[0] else individuals)  # B
    states: list[Tensor] = []  # [N or B, C, H, W]
    for index, x in enumerate(inputs):
        matrices, moments = weights.preprocess[index], running.preprocess[index]
        states.append(preprocess(settings, 1 if sharing[index] else individuals, x, matrices, moments)[0])
    channels = states[0].shape[1]
    seen = channels // settings.parts  # by the candidates, C/k

    # A row more than there are: that of a term which an edge lacks, and of a sum, which counts as it is.
    mean, rstd = op_weights.new_zeros(2, len(plan.row_norms) + 1, 1, seen)  # [K + 1, 1, C/k]
    rstd += 1
    mean[plan.normalised_rows], variance = running.rows
    rstd[plan.normalised_rows] = torch.rsqrt(variance + settings.eps)
    none, one = op_weights.new_zeros(individuals, 1), op_weights.new_ones(individuals, 1)
    scales = torch.cat([op_weights, none], 1)[..., None] * rstd[:, 0]  # [P, K + 1, C/k]
    offsets = -scales * mean[:, 0]  # [P, K + 1, C/k]
    op_weights = torch.cat([op_weights, one], 1)  # [P, K + 1]
    mean, rstd = mean.expand(-1, individuals, -1), rstd.expand(-1, individuals, -1)  # [K + 1, P, C/k]

    sums: list[list[Tensor]] = [[] for _ in plan.states]  # of each node
    bypasses: list[Tensor] = []
    output: Tensor | None = None
    for source, state_plan in enumerate(plan.states):
        state = states[source]
        x = state.narrow(1, 0, seen)  # [N, C/k, H, W]
        sum_plan = cast(SumPlan, state_plan.sums)
        inner = len(sum_plan.dilations) - len(sum_plan.depths)  # S - J: none where no candidate has two stages
        inner_mean, inner_variance = (
            part[:, 0].view(len(state_plan.nodes), inner, seen) for part in running.first[source]
        )
        inner_rstd = torch.rsqrt(inner_variance + settings.eps)  # [E, S - J, C/k]
        edge_sums = _edge_sum(
            x,
            *sum_plan.arrange(weights, source),
            sum_plan.depths,
            sum_plan.dilations,
            inner_rstd,
            -inner_mean * inner_rstd,
            scales[:, sum_plan.rows],
            offsets[:, sum_plan.rows].sum(2),
            state_plan.stride,
            sharing[source],
        )
        for leads_to, edge_sum in zip(state_plan.nodes, edge_sums, strict=True):
            sums[leads_to - 2].append(edge_sum)
        if state_plan.reduces:
            offsets_of = [0, 1] * len(state_plan.reduces)
            raw, _, _ = _preprocess([x], weights.reduce[source], offsets_of, 2, 1, False)  # [N, reduces·C/k, H', W']
            for index, (edge, *_) in enumerate(state_plan.reduces):
                sums[state_plan.nodes[edge] - 2].append(raw.narrow(1, index * seen, seen))
        if settings.parts > 1 and (source < 2 or edge_weights is not None):
            bypasses.append(bypass(state, seen, state_plan.stride))
        if source == 0:
            continue
        index = source - 1  # the node that has all of its edges now
        if output is None:
            shape = (individuals * images, (len(plan.states) - 1) * channels, *edge_sums[0].shape[2:])
            output = empty_images(x, shape)
        of_node = plan.sum_rows[index]
        node_state = output.narrow(1, index * channels, channels)
        edges = None if edge_weights is None else edge_weights[:, incoming(index)].contiguous()
        passing, previous = bypassing(settings, edges, index, bypasses, state)
        _node_sum_into(
            node_state,
            sums[index],
            mean[of_node],
            rstd[of_node],
            op_weights[:, of_node],
            passing,
            edges,
            individuals,
            images,
            previous,
        )
        sums[index] = []
        states.append(node_state)
    return cast(Tensor, output)
