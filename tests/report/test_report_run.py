"""Reading a run directory, in whatever state the process left it."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from report_synthetic_run import CONFIG, run_events, start_event, write_run

from fastnas.errors import UserError
from fastnas.genotype import Genotype
from fastnas.report.run import is_number, read_run


def epoch(number: int, **fields: object) -> dict[str, object]:
    return {"event": "epoch", "epoch": number, **fields}


def population(number: int, step: int, sample: int = 0, mark: int = 0) -> dict[str, object]:
    return {"event": "population", "epoch": number, "step": step, "sample": sample, "generation": 0, "mark": mark}


def test_reads_a_complete_run(tmp_path: Path) -> None:
    events, genotype = run_events(tmp_path, epochs=6, warm_up=2, samples=2, population=4)
    run = read_run(write_run(tmp_path, events, genotype))
    assert run.status == "finished"
    assert run.genotype == genotype
    assert run.genotype_origin == "genotype.json"
    assert [e["epoch"] for e in run.epochs] == list(range(6))
    assert len(run.populations) == 4 * 2
    assert len(run.updates) == 4
    assert run.problems == []
    assert run.strategy == "egnas"
    assert run.planned_epochs == CONFIG["weights"]["epochs"]
    assert run.command[:3] == ["python", "-m", "fastnas.search"]
    assert run.valid_accuracy == (events[-1]["valid_accuracy"], None)
    assert run.peak_memory_mb == 812.3


@pytest.mark.parametrize("name", ["missing", "file"])
def test_what_is_no_directory_is_a_user_error(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=f"{name}.*give the folder"):
        read_run(tmp_path / name)


def test_an_empty_directory_names_what_is_missing(tmp_path: Path) -> None:
    run = read_run(tmp_path)
    assert run.status == "not started"
    assert run.genotype is None
    assert (run.seconds, run.valid_accuracy, run.peak_memory_mb, run.strategy, run.planned_epochs) == (None,) * 5
    assert [problem.split()[0] for problem in run.problems] == ["config.yaml", "metrics.jsonl", "genotype.json"]


@pytest.mark.parametrize("cut", [1, 7, 40])
def test_a_torn_last_line_is_left_out_without_a_complaint(tmp_path: Path, cut: int) -> None:
    lines = [json.dumps(start_event(tmp_path)), json.dumps(epoch(0, train_loss=1.5)), json.dumps(epoch(1))]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines)[: -min(cut, len(lines[-1]) - 1)])
    run = read_run(tmp_path)
    assert [e["epoch"] for e in run.epochs] == [0]
    assert not any("metrics" in problem for problem in run.problems)


def test_a_torn_character_at_the_end_is_tolerated(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_bytes(json.dumps(epoch(0)).encode() + b'\n{"event": "\xce')
    assert len(read_run(tmp_path).epochs) == 1


def test_damaged_lines_within_are_counted(tmp_path: Path) -> None:
    lines = [json.dumps(epoch(0)), '{"event": "epo', "[1, 2]", '{"no": "event"}', "", json.dumps(epoch(1)), ""]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines))
    run = read_run(tmp_path)
    assert [e["epoch"] for e in run.epochs] == [0, 1]
    assert "3 damaged lines of metrics.jsonl left out." in run.problems


def test_unknown_events_and_records_without_an_epoch_are_ignored(tmp_path: Path) -> None:
    events = [{"event": "weather", "epoch": 0}, {"event": "epoch"}, epoch("one"), epoch(0)]  # type: ignore[arg-type]
    assert len(read_run(write_run(tmp_path, events, None)).epochs) == 1


def test_a_resumed_run_replaces_what_it_repeats(tmp_path: Path) -> None:
    events = [
        start_event(tmp_path),
        *(epoch(i, mark=0) for i in range(4)),
        *(population(number, number, sample) for number in (2, 3) for sample in range(3)),
        {"event": "interrupted", "reason": "SIGINT"},
        start_event(tmp_path, resumed=True),
        population(2, 2, 0, mark=1),
        population(2, 2, 1, mark=1),
        epoch(2, mark=1),
    ]
    run = read_run(write_run(tmp_path, events, None))
    assert [(e["epoch"], e["mark"]) for e in run.epochs] == [(0, 0), (1, 0), (2, 1)]
    # Sample 2 of step 2 was not repeated yet: it belongs to the same step, so it stays; step 3 is gone.
    assert [(p["step"], p["sample"], p["mark"]) for p in run.populations] == [(2, 0, 1), (2, 1, 1), (2, 2, 0)]
    assert run.status == "unfinished"


@given(st.lists(st.integers(0, 9), max_size=40))
def test_epochs_always_end_up_ascending(tmp_path_factory: pytest.TempPathFactory, numbers: list[int]) -> None:
    directory = write_run(tmp_path_factory.mktemp("run"), [epoch(n, at=i) for i, n in enumerate(numbers)], None)
    kept = read_run(directory).epochs
    assert [e["epoch"] for e in kept] == sorted({e["epoch"] for e in kept})
    assert not numbers or kept[-1]["at"] == len(numbers) - 1  # the newest record is always the last epoch


def test_time_of_a_resumed_run_is_the_sum_of_its_epochs(tmp_path: Path) -> None:
    seconds = {"train": 10.0, "valid": 2.5, "data": None}
    events = [start_event(tmp_path), epoch(0, seconds=seconds), epoch(1, seconds=seconds)]
    end = {"event": "end", "seconds": 30.0}
    assert read_run(write_run(tmp_path, events, None)).seconds == 25.0
    assert read_run(write_run(tmp_path, [*events, end], None)).seconds == 30.0
    resumed = [*events, start_event(tmp_path, resumed=True), epoch(2, seconds=seconds), end]
    assert read_run(write_run(tmp_path, resumed, None)).seconds == 37.5


def test_phases_of_earlier_versions_have_the_names_of_today(tmp_path: Path) -> None:
    events = [
        epoch(0, seconds={"evolution": 2.0, "train": 3.0}),
        epoch(1, seconds={"data": 0.5, "evolution": 1.0, "strategy": 2.5}),
        epoch(2, seconds={"strategy": 4.0}),
    ]
    seconds = [record["seconds"] for record in read_run(write_run(tmp_path, events, None)).epochs]
    assert seconds == [{"strategy": 2.0, "train": 3.0}, {"data": 0.5, "strategy": 3.5}, {"strategy": 4.0}]


def test_accuracy_falls_back_to_the_last_validated_epoch(tmp_path: Path) -> None:
    events = [epoch(0, valid_accuracy=0.5), epoch(1, valid_accuracy=0.75), epoch(2, valid_accuracy=None)]
    assert read_run(write_run(tmp_path, events, None)).valid_accuracy == (0.75, 1)


def test_a_resume_after_the_end_is_unfinished(tmp_path: Path) -> None:
    events = [start_event(tmp_path), {"event": "end", "valid_accuracy": 0.9}, start_event(tmp_path, resumed=True)]
    assert read_run(write_run(tmp_path, events, None)).status == "unfinished"
    assert read_run(write_run(tmp_path, events[:2], None)).status == "finished"
    assert read_run(write_run(tmp_path, [*events, {"event": "interrupted"}], None)).status == "interrupted"


def test_genotype_of_the_last_epoch_stands_in_for_a_missing_or_broken_file(tmp_path: Path) -> None:
    genotype = Genotype.published("DARTS_V2")
    write_run(tmp_path, [epoch(0), epoch(1, genotype=genotype.to_dict()), epoch(2)], None)
    run = read_run(tmp_path)
    assert (run.genotype, run.genotype_origin) == (genotype, "the record of epoch 2")
    (tmp_path / "genotype.json").write_text("{")
    run = read_run(tmp_path)
    assert run.genotype == genotype
    assert any(problem.startswith("genotype.json could not be read") for problem in run.problems)


def test_a_broken_genotype_in_the_records_is_reported(tmp_path: Path) -> None:
    run = read_run(write_run(tmp_path, [epoch(3, genotype={"normal": 1})], None))
    assert run.genotype is None
    assert any("genotype of epoch 4" in problem for problem in run.problems)


@pytest.mark.parametrize("text", ["a: [", "- a\n- b", "", "\x00", "!!python/object:os.system {}"])
def test_a_damaged_config_is_reported(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.yaml").write_text(text)
    run = read_run(tmp_path)
    assert run.config == {}
    assert run.problems[0].startswith("config.yaml")


def test_numbers() -> None:
    assert is_number(0)
    assert is_number(-1.5)
    for value in (True, None, "1", math.nan, math.inf, [1]):
        assert not is_number(value)
