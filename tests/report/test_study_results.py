"""What is read from the directory of a study: statuses, numbers, means, and study.csv."""

from __future__ import annotations

import csv
import json
import math
import os
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
from report_study_directory import CELL, StudyDirectory

from fastnas.errors import UserError
from fastnas.report.study_results import COLUMNS, Statistic, read_study, write_csv
from fastnas.report.study_unit import SILENCE, UnitResult

EVIL = "<img src=x>&'"
EVIDENCE = {
    "event": "evidence", "derivation": {"supernet": 0.75, "cell": 0.5},
    "comparison": {"accuracy": 0.5, "better_than": 1, "equal": 0, "images": 64, "random": [0.25, 0.5],
        "percentile": 75.0,
    },
}  # fmt: skip


def add_event(folder: Path, event: dict[str, Any], before_end: bool = False) -> None:
    path = folder / "metrics.jsonl"
    lines = path.read_text().splitlines()
    lines.insert(len(lines) - before_end, json.dumps(event))
    path.write_text("\n".join(lines) + "\n")


def units_of(study: StudyDirectory) -> dict[str, UnitResult]:
    return {unit.id: unit for unit in read_study(study.path).units}


def test_every_unit_has_the_status_that_its_files_say(tmp_path: Path) -> None:
    names = ["finished", "left", "claimed", "claimed-anew", "resumed", "failed", "failed-late", "waiting", "unstarted"]
    study = StudyDirectory(tmp_path / "s", {"option": names}, seeds=(0,))

    def unit(name: str) -> str:
        return f"option-{name}/seed-0/search"

    study.search(unit("finished"), [0.1, 0.5])
    study.claim(unit("finished"))  # of a worker that is about to remove it
    study.search(unit("left"), [0.1], ended=False)
    study.claim(unit("claimed"))
    study.fail(unit("claimed-anew"), "of before")
    study.claim(unit("claimed-anew"))
    study.search(unit("resumed"), [0.1, 0.2], ended=False)
    study.claim(unit("resumed"))
    study.fail(unit("failed"), "out of memory", 7.5)
    study.search(unit("failed-late"), [0.1], ended=False)
    study.fail(unit("failed-late"), "NaN")
    study.folder(unit("unstarted")).mkdir(parents=True)
    units = units_of(study)
    assert {name: units[unit(name)].status for name in names} == {
        "finished": "finished", "left": "interrupted", "claimed": "running", "claimed-anew": "running",
        "resumed": "running", "failed": "failed", "failed-late": "failed", "waiting": "waiting", "unstarted": "waiting",
    }  # fmt: skip
    assert (units[unit("failed")].error, units[unit("failed")].failed_after) == ("out of memory", 7.5)
    assert (units[unit("resumed")].epochs, units[unit("resumed")].planned_epochs) == (2, 4)
    results = read_study(study.path)
    assert (results.count("running"), results.is_finished) == (3, False)


def test_a_claim_without_a_sign_of_life_is_that_of_a_killed_process(tmp_path: Path) -> None:
    study = StudyDirectory(tmp_path / "s", {"zeta": [1.0]}, seeds=(0,))
    (unit,) = study.units
    study.search(unit, [0.5], ended=False)
    study.claim(unit)
    assert units_of(study)[unit].status == "running"
    silent = time.time() - SILENCE - 1
    os.utime(study.folder(unit).with_name("search.claim"), (silent, silent))
    assert units_of(study)[unit].status == "interrupted"


