"""The sections that only the page of a retraining has: the test, and a comparison with published networks."""

from __future__ import annotations

import json
from collections.abc import Sequence
from html import escape
from pathlib import Path

from fastnas.engine.evaluation import pairs_of
from fastnas.genotype import Genotype
from fastnas.report.run import Record, Run, is_number, mapping
from fastnas.report.sections import IN_MEMORY, code, missing, note, typed
from fastnas.report.tables import data_table, scroll

RESULTS = Path(__file__).parents[1] / "published_results.json"
MOST_CELLS = 20  # classes that a confusion matrix is drawn for
MOST_CONFUSED = 12  # pairs that are listed
CIFAR10 = {"airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"}
DASH = "–"

Pairs = dict[tuple[int, int], int]


def test_of(run: Run) -> Record:
    """The test that the end of the run recorded, empty where there is none."""
    return mapping((run.ending or {}).get("test"))


def genotype_name(run: Run) -> str:
    """The name of a published genotype, or that of the file without its ending; of a run's genotype.json the run's."""
    path = Path(str(run.network.get("genotype", "")))
    return path.parent.name if path.name == "genotype.json" and path.parent.name else path.stem


def has_top5(classes: object) -> bool:
    """Whether the five likeliest of these classes say anything."""
    return isinstance(classes, list) and len(classes) > 5


def result(run: Run) -> str:
    """Which weights were tested on what, each class, and which classes are confused."""
    test, classes = test_of(run), run.data.get("classes")
    if not test:
        reason = "there were no test images" if run.status == "finished" else "the test comes once, at the end"
        return missing(f"No test accuracy: {reason}.")
    names = [str(name) for name in classes] if isinstance(classes, list) else []
    return note(_selection(run)) + classes_of(test, names)


def classes_of(test: Record, names: Sequence[str]) -> str:
    """The accuracy of each class, and which classes are taken for which."""
    pairs = _pairs(test.get("confusion"), len(names))
    return "" if pairs is None else _per_class(test, names, pairs) + _confusion(pairs, names)


def _pairs(confusion: object, classes: int) -> Pairs | None:
    """What was taken for what, as (class, prediction): images; None where the run has not recorded it as it should."""
    if isinstance(confusion, list) and not (
        len(confusion) == classes and all(isinstance(row, list) and len(row) == classes for row in confusion)
    ):
        return None
    try:
        pairs = {(k, j): count for k, j, count in pairs_of(confusion)}  # type: ignore[arg-type]
        valid = all(0 <= k < classes and 0 <= j < classes and count > 0 for (k, j), count in pairs.items())
    except (KeyError, TypeError, ValueError):
        return None
    return pairs if valid else None


def _images_of(pairs: Pairs, classes: int) -> list[int]:
    """Images of each class."""
    counts = [0] * classes
    for (k, _), count in pairs.items():
        counts[k] += count
    return counts


def _selection(run: Run) -> str:
    ending = run.ending or {}
    epoch, select = ending.get("selected_epoch"), ending.get("selected")
    which = f"The weights of epoch {epoch + 1}" if is_number(epoch) else "The last weights"
    averaged = " (averaged over the steps)" if ending.get("averaged") else ""
    how = {
        "last": "the last one. The test images were read once, after the training.",
        "best_valid": "the best on the held-out images. The test images were read once, after the training.",
        "best_test": "the best on the TEST images, which were read after every evaluated epoch: this accuracy is too "
        "high as an estimate for new images.",
    }.get(str(select), "")
    return f"{which}{averaged}, {how}"


def _per_class(test: Record, names: Sequence[str], pairs: Pairs) -> str:
    shares, counts = test.get("per_class"), _images_of(pairs, len(names))
    if not isinstance(shares, list) or len(shares) != len(names):
        return ""
    order = sorted(range(len(names)), key=lambda k: -1.0 if shares[k] is None else shares[k])
    rows = []
    for k in order:
        share = shares[k]
        bar = "" if share is None else f'<span class="bar" style="width:{100 * share:.1f}%"></span>'
        shown = DASH if share is None else f"{100 * share:.1f} %"
        rows.append(
            f'<tr><th scope="row">{escape(names[k])}</th><td class="number">{shown}</td>'
            f'<td class="track">{bar}</td><td class="number">{counts[k]:,}</td></tr>'
        )
    head = (
        '<tr><th scope="col">class</th><th scope="col" class="number">accuracy</th><td></td>'
        '<th scope="col" class="number">images</th></tr>'
    )
    caption = "<caption>Accuracy and number of images of each class</caption>"
    table = scroll(f'<table class="data">{caption}<thead>{head}</thead><tbody>{"".join(rows)}</tbody></table>')
    opened = " open" if len(names) <= MOST_CELLS else ""
    return f"<details{opened}><summary>Classes, the hardest first ({len(names)})</summary>{table}</details>"


