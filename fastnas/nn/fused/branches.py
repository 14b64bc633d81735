"""How the candidates of a derived network run on the fused operators: chains of convolutions and affine BatchNorms.

Nothing normalised is written out. Scale γ and shift β of a BatchNorm fold into the numbers by which the operators
normalise: γ·(y - mean)·rstd + β is (y - mean')·rstd' with rstd' = γ·rstd and mean' = mean - β / rstd'. Whoever reads
a raw output y next applies them: the second stage of a separable convolution (`stage`), or the sum of a node
(`node_sum`).

In the backward pass the gradient of y is a·G + b·(y - mean) + c, with numbers for each channel that follow from Σ G
and Σ G·ŷ, where ŷ = (y - mean)·rstd: the operators are given G, y and the numbers (a, b, mean, c).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

import fastnas.ops  # noqa: F401  (registers torch.ops.fastnas)
from fastnas.nn.batch_norm import BatchNorm
from fastnas.nn.fused.patterns import (
    IdentityPattern,
    Pattern,
    PointwisePattern,
    PoolPattern,
    SeparablePattern,
    ZeroPattern,
)

_stage = torch.ops.fastnas.stage.default
_stage_grad = torch.ops.fastnas.stage_grad.default
_pool = torch.ops.fastnas.pool.default
_pool_grad = torch.ops.fastnas.pool_grad.default
_preprocess = torch.ops.fastnas.preprocess.default
_preprocess_grad = torch.ops.fastnas.preprocess_grad.default
_node_sum_grad = torch.ops.fastnas.node_sum_grad.default

LEAST_SCALE = 1e-20  # |γ·rstd| below it counts as this much: the output is β then, in every digit
LEAST_GAMMA = 2.0**-4  # where |γ| is smaller, Σ g·(γ·ŷ + β) does not tell Σ g·ŷ precisely enough


class Moments(NamedTuple):
    """What one BatchNorm does to its channels, [C] each: γ·(y - mean)·rstd + β."""

    mean: Tensor
    rstd: Tensor
    gamma: Tensor
    beta: Tensor

    def folded(self) -> tuple[Tensor, Tensor]:
        """mean' and rstd', see the module."""
        scale = self.gamma * self.rstd
        scale = torch.where(scale.abs() < LEAST_SCALE, torch.full_like(scale, LEAST_SCALE).copysign(scale), scale)
        return self.mean - self.beta / scale, scale

    def affine_grads(self, total: Tensor, dot: Tensor, batch: bool) -> list[Tensor]:
        """The gradients of γ, β and the shift from Σ G and Σ G·ŷ."""
        return [dot, total, torch.zeros_like(total) if batch else self.gamma * self.rstd * total]

    def numbers(self, total: Tensor, dot: Tensor, values: int) -> Tensor:
        """(a, b, mean, c) [4, C] from Σ G and γ·Σ G·ŷ over so many values; 0 values where the moments are constants."""
        share = self.rstd / values if values else torch.zeros_like(self.rstd)
        return torch.stack([self.gamma * self.rstd, -share * self.rstd * dot, self.mean, -share * self.gamma * total])


Affine = Sequence[Tensor | None]
"""γ, β and the shift of a BatchNorm [C], see `affine_of`; None for ones, zeros, zeros."""


def affine_of(norm: nn.BatchNorm2d, shift: Tensor | None = None) -> list[Tensor | None]:
    """What is learned of a BatchNorm. shift [C]: what biases of convolutions add to all that it normalises, which the
    operators leave out. Statistics of the batch follow it, so that it changes nothing then."""
    return [norm.weight, norm.bias, shift]


def uses_batch(norm: nn.BatchNorm2d) -> bool:
    """Whether the batch's statistics normalise."""
    return norm.training or norm.running_mean is None


class Statistics:
    """Where the BatchNorms of one pass take mean and variance from, and how their running statistics follow.

    Args:
        batch: from the batch, as in training; else from the running statistics.
        dtype: of the numbers.
    """

    def __init__(self, batch: bool, dtype: torch.dtype) -> None:
        self.batch, self.dtype = batch, dtype
        self._taken: list[tuple[nn.BatchNorm2d, Tensor, Tensor]] = []

    def moments(self, norm: nn.BatchNorm2d, raw: Raw, affine: Affine) -> Moments:
        gamma, beta, shift = affine
        if self.batch:
            mean, variance, values = raw.mean.view(-1), raw.variance.view(-1), values_of(raw.y)  # [C], [C]
            if norm.running_mean is not None:
                whole = mean if shift is None else mean + shift
                self._taken.append((norm, whole, variance * (values / max(1, values - 1))))
        else:
            mean = cast(Tensor, norm.running_mean).to(self.dtype)
            mean = mean if shift is None else mean - shift
            variance = cast(Tensor, norm.running_var).to(self.dtype)
        gamma = torch.ones_like(mean) if gamma is None else gamma
        beta = torch.zeros_like(mean) if beta is None else beta
        return Moments(mean, torch.rsqrt(variance + norm.eps), gamma, beta)

    @torch.no_grad()
    def follow(self) -> None:
        """Moves running statistics towards those of the batch, as BatchNorm does while training."""
        for norm, mean, variance in self._taken:
            batches = cast(Tensor, norm.num_batches_tracked).add_(1)
            for buffer, value in ((norm.running_mean, mean), (norm.running_var, variance)):
                dtype = cast(Tensor, buffer).dtype
                share = batches.to(dtype).reciprocal() if norm.momentum is None else norm.momentum  # []
                cast(Tensor, buffer).lerp_(value.to(dtype), cast(Any, share))


