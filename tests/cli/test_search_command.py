"""`fastnas.search` as a command: one clear line for each error, and nothing left behind."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fastnas import api, search
from fastnas.errors import UserError


def test_no_arguments_run_the_demo_and_say_so(capsys, monkeypatch):
    seen = []

    def stop(options, arguments, console):
        seen.append(options)
        raise UserError("enough")

    monkeypatch.setattr(api, "run_search", stop)
    assert search.main([]) == 2
    assert "running the demo preset" in capsys.readouterr().out
    assert seen[0].data.data == "digits"


@pytest.fixture
def images(tmp_path: Path) -> Path:
    for label in ("cat", "dog"):
        (tmp_path / "images" / label).mkdir(parents=True)
        for index in range(3):
            pixels = np.random.default_rng(index).integers(0, 255, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "images" / label / f"{index}.png")
    return tmp_path / "images"


def message(capsys, *arguments: str) -> str:
    assert search.main(list(arguments)) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    assert "Traceback" not in captured.err + captured.out
    return captured.err


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--preset", "cifer10"], "unknown preset 'cifer10': expected one of cifar10, demo, imagenet, images"),
        (["--strategy", "egnass"], "unknown strategy 'egnass': did you mean 'egnas'?"),
        (["--config", "nowhere.yaml"], "cannot read config nowhere.yaml"),
        (["--resume", "nowhere"], "nothing to resume in nowhere"),
        (["--resume", "nowhere", "--preset", "demo"], "--resume takes its options from the run"),
        ([], "no images: give --data"),
        (["--data", "folder:nowhere"], "nowhere"),
        (["--data", "cifar10:nowhere"], "nowhere"),
        (["--data", "npz:nowhere.npz"], "nowhere.npz"),
        (["--data", "digitz"], "unknown data source 'digitz'; did you mean digits?"),
        (["--preset", "demo", "--device", "cuda:99"], "there is no device 'cuda:99'"),
        (["--preset", "demo", "--device", "gpu"], "unknown device 'gpu'"),
        (["--preset", "demo", "--epochs", "0"], "epochs is 0, expected a whole number from 1 to"),
        (["--preset", "demo", "--epochs", "3"], "warm_up is 7 epochs, but the search has 3"),
        (["--preset", "demo", "--channels", "6"], "cannot be cut into partial_channels=4"),
        (["--preset", "demo", "--space", "dart"], "unknown search space 'dart'"),
        (["--preset", "demo", "--batch-size", "5000"], "do not fill a batch of 5000"),
        (["--preset", "demo", "--split", "1.5"], "1.5"),
        (["--preset", "demo", "--population", "2"], "population is 2, expected a whole number from 4"),
        (["--preset", "demo", "--seed", "-1"], "seed is -1"),
    ],
)
def test_what_cannot_work_is_said_in_one_line(capsys, tmp_path, monkeypatch, arguments, expected):
    monkeypatch.chdir(tmp_path)
    if arguments == []:
        arguments = ["--epochs", "50"]
    assert expected in message(capsys, *arguments)
    assert not (tmp_path / "runs").exists() or not any((tmp_path / "runs").rglob("checkpoint.pt"))


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("weights: {epoch: 3}", "option of weights 'epoch' is unknown: did you mean 'epochs'?"),
        ("weight: {epochs: 3}", "group 'weight' is unknown: did you mean 'weights'?"),
        ("epochs: 3", "expected groups"),
        ("[1, 2", "is not YAML"),
        ("run: !!python/object/apply:os.system ['true']", "is not YAML"),
    ],
)
def test_config_files_are_checked(capsys, tmp_path, content, expected):
    config = tmp_path / "config.yaml"
    config.write_text(content)
    assert expected in message(capsys, "--config", str(config))


@pytest.mark.parametrize(
    ("flags", "option"),
    [
        ("--batch-size 1 --fitness-batch-size 2", "--batch-size 2 or more"),
        ("--strategy darts --batch-size 1", "--batch-size 2 or more"),
        ("--batch-size 2 --fitness-batch-size 1", "--fitness-batch-size 2 or more"),
        ("--strategy random --batch-size 2 --fitness-batch-size 1", "--fitness-batch-size 2 or more"),
        ("--batch-size 2 --fitness-batch-size 5", "fitness_batch_size is 5, but .*: lower --fitness-batch-size"),
    ],
)
def test_a_batch_of_one_that_cannot_be_normalised(capsys, images, tmp_path, flags, option):
    small = "--image-size 4 --channels 4 --layers 3 --partial-channels 1 --epochs 1 --warm-up 0 --device cpu"
    out = tmp_path / "run"
    assert re.search(
        option, message(capsys, "--data", f"folder:{images}", "--out", str(out), *f"{small} {flags}".split())
    )
    assert not (out / "checkpoint.pt").exists()


def test_damaged_images_stop_the_run_before_it_begins(capsys, images, tmp_path):
    (images / "dog" / "1.png").write_bytes((images / "dog" / "1.png").read_bytes()[:60])
    text = message(capsys, "--data", f"folder:{images}", "--batch-size", "2", "--out", str(tmp_path / "run"))
    assert "1.png" in text
    assert not (tmp_path / "run").exists()


def test_an_empty_class_folder_is_named(capsys, images):
    (images / "empty").mkdir()
    assert "empty" in message(capsys, "--data", f"folder:{images}")


def test_mixed_sizes_are_named_with_the_flag_that_helps(capsys, images):
    Image.new("RGB", (9, 8)).save(images / "dog" / "0.png")
    text = message(capsys, "--data", f"folder:{images}")
    assert "0.png" in text
    assert "--image-size" in text


def test_wrong_values_of_flags_end_with_status_2(capsys):
    for arguments in (["--epochs", "many"], ["--no-such-flag"], ["--pipeline", "dal"]):
        assert arguments[0] in message(capsys, *arguments)


def test_a_run_directory_that_cannot_be_made(capsys, tmp_path):
    (tmp_path / "file").write_text("")
    assert "cannot create the run directory" in message(
        capsys, "--preset", "demo", "--out", str(tmp_path / "file" / "run")
    )
