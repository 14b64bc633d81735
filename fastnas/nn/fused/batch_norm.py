"""BatchNorm as the operators compute it: statistics, folding, the backward pass, running averages.

No normalised tensor is ever written. The operator that next reads a raw output y computes (y - mean)·rstd: the second
stage of a separable convolution (`stage`), or the sum of a node (`node_sum`). Scale γ and shift β fold into the
two: γ·(y - mean)·rstd + β is (y - mean')·rstd' with rstd' = γ·rstd and mean' = mean - β / rstd'.

In the backward pass the gradient of y is scale·dy + slope·(y - mean) + offset, where dy is the gradient of what was
normalised, and scale, slope and offset of each channel follow from Σ dy and Σ dy·x̂, x̂ = (y - mean)·rstd. It is not
written out either: the operators are given dy, y and a row (scale, slope, mean, offset).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

import fastnas.ops  # noqa: F401  (registers torch.ops.fastnas)
from fastnas.nn.batch_norm import BatchNorm
from fastnas.ops.norm_rows import norm_rows
from fastnas.ops.running_statistics import running_statistics

_node_sum_grad = torch.ops.fastnas.node_sum_grad.default

LEAST_SCALE = 1e-20  # replaces a smaller |γ·rstd|: the output is β then, in every digit
LEAST_GAMMA = 2.0**-4  # where |γ| is smaller, Σ dy·(γ·x̂ + β) does not tell Σ dy·x̂ precisely enough


class BatchStats(NamedTuple):
    """Statistics of the channels of raw outputs, over the images of each individual."""

    mean: Tensor  # [norms, P, C]
    variance: Tensor  # [norms, P, C], biased
    values: int  # number for each channel; 0 for running averages


class Affine(NamedTuple):
    """The learned parameters of a BatchNorm, [C] each: γ (None for ones), β and a shift (None for zeros).

    shift: what the biases of convolutions add to its input, which the operators leave out. The mean of a batch shifts
    along, so it only matters where running averages normalise.
    """

    gamma: Tensor | None
    beta: Tensor | None
    shift: Tensor | None

    @property
    def is_empty(self) -> bool:
        return self.gamma is None and self.beta is None and self.shift is None


class Normalization(NamedTuple):
    """What BatchNorms do to their channels: γ·(y - mean)·rstd + β, which is (y - folded_mean)·scale."""

    mean: Tensor  # [norms, P, C]
    rstd: Tensor  # [norms, P, C]
    folded_mean: Tensor  # mean' [norms, P, C], see the module
    scale: Tensor  # γ·rstd [norms, P, C]
    gamma: Tensor | None = None  # [norms, 1, C]; None for ones, β being zeros then
    beta: Tensor | None = None  # [norms, 1, C]

    @classmethod
    def of(cls, mean: Tensor, rstd: Tensor, affine: Sequence[Affine] = ()) -> Normalization:
        """From mean and rstd [norms, P, C], with the parameters of each norm."""
        if all(each.gamma is None and each.beta is None for each in affine):
            return cls(mean, rstd, mean, rstd)
        gamma = _stacked([each.gamma for each in affine], 1.0, mean)
        beta = _stacked([each.beta for each in affine], 0.0, mean)
        scale = gamma * rstd
        scale = torch.where(scale.abs() < LEAST_SCALE, LEAST_SCALE, scale)
        return cls(mean, rstd, torch.addcdiv(mean, beta, scale, value=-1), scale, gamma, beta)

    def unfold_sums(self, sums: Tensor, grads: Sequence[Tensor], outputs: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Σ dy and Σ dy·x̂ [norms, C] of one individual, from sums [norms, 2, C]: Σ dy and Σ dy·(γ·x̂ + β).

        grads, outputs: dy and y [N, C, H, W] of each.
        """
        sum_dy, sum_dy_xhat = sums.unbind(1)
        if self.gamma is None or self.beta is None:
            return sum_dy, sum_dy_xhat
        imprecise = list(range(len(sums)))
        if sums.is_cpu:  # asking a GPU for the smallest |γ| would wait for it
            least = torch.linalg.vector_norm(self.gamma, -torch.inf, dim=(1, 2))  # [norms]
            imprecise = [i for i, value in enumerate(least.tolist()) if not value >= LEAST_GAMMA]
        if len(imprecise) < len(sums):
            sum_dy_xhat = torch.addcmul(sum_dy_xhat, self.beta[:, 0], sum_dy, value=-1) / self.gamma[:, 0]
        products = {
            i: _node_sum_grad(grads[i], [outputs[i]], self.mean[i : i + 1], self.rstd[i : i + 1], [])[2]  # [1, C]
            for i in imprecise
        }
        if not products:
            return sum_dy, sum_dy_xhat
        return sum_dy, torch.cat([products.get(i, sum_dy_xhat[i : i + 1]) for i in range(len(sums))])

    def affine_grads(self, sum_dy: Tensor, sum_dy_xhat: Tensor, batch: bool) -> list[Tensor]:
        """The gradients of γ, β and the shift of each norm, from sums [norms, C] of one individual."""
        # Zeros and not None: an optimizer decays a bias whose gradient is 0.
        shifts = torch.zeros_like(sum_dy) if batch else self.scale[:, 0] * sum_dy  # [norms, C]
        return [part[i] for i in range(len(sum_dy)) for part in (sum_dy_xhat, sum_dy, shifts)]


