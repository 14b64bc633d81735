"""edge_sum against plain torch, on the states of the supernet's cells."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.harness import Row, compare
from fastnas.ops import edge_sum, edge_sum_reference

IMAGES = 64
DEPTHS = [2, 2, 1, 1]
KERNELS = [3, 3, 5, 5, 3, 5]
DILATIONS = [1, 1, 1, 1, 2, 2]

# name: (channels, size, edges, stride)
CASES: dict[str, tuple[int, int, int, int]] = {
    "C=4 32×32, 4 edges": (4, 32, 4, 1),
    "C=4 32×32, 1 edge": (4, 32, 1, 1),
    "C=8 32×32, 4 edges, stride 2": (8, 32, 4, 2),
    "C=16 8×8, 4 edges": (16, 8, 4, 1),
    "C=16 32×32, 4 edges": (16, 32, 4, 1),
}


def measure(device: torch.device, seconds: float) -> list[Row]:
    rows: list[Row] = []
    for name, (channels, size, edges, stride) in CASES.items():
        terms = len(DEPTHS) + 2 + (stride == 1)
        inner = len(KERNELS) - len(DEPTHS)
        draw = partial(torch.randn, device=device)
        state = draw(IMAGES, channels, size, size)  # [N, C, H, W]
        arguments: list[Any] = [
            [draw(channels, 1, k, k) / k for _ in range(edges) for k in KERNELS],
            [draw(channels, channels, 1, 1) for _ in range(edges) for _ in KERNELS],
            DEPTHS,
            DILATIONS,
            torch.rand(edges, inner, channels, device=device) + 0.5,
            draw(edges, inner, channels),
            draw(1, edges, terms, channels),
            draw(1, edges, channels),
            stride,
        ]
        pixels = IMAGES * (-(-size // stride)) ** 2
        taps = sum(k * k for k in KERNELS) + len(KERNELS) * channels

        def forward(function: Callable[..., list[Tensor]], x: Tensor, rest: list[Any] = arguments) -> list[Tensor]:
            return function(x, *rest)

        last = state.contiguous(memory_format=torch.channels_last)
        rows += compare(
            "edge_sum",
            name,
            "forward",
            {
                "plain torch": partial(forward, edge_sum_reference, state),
                "channels-last torch": partial(forward, edge_sum_reference, last),
                "fastnas": partial(forward, edge_sum, last),
            },
            baseline="plain torch",
            flops=2 * pixels * edges * channels * (taps + terms),
            least_bytes=4 * channels * (IMAGES * size**2 + pixels * edges),
            device=device,
            seconds=seconds,
        )
    return rows
