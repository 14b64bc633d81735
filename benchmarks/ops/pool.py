"""pool against plain torch, on the states of the supernet's cells."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from benchmarks.harness import FASTNAS, Row, compare
from fastnas.ops import pool, pool_reference

Pool = Callable[[Tensor, int], tuple[Tensor, ...]]

BELOW_FLOOR = "Bound by comparisons and sums within the cache; and 4 of 16 channels take whole cache lines to read."

# name: (shape of the state, channels that are pooled, stride)
CASES: dict[str, tuple[tuple[int, int, int, int], int, int]] = {
    "C=4 of 16 32×32": ((64, 16, 32, 32), 4, 1),
    "C=4 of 16 32×32 stride 2": ((64, 16, 32, 32), 4, 2),
    "C=16 32×32": ((64, 16, 32, 32), 16, 1),
    "C=32 16×16": ((64, 32, 16, 16), 32, 1),
    "C=64 8×8": ((64, 64, 8, 8), 64, 1),
}


def measure(device: torch.device, seconds: float) -> list[Row]:
    rows: list[Row] = []
    for name, (shape, channels, stride) in CASES.items():
        state = torch.randn(shape, device=device)  # [N, C', H, W]
        images = {
            "contiguous": state[:, :channels].detach().requires_grad_(),
            "channels-last": state.contiguous(memory_format=torch.channels_last)[:, :channels].requires_grad_(),
        }  # [N, C, H, W]
        result = pool_reference(images["contiguous"], stride)[0]
        grads = [torch.randn_like(result) for _ in range(2)]  # [N, C, H', W']
        of_layout = {
            "contiguous": grads,
            "channels-last": [grad.contiguous(memory_format=torch.channels_last) for grad in grads],
        }
        read, written = (tensor.numel() * tensor.element_size() for tensor in (images["contiguous"], result))

        def forward(function: Pool, x: Tensor, _: list[Tensor], stride: int = stride) -> tuple[Tensor, ...]:
            return function(x, stride)[:2]

        def both(function: Pool, x: Tensor, grads: list[Tensor], stride: int = stride) -> object:
            return torch.autograd.grad(function(x, stride)[:2], x, grads)

        modes: dict[str, tuple[Callable[[Pool, Tensor, list[Tensor]], object], int]] = {
            "forward": (forward, read + 2 * written),
            "both": (both, 3 * read + 4 * written),
        }
        for mode, (call, least) in modes.items():
            rows += compare(
                "pool",
                name,
                mode,
                {
                    contender: partial(call, function, images[order], of_layout[order])
                    for contender, function, order in (
                        ("plain torch", pool_reference, "contiguous"),
                        ("channels-last torch", pool_reference, "channels-last"),
                        ("fastnas", pool, "channels-last"),
                    )
                },
                baseline="plain torch",
                least_bytes=least,
                notes={FASTNAS: BELOW_FLOOR},
                device=device,
                seconds=seconds,
            )
    return rows
