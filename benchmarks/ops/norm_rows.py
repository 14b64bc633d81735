"""norm_rows and its gradient against plain torch: the tables of the candidates that leave a state, and of a node."""

from __future__ import annotations

import torch

from benchmarks.harness import FASTNAS, PLAIN, Row, compare
from fastnas.ops.norm_rows import norm_rows, norm_rows_grad, norm_rows_grad_reference, norm_rows_reference

BELOW_FLOOR = "A few kilobytes: the time is that of a call."

# name: (rows, channels)
CASES: dict[str, tuple[int, int]] = {"16 rows of C=4": (16, 4), "28 rows of C=64": (28, 64)}


def measure(device: torch.device, seconds: float) -> list[Row]:
    rows: list[Row] = []
    for name, (count, channels) in CASES.items():
        mean, variance = torch.rand(2, count, 1, channels, device=device)
        table = torch.zeros(3, 2 * count, 1, channels, device=device)
        places, to = list(range(count))[::-1], list(range(0, 2 * count, 2))
        of_rows = [mean], [variance], places, to, 1e-5, table
        tables = torch.randn(5, count, channels, device=device)
        of_coeffs = *tables, 1024, torch.zeros(count, 4, channels, device=device)
        calls = {
            "forward": {PLAIN: lambda a=of_rows: norm_rows_reference(*a), FASTNAS: lambda a=of_rows: norm_rows(*a)},
            "backward": {
                PLAIN: lambda a=of_coeffs: norm_rows_grad_reference(*a),
                FASTNAS: lambda a=of_coeffs: norm_rows_grad(*a),
            },
        }
        for mode, least in (("forward", 4 * 5 * mean.numel()), ("backward", 4 * 9 * mean.numel())):
            rows += compare(
                "norm_rows",
                name,
                mode,
                calls[mode],
                baseline=PLAIN,
                least_bytes=least,
                images=1,
                notes={FASTNAS: BELOW_FLOOR},
                device=device,
                seconds=seconds,
            )
    return rows
