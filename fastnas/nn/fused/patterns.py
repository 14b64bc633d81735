"""What a candidate computes, in terms of the operators, whatever code its module comes from.

A pattern holds the layers of the candidate, never their parameters or buffers, which other code may replace.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol

from torch import nn


class Pattern(Protocol):
    """What the patterns of all kinds have in common."""

    @property
    def stride(self) -> int: ...

    @property
    def convolutions(self) -> tuple[nn.Conv2d, ...]: ...

    @property
    def norms(self) -> tuple[nn.BatchNorm2d, ...]: ...


class Stage(NamedTuple):
    """ReLU, depthwise k×k, pointwise 1×1, normalisation."""

    depthwise: nn.Conv2d
    pointwise: nn.Conv2d
    norm: nn.BatchNorm2d


@dataclass(frozen=True, eq=False)
class SeparablePattern:
    """One stage (a dilated convolution) or two, of which the first has the stride (a separable one)."""

    stages: tuple[Stage, ...]

    @property
    def stride(self) -> int:
        return self.stages[0].depthwise.stride[0]

    @property
    def convolutions(self) -> tuple[nn.Conv2d, ...]:
        return tuple(layer for stage in self.stages for layer in stage[:2])

    @property
    def norms(self) -> tuple[nn.BatchNorm2d, ...]:
        return tuple(stage.norm for stage in self.stages)


@dataclass(frozen=True, eq=False)
class PointwisePattern:
    """ReLU, 1×1 convolution, normalisation; or two convolutions of stride 2, the halves of a factorized reduction."""

    convolutions: tuple[nn.Conv2d, ...]
    norm: nn.BatchNorm2d

    @property
    def stride(self) -> int:
        return len(self.convolutions)

    @property
    def norms(self) -> tuple[nn.BatchNorm2d, ...]:
        return (self.norm,)


@dataclass(frozen=True, eq=False)
class PoolPattern:
    """3×3, padding 1: the maximum, or the average of the pixels inside the image; and perhaps a normalisation."""

    maximum: bool
    stride: int
    norm: nn.BatchNorm2d | None
    convolutions: tuple[nn.Conv2d, ...] = ()

    @property
    def norms(self) -> tuple[nn.BatchNorm2d, ...]:
        return () if self.norm is None else (self.norm,)


@dataclass(frozen=True, eq=False)
class IdentityPattern:
    """The input itself."""

    stride: int = 1
    convolutions: tuple[nn.Conv2d, ...] = ()
    norms: tuple[nn.BatchNorm2d, ...] = ()


@dataclass(frozen=True, eq=False)
class ZeroPattern:
    """Zeros."""

    stride: int
    convolutions: tuple[nn.Conv2d, ...] = ()
    norms: tuple[nn.BatchNorm2d, ...] = ()


@dataclass(frozen=True, eq=False)
class CellPattern:
    """A cell of two inputs whose nodes sum the mixed operations of all earlier states.

    Args:
        preprocess: of the two inputs.
        edges: the candidates of every edge, by node, then by source; None for one that the operators do not know.
        stride: of the edges that leave the inputs.
        parts: the candidates see the first 1/k of the channels.
    """

    preprocess: tuple[PointwisePattern, PointwisePattern]
    edges: tuple[tuple[Pattern | None, ...], ...]
    stride: int
    parts: int


def match_pool(pool: nn.Module, norm: nn.Module | None = None) -> PoolPattern | None:
    """The pattern of a pooling layer and the normalisation after it; None where the operators do not know it."""
    if not isinstance(pool, nn.AvgPool2d | nn.MaxPool2d) or not isinstance(norm, nn.BatchNorm2d | None):
        return None
    if isinstance(pool, nn.AvgPool2d):
        inside = not pool.count_include_pad and pool.divisor_override is None
    else:
        inside = pool.dilation in (1, (1, 1)) and not pool.return_indices
    sizes = [_pair(value) for value in (pool.kernel_size, pool.padding, pool.stride)]
    if not inside or pool.ceil_mode or sizes[:2] != [(3, 3), (1, 1)] or sizes[2] not in ((1, 1), (2, 2)):
        return None
    return PoolPattern(isinstance(pool, nn.MaxPool2d), sizes[2][0], norm)


def _pair(value: int | tuple[int, ...]) -> tuple[int, ...]:
    return (value, value) if isinstance(value, int) else tuple(value)
