"""The command line: where options come from, and one clear line for what cannot work."""

from __future__ import annotations

import itertools
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from fastnas import configuration, search
from fastnas.configuration import parse, preset_names
from fastnas.engine.options import NetworkOptions, RunOptions, WeightOptions
from fastnas.errors import UserError


def options(*arguments: str) -> configuration.SearchOptions:
    return parse(arguments, "test", "")


# --- where options come from ---


def test_later_places_override_earlier_ones(tmp_path: Path):
    config = tmp_path / "mine.yaml"
    config.write_text(
        "weights: {epochs: 33, clip: 1.5}\ndata: {flip: true, download: true}\nrun: {deterministic: true}\n"
    )
    merged = options("--preset", "cifar10", "--config", str(config), "--clip", "2", "--no-deterministic")
    assert merged.weights.weight_decay == 3e-4  # default
    assert merged.strategy.samples == 3  # preset
    assert merged.weights.epochs == 33  # file over preset
    assert merged.weights.clip == 2  # flag over file
    assert (merged.data.flip, merged.data.download, merged.run.deterministic) == (True, True, False)


@pytest.mark.parametrize("name", preset_names())
def test_presets_are_complete(name):
    preset = options("--preset", name)
    assert preset.strategy.warm_up < preset.weights.epochs
    assert preset.strategy.name == "egnas"


def test_presets_are_the_published_settings():
    cifar10, imagenet = options("--preset", "cifar10"), options("--preset", "imagenet")
    assert preset_names() == ["cifar10", "demo", "imagenet"]
    assert cifar10.network == NetworkOptions(channels=16, layers=8, partial_channels=4)
    assert cifar10.weights == WeightOptions(epochs=50, learning_rate=0.1, momentum=0.9, weight_decay=3e-4, clip=5)
    strategy = cifar10.strategy
    assert (strategy.warm_up, strategy.population, strategy.samples, strategy.fitness_batch_size) == (15, 50, 3, 128)
    assert (imagenet.network.stem, imagenet.data.batch_size, imagenet.weights.learning_rate) == ("imagenet", 1024, 0.5)
    assert imagenet.weights.learning_rate_warm_up == 5
    assert (imagenet.strategy.warm_up, imagenet.strategy.samples, imagenet.strategy.fitness_batch_size) == (40, 5, 512)


def test_a_printed_config_gives_the_same_options(capsys, tmp_path: Path):
    flags = ["--preset", "demo", "--variant", "official", "--chunk", "3", "--eta", "0.25", "--bn-mode", "batch"]
    assert search.main([*flags, "--print-config"]) == 0
    printed = capsys.readouterr().out
    (tmp_path / "config.yaml").write_text(printed)
    again = options("--config", str(tmp_path / "config.yaml"))
    assert again.to_dict() == options(*flags).to_dict() == yaml.safe_load(printed)
    assert (again.strategy.variant, again.strategy.chunk, again.strategy.rules.bn_mode) == ("official", 3, "batch")


def test_a_variant_brings_its_own_defaults():
    assert options().strategy.rules.sigma_schedule == "es_step"
    assert options("--variant", "official").strategy.rules.sigma_schedule == "constant"


def test_no_arguments_run_the_demo_and_say_so(capsys, monkeypatch):
    seen = []

    def stop(options, arguments):
        seen.append(options)
        raise UserError("enough")

    monkeypatch.setattr(search, "prepare", stop)
    assert search.main([]) == 2
    assert "running the demo preset" in capsys.readouterr().out
    assert seen[0].data.data == "digits"


def test_help_names_every_option_and_fits_screens(capsys):
    with pytest.raises(SystemExit) as end:
        options("--help")
    assert end.value.code == 0
    text = capsys.readouterr().out
    flags = "preset config print-config strategy data out resume device seed deterministic population warm-up eta limit"
    for name in flags.split():
        assert f"--{name}" in text
    titles = [index for index, line in enumerate(text.splitlines()) if re.search(r"^\W*\w+ options\W*$", line)]
    assert len(titles) >= 6
    assert max(after - before for before, after in itertools.pairwise([*titles, text.count("\n")])) <= 60


# --- errors: one line, status 2, no traceback ---


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
        (["--preset", "cifer10"], "unknown preset 'cifer10': expected one of cifar10, demo, imagenet"),
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
        (["--preset", "demo", "--epochs", "0"], "epochs is 0, expected at least 1"),
        (["--preset", "demo", "--epochs", "3"], "warm_up is 7 epochs, but the search has 3"),
        (["--preset", "demo", "--channels", "6"], "cannot be cut into partial_channels=4"),
        (["--preset", "demo", "--space", "dart"], "unknown search space 'dart'"),
        (["--preset", "demo", "--batch-size", "5000"], "do not fill a batch of 5000"),
        (["--preset", "demo", "--split", "1.5"], "1.5"),
        (["--preset", "demo", "--population", "2"], "population is 2, expected at least 4"),
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
        with pytest.raises(SystemExit) as end:
            search.main(arguments)
        assert end.value.code == 2
        assert "Traceback" not in capsys.readouterr().err


def test_a_run_directory_that_cannot_be_made(capsys, tmp_path):
    (tmp_path / "file").write_text("")
    assert "cannot create the run directory" in message(
        capsys, "--preset", "demo", "--out", str(tmp_path / "file" / "run")
    )


def test_options_check_themselves():
    for make in (lambda: RunOptions(stop_after=0), lambda: WeightOptions(learning_rate=float("nan"))):
        with pytest.raises(UserError, match="expected"):
            make()


# --- the commands as a shell sees them ---


def shell(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, timeout=120, check=False)


def test_env_prints_versions_build_and_devices():
    result = shell("-m", "fastnas.env")
    assert result.returncode == 0, result.stderr
    for word in ("fastnas", "torch", "isa", "extension", "extension cuda", "threads"):
        assert any(line.startswith(word) for line in result.stdout.splitlines()), word


def test_the_console_script():
    assert "search" in shell("-m", "fastnas").stdout + shell("-m", "fastnas").stderr
    assert shell("-m", "fastnas", "nonsense").returncode == 1
    printed = shell("-m", "fastnas", "search", "--preset", "demo", "--print-config")
    assert yaml.safe_load(printed.stdout)["data"]["data"] == "digits", printed.stderr
