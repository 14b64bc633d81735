"""The page of an evaluation: accuracy, classes, confusions, size and speed of a trained network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from fastnas.report.page import DASH, data_name, data_tile, fill, size_tile, write_page
from fastnas.report.run import is_number, mapping
from fastnas.report.sections import code, columns, note, typed
from fastnas.report.tables import data_table, key_table
from fastnas.report.training import classes_of, has_top5

PAGE = "evaluation.html"


def write_evaluation(result: Mapping[str, Any], path: Path, command: Sequence[str]) -> Path:
    """Writes the page of what `fastnas.evaluate` has measured and returns its path.

    Args:
        result: as ``--json`` writes it, with "data", "split", "classes" and "evaluation".
        path: of the page.
        command: that measured it.

    Raises:
        UserError: the page cannot be written.
    """
    return write_page(path.parent, _render(result, command), path.name)


def _render(result: Mapping[str, Any], command: Sequence[str]) -> str:
    test, classes = mapping(result["evaluation"]), list(result["classes"])
    split = f"{result['split']} images"
    data = {"spec": result["data"], "images": test.get("images"), "classes": classes}
    network = Path(str(result["network"])).resolve()
    folder = network if network.is_dir() else network.parent
    seed = folder.name.removeprefix("seed-").isdigit() and folder.name.startswith("seed-")
    name = f"{folder.parent.name}, {folder.name.replace('-', ' ')}," if seed else folder.name
    heading = f"Evaluation of {name} on {data_name(data)}, {split}"
    _, images, counts = data_tile(data)
    tiles = [
        ("Data", images, f"{result['split']} split, {counts}"),
        ("Accuracy", f"{100 * test['top1']:.2f} %", f"network after training, {split}"),
        *([("Top-5 accuracy", f"{100 * test['top5']:.2f} %", "among the five likeliest")] if has_top5(classes) else []),
        ("Loss", f"{test['loss']:.4f}", "mean cross-entropy in nats"),
        size_tile("Network", dict(result)),
        *_latency_tile(result),
        ("Peak memory", _memory(result.get("peak_memory_mb")), "whole process"),
    ]
    size = " × ".join(map(str, result["image_size"][1:]))
    settings = [("network", str(result["network"])), ("images", str(result["data"])), ("split", str(result["split"])),
                ("image size", size), ("backend", str(result["backend"]))]  # fmt: skip
    environment = [(key.replace("_", " "), str(value)) for key, value in mapping(result["environment"]).items()]
    parts = [
        ("classes", "Classes", classes_of(test, [str(name) for name in classes])),
        ("latency", "Latency", _latency(result)),
        ("settings", "Settings", columns(key_table("Settings", settings), key_table("Environment", environment))),
        ("repeat", "Repeat", note("The command that measured this and wrote the page.") + code(typed(command))),
    ]
    lead = f"{escape(str(network))} · {escape(str(mapping(result['environment']).get('device', '')))}"
    return fill(heading, heading, lead, tiles, parts, again="python -m fastnas.evaluate")


def _latency_tile(result: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    found = result.get("latency") or []
    return [("Latency", f"{1000 * found[0]['median']:.2f} ms", f"median, batch {found[0]['batch']}")] if found else []


def _latency(result: Mapping[str, Any]) -> str:
    """Empty where it was not measured."""
    rows = [
        (str(each["batch"]), f"{1000 * each['median']:.2f}", f"{1000 * each['p95']:.2f}", str(each["runs"]))
        for each in result.get("latency") or []
    ]
    head = ("images in a batch", "median (ms)", "95th percentile (ms)", "timed runs")
    return data_table(head, rows, numbers=3, caption="Latency of a forward pass") if rows else ""


def _memory(mebibytes: object) -> str:
    return f"{mebibytes:.0f} MiB" if is_number(mebibytes) else DASH
