"""The front of a search with two objectives: which accuracy the architectures of each cost reach."""

from __future__ import annotations

from collections.abc import Iterator

from matplotlib.ticker import MaxNLocator

from fastnas.report.chart import Chart, colour
from fastnas.report.run import Record, Run, is_number
from fastnas.report.sections import note
from fastnas.report.tables import data_table

COSTS = {"macs": "multiply-adds (M)", "parameters": "parameters (M)", "latency": "latency (ms)"}
FORMER = 4  # fronts of earlier epochs that are drawn

Point = tuple[float, float]  # cost, accuracy in %


def _points(front: Record, cost: str) -> list[Point]:
    members = front.get("members")
    found = (
        [(m.get(cost), m.get("accuracy")) for m in members if isinstance(m, dict)] if isinstance(members, list) else []
    )
    return sorted((float(c), 100 * float(a)) for c, a in found if is_number(c) and is_number(a))


def _cost(run: Run) -> str | None:
    """The second objective, by the members' fields."""
    members = run.fronts[-1].get("members") if run.fronts else None
    first = members[0] if isinstance(members, list) and members and isinstance(members[0], dict) else {}
    return next((name for name in first if name not in ("accuracy", "genotype")), None)


def front_charts(run: Run) -> Iterator[Chart]:
    """The last front and, paler, some of those before; nothing where the run has none."""
    cost = _cost(run)
    if cost is None:
        return
    known = [(front["epoch"] + 1, points) for front in run.fronts if (points := _points(front, cost))]
    if not known:
        return
    *former, last = known
    stride = max(1, len(former) // FORMER)
    shown = [*former[::-1][::stride][:FORMER][::-1], last]
    name = COSTS.get(cost, cost)
    chart = Chart("front", f"Accuracy against {name.partition(' (')[0]}", size=(900.0, 300.0))
    chart.note = (
        "Each point is an architecture that none of the population beats in both. Ringed: the most accurate one."
        + (" Pale: the fronts of earlier epochs." if former else "")
    )
    chart.label(name, "accuracy (%)")
    chart.grid()
    chart.ticks(MaxNLocator(8, steps=(1, 2, 2.5, 5, 10)), MaxNLocator(6, steps=(1, 2, 2.5, 5, 10), min_n_ticks=4))
    for number, (_, points) in enumerate(shown):
        xs, ys = zip(*points, strict=True)
        strength = 1.0 if number == len(shown) - 1 else 0.2 + 0.3 * number / len(shown)
        chart.axes.plot(
            xs, ys, color=colour("accent"), alpha=strength, linewidth=1.4, drawstyle="steps-post", marker="o",
            markersize=5 if strength == 1 else 3.5,
        )  # fmt: skip
    everything = [point for _, points in shown for point in points]
    for limits, values in (
        (chart.axes.set_xlim, [x for x, _ in everything]),
        (chart.axes.set_ylim, [y for _, y in everything]),
    ):
        room = 0.06 * (max(values) - min(values)) or 1.0
        limits(min(values) - room, max(values) + room)
    best = max(last[1], key=lambda point: (point[1], -point[0]))
    chart.axes.plot(*best, "o", color=colour("contrast"), markersize=11, fillstyle="none", markeredgewidth=1.6)
    chart.direct_labels([(best[1], f"most accurate {best[1]:.1f} %", "contrast")])
    chart.hover_columns([x for x, _ in last[1]], [f"{_number(x)} {name}\n{y:.2f} %" for x, y in last[1]])
    yield chart


def front_table(run: Run) -> str:
    """The members of the last front."""
    cost = _cost(run)
    points = _points(run.fronts[-1], cost) if cost else []
    if not points or cost is None:
        return ""
    rows = [(_number(x), f"{y:.2f}") for x, y in points]
    table = data_table((COSTS.get(cost, cost), "accuracy (%)"), rows, numbers=1, caption="The front at the end")
    where = note('Their genotypes are in metrics.jsonl, in the last event "front".')
    return f"<details><summary>Members of the front ({len(rows)})</summary>{where}{table}</details>"


def _number(value: float) -> str:
    return f"{value:.4g}" if value < 1000 else f"{value:,.0f}"
