"""Heat maps of the operation weights softmax(α): the last ones, and the leading candidate of every edge over time."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby

from matplotlib.patches import Rectangle

from fastnas.report.cell_layout import node_name
from fastnas.report.chart import Chart, colour
from fastnas.report.curves import kind_name
from fastnas.report.palette import operation_colour
from fastnas.report.run import Run, is_table, mapping

ROW = 17.0
HEADER = 9.5  # largest size of the candidates' names
BOLD = 0.66  # width of a bold character in its size
UNUSED = "not used"  # an edge that a sampled architecture does not have
COLUMNS = 60  # of the chart over time; a longer run shows that many of its epochs

Weights = list[list[float]]  # [edges, candidates]


@dataclass(frozen=True)
class History:
    """The operation weights of one kind of cell over the epochs."""

    kind: str
    candidates: list[str]
    edges: list[tuple[int, int]]  # (source, target) by node number
    epochs: list[int]  # counted from 1
    weights: list[Weights]

    @property
    def shades(self) -> tuple[float, float]:
        """The weights of the palest and of the strongest colour in the table of the last weights."""
        return min(map(min, self.weights[-1])), max(map(max, self.weights[-1]))

    @property
    def difference(self) -> float:
        """The largest difference between two candidates of one edge, at the end, in points of a percent."""
        return 100 * max(max(row) - min(row) for row in self.weights[-1])

    @property
    def decimals(self) -> int:
        """As many as tell the weights apart: published step sizes leave them within a percent of each other."""
        low, high = self.shades
        return 0 if high - low >= 0.1 else 1 if high - low >= 0.01 else 2


def weight_charts(run: Run) -> Iterator[Chart]:
    """For every kind of cell the heat map of the last weights, then the leading candidates over time."""
    for kind in dict.fromkeys(kind for epoch in run.epochs for kind in mapping(epoch.get("op_weights"))):
        if history := _history(run, kind):
            yield _last_weights(history, _chosen(run, history))
            if len(history.epochs) > 1:
                yield _leaders(history)


def _history(run: Run, kind: str) -> History | None:
    tables = [(epoch["epoch"] + 1, mapping(epoch.get("op_weights")).get(kind)) for epoch in run.epochs]
    found = [(epoch, table) for epoch, table in tables if is_table(table)]
    if not found:
        return None
    shape = len(found[-1][1]), len(found[-1][1][0])
    # Strategies that drop candidates change the shape; only tables of the last shape can be compared.
    found = [(epoch, w) for epoch, w in found if (len(w), len(w[0])) == shape]
    names = run.network.get("candidates")
    if not isinstance(names, list) or len(names) != shape[1]:
        names = [f"candidate {i}" for i in range(shape[1])]
    epochs, weights = zip(*found, strict=True)
    return History(kind, [str(name) for name in names], _edges(shape[0]), list(epochs), list(weights))


def _edges(count: int) -> list[tuple[int, int]]:
    """(source, target) of every edge. Cells have two inputs (2, 5, 9, 14, ... edges) or one (1, 3, 6, 10, ...)."""
    inputs = 1 if math.isqrt(8 * count + 1) ** 2 == 8 * count + 1 else 2
    edges: list[tuple[int, int]] = []
    target = inputs
    while len(edges) < count:
        edges += [(source, target) for source in range(target)]
        target += 1
    return edges[:count]


def _edge_name(history: History, edge: tuple[int, int]) -> str:
    one_input = history.edges[0] == (0, 1)
    source, target = (str(n) if one_input else node_name(n) for n in edge)
    return f"{source.replace('c_{k-1}', 'cₖ₋₁').replace('c_{k-2}', 'cₖ₋₂')} → {target}"


def _chosen(run: Run, history: History) -> set[tuple[int, str]]:
    """(edge index, candidate) of the operations in the genotype."""
    if run.genotype is None or history.kind not in run.genotype.kinds:
        return set()
    index = {edge: i for i, edge in enumerate(history.edges)}
    nodes = run.genotype.pairs(history.kind)
    return {
        (index[source, target], primitive)
        for target, pairs in enumerate(nodes, start=run.genotype.inputs)
        for primitive, source in pairs
        if (source, target) in index
    }


def _rows(chart: Chart, history: History) -> list[float]:
    """Heights of the edges, top down, the edges of one node close together; sets the vertical axis and its labels."""
    heights, y = [], 0.0
    for i, (_, target) in enumerate(history.edges):
        y += 1.0 if i == 0 or history.edges[i - 1][1] == target else 1.3
        heights.append(y - 0.5)
    chart.axes.set_ylim(y, 0)
    chart.axes.set_yticks(heights, [_edge_name(history, edge) for edge in history.edges])
    chart.axes.spines["bottom"].set_visible(False)
    return heights


def _height(history: History) -> float:
    nodes = len({target for _, target in history.edges})
    return ROW * (len(history.edges) + 0.3 * (nodes - 1))


def _last_weights(history: History, chosen: set[tuple[int, str]]) -> Chart:
    size, names = _header(history.candidates, (440.0 - 64.0) / len(history.candidates))
    margins = (58.0, 6.0, 6.0, 10.0 + 1.15 * size * max(name.count("\n") + 1 for name in names))
    low, high = history.shades
    chart = Chart(
        f"weights_{history.kind}",
        f"Operation weights of the {kind_name(history.kind)} cell, epoch {history.epochs[-1]}",
        size=(440.0, _height(history) + margins[2] + margins[3]),
        margins=margins,
        note=f"In %; each row is an edge. {_how_far(history)}"
        + (" Outlined: the operations of the genotype." if chosen else ""),
    )
    weights, count = history.weights[-1], len(history.candidates)
    for i, (y, edge, row) in enumerate(zip(_rows(chart, history), history.edges, weights, strict=True)):
        for k, (weight, candidate) in enumerate(zip(row, history.candidates, strict=True)):
            shade = Rectangle((k + 0.03, y - 0.46), 0.94, 0.92, facecolor=colour("accent"), edgecolor="none")
            shade.set_alpha(round(0.04 + 0.66 * (weight - low) / ((high - low) or 1.0), 3))
            chart.axes.add_patch(shade)
            picked = (i, candidate) in chosen
            if picked:
                frame = Rectangle((k + 0.03, y - 0.46), 0.94, 0.92, fill=False, edgecolor=colour("ink"), linewidth=1.4)
                chart.axes.add_patch(frame)
            bold = "bold" if picked else "normal"
            text = f"{100 * weight:.{history.decimals}f}"
            chart.axes.text(k + 0.5, y, text, ha="center", va="center_baseline", color=colour("ink"), weight=bold)
            title = f"{_edge_name(history, edge)}\n{candidate} {100 * weight:.2f} %"
            chart.hover((k, k + 1), (y - 0.5, y + 0.5), title)
    chart.axes.set_xlim(0, count)
    chart.axes.xaxis.tick_top()
    chart.axes.tick_params(axis="x", length=0)
    chart.axes.set_xticks([k + 0.5 for k in range(count)], names)
    for label, name in zip(chart.axes.get_xticklabels(), history.candidates, strict=True):
        label.set(color=colour(operation_colour(name)), fontsize=size, weight="bold", linespacing=1.1)
    return chart


def _how_far(history: History) -> str:
    """What the colours mean and, where α has hardly moved, how little that is."""
    low, high = (f"{100 * weight:.{history.decimals}f}" for weight in history.shades)
    if low == high:
        return "All weights are equal: α has not moved."
    words = f"The colours run from {low} to {high} %."
    if history.difference < 1:
        shown = f"{history.difference:.1f}" if history.difference >= 0.05 else f"{history.difference:.2g}"
        words += f" The choices of an edge differ by at most {shown} points: α is nearly undecided."
    return words


def _header(names: list[str], width: float) -> tuple[float, list[str]]:
    """The size at which the candidates' names fit into columns of this width, and the names, broken at underscores."""
    broken = [_broken(name, width) for name in names]
    longest = max(len(line) for name in broken for line in name.split("\n"))
    return min(HEADER, (width - 3) / (BOLD * longest)), broken


