"""The sections that every page has and that are not charts alone: each function turns a run into escaped HTML."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable, Iterator, Sequence
from html import escape
from typing import Any

from fastnas.genotype import Genotype
from fastnas.nn.derived import AUXILIARY_SIDES
from fastnas.report.cell_graph import KIND_NAMES, draw_cell
from fastnas.report.chart import Chart
from fastnas.report.run import Record, Run
from fastnas.report.tables import key_table, scroll

IN_MEMORY = "memory:"
"""How the names of images begin that a Python program held."""

NO_GENOTYPE = "There is no genotype yet: the first one is written after the first epoch."


def charts(found: Iterable[Chart]) -> str:
    """The charts in a grid; empty where there is none."""
    figures = [
        f"<figure{' class=wide' if chart.is_wide else ''}><figcaption><h3>{escape(chart.title)}</h3>"
        f"{note(chart.note)}</figcaption>{scroll(chart.svg()) if chart.is_wide else chart.svg()}</figure>"
        for chart in found
    ]
    return f'<div class="charts">{"".join(figures)}</div>' if figures else ""


def cells(run: Run) -> str:
    """The cells as graphs."""
    if run.genotype is None:
        return missing(NO_GENOTYPE)
    figures = (
        f"<figure><figcaption><h3>{KIND_NAMES[kind].capitalize()}</h3></figcaption>"
        f"{scroll(draw_cell(run.genotype, kind))}</figure>"
        for kind in run.genotype.kinds
    )
    reading = "A node is the sum of the operations that point to it."
    if run.genotype.inputs == 2:
        reading += " Node i has the number i + 2 in the genotype."
    return note(f"{_origin(run)} {reading}") + f'<div class="cells">{"".join(figures)}</div>'


def _origin(run: Run) -> str:
    final = run.status == "finished" and run.genotype_origin == "genotype.json"
    return f"From {run.genotype_origin}{'' if final else ', not final'}."


def settings(run: Run) -> str:
    """Configuration, environment and data."""
    options = list(flatten(run.config))
    half = (len(options) + 1) // 2
    parts = (_table("Options", options[:half]), _table("Options, continued", options[half:]))
    config = columns(*parts) if options else missing("No options recorded.")
    data = dict(run.data)
    classes = data.pop("classes", None)
    if isinstance(size := data.get("image_size"), list):
        data["image_size"] = " × ".join(map(str, size))
    if isinstance(changes := data.get("augmentation"), dict):
        asked = [f"{name.replace('_', ' ')} {plain(value)}" for name, value in changes.items() if _is_on(value)]
        data["augmentation"] = "; ".join(asked) or "none"
    rows = [(key.replace("_", " "), plain(value)) for key, value in data.items() if value != []]
    if isinstance(classes, list):
        rows.insert(2, ("classes", f"{len(classes)}: {', '.join(map(str, classes))}"))
    environment = [(key.replace("_", " "), plain(value)) for key, value in run.environment.items()]
    return f"<details open><summary>Options ({len(options)})</summary>{config}</details>" + columns(
        f"<h3>Environment</h3>{_table('Environment', environment)}", f"<h3>Data</h3>{_table('Data', rows)}"
    )


def columns(left: str, right: str) -> str:
    """Side by side where there is room."""
    return f'<div class="columns"><div>{left}</div><div>{right}</div></div>'


def recipes(run: Run) -> str:
    """The commands that repeat the run and that train its genotype."""
    repeat = code(typed(run.command)) if run.command else missing("The run's command was not recorded.")
    parts = [("Repeat this run", "The command that started it.", repeat)]
    path = run.path / "genotype.json"
    if run.genotype is None or run.genotype_origin != path.name:
        retrain = missing("genotype.json is not there yet; the commands that use it appear with it.")
        parts.append(("Train this genotype", "", retrain))
    elif isinstance(run.genotype, Genotype):
        command = ["python", "-m", "fastnas.train", "--from", str(run.path)]
        if str(run.option("data", "data")).startswith(IN_MEMORY):
            command = [f"fastnas.api.train({str(run.path)!r}, data)"]
        remark = "On the images of the search, by the recipe that belongs to its strategy."
        parts.append(("Train this genotype", remark, code(typed(command))))
        parts.append(("Use it in Python", "", code(_snippet(run, str(path)), wrap=False)))
    else:
        parts.append(("Use it in Python", "", code(_nb201_snippet(run, str(path)), wrap=False)))
    return "".join(f'<div class="recipe"><h3>{title}</h3>{note(remark)}{body}</div>' for title, remark, body in parts)


def _snippet(run: Run, path: str) -> str:
    classes, channels, size = (run.data.get(key) for key in ("classes", "channels", "image_size"))
    stem = "imagenet" if run.option("network", "stem") == "imagenet" else "cifar"
    arguments = [f"num_classes={len(classes)}"] if isinstance(classes, list) else []
    arguments += [f"in_channels={channels}"] if isinstance(channels, int) else []
    arguments += [f"stem={stem!r}"] if stem != "cifar" else []
    if isinstance(size, list) and not all(side in AUXILIARY_SIDES[stem] for side in size):
        arguments.append("auxiliary=False")
    return (
        "from fastnas import Genotype\n"
        "from fastnas.nn import DerivedNetwork\n\n"
        f"genotype = Genotype.from_json({path!r})\n"
        f"network = DerivedNetwork({', '.join(['genotype', *arguments])})"
    )


def _nb201_snippet(run: Run, path: str) -> str:
    classes, channels = (run.data.get(key) for key in ("classes", "channels"))
    arguments = [f"num_classes={len(classes)}"] if isinstance(classes, list) else []
    arguments += [f"in_channels={channels}"] if isinstance(channels, int) else []
    return (
        "from fastnas.nn import NB201Network\n"
        "from fastnas.spaces.nb201 import NB201Genotype\n\n"
        f"genotype = NB201Genotype.from_json({path!r})  # {run.genotype}\n"
        f"network = NB201Network({', '.join(['genotype', *arguments])})"
    )


def genotype(run: Run) -> str:
    """The genotype as JSON text; empty where there is none."""
    if run.genotype is None:
        return ""
    return note(_origin(run)) + code(run.genotype.to_text(), wrap=False)


def flatten(options: Record, prefix: str = "") -> Iterator[tuple[str, str]]:
    """``data: {batch_size: 64}`` as ``data.batch_size``, the way the command line spells it."""
    for key, value in options.items():
        if isinstance(value, dict) and value:
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", plain(value)


def _is_on(value: Any) -> bool:
    return any(value) if isinstance(value, list) else bool(value)


def plain(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(plain, value))
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def _table(caption: str, rows: Iterable[tuple[str, str]]) -> str:
    return key_table(caption, rows) or missing("Not recorded yet.")


def typed(command: Sequence[str]) -> str:
    """The words of a command as a shell takes them; a single one is a call in Python."""
    return command[0] if len(command) == 1 else shlex.join(command)


def code(text: str, wrap: bool = True) -> str:
    """A block that a script adds a copy button to. A long command wraps on the screen only, never in the copy."""
    return f'<div class="copy"><pre{" class=wrap" if wrap else ""}><code>{escape(text)}</code></pre></div>'


def note(text: str) -> str:
    return f'<p class="note">{escape(text)}</p>' if text else ""


def missing(text: str) -> str:
    return f'<p class="missing">{escape(text)}</p>'
