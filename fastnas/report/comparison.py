"""The page of a comparison: many runs of several strategies on one evaluator."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from html import escape
from itertools import cycle
from pathlib import Path
from typing import Any

import matplotlib.style
import numpy as np
from matplotlib.ticker import MaxNLocator

from fastnas.errors import UserError
from fastnas.report import sections
from fastnas.report.chart import Chart, colour
from fastnas.report.page import fill, write_page
from fastnas.report.results import Result, read_options, read_results

TIMES = 200  # places at which curves are drawn
COLOURS = tuple(
    f"op-{name}"
    for name in (
        "sep_conv_5x5", "max_pool_3x3", "skip_connect", "dil_conv_3x3", "avg_pool_3x3", "sep_conv_3x3", "dil_conv_5x5",
        "conv_7x1_1x7",
    )
)  # fmt: skip


@dataclass(frozen=True)
class Summary:
    """All runs of one strategy; accuracies in %."""

    strategy: str
    runs: int
    mean: float
    std: float
    worst: float
    best: float
    validation: float
    evaluations: float


def summarise(results: list[Result]) -> list[Summary]:
    """Mean and standard deviation over the runs of each strategy, best mean first."""
    groups: dict[str, list[Result]] = {}
    for result in results:
        groups.setdefault(result.strategy, []).append(result)
    summaries = []
    for strategy, runs in groups.items():
        scores = 100 * np.array([run.score for run in runs])
        summaries.append(
            Summary(
                strategy,
                len(runs),
                mean=float(scores.mean()),
                std=float(scores.std()),
                worst=float(scores.min()),
                best=float(scores.max()),
                validation=float(np.mean([100 * run.accuracy for run in runs])),
                evaluations=float(np.mean([run.evaluations for run in runs])),
            )
        )
    return sorted(summaries, key=lambda summary: -summary.mean)


def write_comparison(directory: str | Path) -> Path:
    """Writes ``report.html`` into the directory of a comparison and returns its path.

    Raises:
        UserError: no run has ended yet, or the page cannot be written.
    """
    directory = Path(directory)
    results = read_results(directory)
    if not results:
        raise UserError(f"{directory} holds no finished run of a comparison yet; run python -m fastnas.compare first.")
    options = read_options(directory)
    with matplotlib.style.context("default", after_reset=True):
        page = _render(results, options)
    return write_page(directory, page)


def _render(results: list[Result], options: dict[str, Any]) -> str:
    summaries = summarise(results)
    tints = dict(zip([summary.strategy for summary in summaries], cycle(COLOURS), strict=False))
    budget, clock = float(options["budget"]), str(options["clock"])
    score = "test accuracy" if results[0].judged is not None else "validation accuracy"
    parts = [
        ("result", "Result", _table(summaries, score)),
        ("curves", "Best so far", sections.charts(_charts(results, tints, budget, clock, score), "No curve yet.")),
        ("settings", "Settings", _settings(options)),
    ]
    leader = summaries[0]
    done = {summary.runs for summary in summaries}
    tiles = [
        ("Evaluator", str(options["evaluator"]).partition(":")[0], f"{clock} time"),
        ("Strategies", str(len(summaries)), ""),
        ("Runs", str(len(results)), f"{min(done)} each" if len(done) == 1 else f"{min(done)} to {max(done)} each"),
        ("Budget", f"{budget:,.0f} s", f"{clock}, for each run"),
        ("Best mean", f"{leader.mean:.2f} %", leader.strategy),
    ]
    heading = "Comparison of search strategies"
    return fill(heading, heading, f"{len(results):,} runs on {escape(str(options['evaluator']))}", tiles, parts)


def _table(summaries: list[Summary], score: str) -> str:
    head = ("strategy", "runs", f"{score} (%)", "worst to best (%)", "validation accuracy (%)", "evaluations")
    rows = [
        (
            s.strategy,
            str(s.runs),
            f"{s.mean:.2f} ± {s.std:.2f}",
            f"{s.worst:.2f} to {s.best:.2f}",
            f"{s.validation:.2f}",
            f"{s.evaluations:.1f}",
        )
        for s in summaries
    ]
    header = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    body = "".join(
        "<tr>" + f"<th>{escape(row[0])}</th>" + "".join(f"<td>{escape(cell)}</td>" for cell in row[1:]) + "</tr>"
        for row in rows
    )
    note = sections.note("Mean ± standard deviation over the runs. The searches saw only the validation accuracy.")
    return (
        f'{note}<div class="scroll"><table class="comparison"><thead><tr>{header}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def _charts(results: list[Result], tints: dict[str, str], budget: float, clock: str, score: str) -> Iterator[Chart]:
    """The mean of the best so far over time, with a band of the middle half."""
    times = np.linspace(0, budget, TIMES + 1)
    curves = {}
    for strategy in tints:
        scores = 100 * np.stack([run.score_at(times) for run in results if run.strategy == strategy])  # [runs, times]
        known = ~np.isnan(scores).any(0)
        if known.any():
            low, high = np.quantile(scores[:, known], (0.25, 0.75), axis=0)
            curves[strategy] = times[known], scores[:, known].mean(0), low, high
    if not curves:
        return
    chart = Chart("best_so_far", f"{score.capitalize()} of the best architecture so far", size=(900.0, 380.0))
    chart.label(f"{clock} seconds", f"{score} (%)")
    chart.grid()
    chart.ticks(y=MaxNLocator(6, steps=(1, 2, 2.5, 5, 10), min_n_ticks=4))
    for strategy, (x, mean, low, high) in curves.items():
        chart.axes.fill_between(x, low, high, color=colour(tints[strategy]), alpha=0.14, linewidth=0)
        chart.axes.plot(x, mean, color=colour(tints[strategy]), linewidth=1.8)
    # The first architectures are so much worse that, with them, the rest would be one flat line.
    late = [np.minimum(low, mean)[x >= 0.1 * budget] for x, mean, low, _ in curves.values()]
    bottom = min((part.min() for part in late if part.size), default=min(c[1].min() for c in curves.values()))
    top = max(max(high.max(), mean.max()) for _, mean, _, high in curves.values())
    room = 0.05 * (top - bottom or 1.0)
    chart.axes.set_ylim(bottom - room, top + room)
    chart.axes.set_xlim(0, budget)
    labels = [(float(mean[-1]), f"{name} {mean[-1]:.2f}", tints[name]) for name, (_, mean, *_) in curves.items()]
    chart.direct_labels(labels)
    chart.note = "Line: mean over the runs; band: the middle half of them."
    marks = times[::10]
    texts = []
    for mark in marks:
        lines = [f"{mark:,.0f} s"]
        for name, (x, mean, *_) in curves.items():
            if mark >= x[0]:
                lines.append(f"{name} {mean[np.searchsorted(x, mark, side='right') - 1]:.2f} %")
        texts.append("\n".join(lines))
    chart.hover_columns(marks.tolist(), texts)
    yield chart


def _settings(options: dict[str, Any]) -> str:
    rows = "".join(f"<tr><th>{escape(k)}</th><td>{escape(str(v))}</td></tr>" for k, v in options.items())
    return f"<table>{rows}</table>"
