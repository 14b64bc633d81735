"""A single candidate, for code whose sum of candidates has an unknown form."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fastnas.compat.candidate import recognise
from fastnas.compat.replacement import ForwardPlan, PatchSpec, Unsupported
from fastnas.compat.signature import hooks_of
from fastnas.nn.fused.node import can_fuse, fused_sum


class LoneCandidate(ForwardPlan):
    """x [B, C, H, W] → what the candidate computes [B, C', H', W']."""

    level = "candidate"

    def __init__(self, module: nn.Module, spec: PatchSpec) -> None:
        self.candidate = recognise(module)
        self.candidates = [self.candidate]
        if self.candidate.pattern is None:
            raise Unsupported(self.candidate.reason)
        self._hooks = [hooks for child in module.children() for hooks in hooks_of(child)]

    def arguments(self) -> list[list[Any]]:
        return [[torch.randn(3, self.candidate.channels or 4, 8, 8, dtype=torch.float64)]]  # [B, C, H, W]

    def run(self, module: nn.Module, *arguments: Any) -> Tensor | None:
        x = arguments[0] if arguments else None  # [B, C, H, W]
        pattern, branch = self.candidate.pattern, self.candidate.branch
        if not isinstance(x, Tensor) or x.dim() != 4 or not can_fuse(x) or pattern is None:
            return None
        if any(self._hooks) or self.candidate.dropping or x.shape[1] != (self.candidate.channels or x.shape[1]):
            return None
        if pattern.stride == 2 and (x.shape[2] % 2 or x.shape[3] % 2):
            return None
        return fused_sum([module], [x], branches=[branch])

    def summary(self) -> str:
        return type(self.candidate.pattern).__name__.removesuffix("Pattern").lower()

    def skipped(self) -> list[str]:
        return ["other code has hooks in it"] if any(self._hooks) else []
