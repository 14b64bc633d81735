"""A small frame around matplotlib: charts as inline SVG with the page's fonts and colours, in both colour schemes."""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from html import escape
from itertools import pairwise
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.ticker import Locator, MaxNLocator

from fastnas.report.palette import COLOURS

FONT_SIZE = 10.5
WIDEST = 0.66  # width of a bold character in its size, for the wide fonts among those the page may meet

# matplotlib wants real colours, the page wants custom properties: every colour name is drawn as a code that no other
# part of the drawing uses, and each code becomes var(--name) in the SVG text.
_CODES = {name: f"#fa5{i:03x}" for i, name in enumerate(COLOURS)}
_NAMES = {code: name for name, code in _CODES.items()}


def colour(name: str) -> str:
    """The stand-in of a colour of the palette, for matplotlib's ``color=``."""
    return _CODES[name]


@dataclass
class Chart:
    """One pair of axes with a caption, to be filled through ``axes`` and turned into SVG by ``svg``.

    Args:
        name: unique on the page; makes ids unique and the output deterministic.
        title: the caption, written in HTML above the drawing.
        size: width and height in points of the drawing, which the page scales to its column.
        margins: left, right, bottom, top in points around the axes.
        note: a line below the caption: what a mark means, or what is left out.
    """

    name: str
    title: str
    size: tuple[float, float] = (440.0, 232.0)
    margins: tuple[float, float, float, float] = (40.0, 76.0, 32.0, 20.0)
    note: str = ""
    figure: Figure = field(init=False)
    axes: Axes = field(init=False)
    hovers: list[tuple[float, float, float, float, str]] = field(init=False, default_factory=list)

    def __post_init__(self) -> None:
        (width, height), (left, right, bottom, top) = self.size, self.margins
        self.figure = Figure(figsize=(width / 72, height / 72), dpi=72)
        self.axes = self.figure.add_axes(
            (left / width, bottom / height, 1 - (left + right) / width, 1 - (bottom + top) / height)
        )
        self.axes.set_facecolor("none")
        for side, spine in self.axes.spines.items():
            spine.set(visible=side == "bottom", color=colour("muted"), linewidth=0.8)
        self.axes.tick_params(length=0, labelsize=FONT_SIZE, labelcolor=colour("ink-soft"), pad=4)
        self.axes.tick_params(axis="x", length=3, color=colour("muted"))

    @property
    def is_wide(self) -> bool:
        """Whether the chart takes the whole width of the page, not one of its two columns."""
        return self.size[0] > 600

    def label(self, x: str, y: str) -> None:
        """Names the axes; the vertical one above its end, where the text can be horizontal."""
        self.axes.set_xlabel(x, fontsize=FONT_SIZE, color=colour("ink-soft"), labelpad=2)
        self.text(2 / self.size[0], 1 - (self.margins[3] - 8) / self.size[1], y, "ink-soft")

    def grid(self) -> None:
        self.axes.grid(axis="y", color=colour("line"), linewidth=0.8)
        self.axes.set_axisbelow(True)

    def ticks(self, x: Locator | None = None, y: Locator | None = None) -> None:
        self.axes.xaxis.set_major_locator(x or MaxNLocator(7, integer=True, min_n_ticks=1, steps=(1, 2, 5, 10)))
        if y is not None:
            self.axes.yaxis.set_major_locator(y)

    def direct_labels(self, labels: Iterable[tuple[float, str, str]]) -> None:
        """Writes (y in data units, text, colour name) right of the axes, moved apart where they would overlap.

        The axes are narrowed where the labels need more than the right margin.
        """
        (width, height), (left, right, bottom, _) = self.size, self.margins
        self.axes.get_ylim()  # matplotlib settles automatic limits only when asked, and transData does not ask
        entries = sorted((float(self.axes.transData.transform((0, y))[1]), text, name) for y, text, name in labels)
        right = max(right, max(len(text) for _, text, _ in entries) * FONT_SIZE * WIDEST + 8)
        box = self.axes.get_position()
        self.axes.set_position((box.x0, box.y0, 1 - (left + right) / width, box.height))
        heights = spread([pixel for pixel, _, _ in entries], FONT_SIZE * 1.3, (bottom, height - 8.0))
        for y, (_, text, name) in zip(heights, entries, strict=True):
            self.text((width - right + 7) / width, y / height, text, name, va="center_baseline", weight="bold")

    def text(self, x: float, y: float, text: str, name: str, **style: Any) -> None:
        """Text in a colour of the palette, at a place in fractions of the whole drawing."""
        self.figure.text(x, y, text, color=colour(name), fontsize=FONT_SIZE, **style)

    def hover_columns(self, centres: Sequence[float], texts: Sequence[str]) -> None:
        """Shows ``texts[i]`` while the pointer is nearest to ``centres[i]`` (ascending), at any height."""
        low, high = self.axes.get_xlim()
        borders = [low, *((a + b) / 2 for a, b in pairwise(centres)), high]
        bottom, top = self.axes.get_ylim()
        self.hovers += [(*ends, bottom, top, text) for ends, text in zip(pairwise(borders), texts, strict=True)]

    def hover(self, x: tuple[float, float], y: tuple[float, float], text: str) -> None:
        self.hovers.append((*x, *y, text))

    def svg(self) -> str:
        """The drawing as one ``<svg>`` element; equal charts give equal texts."""
        buffer = io.StringIO()
        nothing: dict[str, Any] = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        for text in self.figure.findobj(Text):
            text.set_parse_math(False)  # names may contain a dollar sign
        with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": self.name}):
            self.figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
        body = re.search(r"<svg[^>]*>(.*)</svg>", buffer.getvalue(), re.DOTALL)
        assert body is not None
        drawing = re.sub(r"<[^>]*>", _adapt, re.sub(r"<style.*?</style>", "", body[1], flags=re.DOTALL))
        drawing = re.sub(r"\s*\n\s*", "", drawing)
        width, height = self.size
        return (
            f'<svg class="chart" xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
            f'viewBox="0 0 {width:g} {height:g}" role="img"><title>{escape(self.title)}</title>'
            f"{drawing}{self._hover_areas()}</svg>"
        )

    def _hover_areas(self) -> str:
        areas = []
        for x0, x1, y0, y1, text in self.hovers:
            (left, low), (right, high) = self.axes.transData.transform([(x0, y0), (x1, y1)])
            low, high = sorted((low, high))
            areas.append(
                f'<rect class="hover" x="{left:.1f}" y="{self.size[1] - high:.1f}" width="{right - left:.1f}" '
                f'height="{high - low:.1f}"><title>{escape(text)}</title></rect>'
            )
        return "".join(areas)


