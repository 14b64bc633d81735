"""What a search is worth: its cell beside random ones, the derivation gap, how far α has decided, what cells hold."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from matplotlib.ticker import MaxNLocator

from fastnas.report.cell_graph import KIND_NAMES
from fastnas.report.chart import FONT_SIZE, Chart, colour
from fastnas.report.curves import Curve, line_chart
from fastnas.report.run import Record, Run, is_number, mapping
from fastnas.report.sections import charts, note
from fastnas.report.tables import data_table

BARS = 25
NAMES: Mapping[str, str] = {str(kind): name for kind, name in KIND_NAMES.items()}


def evidence_words(record: Record) -> tuple[list[str], list[str]]:
    """At most two lines that say in plain words what an "evidence" event holds, and lines of warnings."""
    first = []
    if comparison := _comparison(record):
        first.append(_rank(comparison))
    alpha = mapping(record.get("alpha"))
    if is_number(alpha.get("decided")) and is_number(alpha.get("choices")):
        verb = "is" if alpha["decided"] == 1 else "are"
        first.append(f"{alpha['decided']} of {alpha['choices']} choices {verb} decided")
    said = ["; ".join(first)] if first else []
    if gap := _gap(record):
        said.append(
            f"derivation gap {100 * (gap[0] - gap[1]):.1f} points: supernet {100 * gap[0]:.1f} %, its cell "
            f"{100 * gap[1]:.1f} %, same weights and images"
        )
    return said, list(_warnings(record))


def evidence(run: Run) -> str:
    """The section; empty where the search has recorded none."""
    if not run.evidence:
        return ""
    said, warned = evidence_words(run.evidence)
    lines = [f"{line[0].upper()}{line[1:]}." for line in [*said, *warned]]
    return (
        note(" ".join(lines))
        + charts([*_comparison_charts(run), *_derivation_charts(run)])
        + "<h3>Cells and choices</h3>"
        + note(
            "A choice (of a candidate, one for each edge) is decided if its lead over the runner-up is larger than "
            "chance would make it: had each epoch moved the weights as far, but forwards or backwards by chance, at "
            "most 1 in 20 such leads would be as large. So about 5 % of the choices of an α that moves without "
            "direction are decided. Entropy: the mean over the edges; at its largest, all candidates weigh the same."
            if mapping(run.evidence.get("alpha"))
            else ""
        )
        + _table(run)
    )


def _comparison(record: Record) -> Record:
    """The comparison with random cells; empty unless all that is shown of it is there."""
    found = mapping(record.get("comparison"))
    numbers = all(is_number(found.get(name)) for name in ("accuracy", "better_than", "equal", "images"))
    random = found.get("random")
    return found if numbers and isinstance(random, list) and random and all(map(is_number, random)) else {}


def _gap(record: Record) -> tuple[float, float] | None:
    """Accuracies of the supernet and of its cell."""
    found = mapping(record.get("derivation"))
    supernet, cell = found.get("supernet"), found.get("cell")
    return (float(supernet), float(cell)) if is_number(supernet) and is_number(cell) else None


def _rank(comparison: Record) -> str:
    equal = f" and as good as {comparison['equal']}" if comparison["equal"] else ""
    return (
        f"better than {comparison['better_than']}{equal} of {len(comparison['random'])} random cells of its size "
        f"(shared weights, {comparison['images']:,} images)"
    )


def _warnings(record: Record) -> Iterator[str]:
    for kind, cell in mapping(record.get("cells")).items():
        if mapping(cell).get("many_skips"):
            yield (
                f"the {NAMES.get(kind, kind)} has {cell['skips']} skip connections; P-DARTS and DARTS+ allow 2, as "
                "more are a sign of a search that has collapsed"
            )


def _comparison_charts(run: Run) -> Iterator[Chart]:
    comparison = _comparison(run.evidence)
    if not comparison:
        return
    random = np.array([100 * value for value in comparison["random"]])  # [n]
    found, images = 100 * comparison["accuracy"], comparison["images"]
    chart = Chart("evidence", "The found cell beside random ones", margins=(40.0, 12.0, 32.0, 34.0))
    chart.note = (
        f"Accuracy by the shared weights of the supernet, not retrained, of all on the same {images:,} images of the "
        f"validation half{_of_all(comparison)}. {_sizes(comparison)} The standard error of one accuracy is at most "
        f"{50 / math.sqrt(images):.1f} points."
    )
    low, high = min(random.min(), found), max(random.max(), found)
    step = max((high - low) / BARS, 100 / images)  # accuracies are multiples of one image
    edges = np.arange(low - step / 2, high + 1.5 * step, step)
    counts, edges = np.histogram(random, edges)
    chart.axes.stairs(counts, edges, fill=True, color=colour("accent"), alpha=0.55, linewidth=0)
    chart.axes.axvline(found, color=colour("contrast"), linewidth=1.8)
    chart.axes.set_xlim(edges[0] - step / 2, edges[-1] + step / 2)
    chart.axes.set_ylim(0, max(counts) * 1.18)
    chart.label("accuracy (%)", "random cells")
    chart.grid()
    chart.ticks(MaxNLocator(8, steps=(1, 2, 2.5, 5, 10)), MaxNLocator(5, integer=True, min_n_ticks=1))
    left = found > (edges[0] + edges[-1]) / 2
    chart.axes.annotate(
        f"found cell {found:.1f} %", (found, 1), (-5 if left else 5, -3), xycoords=("data", "axes fraction"),
        textcoords="offset points", ha="right" if left else "left", va="top", color=colour("contrast"),
        fontsize=FONT_SIZE, weight="bold",
    )  # fmt: skip
    for count, start, end in zip(counts, edges, edges[1:], strict=False):
        chart.hover((start, end), (0, max(counts) * 1.18), f"{start:.1f} to {end:.1f} %\n{count} random cells")
    yield chart


def _of_all(comparison: Record) -> str:
    total = comparison.get("of_images")
    return f", which has {total:,}" if is_number(total) and total > comparison["images"] else ""


def _sizes(comparison: Record) -> str:
    """How the random cells were chosen."""
    own, others, drawn = (comparison.get(name) for name in ("parameters", "random_parameters", "drawn"))
    if not is_number(own) or not is_number(drawn) or not (isinstance(others, list) and all(map(is_number, others))):
        return ""
    span = f"{others[0]:,} to {others[-1]:,}" if others[0] != others[-1] else f"{others[0]:,}"
    return (
        f"The random cells are the {len(comparison['random'])} of {drawn:,} whose operations are nearest in size: "
        f"{span} parameters, the found cell {own:,}."
    )


def _derivation_charts(run: Run) -> Iterator[Chart]:
    """The accuracies whose difference is the derivation gap, over the epochs."""
    curves = []
    for name, label, tint in (("supernet", "supernet", "ink-soft"), ("cell", "its cell", "accent")):
        values = [(epoch["epoch"] + 1, mapping(epoch.get("derivation")).get(name)) for epoch in run.epochs]
        points = [(float(epoch), 100 * float(value)) for epoch, value in values if is_number(value)]
        curves.append(Curve(label, tint, points))
    if chart := line_chart("derivation", "Derivation gap", "accuracy (%)", curves, "{:.1f} %"):
        chart.note = (
            "The supernet, weighted by α, and the cell derived from it, by the same weights and not retrained, on the "
            "first images of the validation half. The distance of the curves is what is lost by deciding for "
            "operations."
        )
        yield chart


def _table(run: Run) -> str:
    """What each kind of cell holds, and how far its α has decided."""
    cells, alpha = mapping(run.evidence.get("cells")), mapping(run.evidence.get("alpha"))
    kinds = mapping(alpha.get("kinds"))
    head = ["cell", "operations", "skip connections"]
    head += ["decided choices", "entropy (nats)"] if kinds else []
    rows: list[tuple[Any, ...]] = []
    for kind, cell in cells.items():
        held = mapping(mapping(cell).get("operations"))
        row = [NAMES.get(kind, kind), ", ".join(f"{count} × {name}" for name, count in held.items())]
        row.append(str(mapping(cell).get("skips", "")))
        if kinds:
            of_kind = mapping(kinds.get(kind))
            row.append(f"{of_kind.get('decided')} of {of_kind.get('choices')}" if of_kind else "")
            row.append(_entropy(of_kind))
        rows.append(tuple(row))
    return data_table(tuple(head), rows, numbers=0, caption="What the cells hold") if rows else ""


def _entropy(of_kind: Record) -> str:
    value, largest = of_kind.get("entropy"), of_kind.get("uniform")
    return f"{value:.3f} of {largest:.3f}" if is_number(value) and is_number(largest) else ""