def test_a_comparison_is_the_mean_of_its_runs(tmp_path: Path) -> None:
    study = StudyDirectory(tmp_path / "s", {"strategies": ["random"]}, seeds=(0, 1), stages=("compare",))
    first, second = study.units
    folder = study.folder(first)
    folder.mkdir(parents=True)
    lines = [
        {
            "strategy": "random", "seed": seed, "evaluations": 3, "seconds": 1.0, "accuracy": accuracy,
            "judged": accuracy - 0.1, "genotype": CELL.to_dict(), "curve": [],
        }
        for seed, accuracy in enumerate((0.5, 0.75))
    ]  # fmt: skip
    (folder / "runs.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert units_of(study)[first].status == "interrupted"
    (folder / "report.html").write_text("")
    units = units_of(study)
    found = units[first]
    assert (found.status, found.valid_accuracy, found.genotype) == ("finished", 0.625, CELL)
    assert found.test_accuracy == pytest.approx(0.525)
    assert units[second].status == "waiting"


def test_a_search_says_accuracy_size_time_genotype_and_evidence(tmp_path: Path) -> None:
    study = StudyDirectory(tmp_path / "s", {"zeta": [1.0]}, seeds=(0,))
    (name,) = study.units
    folder = study.search(name, [0.25, None, 0.75], seconds=8640.0)  # type: ignore[list-item]
    add_event(folder, EVIDENCE, before_end=True)
    (folder / "report.html").write_text("")
    unit = units_of(study)[name]
    assert (unit.valid_accuracy, unit.test_accuracy, unit.parameters, unit.macs) == (0.75, None, 3_349_342, 529_910_000)
    assert (unit.seconds, unit.days, unit.clock) == (8640.0, pytest.approx(0.2), "core")  # a tenth of a day, 2 threads
    assert unit.curve == ((1, 0.25), (3, 0.75))
    assert unit.genotype == CELL
    assert unit.skips == {"normal": 2, "reduce": 3}
    assert (unit.gap, unit.beats) == (0.25, 75.0)
    assert unit.evidence.startswith("better than 1 of 2 random cells")
    assert unit.page == Path(f"cells/{name}/report.html")


def test_gpu_days_count_the_gpu_and_core_days_the_threads(tmp_path: Path) -> None:
    study = StudyDirectory(tmp_path / "s", {"zeta": [1.0]}, seeds=(0,), stages=("search", "train"))
    study.search("zeta-1.0/seed-0/search", [0.5], seconds=43_200.0, device="cuda:1")
    study.training("zeta-1.0/seed-0/train", 0.9)
    search, train = units_of(study).values()
    assert (search.days, search.clock) == (0.5, "GPU")
    assert (train.test_accuracy, train.parameters, train.macs, train.clock) == (0.9, 5000, 7000, "GPU")


def test_an_evaluation_is_read_from_its_json(tmp_path: Path) -> None:
    study = StudyDirectory(tmp_path / "s", {"zeta": [1.0]}, seeds=(0, 1), stages=("train", "evaluate"))
    study.training("zeta-1.0/seed-0/train", 0.9)
    folder = study.folder("zeta-1.0/seed-0/evaluate")
    folder.mkdir(parents=True)
    record = {"parameters": 12, "macs": 34, "evaluation": {"top1": 0.875}}
    (folder / "evaluate.json").write_text(json.dumps(record))
    study.folder("zeta-1.0/seed-1/evaluate").mkdir(parents=True)
    results = read_study(study.path)
    _, done, _, begun = results.units
    assert (done.status, done.test_accuracy, done.parameters, done.macs) == ("finished", 0.875, 12, 34)
    assert begun.status == "interrupted"
    assert results.value(results.cells[0]) == Statistic(1, 0.875, None)  # not the 0.9 of the training


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([], None),
        ([None], None),
        ([0.5], Statistic(1, 0.5, None)),
        ([0.5, None, 0.7], Statistic(2, 0.6, math.sqrt(0.02))),
        ([2.0, 4.0, 4.0, 4.0, 5.0, 5.0, 7.0, 9.0], Statistic(8, 5.0, math.sqrt(32 / 7))),
    ],
)
def test_mean_and_deviation_of_a_sample(values: list[float | None], expected: Statistic | None) -> None:
    found = Statistic.of(values)
    assert (found is None) == (expected is None)
    if found and expected:
        assert (found.n, found.mean, found.std) == (
            expected.n,
            pytest.approx(expected.mean),
            pytest.approx(expected.std),
        )


