"""The line before a run, --dry-run and --budget."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from fastnas import search, train
from fastnas.cli import estimate
from fastnas.cli.duration import in_words, seconds_of
from fastnas.engine.forecast import Forecast
from fastnas.engine.rehearsal import SearchRehearsal, TrainingRehearsal
from fastnas.errors import UserError

SEARCH = [
    *("--data", "digits", "--limit", "80", "--batch-size", "16", "--channels", "4", "--layers", "3", "--epochs", "2"),
    *("--warm-up", "1", "--population", "4", "--samples", "1", "--fitness-batch-size", "20", "--device", "cpu"),
]
TRAIN = [
    *("--data", "digits", "--limit", "120", "--image-size", "8", "--genotype", "DARTS_V2", "--channels", "2"),
    *("--layers", "3", "--batch-size", "16", "--epochs", "1", "--cutout", "0", "--device", "cpu"),
]


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every epoch of a search or a training is expected to take a minute."""
    for kind in (SearchRehearsal, TrainingRehearsal):
        monkeypatch.setattr(kind, "measure", lambda self: True)
        monkeypatch.setattr(kind, "forecast", lambda self, epochs: Forecast([60.0] * epochs, 0.0, 1331.2))


def test_a_dry_run_measures_and_writes_nothing(tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    monkeypatch.chdir(tmp_path)
    assert search.main([*SEARCH, "--dry-run"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("egnas on digits: 80 images")
    assert "; nothing is written" in lines[1]
    assert lines[-1].startswith("estimate  about ")
    assert " for 2 epochs, " in lines[-1]
    assert lines[-1].endswith(" of memory at its peak")
    assert not list(tmp_path.iterdir())
    assert train.main([*TRAIN, "--dry-run", "--seeds", "1,2", "--out", "run"]) == 0
    assert "for 1 epoch for each of 2 seeds, " in capsys.readouterr().out.splitlines()[-1]
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("measured")
def test_a_run_of_many_steps_begins_with_an_estimate(tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    line = "estimate  about 2 min for 2 epochs, 1.3 GiB of memory at its peak"
    assert search.main([*SEARCH, "--out", str(tmp_path / "short")]) == 0
    assert "estimate" not in capsys.readouterr().out
    monkeypatch.setattr(estimate, "FEWEST_STEPS", 4)
    assert search.main([*SEARCH, "--out", str(tmp_path / "run"), "--stop-after", "1"]) == 0
    text = capsys.readouterr().out
    assert line in text
    assert text.index(line) < text.index("val_acc")
    monkeypatch.setattr(estimate, "FEWEST_STEPS", 2)
    assert search.main(["--resume", str(tmp_path / "run")]) == 0
    assert "estimate  about 60 s for the remaining 1 epoch, 1.3 GiB" in capsys.readouterr().out


@pytest.mark.usefixtures("measured")
def test_a_budget_gives_the_epochs_and_a_resume_keeps_them(tmp_path: Path, capsys: Any) -> None:
    out = tmp_path / "run"
    assert search.main([*SEARCH, "--epochs", "50", "--budget", "3.5m", "--stop-after", "1", "--out", str(out)]) == 0
    assert "for 3 epochs, 1.3 GiB" in capsys.readouterr().out
    config = (out / "config.yaml").read_text()
    assert "  epochs: 3  # fitted to --budget 3.5m\n" in config
    assert yaml.safe_load(config)["run"]["budget"] is None
    assert search.main(["--resume", str(out), "--budget", "1h"]) == 2
    assert "keeps its number of epochs" in capsys.readouterr().err
    assert search.main(["--resume", str(out)]) == 0
    assert " 3/3 " in capsys.readouterr().out
    assert (out / "config.yaml").read_text() == config


@pytest.mark.usefixtures("measured")
def test_seeds_share_a_budget(tmp_path: Path, capsys: Any) -> None:
    out = tmp_path / "run"
    assert train.main([*TRAIN, "--epochs", "50", "--budget", "5m", "--seeds", "1,2", "--out", str(out)]) == 0
    text = capsys.readouterr().out
    assert "estimate  about 2 min for 2 epochs for each of 2 seeds, 4 min in all" in text
    assert text.count("estimate") == 1
    for folder in (out, out / "seed-1", out / "seed-2"):
        assert "  epochs: 2  # fitted to --budget 5m\n" in (folder / "config.yaml").read_text()
    assert train.main(["--resume", str(out)]) == 0


@pytest.mark.usefixtures("measured")
@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--budget", "90s"], "--budget 90s is too little: 2 epochs, the fewest that this run can have, would take"),
        (["--budget", "2"], "budget is '2', expected a time with its unit, such as 90s"),
        (["--budget", "0h"], "budget is '0h', expected a time"),
        (["--budget", "1w"], "budget is '1w', expected a time"),
    ],
)
def test_budgets_that_cannot_be_kept(tmp_path: Path, capsys: Any, flags: list[str], expected: str) -> None:
    out = tmp_path / "run"
    assert search.main([*SEARCH, *flags, "--out", str(out)]) == 2
    assert expected in " ".join(capsys.readouterr().err.split())
    assert not out.exists()


def test_nothing_is_said_that_is_not_known(tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    monkeypatch.setattr(SearchRehearsal, "measure", lambda self: False)
    assert search.main([*SEARCH, "--dry-run"]) == 0
    assert "estimate  none: what an epoch of this run costs is unknown before it has run" in capsys.readouterr().out
    assert search.main([*SEARCH, "--budget", "1h", "--out", str(tmp_path / "run")]) == 2
    assert "what an epoch of this run costs is unknown" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("45m", 2700), ("1.5h", 5400), ("1h30m", 5400), ("2d", 172800)]
)
def test_durations(text: str, seconds: float) -> None:
    assert seconds_of(text) == seconds


@pytest.mark.parametrize("text", ["", "h", "-1h", "1h x", "1e3s", "99999999d", "1 h"])
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(UserError, match="expected a time with its unit"):
        seconds_of(text)


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.2, "1 s"), (45.4, "45 s"), (100, "2 min"), (5300, "88 min"), (9000, "2.5 h"), (200_000, "2.3 days")],
)
def test_words_for_times(seconds: float, words: str) -> None:
    assert in_words(seconds) == words
