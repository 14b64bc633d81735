"""What a search has found: whose accuracy each number is, and how large the networks are."""

from __future__ import annotations

from collections.abc import Sequence

from fastnas.report.run import Record, Run, is_number, mapping
from fastnas.report.sections import note
from fastnas.report.tables import data_table

DASH = "–"


def derived_networks(run: Run) -> Sequence[Record]:
    """Sizes of networks of the found cell: channels, layers, parameters, macs; the one to train last."""
    found = (run.ending or {}).get("derived")
    return [mapping(record) for record in found] if isinstance(found, list) else []


def validation_images(run: Run) -> str:
    """On which images a search validates, in words."""
    images = run.data.get("alpha_images")
    augmented = ", augmented" if run.data.get("validation_augment") else ""
    folder = run.data.get("alpha_folder")
    return (
        (f"folder {folder}" if folder else "validation half")
        + (f", {images:,} images" if is_number(images) else "")
        + augmented
    )


def result(run: Run) -> str:
    """A row for every network whose accuracy or size is known; empty where nothing is."""
    rows, chosen = [], run.chosen
    accuracy = None if run.valid_accuracy is None else run.valid_accuracy[0]
    supernet = run.validated == "supernet"
    if accuracy is not None or run.network:
        measured = (_percent(accuracy), validation_images(run)) if supernet else (DASH, "")
        rows.append(("supernet, all candidates", measured[0], *_size(run.network), measured[1]))
    if chosen:
        by = str(chosen.get("by") or "the strategy's evaluator")
        scored = _percent(chosen["best_accuracy"])
        rows.append(("chosen architecture, as the strategy scored it", scored, DASH, DASH, by))
    if accuracy is not None and not supernet:
        rows.append(("found cell by shared weights", _percent(accuracy), DASH, DASH, validation_images(run)))
    for size in derived_networks(run):
        name = f"network of the cell, {size.get('channels')} channels, {size.get('layers')} cells"
        rows.append((name, DASH, *_size(size), "not trained"))
    if not rows:
        return ""
    head = ("network", "accuracy (%)", "parameters", "multiply-adds (M)", "measured on")
    remark = (
        "In the supernet all candidates compute, weighted by softmax(α): its accuracy is not that of the cell's "
        "network, which is known only after training."
        if supernet
        else "Accuracies by shared weights rank architectures; that of the network is known only after training."
    )
    return note(remark) + data_table(head, rows, numbers=3, caption="Accuracies and sizes of the networks")


def _percent(share: object) -> str:
    return f"{100 * share:.2f}" if is_number(share) else DASH


def _size(network: Record) -> tuple[str, str]:
    parameters, macs = network.get("parameters"), network.get("macs")
    return (
        f"{parameters:,}" if is_number(parameters) else DASH,
        f"{macs / 1e6:,.1f}" if is_number(macs) else DASH,
    )
