"""Puts the report together: one HTML page that needs no other file, no network and no JavaScript to be read."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template

import matplotlib.style

from fastnas.atomic_file import replace_file
from fastnas.report import sections, training
from fastnas.report.alphas import weight_charts
from fastnas.report.curves import epoch_charts, time_charts
from fastnas.report.evidence import evidence
from fastnas.report.front import front_charts, front_table
from fastnas.report.palette import stylesheet
from fastnas.report.population import population_charts
from fastnas.report.result import derived_networks, result, validation_images
from fastnas.report.run import Record, Run, is_number, read_run
from fastnas.version import __version__

Part = tuple[str, str, str]  # key, title, HTML


def write_report(run_dir: str | Path) -> Path:
    """Writes ``report.html`` into a run directory and returns its path.

    Reads only the files of the directory, so it works at any time: during a search, after an interruption, or on a
    directory copied from another machine. What is missing is named on the page. Equal files give an equal page.

    Raises:
        UserError: ``run_dir`` is not a directory, or the page cannot be written into it.
    """
    run = read_run(run_dir)
    return write_page(run.path, render(run))


def write_page(folder: Path, page: str, name: str = "report.html") -> Path:
    """Writes a page in one piece, so that nobody reads half of it. UserError if that fails."""
    path = folder / name
    replace_file(path, page, "the report")
    return path


def render(run: Run) -> str:
    """The page as HTML text."""
    with matplotlib.style.context("default", after_reset=True):  # whatever style the user's own plots have
        parts = _parts_of_training(run) if run.is_training else _parts_of_search(run)
    name = run.path.resolve().name
    subject = title_of(run)
    return fill(f"{subject}: {name}", subject, _lead(run, name), _tiles(run), parts, run.problems)


def title_of(run: Run, more: str = "") -> str:
    """What the page is of: ``Search with darts on flowers, 20 epochs``, ``DARTS_V2 cell on cifar10, 600 epochs``."""
    if run.is_training:
        name = training.genotype_name(run)
        what = f"{name} cell" if name else "Training"
    else:
        what = f"Search with {run.strategy}" if run.strategy else "Search"
    images = f" on {data_name(run.data)}" if run.data.get("spec") else ""
    epochs = run.planned_epochs
    length = "" if epochs is None else f", {epochs} epoch{'' if epochs == 1 else 's'}"
    return f"{what}{images}{length}{more}"


def fill(
    title: str,
    heading: str,
    lead: str,
    tiles: Iterable[tuple[str, str, str]],
    parts: Sequence[Part],
    problems: Iterable[str] = (),
    again: str = "python -m fastnas.report RUN_DIR",
) -> str:
    """A page: `lead` and the bodies of `parts` are HTML, the rest is text. Parts without a body are left out.

    again: the command that writes the page again.
    """
    parts = [part for part in parts if part[2]]
    listed = "".join(f"<li>{escape(problem)}</li>" for problem in problems)
    resources = files(__package__)
    return Template(resources.joinpath("page.html").read_text(encoding="utf-8")).substitute(
        title=escape(f"{title} · fastnas"),
        style=stylesheet(":root") + resources.joinpath("page.css").read_text(encoding="utf-8"),
        heading=escape(heading),
        lead=lead,
        problems=f'<ul class="problems">{listed}</ul>' if listed else "",
        tiles="".join(_tile(*tile) for tile in tiles),
        nav="".join(f'<a href="#{key}">{title}</a>' for key, title, _ in parts),
        sections="\n".join(f'<section id="{key}"><h2>{title}</h2>{body}</section>' for key, title, body in parts),
        version=escape(__version__),
        again=escape(again),
        script=resources.joinpath("page.js").read_text(encoding="utf-8"),
    )


NO_EPOCH = "No epoch has ended yet."


def _curves(run: Run) -> str:
    return sections.charts(epoch_charts(run)) or ("" if run.status == "finished" else sections.missing(NO_EPOCH))


def _parts_of_search(run: Run) -> list[Part]:
    return [
        ("result", "Result", result(run)),
        ("cells", "Cells", sections.cells(run)),
        ("evidence", "Evidence", evidence(run)),
        ("front", "Front", sections.charts(front_charts(run)) + front_table(run)),
        ("curves", "Curves", _curves(run)),
        ("weights", "Operation weights", sections.charts(weight_charts(run))),
        ("population", "Population", sections.charts(population_charts(run))),
        ("time", "Time", sections.charts(time_charts(run))),
        ("settings", "Settings", sections.settings(run)),
        ("repeat", "Repeat and retrain", sections.recipes(run)),
        ("genotype", "Genotype", sections.genotype(run)),
    ]


def _parts_of_training(run: Run) -> list[Part]:
    return [
        ("result", "Test", training.result(run)),
        ("comparison", "Comparison", training.comparison(run)),
        ("curves", "Curves", _curves(run)),
        ("cells", "Cells", sections.cells(run)),
        ("time", "Time", sections.charts(time_charts(run))),
        ("settings", "Settings", sections.settings(run)),
        ("repeat", "Repeat and use", training.recipes(run)),
        ("genotype", "Genotype", sections.genotype(run)),
    ]


def data_name(data: Record) -> str:
    """``cifar10`` of ``cifar10:/path/to/images``, but ``flowers`` of ``folder:/path/to/flowers``."""
    kind, _, place = str(data.get("spec", "")).partition(":")
    return Path(place).name if kind in ("folder", "npz") and place else kind


def _lead(run: Run, name: str) -> str:
    reason = (run.ending or {}).get("reason") if run.status == "interrupted" else None
    status = f"{'Training' if run.is_training else 'Search'} {run.status}" + (
        f" by {escape(str(reason))}" if reason else ""
    )
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


DASH = "–"


def _tiles(run: Run) -> list[tuple[str, str, str]]:
    """(label, value, smaller text below); a missing value is a dash."""
    planned = f" / {run.planned_epochs}" if run.planned_epochs is not None else ""
    memory = run.peak_memory_mb
    return [
        data_tile(run.data),
        *(_tiles_of_training(run) if run.is_training else _tiles_of_search(run)),
        ("Epochs", f"{len(run.epochs)}{planned}", "done / planned" if planned else "done"),
        ("Time", DASH if run.seconds is None else duration(run.seconds), _pace(run)),
        ("Peak memory", DASH if memory is None else _memory(memory), str(run.environment.get("device", ""))),
        *_network_tiles(run),
    ]


def data_tile(data: Record) -> tuple[str, str, str]:
    """The name of the images, and how many there are."""
    images, classes = data.get("images"), data.get("classes")
    counts = [f"{images:,} images" if is_number(images) else "", f"{len(classes)} classes" if classes else ""]
    return "Data", data_name(data) or DASH, ", ".join(filter(None, counts))


def _tiles_of_search(run: Run) -> list[tuple[str, str, str]]:
    seed = run.option("run", "seed")
    tiles = [("Strategy", run.strategy or DASH, "" if seed is None else f"seed {seed}")]
    if chosen := run.chosen:
        best_of = f"best of {chosen['evaluated']:,}" if is_number(chosen["evaluated"]) else ""
        below = ", ".join(filter(None, (str(chosen.get("by") or ""), best_of)))
        tiles.append(("Chosen architecture", f"{100 * chosen['best_accuracy']:.2f} %", below))
    accuracy, below = DASH, "not measured yet"
    if run.valid_accuracy is not None:
        value, epoch = run.valid_accuracy
        accuracy = f"{100 * value:.2f} %"
        below = f"{validation_images(run)}, {'at the end' if epoch is None else f'after epoch {epoch + 1}'}"
    return [
        *tiles,
        (f"{run.validated.capitalize()}{' accuracy' if run.validated == 'supernet' else ''}", accuracy, below),
    ]


def _tiles_of_training(run: Run) -> list[tuple[str, str, str]]:
    test, seed = training.test_of(run), run.option("run", "seeds")
    top1, top5 = test.get("top1"), test.get("top5")
    below = ["network after training"]
    below += [f"top-5 {100 * top5:.2f} %"] if is_number(top5) and training.has_top5(run.data.get("classes")) else []
    below += [f"seed {seed}"] if seed is not None else []
    shown = f"{100 * top1:.2f} %" if is_number(top1) else DASH
    return [("Test accuracy", shown, ", ".join(below) if is_number(top1) else "not tested yet")]


def _network_tiles(run: Run) -> list[tuple[str, str, str]]:
    layout = [f"space {run.network['space']}"] if run.network.get("space") else []
    layout += [f"{run.network['nodes']} nodes"] if run.network.get("nodes") else []
    tiles = [size_tile("Network" if run.is_training else "Supernet", run.network, layout)]
    for size in derived_networks(run)[-1:]:
        layout = [f"{size.get('channels')} channels", f"{size.get('layers')} cells"]
        tiles.append(size_tile("Network of the cell", size, layout))
    return tiles


def size_tile(label: str, network: Record, layout: Iterable[str] = ()) -> tuple[str, str, str]:
    """Parameters, multiply-adds and `layout` of a network."""
    parameters, macs = network.get("parameters"), network.get("macs")
    work = [f"{macs / 1e6:,.1f} M multiply-adds"] if is_number(macs) else []
    shown = f"{parameters:,}" if is_number(parameters) else DASH
    return label, shown, ", ".join(["parameters", *work, *layout])


def _tile(label: str, value: str, more: str) -> str:
    number, space, unit = escape(value).partition(" ")
    shown = f"{number}<small>{space}{unit}</small>" if number[:1].isdigit() else escape(value)
    below = f'<dd class="more">{escape(more)}</dd>' if more else ""
    return f'<div><dt>{label}</dt><dd class="value">{shown}</dd>{below}</div>'


def duration(seconds: float) -> str:
    """``42.0 s``, ``3 min 05 s``, ``2 h 07 min``."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours} h {minute:02d} min" if hours else f"{minutes} min {second:02d} s"


def _pace(run: Run) -> str:
    return f"{duration(run.seconds / len(run.epochs))} an epoch" if run.seconds and run.epochs else ""


def _memory(mebibytes: float) -> str:
    return f"{mebibytes / 1024:.2f} GiB" if mebibytes >= 1024 else f"{mebibytes:.0f} MiB"
