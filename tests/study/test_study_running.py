"""The order of units, and what becomes of those that fail, are killed or run elsewhere."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from tiny_studies import InProcess, Over, begin, write_search

from fastnas.study import running
from fastnas.study.directory import StudyDirectory
from fastnas.study.running import Runner
from fastnas.study.time_left import StudyTime, epochs_done


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(running, "POLL", 0.001)
    monkeypatch.setattr(running, "LOOK", 0.002)


def finish(directory: Path, unit: str) -> None:
    """Writes what a run leaves behind."""
    study = StudyDirectory.open(directory)
    write_search(study.folder(study.plan.units[unit]), 0.5)


def runner(study: StudyDirectory, do: Callable[[Path, str], str | None] = finish) -> tuple[Runner, InProcess]:
    executor = InProcess(study.path, do)
    return Runner(study, executor, Console(quiet=True), {}), executor


def test_units_come_after_what_they_need(tmp_path: Path) -> None:
    study = begin(
        tmp_path / "study", stages=["search", "choose", "train"], choose="best", seeds=[0, 1], baseline={"random": 1}
    )
    whole, executor = runner(study)
    assert whole.run()
    assert executor.started == [
        "base/seed-0/search", "base/seed-1/search", "base/seed-0/train", "base/seed-0/baseline-0",
    ]  # fmt: skip
    assert set(whole.states.values()) == {"finished"}
    assert study.chosen()["base"]["unit"] == "base/seed-0/search"
    assert (executor.stopped, executor.closed) == (1, 1)
    assert (study.path / "study.csv").exists()
    assert (study.path / "report.html").exists()
    again, executor = runner(study)
    assert again.run()
    assert executor.started == []


def all_but(study: StudyDirectory, failing: str) -> Callable[[Path, str], None]:
    """What finishes every unit but one, which fails."""

    def do(directory: Path, unit: str) -> None:
        if unit == failing:
            study.fail(study.plan.units[unit], "no images", 1.0)
        else:
            finish(directory, unit)

    return do


def test_a_failure_stops_only_what_needs_it(tmp_path: Path) -> None:
    study = begin(tmp_path / "study", stages=["search", "train"], seeds=[0, 1])

    whole, executor = runner(study, all_but(study, "base/seed-0/search"))
    assert whole.run()
    assert whole.states == {
        "base/seed-0/search": "failed", "base/seed-0/train": "blocked",
        "base/seed-1/search": "finished", "base/seed-1/train": "finished",
    }  # fmt: skip
    again, executor = runner(study)  # which tries once more
    assert again.run()
    assert executor.started == ["base/seed-0/search", "base/seed-0/train"]
    assert set(again.states.values()) == {"finished"}


def test_the_best_of_those_that_did_not_fail_is_chosen(tmp_path: Path) -> None:
    study = begin(tmp_path / "study", stages=["search", "choose", "train"], choose="best", seeds=[0, 1])

    whole, _ = runner(study, all_but(study, "base/seed-0/search"))
    assert whole.run()
    assert whole.states["base/seed-0/train"] == "finished"
    assert study.chosen()["base"]["unit"] == "base/seed-1/search"


def test_a_killed_process_is_started_once_more(tmp_path: Path) -> None:
    study = begin(tmp_path / "study", seeds=[0, 1])

    def do(directory: Path, unit: str) -> str | None:
        if executor.started.count(unit) == 1 or unit == "base/seed-1/search":
            return "its process was ended by SIGKILL"
        return finish(directory, unit)

    whole, executor = runner(study, do)
    assert whole.run()
    assert {name: executor.started.count(name) for name in executor.started} == {
        "base/seed-0/search": 2, "base/seed-1/search": 2,
    }  # fmt: skip
    assert whole.states == {"base/seed-0/search": "finished", "base/seed-1/search": "failed"}
    failure = study.failure(study.plan.units["base/seed-1/search"])
    assert failure is not None
    assert failure["error"] == "its process was ended by SIGKILL"


def test_what_another_process_works_on_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = begin(tmp_path / "study", stages=["search", "train"], seeds=[0, 1, 2])
    first, second, third = (study.plan.units[f"base/seed-{seed}/search"] for seed in (0, 1, 2))
    claims = study.claim(first), study.claim(second), study.claim(third)
    for each in claims:
        each.__enter__()
    looks = 0

    def sleep(seconds: float) -> None:
        nonlocal looks
        looks += 1
        if looks == 20:
            finish(study.path, first.id)
            study.fail(second, "no images", 1.0)
            for each in claims:  # the third process is gone, and has left its run unfinished
                each.__exit__()

    monkeypatch.setattr(running.time, "sleep", sleep)
    whole, executor = runner(study)
    assert whole.run()
    assert looks >= 20
    assert sorted(executor.started) == ["base/seed-0/train", "base/seed-2/search", "base/seed-2/train"]
    assert whole.states[second.id] == "failed"


def test_ctrl_c_waits_for_the_processes_that_stop(tmp_path: Path) -> None:
    study = begin(tmp_path / "study", seeds=[0, 1])

    class Slow(Over):
        def is_over(self) -> bool:
            if not executor.stopped:
                raise KeyboardInterrupt
            executor.stopped += 1
            return executor.stopped > 5

    class Interrupted(InProcess):
        def start(self, unit: str) -> Over:
            self.started.append(unit)
            return Slow()

    executor = Interrupted(study.path)
    whole = Runner(study, executor, Console(quiet=True), {})
    assert not whole.run()
    assert executor.stopped > 5
    assert executor.closed == 1
    assert whole.states == {}


def test_the_time_left_follows_from_the_pace_of_each_stage() -> None:
    now = 0.0
    planned = {"a": 10, "b": 10, "c": 4, "d": 1}
    study = StudyTime(planned, {"a": "search", "b": "search", "c": "train", "d": "evaluate"}, lambda: now)
    assert study.left(dict.fromkeys(planned, 0), 2) is None
    study.begin("a", 5)  # which goes on after five epochs
    now = 10.0
    left = study.left({"a": 10, "b": 0, "c": 0, "d": 0}, 1)
    assert left is not None
    assert (left.seconds, left.all_known) == (20.0, False)
    assert study.end("a", 10) == 10.0
    study.begin("c", 0)
    study.begin("b", 0)
    now = 16.0
    assert study.end("c", 4) == 6.0
    study.begin("d", 0)
    now = 19.0
    study.end("d", 1)
    left = study.left({"b": 1}, 4)  # as slow as 19 seconds for 6 epochs, at one time
    assert left is not None
    assert left.seconds == pytest.approx(9 * 19 / 6)
    assert left.all_known


def test_epochs_of_a_run_are_counted(tmp_path: Path) -> None:
    assert epochs_done(tmp_path) == 0
    lines: list[dict[str, Any]] = [{"event": "run"}, {"event": "epoch", "epoch": 0}, {"event": "update", "epoch": 1}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert epochs_done(tmp_path) == 1
