"""Charts of the evolution steps, counted from 1: how fitness and accuracy were distributed over the population."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from matplotlib.ticker import MaxNLocator

from fastnas.report.chart import Chart, colour
from fastnas.report.run import Record, Run, is_number

STEP = "evolution step"
BARS = 240  # a longer run pools neighbouring steps


@dataclass(frozen=True)
class Bar:
    """One evolution step, or several neighbouring ones."""

    place: float
    name: str
    quartiles: tuple[float, float, float, float, float]  # minimum, 25 %, median, 75 %, maximum
    marks: dict[str, float]  # of single individuals, by what they are


def population_charts(run: Run) -> Iterator[Chart]:
    """Fitness (minimised) and accuracy, one bar for each evolution step over all its samples and generations."""
    reading = "Thin line: from the lowest to the highest individual; thick line: the middle half; notch: the median."
    evolves = any("best_fitness" in update for update in run.updates)
    by_fitness = any(update.get("winner") == "fitness" for update in run.updates)
    taken = " Taken: the individual towards which α moves, " + (
        "the one of the lowest fitness."
        if by_fitness
        else "the most accurate of those that have the lowest fitness in their population; so it need not have the "
        "lowest fitness of all."
    )
    if bars := _bars(run, "fitness", 1.0):
        note = reading + (taken if evolves else "")
        yield _chart("fitness", "Fitness of the population", "fitness (lower is better)", bars, "{:.3f}", note)
    if bars := _bars(run, "accuracy", 100.0):
        note = reading + (f" α: that of the search itself, on the same images.{_below_alpha(run)}" if evolves else "")
        yield _chart("accuracy", "Accuracy of the population", "accuracy (%)", bars, "{:.1f} %", note)


def _below_alpha(run: Run) -> str:
    """How often the individual that was taken is less accurate than α, and why the rule of EG-NAS prefers it."""
    pairs = [(u.get("best_accuracy"), u.get("current_accuracy")) for u in run.updates]
    known = [(taken, alpha) for taken, alpha in pairs if is_number(taken) and is_number(alpha)]
    below = sum(taken < alpha for taken, alpha in known)
    if not below:
        return ""
    reason = (
        " In the fitness eq3, similarity to α counts against individuals that are at least as accurate as α and in "
        "favour of all others, so that one slightly below α often has the lowest fitness."
        if all(update.get("form", "eq3") == "eq3" for update in run.updates)
        else ""
    )
    return f" In {below} of {len(known)} steps the individual that was taken is less accurate than α.{reason}"


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
        best = "taken" if "best_fitness" in update else "best so far"
        marks = {"α": update.get(f"current_{key}"), best: update.get(f"best_{key}")}
        bars.append(
            Bar(
                place=(first + last) / 2 + 1,
                name=f"{STEP} {first + 1}" if first == last else f"{STEP}s {first + 1} to {last + 1}",
                quartiles=tuple(quartiles),
                marks={name: value * scale for name, value in marks.items() if is_number(value)},
            )
        )
    return bars


def _step(record: Record) -> tuple[int, int]:
    return record["epoch"], record.get("step", 0)


def _chart(key: str, title: str, unit: str, bars: list[Bar], value_format: str, note: str) -> Chart:
    chart = Chart(f"population_{key}", title, margins=(40.0, 92.0, 32.0, 20.0), note=note)
    chart.label(STEP, unit)
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
    for which, tint, marker in (("α", "contrast", "D"), ("taken", "accent", "o"), ("best so far", "accent", "o")):
        marks = [(bar.place, bar.marks[which]) for bar in bars if which in bar.marks]
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
    lines += [f"{which} {value_format.format(value)}" for which, value in bar.marks.items()]
    return "\n".join(lines)
