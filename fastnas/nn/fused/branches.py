"""The kinds of candidates: which modules each stands for, and how the operators compute it, forward and backward.

To add a kind, write a class like these and enter it in `KINDS`; CONTRIBUTING.md has the steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

import fastnas.ops  # noqa: F401  (registers torch.ops.fastnas)
from fastnas.nn.fused.batch_norm import Affine, BatchStats, count_values, is_known
from fastnas.nn.fused.branch import (
    AVERAGE,
    ITSELF,
    MAXIMUM,
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
from fastnas.nn.fused.patterns import (
    IdentityPattern,
    Pattern,
    PointwisePattern,
    PoolPattern,
    SeparablePattern,
    ZeroPattern,
    match_pool,
)
from fastnas.nn.fused.separable import SeparableBranch
from fastnas.nn.primitives import FactorizedReduce, ReLUConvNorm, Zero

_pool = torch.ops.fastnas.pool.default
_preprocess = torch.ops.fastnas.preprocess.default
_preprocess_grad = torch.ops.fastnas.preprocess_grad.default


class PoolBranch(Branch):
    """Averages and maxima of 3×3 windows, perhaps with a BatchNorm.

    They have no weights, so all candidates of one state share the average and the maximum.
    """

    in_edge_sum = True

    def __init__(self, slots: Sequence[Slot], indices: IndexTensors | None = None, nodes: int = 1) -> None:
        super().__init__(slots, indices, nodes)
        self.kinds = [int(slot.pattern.maximum) for slot in slots]
        self.normalised = any(norm is not None for norm in self.last_norms)
        # (row, place) of `pool_tables`: the scale of each, and the statistics of those that are normalised.
        self.entries = [(slot.row, kind * nodes + slot.node) for kind, slot in zip(self.kinds, slots, strict=True)]
        for kind, slot, norm in zip(self.kinds, slots, self.last_norms, strict=True):
            if norm is not None:
                self.entries.append((slot.row, 2 * nodes + kind))

    @staticmethod
    def match(module: nn.Module) -> Pattern | None:
        if isinstance(module, nn.Sequential) and len(module) == 2:
            return match_pool(module[0], module[1])
        return match_pool(module)

    def forward(self, run: ForwardPass, states: Tensors, weights: Tensors) -> Forward:
        statistics = run.normalizer.batch and self.normalised
        average, maximum, mean, variance = _pool(states[0], self.stride, run.individuals, statistics)
        stats = [BatchStats(mean, variance, count_values(average))] if statistics else []
        return BranchOutput([average, maximum]), stats

    def raw(self, output: BranchOutput, x: Tensor) -> list[Tensor]:
        return [output.first[kind] for kind in self.kinds]

    def stat_places(self) -> tuple[int, list[int]]:
        return (2 if self.normalised else 0), self.kinds

    def backward(self, back: BackwardPass, output: BranchOutput, weights: Tensors) -> list[Tensor]:
        back.entries += self.entries
        if back.batch and self.normalised:
            back.pooled = output.first
        return []

    def edge_terms(self, node: int) -> list[EdgeTerm]:
        kinds = (AVERAGE, MAXIMUM)
        return [EdgeTerm(kinds[slot.pattern.maximum], slot.row) for slot in self.slots if slot.node == node]


class PointwiseBranch(Branch):
    """ReLU and 1×1 convolution: a preprocessing; two of them side by side, of stride 2: a factorized reduction."""

    @staticmethod
    def match(module: nn.Module) -> Pattern | None:
        if isinstance(module, FactorizedReduce):
            return PointwisePattern((module.conv_even, module.conv_odd), cast(nn.BatchNorm2d, module.norm))
        if not isinstance(module, ReLUConvNorm):
            return None
        plain = (module.conv.kernel_size, module.conv.stride) == ((1, 1), (1, 1))
        return PointwisePattern((module.conv,), cast(nn.BatchNorm2d, module.norm)) if plain else None

    def weights(self) -> list[Tensor | None]:
        return [matrix for slot in self.slots for matrix in matrices_of(slot.pattern)]

    def affine(self, place: int = 0) -> Affine:
        pattern = self.slots[place].pattern
        biases = [convolution.bias for convolution in pattern.convolutions if convolution.bias is not None]
        return Affine(pattern.norm.weight, pattern.norm.bias, torch.cat(biases) if biases else None)

    def forward(self, run: ForwardPass, states: Tensors, weights: Tensors) -> Forward:
        raw, mean, variance = _preprocess(
            states, weights, self._offsets(), self.stride, run.individuals, run.normalizer.batch
        )  # [N, slots·C, H', W'], the candidates side by side in the channels; [P, slots·C] each
        if not run.normalizer.batch:
            return BranchOutput([raw]), []
        mean, variance = (part.unflatten(-1, (len(self.slots), -1)).transpose(0, 1) for part in (mean, variance))
        return BranchOutput([raw]), [BatchStats(mean, variance, count_values(raw))]

    def _offsets(self) -> list[int]:
        return list(range(self.stride)) * len(self.slots)

    def raw(self, output: BranchOutput, x: Tensor) -> list[Tensor]:
        return list(output.first[0].chunk(len(self.slots), 1))

    def backward(self, back: BackwardPass, output: BranchOutput, weights: Tensors) -> list[Tensor]:
        coeffs = taken(back.coeffs, self.rows, back.indices).transpose(0, 1).flatten(1)  # [4, slots·C]
        grads = [back.grads[slot.node] for slot in self.slots]
        grad_states, grad_weights = _preprocess_grad(
            grads, output.first[0], coeffs, back.states, weights, self._offsets(), self.stride
        )
        back.grad_states += grad_states
        return grad_weights


def matrices_of(pattern: PointwisePattern) -> list[Tensor]:
    """[C_out, C_in] of each 1×1 convolution."""
    return [convolution.weight.flatten(1) for convolution in pattern.convolutions]


class IdentityBranch(Branch):
    """Skip connections, and outputs that plain torch has computed."""

    in_edge_sum = True

    def __init__(self, slots: Sequence[Slot], indices: IndexTensors | None = None, nodes: int = 1) -> None:
        super().__init__(slots, indices, nodes)
        self.entries = [(slot.row, 2 * nodes + 2 + slot.node) for slot in slots]  # (row, place) of `pool_tables`

    @staticmethod
    def match(module: nn.Module) -> Pattern | None:
        return IdentityPattern() if isinstance(module, nn.Identity) else None

    def forward(self, run: ForwardPass, states: Tensors, weights: Tensors) -> Forward:
        return BranchOutput([]), []

    def raw(self, output: BranchOutput, x: Tensor) -> list[Tensor]:
        return [x] * len(self.slots)

    def stat_places(self) -> tuple[int, list[int]]:
        return 0, []

    def backward(self, back: BackwardPass, output: BranchOutput, weights: Tensors) -> list[Tensor]:
        back.entries += self.entries
        back.skips = True
        return []

    def edge_terms(self, node: int) -> list[EdgeTerm]:
        return [EdgeTerm(ITSELF, slot.row) for slot in self.slots if slot.node == node]


class ZeroBranch(Branch):
    """Zeros, which sums leave out."""

    @staticmethod
    def match(module: nn.Module) -> Pattern | None:
        return ZeroPattern(module.stride) if isinstance(module, Zero) else None

    def forward(self, *arguments: object) -> Forward:
        raise NotImplementedError

    def raw(self, output: BranchOutput, x: Tensor) -> list[Tensor]:
        raise NotImplementedError

    def backward(self, *arguments: object) -> list[Tensor]:
        raise NotImplementedError


KINDS: dict[type[Pattern], type[Branch]] = {
    PoolPattern: PoolBranch,
    SeparablePattern: SeparableBranch,
    PointwisePattern: PointwiseBranch,
    IdentityPattern: IdentityBranch,
    ZeroPattern: ZeroBranch,
}
"""In the order in which a cell computes them."""


def match_op(module: nn.Module) -> Pattern | None:
    """What a module of `fastnas.nn.primitives` computes; None where the operators do not know it."""
    return next((pattern for kind in KINDS.values() if (pattern := kind.match(module)) is not None), None)


def branch_of(pattern: Pattern | None) -> Branch | None:
    """How the operators compute a candidate alone; None where they do not know it."""
    if pattern is None or not all(is_known(norm) for norm in pattern.norms):
        return None
    return KINDS[type(pattern)]([Slot(pattern)])