def test_a_single_run_has_no_deviation() -> None:
    assert Statistic(1, 0.84, None).text(scale=100) == "84.00"
    assert Statistic(2, 0.84, 0.005).text(scale=100) == "84.00 ± 0.50"


def test_means_are_of_finished_units_and_the_best_cell_has_the_highest(tmp_path: Path) -> None:
    study = StudyDirectory(tmp_path / "s", {"gamma": [0.0, 1.0, 5.0]}, seeds=(0, 1, 2))
    for seed, accuracy in enumerate((0.5, 0.6, 0.7)):
        study.search(f"gamma-0.0/seed-{seed}/search", [accuracy])
    study.search("gamma-1.0/seed-0/search", [0.62])
    study.search("gamma-1.0/seed-1/search", [0.99], ended=False)
    results = read_study(study.path)
    first, second, third = (results.value(cell) for cell in results.cells)
    assert first is not None
    assert (first.n, first.mean, first.std) == (3, pytest.approx(0.6), pytest.approx(0.1))
    assert second == Statistic(1, 0.62, None)
    assert third is None
    assert results.best is results.cells[1]
    assert results.measure == "validation accuracy"


def test_cells_are_compared_by_the_test_where_networks_are_trained(tmp_path: Path) -> None:
    study = StudyDirectory(tmp_path / "s", {"gamma": [0.0, 1.0]}, seeds=(0, 1), stages=("search", "train"))
    for gamma, seed, valid, test in ((0.0, 0, 0.9, 0.5), (0.0, 1, 0.9, 0.7), (1.0, 0, 0.1, 0.8), (1.0, 1, 0.2, 0.7)):
        study.search(f"gamma-{gamma}/seed-{seed}/search", [valid])
        study.training(f"gamma-{gamma}/seed-{seed}/train", test)
    results = read_study(study.path)
    assert (results.measure, results.best) == ("test accuracy", results.cells[1])
    # By validation seed 1 is the best of the second cell, by test seed 0.
    second = results.cells[1]
    by_validation, by_test = second.best_trained("validation"), second.best_trained("test")
    assert by_validation is not None
    assert by_test is not None
    assert (by_validation.seed, by_test.seed) == (1, 0)
    study.training("gamma-1.0/seed-0/train", 0.8, valid=0.6)  # held-out images count more than those of the search
    again = read_study(study.path).cells[1].best_trained("validation")
    assert again is not None
    assert again.seed == 0


def test_study_csv_has_a_row_for_each_unit_and_a_column_for_each_option(tmp_path: Path) -> None:
    study = StudyDirectory(tmp_path / "s", {"zeta": [1.0], "variant": [EVIL]}, seeds=(3, 4))
    one, two = study.units
    study.search(one, [0.5])
    study.fail(two, 'a "quoted", error\nof two lines')
    path = write_csv(read_study(study.path))
    assert path == study.path / "study.csv"
    with path.open(newline="") as file:
        header, *rows = csv.reader(file)
    assert header == [*COLUMNS, "option.zeta", "option.variant"]
    first, second = (dict(zip(header, row, strict=True)) for row in rows)
    assert first | {"genotype": ""} == {
        "unit": one, "stage": "search", "cell": f"zeta-1.0_variant-{EVIL}", "label": f"zeta 1.0, variant {EVIL}",
        "seed": "3", "status": "finished", "epochs": "1", "planned_epochs": "4", "valid_accuracy": "0.5",
        "test_accuracy": "", "parameters": "3349342", "macs": "529910000", "seconds": "60.0",
        "core_days": repr(2 * 60 / 86400), "gpu_days": "", "derivation_gap": "", "beats_random_percent": "",
        "skip_connections": '{"normal": 2, "reduce": 3}', "genotype": "", "evidence": "", "error": "",
        "directory": f"cells/{one}", "option.zeta": "1.0", "option.variant": EVIL,
    }  # fmt: skip
    assert json.loads(first["genotype"]) == CELL.to_dict()
    assert (second["status"], second["error"]) == ("failed", 'a "quoted", error\nof two lines')
    assert second["valid_accuracy"] == second["genotype"] == ""


