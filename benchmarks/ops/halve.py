"""halve against the maximum of plain torch, on three quarters of the channels of a state."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from benchmarks.harness import FASTNAS, PLAIN, Row, compare
from fastnas.ops.halve import halve, halve_reference

# name: (N, C, pixels a side)
CASES: dict[str, tuple[int, int, int]] = {"N=64 C=32 32×32": (64, 32, 32), "N=64 C=64 16×16": (64, 64, 16)}


def measure(device: torch.device, seconds: float) -> list[Row]:
    rows: list[Row] = []
    for name, (count, channels, size) in CASES.items():
        x = torch.randn(count, channels, size, size, device=device).contiguous(memory_format=torch.channels_last)
        seen = channels // 4
        grad = torch.randn_like(halve(x, seen))  # [N, C - seen, H/2, W/2]
        output_bytes = 4 * grad.numel()
        for mode, least in (("forward", 3 * x.numel() + output_bytes), ("both", 10 * x.numel() + 2 * output_bytes)):
            contenders = {PLAIN: halve_reference, FASTNAS: halve}
            rows += compare(
                "halve",
                name,
                mode,
                {contender: partial(run, function, x, seen, grad, mode) for contender, function in contenders.items()},
                baseline=PLAIN,
                least_bytes=least,
                images=count,
                device=device,
                seconds=seconds,
            )
    return rows


def run(function: Callable[[Tensor, int], Tensor], x: Tensor, seen: int, grad: Tensor, mode: str) -> None:
    if mode == "forward":
        function(x, seen)
        return
    x = x.detach().requires_grad_()
    torch.autograd.grad(function(x, seen), x, grad)
