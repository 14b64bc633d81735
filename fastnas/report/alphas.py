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
UNUSED = "not used"  # an edge that a sampled architecture does not have
COLUMNS = 60  # of the chart over time; a longer run shows that many of its epochs

Weights = list[list[float]]  # [edges, candidates]


@dataclass(frozen=True)
class History:
    """The operation weights of one kind of cell over the epochs."""

    kind: str
    candidates: list[str]
    edges: list[tuple[int, int]]  # (source, target) by node number
    epochs: list[int]
    weights: list[Weights]


def weight_charts(run: Run) -> Iterator[Chart]:
    """For every kind of cell the heat map of the last weights, then the leading candidates over time."""
    for kind in dict.fromkeys(kind for epoch in run.epochs for kind in mapping(epoch.get("op_weights"))):
        if history := _history(run, kind):
            yield _last_weights(history, _chosen(run, history))
            if len(history.epochs) > 1:
                yield _leaders(history)


def _history(run: Run, kind: str) -> History | None:
    tables = [(epoch["epoch"], mapping(epoch.get("op_weights")).get(kind)) for epoch in run.epochs]
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
    margins = (58.0, 6.0, 6.0, 34.0)
    chart = Chart(
        f"weights_{history.kind}",
        f"Operation weights of the {kind_name(history.kind)} cell, epoch {history.epochs[-1]}",
        size=(440.0, _height(history) + margins[2] + margins[3]),
        margins=margins,
        note="In %; each row is an edge." + (" Outlined: the operations of the genotype." if chosen else ""),
    )
    weights, count = history.weights[-1], len(history.candidates)
    # Full colour only from three times the uniform weight on, so that undecided weights look pale.
    strongest = max(*map(max, weights), 3.0 / count)
    # As many decimals as tell the weights apart: published step sizes leave them within a percent of each other.
    spread = max(map(max, weights)) - min(map(min, weights))
    decimals = 0 if spread >= 0.1 else 1 if spread >= 0.01 else 2
    for i, (y, edge, row) in enumerate(zip(_rows(chart, history), history.edges, weights, strict=True)):
        for k, (weight, candidate) in enumerate(zip(row, history.candidates, strict=True)):
            shade = Rectangle((k + 0.03, y - 0.46), 0.94, 0.92, facecolor=colour("accent"), edgecolor="none")
            shade.set_alpha(round(0.04 + 0.66 * weight / strongest, 3))
            chart.axes.add_patch(shade)
            picked = (i, candidate) in chosen
            if picked:
                frame = Rectangle((k + 0.03, y - 0.46), 0.94, 0.92, fill=False, edgecolor=colour("ink"), linewidth=1.4)
                chart.axes.add_patch(frame)
            bold = "bold" if picked else "normal"
            text = f"{100 * weight:.{decimals}f}"
            chart.axes.text(k + 0.5, y, text, ha="center", va="center_baseline", color=colour("ink"), weight=bold)
            title = f"{_edge_name(history, edge)}\n{candidate} {100 * weight:.2f} %"
            chart.hover((k, k + 1), (y - 0.5, y + 0.5), title)
    chart.axes.set_xlim(0, count)
    chart.axes.xaxis.tick_top()
    chart.axes.tick_params(axis="x", length=0)
    chart.axes.set_xticks([k + 0.5 for k in range(count)], [_two_lines(name) for name in history.candidates])
    for label, name in zip(chart.axes.get_xticklabels(), history.candidates, strict=True):
        label.set(color=colour(operation_colour(name)), fontsize=9.5, weight="bold", linespacing=1.1)
    return chart


def _two_lines(name: str) -> str:
    head, _, tail = name.rpartition("_")
    return f"{head}\n{tail}" if head else name


def _leaders(history: History) -> Chart:
    margins = (58.0, 80.0, 32.0, 34.0)
    chart = Chart(
        f"leaders_{history.kind}",
        f"Leading candidate of every edge, {kind_name(history.kind)} cell",
        size=(440.0, _height(history) + margins[2] + margins[3]),
        margins=margins,
        note="The stronger the colour, the larger the weight. On the right: the leader at the end.",
    )
    stride = math.ceil(len(history.epochs) / COLUMNS)
    shown = list(range(len(history.epochs) - 1, -1, -stride))[::-1]
    starts = [history.epochs[i] for i in shown]
    ends = [*starts[1:], starts[-1] + stride]
    uniform = 1.0 / len(history.candidates)
    labels = []
    for row, (y, edge) in enumerate(zip(_rows(chart, history), history.edges, strict=True)):
        shades: list[tuple[str, float]] = []
        for i, start, end in zip(shown, starts, ends, strict=True):
            weights = history.weights[i][row]
            weight = max(weights)
            leader = history.candidates[weights.index(weight)] if weight > 0 else UNUSED
            # From barely tinted where every candidate weighs the same to full at three times that, in ten steps.
            strength = min(1.0, max(0.0, (weight - uniform) / (2 * uniform)))
            shades.append((leader, round(0.1 + 0.9 * strength, 1) if weight > 0 else 0.0))
            title = f"{_edge_name(history, edge)}, epoch {start}\n{leader} {100 * weight:.1f} %"
            chart.hover((start - 0.5, end - 0.5), (y - 0.5, y + 0.5), title)
        for (leader, strength), group in groupby(zip(shades, starts, ends, strict=True), key=lambda part: part[0]):
            parts = list(group)
            left, right = parts[0][1] - 0.5, parts[-1][2] - 0.5
            shade = Rectangle((left, y - 0.46), right - left, 0.92, linewidth=0)
            shade.set(facecolor=colour(_leader_colour(leader)), alpha=strength)
            chart.axes.add_patch(shade)
        text = f"{leader} {100 * weight:.0f} %" if weight > 0 else UNUSED
        labels.append((y, text, _leader_colour(leader)))
    chart.axes.set_xlim(starts[0] - 0.5, ends[-1] - 0.5)
    chart.ticks()
    chart.label("epoch", "")
    chart.direct_labels(labels)
    return chart


def _leader_colour(leader: str) -> str:
    return "muted" if leader == UNUSED else operation_colour(leader)
