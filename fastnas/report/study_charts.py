"""Charts of a study: each cell's runs over the seeds, the curves of all cells, and numbers against an option."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import cycle
from statistics import fmean
from typing import Any

from matplotlib.ticker import MaxNLocator

from fastnas.report.chart import FONT_SIZE, Chart, colour
from fastnas.report.comparison import COLOURS
from fastnas.report.run import is_number
from fastnas.report.study_grid import symbol
from fastnas.report.study_results import MEASURES, Cell, Statistic, StudyResults
from fastnas.report.study_unit import UnitResult

MOST_COLOURED = 8  # curves that colours can tell apart
BOXED = 4  # values that a box is drawn of; fewer are points and their mean
LONGEST = 46  # characters of a cell's name beside its box

Unit = Callable[[UnitResult], float | None]


def box_chart(results: StudyResults) -> Chart | None:
    """A row for each cell: a point for each run, the mean, and a box where there are enough; the random baseline of a
    cell below it. None before a run has ended."""
    name, stages = next((name, stages) for words, name, stages in MEASURES if words == results.measure)
    rows: list[tuple[str, list[float], str]] = []
    for cell in results.cells:
        used = next((stage for stage in stages if cell.mean(name, stage)), None)
        best = results.is_best(cell)
        rows.append((cell.label, _values(cell, used, name), "contrast" if best else "accent"))
        if random := _values(cell, "baseline", name):
            rows.append((f"random, beside {cell.label}", random, "muted"))
    rows = [row for row in rows if row[1]]
    if not rows:
        return None
    labels = [label if len(label) <= LONGEST else f"{label[: LONGEST - 1]}…" for label, _, _ in rows]
    left = 12.0 + max(map(len, labels)) * FONT_SIZE * 0.56
    size = (900.0, 62.0 + 24.0 * len(rows))
    chart = Chart("seeds", f"{results.measure.capitalize()} of each run", size, (left, 20.0, 36.0, 10.0))
    chart.note = (
        "A point is a run, the line across it the mean of the cell"
        + (f"; boxes: quartiles, of {BOXED} runs and more" if any(len(v) >= BOXED for _, v, _ in rows) else "")
        + (". Orange: the cell with the best mean." if len(results.cells) > 1 else ".")
    )
    axes = chart.axes
    axes.set_xlabel(f"{results.measure} (%)", fontsize=FONT_SIZE, color=colour("ink-soft"), labelpad=2)
    axes.grid(axis="x", color=colour("line"), linewidth=0.8)
    axes.set_axisbelow(True)
    axes.set_ylim(len(rows) - 0.4, -0.6)  # the first cell above
    axes.set_yticks(range(len(rows)), labels)
    axes.xaxis.set_major_locator(MaxNLocator(8, steps=(1, 2, 2.5, 5, 10)))
    every = [value for _, values, _ in rows for value in values]
    room = 0.05 * (max(every) - min(every)) or 0.5
    axes.set_xlim(min(every) - room, max(every) + room)
    for place, (label, values, tint) in enumerate(rows):
        shade = colour(tint)
        if len(values) >= BOXED:
            line = {"color": shade, "linewidth": 1.0}
            axes.boxplot(
                values, positions=[place], orientation="horizontal", widths=0.6, showfliers=False, boxprops=line,
                whiskerprops=line, capprops=line, medianprops=line, manage_ticks=False,
            )  # fmt: skip
        mean = fmean(values)
        axes.vlines(mean, place - 0.32, place + 0.32, color=shade, linewidth=2.4)
        axes.plot(values, [place] * len(values), "o", color=shade, markersize=4, alpha=0.75, markeredgewidth=0)
        said = Statistic.of(values)
        assert said is not None
        chart.hover(axes.get_xlim(), (place - 0.5, place + 0.5), f"{label}\n{said.text()} %, n {said.n}")
    return chart


def _values(cell: Cell, stage: str | None, name: str) -> list[float]:
    """In %."""
    units = cell.of(stage) if stage else []
    found = [getattr(unit, name) for unit in units if unit.status == "finished"]
    return [100 * float(value) for value in found if value is not None]


def curve_chart(results: StudyResults) -> Chart | None:
    """Validation accuracy over the epochs of the searches, the mean over the seeds of each cell."""
    curves: list[tuple[Cell, list[tuple[int, float]]]] = []
    for cell in results.cells:
        found: dict[int, list[float]] = {}
        for unit in cell.of("search"):
            for epoch, accuracy in unit.curve:
                found.setdefault(epoch, []).append(100 * accuracy)
        # An epoch that not all seeds have reached would be a mean of others than the one before.
        most = max(map(len, found.values()), default=0)
        if complete := [(epoch, fmean(values)) for epoch, values in sorted(found.items()) if len(values) == most]:
            curves.append((cell, complete))
    if not curves:
        return None
    chart = Chart("study_curves", "Validation accuracy over the search", size=(900.0, 340.0))
    chart.label("epoch", "accuracy (%)")
    chart.grid()
    many = len(curves) > MOST_COLOURED
    labels = []
    for (cell, points), tint in zip(curves, cycle(COLOURS), strict=False):
        best = cell is results.best
        name = ("contrast" if best else "muted") if many else tint
        xs, ys = zip(*points, strict=True)
        width, order = (2.2, 3) if best else (1.2, 2)
        pale = 0.6 if many and not best else 1.0
        chart.axes.plot(xs, ys, color=colour(name), linewidth=width, zorder=order, alpha=pale)
        if best or not many:
            labels.append((ys[-1], f"{_short(cell.label)} {ys[-1]:.1f}", name))
    chart.ticks(y=MaxNLocator(6, steps=(1, 2, 2.5, 5, 10), min_n_ticks=4))
    if labels:
        chart.direct_labels(labels)
    chart.note = "The mean over the seeds of each cell." + (" Grey: all cells but the best." if many and labels else "")
    places = sorted({epoch for _, points in curves for epoch, _ in points})
    texts = []
    for place in places:
        there = [(dict(points)[place], cell) for cell, points in curves if place in dict(points)]
        there.sort(key=lambda pair: -pair[0])
        lines = [f"{_short(cell.label)} {value:.2f} %" for value, cell in there[:MOST_COLOURED]]
        texts.append("\n".join([f"epoch {place}", *lines, *(["…"] if len(there) > MOST_COLOURED else [])]))
    chart.hover_columns(places, texts)
    return chart


def _short(label: str) -> str:
    return label if len(label) <= 24 else f"{label[:23]}…"


def option_charts(results: StudyResults) -> Iterator[Chart]:
    """Where the grid is one option with numbers: accuracy, time of the search and derivation gap against it."""
    if len(results.grid) != 1:
        return
    option, values = next(iter(results.grid.items()))
    cells = results.cells
    if len(values) < 2 or not all(map(is_number, values)) or len(cells) != len(values):
        return
    name, stages = next((name, stages) for words, name, stages in MEASURES if words == results.measure)
    measure = results.measure.capitalize()
    wanted = (
        ("option", measure, f"{results.measure} (%)", stages, name, 100.0),
        ("option_time", "Time of the search", "seconds", ("search",), "seconds", 1.0),
        ("option_gap", "Derivation gap", "points of accuracy", ("search",), "gap", 100.0),
    )
    for key, title, unit, of, attribute, scale in wanted:
        if chart := _option_chart(key, title, unit, option, cells, of, attribute, scale):
            yield chart


def _option_chart(
    key: str, title: str, unit: str, option: str, cells: list[Cell], stages: tuple[str, ...], name: str, scale: float
) -> Chart | None:
    found = [(i, cell, value) for i, cell in enumerate(cells) if (value := cell.mean(name, *stages))]
    if not found:
        return None
    chart = Chart(key, f"{title} by {symbol(option)}", margins=(46.0, 20.0, 32.0, 20.0))
    chart.label(symbol(option), unit)
    chart.grid()
    places = [place for place, _, _ in found]
    means = [scale * value.mean for _, _, value in found]
    spans = [scale * (value.std or 0.0) for _, _, value in found]
    chart.axes.errorbar(
        places, means, yerr=spans, color=colour("accent"), linewidth=1.8, marker="o", markersize=4, elinewidth=1.6,
        capsize=3,
    )  # fmt: skip
    # Equal distances: published options grow by factors, and 0 is among them.
    chart.axes.set_xticks(range(len(cells)), [_number(cell.options[option]) for cell in cells])
    chart.axes.set_xlim(-0.5, len(cells) - 0.5)
    chart.axes.yaxis.set_major_locator(MaxNLocator(5, steps=(1, 2, 2.5, 5, 10), min_n_ticks=3))
    if any(value.n > 1 for _, _, value in found):
        chart.note = "Mean over the seeds; bars: one standard deviation to each side."
    chart.hover_columns(
        places,
        [f"{symbol(option)} = {_number(c.options[option])}\n{v.text(scale=scale)}, n {v.n}" for _, c, v in found],
    )
    return chart


def _number(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