def _broken(name: str, width: float) -> str:
    """`sep_conv_3x3` in two lines, or in three where a column has no room for `sep_conv`."""
    lines: list[str] = []
    for part in name.rsplit("_", 1):
        joined = [part] if len(part) * HEADER * BOLD <= width - 3 else part.split("_")
        lines += [line for line in joined if line]
    return "\n".join(lines) or name


def _leaders(history: History) -> Chart:
    margins = (58.0, 80.0, 32.0, 8.0)
    uniform = 1.0 / len(history.candidates)
    strongest = max(max(map(max, table)) for table in history.weights)
    chart = Chart(
        f"leaders_{history.kind}",
        f"Leading candidate of every edge, {kind_name(history.kind)} cell",
        size=(440.0, _height(history) + margins[2] + margins[3]),
        margins=margins,
        note=f"The stronger the colour, the larger the weight, from {100 * uniform:.{history.decimals}f} to "
        f"{100 * strongest:.{history.decimals}f} %. On the right: the leader at the end.",
    )
    stride = math.ceil(len(history.epochs) / COLUMNS)
    shown = list(range(len(history.epochs) - 1, -1, -stride))[::-1]
    starts = [history.epochs[i] for i in shown]
    ends = [*starts[1:], starts[-1] + stride]
    labels = []
    for row, (y, edge) in enumerate(zip(_rows(chart, history), history.edges, strict=True)):
        shades: list[tuple[str, float]] = []
        for i, start, end in zip(shown, starts, ends, strict=True):
            weights = history.weights[i][row]
            weight = max(weights)
            leader = history.candidates[weights.index(weight)] if weight > 0 else UNUSED
            # From barely tinted where every candidate weighs the same to full at the largest weight, in ten steps.
            # Where α has not moved, rounding decides on which side of uniform the weights lie.
            strength = min(1.0, max(0.0, weight - uniform) / max(strongest - uniform, 1e-9))
            shades.append((leader, round(0.1 + 0.9 * strength, 1) if weight > 0 else 0.0))
            title = (
                f"{_edge_name(history, edge)}, epoch {start}\n{leader} {100 * weight:.{max(1, history.decimals)}f} %"
            )
            chart.hover((start - 0.5, end - 0.5), (y - 0.5, y + 0.5), title)
        for (leader, strength), group in groupby(zip(shades, starts, ends, strict=True), key=lambda part: part[0]):
            parts = list(group)
            left, right = parts[0][1] - 0.5, parts[-1][2] - 0.5
            shade = Rectangle((left, y - 0.46), right - left, 0.92, linewidth=0)
            shade.set(facecolor=colour(_leader_colour(leader)), alpha=strength)
            chart.axes.add_patch(shade)
        text = f"{leader} {100 * weight:.{history.decimals}f} %" if weight > 0 else UNUSED
        labels.append((y, text, _leader_colour(leader)))
    chart.axes.set_xlim(starts[0] - 0.5, ends[-1] - 0.5)
    chart.ticks()
    chart.label("epoch", "")
    chart.direct_labels(labels)
    return chart


def _leader_colour(leader: str) -> str:
    return "muted" if leader == UNUSED else operation_colour(leader)
