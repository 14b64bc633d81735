"""One search, and one training, in two processes."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from two_processes import OWN, Killed, Pair, last_record

from fastnas.cli.configuration import parse_search
from fastnas.engine.checkpoint import load_checkpoint
from fastnas.errors import UserError
from fastnas.search import prepare

sys.path.append(str(Path(__file__).parents[1] / "engine"))
from run_files import events, same_bits

TIMES = ("seconds", "log_position", "options")


def state_of(run: Path) -> dict[str, Any]:
    return {name: value for name, value in load_checkpoint(run / "checkpoint.pt").items() if name not in TIMES}


@pytest.mark.parametrize("strategy", OWN)
def test_both_processes_find_the_same(pair: Pair, strategy: str) -> None:
    first, second = (each[strategy] for each in pair.of("strategies"))
    assert same_bits(first, second)
    record = last_record(pair.folder / strategy)
    assert record["event"] == "end"
    assert record["valid_accuracy"] == first["accuracy"]


@pytest.mark.parametrize("strategy", OWN)
def test_one_of_them_writes(pair: Pair, strategy: str) -> None:
    run = pair.folder / strategy
    epochs = [event["epoch"] for event in events(run) if event["event"] == "epoch"]
    assert epochs == list(range(len(epochs)))
    assert (run / "report.html").exists()
    assert len(list((run / "tensorboard").iterdir())) == 1
    assert len(load_checkpoint(run / "checkpoint.pt")["ranks"]) == 2


@pytest.mark.parametrize("strategy", ["darts", "pc-darts --warm-up 0", "snas --search-drop-path 0", "gdas"])
def test_two_halves_of_a_batch_equal_the_whole(pair: Pair, strategy: str) -> None:
    for found in pair.of("halves"):
        both, alone = found[strategy]
        for a, b in zip(both, alone, strict=True):
            assert a.dtype == torch.float64
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)
    assert same_bits(*(found[strategy][0] for found in pair.of("halves")))


def test_recorded_steps_end_in_the_same_bits(pair: Pair) -> None:
    for plain, recorded, count in pair.of("recordings"):
        assert same_bits(plain, recorded)
        assert count >= 4  # gradients and the optimizer's step, in two epochs at least


def test_a_population_is_scored_as_by_one_process(pair: Pair) -> None:
    for found in pair.of("population"):
        assert same_bits(found[0], found[1])
        assert same_bits(found[2], found[3])
        assert len(set(found[0][0].tolist())) == 5


def test_an_evaluation_counts_every_image_once(pair: Pair) -> None:
    for parts, whole in pair.of("evaluation"):
        assert parts["images"] == whole["images"] == 91
        assert parts["loss"] == pytest.approx(whole["loss"], rel=1e-6)
        assert {**parts, "loss": 0} == {**whole, "loss": 0}


def test_errors_reach_both_and_are_told_by_one(pair: Pair) -> None:
    first, second = pair.of("errors")
    bad, differs = "item 3 is bad", "at the end process 1 has not the same genotype as process 0: do something."
    assert first == [f"ToldElsewhereError: {bad}", f"UserError: {differs}", f"ToldElsewhereError: {bad}"]
    assert second == [f"UserError: {bad}", f"ToldElsewhereError: {differs}", f"UserError: {bad}"]


def test_processes_that_disagree_about_alpha_stop(pair: Pair) -> None:
    for message in pair.of("disagreement"):
        assert message.startswith("after epoch 1 process 1 has not the same α as process 0: whatever a strategy draws")


def test_a_signal_to_one_stops_both_at_the_same_step(pair: Pair) -> None:
    for found in pair.of("interrupted"):
        assert found == ["interrupted", 1, 1, "SIGTERM", "finished"]
    assert same_bits(state_of(pair.folder / "interrupted"), state_of(pair.folder / "snas"))
    said = [event for event in events(pair.folder / "interrupted") if event["event"] != "interrupted"]
    assert said == [event for event in events(pair.folder / "snas") if event["event"] != "interrupted"]


def test_a_training(pair: Pair) -> None:
    first, second = pair.of("training")
    assert first["status"] == second["status"] == 0
    assert not torch.equal(first["masks"], second["masks"]), "both processes drop the same paths"
    record = last_record(pair.folder / "trained")
    assert record["event"] == "end"
    assert record["test"]["images"] == 355  # all test images of the digits
    assert (pair.folder / "trained" / "network.safetensors").exists()


# --- a process that is killed ---


def test_the_other_one_stops_with_a_clear_line(killed: Killed) -> None:
    assert killed.status == 2
    assert killed.seconds < 60
    (line,) = [line for line in killed.error.splitlines() if "error" in line and not line.startswith("[")]
    assert line.startswith("error: another process of this run has ended (…")
    assert "this one stops, too." in line
    assert "--resume" in line


def test_the_run_goes_on_exactly(pair: Pair) -> None:
    for statuses in pair.of("resumed_after_a_kill"):
        assert statuses == ["finished", "finished"]
    assert same_bits(state_of(pair.folder / "killed"), state_of(pair.folder / "whole"))
    assert events(pair.folder / "killed") == events(pair.folder / "whole")


def test_another_number_of_processes_is_refused(pair: Pair) -> None:
    resume = ["--resume", str(pair.folder / "killed")]
    with pytest.raises(UserError, match=r"has 2 processes, not 1: start it torchrun --nproc-per-node 2, or give --ela"):
        prepare(parse_search(resume, "test", ""))


def test_an_elastic_run_goes_on(pair: Pair) -> None:
    search = prepare(parse_search(["--resume", str(pair.folder / "own" / "prepared-2"), "--elastic"], "test", ""))
    assert search.epoch == 0
    assert search.run().status == "finished"
