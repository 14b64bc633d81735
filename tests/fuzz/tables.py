"""Tables: NAS-Bench-201 as CSV, and the runs of a comparison."""

from __future__ import annotations

import csv
import gzip
import io
import json
import math
from functools import cache
from typing import Any

import numpy as np
from fuzz.cases import Case, command, outcome, run_kind
from fuzz.mutations import NUMBERS, change_bytes, change_tree, values

from fastnas.evaluators.nb201 import COSTS, NB201
from fastnas.report.__main__ import main as report
from fastnas.spaces.encoding import encoding_of
from fastnas.spaces.nb201 import CANDIDATES, SPACE, NB201Genotype

COLUMNS = ["arch", "valid_acc_12_epochs", "test_acc_200_epochs_mean", "train_s_per_epoch", *COSTS.values()]
WORDS = ["", "x", "nan", "inf", "-1", "1e400", "101", "0", "1_0", " 50 ", "0x10", "٣", "50,5", "100"]


@cache
def _rows() -> list[list[str]]:
    generator = np.random.default_rng(0)
    numbers = generator.uniform(1, 90, (len(CANDIDATES) ** 6, 6)).round(3)
    encoding = encoding_of(SPACE)
    cells = [[]]  # type: ignore[var-annotated]
    for _ in range(6):
        cells = [[*cell, value] for cell in cells for value in range(len(CANDIDATES))]
    return [[str(encoding.decode(tuple(cell))), *map(str, row)] for cell, row in zip(cells, numbers, strict=True)]


def one(case: Case) -> str:
    return _table(case) if case.chance(0.5) else _comparison(case)


def _table(case: Case) -> str:
    rng = case.rng
    header, rows = list(COLUMNS), [list(row) for row in _rows()]
    usual = False
    # Mostly near the beginning, for a table of 15,625 rows takes half a second.
    place = rng.choice([0, 0, 0, 1, 2, 30, len(rows) - 1])
    match rng.randrange(8):
        case 0:
            rows[place][rng.randrange(7)] = rng.choice(WORDS)
        case 1:
            rows[place][rng.randrange(1, 7)] = str(rng.choice(NUMBERS))
        case 2:
            rows.insert(rng.choice([0, 1, 5]), list(rows[place]))
        case 3:
            del rows[place]
        case 4:
            header[rng.randrange(7)] = rng.choice(["x", "arch", "mflops", ""])
        case 5:
            rows[place] = rng.choice([[], rows[place][:-1], [*rows[place], "1"], ["a"] * 7])
        case 6:
            usual = True
            rng.shuffle(rows)
            order = rng.sample(range(7), 7)
            header, rows = [header[i] for i in order], [[row[i] for i in order] for row in rows]
        case _:
            pass
    file = io.StringIO()
    csv.writer(file, lineterminator=rng.choice(["\n", "\r\n"])).writerows([header, *rows])
    content = file.getvalue().encode()
    if not usual and case.chance(0.4):
        content = change_bytes(rng, content[: rng.choice([500, 3000])]) + content[3000:]
    path = case.folder / "table.csv"
    if case.chance(0.3):
        path, content = case.folder / "table.csv.gz", gzip.compress(content, 1)
        if not usual and case.chance(0.5):
            content = change_bytes(rng, content)
    path.write_bytes(content)
    case.given = repr(content[:3000])
    text = content.decode("utf-8", "replace") if path.suffix == ".csv" else ""

    def check(table: NB201) -> None:
        codes = [table.encoding.sample(rng) for _ in range(20)]
        for code, found in zip(codes, table.evaluate(codes), strict=True):
            assert 0 <= found.accuracy <= 1
            assert found.seconds > 0
            assert all(map(math.isfinite, found.costs.values()))
            assert 0 <= table.judge(code) <= 1
            cell = table.encoding.decode(code)
            assert isinstance(cell, NB201Genotype)
            assert not text or text.count(str(cell)) == 1

    if usual:
        check(NB201(path))
        return "result"
    return outcome(lambda: NB201(path), check)


@cache
def _records() -> tuple[dict[str, Any], list[dict[str, Any]]]:
    options = {"clock": "simulated", "evaluator": "nb201:t.csv", "budget": 100.0}
    runs = [
        {
            "strategy": strategy, "seed": seed, "evaluations": 12, "seconds": 90.5, "accuracy": 0.5, "judged": 0.7,
            "genotype": NB201Genotype(("none",) * 6).to_dict(), "curve": [[5.0, 0.25, 0.5], [60.0, 0.5, 0.7]],
        }
        for strategy in ("random", "enas") for seed in range(3)
    ]  # fmt: skip
    return options, runs


def _comparison(case: Case) -> str:
    rng = case.rng
    options, runs = _records()
    content = {
        "comparison.json": json.dumps(options).encode(),
        "runs.jsonl": "".join(json.dumps(run) + "\n" for run in runs).encode(),
    }
    name = rng.choice(["comparison.json", "runs.jsonl", "runs.jsonl"])
    match rng.randrange(4):
        case 0:
            content[name] = change_bytes(rng, content[name])
        case 1:
            content["comparison.json"] = json.dumps(change_tree(rng, options, case.draw(values))).encode()
        case 2:
            changed = [change_tree(rng, runs[0], case.draw(values)), *runs[1:]]
            content["runs.jsonl"] = "".join(json.dumps(run) + "\n" for run in changed).encode()
        case 3:
            content.pop(name)
    for each, text in content.items():
        (case.folder / each).write_bytes(text)
    case.given = repr(content)
    status, _ = command(report, [str(case.folder)])
    if status == 0:
        assert (case.folder / "report.html").stat().st_size > 1000
    return "refused" if status else "result"


def run(deadline: float, seed: int) -> dict[str, int]:
    """See `fuzz.cases.run_kind`."""
    return run_kind(one, deadline, seed)
