"""The page of a study: what it shows, at any time of the study."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from report_chart_reader import hovers, texts
from report_page_reader import Page
from report_study_directory import StudyDirectory

from fastnas.report.__main__ import main
from fastnas.report.study import write_study_report
from fastnas.report.study_charts import box_chart, curve_chart, option_charts
from fastnas.report.study_published import Published, published_of
from fastnas.report.study_results import read_study

EVIL = "<img src=x>&'"
ZETA, ETA = [1.0, 0.8, 0.4, 0.2], [1.0, 0.8, 0.4, 0.2]


def page(study: StudyDirectory) -> Page:
    path = write_study_report(study.path)
    assert path == study.path / "report.html"
    assert (study.path / "study.csv").is_file()
    return Page(path.read_text(encoding="utf-8"))


def grid(path: Path, **plan: Any) -> StudyDirectory:
    """A finished grid of two seeds, in which ζ = 0.4, η = 0.8 is the best."""
    study = StudyDirectory(path, {"zeta": ZETA, "eta": ETA}, **plan)
    for name, unit in study.units.items():
        zeta, eta = unit["options"]["zeta"], unit["options"]["eta"]
        best = (zeta, eta) == (0.4, 0.8)
        study.search(name, [0.2, 0.9 if best else 0.5 + 0.1 * zeta + 0.01 * eta + 0.02 * unit["seed"]])
    return study


def heat_maps(found: Page) -> list[str]:
    return re.findall(r'<table class="heat">.*?</table>', found.text, re.DOTALL)


def squares(table: str) -> dict[tuple[str, str], str]:
    """The cells of a heat map by their row and column, as HTML."""
    head, *rows = re.findall(r"<tr>(.*?)</tr>", table, re.DOTALL)
    columns = re.findall(r'<th scope="col">(.*?)</th>', head)[1:]
    found = {}
    for row in rows:
        name = re.findall(r'<th scope="row">(.*?)</th>', row)[0]
        for column, cell in zip(columns, re.findall(r"<td.*?</td>", row), strict=True):
            found[name, column] = cell
    return found


def test_two_options_are_a_heat_map_whose_best_cell_is_marked(tmp_path: Path) -> None:
    found = page(grid(tmp_path / "s"))
    (table,) = heat_maps(found)
    cells = squares(table)
    assert len(cells) == 16
    assert list(cells)[:2] == [("ζ = 1", "η = 1"), ("ζ = 1", "η = 0.8")]
    best = cells["ζ = 0.4", "η = 0.8"]
    assert 'class="best"' in best
    assert "<strong>90.00</strong>" in best
    assert "n 2" in best
    assert table.count('class="best"') == table.count('aria-label="best"') == 1
    # 0.5 + 0.1 + 0.01 and that + 0.02: mean 62 %, deviation of the sample √2 %
    assert "<strong>62.00</strong>" in cells["ζ = 1", "η = 1"]
    assert "± 1.41, n 2" in cells["ζ = 1", "η = 1"]
    tints = {place: int(re.findall(r"--share:(\d+)%", cell)[0]) for place, cell in cells.items()}
    assert (tints["ζ = 0.4", "η = 0.8"], tints["ζ = 0.2", "η = 0.2"]) == (50, 0)
    assert found.tiles()["Best cell"] == "90.00 ± 0.00 % zeta 0.4, eta 0.8; validation accuracy, mean of 2"


def test_the_published_grid_stands_beside_it_and_is_marked(tmp_path: Path) -> None:
    found = page(grid(tmp_path / "s", published="egnas-table1"))
    ours, theirs = heat_maps(found)
    cells = squares(theirs)
    assert "<strong>84.088</strong>" in cells["ζ = 1", "η = 0.4"]
    assert 'class="best"' in cells["ζ = 1", "η = 0.4"]
    assert "2.58 M" in cells["ζ = 1", "η = 0.4"]
    assert "<strong>83.096</strong>" in cells["ζ = 0.2", "η = 0.2"]
    assert theirs.count('class="best"') == ours.count('class="best"') == 1
    figures = re.findall(r"<figure><figcaption>(.*?)</figcaption>", found.text, re.DOTALL)
    assert 'class="published"' not in figures[0]
    assert '<span class="published">published</span>' in figures[1]
    assert "replication" in figures[1]
    # Every published number outside of the published table carries the mark.
    assert "published 84.088" in found.section("cells")
    assert found.section("published").startswith("Published numbers published report 101")


def test_a_grid_of_other_options_has_no_published_one_beside_it(tmp_path: Path) -> None:
    study = StudyDirectory(
        tmp_path / "s", {"gamma": [0.0, 1.0], "reduction": ["sum", "mean_edge"]}, published="multi-level-table1"
    )
    for name in study.units:
        study.search(name, [0.5])
    found = page(study)
    assert len(heat_maps(found)) == 1
    assert "largest and the smallest mean lie 0.00 points" in found.section("result")
    assert "published 3.14" in found.section("cells")


def test_a_study_that_runs_says_how_much_is_done(tmp_path: Path) -> None:
    study = StudyDirectory(tmp_path / "s", {"zeta": ZETA, "eta": ETA}, seeds=(0,))
    names = list(study.units)
    study.search(names[0], [0.5, 0.6])
    study.search(names[1], [0.5], ended=False)
    study.claim(names[1])
    study.fail(names[2], EVIL)
    study.search(names[3], [0.5], ended=False)
    found = page(study)
    lead = re.sub(r"<.*?>", "", re.findall(r'<p class="lead">(.*?)</p>', found.text)[0])
    assert lead.startswith("Study running · study mine · scale small · folder s · 1 finished, 1 running, 1 interrupted")
    assert lead.endswith(", 1 failed, 12 waiting")
    assert found.tiles()["Units"] == "1 / 16 finished; search 16"
    cells = list(squares(heat_maps(found)[0]).values())
    assert "<strong>60.00</strong>" in cells[0]
    assert [re.sub("<.*?>", "", cell) for cell in cells[1:5]] == ["running", "failed", "interrupted", "waiting"]
    assert "zeta 1.0, eta 0.4 search 0 3.0 s <img src=x>&'" in found.section("failures")
    assert "<img" not in found.text


def test_a_study_without_a_result_says_so(tmp_path: Path) -> None:
    study = StudyDirectory(tmp_path / "s", {"zeta": ZETA, "eta": ETA})
    found = page(study)
    assert "No unit has ended yet" in found.section("result")
    assert "Best cell" not in found.tiles()
    assert "Study unfinished" in found.text
    assert not heat_maps(found)


def test_names_of_a_user_are_escaped_and_links_are_quoted(tmp_path: Path) -> None:
    study = StudyDirectory(tmp_path / "s", {"data": [EVIL]}, seeds=(0,), title=EVIL, note=EVIL, scale=EVIL, name=EVIL)
    unit = study.units.pop(next(iter(study.units)))
    study.units["u"] = unit | {"id": "u", "directory": "cells/a #1?/search", "label": EVIL}
    study.write_plan()
    (study.search("u", [0.5]) / "report.html").write_text("")
    found = page(study)
    assert "<img" not in found.text
    assert f"<h1>{'&lt;img src=x&gt;&amp;&#x27;'}</h1>" in found.text
    links = [
        attributes["href"] for tag, attributes in found.tags if tag == "a" and (attributes["href"] or "")[:1] != "#"
    ]
    assert set(links) == {"cells/a%20%231%3F/search/report.html"}


def test_one_option_is_a_curve_with_its_deviation_and_the_time(tmp_path: Path) -> None:
    study = StudyDirectory(tmp_path / "s", {"population": [15, 30, 100]}, published="egnas-figure3")
    for name, unit in study.units.items():
        size = unit["options"]["population"]
        study.search(name, [size / 200 + 0.1 * unit["seed"]], seconds=float(size))
    results = read_study(study.path)
    charts = {chart.name: chart for chart in option_charts(results)}
    assert list(charts) == ["option", "option_time"]
    assert hovers(charts["option"])[0] == "λ = 15\n12.50 ± 7.07, n 2"
    assert hovers(charts["option_time"])[2] == "λ = 100\n100.00 ± 0.00, n 2"
    assert {"15", "30", "100"} <= set(texts(charts["option"]))
    found = page(study)
    assert "Best: population 100, validation accuracy 55.00 ± 7.07 %, mean of 2." in found.section("result")
    # (0.075 + 0.05, 0.15 + 0.05, 0.5 + 0.05): seeds lie 0.1 apart
    assert "largest and the smallest mean lie 42.50 points" in found.section("result")
    assert "over the seeds of a cell is 7.07 points" in found.section("result")
    assert "published 84.31 (read off a chart, ± 0.03)" in found.section("cells")


def test_boxes_show_every_run_and_the_random_baseline(tmp_path: Path) -> None:
    study = StudyDirectory(tmp_path / "s", {"gamma": [0.0, 1.0]}, seeds=(0, 1, 2, 3), stages=("train", "baseline"))
    for name, unit in study.units.items():
        random, seed = unit["stage"] == "baseline", unit["seed"]
        study.training(name, (0.5 if random else 0.7) + 0.01 * seed + 0.1 * unit["options"]["gamma"])
    chart = box_chart(read_study(study.path))
    assert chart is not None
    assert hovers(chart) == [
        "gamma 0.0\n71.50 ± 1.29 %, n 4", "random, beside gamma 0.0\n51.50 ± 1.29 %, n 4",
        "gamma 1.0\n81.50 ± 1.29 %, n 4", "random, beside gamma 1.0\n61.50 ± 1.29 %, n 4",
    ]  # fmt: skip
    assert "quartiles" in chart.note
    found = page(study)
    assert "gamma 1.0 best 8 / 8 81.50 ± 1.29" in found.section("cells")


def test_curves_are_means_and_end_where_a_seed_ends(tmp_path: Path) -> None:
    study = StudyDirectory(tmp_path / "s", {"gamma": [0.0, 1.0]})
    study.search("gamma-0.0/seed-0/search", [0.2, 0.4, 0.6])
    study.search("gamma-0.0/seed-1/search", [0.4, 0.6], ended=False)
    chart = curve_chart(read_study(study.path))
    assert chart is not None
    assert hovers(chart) == ["epoch 1\ngamma 0.0 30.00 %", "epoch 2\ngamma 0.0 50.00 %"]


def test_many_curves_are_grey_but_for_the_best(tmp_path: Path) -> None:
    chart = curve_chart(read_study(grid(tmp_path / "s").path))
    assert chart is not None
    assert [text for text in texts(chart) if text.startswith("zeta")] == ["zeta 0.4, eta 0.8 90.0"]


def test_each_cell_shows_the_chosen_genotype_and_its_skips(tmp_path: Path) -> None:
    study = StudyDirectory(tmp_path / "s", {"gamma": [0.0, 1.0]})
    for name, unit in study.units.items():
        study.search(name, [0.5 + 0.1 * unit["seed"]])
    (study.path / "chosen.json").write_text('{"gamma-0.0": {"unit": "gamma-0.0/seed-0/search"}}')
    found = page(study)
    graphs = found.section("graphs")
    assert "gamma 0.0: seed 0, validation 50.00 %, chosen" in graphs
    assert "gamma 1.0: seed 1, validation 60.00 % " in graphs
    assert found.text.count('<svg class="cell"') == 4
    assert "gamma 0.0 2.0 ± 0.0 3.0 ± 0.0" in found.section("skips")


def test_the_best_of_several_trainings_is_by_validation_and_the_one_by_test_is_marked(tmp_path: Path) -> None:
    study = StudyDirectory(tmp_path / "s", {"gamma": [1.0]}, stages=("search", "train"))
    for seed, valid, test in ((0, 0.6, 0.7), (1, 0.5, 0.8)):
        study.search(f"gamma-1.0/seed-{seed}/search", [valid])
        study.training(f"gamma-1.0/seed-{seed}/train", test)
    cells = page(study).section("cells")
    assert "best by validation: test (%) best by TEST, too high (%)" in cells
    assert "75.00 ± 7.07 70.00 80.00" in cells


def test_of_one_cell_and_one_search_nothing_is_called_the_best(tmp_path: Path) -> None:
    study = StudyDirectory(tmp_path / "s", {"gamma": [1.0]}, seeds=(0, 1, 2, 3), stages=("train",))
    for name, unit in study.units.items():
        study.training(name, 0.8 + 0.01 * unit["seed"], valid=0.5 + 0.01 * unit["seed"])
        unit["needs"] = ["gamma-1.0/seed-0/search"]
    study.write_plan()
    found = page(study)
    assert found.tiles()["Cell"] == "81.50 ± 1.29 % gamma 1.0; test accuracy, mean of 4"
    assert "best" not in found.section("cells").lower()
    assert "best mean" not in found.section("seeds")


def test_errors_stand_beside_published_errors(tmp_path: Path) -> None:
    study = StudyDirectory(tmp_path / "s", {"gamma": [5.0]}, stages=("train",), published="multi-level-table1")
    for name, unit in study.units.items():
        study.training(name, 0.96 + 0.01 * unit["seed"])
    cells = page(study).section("cells")
    assert "test (%) test error (%)" in cells
    assert "96.50 ± 0.71 3.50 ± 0.71" in cells
    assert "published 3.28" in cells


def test_the_page_has_headings_captions_headers_and_names_for_drawings(tmp_path: Path) -> None:
    found = page(grid(tmp_path / "s", published="egnas-table1"))
    headings = [tag for tag, _ in found.tags if tag in ("h1", "h2", "h3")]
    assert headings[:2] == ["h1", "h2"]
    tables = re.findall(r"<table.*?</table>", found.text, re.DOTALL)
    assert tables
    for table in tables:
        assert "<caption>" in table
        assert 'scope="row"' in table
    for svg in found.svgs():
        assert svg.get("role") == "img"
        assert svg.findtext("{http://www.w3.org/2000/svg}title")
    keys = [attributes["id"] for tag, attributes in found.tags if tag == "section"]
    assert len(set(keys)) == len(keys)


def test_equal_files_give_an_equal_page(tmp_path: Path) -> None:
    study = grid(tmp_path / "s", published="egnas-table1")
    assert page(study).text == page(study).text


def test_the_command_recognises_a_study(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    study = StudyDirectory(tmp_path / "s", {"zeta": [1.0]}, seeds=(0,))
    assert main([str(study.path)]) == 0
    assert capsys.readouterr().out.split() == [str(study.path / "report.html")]
    assert "Study unfinished" in (study.path / "report.html").read_text()


@pytest.mark.parametrize(
    ("row", "text"),
    [
        ({"value": 3.0}, "3.0"),
        ({"value": 84.036}, "84.036"),
        ({"value": 2.73, "std": 0.1}, "2.73 ± 0.10"),
        ({"value": 83.5, "read_off": "± 0.3"}, "83.5 (read off a chart, ± 0.3)"),
    ],
)
def test_published_values_have_the_places_that_were_printed(row: dict[str, Any], text: str) -> None:
    assert Published("A paper", "error (%)", "", (row,)).text(row) == text
    more = Published("A paper", "error (%)", "", (row, {"value": 1.0001}))  # all rows alike
    assert more.text(row).startswith(f"{row['value']:.4f}")


def test_an_unknown_study_has_no_published_numbers() -> None:
    assert published_of("nothing") is published_of(None) is None
