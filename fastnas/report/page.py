"""Puts the report together: one HTML page that needs no other file, no network and no JavaScript to be read."""

from __future__ import annotations

import tempfile
from datetime import datetime
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template

import matplotlib.style

from fastnas.errors import UserError
from fastnas.report import sections
from fastnas.report.alphas import weight_charts
from fastnas.report.curves import epoch_charts, time_charts
from fastnas.report.palette import stylesheet
from fastnas.report.population import population_charts
from fastnas.report.run import Run, is_number, read_run
from fastnas.version import __version__


def write_report(run_dir: str | Path) -> Path:
    """Writes ``report.html`` into a run directory and returns its path.

    Reads only the files of the directory, so it works at any time: during a search, after an interruption, or on a
    directory copied from another machine. What is missing is named on the page. Equal files give an equal page.

    Raises:
        UserError: ``run_dir`` is not a directory, or the page cannot be written into it.
    """
    run = read_run(run_dir)
    page = render(run)
    path = run.path / "report.html"
    write_page(path, page)
    return path


def write_page(path: Path, page: str) -> None:
    """Replaces a page. UserError if it cannot be written."""
    try:
        # Written beside and renamed: a reader never meets half a page.
        with tempfile.TemporaryDirectory(prefix=".report.", dir=path.parent) as folder:
            Path(folder, path.name).write_text(page, encoding="utf-8")
            Path(folder, path.name).replace(path)
    except OSError as error:
        raise UserError(f"cannot write {str(path)!r}: {error.strerror or error}; make the folder writable") from error


def render(run: Run) -> str:
    """The page as HTML text."""
    with matplotlib.style.context("default", after_reset=True):  # whatever style the user's own plots have
        return _render(run)


def _render(run: Run) -> str:
    no_epoch = "No epoch has ended yet."
    parts = [
        ("cells", "Cells", sections.cells(run)),
        ("curves", "Curves", sections.charts(epoch_charts(run), no_epoch)),
        (
            "weights",
            "Operation weights",
            sections.charts(weight_charts(run), "No operation weights were recorded yet."),
        ),
        ("population", "Population", sections.charts(population_charts(run), "No population was evaluated.")),
        ("time", "Time", sections.charts(time_charts(run), no_epoch)),
        ("settings", "Settings", sections.settings(run)),
        ("repeat", "Repeat and retrain", sections.recipes(run)),
        ("genotype", "Genotype", sections.genotype(run)),
    ]
    name = run.path.resolve().name
    subject = " · ".join(text for text in (_data_name(run), run.strategy) if text) or name
    problems = "".join(f"<li>{escape(problem)}</li>" for problem in run.problems)
    resources = files(__package__)
    return Template(resources.joinpath("page.html").read_text(encoding="utf-8")).substitute(
        title=escape(f"{subject}: {name} · fastnas"),
        style=stylesheet(":root") + resources.joinpath("page.css").read_text(encoding="utf-8"),
        heading=escape(subject),
        lead=_lead(run, name),
        problems=f'<ul class="problems">{problems}</ul>' if problems else "",
        tiles="".join(tile(*entry) for entry in _tiles(run)),
        nav="".join(f'<a href="#{key}">{title}</a>' for key, title, _ in parts),
        sections="\n".join(f'<section id="{key}"><h2>{title}</h2>{body}</section>' for key, title, body in parts),
        version=escape(__version__),
        script=resources.joinpath("page.js").read_text(encoding="utf-8"),
    )


def _data_name(run: Run) -> str:
    """``cifar10`` of ``cifar10:/path/to/images``, but ``flowers`` of ``folder:/path/to/flowers``."""
    kind, _, place = str(run.data.get("spec", "")).partition(":")
    return Path(place).name if kind in ("folder", "npz") and place else kind


def _lead(run: Run, name: str) -> str:
    reason = (run.ending or {}).get("reason") if run.status == "interrupted" else None
    status = f"Search {run.status}" + (f" by {escape(str(reason))}" if reason else "")
    words = [f'<span class="status {run.status.replace(" ", "-")}">{status}</span>', f"run {escape(name)}"]
    if run.starts:
        words.append(f"started {escape(_time(run.starts[0].get('started')))}")
    if resumes := sum(bool(start.get("resumed")) for start in run.starts):
        words.append("resumed once" if resumes == 1 else f"resumed {resumes} times")
    return " · ".join(words)


def _time(stamp: object) -> str:
    try:
        time = datetime.fromisoformat(str(stamp))
    except ValueError:
        return str(stamp)
    return f"{time:%Y-%m-%d %H:%M} {time.tzname() or ''}".strip()


def _tiles(run: Run) -> list[tuple[str, str, str]]:
    """(label, value, smaller text below); a missing value is a dash."""
    dash = "–"
    images, classes = run.data.get("images"), run.data.get("classes")
    counts = [f"{images:,} images" if is_number(images) else "", f"{len(classes)} classes" if classes else ""]
    planned = f" / {run.planned_epochs}" if run.planned_epochs is not None else ""
    parameters, memory = run.network.get("parameters"), run.peak_memory_mb
    seed = run.option("run", "seed")
    accuracy, accuracy_of = dash, "not measured yet"
    if run.valid_accuracy is not None:
        value, epoch = run.valid_accuracy
        accuracy, accuracy_of = f"{100 * value:.2f} %", "at the end" if epoch is None else f"after epoch {epoch}"
    layout = [f"space {run.network['space']}"] if run.network.get("space") else []
    layout += [f"{run.network['nodes']} nodes"] if run.network.get("nodes") else []
    return [
        ("Data", _data_name(run) or dash, ", ".join(filter(None, counts))),
        ("Strategy", run.strategy or dash, "" if seed is None else f"seed {seed}"),
        ("Validation accuracy", accuracy, accuracy_of),
        ("Epochs", f"{len(run.epochs)}{planned}", "done / planned" if planned else "done"),
        ("Time", dash if run.seconds is None else duration(run.seconds), _pace(run)),
        ("Peak memory", dash if memory is None else _memory(memory), str(run.environment.get("device", ""))),
        ("Network", f"{parameters:,}" if is_number(parameters) else dash, ", ".join(["parameters", *layout])),
    ]


def tile(label: str, value: str, more: str) -> str:
    number, space, unit = escape(value).partition(" ")
    shown = f"{number}<small>{space}{unit}</small>" if number[:1].isdigit() else escape(value)
    below = f'<dd class="more">{escape(more)}</dd>' if more else ""
    return f'<div><dt>{label}</dt><dd class="value">{shown}</dd>{below}</div>'


def duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours} h {minute:02d} min" if hours else f"{minutes} min {second:02d} s"


def _pace(run: Run) -> str:
    return f"{duration(run.seconds / len(run.epochs))} an epoch" if run.seconds and run.epochs else ""


def _memory(mebibytes: float) -> str:
    return f"{mebibytes / 1024:.2f} GiB" if mebibytes >= 1024 else f"{mebibytes:.0f} MiB"
