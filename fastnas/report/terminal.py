"""Draws a genotype in the terminal."""

from __future__ import annotations

from itertools import zip_longest

from rich.console import Console
from rich.text import Text

from fastnas.genotype import AnyGenotype, CellKind
from fastnas.report.cell_graph import KIND_NAMES, output_text
from fastnas.report.cell_layout import node_name
from fastnas.report.palette import COLOURS, operation_colour


def print_genotype(genotype: AnyGenotype, console: Console | None = None) -> None:
    """Prints the cells, two side by side where the terminal is wide enough (80 columns are).

    Every operation has a line with its source, and the node is at the end of the last one::

        c_{k-2} ── sep_conv_3x3 ─┐
        c_{k-1} ── skip_connect ─┴─▶ node 0

    Args:
        genotype: what to draw.
        console: where to; by default standard output. Colours follow the console, NO_COLOR included.
    """
    console = console or Console()
    cells = [_cell(genotype, kind, console) for kind in genotype.kinds]
    for first in range(0, len(cells), 2):
        if first:
            console.print()
        for line in _beside(cells[first : first + 2], console.width):
            line.rstrip()
            console.print(line, soft_wrap=True)


def _beside(cells: list[list[Text]], columns: int) -> list[Text]:
    """The lines of one or two cells."""
    if len(cells) == 1:
        return cells[0]
    left, right = cells
    width = max(map(len, left)) + 4
    if width + max(map(len, right)) > columns:
        return [*left, Text(), *right]
    lines = []
    for first, second in zip_longest(left, right, fillvalue=Text()):
        line = first.copy()
        line.pad_right(width - len(line))
        lines.append(line.append_text(second))
    return lines


def _cell(genotype: AnyGenotype, kind: CellKind, console: Console) -> list[Text]:
    to_operation, to_node, first, middle, last, only = (
        ("--", "-->", "-.", "-|", "-'", "--") if console.options.ascii_only else ("──", "─▶", "─┐", "─┤", "─┴", "──")
    )
    pairs = genotype.pairs(kind)
    inputs = genotype.inputs
    sources = max(len(_name(source, inputs)) for node in pairs for _, source in node)
    operations = max(len(primitive) for node in pairs for primitive, _ in node)
    lines = [Text(KIND_NAMES[kind], style="bold")]
    for number, node in enumerate(pairs, start=inputs):
        for i, (primitive, source) in enumerate(node):
            line = Text(_name(source, inputs).ljust(sources))
            line.append(f" {to_operation} ", style="dim")
            line.append(primitive, style=_style(primitive))
            line.append(" " * (operations - len(primitive)) + " ")
            ends = i == len(node) - 1
            joint = (only if ends else first) if i == 0 else (last if ends else middle)
            line.append(joint + (to_node if ends else ""), style="dim")
            if ends:
                line.append(f" {_name(number, inputs)}", style="bold")
            lines.append(line)
    lines.append(Text(output_text(genotype, kind, "nodes ")))
    return lines


def _name(number: int, inputs: int) -> str:
    return node_name(number, inputs) if number < inputs else f"node {node_name(number, inputs)}"


def _style(primitive: str) -> str:
    """Halfway between the colours for light and dark pages: a terminal may be either."""
    light, dark = COLOURS[operation_colour(primitive)]
    channels = ((int(light[i : i + 2], 16) + int(dark[i : i + 2], 16)) // 2 for i in (1, 3, 5))
    return "#" + "".join(f"{channel:02x}" for channel in channels)
