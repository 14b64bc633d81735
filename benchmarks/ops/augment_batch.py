"""augment_batch against its plain-torch reference, on batches of CIFAR and of ImageNet."""

from __future__ import annotations

from functools import partial

import torch

from benchmarks.harness import FASTNAS, PLAIN, Row, compare
from fastnas.ops import augment_batch, augment_batch_reference, normalization_table

BELOW_FLOOR = "Bound by a look-up in a table for each value, not by bytes."

# name: (images of the set, pixels a side, B, padding, cutout, dtype)
CASES: dict[str, tuple[int, int, int, int, int, torch.dtype]] = {
    "B=64 32×32": (10_000, 32, 64, 4, 16, torch.float32),
    "B=256 32×32": (10_000, 32, 256, 4, 16, torch.float32),
    "B=256 32×32 bfloat16": (10_000, 32, 256, 4, 16, torch.bfloat16),
    "B=32 224×224": (64, 224, 32, 0, 0, torch.float32),
}


def measure(device: torch.device, seconds: float) -> list[Row]:
    rows: list[Row] = []
    for name, (count, size, batch, padding, cutout, dtype) in CASES.items():
        images = torch.randint(0, 256, (count, size, size, 3), dtype=torch.uint8, device=device)  # [N, H, W, C]
        table = normalization_table((0.49, 0.48, 0.45), (0.25, 0.24, 0.26), dtype=dtype, device=device)  # [C, 256]
        index = torch.randint(0, count, (batch,), device=device)  # [B]
        limits = (2 * padding + 1, 2 * padding + 1, 2, size, size)
        draws = torch.stack(
            [torch.randint(0, limit, (batch,), device=device) for limit in limits], dim=1
        ).int()  # [B, 5]
        contenders = {PLAIN: augment_batch_reference, FASTNAS: augment_batch}
        rows += compare(
            "augment_batch",
            name,
            "forward",
            {
                contender: partial(function, images, table, index, draws, padding=padding, cutout=cutout)
                for contender, function in contenders.items()
            },
            baseline=PLAIN,
            least_bytes=batch * size * size * 3 * (1 + dtype.itemsize),
            images=batch,
            notes={FASTNAS: BELOW_FLOOR},
            device=device,
            seconds=seconds,
        )
    return rows