def count_values(images: Tensor) -> int:
    """The number of values of a channel of [N, C, H, W]."""
    return images.numel() // max(1, images.shape[1])


def is_known(norm: nn.BatchNorm2d) -> bool:
    """Whether a norm uses the statistics of the whole batch or running averages, and no others."""
    return type(norm) is nn.BatchNorm2d or (type(norm) is BatchNorm and norm.images is None)


def uses_batch(norm: nn.BatchNorm2d) -> bool:
    """Whether a norm uses the statistics of the batch."""
    return norm.training or norm.running_mean is None


Taken = tuple[Sequence[nn.BatchNorm2d], BatchStats]


class Normalizer:
    """Where the BatchNorms of one pass take mean and variance from, and how their running averages are updated.

    Args:
        batch: from the batch, as in training; else from the running averages.
        acc_dtype: of statistics, in which sums are accumulated.
        follows: whether running averages will be updated.
    """

    def __init__(self, batch: bool, acc_dtype: torch.dtype, follows: bool = True) -> None:
        self.batch, self.acc_dtype, self.follows = batch, acc_dtype, batch and follows
        self._taken: list[Taken] = []

    def running(self, norms: Sequence[nn.BatchNorm2d]) -> BatchStats:
        """Their running averages [norms, 1, C], of one or more."""
        mean = torch.stack([cast(Tensor, norm.running_mean) for norm in norms])
        variance = torch.stack([cast(Tensor, norm.running_var) for norm in norms])
        return BatchStats(mean[:, None].to(self.acc_dtype), variance[:, None].to(self.acc_dtype), 0)

    def normalization(
        self,
        norms: Sequence[nn.BatchNorm2d],
        batch_stats: BatchStats | None,
        affine: Sequence[Affine] = (),
        individuals: int = 1,
    ) -> Normalization:
        """How norms that share one ε normalise; affine: of each norm, empty where none has parameters."""
        shifts = [each.shift for each in affine]
        if self.batch:
            stats = cast(BatchStats, batch_stats)
            self.record(norms, stats, shifts)
            table = stats.mean.new_empty(3, *stats.mean.shape)  # [3, norms, P, C]
            norm_rows([stats.mean], [stats.variance], None, None, norms[0].eps, table)
            mean, _, rstd = table
            return Normalization.of(mean, rstd, affine)
        mean, variance, _ = self.running(norms)  # [norms, 1, C]
        if any(shift is not None for shift in shifts):
            mean = mean - _stacked(shifts, 0.0, mean)
        mean, variance = mean.expand(-1, individuals, -1), variance.expand(-1, individuals, -1)
        return Normalization.of(mean.contiguous(), torch.rsqrt(variance + norms[0].eps), affine)

    def record(self, norms: Sequence[nn.BatchNorm2d], stats: BatchStats, shifts: Sequence[Tensor | None] = ()) -> None:
        """Keeps the batch's statistics of norms, towards which `follow` will move their running averages."""
        if self.follows and norms[0].running_mean is not None:
            mean = stats.mean[:, 0]  # [norms, C]
            if any(shift is not None for shift in shifts):
                mean = mean + _stacked(shifts, 0.0, mean[:, None])[:, 0]
            self._taken.append((norms, BatchStats(mean, stats.variance[:, 0], stats.values)))

    def follow(self) -> None:
        """Moves running averages towards the batch's statistics, as BatchNorm does while training."""
        groups: dict[tuple[float | None, torch.dtype], list[Taken]] = {}
        for norms, stats in self._taken:
            key = norms[0].momentum, cast(Tensor, norms[0]._buffers["running_mean"]).dtype
            groups.setdefault(key, []).append((norms, stats))
        for (momentum, _), taken in groups.items():
            _follow(momentum, taken)


@torch.no_grad()
def _follow(momentum: float | None, taken: Sequence[Taken]) -> None:
    if momentum is None:
        _follow_cumulatively(taken)
        return
    # Not norm.running_mean: nn.Module.__getattr__ takes ten times as long.
    buffers = [norm._buffers for norms, _ in taken for norm in norms]
    running_statistics(
        [cast(Tensor, each["running_mean"]) for each in buffers],
        [cast(Tensor, each["running_var"]) for each in buffers],
        [cast(Tensor, each["num_batches_tracked"]) for each in buffers],
        [stats.mean for _, stats in taken],
        [stats.variance for _, stats in taken],
        [stats.values for _, stats in taken],
        momentum,
    )


def _stacked(tensors: Sequence[Tensor | None], default: float, like: Tensor) -> Tensor:
    """Tensors [C] as [norms, 1, C], with a number instead of None, in the dtype of `like` [norms, P, C]."""
    rows = [like.new_full(like.shape[-1:], default) if tensor is None else tensor for tensor in tensors]
    return rows[0][None, None] if len(rows) == 1 else torch.stack(rows)[:, None]


def _follow_cumulatively(taken: Sequence[Taken]) -> None:
    """Without a momentum the average is that of all batches so far."""
    for norms, (means, variances, count) in taken:
        unbiased = variances * (count / max(1, count - 1))  # [norms, C]
        for norm, mean, variance in zip(norms, means, unbiased, strict=True):
            batches = cast(Tensor, norm.num_batches_tracked).add_(1)  # []
            for buffer, value in ((norm.running_mean, mean), (norm.running_var, variance)):
                dtype = cast(Tensor, buffer).dtype
                cast(Tensor, buffer).lerp_(value.to(dtype), cast(Any, batches.to(dtype).reciprocal()))