def _confusion(pairs: Pairs, names: Sequence[str]) -> str:
    counts = _images_of(pairs, len(names))
    if len(names) > MOST_CELLS:
        return _most_confused(pairs, counts, names)
    head = "".join(f'<th scope="col"><span>{escape(name)}</span></th>' for name in names)
    rows = []
    for k, images in enumerate(counts):
        total, row = images or 1, [pairs.get((k, j), 0) for j in range(len(names))]
        cells = "".join(
            f'<td class="{"hit" if j == k else "miss"}" style="--share:{100 * count / total:.0f}%" '
            f'title="{escape(names[k])} taken for {escape(names[j])}: {count} of {total}">{count or ""}</td>'
            for j, count in enumerate(row)
        )
        rows.append(f'<tr><th scope="row">{escape(names[k])}</th>{cells}</tr>')
    return (
        "<h3 class=spaced>Confusion matrix</h3>"
        + note("Rows: the true class; columns: the predicted class. Numbers are images.")
        + scroll(
            '<table class="confusion"><caption>Images of each true class (rows) by predicted class</caption>'
            f"<thead><tr><td></td>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"
        )
    )


def _most_confused(pairs: Pairs, counts: Sequence[int], names: Sequence[str]) -> str:
    wrong = sorted(((k, j) for k, j in pairs if j != k), key=lambda pair: -pairs[pair])
    rows = [(names[k], names[j], f"{pairs[k, j]} of {counts[k]}") for k, j in wrong[:MOST_CONFUSED]]
    return "<h3 class=spaced>Most confused</h3>" + data_table(("class", "taken for", "images"), rows, numbers=1)


def comparison(run: Run, error: str | None = None) -> str:
    """This network among published ones, whose numbers are marked as such; empty where none is known for the images.

    error: in %, None for that of the run."""
    test, data = test_of(run), data_set(run)
    if error is None:
        error = f"{100 * (1 - test['top1']):.2f}" if is_number(test.get("top1")) else DASH
    size = [
        f"{value / 1e6:.{2 if value >= 1e6 else 4}f}" if is_number(value) else DASH
        for value in (run.network.get("parameters"), run.network.get("macs"))
    ]
    epochs = str(run.planned_epochs or DASH)
    caption = "This network among published ones"
    rows = [("<strong>this network</strong>", f"<strong>{error}</strong>", *size, epochs, "measured here")]
    known: list[Record] = json.loads(RESULTS.read_text(encoding="utf-8"))
    listed = sorted((row for row in known if row["data"] == data), key=lambda row: row["error"])
    for row in listed:
        same = run.genotype is not None and Genotype.published(row["genotype"]) == run.genotype
        name = escape(row["genotype"]) + (" (the same genotype)" if same else "")
        deviation = f" ± {row['std']:.2f}" if "std" in row else ""
        sizes = [f"{row[key]:g}" if key in row else DASH for key in ("parameters_m", "macs_m")]
        source = f'<span class="published">published</span> {escape(row["source"])}'
        rows.append((name, f"{row['error']:.2f}{deviation}", *sizes, "", source))
    head = ("network", "test error (%)", "parameters (M)", "MACs (M)", "epochs", "source")
    if not listed:
        return ""
    remark = (
        "Published numbers are what the papers report, for larger networks (36 or 48 channels, 20 or 14 cells) and "
        "hundreds of epochs. They are comparable with this network only if its size and number of epochs are the same."
    )
    return note(remark) + data_table(head, rows, numbers=4, markup=True, caption=caption)


def data_set(run: Run) -> str | None:
    """cifar10, cifar100 or imagenet, by the spec or by the classes; None for other images."""
    kind = str(run.data.get("spec", "")).partition(":")[0]
    classes = run.data.get("classes")
    names = {str(name) for name in classes} if isinstance(classes, list) else set()
    if kind in ("cifar10", "cifar100"):
        return kind
    if names == CIFAR10:
        return "cifar10"
    return "imagenet" if len(names) == 1000 else None


def recipes(run: Run) -> str:
    """The commands that repeat, evaluate and export."""
    parts = [("Repeat this training", "The command that started it.", _command(run))]
    network = run.path / "network.json"
    if not network.is_file():
        parts.append(("Use the network", "", missing("network.json is not there yet: it is written at the end.")))
    else:
        spec = str(run.data.get("spec") or "SPEC")
        python = f"from fastnas.nn import DerivedNetwork\n\nnetwork = DerivedNetwork.load({str(network)!r})"
        evaluate = ["python", "-m", "fastnas.evaluate", str(run.path), "--data", spec]
        if spec.startswith(IN_MEMORY):
            evaluate = [f"fastnas.api.evaluate({str(run.path)!r}, data)"]
        export = ["python", "-m", "fastnas.export", str(run.path), "--onnx", "network.onnx"]
        parts += [("Evaluate it", "", code(typed(evaluate))), ("Export it", "", code(typed(export)))]
        parts.append(("Use it in Python", "", code(python, wrap=False)))
    return "".join(_recipe(*part) for part in parts)


def repeat_all(run: Run) -> str:
    """The command that trains all seeds."""
    return _recipe("Repeat these trainings", "The command that started them.", _command(run))


def _command(run: Run) -> str:
    return code(typed(run.command)) if run.command else missing("The run's command was not recorded.")


def _recipe(title: str, text: str, body: str) -> str:
    return f'<div class="recipe"><h3>{title}</h3>{note(text)}{body}</div>'
