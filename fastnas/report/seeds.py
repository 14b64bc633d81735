"""Several trainings of one network: mean and deviation, the best, and each."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from fastnas.report.run import read_run

SUMMARY = "results.json"


def collect(folders: Mapping[int, Path]) -> dict[str, Any]:
    """What the end of every run says; accuracies are shares in 0..1. The deviation is that of a sample."""
    each = []
    for seed, folder in folders.items():
        ending = read_run(folder).ending or {}
        test = ending.get("test") or {}
        each.append(
            {
                "seed": seed,
                "folder": folder.name,
                "top1": test.get("top1"),
                "top5": test.get("top5"),
                "loss": test.get("loss"),
                "selected_epoch": ending.get("selected_epoch"),
            }
        )
    known = [run["top1"] for run in each if run["top1"] is not None]
    return {
        "runs": each,
        "mean": mean(known) if known else None,
        "std": stdev(known) if len(known) > 1 else None,
        "best": max(known) if known else None,
    }


def summary(results: Mapping[str, Any]) -> str:
    """One line."""
    if results["mean"] is None:
        return f"{len(results['runs'])} networks trained, none tested"
    tested = [run for run in results["runs"] if run["top1"] is not None]
    deviation = f" ± {results['std']:.2%}" if results["std"] is not None else ""
    each = ", ".join(f"seed {run['seed']} {run['top1']:.2%}" for run in tested)
    return f"test accuracy {results['mean']:.2%}{deviation} over {len(tested)} seeds, best {results['best']:.2%} ({each})"


def write_seeds_report(directory: Path, folders: Mapping[int, Path]) -> Path:
    results = collect(folders)
    (directory / SUMMARY).write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    return directory / SUMMARY
