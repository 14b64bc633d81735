"""Several trainings of one network: mean and deviation, the best, and each."""

from __future__ import annotations

import json
from collections.abc import Mapping
from html import escape
from itertools import cycle
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import matplotlib.style

from fastnas.atomic_file import replace_file
from fastnas.report.curves import Curve, line_chart
from fastnas.report.page import DASH, data_tile, fill, size_tile, title_of, write_page
from fastnas.report.run import Run, is_number, mapping, read_run
from fastnas.report.sections import cells, charts, note, settings
from fastnas.report.tables import data_table
from fastnas.report.training import comparison, has_top5, repeat_all

SUMMARY = "results.json"


def write_seeds_report(directory: Path, folders: Mapping[int, Path]) -> Path:
    """Writes results.json and report.html into `directory`; returns the path of the page.

    Args:
        directory: of all runs.
        folders: the run directory of every seed, below `directory`.
    """
    runs = {seed: read_run(folder) for seed, folder in folders.items()}
    results = collect(runs)
    replace_file(directory / SUMMARY, json.dumps(results, indent=1) + "\n", "the summary")
    return write_page(directory, _render(directory, runs, results))


def collect(runs: Mapping[int, Run]) -> dict[str, Any]:
    """What the end of every run says; accuracies are shares in 0..1. The deviation is that of a sample."""
    each: list[dict[str, Any]] = []
    for seed, run in runs.items():
        ending = run.ending or {}
        test = mapping(ending.get("test"))
        row = {"seed": seed, "folder": run.path.name, "selected_epoch": ending.get("selected_epoch")}
        each.append(row | {name: test.get(name) for name in ("top1", "top5", "loss")})
    known = [float(row["top1"]) for row in each if is_number(row["top1"])]
    return {
        "runs": each,
        "mean": mean(known) if known else None,
        "std": stdev(known) if len(known) > 1 else None,
        "best": max(known) if known else None,
    }


def summary(results: Mapping[str, Any]) -> str:
    """The results in one line."""
    tested = [run for run in results["runs"] if run["top1"] is not None]
    if not tested:
        return f"{len(results['runs'])} networks trained, none tested"
    each = ", ".join(f"seed {run['seed']} {run['top1']:.2%}" for run in tested)
    return f"test accuracy {_mean(results)} over {len(tested)} seeds, best {results['best']:.2%} ({each})"


def _mean(results: Mapping[str, Any]) -> str:
    deviation = f" ± {results['std']:.2%}" if results["std"] is not None else ""
    return f"{results['mean']:.2%}{deviation}"


def _render(directory: Path, runs: Mapping[int, Run], results: Mapping[str, Any]) -> str:
    first = next(iter(runs.values()))
    heading = title_of(first, f", {len(runs)} seeds")
    tested = results["mean"] is not None
    tiles = [
        data_tile(first.data),
        (
            "Test accuracy",
            f"{_mean(results).replace('%', '')} %" if tested else DASH,
            "networks after training, mean ± deviation of the seeds",
        ),
        ("Best", f"{results['best']:.2%}".replace("%", " %") if tested else DASH, "of the seeds"),
        ("Seeds", str(len(runs)), ", ".join(map(str, runs))),
        ("Epochs", str(first.planned_epochs or DASH), "of each"),
        size_tile("Network", first.network),
    ]
    error = DASH
    if tested:
        deviation = f" ± {100 * results['std']:.2f}" if results["std"] is not None else ""
        error = f"{100 * (1 - results['mean']):.2f}{deviation}"
    accuracies = ("top1", "top5") if has_top5(first.data.get("classes")) else ("top1",)
    rows = [
        (
            f'<a href="{escape(row["folder"])}/report.html">seed {row["seed"]}</a>',
            *(DASH if row[name] is None else f"{100 * row[name]:.2f} %" for name in accuracies),
            DASH if row["loss"] is None else f"{row['loss']:.4f}",
            DASH if row["selected_epoch"] is None else str(row["selected_epoch"] + 1),
        )
        for row in results["runs"]
    ]
    head = ("seed", *(name.replace("top", "top-") for name in accuracies), "loss (nats)", "epoch of the weights")
    table = data_table(head, rows, numbers=len(head) - 1, markup=True, caption="The test of each seed")
    tints = cycle(("accent", "contrast", "muted", "ink-soft"))
    curves = [
        Curve(
            f"seed {seed}",
            tint,
            [(e["epoch"] + 1, 100 * e["train_accuracy"]) for e in run.epochs if is_number(e.get("train_accuracy"))],
        )
        for (seed, run), tint in zip(runs.items(), tints, strict=False)
    ]
    with matplotlib.style.context("default", after_reset=True):
        chart = line_chart("accuracy", "Training accuracy", "accuracy (%)", curves, "{:.1f} %")
        parts = [
            ("result", "Test", note("Each network was tested at its end; its page has its curves.") + table),
            ("comparison", "Comparison", comparison(first, error)),
            ("curves", "Curves", charts([chart] if chart else [])),
            ("cells", "Cells", cells(first)),
            (
                "settings",
                "Settings",
                note(f"Of seed {next(iter(runs))}; the others differ in the seed alone.") + settings(first),
            ),
            ("repeat", "Repeat", repeat_all(first)),
        ]
    return fill(f"{heading}: {directory.name}", heading, f"run {escape(directory.name)}", tiles, parts)
