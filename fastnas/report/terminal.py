"""Draws a genotype in the terminal."""

from __future__ import annotations

from itertools import zip_longest

from rich.console import Console
from rich.text import Text

from fastnas.genotype import CellKind, Genotype
from fastnas.report.cell_graph import KIND_NAMES
from fastnas.report.cell_layout import node_name
from fastnas.report.palette import COLOURS, operation_colour


def print_genotype(genotype: Genotype, console: Console | None = None) -> None:
    """Prints the cells, two side by side where the terminal is wide enough (80 columns are).

    Every operation has a line with its source, and its node stands at the second one::

        c_{k-2} ── sep_conv_3x3 ─┐
        c_{k-1} ── skip_connect ─┴─▶ node 0

    Args:
        genotype: what to draw.
        console: where to; by default standard output. Colours follow the console, NO_COLOR included.
    """
    console = console or Console()
    lines: list[Text] = []
    kinds = genotype.kinds
    for pair in (kinds[i : i + 2] for i in range(0, len(kinds), 2)):
        cells = [_cell(genotype, kind, console) for kind in pair]
        width = max(map(len, cells[0])) + 4
        lines += [Text()] if lines else []
        if len(cells) == 2 and width + max(map(len, cells[1])) <= console.width:
            for left, right in zip_longest(*cells, fillvalue=Text()):
                line = left.copy()
                line.pad_right(width - len(line))
                lines.append(line.append_text(right))
        else:
            for number, cell in enumerate(cells):
                lines += [Text()] * (number > 0) + cell
    for line in lines:
        line.rstrip()
        console.print(line, soft_wrap=True)


def _cell(genotype: Genotype, kind: CellKind, console: Console) -> list[Text]:
    to_operation, to_node, above, last = (
        ("--", "-->", "-.", "-'") if console.options.ascii_only else ("──", "─▶", "─┐", "─┴")
    )
    pairs = genotype.pairs(kind)
    sources = max(len(_name(source)) for node in pairs for _, source in node)
    operations = max(len(primitive) for node in pairs for primitive, _ in node)
    lines = [Text(KIND_NAMES[kind], style="bold")]
    for number, node in enumerate(pairs, start=2):
        for i, (primitive, source) in enumerate(node):
            line = Text(_name(source).ljust(sources))
            line.append(f" {to_operation} ", style="dim")
            line.append(primitive, style=_style(primitive))
            line.append(" " * (operations - len(primitive)) + " ")
            line.append(above if i < len(node) - 1 else last + to_node, style="dim")
            if i == len(node) - 1:
                line.append(f" {_name(number)}", style="bold")
            lines.append(line)
    lines.append(Text("c_k = concat(nodes " + ", ".join(map(node_name, genotype.concat(kind))) + ")"))
    return lines


def _name(number: int) -> str:
    return node_name(number) if number < 2 else f"node {node_name(number)}"


def _style(primitive: str) -> str:
    """Halfway between the colours for light and dark pages: a terminal may be either."""
    light, dark = COLOURS[operation_colour(primitive)]
    channels = ((int(light[i : i + 2], 16) + int(dark[i : i + 2], 16)) // 2 for i in (1, 3, 5))
    return "#" + "".join(f"{channel:02x}" for channel in channels)
