"""Whole studies of tiny runs, in this process: search, choose, train, evaluate, baseline, compare."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console
from tiny_studies import SEARCH, TRAIN, InProcess

from fastnas import study as studies
from fastnas.errors import UserError
from fastnas.genotype import Genotype
from fastnas.report.run import read_run
from fastnas.study.__main__ import StudyOptions, main
from fastnas.study.definition import read_definition
from fastnas.study.studying import show_study
from fastnas.study.worker import work

WHOLE: dict[str, Any] = {
    "name": "tiny", "title": "A tiny study", "base": SEARCH, "train": TRAIN,
    "stages": ["search", "choose", "train", "evaluate"], "choose": "best", "evaluate": {"runs": 0, "device": "cpu"},
    "baseline": {"random": 2, "within": "40%"}, "list": [{"name": "few", "population": 4}], "seeds": [0, 1],
}  # fmt: skip


def run(plan: dict[str, Any], out: Path, **how: Any) -> tuple[studies.StudyResult, InProcess]:
    executor = InProcess(out)
    return studies.run(plan, out, executor=executor, progress=False, **how), executor


def test_from_searches_to_evaluated_networks(tmp_path: Path) -> None:
    out = tmp_path / "study"
    result, executor = run(WHOLE, out)
    assert (result.status, dict(result.failed), result.blocked) == ("finished", {}, ())
    folder = out / "cells/few/seed-0"
    chosen = json.loads((out / "chosen.json").read_text())["few"]
    accuracies = {
        f"few/seed-{seed}/search": read_run(out / f"cells/few/seed-{seed}/search").valid_accuracy for seed in (0, 1)
    }
    assert chosen["unit"] == max(accuracies, key=lambda name: accuracies[name] or (0.0, None))
    trained, found = (
        Genotype.from_json(path / "genotype.json") for path in (folder / "train", out / "cells" / chosen["unit"])
    )
    assert trained == found == Genotype.from_dict(chosen["genotype"])
    # A baseline is what was trained, with another cell of about that size.
    size = read_run(folder / "train").network["parameters"]
    runs = [read_run(folder / name) for name in ("train", "baseline-0", "baseline-1")]
    assert len({run.genotype for run in runs}) == 3
    assert all(abs(run.network["parameters"] - size) <= 0.4 * size for run in runs)
    drawn = json.loads((folder / "baseline.json").read_text())
    assert [drawn["parameters"], *(each["parameters"] for each in drawn["genotypes"])] == [
        run.network["parameters"] for run in runs
    ]
    for run_of in runs[1:]:
        assert run_of.config["recipe"] == runs[0].config["recipe"]
        assert run_of.config["data"] == runs[0].config["data"]
    test = runs[0].ending["test"]["top1"]  # type: ignore[index]
    evaluated = json.loads((folder / "evaluate/evaluate.json").read_text())
    assert evaluated["evaluation"]["top1"] == test
    assert (folder / "evaluate/evaluation.html").exists()
    rows = {row["unit"]: row for row in csv.DictReader((out / "study.csv").open())}
    assert len(rows) == 6
    assert {row["status"] for row in rows.values()} == {"finished"}
    assert float(rows["few/seed-0/train"]["test_accuracy"]) == test
    assert result.results.cells[0].chosen == chosen["unit"]
    assert len(executor.started) == 6
    assert list(out.rglob("*.claim")) == list(out.rglob(".fastnas*")) == []
    # The command that a run records repeats it.
    command = read_run(folder / "train").command
    assert command[:3] == ["python", "-m", "fastnas.train"]
    assert command[command.index("--from") + 1] == str(out / "cells" / chosen["unit"])
    again, executor = run(WHOLE, out)
    assert (again.status, executor.started) == ("finished", [])


def test_a_failed_cell_is_reported_and_tried_again(tmp_path: Path) -> None:
    out, images = tmp_path / "study", tmp_path / "images.npz"
    plan = {"base": SEARCH, "list": [{"name": "good"}, {"name": "bad", "data": f"npz:{images}"}]}
    result, executor = run(plan, out)
    assert result.status == "failed"
    assert executor.started == ["good/seed-0/search", "bad/seed-0/search"]
    assert list(result.failed) == ["bad/seed-0/search"]
    assert "images.npz" in result.failed["bad/seed-0/search"]
    assert {unit.id: unit.status for unit in result.results.units} == {
        "good/seed-0/search": "finished", "bad/seed-0/search": "failed",
    }  # fmt: skip
    again, executor = run(plan, out)
    assert executor.started == ["bad/seed-0/search"]
    assert again.status == "failed"


def test_an_interrupted_run_ends_in_the_same_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As `kill` in another process does it; see test_study_command.py for that."""
    from fastnas.engine.search import Search

    run({"base": SEARCH}, tmp_path / "whole")
    steps = Search._run_epoch

    def interrupted(search: Search) -> None:
        if search.epoch == 1:
            raise KeyboardInterrupt
        steps(search)

    monkeypatch.setattr(Search, "_run_epoch", interrupted)
    study = studies.run({"base": SEARCH}, tmp_path / "cut", executor=Once(tmp_path / "cut"), progress=False)
    assert study.status == "interrupted"
    monkeypatch.setattr(Search, "_run_epoch", steps)
    assert run({"base": SEARCH}, tmp_path / "cut")[0].status == "finished"
    whole, cut = (read_run(tmp_path / name / "cells/base/seed-0/search") for name in ("whole", "cut"))
    assert len(cut.starts) == 2
    assert [epoch["train_loss"] for epoch in cut.epochs] == [epoch["train_loss"] for epoch in whole.epochs]
    assert cut.genotype == whole.genotype


