"""The mixed operation of one edge: every candidate, weighted."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastnas.errors import UserError
from fastnas.nn.primitives import Norm, Zero, make_primitive
from fastnas.ops import mixed_sum, mixed_sum_reference

MixedSum = Callable[[Sequence[Tensor], Tensor], Tensor]

BACKENDS: dict[str, MixedSum] = {"fused": mixed_sum, "reference": mixed_sum_reference}


def resolve_backend(backend: str) -> str:
    """The name itself, or "fused" for "auto". UserError for an unknown name."""
    if backend == "auto":
        return "fused"
    if backend not in BACKENDS:
        raise UserError(f"unknown backend {backend!r}: expected auto, {' or '.join(BACKENDS)}.")
    return backend


class MixedOp(nn.Module):
    """Σ_o w_o · candidate_o(x) on the first C/k channels; the other channels pass (PC-DARTS, Xu et al. 2020, eq. 1).

    With partial channels (k > 1) the processed channels come first, then the bypass (max-pooled 2×2 on an edge of
    stride 2), and a channel shuffle of k groups (ShuffleNet, Zhang et al. 2018) mixes them.

    Args:
        candidates: names of primitives, in the order of the weights.
        channels: C.
        stride: 1 or 2.
        partial_channels: k; C must be divisible by it.
        norm: normalisation without affine parameters, which would absorb what the weights measure.
        pool_norm: whether pools are normalised too.
        backend: "fused" or "reference".
    """

    def __init__(
        self,
        candidates: Sequence[str],
        channels: int,
        stride: int,
        partial_channels: int,
        norm: Norm,
        pool_norm: bool,
        backend: str,
    ) -> None:
        super().__init__()
        if channels % partial_channels:
            raise UserError(
                f"{channels} channels cannot be cut into partial_channels={partial_channels} equal parts: "
                "choose a number of channels that is divisible by it."
            )
        self.partial_channels = partial_channels
        self.processed = channels // partial_channels
        self.candidates = nn.ModuleList(
            make_primitive(name, self.processed, stride, norm=norm, pool_norm=pool_norm) for name in candidates
        )
        # Rounds up, as the candidates do for odd sizes.
        self.bypass = nn.MaxPool2d(2, 2, ceil_mode=True) if stride == 2 else nn.Identity()
        self.stride = stride
        self.backend = backend

    def forward(self, x: Tensor, weights: Tensor, active: Tensor | None = None) -> Tensor:
        """One architecture: x [B, C, H, W], weights [O] → [B, C, H', W'].

        active: [O] booleans on the CPU, the candidates that are computed; all by default.

        A population: x [P, B, C, H, W], or [1, B, C, H, W] where it is the same for all individuals, and weights [P, O]
        → [P, B, C, H', W'].
        """
        flat = x.flatten(0, -4)  # [P·B, C, H, W]
        processed = flat if self.partial_channels == 1 else flat[:, : self.processed]  # [P·B, C/k, H, W]
        outputs, columns = [], []
        chosen = [True] * len(self.candidates) if active is None else active.tolist()
        for candidate, column, take in zip(self.candidates, weights.unbind(-1), chosen, strict=True):  # [] or [P]
            # "none" adds nothing, and its α gets its gradient through the softmax. One at the end stays: there may be
            # no other candidate.
            zero = isinstance(candidate, Zero) and candidate is not self.candidates[-1]
            if not take or (zero and self.backend == "fused"):
                continue
            outputs.append(candidate(processed).unflatten(0, x.shape[:-3]))  # [P, B, C/k, H', W']
            columns.append(column)
        if not outputs:
            outputs.append(Zero(self.stride)(processed).unflatten(0, x.shape[:-3]))
            columns.append(weights[..., 0])
        if len(columns) < len(self.candidates):
            # Not weights[..., indices], which would copy the indices to the device.
            weights = torch.stack(columns, dim=-1)  # [K] or [P, K]
        total = BACKENDS[self.backend](outputs, weights)  # [P, B, C/k, H', W']
        if self.partial_channels == 1:
            return total
        rest = self.bypass(flat[:, self.processed :]).unflatten(0, x.shape[:-3])  # [P or 1, B, C - C/k, H', W']
        if x.dim() == 5:
            rest = rest.expand(total.shape[0], *rest.shape[1:])
        joined = torch.cat([total, rest], dim=-3)  # [P, B, C, H', W']
        shuffled = F.channel_shuffle(joined.flatten(0, -4), self.partial_channels)  # [P·B, C, H', W']
        return shuffled.unflatten(0, joined.shape[:-3])