@dataclass
class Raw:
    """What a chain gives before its last BatchNorm."""

    y: Tensor  # [N, C', H', W']
    mean: Tensor  # [..., C'] of the batch, where that normalises
    variance: Tensor
    kept: list[Tensor] = field(default_factory=list)  # for the backward pass


Weights = Sequence[Tensor]
"""Of the convolutions of a chain; those of `Affine` between them may be None."""


class Branch(ABC):
    """How one candidate gives its raw output, and how gradients pass it."""

    norm: nn.BatchNorm2d | None = None  # behind the raw output

    def norms(self) -> list[nn.BatchNorm2d]:
        return [] if self.norm is None else [self.norm]

    def weights(self) -> list[Tensor | None]:
        """Of the convolutions, and the `Affine` of the BatchNorms between them."""
        return []

    def affine(self) -> list[Tensor | None]:
        """That of the last BatchNorm; nothing where there is none."""
        return [] if self.norm is None else affine_of(self.norm)

    @abstractmethod
    def forward(self, states: Sequence[Tensor], weights: Weights, statistics: Statistics) -> Raw:
        """states: one [N, C, H, W]; a pointwise chain takes any number, side by side in the channels."""

    @abstractmethod
    def backward(
        self, grad: Tensor, numbers: Tensor, states: Sequence[Tensor], raw: Raw, weights: Weights, batch: bool
    ) -> tuple[list[Tensor], list[Tensor]]:
        """The gradients of the states and of the weights, from G [N, C', H', W'] and the numbers [4, C'] of y."""


class ZeroBranch(Branch):
    """Of zeros, which a sum leaves out."""

    def forward(self, states: Sequence[Tensor], weights: Weights, statistics: Statistics) -> Raw:
        raise NotImplementedError

    def backward(
        self, grad: Tensor, numbers: Tensor, states: Sequence[Tensor], raw: Raw, weights: Weights, batch: bool
    ) -> tuple[list[Tensor], list[Tensor]]:
        raise NotImplementedError


class IdentityBranch(Branch):
    """Of a skip connection, and of whatever plain torch has computed."""

    def forward(self, states: Sequence[Tensor], weights: Weights, statistics: Statistics) -> Raw:
        (x,) = states
        return Raw(x, x, x)

    def backward(
        self, grad: Tensor, numbers: Tensor, states: Sequence[Tensor], raw: Raw, weights: Weights, batch: bool
    ) -> tuple[list[Tensor], list[Tensor]]:
        return [grad], []


class PoolBranch(Branch):
    """Average (kind 0) or maximum (kind 1) of 3×3 windows, and perhaps a BatchNorm."""

    def __init__(self, pattern: PoolPattern) -> None:
        self.kind, self.stride, self.norm = int(pattern.maximum), pattern.stride, pattern.norm

    def forward(self, states: Sequence[Tensor], weights: Weights, statistics: Statistics) -> Raw:
        normalised = statistics.batch and self.norm is not None
        *pooled, mean, variance = _pool(states[0], self.stride, 1, normalised)
        if not normalised:
            return Raw(pooled[self.kind], mean, variance)
        return Raw(pooled[self.kind], mean[self.kind], variance[self.kind], pooled)

    def backward(
        self, grad: Tensor, numbers: Tensor, states: Sequence[Tensor], raw: Raw, weights: Weights, batch: bool
    ) -> tuple[list[Tensor], list[Tensor]]:
        table = numbers.new_zeros(2, *numbers.shape)  # [kinds, 4, C]
        table[self.kind] = numbers
        corrections = table[:, 1:] if raw.kept else None
        return [_pool_grad(states[0], [grad], table[:, :1], raw.kept, corrections, None, [], self.stride)], []


class PointwiseBranch(Branch):
    """ReLU and 1×1 convolution: a preprocessing; two of them side by side: a factorized reduction."""

    def __init__(self, pattern: PointwisePattern) -> None:
        self.norm, self.convolutions, self.stride = pattern.norm, pattern.convolutions, pattern.stride
        self.offsets = list(range(self.stride))

    def weights(self) -> list[Tensor | None]:
        return [convolution.weight.flatten(1) for convolution in self.convolutions]  # [C_out, C_in] each

    def affine(self) -> list[Tensor | None]:
        biases = [convolution.bias for convolution in self.convolutions if convolution.bias is not None]
        return affine_of(cast(nn.BatchNorm2d, self.norm), torch.cat(biases) if biases else None)

    def forward(self, states: Sequence[Tensor], weights: Weights, statistics: Statistics) -> Raw:
        return Raw(*_preprocess(states, weights, self.offsets, self.stride, 1, statistics.batch))

    def backward(
        self, grad: Tensor, numbers: Tensor, states: Sequence[Tensor], raw: Raw, weights: Weights, batch: bool
    ) -> tuple[list[Tensor], list[Tensor]]:
        return _preprocess_grad([grad], raw.y, numbers, states, weights, self.offsets, self.stride)