class Once(InProcess):
    """Somebody presses Ctrl-C as the first unit ends."""

    def start(self, unit: str) -> Any:
        assert work(self.directory, unit) == "interrupted"
        raise KeyboardInterrupt


def test_a_comparison_is_a_stage(tmp_path: Path) -> None:
    plan = {
        "stages": ["compare"], "grid": {"strategies": ["random", "aging-evolution"]}, "seeds": [5],
        "base": {"evaluator": "training:digits", "runs": 2, "budget": 0.5, "channels": 2, "layers": 3, "limit": 30,
                 "device": "cpu"},
    }  # fmt: skip
    out = tmp_path / "study"
    result, _ = run(plan, out)
    assert result.status == "finished"
    lines = (out / "cells/strategies-random/seed-5/compare/runs.jsonl").read_text().splitlines()
    assert [json.loads(line)["seed"] for line in lines] == [5, 6]
    assert {unit.status for unit in result.results.units} == {"finished"}


def test_a_baseline_that_is_not_to_be_found(tmp_path: Path) -> None:
    base = {**TRAIN, "genotype": "DARTS_V2", "preset": "demo"}
    plan = {"stages": ["train"], "baseline": {"random": 3, "within": 0.0000001}, "base": base}
    result, _ = run(plan, tmp_path / "study")
    assert result.status == "failed"
    assert "raise within of baseline" in result.failed["base/seed-0/baseline-0"]


def test_a_dry_run_measures_and_writes_nothing(tmp_path: Path, capsys: Any) -> None:
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(WHOLE))
    assert main([str(path), "--out", str(tmp_path / "study"), "--dry-run", "--parallel", "2"]) == 0
    said = capsys.readouterr().out
    assert "6 runs of 6 would run: 2 search, 1 train, 1 evaluate, 2 baseline" in said
    assert "search    few: 2 runs, seeds 0, 1, about" in said
    assert "evaluate  few: 1 run, seeds 0, time unknown before it has run" in said
    assert "with 2 runs at a time" in said
    assert "MiB of memory at its peak, without evaluate" in said
    assert "measured on a random cell" in said
    assert [each.name for each in tmp_path.iterdir()] == ["tiny.yaml"]


def test_a_dry_run_leaves_out_what_is_there(tmp_path: Path, capsys: Any) -> None:
    out = tmp_path / "study"
    plan = {"base": SEARCH, "seeds": [0, 1]}
    run({**plan, "seeds": [0]}, out)
    show_study(plan, out, Console(), scale=None, threads=None, slots=1)
    assert "1 run of 2 would run: 1 search" in capsys.readouterr().out


def test_the_command_writes_table_and_page_anew(tmp_path: Path, capsys: Any) -> None:
    out = tmp_path / "study"
    run({"base": SEARCH, "grid": {"zeta": [1.0, 0.5]}}, out)
    for name in ("study.csv", "report.html"):
        (out / name).unlink()
    assert main(["--report", str(out)]) == 0
    said = capsys.readouterr().out
    assert "zeta 0.5" in said
    assert "search, valid. % (n)" in said
    assert (out / "study.csv").exists()
    assert (out / "report.html").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "no plan: give"),
        (["egnas-table1"], "no directory: give --out"),
        (["egnas-table1", "--out", "x", "--scale", "large"], "no scale 'large'"),
        (["--report", "nowhere"], "plan.json"),
        (["egnas-tabel1", "--out", "x"], "did you mean 'egnas-table1'"),
    ],
)
def test_mistakes_are_one_line(
    arguments: list[str], message: str, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert message in " ".join(error.split())
    assert list(tmp_path.iterdir()) == []


def test_parameters_of_jobs() -> None:
    options = StudyOptions(submit="timeout_min=240, slurm_partition=gpu")
    assert options.parameters() == {"timeout_min": 240, "slurm_partition": "gpu"}
    with pytest.raises(UserError, match="expected NAME=VALUE"):
        StudyOptions(submit="gpu").parameters()


def test_a_study_runs_with_as_many_threads_as_its_plan_says() -> None:
    assert read_definition(WHOLE).base["threads"] == read_definition(WHOLE).base["train.threads"] == 1
    assert read_definition(WHOLE, threads=3).base["evaluate.threads"] == 3
    own = read_definition({**WHOLE, "base": {**SEARCH, "run": {"threads": 2}}})
    assert own.base["run.threads"] == 2
