"""The mixed operation of one edge: every candidate, weighted."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastnas import onednn
from fastnas.errors import UserError
from fastnas.nn.batch_norm import BatchNorm
from fastnas.nn.fused.node import fused_sum
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
    """Σ_o w_o · candidate_o(x) on the first C/k channels; the rest bypass them (PC-DARTS, Xu et al. 2020, eq. 1).

    With partial channels (k > 1) the sum of the candidates comes first, then the bypass (max-pooled 2×2 on an edge of
    stride 2), and a channel shuffle of k groups (ShuffleNet, Zhang et al. 2018) mixes them.

    Args:
        candidates: names of `fastnas.nn.primitives.PRIMITIVES`, or modules that map [B, C/k, H, W] to
            [B, C/k, ⌈H/stride⌉, ⌈W/stride⌉], in the order of the weights. Modules are used unchanged: they must have
            the stride themselves, and norm and pool_norm do not apply to them.
        channels: C; needed for names and for partial channels.
        stride: 1 or 2.
        partial_channels: k; C must be divisible by it.
        norm: builds the normalisations from their number of channels; by default BatchNorm without affine parameters,
            which would absorb what the weights measure.
        pool_norm: whether pools are normalised too, as in DARTS and PC-DARTS.
        backend: "fused" (our operators), "reference" (plain torch) or "auto" (fused). The operators compute the
            candidates that they know without calling their modules, so forward hooks on these do not run.

    Attributes:
        candidates: `nn.ModuleList`.

    Raises:
        UserError: no candidate, an unknown name or backend, another stride, no channels where they are needed, or
            channels that `partial_channels` does not divide.

    >>> import torch
    >>> from fastnas.nn import MixedOp
    >>> mixed = MixedOp(["skip_connect", "sep_conv_3x3", torch.nn.Conv2d(16, 16, 1)], channels=16)
    >>> alpha = torch.zeros(3, requires_grad=True)
    >>> y = mixed(torch.randn(2, 16, 8, 8), torch.softmax(alpha, dim=-1))  # [2, 16, 8, 8]
    >>> y.square().sum().backward()  # α gets a gradient, and so do the weights of the candidates
    """

    def __init__(
        self,
        candidates: Sequence[str | nn.Module],
        channels: int | None = None,
        stride: int = 1,
        partial_channels: int = 1,
        norm: Norm = functools.partial(BatchNorm, affine=False),  # noqa: B008  (immutable)
        pool_norm: bool = True,
        backend: str = "auto",
    ) -> None:
        super().__init__()
        if not candidates:
            raise UserError("MixedOp got no candidates: name at least one primitive, or give a module.")
        if stride not in (1, 2):
            raise UserError(f"MixedOp got stride {stride}, expected 1 (normal) or 2 (reduction).")
        if channels is None:
            if partial_channels > 1 or any(isinstance(candidate, str) for candidate in candidates):
                raise UserError(
                    "MixedOp needs channels, to build candidates by name and to split off partial channels."
                )
        elif channels % partial_channels:
            raise UserError(
                f"{channels} channels cannot be cut into partial_channels={partial_channels} equal parts: "
                "choose a number of channels that is divisible by it."
            )
        self.partial_channels = partial_channels
        self.processed = 0 if channels is None else channels // partial_channels  # 0: modules take any number
        self.candidates = nn.ModuleList(self._build(candidate, stride, norm, pool_norm) for candidate in candidates)
        # Rounds up, as the candidates do for odd sizes.
        self.bypass = nn.MaxPool2d(2, 2, ceil_mode=True) if stride == 2 else nn.Identity()
        self.stride = stride
        self.backend = resolve_backend(backend)
        onednn.guard(self)  # the operators make states channels-last, also for modules that they do not know

    def _build(self, candidate: str | nn.Module, stride: int, norm: Norm, pool_norm: bool) -> nn.Module:
        if isinstance(candidate, nn.Module):
            return candidate
        return make_primitive(candidate, self.processed, stride, norm=norm, pool_norm=pool_norm)

    def forward(self, x: Tensor, weights: Tensor, active: Tensor | None = None) -> Tensor:
        """One architecture: x [B, C, H, W], weights [O] → [B, C, ⌈H/stride⌉, ⌈W/stride⌉]. The operators read
        channels-last tensors in place, and return such.

        A population: x [P, B, C, H, W], or [1, B, C, H, W] where it is the same for all individuals, and weights [P, O]
        → [P, B, C, H', W'].

        Differentiable once in x, the weights and the parameters of the candidates.

        Args:
            weights: normalised already (softmax, Gumbel, one-hot, …), on the device of x.
            active: [O] booleans on the CPU, the candidates that are computed; all by default.

        Raises:
            UserError: not one weight for each candidate.
        """
        if weights.shape[-1:] != (len(self.candidates),):
            raise UserError(
                f"MixedOp got weights of shape {list(weights.shape)} for {len(self.candidates)} candidates: "
                "expected one for each in the last dimension."
            )
        flat = x.flatten(0, -4)  # [P·B, C, H, W]
        seen = flat if self.partial_channels == 1 else flat[:, : self.processed]  # [P·B, C/k, H, W]
        total = self._sum(seen, x.shape[:-3], weights, active)  # [P, B, C/k, H', W']
        if self.partial_channels == 1:
            return total
        bypass = self.bypass(flat[:, self.processed :]).unflatten(0, x.shape[:-3])  # [P or 1, B, C - C/k, H', W']
        if x.dim() == 5:
            bypass = bypass.expand(total.shape[0], *bypass.shape[1:])
        joined = torch.cat([total, bypass], dim=-3)  # [P, B, C, H', W']
        shuffled = F.channel_shuffle(joined.flatten(0, -4), self.partial_channels)  # [P·B, C, H', W']
        return shuffled.unflatten(0, joined.shape[:-3])

    def _sum(self, x: Tensor, leading: torch.Size, weights: Tensor, active: Tensor | None) -> Tensor:
        """The sum of the candidates, on the channels that they see: x [P·B, C/k, H, W] → [*leading, C/k, H', W']."""
        columns = list(weights.unbind(-1))  # [] or [P]
        chosen = list(range(len(columns)))
        if active is not None:
            chosen = [k for k, take in zip(chosen, active.tolist(), strict=True) if take]
        if self.backend == "fused":
            # "none" adds nothing, and its α gets its gradient through the softmax.
            chosen = [k for k in chosen if not isinstance(self.candidates[k], Zero)]
        if not chosen:
            # Zeros that depend on the weights, so that autograd reaches them.
            return mixed_sum([Zero(self.stride)(x).unflatten(0, leading)], weights[..., :1])
        if len(chosen) < len(columns):
            # Not weights[..., chosen], which would copy the indices to the device.
            weights = torch.stack([columns[k] for k in chosen], dim=-1)  # [K] or [P, K]
        candidates = [self.candidates[k] for k in chosen]
        if self.backend == "fused" and weights.dim() == 1:
            fused = fused_sum(candidates, [x] * len(candidates), weights=weights)  # [B, C/k, H', W']
            if fused is not None:
                return fused
        outputs = [candidate(x).unflatten(0, leading) for candidate in candidates]  # [P, B, C/k, H', W'] each
        return BACKENDS[self.backend](outputs, weights)