def _adapt(tag: re.Match[str]) -> str:
    """A tag of matplotlib's SVG without needless ids and digits, with the page's colours and font."""
    text = re.sub(r'<g id="[^"]*"', "<g", tag[0])
    text = re.sub(r"#fa5[0-9a-f]{3}", lambda code: f"var(--{_NAMES[code[0]]})", text)
    text = re.sub(r"-?\d+\.\d{3,}", lambda number: f"{float(number[0]):.2f}".rstrip("0").rstrip("."), text)
    return re.sub(r"font: (bold )?[^;\"]*?([\d.]+px)[^;\"]*", lambda font: _font(font[1], font[2]), text)


def _font(bold: str | None, size: str) -> str:
    # Not the family: the stylesheet sets it for the whole page.
    return f"font-size:{size}" + (";font-weight:600" if bold else "")


def spread(wanted: Sequence[float], distance: float, limits: tuple[float, float]) -> list[float]:
    """Ascending positions near ``wanted`` (ascending), at least ``distance`` apart, within ``limits`` if they fit."""
    low, high = limits
    places: list[float] = []
    for want in wanted:
        places.append(max(want, places[-1] + distance if places else low))
    ceiling = high
    for i in reversed(range(len(places))):
        places[i] = min(places[i], ceiling)
        ceiling = places[i] - distance
    return places