class SeparableBranch(Branch):
    """ReLU, depthwise, pointwise: once (a dilated convolution), or twice with a BatchNorm between (a separable one)."""

    def __init__(self, pattern: SeparablePattern) -> None:
        self.stages, self.stride = pattern.stages, pattern.stride
        self.norm = self.norms()[-1]
        self.dilations = [stage.depthwise.dilation[0] for stage in self.stages]

    def norms(self) -> list[nn.BatchNorm2d]:
        return [stage.norm for stage in self.stages]

    def weights(self) -> list[Tensor | None]:
        convolutions = [weight for stage in self.stages for weight in (stage.depthwise.weight, stage.pointwise.weight)]
        return [*convolutions, *(self._affine(0) if len(self.stages) == 2 else [])]

    def affine(self) -> list[Tensor | None]:
        return self._affine(-1)

    def _affine(self, index: int) -> list[Tensor | None]:
        depthwise, pointwise, norm = self.stages[index]
        shift = pointwise.bias
        if depthwise.bias is not None:
            through = pointwise.weight.flatten(1) @ depthwise.bias  # [C]
            shift = through if shift is None else through + shift
        return affine_of(norm, shift)

    def forward(self, states: Sequence[Tensor], weights: Weights, statistics: Statistics) -> Raw:
        batch, taps, matrices = statistics.batch, weights[:1], weights[1:2]
        (y,), mean, variance = _stage(
            states, None, None, taps, matrices, self.dilations[:1], self.stride, 1, batch, batch
        )
        first = Raw(y, mean, variance)
        if len(self.stages) == 1:
            return first
        moments = statistics.moments(self.norms()[0], first, weights[4:])
        shift, scale = (number.view(1, 1, -1) for number in moments.folded())
        taps, matrices = weights[2:3], weights[3:4]
        (y,), mean, variance = _stage([first.y], shift, scale, taps, matrices, self.dilations[1:], 1, 1, batch, batch)
        return Raw(y, mean, variance, [first.y, *moments])

    def backward(
        self, grad: Tensor, numbers: Tensor, states: Sequence[Tensor], raw: Raw, weights: Weights, batch: bool
    ) -> tuple[list[Tensor], list[Tensor]]:
        y, later = raw.y, []
        if len(self.stages) == 2:
            first, moments = raw.kept[0], Moments(*raw.kept[1:])
            shift, scale = (number.view(1, 1, -1) for number in moments.folded())
            taps, matrices = weights[2:3], weights[3:4]
            (grad,), *grads, sums = _stage_grad(
                [grad], [y], numbers[None], [first], shift, scale, taps, matrices, self.dilations[1:], 1
            )
            total, dot, grad_gamma = _through_norm(grad, first, moments, sums[0])
            y, numbers = first, moments.numbers(total, dot, values_of(first) if batch else 0)
            later = [*(weight for group in grads for weight in group), *moments.affine_grads(total, grad_gamma, batch)]
        taps, matrices = weights[:1], weights[1:2]
        grad_states, *grads, _ = _stage_grad(
            [grad], [y], numbers[None], states, None, None, taps, matrices, self.dilations[:1], self.stride
        )
        return grad_states, [*(weight for group in grads for weight in group), *later]


def values_of(images: Tensor) -> int:
    """Values of a channel of [N, C, H, W]."""
    return images.numel() // max(1, images.shape[1])


def _through_norm(grad: Tensor, y: Tensor, moments: Moments, sums: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Σ g, γ·Σ g·ŷ and Σ g·ŷ, the gradient of γ, from sums [2, C]: Σ g and Σ g·(γ·ŷ + β)."""
    total, dot = sums[0], sums[1] - moments.beta * sums[0]
    # To ask a GPU for the smallest |γ| would be to wait for it.
    if grad.is_cpu and moments.gamma.abs().amin() >= LEAST_GAMMA:
        return total, dot, dot / moments.gamma
    mean, rstd = (number.view(1, 1, -1) for number in moments[:2])
    dots = _node_sum_grad(grad, [y], mean, rstd, [])[2][0]
    return total, moments.gamma * dots, dots


def branch_of(pattern: Pattern | None) -> Branch | None:
    """How the operators compute a candidate; None where they do not know it."""
    if pattern is None or not all(_is_known(norm) for norm in pattern.norms):
        return None
    match pattern:
        case SeparablePattern():
            return SeparableBranch(pattern)
        case PointwisePattern():
            return PointwiseBranch(pattern)
        case PoolPattern():
            return PoolBranch(pattern)
        case IdentityPattern():
            return IdentityBranch()
        case ZeroPattern():
            return ZeroBranch()
    return None


def _is_known(norm: nn.BatchNorm2d) -> bool:
    return type(norm) is nn.BatchNorm2d or (type(norm) is BatchNorm and norm.images is None)
