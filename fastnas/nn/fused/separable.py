"""Separable and dilated convolutions, the candidates that hold most of the weights; see `branches`."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

import fastnas.ops  # noqa: F401  (registers torch.ops.fastnas)
from fastnas.nn.fused.batch_norm import Affine, BatchStats, Normalization, count_values
from fastnas.nn.fused.branch import (
    CONVOLUTION,
    BackwardPass,
    Branch,
    BranchOutput,
    EdgeTerm,
    Forward,
    ForwardPass,
    IndexTensors,
    Slot,
    Tensors,
    taken,
)
from fastnas.nn.fused.patterns import Pattern, SeparablePattern, Stage
from fastnas.nn.primitives import DepthwiseStage, SeparableConv
from fastnas.ops.norm_rows import norm_rows_grad

_stage = torch.ops.fastnas.stage.default
_stage_grad = torch.ops.fastnas.stage_grad.default


class SeparableBranch(Branch):
    """ReLU, depthwise, pointwise: once (a dilated convolution), or twice with a BatchNorm between (a separable one).

    One call computes the first stages of all candidates, a second call the second stages of those that have one, which
    come first among the slots.
    """

    in_edge_sum = True

    def __init__(self, slots: Sequence[Slot], indices: IndexTensors | None = None, nodes: int = 1) -> None:
        super().__init__(sorted(slots, key=lambda slot: -len(slot.pattern.stages)), indices, nodes)
        stages: list[tuple[Stage, ...]] = [slot.pattern.stages for slot in self.slots]
        self.doubles = sum(len(each) == 2 for each in stages)  # candidates of two stages
        self.first_stages = [each[0] for each in stages]
        self.second_stages = [each[1] for each in stages[: self.doubles]]
        self.inner_norms = [stage.norm for stage in self.first_stages[: self.doubles]]
        self.dilations = [stage.depthwise.dilation[0] for stage in self.first_stages]
        self.second_dilations = [stage.depthwise.dilation[0] for stage in self.second_stages]

    @staticmethod
    def match(module: nn.Module) -> Pattern | None:
        if isinstance(module, SeparableConv):
            return SeparablePattern(tuple(_stage_of(cast(DepthwiseStage, stage)) for stage in module))
        return SeparablePattern((_stage_of(module),)) if isinstance(module, DepthwiseStage) else None

    def weights(self) -> list[Tensor | None]:
        """Depthwise, pointwise [stages] and those of second stages; then any parameters of the BatchNorms between."""
        convolutions: list[Tensor | None] = []
        for stages in (self.first_stages, self.second_stages):
            convolutions += [_parameter(stage.depthwise, "weight") for stage in stages]
            convolutions += [_parameter(stage.pointwise, "weight") for stage in stages]
        affine = [_affine_of(stage) for stage in self.first_stages[: self.doubles]]
        return convolutions if all(each.is_empty for each in affine) else [*convolutions, *sum(affine, ())]

    def _split(self, weights: Sequence[Tensor]) -> list[Sequence[Tensor]]:
        """Depthwise, pointwise, those of second stages, and the rest, in the order of `weights`."""
        first, second = len(self.first_stages), len(self.second_stages)
        ends = [0, first, 2 * first, 2 * first + second, 2 * first + 2 * second, len(weights)]
        return [weights[start:end] for start, end in itertools.pairwise(ends)]

    def affine(self, place: int = 0) -> Affine:
        return _affine_of(self.slots[place].pattern.stages[-1])

    def forward(self, run: ForwardPass, states: Tensors, weights: Tensors) -> Forward:
        depthwise, pointwise, second_depthwise, second_pointwise, learned = self._split(weights)
        batch, individuals = run.normalizer.batch, run.individuals
        first, mean, variance = _stage(
            states, None, None, depthwise, pointwise, self.dilations, self.stride, individuals, batch, batch
        )
        count = count_values(first[0])
        stats = [BatchStats(mean, variance, count)] if batch else []
        if not self.doubles:
            return BranchOutput(first), stats
        # [doubles, P, C]
        inner = BatchStats(mean[: self.doubles], variance[: self.doubles], count) if batch else None
        affine = [Affine(*learned[i : i + 3]) for i in range(0, len(learned), 3)]
        norm = run.normalizer.normalization(self.inner_norms, inner, affine, individuals)
        second, mean, variance = _stage(
            first[: self.doubles],
            norm.folded_mean,
            norm.scale,
            second_depthwise,
            second_pointwise,
            self.second_dilations,
            1,
            individuals,
            batch,
            batch,
        )
        if batch:
            stats.append(BatchStats(mean, variance, count))
        return BranchOutput(first, second, [tensor for tensor in norm if tensor is not None]), stats

    def raw(self, output: BranchOutput, x: Tensor) -> list[Tensor]:
        return [*output.second, *output.first[self.doubles :]]

    def stat_places(self) -> tuple[int, list[int]]:
        first, second = len(self.first_stages), len(self.second_stages)
        return first + second, [*range(first, first + second), *range(second, first)]

    def backward(self, back: BackwardPass, output: BranchOutput, weights: Tensors) -> list[Tensor]:
        depthwise, pointwise, second_depthwise, second_pointwise, learned = self._split(weights)
        grads = [back.grads[slot.node] for slot in self.slots]  # of each first stage
        coeffs = taken(back.coeffs, self.rows, back.indices)  # [stages, 4, C]
        of_second: list[Tensor] = []
        if self.doubles:
            norm = Normalization(*output.norm)
            read = output.first[: self.doubles]
            into_first, grad_depthwise, grad_pointwise, sums = _stage_grad(
                grads[: self.doubles],
                output.second,
                coeffs[: self.doubles],
                read,
                norm.folded_mean,
                norm.scale,
                second_depthwise,
                second_pointwise,
                self.second_dilations,
                1,
            )
            grads[: self.doubles] = into_first
            sum_dy, sum_dy_xhat = norm.unfold_sums(sums, into_first, read)  # [doubles, C]
            mean, rstd, scale = norm.mean[:, 0], norm.rstd[:, 0], norm.scale[:, 0]
            count = count_values(read[0]) if back.batch else 0
            norm_rows_grad(sum_dy, sum_dy_xhat, mean, rstd, scale, count, coeffs[: self.doubles])
            of_second = [*grad_depthwise, *grad_pointwise]
            if learned:
                of_second += norm.affine_grads(sum_dy, sum_dy_xhat, back.batch)
        grad_states, grad_depthwise, grad_pointwise, _ = _stage_grad(
            grads, output.first, coeffs, back.states, None, None, depthwise, pointwise, self.dilations, self.stride
        )
        back.grad_states += grad_states
        return [*grad_depthwise, *grad_pointwise, *of_second]

    def edge_terms(self, node: int) -> list[EdgeTerm]:
        first, second = len(self.first_stages), len(self.second_stages)
        terms = []
        for i, slot in enumerate(self.slots):
            if slot.node == node:
                stages = [(i, first + i, *_geometry(self.first_stages[i]))]
                if i < self.doubles:
                    at = 2 * first + i
                    stages.append((at, at + second, *_geometry(self.second_stages[i])))
                terms.append(EdgeTerm(CONVOLUTION, slot.row, tuple(stages)))
        return terms


def _stage_of(module: DepthwiseStage) -> Stage:
    return Stage(module.depthwise, module.pointwise, cast(nn.BatchNorm2d, module.norm))


def _geometry(stage: Stage) -> tuple[int, int]:
    return stage.depthwise.kernel_size[0], stage.depthwise.dilation[0]


def _parameter(module: nn.Module, name: str) -> Any:
    """A parameter, without the slow nn.Module.__getattr__; one that is parametrised is not in `_parameters`."""
    return module._parameters[name] if name in module._parameters else getattr(module, name)


def _affine_of(stage: Stage) -> Affine:
    """The parameters of its BatchNorm, with what the biases of its convolutions add."""
    depthwise, pointwise, norm = stage
    shift, bias = _parameter(pointwise, "bias"), _parameter(depthwise, "bias")
    if bias is not None:
        through = pointwise.weight.flatten(1) @ bias  # [C]
        shift = through if shift is None else through + shift
    return Affine(_parameter(norm, "weight"), _parameter(norm, "bias"), shift)
