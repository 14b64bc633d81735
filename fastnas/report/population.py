"""Charts of the evolution steps: how fitness and accuracy were distributed over the population."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from matplotlib.ticker import MaxNLocator

from fastnas.report.chart import Chart, colour
from fastnas.report.run import Record, Run, is_number

BARS = 240  # a longer run pools neighbouring steps


@dataclass(frozen=True)
class Bar:
    """One evolution step, or several neighbouring ones."""

    place: float
    name: str
    quartiles: tuple[float, float, float, float, float]  # minimum, 25 %, median, 75 %, maximum
    best: float | None
    current: float | None


def population_charts(run: Run) -> Iterator[Chart]:
    """Fitness (minimised) and accuracy, one bar for each evolution step over all its samples and generations."""
    reading = "Thin line: from the lowest to the highest individual; thick line: the middle half; notch: the median."
    if bars := _bars(run, "fitness", 1.0):
        yield _chart("fitness", "Fitness of the population", "fitness (lower is better)", bars, "{:.3f}", reading)
    if bars := _bars(run, "accuracy", 100.0):
        current = any(bar.current is not None for bar in bars)
        note = reading + (" Current: the α of the search itself, on the same batch." if current else "")
        yield _chart("accuracy", "Accuracy of the population", "accuracy (%)", bars, "{:.1f} %", note)


def _bars(run: Run, key: str, scale: float) -> list[Bar]:
    steps: dict[tuple[int, int], list[float]] = {}
    for record in run.populations:
        values = record.get(key)
        if isinstance(values, list):
            steps.setdefault(_step(record), []).extend(v * scale for v in values if is_number(v))
    updates = {_step(update): update for update in run.updates}
    order = [step for step in sorted(steps) if steps[step]]
    width = math.ceil(len(order) / BARS)
    bars = []
    for first in range(0, len(order), width or 1):
        group = order[first : first + width]
        last = first + len(group) - 1
        update = updates.get(group[-1], {})
        quartiles = np.quantile([value for step in group for value in steps[step]], (0, 0.25, 0.5, 0.75, 1)).tolist()
        best, current = (update.get(f"{which}_{key}") for which in ("best", "current"))
        bars.append(
            Bar(
                place=(first + last) / 2,
                name=f"evolution step {first}" if first == last else f"evolution steps {first} to {last}",
                quartiles=tuple(quartiles),
                best=best * scale if is_number(best) else None,
                current=current * scale if is_number(current) else None,
            )
        )
    return bars


def _step(record: Record) -> tuple[int, int]:
    return record["epoch"], record.get("step", 0)


def _chart(key: str, title: str, unit: str, bars: list[Bar], value_format: str, note: str) -> Chart:
    chart = Chart(f"population_{key}", title, margins=(40.0, 92.0, 32.0, 20.0), note=note)
    chart.label("evolution step", unit)
    chart.grid()
    chart.ticks(y=MaxNLocator(6, steps=(1, 2, 2.5, 5, 10), min_n_ticks=4))
    places = [bar.place for bar in bars]
    chart.axes.set_xlim(places[0] - 0.8, places[-1] + 0.8)
    inner = chart.size[0] - chart.margins[0] - chart.margins[1]
    thick = min(8.0, 0.6 * inner / max(len(bars), 3))

    low, first, median, third, high = zip(*(bar.quartiles for bar in bars), strict=True)
    chart.axes.vlines(places, low, high, color=colour("muted"), linewidth=min(1.0, thick))
    chart.axes.vlines(places, first, third, color=colour("muted"), linewidth=thick)
    chart.axes.plot(places, median, "_", color=colour("paper"), markersize=thick, markeredgewidth=1.2)
    labels = [(median[-1], f"median {value_format.format(median[-1])}", "ink-soft")]
    for which, tint, marker in (("current", "contrast", "D"), ("best", "accent", "o")):
        marks = [(bar.place, value) for bar in bars if (value := getattr(bar, which)) is not None]
        if marks:
            size = min(4.2, max(1.5, thick))
            chart.axes.plot(*zip(*marks, strict=True), marker, color=colour(tint), markersize=size, markeredgewidth=0)
            labels.append((marks[-1][1], f"{which} {value_format.format(marks[-1][1])}", tint))
    chart.direct_labels(labels)
    chart.hover_columns(places, [_text(bar, value_format) for bar in bars])
    return chart


def _text(bar: Bar, value_format: str) -> str:
    low, first, median, third, high = map(value_format.format, bar.quartiles)
    lines = [bar.name, f"all {low} to {high}", f"middle half {first} to {third}", f"median {median}"]
    for which, value in (("best", bar.best), ("current", bar.current)):
        if value is not None:
            lines.append(f"{which} {value_format.format(value)}")
    return "\n".join(lines)
