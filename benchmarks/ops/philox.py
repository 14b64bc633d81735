"""philox against its plain-torch reference, for the draws of an epoch of CIFAR-10."""

from __future__ import annotations

from functools import partial

import torch

from benchmarks.harness import FASTNAS, PLAIN, Row, compare
from fastnas.ops import philox, philox_reference

BELOW_FLOOR = "Bound by the integer products of ten rounds, not by bytes."

COUNT = 50_000


def measure(device: torch.device, seconds: float) -> list[Row]:
    positions = torch.arange(COUNT, device=device)  # [n]
    return compare(
        "philox",
        f"n={COUNT}",
        "forward",
        {PLAIN: partial(philox_reference, positions, 1, 2), FASTNAS: partial(philox, positions, 1, 2)},
        baseline=PLAIN,
        least_bytes=5 * 8 * COUNT,
        notes={FASTNAS: BELOW_FLOOR},
        device=device,
        seconds=seconds,
    )