def test_columns_stay_the_same_whatever_is_there(tmp_path: Path) -> None:
    empty = StudyDirectory(tmp_path / "empty", {"zeta": [1.0]})
    full = StudyDirectory(tmp_path / "full", {"zeta": [1.0]})
    for unit in full.units:
        full.search(unit, [0.5])
    headers = {write_csv(read_study(study.path)).read_text().splitlines()[0] for study in (empty, full)}
    assert len(headers) == 1


def test_files_that_are_being_written_are_left_out_and_named(tmp_path: Path) -> None:
    study = StudyDirectory(tmp_path / "s", {"zeta": [1.0, 0.8]}, seeds=(0,), stages=("search", "evaluate"))
    torn = study.search("zeta-1.0/seed-0/search", [0.5, 0.6], ended=False) / "metrics.jsonl"
    torn.write_text(torn.read_text() + '{"event": "epoch", "epoch": 2, "valid_acc')
    study.fail("zeta-0.8/seed-0/search", "x")
    failed = study.path / "cells/zeta-0.8/seed-0/search.failed.json"
    failed.write_text(failed.read_text()[:20])
    folder = study.folder("zeta-1.0/seed-0/evaluate")
    folder.mkdir(parents=True)
    (folder / "evaluate.json").write_text('{"evalua')
    (study.path / "chosen.json").write_text("{")
    (study.path / "study.yaml").write_text("a: [")
    results = read_study(study.path)
    assert [unit.status for unit in results.units] == ["interrupted", "interrupted", "failed", "waiting"]
    assert (results.units[0].epochs, results.units[0].valid_accuracy) == (2, 0.6)
    assert results.units[2].error == "its error was not recorded"
    assert len(results.problems) == 4
    assert any("study.yaml could not be read" in problem for problem in results.problems)


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"units": 3}', '{"units": [{}]}', '{"units": [{"id": 3}]}', '{"units": [null]}']
)
def test_a_damaged_plan_is_one_line(tmp_path: Path, text: str) -> None:
    (tmp_path / "plan.json").write_text(text)
    with pytest.raises(UserError, match=r"plan\.json"):
        read_study(tmp_path)


def test_a_directory_that_vanishes_is_waiting_again(tmp_path: Path) -> None:
    study = StudyDirectory(tmp_path / "s", {"zeta": [1.0]}, seeds=(0,))
    (unit,) = study.units
    shutil.rmtree(study.search(unit, [0.5]))
    assert units_of(study)[unit].status == "waiting"


def test_cells_of_nas_bench_201_are_tested_by_the_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Table:
        def __init__(self, path: str) -> None:
            assert path == "/tables/nb201.csv.gz"

        def judge(self, code: tuple[int, ...]) -> float:
            assert len(code) == 6
            return 0.543

    monkeypatch.setattr("fastnas.report.study_results.NB201", Table)
    study = StudyDirectory(tmp_path / "s", {"strategy": ["darts", "gdas"]}, seeds=(0,))
    (study.path / "study.yaml").write_text("table: /tables/nb201.csv.gz\n")
    darts, gdas = study.units
    cell = "|skip_connect~0|+|skip_connect~0|skip_connect~1|+|skip_connect~0|skip_connect~1|skip_connect~2|"
    (study.search(darts, [0.4]) / "genotype.json").write_text(json.dumps({"format": 1, "nb201": cell}))
    study.search(gdas, [0.4])
    results = read_study(study.path)
    assert [unit.test_accuracy for unit in results.units] == [0.543, None]
    assert results.problems == ()


def test_a_missing_table_is_said(tmp_path: Path) -> None:
    study = StudyDirectory(tmp_path / "s", {"strategy": ["darts"]}, seeds=(0,))
    (study.path / "study.yaml").write_text("table: /nowhere/nb201.csv.gz\n")
    (problem,) = read_study(study.path).problems
    assert problem.startswith("No test accuracies: cannot read the table /nowhere/nb201.csv.gz")
