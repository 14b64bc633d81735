"""Charts of the operation weights."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET

import pytest
from report_chart_reader import by_name, complete_run, hovers, run_of, texts
from report_synthetic_run import CANDIDATES, EDGES

from fastnas.genotype import Genotype
from fastnas.report.alphas import _edges, weight_charts

DARTS_CANDIDATES = [
    "none", "max_pool_3x3", "avg_pool_3x3", "skip_connect", "sep_conv_3x3", "sep_conv_5x5", "dil_conv_3x3",
    "dil_conv_5x5",
]  # fmt: skip


def test_edges_are_in_the_order_of_the_alphas() -> None:
    assert _edges(14) == EDGES
    assert _edges(2) == [(0, 2), (1, 2)]
    assert _edges(6) == [(0, 1), (0, 2), (1, 2), (0, 3), (1, 3), (2, 3)]  # NAS-Bench-201: one input, three nodes
    assert len(_edges(9)) == 9
    assert _edges(9)[-1] == (3, 4)


def test_the_heat_map_shows_every_weight_and_marks_the_genotype() -> None:
    run = complete_run(epochs=3, warm_up=0, samples=1, population=4)
    charts = by_name(weight_charts(run))
    assert list(charts) == ["weights_normal", "leaders_normal", "weights_reduce", "leaders_reduce"]
    for kind in ("normal", "reduce"):
        chart, table = charts[f"weights_{kind}"], run.epochs[-1]["op_weights"][kind]
        expected = [
            f"{source} → {target}\n{candidate} {100 * weight:.2f} %"
            for (source, target), row in zip(named_edges(), table, strict=True)
            for candidate, weight in zip(CANDIDATES, row, strict=True)
        ]
        assert hovers(chart) == expected
        spread = max(map(max, table)) - min(map(min, table))
        decimals = 0 if spread >= 0.1 else 1 if spread >= 0.01 else 2
        numbers = [f"{100 * weight:.{decimals}f}" for row in table for weight in row]
        assert [t.get_text() for t in chart.axes.texts] == numbers
        bold = [t for t in chart.axes.texts if t.get_fontweight() == "bold"]
        assert len(bold) == 8  # two operations for each of four nodes
        assert run.genotype is not None
        wanted = {
            (source, node + 2, primitive)
            for node, pairs in enumerate(run.genotype.pairs(kind))
            for primitive, source in pairs
        }
        rows = {round(y, 6): edge for y, edge in zip(chart.axes.get_yticks(), EDGES, strict=True)}
        marked = {(*rows[round(t.get_position()[1], 6)], CANDIDATES[int(t.get_position()[0])]) for t in bold}
        assert marked == wanted


def named_edges() -> list[tuple[str, int]]:
    return [({0: "cₖ₋₂", 1: "cₖ₋₁"}.get(source, str(source - 2)), target - 2) for source, target in EDGES]


def test_leaders_are_the_strongest_candidates() -> None:
    run = complete_run(epochs=4, warm_up=1, samples=1, population=4)
    chart = by_name(weight_charts(run))["leaders_normal"]
    decimals = len(hovers(chart)[0].partition(".")[2].split()[0])
    expected = []
    for edge, (source, target) in enumerate(named_edges()):
        for epoch in run.epochs:
            row = epoch["op_weights"]["normal"][edge]
            leader = CANDIDATES[row.index(max(row))]
            expected.append(
                f"{source} → {target}, epoch {epoch['epoch'] + 1}\n{leader} {100 * max(row):.{decimals}f} %"
            )
    assert hovers(chart) == expected


def test_weights_on_either_side_of_uniform_by_rounding_are_drawn() -> None:
    tables = [[[0.25 - rounding] * 4, [0.25 - 3e-9] * 4] for rounding in (2e-9, 1e-9)]
    charts = by_name(weight_charts(run_of(*({"op_weights": {"normal": table}} for table in tables))))
    assert {patch.get_alpha() for patch in charts["leaders_normal"].axes.patches} == {0.1}


def test_colours_span_the_weights_and_small_differences_are_said_in_words() -> None:
    close = [[0.250, 0.252, 0.249, 0.249], [0.2497, 0.2502, 0.2503, 0.2498]]
    run = run_of({"op_weights": {"normal": [[0.25] * 4] * 2}}, {"op_weights": {"normal": close}})
    charts = by_name(weight_charts(run))
    note = charts["weights_normal"].note
    assert "colours run from 24.90 to 25.20 %" in note
    assert "differ by at most 0.3 points: α is nearly undecided" in note
    shades = [patch.get_alpha() for patch in charts["weights_normal"].axes.patches if patch.get_alpha() is not None]
    assert (min(shades), max(shades)) == (0.04, 0.7)
    assert any(text.endswith("25.20 %") for text in texts(charts["leaders_normal"]))
    assert "α has not moved" in by_name(weight_charts(run_of(run.epochs[0])))["weights_normal"].note
    far = by_name(weight_charts(run_of({"op_weights": {"normal": [[0.1, 0.9]] * 2}})))["weights_normal"]
    assert "undecided" not in far.note


@pytest.mark.parametrize("count", [7, 8, 12])
def test_names_of_candidates_do_not_touch(count: int) -> None:
    names = [*DARTS_CANDIDATES, "conv_7x1_1x7", "sep_conv_7x7", "a_candidate_of_ones_own", "long" * 8][-count:]
    weights = {"normal": [[1 / count] * count] * 2}
    chart = next(weight_charts(run_of({"op_weights": weights}, starts=[{"network": {"candidates": names}}])))
    column = (chart.size[0] - chart.margins[0] - chart.margins[1]) / count
    labels = chart.axes.get_xticklabels()
    assert [label.get_text().replace("\n", "_") for label in labels] == names
    for label in labels:
        lines = label.get_text().split("\n")
        assert max(map(len, lines)) * 0.62 * label.get_fontsize() < column
        assert len(lines) * 1.1 * label.get_fontsize() < chart.margins[3]


def test_long_runs_show_some_of_their_epochs_and_always_the_last() -> None:
    weights = {"normal": [[0.5, 0.5], [0.4, 0.6]]}
    run = run_of(*({"op_weights": weights} for _ in range(601)))
    chart = by_name(weight_charts(run))["leaders_normal"]
    shown = {int(re.findall(r"epoch (\d+)", text)[0]) for text in hovers(chart)}
    assert len(shown) <= 60
    assert max(shown) == 601


def test_weights_that_change_their_shape_are_compared_within_the_last_shape() -> None:
    run = run_of({"op_weights": {"normal": [[0.2] * 5] * 2}}, {"op_weights": {"normal": [[0.5, 0.5]] * 2}})
    assert list(by_name(weight_charts(run))) == ["weights_normal"]


@pytest.mark.parametrize("table", [None, [], [[]], [[0.5], [0.5, 0.5]], [["a"]], [[None]], "text"])
def test_damaged_weights_are_left_out(table: object) -> None:
    assert list(weight_charts(run_of({"op_weights": {"normal": table}}))) == []


def test_a_genotype_with_other_nodes_than_the_weights_is_marked_where_it_fits() -> None:
    run = run_of({"op_weights": {"normal": [[0.5, 0.5]] * 2}}, genotype=Genotype.published("NASNet"))
    ET.fromstring(next(iter(weight_charts(run))).svg())


def test_names_with_markup_and_dollar_signs_stay_text() -> None:
    names = ["<script>alert(1)</script>", "$\\frac{$", "a&b", "-->", '"quoted"']
    weights = {"normal": [[0.2] * 5, [0.1, 0.2, 0.3, 0.2, 0.2]]}
    run = run_of({"op_weights": weights}, {"op_weights": weights}, starts=[{"network": {"candidates": names}}])
    for chart in weight_charts(run):
        assert "<script" not in chart.svg()
        assert any("a&b" in text for text in texts(chart))
