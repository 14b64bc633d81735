"""What all kinds of candidates have in common: how candidates that read the same state are computed together.

A `Branch` is a list of candidates of one kind. A cell of a supernet has one for every kind that leaves a state, a node
of a derived network one for every candidate. `branches` has the kinds.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple, cast

import torch
from torch import Tensor, nn

import fastnas.ops  # noqa: F401  (registers torch.ops.fastnas)
from fastnas.nn.fused.batch_norm import Affine, BatchStats, Normalizer
from fastnas.nn.fused.patterns import Pattern
from fastnas.ops.pool_tables import pool_tables

_pool_grad = torch.ops.fastnas.pool_grad.default


class Slot(NamedTuple):
    """A candidate, and where its output goes."""

    pattern: Any  # of the kind that the branch computes
    node: int = 0  # among the nodes that the state leads to
    row: int = 0  # among the candidates of the cell: in tables of statistics, weights and coefficients


class EdgeTerm(NamedTuple):
    """A candidate as a term of `edge_sum`."""

    kind: int  # CONVOLUTION, or a place after the convolutions: AVERAGE, MAXIMUM, ITSELF
    row: int
    stages: tuple[tuple[int, int, int, int], ...] = ()  # (index of taps, of matrix among the weights, kernel, dilation)


CONVOLUTION, AVERAGE, MAXIMUM, ITSELF = -1, 0, 1, 2


class IndexTensors(nn.Module):
    """The indices into the tables of a cell, as tensors on the device of its weights.

    So no step copies indices to a GPU or waits for it. All are parts of one buffer, which moves in one copy.
    """

    def __init__(self) -> None:
        super().__init__()
        self._values: list[list[int]] = []
        self._views: tuple[Tensor, ...] = ()
        self.packed: Tensor | None
        self.register_buffer("packed", None, persistent=False)

    def add(self, values: Iterable[int]) -> int:
        """Adds a list of indices; returns its place in `tensors`."""
        self._values.append(list(values))
        return len(self._values) - 1

    def pack(self, device: torch.device) -> None:
        """Makes the tensors; call it once, after the last `add`."""
        with torch.inference_mode(False):
            self.packed = self._written().to(device)
            self._views = self._split(self.packed)

    def _written(self) -> Tensor:
        return torch.tensor([index for values in self._values for index in values], dtype=torch.int64, device="cpu")

    def tensors(self) -> tuple[Tensor, ...]:
        """int64, in the order of `add`, on the device of the module."""
        packed = cast(Tensor, self.packed)
        if self._views[0].device != packed.device:
            self._views = self._split(packed)
        return self._views

    def _split(self, packed: Tensor) -> tuple[Tensor, ...]:
        return packed.split([len(values) for values in self._values])

    def _apply(self, fn: Any, recurse: bool = True) -> IndexTensors:
        """Writes the indices again, since `to_empty` leaves memory without values."""
        super()._apply(fn, recurse)
        if self.packed is not None:
            self.packed.copy_(self._written())
            self._views = self._split(self.packed)
        return self


@dataclass
class BranchOutput:
    """The outputs of the candidates of a branch before their last BatchNorm, and what lies between their stages."""

    first: list[Tensor]  # of the operator that reads the state, [N, C', H', W'] each
    second: list[Tensor] = field(default_factory=list)  # of one that reads some of `first`, normalised
    norm: list[Tensor] = field(default_factory=list)  # the `Normalization` on the way from first to second


@dataclass(frozen=True)
class ForwardPass:
    """How the branches of one pass are computed."""

    normalizer: Normalizer
    individuals: int = 1  # P
    indices: Sequence[Tensor] = ()  # of the cell; none for a lone candidate


@dataclass
class BackwardPass:
    """The backward pass at one state: the gradients that reach the branches that read it, and what they make of them.

    Average pools, max pools and identities only scale the gradients of nodes channel by channel and move them, so one
    call of `pool_grad` computes theirs and adds all others.
    """

    states: Sequence[Tensor]  # one [N, C, H, W]; where a lone candidate reads several, side by side in the channels
    grads: Sequence[Tensor]  # of each node that the state leads to, [N, C', H', W']
    coeffs: Tensor  # (scale, slope, mean, offset) [K, 4, C'] of each row, see `batch_norm`
    batch: bool  # whether the batch's statistics normalised
    indices: Sequence[Tensor] = ()  # of the cell; none for a lone candidate
    grad_states: list[Tensor] = field(default_factory=list)  # finished, to be added up where there is one state
    entries: list[tuple[int, int]] = field(default_factory=list)  # (row, place) for `pool_tables`
    pooled: list[Tensor] = field(default_factory=list)  # average and maximum, where the batch normalises them
    skips: bool = False  # whether there are identities

    def total(self, stride: int) -> Tensor:
        """The gradient [N, C, H, W] of the state."""
        (x,) = self.states
        if not self.entries and len(self.grad_states) == 1:
            return self.grad_states[0]
        rows, places = [row for row, _ in self.entries], [place for _, place in self.entries]
        scales, coeffs, skip = pool_tables(self.coeffs, rows, places, len(self.grads))
        normalised, skips = coeffs if self.pooled else None, skip if self.skips else None
        return _pool_grad(x, self.grads, scales, self.pooled, normalised, skips, self.grad_states, stride)


Tensors = Sequence[Tensor]
Forward = tuple[BranchOutput, list[BatchStats]]


class Branch(ABC):
    """The candidates of one kind that read the same state.

    Args:
        slots: the candidates.
        indices: of a cell, to which the branch adds its own; None for a lone candidate, whose tables have one row.
        nodes: number of nodes that the state leads to.
    """

    in_edge_sum: ClassVar[bool] = False
    """Whether `edge_sum` computes the candidates in evaluation mode; if not, a node's sum takes their raw outputs."""

    def __init__(self, slots: Sequence[Slot], indices: IndexTensors | None = None, nodes: int = 1) -> None:
        self.slots = tuple(slots)
        self.stride: int = slots[0].pattern.stride
        norms = [slot.pattern.norms for slot in slots]
        self.last_norms: list[nn.BatchNorm2d | None] = [each[-1] if each else None for each in norms]
        self.inner_norms: list[nn.BatchNorm2d] = []  # before those
        self.rows = None if indices is None else indices.add(slot.row for slot in slots)

    @staticmethod
    def match(module: nn.Module) -> Pattern | None:
        """What a module of `fastnas.nn.primitives` computes, if it is of this kind."""
        return None

    def norms(self) -> list[nn.BatchNorm2d]:
        return [*self.inner_norms, *(norm for norm in self.last_norms if norm is not None)]

    def weights(self) -> list[Tensor | None]:
        """Weights of the convolutions, and parameters of the BatchNorms between them."""
        return []

    def affine(self, place: int = 0) -> Affine:
        """The parameters of the last BatchNorm of a candidate, by its place among the slots."""
        norm = self.last_norms[place]
        return Affine(None, None, None) if norm is None else Affine(norm.weight, norm.bias, None)

    @abstractmethod
    def forward(self, run: ForwardPass, states: Tensors, weights: Tensors) -> Forward:
        """Raw outputs, and their statistics where those of the batch normalise them.

        states: one [N, C, H, W]; some kinds take any number, side by side in the channels.
        """

    @abstractmethod
    def raw(self, output: BranchOutput, x: Tensor) -> list[Tensor]:
        """What each candidate contributes to its node, before its last BatchNorm [N, C', H', W']."""

    def stat_places(self) -> tuple[int, list[int]]:
        """How many statistics `forward` gives, and the place of each candidate's among them."""
        return len(self.slots), list(range(len(self.slots)))

    def stats_of(self, stats: Sequence[BatchStats], place: int) -> BatchStats:
        """Those of a candidate [1, P, C], by its place among the slots, of what `forward` gives."""
        row = self.stat_places()[1][place]
        for each in stats:
            if row < len(each.mean):
                break
            row -= len(each.mean)
        return BatchStats(each.mean[row : row + 1], each.variance[row : row + 1], each.values)

    @abstractmethod
    def backward(self, back: BackwardPass, output: BranchOutput, weights: Tensors) -> list[Tensor]:
        """Adds the gradient of the state to `back`; returns those of the weights."""

    def edge_terms(self, node: int) -> list[EdgeTerm]:
        """The candidates that lead to a node, as terms of `edge_sum`."""
        return []


def taken(table: Tensor, index: int | None, indices: Tensors) -> Tensor:
    """Rows of a table; all of it for a lone candidate."""
    return table if index is None else table[indices[index]]
