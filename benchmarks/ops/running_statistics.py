"""running_statistics against plain torch's calls for every buffer."""

from __future__ import annotations

from functools import partial

import torch

from benchmarks.harness import FASTNAS, PLAIN, Row, compare
from fastnas.ops.running_statistics import running_statistics, running_statistics_reference

BELOW_FLOOR = "A few kilobytes in hundreds of buffers: the time is that of handing them over."

# name: normalisations and channels of each batch
CASES: dict[str, list[tuple[int, int]]] = {"a cell of darts C=16": [(1, 16), (1, 16), (28, 16), (84, 16)]}


def measure(device: torch.device, seconds: float) -> list[Row]:
    rows: list[Row] = []
    for name, batches in CASES.items():
        sizes = [channels for norms, channels in batches for _ in range(norms)]
        mean = [torch.zeros(c, device=device) for c in sizes]  # [C]
        variance = [torch.ones(c, device=device) for c in sizes]  # [C]
        tracked = [torch.tensor(0, device=device) for _ in sizes]  # []
        statistics = [torch.rand(batch, device=device) for batch in batches]  # [norms, C]
        arguments = (mean, variance, tracked, statistics, statistics, [64 * 32 * 32] * len(batches), 0.1)
        contenders = {PLAIN: running_statistics_reference, FASTNAS: running_statistics}
        rows += compare(
            "running_statistics",
            name,
            "forward",
            {contender: partial(function, *arguments) for contender, function in contenders.items()},
            baseline=PLAIN,
            least_bytes=sum(4 * 4 * c + 16 for c in sizes),
            notes={FASTNAS: BELOW_FLOOR},
            device=device,
            seconds=seconds,
        )
    return rows
