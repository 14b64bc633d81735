"""The page of a comparison: many runs of several strategies on one evaluator."""

from __future__ import annotations

import json
import shlex
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
from fastnas.report.page import data_name, fill, write_page
from fastnas.report.results import Result, read_options, read_results
from fastnas.report.tables import data_table, key_table

TIMES = 200  # places at which curves are drawn
BAR_EVERY = 20  # of them, a bar
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
        page = _render(results, options, directory)
    return write_page(directory, page)


def clock_name(options: dict[str, Any]) -> str:
    """Whose seconds the budget counts: those of a table are simulated, a function may return its own."""
    clock = str(options["clock"])
    return "evaluator" if clock == "real" and str(options["evaluator"]).startswith("python:") else clock


def _render(results: list[Result], options: dict[str, Any], directory: Path) -> str:
    summaries = summarise(results)
    tints = dict(zip([summary.strategy for summary in summaries], cycle(COLOURS), strict=False))
    budget, clock = float(options["budget"]), clock_name(options)
    judged = results[0].judged is not None
    score = "test accuracy" if judged else "validation accuracy"
    parts = [
        ("result", "Result", _table(summaries, score, judged)),
        ("curves", "Best so far", sections.charts(_charts(results, tints, budget, clock, score))),
        ("best", "Best architectures", _best(results, score)),
        ("settings", "Settings", key_table("Settings", [(k, str(v)) for k, v in options.items() if v is not None])),
        ("repeat", "Repeat", _repeat(results, options, directory)),
    ]
    leader = summaries[0]
    done = {summary.runs for summary in summaries}
    tiles = [
        (
            "Evaluator",
            str(options["evaluator"]).partition(":")[0],
            "seconds as it reports them" if clock == "evaluator" else f"{clock} time",
        ),
        ("Strategies", str(len(summaries)), ""),
        ("Runs", str(len(results)), f"{min(done)} each" if len(done) == 1 else f"{min(done)} to {max(done)} each"),
        (
            "Budget",
            f"{budget:,.0f} s",
            "as the evaluator reports them, for each run" if clock == "evaluator" else f"{clock}, for each run",
        ),
        ("Best mean", f"{leader.mean:.2f} %", leader.strategy),
    ]
    names = list(tints)
    listed = f"{', '.join(names[:-1])} and {names[-1]}" if 1 < len(names) < 4 else f"{len(names)} strategies"
    heading = f"Comparison of {names[0] if len(names) == 1 else listed} on {_evaluator_name(options)}"
    return fill(heading, heading, f"{len(results):,} runs on {escape(str(options['evaluator']))}", tiles, parts)


def _evaluator_name(options: dict[str, Any]) -> str:
    """``flowers`` of ``training:folder:./flowers``; the name of a function; ``nb201`` of a table."""
    kind, _, detail = str(options["evaluator"]).partition(":")
    if kind == "training":
        return data_name({"spec": detail})
    return detail.rpartition(":")[2] if kind == "python" else kind


def _table(summaries: list[Summary], score: str, judged: bool) -> str:
    head = ["strategy", "runs", f"{score} (%)", "worst to best (%)", "evaluations"]
    if judged:  # otherwise it is the score
        head.insert(4, "validation accuracy (%)")
    rows = [
        (
            s.strategy,
            str(s.runs),
            f"{s.mean:.2f} ± {s.std:.2f}",
            f"{s.worst:.2f} to {s.best:.2f}",
            *([f"{s.validation:.2f}"] if judged else []),
            f"{s.evaluations:.1f}",
        )
        for s in summaries
    ]
    note = "Mean ± standard deviation over the runs."
    note += " The searches saw only the validation accuracy." if judged else " The searches saw this accuracy, too."
    return sections.note(note) + data_table(head, rows, numbers=len(head) - 1, caption="Accuracies of the strategies")


def _best(results: list[Result], score: str) -> str:
    """The best architecture of each strategy, the best one first."""
    best: dict[str, Result] = {}
    for run in results:
        if run.strategy not in best or run.score > best[run.strategy].score:
            best[run.strategy] = run
    parts: list[str] = []
    for run in sorted(best.values(), key=lambda run: -run.score):
        title = f"{run.strategy}: {100 * run.score:.2f} % {score}, seed {run.seed}"
        text = json.dumps(run.genotype, ensure_ascii=False)
        opened = "" if parts else " open"
        parts.append(f"<details{opened}><summary>{escape(title)}</summary>{sections.code(text)}</details>")
    remark = "Save one of these texts as genotype.json, and python -m fastnas.train --genotype genotype.json trains it."
    return sections.note("" if "nb201" in results[0].genotype else remark) + "".join(parts)


def _repeat(results: list[Result], options: dict[str, Any], directory: Path) -> str:
    """The command that repeats all runs, which also continues or extends them."""
    seeds = [run.seed for run in results]
    words = ["--strategies", ",".join(dict.fromkeys(run.strategy for run in results))]
    for name, value in options.items():
        if name != "clock" and value is not None:
            words += [f"--{name.replace('_', '-')}", str(value)]
    words += ["--runs", str(max(seeds) - min(seeds) + 1), "--seed", str(min(seeds)), "--out", str(directory)]
    remark = (
        "With this --out, more --runs or further --strategies are added; with another one, everything is run again."
    )
    return sections.note(remark) + sections.code(shlex.join(["python", "-m", "fastnas.compare", *words]))


def _charts(results: list[Result], tints: dict[str, str], budget: float, clock: str, score: str) -> Iterator[Chart]:
    """The mean of the best so far over time, with bars of the middle half."""
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
    chart.label("seconds that the evaluator reports" if clock == "evaluator" else f"{clock} seconds", f"{score} (%)")
    chart.grid()
    chart.ticks(y=MaxNLocator(6, steps=(1, 2, 2.5, 5, 10), min_n_ticks=4))
    for number, (strategy, (x, mean, low, high)) in enumerate(curves.items()):
        tint = colour(tints[strategy])
        chart.axes.plot(x, mean, color=tint, linewidth=1.8, drawstyle="steps-post")
        # Bars, each strategy's beside the others': bands would lie on each other and mix to grey.
        places = np.searchsorted(x, times[BAR_EVERY::BAR_EVERY] - BAR_EVERY * number / len(curves) * times[1])
        places = np.unique(places[places < len(x)])
        chart.axes.vlines(x[places], low[places], high[places], color=tint, linewidth=2.4, alpha=0.75)
    # The first architectures are so much worse that, with them, the rest would be one flat line.
    late = [np.minimum(low, mean)[x >= 0.1 * budget] for x, mean, low, _ in curves.values()]
    bottom = min((part.min() for part in late if part.size), default=min(c[1].min() for c in curves.values()))
    top = max(max(high.max(), mean.max()) for _, mean, _, high in curves.values())
    room = 0.05 * (top - bottom or 1.0)
    chart.axes.set_ylim(bottom - room, top + room)
    chart.axes.set_xlim(0, budget)
    labels = [(float(mean[-1]), f"{name} {mean[-1]:.2f}", tints[name]) for name, (_, mean, *_) in curves.items()]
    chart.direct_labels(labels)
    chart.note = "Line: mean over the runs; vertical bars: the middle half of them."
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
