"""The page of a study: its cells as a grid, as boxes over the seeds and as curves, beside published numbers."""

from __future__ import annotations

import math
import shlex
from collections import Counter
from html import escape
from pathlib import Path
from statistics import fmean

import matplotlib.style

from fastnas.report import sections
from fastnas.report import study_sections as study
from fastnas.report.page import DASH, Part, duration, fill, write_page
from fastnas.report.study_charts import box_chart, curve_chart, option_charts
from fastnas.report.study_grid import heat_map, is_grid, published_map, symbol
from fastnas.report.study_published import Published, published_of
from fastnas.report.study_results import STUDY, Statistic, StudyResults, read_study, write_csv
from fastnas.report.study_unit import Status

STATUSES: tuple[Status, ...] = ("finished", "running", "interrupted", "failed", "waiting")
MOST_SEEDS = 12  # that are listed


def write_study_report(directory: str | Path) -> Path:
    """Writes study.csv and report.html into the directory of a study and returns the path of the page.

    Reads files only, so it works at any time; while the study runs, the page says how much of it is done. Equal files
    give equal pages.

    Raises:
        UserError: there is no plan of a study, or a file cannot be written.
    """
    results = read_study(directory)
    write_csv(results)
    return write_page(results.directory, render(results))


def render(results: StudyResults) -> str:
    """The page as HTML text."""
    published = published_of(results.plan.get("published"))
    with matplotlib.style.context("default", after_reset=True):
        parts: list[Part] = [
            ("result", "Result", _result(results, published)),
            ("cells", "All cells", study.cell_table(results, published)),
            ("published", "Published numbers", "" if published is None else published.section()),
            ("seeds", "Runs", sections.charts(filter(None, [box_chart(results)]))),
            ("curves", "Curves", sections.charts(filter(None, [curve_chart(results)]))),
            ("graphs", "Found cells", study.graphs(results)),
            ("skips", "Skip connections", study.skips(results)),
            ("evidence", "Evidence", study.evidence(results)),
            ("failures", "Failures", study.failures(results)),
            ("units", "Units", study.unit_table(results)),
            ("settings", "Settings", study.settings(results)),
            ("repeat", "Continue or repeat", _repeat(results)),
        ]
    folder = results.directory.resolve().name
    return fill(
        f"{results.title}: {folder}", results.title, _lead(results, folder), _tiles(results), parts, results.problems,
        again="python -m fastnas.report STUDY",
    )  # fmt: skip


def _lead(results: StudyResults, folder: str) -> str:
    status = "finished" if results.is_finished else "running" if results.count("running") else "unfinished"
    words = [f'<span class="status {status}">Study {status}</span>', f"study {escape(results.name)}"]
    if scale := results.plan.get("scale"):
        words.append(f"scale {escape(str(scale))}")
    if folder != results.name:
        words.append(f"folder {escape(folder)}")
    if not results.is_finished:
        words.append(", ".join(f"{count} {each}" for each in STATUSES if (count := results.count(each))))
    return " · ".join(words)


def _tiles(results: StudyResults) -> list[tuple[str, str, str]]:
    """(label, value, smaller text below)."""
    units = results.units
    stages = Counter(unit.stage for unit in units)
    seeds = list(dict.fromkeys(unit.seed for unit in units))
    listed = ", ".join(map(str, seeds[:MOST_SEEDS])) + (", …" if len(seeds) > MOST_SEEDS else "")
    tiles = [
        ("Units", f"{results.count('finished')} / {len(units)}", f"finished; {_counted(stages)}"),
        ("Cells", str(len(results.cells)), " × ".join(map(symbol, results.grid))),
        ("Seeds", str(len(seeds)), listed),
    ]
    best = results.best
    value = results.value(best) if best else None
    if best and value:
        label = "Best cell" if len(results.cells) > 1 else "Cell"
        tiles.append((label, f"{value.text(scale=100)} %", f"{best.label}; {results.measure}{_over(value)}"))
    seconds = [unit.seconds for unit in units if unit.seconds is not None]
    days: dict[str, float] = {}
    for unit in units:
        if unit.days is not None and unit.clock:
            days[unit.clock] = days.get(unit.clock, 0.0) + unit.days
    spent = ", ".join(f"{value:.2g} {clock}-days" for clock, value in days.items())
    whose = f"of all units, {spent}" if spent else "of all units"
    return [*tiles, ("Time", duration(sum(seconds)) if seconds else DASH, whose)]


def _counted(stages: Counter[str]) -> str:
    return ", ".join(f"{stage} {count}" for stage, count in stages.items())


def _over(value: Statistic) -> str:
    return f", mean of {value.n}" if value.n > 1 else ", one run"


def _result(results: StudyResults, published: Published | None) -> str:
    remark = sections.note(str(results.plan.get("note") or ""))
    best = results.best
    value = results.value(best) if best else None
    if best is None or value is None:
        return remark + sections.missing("No unit has ended yet, so there is nothing to compare.")
    if is_grid(results):
        theirs = "" if published is None else published_map(results, published)
        ours = heat_map(results)
        maps = f'<div class="{"charts" if theirs else "grids"}">{ours}{theirs}</div>'
        return remark + maps + sections.note(_spread(results))
    said = f"{best.label}, {results.measure} {value.text(scale=100)} %{_over(value)}."
    said = f"Best: {said}" if results.is_best(best) else said
    said = " ".join(filter(None, (said, _spread(results))))
    return remark + sections.note(said) + sections.charts(option_charts(results))


def _spread(results: StudyResults) -> str:
    """How far the cells lie apart, and the seeds of one cell; empty where there are not several of both."""
    values = [value for cell in results.cells if (value := results.value(cell))]
    deviations = [value.std for value in values if value.std is not None]
    if len(values) < 2 or not deviations:
        return ""
    means = [value.mean for value in values]
    deviation = math.sqrt(fmean(deviation**2 for deviation in deviations))
    return (
        f"Between the largest and the smallest mean lie {100 * (max(means) - min(means)):.2f} points; the standard "
        f"deviation over the seeds of a cell is {100 * deviation:.2f} points."
    )


def _repeat(results: StudyResults) -> str:
    command = ["python", "-m", "fastnas.study"]
    go_on = shlex.join([*command, str(results.directory)])
    again = shlex.join([*command, str(results.directory / STUDY), "--out", f"{results.directory}-again"])
    return (
        sections.note("Finished units are never run again; interrupted ones go on, and failed ones are tried again.")
        + sections.code(go_on)
        + sections.note("The same study from its beginning, in a folder of its own.")
        + sections.code(again)
    )
