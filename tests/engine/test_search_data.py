"""What a search does with its images: waits are shown, lost files cost nothing, every pipeline resumes exactly."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console
from run_files import events, same_bits

from fastnas import search as command
from fastnas.cli.configuration import parse_search
from fastnas.cli.progress import HEADER, epoch_line, waiting_share
from fastnas.cli.summary import print_search_header
from fastnas.data.dali import is_installed
from fastnas.engine.checkpoint import load_checkpoint
from fastnas.engine.search import Search
from fastnas.errors import UserError
from fastnas.report import write_report
from fastnas.search import prepare

FLAGS = shlex.split(
    "--batch-size 4 --channels 4 --layers 2 --epochs 2 --learning-rate 0.05 --warm-up 1 --population 4 --samples 1 "
    "--fitness-batch-size 6 --device cpu --crop-padding 1 --cutout 2 --test none --no-evidence"
)
TIMES = ("seconds", "log_position", "options")
DALI = pytest.param("dali", marks=pytest.mark.skipif(not is_installed(), reason="needs NVIDIA DALI"))


@pytest.fixture
def images(tmp_path: Path) -> Path:
    for label in ("cat", "dog"):
        (tmp_path / "images" / label).mkdir(parents=True)
        for number in range(12):
            pixels = np.random.default_rng(number).integers(0, 256, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "images" / label / f"{number:02}.png")
    return tmp_path / "images"


def begin(images: Path, out: Path, *flags: str) -> Search:
    arguments = ["--data", f"folder:{images}", "--out", str(out), *FLAGS, *flags]
    return prepare(parse_search(arguments, "test", ""), arguments)


def go_on(out: Path) -> Search:
    return prepare(parse_search(["--resume", str(out)], "test", ""))


def final_state(search: Search) -> dict:
    return {key: value for key, value in load_checkpoint(search.checkpoint_path).items() if key not in TIMES}


@pytest.mark.parametrize("kind", [DALI, "torchvision", "tensor"])
def test_interrupted_in_mid_epoch_every_pipeline_goes_on_exactly(images: Path, tmp_path: Path, kind: str) -> None:
    whole = begin(images, tmp_path / "whole", "--pipeline", kind)
    assert whole.weight_pipeline.kind == kind
    outcome = whole.run()
    cut = begin(images, tmp_path / "cut", "--pipeline", kind)
    look = cut.check_stop

    def stop_after_the_second_step() -> None:
        if (cut.epoch, cut.step) == (0, 2):
            cut._guard.requested = "SIGTERM"
        look()

    cut.check_stop = stop_after_the_second_step
    assert cut.run().status == "interrupted"
    rest = go_on(tmp_path / "cut")
    assert (rest.epoch, rest.step) == (0, 2)
    assert rest.run().genotype == outcome.genotype
    assert events(rest.directory) == events(whole.directory)
    assert same_bits(final_state(rest), final_state(whole))


@pytest.mark.parametrize("kind", [DALI, "torchvision"])
def test_a_file_that_vanishes_is_named_and_costs_no_step(images: Path, tmp_path: Path, kind: str) -> None:
    whole = begin(images, tmp_path / "whole", "--pipeline", kind)
    whole.run()
    hurt = begin(images, tmp_path / "hurt", "--pipeline", kind)
    order = hurt.weight_pipeline.plan(0).order
    path = hurt.weight_pipeline.source.files[order[9]]  # of the third batch
    content = path.read_bytes()
    path.unlink()
    with pytest.raises(UserError, match=f"cannot read the image {path}: No such file") as caught:
        hurt.run()
    assert "\n" not in str(caught.value)
    path.write_bytes(content)
    rest = go_on(tmp_path / "hurt")
    assert (rest.epoch, rest.step) == (0, 2)
    rest.run()
    assert same_bits(final_state(rest), final_state(whole))


def test_what_was_skipped_is_listed_everywhere(images: Path, tmp_path: Path, capsys) -> None:
    for number in range(12):
        (images / "cat" / f"text{number:02}.jpg").write_text("hello")
    with pytest.raises(UserError, match=r"text00\.jpg"):
        begin(images, tmp_path / "run")
    search = begin(images, tmp_path / "run", "--skip-unreadable")
    assert len(search.weight_pipeline.source) == 24
    print_search_header(search, Console(width=200))
    shown = capsys.readouterr().out
    assert "12 unreadable files left out:" in shown
    assert "text09.jpg: it is not an image" in shown
    assert "text10" not in shown
    assert "and 2 more, all in metrics.jsonl and the report" in shown
    record = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[0])
    assert len(record["data"]["left_out"]) == 12
    assert "text11.jpg" in write_report(search.directory).read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--pipeline", "dali"], 'the dali pipeline needs NVIDIA DALI: pip install "fastnas[dali]"'),
        (["--prefetch", "0"], "prefetch is 0, expected a whole number from 1 to 1,024."),
        (["--workers", "-1"], "workers is -1"),
    ],
)
def test_what_cannot_work_is_said_in_one_line(images, tmp_path, capsys, monkeypatch, flags, message) -> None:
    monkeypatch.setattr("fastnas.data.dali.is_installed", lambda: False)
    assert command.main(["--data", f"folder:{images}", "--out", str(tmp_path / "run"), *FLAGS, *flags]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_the_time_spent_waiting_stands_in_every_line() -> None:
    record = {
        "epoch": 49,
        "alpha_entropy": {"normal": 1.9, "reduce": 1.7},
        "skip_count": {"normal": 2, "reduce": 1},
        "learning_rate": 0.1,
        "train_loss": 2.3,
        "train_accuracy": 0.1,
        "valid_loss": None,
        "valid_accuracy": None,
        "seconds": {"data": 1.0, "train": 3.0, "valid": 9.0},
    }
    assert waiting_share(record["seconds"]) == 0.25
    assert waiting_share({}) == 0
    line = epoch_line(record, 200)
    assert HEADER.endswith("wait")
    assert line.endswith(" 25%")
    assert len(line) == len(HEADER) <= 79
    assert epoch_line(record | {"seconds": {"data": 1.0, "train": 0.0}}, 200).endswith(" 100%")
