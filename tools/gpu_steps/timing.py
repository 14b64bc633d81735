"""Rows of the benchmarks, as the check keeps them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from gpu_steps.ground import Ground

Run = Callable[[], Any]


def keep(ground: Ground, precision: str, rows: list[Any]) -> None:
    """Adds what the table needs of each row."""
    for row in rows:
        values = {
            "contender": row.contender,
            "precision": precision,
            "ms": row.p50_ms,
            "p20": row.p20_ms,
            "p80": row.p80_ms,
        }
        ground.add(
            "rows", {"case": row.case, "mode": row.mode, "n": row.repetitions, "floor_ms": row.floor_ms, **values}
        )


def built(ground: Ground, task: Callable[..., Any], names: Sequence[str], **arguments: Any) -> dict[str, Run]:
    """The contenders that can be built, by the `task` of a benchmark, and run once; why another cannot is a failure."""
    runs = {}
    for name in names:
        try:
            run = task(ground.device, name, **arguments).run
            run()
        except Exception as error:
            ground.add("failures", f"{name}: {type(error).__name__}: {str(error).strip().splitlines()[0][:200]}")
        else:
            runs[name] = run
    return runs
