"""pool_tables against plain torch: two normalised pools and an identity on every edge that leaves a state."""

from __future__ import annotations

from functools import partial

import torch

from benchmarks.harness import FASTNAS, PLAIN, Row, compare
from fastnas.ops.pool_tables import pool_tables, pool_tables_reference

BELOW_FLOOR = "A few kilobytes: the time is that of a call."

# name: (nodes, channels)
CASES: dict[str, tuple[int, int]] = {"4 nodes, C=4": (4, 4), "4 nodes, C=64": (4, 64)}


def measure(device: torch.device, seconds: float) -> list[Row]:
    rows: list[Row] = []
    for name, (nodes, channels) in CASES.items():
        coeffs = torch.randn(7 * nodes, 4, channels, device=device)
        entries = [(7 * node + kind, kind * nodes + node) for node in range(nodes) for kind in range(2)]
        entries += [(7 * node + kind, 2 * nodes + kind) for node in range(nodes) for kind in range(2)]
        entries += [(7 * node + 2, 2 * nodes + 2 + node) for node in range(nodes)]
        arguments = coeffs, [row for row, _ in entries], [place for _, place in entries], nodes
        rows += compare(
            "pool_tables",
            name,
            "forward",
            {PLAIN: partial(pool_tables_reference, *arguments), FASTNAS: partial(pool_tables, *arguments)},
            baseline=PLAIN,
            least_bytes=4 * channels * (4 * 3 * nodes + 3 * nodes + 6),
            images=1,
            notes={FASTNAS: BELOW_FLOOR},
            device=device,
            seconds=seconds,
        )
    return rows
