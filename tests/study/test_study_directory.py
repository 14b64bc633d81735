"""The directory of a study: whose it is, what is chosen in it, and who works on what."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
from tiny_studies import begin, write_search

from fastnas.cli import run_lock
from fastnas.errors import UserError
from fastnas.report.study_results import read_study
from fastnas.study import worker
from fastnas.study.directory import StudyDirectory
from fastnas.study.plan import Unit
from fastnas.study.worker import work


def unit_of(study: StudyDirectory, name: str = "base/seed-0/search") -> Unit:
    return study.plan.units[name]


# --- whose it is ---


def test_the_same_plan_goes_on_and_a_larger_one_adds(tmp_path: Path) -> None:
    out = tmp_path / "study"
    begin(out, seeds=[0])
    before = {name: (out / name).stat().st_mtime_ns for name in ("study.yaml", "plan.json")}
    assert begin(out, seeds=[0]).plan.units == StudyDirectory.open(out).plan.units
    assert before == {name: (out / name).stat().st_mtime_ns for name in before}
    begin(out, seeds=[0, 1])
    assert [unit.seed for unit in read_study(out).units] == [0, 1]
    with pytest.raises(UserError, match=r"another plan: it has no base/seed-1/search any more\. Only cells and seeds"):
        begin(out, seeds=[0])


def test_files_of_others_stay_alone(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("mine")
    with pytest.raises(UserError, match=r"holds config\.yaml, which no study has written"):
        begin(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["config.yaml"]
    with pytest.raises(UserError, match="holds no study"):
        StudyDirectory.open(tmp_path)


# --- what is chosen ---


def test_the_search_of_the_best_validation_accuracy_is_chosen(tmp_path: Path) -> None:
    study = begin(tmp_path / "study", stages=["search", "choose", "train"], choose="best", seeds=[0, 1, 2, 3])
    training = unit_of(study, "base/seed-0/train")
    for seed, accuracy in ((0, 0.3), (1, 0.5), (2, 0.5)):
        write_search(study.path / f"cells/base/seed-{seed}/search", accuracy, "PDARTS" if seed == 1 else "DARTS_V2")
    write_search(study.path / "cells/base/seed-3/search", 0.9, ended=False)
    with pytest.raises(UserError, match=r"no search of the cell .* has been chosen yet"):
        study.source(training)
    study.choose(training)
    chosen = json.loads((study.path / "chosen.json").read_text())["base"]
    assert (chosen["unit"], chosen["by"], chosen["value"], chosen["of"]) == (
        "base/seed-1/search", "valid_accuracy", 0.5, 3,
    )  # fmt: skip
    source = study.source(training)
    assert source is not None
    assert source.id == "base/seed-1/search"


def test_what_has_been_trained_stays_chosen(tmp_path: Path) -> None:
    plan: dict[str, Any] = {"stages": ["search", "choose", "train"], "choose": "best"}
    study = begin(tmp_path / "study", **plan, seeds=[0, 1])
    training = unit_of(study, "base/seed-0/train")
    write_search(study.path / "cells/base/seed-0/search", 0.3)
    study.choose(training)
    write_search(study.path / "cells/base/seed-1/search", 0.5)
    study.choose(training)  # nothing has been trained yet
    assert study.chosen()["base"]["unit"] == "base/seed-1/search"
    (study.path / "cells/base/seed-1/search/metrics.jsonl").unlink()
    study.folder(training).mkdir()
    study.choose(training)
    assert study.chosen()["base"]["unit"] == "base/seed-1/search"
    with pytest.raises(UserError, match="a search of each cell has been chosen and trained"):
        begin(tmp_path / "study", **plan, seeds=[0, 1, 2])


def test_without_a_choice_each_training_has_its_search(tmp_path: Path) -> None:
    study = begin(tmp_path / "study", stages=["search", "train"], seeds=[0, 1])
    source = study.source(unit_of(study, "base/seed-1/train"))
    assert source is not None
    assert source.id == "base/seed-1/search"


# --- who works on what ---


@pytest.fixture
def done(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Units that were worked on, without any work."""
    units: list[str] = []

    def run(study: StudyDirectory, unit: Unit) -> str:
        assert study.is_claimed(unit)
        units.append(unit.id)
        return "finished"

    monkeypatch.setattr(worker, "_run", run)
    return units


def claim(study: StudyDirectory, age: float = 0, **changes: Any) -> Path:
    """A claim as this process would hold it, but for some changes."""
    path = study.beside(unit_of(study), ".claim")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(run_lock._this_process() | changes))
    now = time.time() - age
    os.utime(path, (now, now))
    return path


def test_of_two_workers_one_gets_a_unit(tmp_path: Path, done: list[str]) -> None:
    study = begin(tmp_path / "study")
    with study.claim(unit_of(study)):
        assert work(study.path, "base/seed-0/search") == "elsewhere"
        assert (study.path / "cells/base/seed-0/search.claim").exists()
    assert done == []
    assert work(study.path, "base/seed-0/search") == "finished"
    assert done == ["base/seed-0/search"]
    assert not (study.path / "cells/base/seed-0/search.claim").exists()


@pytest.mark.parametrize(
    ("age", "changes", "taken"),
    [
        (0, {"pid": 2**22 + 1}, True),
        (0, {"started": "1 ticks after boot before"}, True),
        (590, {"host": "node-7"}, False),
        (610, {"host": "node-7"}, True),
        (610, {}, False),  # on this host it can be seen to be alive
    ],
)
def test_the_claim_of_a_worker_that_is_gone_is_taken_over(
    tmp_path: Path, done: list[str], age: float, changes: dict[str, Any], taken: bool
) -> None:
    study = begin(tmp_path / "study")
    claim(study, age, **changes)
    assert study.is_claimed(unit_of(study)) is not taken
    assert work(study.path, "base/seed-0/search") == ("finished" if taken else "elsewhere")
    assert done == (["base/seed-0/search"] if taken else [])


def test_a_failure_is_recorded_beside_the_unit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = begin(tmp_path / "study")

    def fail(study: StudyDirectory, unit: Unit) -> str:
        raise errors[0]

    errors: list[Exception] = [UserError("no images there")]
    monkeypatch.setattr(worker, "_run", fail)
    assert work(study.path, "base/seed-0/search") == "failed"
    record = json.loads((study.path / "cells/base/seed-0/search.failed.json").read_text())
    assert record["error"] == "no images there"
    assert record["seconds"] >= 0
    assert "traceback" not in record
    errors[0] = ValueError("a\nb")
    assert work(study.path, "base/seed-0/search") == "failed"
    record = study.failure(unit_of(study))
    assert record is not None
    assert record["error"] == "ValueError: a b"
    assert "in fail" in record["traceback"]
    assert not study.is_claimed(unit_of(study))
    monkeypatch.setattr(worker, "_run", lambda study, unit: "finished")
    assert work(study.path, "base/seed-0/search") == "finished"
    assert study.failure(unit_of(study)) is None
