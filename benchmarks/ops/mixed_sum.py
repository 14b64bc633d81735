"""mixed_sum against its plain-torch reference, at the sizes of an edge in the supernet."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from benchmarks.harness import Row, compare
from fastnas.ops import mixed_sum, mixed_sum_reference

MixedSum = Callable[[Sequence[Tensor], Tensor], Tensor]

# name: (shape of a candidate's output, K, P)
CASES: dict[str, tuple[tuple[int, int, int, int], int, int | None]] = {
    "C=4 32×32": ((64, 4, 32, 32), 7, None),
    "C=16 32×32": ((64, 16, 32, 32), 8, None),
    "C=64 8×8": ((64, 64, 8, 8), 8, None),
    "P=8 C=4 32×32": ((64, 4, 32, 32), 7, 8),
}


def eager(outputs: Sequence[Tensor], weights: Tensor) -> Tensor:
    """What DARTS code bases do: sum(w * o)."""
    if weights.dim() == 1:
        return sum(w * o for w, o in zip(weights, outputs, strict=True))
    return mixed_sum_reference(outputs, weights)


def measure(device: torch.device, seconds: float) -> list[Row]:
    rows: list[Row] = []
    for name, (shape, count, individuals) in CASES.items():
        leading = () if individuals is None else (individuals,)
        outputs = [
            torch.randn(*leading, *shape, device=device).requires_grad_() for _ in range(count)
        ]  # [P, B, C, H, W]
        weights = torch.softmax(torch.randn(*leading, count, device=device), -1).requires_grad_()
        grad = torch.randn(*leading, *shape, device=device)
        size = grad.numel() * grad.element_size()

        def forward(function: MixedSum, outputs: list[Tensor] = outputs, weights: Tensor = weights) -> Tensor:
            return function(outputs, weights)

        def both(function: MixedSum, inputs: tuple[Tensor, ...] = (*outputs, weights), grad: Tensor = grad) -> object:
            return torch.autograd.grad(forward(function), inputs, grad)

        modes: dict[str, tuple[Callable[[MixedSum], object], int]] = {
            "forward": (forward, (count + 1) * size),
            "both": (both, (3 * count + 3) * size),
        }
        for mode, (call, least) in modes.items():
            rows += compare(
                "mixed_sum",
                name,
                mode,
                {"plain torch": partial(call, eager), "fastnas": partial(call, mixed_sum)},
                baseline="plain torch",
                least_bytes=least,
                device=device,
                seconds=seconds,
            )
    return rows
