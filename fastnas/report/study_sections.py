"""The tables and drawings of a study's page: each function turns its results into escaped HTML."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from html import escape
from typing import Literal
from urllib.parse import quote

from fastnas.report.cell_graph import KIND_NAMES, draw_cell
from fastnas.report.curves import kind_name
from fastnas.report.page import DASH, duration
from fastnas.report.sections import columns, flatten, missing, note
from fastnas.report.study_published import MARK, Published
from fastnas.report.study_results import MEASURES, Cell, Statistic, StudyResults
from fastnas.report.study_unit import UnitResult
from fastnas.report.tables import data_table, key_table, scroll

MOST_OPEN = 60  # rows of a table that is not folded
TESTED = next(stages for words, _, stages in MEASURES if words == "test accuracy")


def cell_table(results: StudyResults, published: Published | None) -> str:
    """A row for each cell: means ± standard deviations over the seeds."""
    columns: dict[str, list[str]] = {}
    choices: tuple[tuple[Literal["validation", "test"], str], ...] = (
        ("validation", "best by validation: test (%)"),
        ("test", "best by TEST, too high (%)"),
    )

    def column(title: str, found: Iterable[Statistic | None], form: str = "{:.2f}", scale: float = 1.0) -> None:
        values = list(found)
        if any(values):
            columns[title] = [DASH if value is None else value.text(form, scale) for value in values]

    cells = results.cells
    done = [f"{sum(u.status == 'finished' for u in cell.units)} / {len(cell.units)}" for cell in cells]
    column("validation (%)", [cell.mean("valid_accuracy", "search", "compare") for cell in cells], scale=100)
    column("test (%)", [cell.mean("test_accuracy", *TESTED) for cell in cells], scale=100)
    if published is not None and "error" in published.measure:  # as the source counts
        tested = [cell.mean("test_accuracy", *TESTED) for cell in cells]
        column("test error (%)", [found and replace(found, mean=1 - found.mean) for found in tested], scale=100)
    for by, title in choices:
        best = [cell.best_trained(by) for cell in cells]
        column(title, [None if unit is None else Statistic.of([unit.test_accuracy]) for unit in best], scale=100)
    column("random, test (%)", [cell.mean("test_accuracy", "baseline") for cell in cells], scale=100)
    column("better than random cells (%)", [cell.mean("beats", "search") for cell in cells], "{:.0f}")
    column("derivation gap (points)", [cell.mean("gap", "search") for cell in cells], "{:.1f}", 100)
    column("parameters (M)", [cell.mean("parameters", "train", "search") for cell in cells], "{:.3f}", 1e-6)
    column("multiply-adds (M)", [cell.mean("macs", "train", "search") for cell in cells], "{:.1f}", 1e-6)
    column("search (s)", [cell.mean("seconds", "search") for cell in cells], "{:.1f}")
    for clock in ("GPU", "core"):
        days = [Statistic.of(u.days for u in cell.of("search") if u.clock == clock) for cell in cells]
        column(f"search ({clock}-days)", [found and replace(found, std=None) for found in days], "{:.2g}")
    head = ["cell", "units", *columns]
    rows = [
        [escape(cell.label) + (" <strong>best</strong>" if results.is_best(cell) else ""), done[i]]
        + [values[i] for values in columns.values()]
        for i, cell in enumerate(cells)
    ]
    numbers = len(head) - 1
    if published is not None and any(found := [published.of(cell) for cell in cells]):
        head.append(f"published: {published.measure}")
        for row, of in zip(rows, found, strict=True):
            row.append(DASH if of is None else f"{MARK} {escape(published.text(of))}")
    remark = "Mean ± standard deviation (of a sample) over the seeds; without ± it is one run. "
    remark += "Sizes: of the network of the found cell that is to be trained, or of the trained one."
    table = data_table(head, rows, numbers=numbers, markup=True, caption="The cells of the study")
    return note(remark) + table


# --- what was found ---


def graphs(results: StudyResults) -> str:
    """The cell that each cell of the study has found: of its chosen search, or of its most accurate one."""
    found = [(cell, unit) for cell in results.cells if (unit := shown_unit(cell))]
    figures = []
    for cell, unit in found:
        genotype = unit.genotype
        assert genotype is not None
        drawings = "".join(
            f"<figure><figcaption><h3>{KIND_NAMES[kind].capitalize()}</h3></figcaption>"
            f"{scroll(draw_cell(genotype, kind))}</figure>"
            for kind in genotype.kinds
        )
        value = "" if unit.valid_accuracy is None else f", validation {100 * unit.valid_accuracy:.2f} %"
        chosen = ", chosen" if cell.chosen == unit.id else ""
        opened = " open" if cell is results.best or len(found) == 1 else ""
        figures.append(
            f"<details{opened}><summary>{escape(cell.label)}: seed {unit.seed}{value}{chosen}</summary>"
            f'<div class="cells pair">{drawings}</div></details>'
        )
    if not figures:
        return ""
    remark = "Of each cell the chosen search, or else the one with the highest validation accuracy; the best unfolded."
    return note(remark) + "".join(figures)


def shown_unit(cell: Cell) -> UnitResult | None:
    """The finished search whose genotype stands for a cell."""
    known = [unit for unit in cell.units if unit.stage != "baseline" and unit.status == "finished" and unit.genotype]
    chosen = next((unit for unit in known if unit.id == cell.chosen), None)
    searches = [unit for unit in known if unit.stage == "search"] or known
    return chosen or max(searches, key=lambda unit: unit.valid_accuracy or 0.0, default=None)


def skips(results: StudyResults) -> str:
    """Skip connections of the found cells by kind; empty before a search has ended."""
    units = {cell.slug: [u for u in cell.of("search") if u.status == "finished" and u.skips] for cell in results.cells}
    kinds = list(dict.fromkeys(kind for found in units.values() for unit in found for kind in unit.skips))
    rows = []
    for cell in results.cells:
        means = [Statistic.of(unit.skips.get(kind) for unit in units[cell.slug]) for kind in kinds]
        if any(means):
            rows.append((cell.label, *(DASH if mean is None else mean.text("{:.1f}") for mean in means)))
    if not rows:
        return ""
    remark = "Skip connections of the derived networks' cells; mean ± standard deviation over the searches."
    head = ("cell", *(kind_name(kind) for kind in kinds))
    return note(remark) + data_table(head, rows, numbers=len(kinds), caption="Skip connections by kind of cell")


def evidence(results: StudyResults) -> str:
    """What each search said of its own worth."""
    rows = [
        (_link(unit), escape("; ".join(filter(None, [unit.evidence, *unit.warnings]))))
        for unit in results.units
        if unit.evidence or unit.warnings
    ]
    remark = "How good the found cell is beside random ones of its size by shared weights, and how far α has decided."
    table = data_table(("search", "evidence"), rows, markup=True, caption="Evidence of each search")
    return note(remark) + _folded(f"Searches ({len(rows)})", table, len(rows)) if rows else ""


# --- units ---


def failures(results: StudyResults) -> str:
    """The units that failed, with their errors; empty where none has."""
    failed = [unit for unit in results.units if unit.status == "failed"]
    after = [DASH if unit.failed_after is None else duration(unit.failed_after) for unit in failed]
    rows = [(u.label, u.stage, str(u.seed), time, u.error) for u, time in zip(failed, after, strict=True)]
    remark = "They did not stop the others. The command below tries them again."
    head = ("cell", "stage", "seed", "after", "error")
    return note(remark) + data_table(head, rows, numbers=0, caption="Failed units") if rows else ""


def unit_table(results: StudyResults) -> str:
    """A row for each unit, with a link to its own page."""
    rows = []
    for unit in results.units:
        epochs = str(unit.epochs) + (f" / {unit.planned_epochs}" if unit.planned_epochs else "")
        rows.append(
            (
                _link(unit),
                epochs if unit.epochs or unit.planned_epochs else DASH,
                *(DASH if v is None else f"{100 * v:.2f}" for v in (unit.valid_accuracy, unit.test_accuracy)),
                DASH if unit.parameters is None else f"{unit.parameters:,}",
                DASH if unit.seconds is None else duration(unit.seconds),
                f'{escape(unit.directory.name)} <span class="status {unit.status}">{unit.status}</span>',
            )
        )
    head = ("unit", "epochs", "validation (%)", "test (%)", "parameters", "time", "status")
    table = data_table(head, rows, numbers=len(head) - 2, markup=True, caption="All units of the study")
    remark = "A link leads to the page of the run. study.csv has all of these numbers and more."
    return note(remark) + _folded(f"Units ({len(rows)})", table, len(rows))


def _link(unit: UnitResult) -> str:
    """The name of a unit, which leads to its page where there is one."""
    name = escape(f"{unit.label}, seed {unit.seed}")
    return name if unit.page is None else f'<a href="{quote(unit.page.as_posix())}">{name}</a>'


def _folded(summary: str, table: str, rows: int) -> str:
    return table if rows <= MOST_OPEN else f"<details><summary>{summary}</summary>{table}</details>"


# --- settings ---


def settings(results: StudyResults) -> str:
    """What the study was given, as study.yaml has it."""
    texts = ("name", "title", "note", "scales")
    given = {name: value for name, value in results.study.items() if name not in texts and value not in ({}, [], None)}
    groups = {name: value for name, value in given.items() if isinstance(value, dict)}
    study = key_table("Study", list(flatten({k: v for k, v in given.items() if k not in groups})))
    tables = [
        f'<h3 class="spaced">{escape(name)}</h3>{key_table(name, list(flatten(group)))}'
        for name, group in groups.items()
    ]
    return columns(study, "".join(tables)) if study or tables else missing("study.yaml holds no options.")
