"""pool_tables: the tables of `pool_grad`, from the coefficients of all candidates of a cell.

Pools and identities have no weights, so what leaves a state on several edges is pooled once, and its gradients are
added up before they are moved: by node and by kind of pool.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastnas import _library  # noqa: F401  (registers torch.ops.fastnas)

_forward = torch.ops.fastnas.pool_tables.default

Tables = tuple[Tensor, Tensor, Tensor]


def pool_tables_reference(coeffs: Tensor, rows: Sequence[int], places: Sequence[int], nodes: int) -> Tables:
    """The same in plain torch: the oracle of the tests."""
    channels = coeffs.shape[-1]
    sums = coeffs.new_zeros(3 * nodes + 2, 4, channels)
    for row, place in zip(rows, places, strict=True):
        mean = coeffs[row, 2]
        sums[place] += coeffs[row]
        sums[place, 2] = mean
    scales, bn_coeffs, skip = sums.split([2 * nodes, 2, nodes])
    return scales[:, 0].unflatten(0, (2, nodes)), bn_coeffs[:, 1:], skip[:, 0]


def pool_tables(coeffs: Tensor, rows: Sequence[int], places: Sequence[int], nodes: int) -> Tables:
    """Sums of rows of coefficients.

    Args:
        coeffs: [K, 4, C] (scale, slope, mean, offset), float32 or float64.
        rows: [R], each a row of `coeffs` that counts towards the place of the same index.
        places: [R]. kind·G + node for the scale of a pool (kind 0 for the average, 1 for the maximum); 2G + kind for
            the statistics of a normalised one; 2G + 2 + node for the scale of an identity.
        nodes: G, that the state leads to, at most 64.

    Returns:
        scales: [2, G, C], of pools.
        bn_coeffs: [2, 3, C], slope, mean and offset of normalised pools; the mean is that of the last row.
        skip: [G, C], scales of identities.

    Raises:
        RuntimeError: a shape, a dtype or an index does not fit; the message names it.
    """
    result: Tables = _forward(coeffs, rows, places, nodes)
    return result


@torch.library.register_fake("fastnas::pool_tables")
def _(coeffs: Tensor, rows: Sequence[int], places: Sequence[int], nodes: int) -> Tables:
    channels = coeffs.shape[-1]
    return (
        coeffs.new_empty(2, nodes, channels),
        coeffs.new_empty(2, 3, channels),
        coeffs.new_empty(nodes, channels),
    )
