"""Curves over the epochs of a run. Axes count epochs and steps from 1, records count them from 0."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import cycle

from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator, StrMethodFormatter

from fastnas.report.chart import Chart, colour
from fastnas.report.palette import PHASES, phase_colour
from fastnas.report.run import Record, Run, is_number, mapping

MARKED = 30  # curves with at most this many points show them


@dataclass(frozen=True)
class Curve:
    label: str
    colour: str
    points: list[tuple[float, float]]


def epoch_charts(run: Run) -> Iterator[Chart]:
    """Loss, loss of α, accuracy, alpha entropy, skip count, sigma, drop path and learning rate, as far as they were
    recorded."""
    if chart := line_chart("loss", "Loss", "cross-entropy (nats)", _train_and_valid(run, "loss"), "{:.3f}"):
        chart.note = _whose(run)
        yield chart
    if chart := _alpha_loss(run):
        yield chart
    if chart := line_chart(
        "accuracy", "Accuracy", "accuracy (%)", _train_and_valid(run, "accuracy", 100.0), "{:.1f} %"
    ):
        chart.note = _whose(run)
        yield chart
    if chart := _entropy(run):
        yield chart
    skips = _per_kind(run, "skip_count")
    if chart := line_chart("skips", "Skip connections in the genotype", "edges", skips, "{:.0f}", from_zero=True):
        chart.axes.yaxis.set_major_locator(MaxNLocator(5, integer=True, min_n_ticks=1))
        yield chart
    if chart := _sigma(run):
        yield chart
    rates = [Curve("", "accent", _points(run.epochs, [epoch.get("learning_rate") for epoch in run.epochs]))]
    drops = [Curve("", "accent", _points(run.epochs, [epoch.get("drop_path") for epoch in run.epochs]))]
    if chart := line_chart("drop_path", "Drop path", "probability", drops, "{:.3g}", from_zero=True):
        yield chart
    if chart := line_chart("learning_rate", "Learning rate", "learning rate", rates, "{:.4g}", from_zero=True):
        yield chart


def _points(epochs: list[Record], values: Iterable[object]) -> list[tuple[float, float]]:
    """(epoch, counted from 1; value) where the value is a finite number."""
    return [(float(e["epoch"] + 1), float(v)) for e, v in zip(epochs, values, strict=True) if is_number(v)]


def _whose(run: Run) -> str:
    """Which network the curves are of."""
    if run.is_training:
        return "The network in training. Training: augmented images; validation: held-out images."
    kinds = dict.fromkeys(str(epoch["valid_of"]) for epoch in run.epochs if "valid_of" in epoch)
    names = {"supernet": "the supernet", "cell": "the chosen cell by shared weights"}
    validated = ", later ".join(names.get(kind, kind) for kind in kinds) or f"the {run.validated}"
    words = f"Training: the supernet on the weight half. Validation: {validated}, on the validation half."
    if any(epoch.get("valid_statistics") == "batch" for epoch in run.epochs):
        words += " BatchNorm by the validation images: an epoch is too short for running statistics."
    return words


def _train_and_valid(run: Run, what: str, scale: float = 1.0) -> list[Curve]:
    curves = []
    for name, part, tint in (
        ("training", "train", "ink-soft"),
        ("validation", "valid", "accent"),
        ("test", "test", "contrast"),
    ):
        points = _points(run.epochs, [epoch.get(f"{part}_{what}") for epoch in run.epochs])
        curves.append(Curve(name, tint, [(x, y * scale) for x, y in points]))
    return curves


def kind_name(kind: str) -> str:
    return kind.replace("_", " ").replace("reduce", "reduction")


def _per_kind(run: Run, key: str) -> list[Curve]:
    """One curve for each kind of cell, from records like ``{"normal": 1.9, "reduce": 1.8}``."""
    records = [mapping(epoch.get(key)) for epoch in run.epochs]
    kinds = dict.fromkeys(kind for record in records for kind in record)
    tints = cycle(("accent", "contrast", "muted", "op-skip_connect", "op-dil_conv_3x3"))
    return [
        Curve(kind_name(kind), tint, _points(run.epochs, [record.get(kind) for record in records]))
        for kind, tint in zip(kinds, tints, strict=False)
    ]


def _entropy(run: Run) -> Chart | None:
    curves, count = _per_kind(run, "alpha_entropy"), run.candidate_count
    ceiling = (math.log(count), f"ln {count} = {math.log(count):.3f}") if count else None
    title = "Entropy of the operation weights"
    chart = line_chart("entropy", title, "entropy (nats)", curves, "{:.3f}", from_zero=True, ceiling=ceiling)
    if chart and count:
        chart.note = f"Mean over the edges. ln {count} means that all {count} candidates weigh the same."
    return chart


def _alpha_loss(run: Run) -> Chart | None:
    curves = [Curve("sum", "accent", _points(run.alphas, [record.get("loss") for record in run.alphas]))]
    names = dict.fromkeys(name for record in run.alphas for name in mapping(record.get("terms")))
    for name, tint in zip(names, cycle(("ink-soft", "contrast"))):
        values = [mapping(record.get("terms")).get(name) for record in run.alphas]
        curves.append(Curve(name, tint, _points(run.alphas, values)))
    if not names:
        curves[0] = replace(curves[0], label="")
    if chart := line_chart("alpha_loss", "Loss of α", "nats", curves, "{:.3f}"):
        chart.note = "What the steps of α minimise, on the batches that they are given; the mean of an epoch."
        return chart
    return None


def _sigma(run: Run) -> Chart | None:
    sigmas = [float(sigma) for update in run.updates if is_number(sigma := update.get("sigma"))]
    curve = Curve("", "accent", [(float(i), sigma) for i, sigma in enumerate(sigmas, start=1)])
    log = all(sigma > 0 for sigma in sigmas)
    unit = "σ (log scale)" if log else "σ"
    return line_chart("sigma", "Step size of the evolution", unit, [curve], "{:.3g}", x="evolution step", log=log)


def line_chart(
    name: str,
    title: str,
    unit: str,
    curves: list[Curve],
    value_format: str,
    *,
    x: str = "epoch",
    from_zero: bool = False,
    log: bool = False,
    ceiling: tuple[float, str] | None = None,
) -> Chart | None:
    """Lines with their names and last values beside them; None where no curve has a point.

    ``from_zero`` starts the vertical axis at 0; ``ceiling`` is a value with a name, drawn as a dashed line.
    """
    curves = [curve for curve in curves if curve.points]
    if not curves:
        return None
    chart = Chart(name, title)
    chart.label(x, unit)
    chart.grid()
    for curve in curves:
        xs, ys = zip(*curve.points, strict=True)
        marker = "o" if len(xs) <= MARKED else ""
        chart.axes.plot(xs, ys, color=colour(curve.colour), linewidth=1.8, marker=marker, markersize=3.2)
    values = [y for curve in curves for _, y in curve.points] + ([ceiling[0]] if ceiling else [])
    low, high = (0.0 if from_zero else min(values)), max(values)
    if log:
        chart.axes.set_yscale("log")
        chart.axes.set_ylim(low / 1.25, high * 1.25)
        chart.ticks(y=LogLocator(subs=(1, 2, 5)))
        chart.axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        chart.axes.yaxis.set_minor_locator(NullLocator())
    else:
        room = (high - low or abs(high) or 1.0) * 0.07
        chart.axes.set_ylim(low if from_zero else low - room, high + room)
        chart.ticks(y=MaxNLocator(6, steps=(1, 2, 2.5, 5, 10), min_n_ticks=4))
    _fit_x(chart, [x for curve in curves for x, _ in curve.points])
    labels = [
        (y, f"{curve.label} {value_format.format(y)}".strip(), curve.colour)
        for curve in curves
        for _, y in curve.points[-1:]
    ]
    if ceiling:
        chart.axes.axhline(ceiling[0], color=colour("muted"), linewidth=1, linestyle=(0, (4, 3)))
        labels.append((*ceiling, "ink-soft"))
    chart.direct_labels(labels)
    _hover_points(chart, x, curves, value_format)
    return chart


def _fit_x(chart: Chart, xs: list[float]) -> None:
    low, high = min(xs), max(xs)
    room = (high - low) * 0.02 or 0.5
    chart.axes.set_xlim(low - room, high + room)


def _hover_points(chart: Chart, x: str, curves: list[Curve], value_format: str) -> None:
    values: dict[float, list[str]] = {}
    for curve in curves:
        for position, value in curve.points:
            values.setdefault(position, []).append(f"{curve.label} {value_format.format(value)}".strip())
    places = sorted(values)
    chart.hover_columns(places, ["\n".join([f"{x} {place:g}", *values[place]]) for place in places])


def time_charts(run: Run) -> Iterator[Chart]:
    """Seconds of every epoch, stacked by phase; no chart where no epoch was timed."""
    timed = [epoch for epoch in run.epochs if mapping(epoch.get("seconds"))]
    found = dict.fromkeys(phase for epoch in timed for phase in epoch["seconds"])
    phases = [phase for phase in PHASES if phase in found] + [phase for phase in found if phase not in PHASES]
    if not timed:
        return
    names = {"train": "training", "valid": "validation", "data": "waiting for data"}
    seconds = {p: [float(v) if is_number(v := e["seconds"].get(p)) else 0.0 for e in timed] for p in phases}
    totals = [sum(values) for values in zip(*seconds.values(), strict=True)]
    phases = [p for p in phases if sum(seconds[p]) > 1e-3 * sum(totals)] or phases  # what could be seen
    unit, scale = ("s", 1.0) if max(totals) < 300 else ("min", 60.0) if max(totals) < 3 * 3600 else ("h", 3600.0)
    chart = Chart("time", "Time per epoch", size=(900.0, 232.0), margins=(40.0, 150.0, 32.0, 20.0))
    chart.label("epoch", f"time ({unit})")
    chart.grid()
    chart.ticks(
        x=MaxNLocator(12, integer=True, min_n_ticks=1, steps=(1, 2, 5, 10)),
        y=MaxNLocator(6, steps=(1, 2, 2.5, 5, 10), min_n_ticks=4),
    )
    places = [float(epoch["epoch"] + 1) for epoch in timed]
    chart.axes.set_xlim(min(places) - 0.6, max(places) + 0.6)
    chart.axes.set_ylim(0, (max(totals) or 1.0) / scale * 1.05)
    below = [0.0] * len(timed)
    labels = []
    for phase in phases:
        values = [second / scale for second in seconds[phase]]
        # Outlines, not one rectangle an epoch: the page stays small for long runs.
        for start, stop in _runs(places):
            edges = [place - 0.5 for place in places[start:stop]] + [places[stop - 1] + 0.5]
            tops = [b + v for b, v in zip(below[start:stop], values[start:stop], strict=True)]
            tint = colour(phase_colour(phase))
            chart.axes.stairs(tops, edges, baseline=below[start:stop], fill=True, color=tint, linewidth=0)
        total = sum(seconds[phase]) / (sum(totals) or 1.0)
        labels.append((below[-1] + values[-1] / 2, f"{names.get(phase, phase)} {total:.0%}", phase_colour(phase)))
        below = [b + v for b, v in zip(below, values, strict=True)]
    chart.direct_labels(labels)
    chart.note = "Percentages are shares of the whole run."
    rows = [
        "\n".join([f"epoch {place:g}", *(f"{names.get(p, p)} {seconds[p][i]:.1f} s" for p in reversed(phases))])
        for i, place in enumerate(places)
    ]
    chart.hover_columns(places, rows)
    yield chart


def _runs(places: list[float]) -> Iterator[tuple[int, int]]:
    """Start and stop indices of the stretches of consecutive epochs."""
    start = 0
    for i in range(1, len(places) + 1):
        if i == len(places) or places[i] != places[i - 1] + 1:
            yield start, i
            start = i
