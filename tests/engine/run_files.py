"""The options of a search that takes a second, and what compares the files that runs leave behind."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import torch

SMALL = shlex.split(
    "--data digits --limit 120 --batch-size 16 --image-size 8 --channels 4 --layers 3 --epochs 4 --learning-rate 0.05 "
    "--warm-up 1 --population 4 --samples 2 --fitness-batch-size 20 --device cpu --no-evidence"
)


def events(directory: Path) -> list[dict[str, Any]]:
    """What a run wrote down, without what may differ between two equal runs: clocks, memory, and who started it."""
    lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    return [
        {key: value for key, value in line.items() if key not in ("seconds", "peak_memory_mb")}
        for line in lines
        if line["event"] != "run"
    ]


def same_bits(a: Any, b: Any) -> bool:
    """Whether two nested states are equal, tensors bit for bit."""
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same_bits(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(same_bits(x, y) for x, y in zip(a, b, strict=True))
    return a == b
