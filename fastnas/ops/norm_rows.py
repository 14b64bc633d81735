"""norm_rows: what BatchNorms do to the raw outputs of a cell, as rows of its tables; and the way back.

A cell has some fifty normalisations of a few values each: mean, variance and rstd of each raw output on the way
forward, the coefficients of its gradient on the way back (see `fastnas.nn.fused.batch_norm`). In plain torch every
table takes half a dozen calls, and two thirds of all that a step launches are such small ones.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastnas import _library  # noqa: F401  (registers torch.ops.fastnas)

_forward = torch.ops.fastnas.norm_rows.default
_grad = torch.ops.fastnas.norm_rows_grad.default


def norm_rows_reference(
    mean: Sequence[Tensor],
    variance: Sequence[Tensor],
    places: Sequence[int] | None,
    rows: Sequence[int] | None,
    eps: float,
    table: Tensor,
) -> None:
    """The same in plain torch: the oracle of the tests, and what runs within `torch.compile`."""
    if not mean:
        return
    individuals = table.shape[2]
    # [norms, P, C] each
    means, variances = (torch.cat([x.expand(-1, individuals, -1) for x in some]) for some in (mean, variance))
    if places is not None:
        means, variances = means[list(places)], variances[list(places)]
    at = list(range(len(means))) if rows is None else list(rows)
    table[:, at] = torch.stack([means, variances, torch.rsqrt(variances + eps)])


def norm_rows(
    mean: Sequence[Tensor],
    variance: Sequence[Tensor],
    places: Sequence[int] | None,
    rows: Sequence[int] | None,
    eps: float,
    table: Tensor,
) -> None:
    """Writes rows of a table of mean, variance and rstd, 1 / √(variance + ε).

    Args:
        mean, variance: lists of statistics, [norms, P, C] each, or [norms, 1, C] for all individuals; float32 or
            float64.
        places: [R], where the statistics of each row are, counted through all lists; None for all in their order.
        rows: [R], the rows that are written; None for the first ones.
        eps: ε, 0 or more.
        table: [3, K, P, C], contiguous, in the same dtype; other rows stay as they are.

    Raises:
        RuntimeError: a shape, a dtype or an index does not fit; the message names it.

    >>> import torch
    >>> from fastnas.ops.norm_rows import norm_rows
    >>> table = torch.zeros(3, 4, 1, 16)
    >>> norm_rows([torch.zeros(2, 1, 16)], [torch.ones(2, 1, 16)], [1], [3], 0.0, table)
    >>> table[2, :, 0, 0]
    tensor([0., 0., 0., 1.])
    """
    run = norm_rows_reference if torch.compiler.is_compiling() else _forward
    run(mean, variance, places, rows, eps, table)


def norm_rows_grad_reference(
    sum_dy: Tensor, sum_dy_xhat: Tensor, mean: Tensor, rstd: Tensor, scale: Tensor, count: int, coeffs: Tensor
) -> None:
    """The same in plain torch: the oracle of the tests."""
    share = scale / -count if count else torch.zeros_like(scale)  # negative
    coeffs[:] = torch.stack([scale, share * rstd * sum_dy_xhat, mean, share * sum_dy], -2)


def norm_rows_grad(
    sum_dy: Tensor, sum_dy_xhat: Tensor, mean: Tensor, rstd: Tensor, scale: Tensor, count: int, coeffs: Tensor
) -> None:
    """Writes the rows (scale, slope, mean, offset) that turn dy into the gradient of a raw output y.

    Args:
        sum_dy: Σ dy [K, C], or [C] where all rows have the same dy.
        sum_dy_xhat: Σ dy·x̂ [K, C], x̂ = (y - mean)·rstd.
        mean, rstd: [K, C].
        scale: [K, C], by which (y - mean) was multiplied: γ·rstd, times the weight of a candidate where it has one.
        count: number of values of a channel behind mean and rstd; 0 where these are constants.
        coeffs: [K, 4, C], contiguous, which is written. The gradient is scale·dy + slope·(y - mean) + offset.

    Raises:
        RuntimeError: a shape or dtype does not fit; the message names it.

    Source: Ioffe and Szegedy, "Batch Normalization", ICML 2015, section 3.
    """
    _grad(sum_dy, sum_dy_xhat, mean, rstd, scale, count, coeffs)
