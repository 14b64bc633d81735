"""α of all kinds of cells as one vector, as strategies need it that sample α."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor


class AlphaVector:
    """Between tables of α and vectors: the tables one after the other, each row by row.

    Args:
        alphas: {kind of cell: [E, O]}; E and O may differ from kind to kind.
    """

    def __init__(self, alphas: Mapping[str, Tensor]) -> None:
        self.shapes = {kind: tuple(alpha.shape) for kind, alpha in alphas.items()}
        self._sizes = [rows * columns for rows, columns in self.shapes.values()]

    def flatten(self, tables: Mapping[str, Tensor]) -> Tensor:
        """Tables [..., E, O] → [..., n]."""
        return torch.cat([tables[kind].flatten(-2) for kind in self.shapes], dim=-1)

    def split(self, vectors: Tensor) -> dict[str, Tensor]:
        """[..., n] → tables [..., E, O]."""
        parts = vectors.split(self._sizes, dim=-1)
        return {
            kind: part.unflatten(-1, shape)
            for (kind, shape), part in zip(self.shapes.items(), parts, strict=True)
        }  # fmt: skip

    def by_row(self, function: Callable[[Tensor], Tensor], vectors: Tensor) -> Tensor:
        """`function` of every table [..., E, O] of the vectors [..., n], as vectors."""
        return self.flatten({kind: function(table) for kind, table in self.split(vectors).items()})

    def softmax(self, vectors: Tensor) -> Tensor:
        """softmax of every row: [..., n] → [..., n]."""
        return self.by_row(lambda table: torch.softmax(table, -1), vectors)
