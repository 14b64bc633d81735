"""The time that a run still takes: after an epoch, within one, before the first has ended, and after a resume."""

from __future__ import annotations

import pytest

from fastnas.cli.progress import TRAIN_HEADER, train_line
from fastnas.cli.time_left import TimeLeft, short_time
from fastnas.engine.forecast import Forecast


def test_the_coming_epochs_are_like_the_last_three() -> None:
    now = 0.0
    left = TimeLeft(10, clock=lambda: now)
    assert left.seconds is None
    now = 3.0
    left.step("weights", 2, 8)  # a quarter of an epoch
    assert left.seconds == pytest.approx(12 * 10 - 3)
    left.step("evolution", 1, 2)
    assert left.seconds == pytest.approx(12 * 10 - 3)
    for epoch, seconds in enumerate((100.0, 20.0, 30.0, 40.0)):
        now += seconds
        left.epoch({"epoch": epoch})
    assert left.seconds == pytest.approx(30 * 6)
    now += 10
    assert left.seconds == pytest.approx(30 * 6 - 10)
    now += 1000
    assert left.seconds == pytest.approx(30 * 5)


def test_what_was_measured_before_the_run_is_corrected_by_it() -> None:
    now = 0.0
    forecast = Forecast([10.0, 10.0, 40.0, 40.0], 5.0, 0.0)  # evolution from the third epoch on
    left = TimeLeft(4, clock=lambda: now, forecast=forecast)
    assert left.seconds == pytest.approx(105)
    now = 4.0
    left.step("weights", 1, 8)  # the first steps are not typical
    assert left.seconds == pytest.approx(101)
    now = 20.0  # everything takes twice as long
    left.epoch({"epoch": 0})
    assert left.seconds == pytest.approx(2 * 95)
    now = 30.0
    assert left.seconds == pytest.approx(2 * 95 - 10)
    for epoch, seconds in enumerate((20.0, 40.0, 40.0), 1):
        now += seconds
        left.epoch({"epoch": epoch})
    assert left.seconds == pytest.approx(5 * 110 / 90)


def test_a_resumed_run_has_less_to_do() -> None:
    now = 0.0
    left = TimeLeft(10, done=8, clock=lambda: now)
    now = 5.0
    left.step("training", 1, 2)
    assert left.seconds == pytest.approx(15)
    now = 10.0
    left.epoch({"epoch": 8})
    assert left.seconds == pytest.approx(10)
    left.epoch({"epoch": 9})
    assert left.seconds == 0


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, "-"), (0.2, "0s"), (59.4, "59s"), (59.7, "1m00s"), (185, "3m05s"), (3599.8, "1h00m"),
        (9600, "2h40m"), (86400 * 5 + 3600 * 3, "5d03h"), (86400 * 345, "345d"),
    ],
)  # fmt: skip
def test_short_times(seconds: float | None, text: str) -> None:
    assert short_time(seconds) == text
    assert len(text) <= 6


def test_a_line_of_a_training_fits() -> None:
    record = {
        "epoch": 599, "learning_rate": 0.025, "drop_path": 0.3, "train_loss": 2.3, "train_accuracy": 0.1,
        "valid_loss": 2.3, "valid_accuracy": 1.0, "test_accuracy": None, "seconds": {"train": 99999.0},
    }  # fmt: skip
    assert len(train_line(record, 600, 9600.0)) == len(TRAIN_HEADER) <= 79
