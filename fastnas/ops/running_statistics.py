"""running_statistics: updates the running statistics of many normalisations in one call.

A cell has some ninety normalisations with three buffers each, of a few values. Calling plain torch for each of them
takes longer than computing a candidate.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastnas import _library  # noqa: F401  (registers torch.ops.fastnas)

DEVICES = frozenset({"cpu"})
"""Device types on which the operator is used; on a GPU torch's `_foreach` functions take a few launches."""

_update = torch.ops.fastnas.running_statistics.default


def running_statistics_reference(
    mean: Sequence[Tensor],
    variance: Sequence[Tensor],
    tracked: Sequence[Tensor],
    batch_mean: Sequence[Tensor],
    batch_variance: Sequence[Tensor],
    counts: Sequence[int],
    momentum: float,
) -> None:
    """The same in plain torch: the oracle of the tests, and what runs on GPUs and within `torch.compile`."""
    means = [row for batch in batch_mean for row in batch.unbind(0)]
    unbiased = [v * (count / max(1, count - 1)) for v, count in zip(batch_variance, counts, strict=True)]
    variances = [row for batch in unbiased for row in batch.unbind(0)]
    for running, values in ((mean, means), (variance, variances)):
        followed = [value.to(buffer.dtype) for buffer, value in zip(running, values, strict=True)]
        torch._foreach_lerp_(list(running), followed, momentum)
    torch._foreach_add_(list(tracked), 1)


def running_statistics(
    mean: Sequence[Tensor],
    variance: Sequence[Tensor],
    tracked: Sequence[Tensor],
    batch_mean: Sequence[Tensor],
    batch_variance: Sequence[Tensor],
    counts: Sequence[int],
    momentum: float,
) -> None:
    """Moves running statistics as `nn.BatchNorm2d` does while training; in place.

    Args:
        mean, variance: running statistics of each normalisation, [C] of its own C.
        tracked: int64 [] of each, the number of batches that it has seen, which grows by one.
        batch_mean, batch_variance: of each batch [norms, C]; the normalisations in their order, batch after batch. The
            variance is biased, Σ(y - mean)² / count.
        counts: number of values of a channel in each batch; running variances follow the unbiased one.
        momentum: how far they move, 0..1.

    Raises:
        RuntimeError: a shape, dtype or number of tensors does not fit; the message names it.

    >>> import torch
    >>> from fastnas.ops.running_statistics import running_statistics
    >>> norm = torch.nn.BatchNorm2d(4)
    >>> y = torch.randn(8, 4, 5, 5)
    >>> variance, mean = torch.var_mean(y, (0, 2, 3), correction=0)
    >>> buffers = [norm.running_mean], [norm.running_var], [norm.num_batches_tracked]
    >>> running_statistics(*buffers, [mean[None]], [variance[None]], [8 * 5 * 5], norm.momentum)
    """
    arguments = (list(mean), list(variance), list(tracked), list(batch_mean), list(batch_variance), list(counts))
    if not any(arguments[:5]):
        return
    plain = torch.compiler.is_compiling() or (mean and batch_mean and not _takes(mean[0], batch_mean[0]))
    (running_statistics_reference if plain else _update)(*arguments, momentum)


def _takes(buffer: Tensor, batch: Tensor) -> bool:
    """Whether the operator supports these buffers; networks in half precision keep their statistics in it."""
    return buffer.device.type in DEVICES and buffer.dtype == batch.dtype
