"""A run that was cut into pieces ends in the same bits as one that was not."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from run_files import SMALL, events, same_bits

from fastnas.cli.configuration import parse_search
from fastnas.engine.checkpoint import load_checkpoint
from fastnas.engine.search import Search
from fastnas.errors import UserError
from fastnas.search import prepare

TIMES = ("seconds", "log_position", "options")


def final_state(search: Search) -> dict:
    state = load_checkpoint(search.checkpoint_path)
    return {key: value for key, value in state.items() if key not in TIMES}


def stop_at(search: Search, call: int) -> None:
    """As if a signal arrived before the `call`-th time that the run looks for one."""
    look, calls = search.check_stop, 0

    def check_stop() -> None:
        nonlocal calls
        calls += 1
        if calls == call:
            search._guard.requested = "SIGTERM"
        look()

    search.check_stop = check_stop


@pytest.fixture
def whole(small):
    """An uninterrupted run."""
    search = small("whole")
    outcome = search.run()
    assert outcome.status == "finished"
    return search, outcome


@pytest.mark.parametrize("variant", ["paper", "official", "official_imagenet"])
def test_two_halves_equal_one_whole(small, variant):
    whole, first = small("whole", "--variant", variant), small("halves", "--variant", variant, "--stop-after", "2")
    expected = whole.run()
    assert first.run().status == "stopped"
    second = small("halves")
    outcome = second.run()
    assert (outcome.status, outcome.epoch) == ("finished", 4)
    assert outcome.genotype == expected.genotype
    assert events(second.directory) == events(whole.directory)
    assert same_bits(final_state(second), final_state(whole))
    assert (second.directory / "genotype.json").read_bytes() == (whole.directory / "genotype.json").read_bytes()


@pytest.mark.parametrize("call", [1, 3, 4, 5, 6, 9])
def test_interrupted_anywhere(small, whole, call):
    """Within an epoch's weight steps, at their end, and between the generations of an evolution step."""
    expected, outcome = whole
    first = small("cut")
    stop_at(first, call)
    assert first.run().status == "interrupted"
    assert events(first.directory)[-1]["event"] == "interrupted"
    second = small("cut")
    assert second.run().genotype == outcome.genotype
    assert events(second.directory) == events(expected.directory)
    assert same_bits(final_state(second), final_state(expected))


def test_interrupted_at_every_place_in_turn(small, whole):
    expected, _ = whole
    for _ in range(100):
        search = small("crumbs")
        stop_at(search, 2)
        if search.run().status == "finished":
            break
    assert events(search.directory) == events(expected.directory)
    assert same_bits(final_state(search), final_state(expected))


def test_a_real_signal_saves_and_stops(small, whole):
    expected, _ = whole
    search = small("signalled")
    step = search.strategy.before_step
    search.strategy.before_step = lambda s: (step(s), s.step == 1 and signal.raise_signal(signal.SIGTERM))
    before = signal.getsignal(signal.SIGTERM)
    assert search.run().status == "interrupted"
    assert signal.getsignal(signal.SIGTERM) is before
    second = small("signalled")
    second.run()
    assert same_bits(final_state(second), final_state(expected))


def test_what_was_written_after_the_checkpoint_is_dropped(small, whole):
    """A killed process may have logged an epoch whose checkpoint never came."""
    expected, _ = whole
    small("killed", "--stop-after", "2").run()
    directory = small("killed").directory
    with (directory / "metrics.jsonl").open("a") as file:
        file.write('{"event": "epoch", "epoch": 2, "lost": true}\n{"event": "torn')
    search = small("killed")
    search.run()
    assert events(directory) == events(expected.directory)


def test_clocks_of_older_checkpoints_go_on(small):
    """They called the time of the strategy's hooks "evolution"."""
    first = small("old")
    stop_at(first, 5)  # within an evolution step
    first.run()
    state = load_checkpoint(first.checkpoint_path)
    state["seconds"] = {"evolution": 1000.0, "data": 2.0}
    torch.save(state, first.checkpoint_path)
    second = small("old")
    second.run()
    lines = map(json.loads, (second.directory / "metrics.jsonl").read_text().splitlines())
    seconds = [line["seconds"] for line in lines if line["event"] == "epoch"]
    assert all(set(each) == {"strategy", "data", "train", "valid"} for each in seconds)
    assert [each["strategy"] > 1000 for each in seconds] == [epoch == state["clock"]["epoch"] for epoch in range(4)]


def test_a_checkpoint_is_whole_or_not_at_all(small, monkeypatch):
    search = small("disk")
    search.save()
    before = search.checkpoint_path.read_bytes()

    def full_disk(state, file) -> None:
        file.write(b"half of it")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full_disk)
    with pytest.raises(OSError, match="No space"):
        search.save()
    assert search.checkpoint_path.read_bytes() == before
    assert load_checkpoint(search.checkpoint_path)["clock"]["epoch"] == 0


def test_other_options_are_refused_by_name(small):
    small("run", "--stop-after", "1").run()
    with pytest.raises(UserError, match=r"weights.learning_rate is 0.5 but was 0.05"):
        small("run", "--learning-rate", "0.5")
    small("run", "--threads", str(torch.get_num_threads()), "--stop-after", "1").run()


def test_other_images_are_refused(tmp_path: Path):
    def arrays(count: int) -> None:
        images = np.random.default_rng(0).integers(0, 255, (count, 8, 8), dtype=np.uint8)
        np.savez(tmp_path / "images.npz", images=images, labels=np.arange(count) % 2)

    arrays(80)
    flags = [
        *SMALL,
        "--limit",
        "1000",
        "--test",
        "none",
        "--data",
        f"npz:{tmp_path / 'images.npz'}",
        "--out",
        str(tmp_path / "run"),
    ]
    prepare(parse_search([*flags, "--stop-after", "1"], "test", "")).run()
    log = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    arrays(90)
    with pytest.raises(UserError, match=r"images\.npz are not those that the run in .* count is 90 but was 80"):
        prepare(parse_search(["--resume", str(tmp_path / "run")], "test", ""))
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == log


def test_damaged_and_missing_checkpoints_are_named(small, tmp_path: Path):
    search = small("damaged", "--stop-after", "1")
    search.run()
    content = search.checkpoint_path.read_bytes()
    for damaged in (content[:100], b"", b"text", content[: len(content) // 2]):
        search.checkpoint_path.write_bytes(damaged)
        with pytest.raises(UserError, match=r"checkpoint\.pt is not a checkpoint of fastnas"):
            small("damaged")
    with pytest.raises(UserError, match="no checkpoint at"):
        load_checkpoint(tmp_path / "nowhere" / "checkpoint.pt")


def test_a_checkpoint_with_code_in_it_is_not_run(tmp_path: Path):
    class Attack:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "owned",))

    torch.save({"format": 1, "attack": Attack()}, tmp_path / "checkpoint.pt")
    with pytest.raises(UserError, match="not a checkpoint"):
        load_checkpoint(tmp_path / "checkpoint.pt")
    assert not (tmp_path / "owned").exists()
