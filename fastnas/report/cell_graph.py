"""Draws a cell of a genotype as SVG."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from itertools import pairwise

from fastnas.genotype import LEVELS, AnyGenotype, CellKind
from fastnas.report.cell_layout import LABEL_GAP, LABEL_HEIGHT, PORT, Edge, Item, layout, node_name, segments
from fastnas.report.palette import operation_colour, stylesheet

FONT_SIZE = 13.0
CHARACTER = 0.61 * FONT_SIZE  # advance of the monospaced fonts in FONT
FONT = "ui-monospace,SFMono-Regular,Menlo,Consolas,'Liberation Mono','DejaVu Sans Mono',monospace"
NODE = 32.0  # diameter
ARROW = 34.0  # from label to node
MARGIN = 3.0
KIND_NAMES = {"normal": "normal cell", "reduce": "reduction cell"} | {
    kind: kind.replace("_", " level, ").replace("reduce", "reduction") + " cell" for kind in LEVELS
}


def draw_cell(genotype: AnyGenotype, kind: CellKind = "normal") -> str:
    """One of the genotype's cells as an SVG text that needs nothing else and follows the colour scheme.

    From left to right: the outputs of the two cells before (c_{k-2}, c_{k-1}), the intermediate nodes 0, 1, ...
    (numbers 2, 3, ... in the genotype), each the sum of its labelled operations, and the cell's output c_k, the
    concatenation of the nodes that a grey line connects with it.

    Raises:
        UserError: ``kind`` is none of ``genotype.kinds``.
    """
    columns, edges = layout(genotype, kind)
    return _draw(columns, edges, kind, summary=_summary(genotype, kind))


def _summary(genotype: AnyGenotype, kind: CellKind) -> str:
    inputs = genotype.inputs
    nodes = (
        f"node {node_name(i, inputs)} = "
        + " + ".join(f"{primitive}({node_name(source, inputs)})" for primitive, source in pairs)
        for i, pairs in enumerate(genotype.pairs(kind), start=inputs)
    )
    return "; ".join([*nodes, output_text(genotype, kind)])


def output_text(genotype: AnyGenotype, kind: CellKind, node: str = "") -> str:
    """What the output of a cell is, in words; ``node`` stands before the numbers."""
    names = [node_name(number, genotype.inputs) for number in genotype.concat(kind)]
    return f"c_k = concat({node}{', '.join(names)})" if len(names) > 1 else f"c_k = node {names[0]}"


def _draw(columns: list[list[Item]], edges: Sequence[Edge], kind: CellKind, summary: str) -> str:
    labels = [edge.primitive for edge in edges if edge.primitive is not None]
    label_width = max(map(len, labels)) * CHARACTER + 18.0
    top = min(item.y - item.height / 2 for column in columns for item in column) - MARGIN
    bottom = max(item.y + item.height / 2 for column in columns for item in column) + MARGIN
    for column in columns:
        for item in column:
            item.y -= top

    # The more an edge has to climb in a gap, the wider the gap: steep edges are hard to follow.
    x = [MARGIN]
    widths = [PORT[0], *[label_width + ARROW + NODE] * (len(columns) - 2), PORT[0]]
    for gap in range(len(columns) - 1):
        ends = (pair for pair in segments(edges) if pair[0].column == gap)
        climb = max(abs(right.y - left.y) for left, right in ends)
        x.append(x[-1] + widths[gap] + min(64.0 + 0.3 * climb, 130.0))
    width, height = x[-1] + widths[-1] + MARGIN, bottom - top

    lines: list[str] = []
    boxes: list[str] = []
    for item in (item for column in columns for item in column if not item.is_lane):
        slots = _slots(item)
        for edge, y in slots:
            path = f"M{x[edge.source.column] + widths[edge.source.column]:.1f},{edge.source.y:.1f}"
            for left, right in pairwise(edge.stops):
                x0, x1 = x[left.column] + widths[left.column], x[right.column]
                y1 = right.y if right.is_lane else y
                end = x1 - 6 if edge.primitive is None and right is item else x1
                path += f"C{(x0 + end) / 2:.1f},{left.y:.1f} {(x0 + end) / 2:.1f},{y1:.1f} {end:.1f},{y1:.1f}"
                if right.is_lane:
                    path += f"H{x1 + widths[right.column]:.1f}"
            if edge.primitive is None:
                tip = _arrowhead(x[item.column], y)
                lines.insert(0, f'<g class="concat"><path d="{path}"/>{tip}</g>')
            else:
                lines.append(_operation(edge, path, x[item.column], y, label_width))
        boxes.append(
            _box(item, x[item.column] + (0.0 if item.column in (0, len(columns) - 1) else label_width + ARROW))
        )

    name = KIND_NAMES[kind]
    colours = ["paper", "ink", "ink-soft", "muted", "raised", *sorted({operation_colour(label) for label in labels})]
    return (
        f'<svg class="cell" xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" '
        f'width="{width:.0f}" height="{height:.0f}" role="img">'
        f"<title>{name}</title><desc>{escape(summary)}</desc>"
        f"<style>{stylesheet('svg.cell', colours)}{_STYLE}</style>" + "".join(lines + boxes) + "</svg>"
    )


def _slots(item: Item) -> list[tuple[Edge, float]]:
    """The incoming edges from top to bottom, each with the height at which it ends."""
    edges = sorted(item.incoming, key=lambda edge: edge.stops[-2].y)
    if not edges:
        return []
    step = LABEL_HEIGHT + LABEL_GAP if edges[0].primitive else item.height / (len(edges) + 1)
    first = item.y - step * (len(edges) - 1) / 2
    return [(edge, first + i * step) for i, edge in enumerate(edges)]


def _operation(edge: Edge, path: str, x: float, y: float, width: float) -> str:
    primitive = escape(edge.primitive or "", quote=True)
    start, end = x + width, x + width + ARROW
    # Two arrowheads fit side by side on the left of the circle; 0.97 and 0.25 are cosine and sine of 14.5 degrees.
    tip_y = edge.target.y + 0.25 * NODE / 2 * (1 if y > edge.target.y else -1)
    tip_x = end + (1 - 0.97) * NODE / 2
    middle = (start + tip_x) / 2
    arrow = f"M{start:.1f},{y:.1f}C{middle:.1f},{y:.1f} {middle:.1f},{tip_y:.1f} {tip_x - 7:.1f},{tip_y:.1f}"
    title = f"node {escape(edge.target.name)} reads {primitive}({escape(edge.source.name)})"
    dashed = " unused" if primitive == "none" else ""
    return (
        f'<g class="edge{dashed}" style="--op:var(--{operation_colour(primitive)})"><title>{title}</title>'
        f'<path d="{path}"/><path d="{arrow}"/>{_arrowhead(tip_x, tip_y)}'
        f'<rect class="label" x="{x:.1f}" y="{y - LABEL_HEIGHT / 2:.1f}" width="{width:.1f}" '
        f'height="{LABEL_HEIGHT:.1f}" rx="6"/>'
        f'<text x="{x + width / 2:.1f}" y="{y + FONT_SIZE * 0.34:.1f}">{primitive}</text></g>'
    )


def _arrowhead(x: float, y: float) -> str:
    return f'<path class="tip" d="M{x:.1f},{y:.1f}l-8,-3.6v7.2z"/>'


def _box(item: Item, x: float) -> str:
    """An input or the output as a rectangle, an intermediate node as a circle."""
    baseline = item.y + FONT_SIZE * 0.34
    if item.name.startswith("c_"):
        base, index = item.name.split("_")
        index = index.strip("{}").replace("-", "−")
        return (
            f'<g class="port"><rect x="{x:.1f}" y="{item.y - item.height / 2:.1f}" width="{PORT[0]:.1f}" '
            f'height="{item.height:.1f}" rx="6"/><text x="{x + PORT[0] / 2:.1f}" y="{baseline - 1:.1f}">{base}'
            f'<tspan dy="4" font-size="10">{index}</tspan></text></g>'
        )
    centre = x + NODE / 2
    return (
        f'<g class="node"><circle cx="{centre:.1f}" cy="{item.y:.1f}" r="{NODE / 2:.1f}"/>'
        f'<text x="{centre:.1f}" y="{baseline:.1f}">{item.name}</text></g>'
    )


_STYLE = (
    f"svg.cell text{{font:{FONT_SIZE}px {FONT};text-anchor:middle;fill:var(--ink)}}"
    "svg.cell path{fill:none;stroke-width:1.8}"
    "svg.cell .edge path{stroke:var(--op)}svg.cell .edge .tip{fill:var(--op);stroke:none}"
    "svg.cell .edge .label{fill:color-mix(in srgb,var(--op) 13%,var(--paper));stroke:var(--op);stroke-width:1.2}"
    "svg.cell .unused path:first-of-type{stroke-dasharray:4 4}"
    "svg.cell .concat path{stroke:var(--muted);stroke-width:1;opacity:.75}"
    "svg.cell .concat .tip{fill:var(--muted);stroke:none}"
    "svg.cell .node circle,svg.cell .port rect{fill:var(--raised);stroke:var(--ink-soft);stroke-width:1.4}"
    "svg.cell .node text{font-weight:600}"
    "svg.cell .edge:hover path{stroke-width:3}"
)
