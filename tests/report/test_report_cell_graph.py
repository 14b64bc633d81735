"""Cell graphs: nothing overlaps, nothing is missing, whatever the genotype."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ET
from itertools import combinations, pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastnas.errors import UserError
from fastnas.genotype import CellKind, Genotype
from fastnas.report.cell_graph import FONT_SIZE, draw_cell
from fastnas.report.cell_layout import layout

SVG = "{http://www.w3.org/2000/svg}"
KINDS: tuple[CellKind, CellKind] = ("normal", "reduce")
SHARED = Path(__file__).resolve().parents[2] / ".." / "shared" / "data" / "published.json"
PRIMITIVES = ["none", "max_pool_3x3", "avg_pool_3x3", "skip_connect", "sep_conv_7x7", "dil_conv_5x5", "conv_7x1_1x7"]
Box = tuple[float, float, float, float]  # left, top, right, bottom


@st.composite
def cells(draw: st.DrawFn) -> tuple[list[tuple[str, int]], list[int]]:
    count = draw(st.integers(1, 7))
    pairs = [
        (draw(st.sampled_from(PRIMITIVES)), draw(st.integers(0, node - 1)))
        for node in range(2, count + 2)
        for _ in "ab"
    ]
    concat = draw(st.lists(st.integers(2, count + 1), min_size=1, unique=True))
    return pairs, concat


def boxes(root: ET.Element) -> dict[str, list[Box]]:
    """The boxes of labels, nodes and ports."""
    found: dict[str, list[Box]] = {"label": [], "node": [], "port": []}
    for group in root.iter(f"{SVG}g"):
        kind = group.get("class", "").split()[0]
        for rect in group.findall(f"{SVG}rect"):
            x, y, width, height = (float(rect.get(name, "")) for name in ("x", "y", "width", "height"))
            found["label" if kind == "edge" else kind].append((x, y, x + width, y + height))
        for circle in group.findall(f"{SVG}circle"):
            x, y, r = (float(circle.get(name, "")) for name in ("cx", "cy", "r"))
            found[kind].append((x - r, y - r, x + r, y + r))
    return found


def points(path: str) -> list[tuple[float, float]]:
    """Points along a path of absolute M, C and H commands, close together."""
    places: list[tuple[float, float]] = []
    for command, text in re.findall(r"([MCH])([^MCH]*)", path):
        numbers = [float(number) for number in re.findall(r"-?[\d.]+", text)]
        if command == "M":
            places.append((numbers[0], numbers[1]))
        elif command == "H":
            x, y = places[-1]
            places += [(x + (numbers[0] - x) * t / 40, y) for t in range(1, 41)]
        else:
            (x0, y0), (x1, y1, x2, y2, x3, y3) = places[-1], numbers
            for t in (i / 40 for i in range(1, 41)):
                a, b, c, d = (1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t**2 * (1 - t), t**3
                places.append((a * x0 + b * x1 + c * x2 + d * x3, a * y0 + b * y1 + c * y2 + d * y3))
    return places


def check_drawing(genotype: Genotype, kind: CellKind) -> None:
    root = ET.fromstring(draw_cell(genotype, kind))
    found = boxes(root)
    pairs, concat = [pair for node in genotype.pairs(kind) for pair in node], genotype.concat(kind)

    groups = [group for group in root.iter(f"{SVG}g") if group.get("class", "").startswith("edge")]
    labels = [group.findtext(f"{SVG}text") or "" for group in groups]
    assert sorted(labels) == sorted(primitive for primitive, _ in pairs)
    assert len(found["node"]) == len(genotype.pairs(kind))
    assert len(found["port"]) == 3
    assert sum(group.get("class") == "concat" for group in root.iter(f"{SVG}g")) == len(concat)

    every = [box for kind_boxes in found.values() for box in kind_boxes]
    for (l0, t0, r0, b0), (l1, t1, r1, b1) in combinations(every, 2):
        distance = max(max(l0, l1) - min(r0, r1), max(t0, t1) - min(b0, b1))
        assert distance >= 5, "two boxes overlap or nearly touch"
    width, height = (float(root.get(name, "")) for name in ("width", "height"))
    for left, top, right, bottom in every:
        assert min(left, top) >= 0
        assert right <= width + 0.5
        assert bottom <= height + 0.5

    # Text stays within its label, also in the widest of the fonts in use.
    for group, label in zip(groups, labels, strict=True):
        rect = group.find(f"{SVG}rect")
        assert rect is not None
        assert len(label) * 0.625 * FONT_SIZE <= float(rect.get("width", "")) - 8

    # Edges touch boxes only at their ends.
    for group in root.iter(f"{SVG}g"):
        for path in group.findall(f"{SVG}path")[:1]:
            for x, y in points(path.get("d", ""))[1:-1] if group.get("class") not in ("node", "port") else []:
                for left, top, right, bottom in every:
                    assert not (left + 0.2 < x < right - 0.2 and top < y < bottom), "an edge runs through a box"


@pytest.mark.parametrize("name", Genotype.published_names())
@pytest.mark.parametrize("kind", KINDS)
def test_packaged_genotypes(name: str, kind: CellKind) -> None:
    check_drawing(Genotype.published(name), kind)


@pytest.mark.skipif(not SHARED.is_file(), reason="published.json is not in the folder beside the repository")
def test_published_genotypes() -> None:
    for fields in json.loads(SHARED.read_text())["genotypes"].values():
        genotype = Genotype(*(fields[key] for key in ("normal", "normal_concat", "reduce", "reduce_concat")))
        for kind in KINDS:
            check_drawing(genotype, kind)


@settings(max_examples=60, deadline=None)
@given(cells(), cells())
def test_any_genotype(normal: tuple[list, list], reduce: tuple[list, list]) -> None:
    genotype = Genotype(*normal, *reduce)
    for kind in KINDS:
        check_drawing(genotype, kind)


def test_edges_lead_from_their_source_to_their_node() -> None:
    genotype = Genotype.published("AmoebaNet")
    columns, edges = layout(genotype, "normal")
    drawn = [(e.source.name, e.target.name, e.primitive) for e in edges if e.primitive]
    names = ["c_{k-2}", "c_{k-1}", "0", "1", "2", "3", "4"]
    expected = [
        (names[source], str(i), primitive)
        for i, node in enumerate(genotype.pairs("normal"))
        for primitive, source in node
    ]
    assert drawn == expected
    for edge in edges:
        assert [stop.column for stop in edge.stops] == list(range(edge.source.column, edge.target.column + 1))
    assert [item.name for item in columns[0]] == ["c_{k-2}", "c_{k-1}"]
    assert [item.name for item in columns[-1]] == ["c_k"]


def test_both_operations_from_one_source_are_drawn_apart() -> None:
    genotype = Genotype.published("NASNet")  # node 3 of its normal cell: avg_pool_3x3 of c_{k-2}, twice
    assert genotype.pairs("normal")[3] == (("avg_pool_3x3", 0), ("avg_pool_3x3", 0))
    root = ET.fromstring(draw_cell(genotype, "normal"))
    twins = [
        group.find(f"{SVG}path").get("d")  # type: ignore[union-attr]
        for group in root.iter(f"{SVG}g")
        if group.findtext(f"{SVG}title") == "node 3 reads avg_pool_3x3(c_{k-2})"
    ]
    assert len(twins) == 2
    assert twins[0] != twins[1]


CHAIN = [("skip_connect", 0), ("skip_connect", 1), *(("skip_connect", n) for n in (2, 2, 3, 3, 4, 4))]
SWAPPED = [("none", 1), ("none", 1), ("none", 0), ("none", 0), ("skip_connect", 2), ("skip_connect", 3)]


@pytest.mark.parametrize(
    ("pairs", "concat"), [(CHAIN, [5]), (SWAPPED, [4]), (Genotype.published("NASNet").normal, [2])]
)
def test_edges_cross_only_where_they_must(pairs: list[tuple[str, int]], concat: list[int]) -> None:
    columns, edges = layout(Genotype(pairs, concat, pairs, concat), "normal")
    for left, right in pairwise(columns):
        ends = [(a.y, b.y) for e in edges for a, b in pairwise(e.stops) if a in left and b in right]
        crossings = sum((a - c) * (b - d) < -1e-6 for (a, b), (c, d) in combinations(ends, 2))
        # In NASNet's cell, nodes 0 and 2 read both inputs: one crossing.
        assert crossings == (1 if len(pairs) == 10 and left is columns[0] else 0)


def test_labels_of_a_node_stand_in_the_order_of_their_sources() -> None:
    pairs = [("sep_conv_3x3", 1), ("skip_connect", 0)]
    root = ET.fromstring(draw_cell(Genotype(pairs, [2], pairs, [2])))
    heights = {
        group.findtext(f"{SVG}text"): float(group.find(f"{SVG}rect").get("y"))  # type: ignore[union-attr,arg-type]
        for group in root.iter(f"{SVG}g")
        if group.get("class") == "edge"
    }
    assert heights["skip_connect"] < heights["sep_conv_3x3"]


def test_drawing_is_deterministic_and_describes_itself() -> None:
    genotype = Genotype.published("DARTS_V2")
    assert draw_cell(genotype, "reduce") == draw_cell(genotype, "reduce")
    root = ET.fromstring(draw_cell(genotype))
    assert root.findtext(f"{SVG}title") == "normal cell"
    description = root.findtext(f"{SVG}desc") or ""
    assert description.startswith("node 0 = sep_conv_3x3(c_{k-2}) + sep_conv_3x3(c_{k-1}); node 1 = ")
    assert description.endswith("c_k = concat(0, 1, 2, 3)")


def test_every_colour_is_defined_in_the_drawing_for_both_schemes() -> None:
    drawing = draw_cell(Genotype.published("SNAS_aggressive"), "reduce")
    light, dark = re.findall(r"svg\.cell\{(--.*?)\}", drawing)
    for used in set(re.findall(r"var\(--([\w-]+)\)", drawing)) - {"op"}:
        assert f"--{used}:#" in light
        assert f"--{used}:#" in dark


def test_an_unknown_kind_is_a_user_error() -> None:
    with pytest.raises(UserError, match="'reduction' does not exist"):
        draw_cell(Genotype.published("DARTS_V2"), "reduction")  # type: ignore[arg-type]
