"""color_jitter against torchvision's functions, image by image, on images of ImageNet's size."""

from __future__ import annotations

from functools import partial

import torch

from benchmarks.harness import FASTNAS, PLAIN, Row, compare
from fastnas.ops import color_jitter, color_jitter_reference

BELOW_FLOOR = "Bound by the arithmetic of four changes of colour, each rounded to whole levels, not by bytes."

# name: (B, pixels a side)
CASES: dict[str, tuple[int, int]] = {"B=16 224×224": (16, 224), "B=64 32×32": (64, 32)}


def measure(device: torch.device, seconds: float) -> list[Row]:
    rows: list[Row] = []
    for name, (batch, size) in CASES.items():
        images = torch.randint(0, 256, (batch, size, size, 3), dtype=torch.uint8, device=device)  # [B, H, W, 3]
        spread = torch.tensor([0.8, 0.8, 0.8, 0.4], device=device)
        factors = (torch.rand(batch, 4, device=device) - 0.5) * spread + torch.tensor([1, 1, 1, 0], device=device)
        contenders = {PLAIN: color_jitter_reference, FASTNAS: color_jitter}
        rows += compare(
            "color_jitter",
            name,
            "forward",
            {contender: partial(function, images, factors) for contender, function in contenders.items()},
            baseline=PLAIN,
            least_bytes=2 * images.numel(),
            images=batch,
            notes={FASTNAS: BELOW_FLOOR},
            device=device,
            seconds=seconds,
        )
    return rows
