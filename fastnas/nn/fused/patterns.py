"""What a candidate computes, in the terms of the operators, whoever wrote its module.

A form holds the layers of the candidate, never their parameters or buffers, which other code may replace.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, TypeAlias, cast

from torch import nn

from fastnas.nn.primitives import DepthwiseStage, FactorizedReduce, ReLUConvNorm, SeparableConv, Zero


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


Pattern: TypeAlias = SeparablePattern | PointwisePattern | PoolPattern | IdentityPattern | ZeroPattern


@dataclass(frozen=True, eq=False)
class CellPattern:
    """A cell of two inputs whose nodes sum what mixed operations make of all earlier states.

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


def match_op(module: nn.Module) -> Pattern | None:
    """Of a module of `fastnas.nn.primitives`; None where the operators do not know it."""
    if isinstance(module, SeparableConv):
        return SeparablePattern(tuple(_stage(cast(DepthwiseStage, stage)) for stage in module))
    if isinstance(module, DepthwiseStage):
        return SeparablePattern((_stage(module),))
    if isinstance(module, FactorizedReduce):
        return PointwisePattern((module.conv_even, module.conv_odd), cast(nn.BatchNorm2d, module.norm))
    if isinstance(module, ReLUConvNorm):
        plain = (module.conv.kernel_size, module.conv.stride) == ((1, 1), (1, 1))
        return PointwisePattern((module.conv,), cast(nn.BatchNorm2d, module.norm)) if plain else None
    if isinstance(module, Zero):
        return ZeroPattern(module.stride)
    if isinstance(module, nn.Identity):
        return IdentityPattern()
    if isinstance(module, nn.Sequential) and len(module) == 2:
        return match_pool(module[0], module[1])
    return match_pool(module)


def _stage(module: DepthwiseStage) -> Stage:
    return Stage(module.depthwise, module.pointwise, cast(nn.BatchNorm2d, module.norm))


def match_pool(pool: nn.Module, norm: nn.Module | None = None) -> PoolPattern | None:
    """Of a pooling layer and the normalisation behind it."""
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
