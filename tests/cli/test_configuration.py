"""Where options come from: defaults, presets, files, flags."""

from __future__ import annotations

import itertools
import math
import re
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from fastnas import search
from fastnas.cli.configuration import FORMERLY, SearchOptions, differences, parse_search, parse_train
from fastnas.cli.options import SearchRunOptions, SupernetOptions
from fastnas.data import imagenet
from fastnas.engine.options import WeightOptions
from fastnas.errors import UserError
from fastnas.strategies import STRATEGIES


def options(*arguments: str) -> SearchOptions:
    return parse_search(arguments, "test", "")


def test_later_places_override_earlier_ones(tmp_path: Path):
    config = tmp_path / "mine.yaml"
    config.write_text(
        "weights: {epochs: 33, clip: 1.5}\ndata: {flip: true, download: true}\nrun: {deterministic: true}\n"
    )
    merged = options("--preset", "demo", "--config", str(config), "--clip", "2", "--no-deterministic")
    assert merged.weights.weight_decay == 3e-4  # default
    assert merged.network.partial_channels == 4  # the strategy's
    assert (merged.network.channels, merged.strategy.population) == (8, 20)  # preset
    assert merged.weights.epochs == 33  # file over preset
    assert merged.weights.clip == 2  # flag over file
    assert (merged.data.flip, merged.data.download, merged.run.deterministic) == (True, True, False)


@pytest.mark.parametrize("name", SearchOptions.preset_names())
def test_presets_are_complete(name):
    preset = options("--preset", name)
    assert preset.strategy.rules.warm_up < preset.weights.epochs
    assert preset.strategy.name == "egnas"
    assert preset.strategy.variant == {"cifar10": "paper", "imagenet": "official_imagenet"}.get(name, "decided")


def test_presets_are_the_published_settings():
    cifar10, large = options("--preset", "cifar10"), options("--preset", "imagenet")
    assert SearchOptions.preset_names() == ["cifar10", "demo", "imagenet", "images"]
    assert cifar10.network == SupernetOptions(channels=16, layers=8, partial_channels=4)
    assert cifar10.weights == WeightOptions(epochs=50, learning_rate=0.1, momentum=0.9, weight_decay=3e-4, clip=5)
    assert cifar10.data.batch_size == 256
    strategy = cifar10.strategy.rules
    assert (strategy.warm_up, strategy.population, strategy.samples, strategy.fitness_batch_size) == (15, 50, 3, 128)
    assert (large.network.stem, large.data.batch_size, large.weights.learning_rate) == ("imagenet", 1024, 0.5)
    assert large.weights.learning_rate_warm_up == 5
    assert (large.weights.epochs, large.weights.weight_decay) == (80, 3e-4)
    strategy = large.strategy.rules
    assert (strategy.warm_up, strategy.samples, strategy.fitness_batch_size) == (40, 5, 512)


def test_pc_darts_searches_imagenet_as_its_program_does():
    found = options("--preset", "imagenet", "--strategy", "pc-darts", "--data", "imagenet:x")
    weights, images, strategy = found.weights, found.data, found.strategy
    assert (weights.epochs, weights.learning_rate, weights.learning_rate_min) == (50, 0.5, 0.0)
    assert (weights.learning_rate_warm_up, weights.weight_decay, weights.clip) == (5, 3e-4, 5.0)
    assert (found.network.stem, found.network.partial_channels) == ("imagenet", 2)
    assert (found.network.channels, found.network.layers, images.image_size) == (16, 8, 224)
    assert (images.batch_size, images.validation_augment, images.color_jitter) == (1024, True, False)
    assert images.limit == math.ceil(1_281_167 / 8)  # 12.5 % of the training images
    assert images.split == pytest.approx(10 / 12.5)
    assert (strategy.warm_up, strategy.alpha_learning_rate, strategy.alpha_weight_decay) == (35, 6e-3, 1e-3)


SIZES = {
    "data": ("data", "batch_size", "image_size", "workers"),
    "network": ("channels", "layers", "stem"),
    "weights": ("epochs",),
}
PUBLISHED = {"cifar10": {}, "imagenet": {"data": ("data", "image_size", "workers"), "network": ("stem",)}}


@pytest.mark.parametrize("preset", SearchOptions.preset_names())
@pytest.mark.parametrize("name", STRATEGIES)
def test_a_preset_leaves_what_a_strategy_published(name, preset):
    """It sets data and sizes, and more for EG-NAS and for PC-DARTS on ImageNet alone; those of papers set no sizes of
    CIFAR-10 either."""
    if name == "egnas" or (name, preset) == ("pc-darts", "imagenet"):
        return
    published = options("--strategy", name).to_dict()
    found = options("--strategy", name, "--preset", preset).to_dict()
    for group, values in published.items():
        free = PUBLISHED.get(preset, SIZES).get(group, ())
        assert {key: value for key, value in found[group].items() if key not in free} == {
            key: value for key, value in values.items() if key not in free
        }


def test_a_printed_config_says_where_values_come_from(capsys, tmp_path: Path):
    (tmp_path / "mine.yaml").write_text("weights: {clip: 1.5, momentum: 0.8}\nstrategy: {name: egnas, warm_up: 3}\n")
    flags = ["--config", str(tmp_path / "mine.yaml"), "--momentum=0.7", "--flip", "False", "--print-config"]
    assert search.main(["--strategy", "multi-level", "--preset", "demo", *flags]) == 0
    printed = capsys.readouterr().out
    said = dict(re.findall(r"^  (\w+): .*  # (.*)$", printed, re.M))
    expected = {
        "name": "command line", "channels": "preset demo", "partial_channels": "strategy multi-level",
        "clip": str(tmp_path / "mine.yaml"), "momentum": "command line", "flip": "command line", "warm_up": "default",
        "weight_decay": "default", "data": "preset demo",
    }  # fmt: skip
    assert {name: said[name] for name in expected} == expected
    values = yaml.safe_load(printed)
    assert len(said) == sum(map(len, values.values()))
    assert search.main(["--preset", "demo", "--print-config"]) == 0
    printed = capsys.readouterr().out
    assert "  step_size: null  # 1.0, default\n" in printed
    assert "  population: 20  # preset demo\n" in printed


def test_colours_of_imagenet_are_jittered_on_demand_only():
    own = imagenet.AUGMENTATION
    found = options("--preset", "imagenet").data.augmentation(own)
    assert found == replace(own, color_jitter=(0, 0, 0, 0))
    assert options("--preset", "imagenet", "--color-jitter").data.augmentation(own) == own


def test_a_run_that_goes_on_keeps_what_was_always_so(tmp_path: Path):
    """Options that its config.yaml does not know yet have the values of that time."""
    former = options("--preset", "demo", "--variant", "paper").to_dict()
    for group, name in FORMERLY:
        former[group].pop(name, None)
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(former))
    resumed = options("--resume", str(tmp_path))
    assert (resumed.data.test, resumed.data.color_jitter, resumed.data.validation_augment) == ("none", True, False)
    assert resumed.strategy.rules.evolve == "before"
    assert differences(former, resumed, movable=False) == []
    former["strategy"] = {"name": "enas"}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(former))
    assert options("--resume", str(tmp_path)).strategy.auxiliary_weight == 0
    former["strategy"] = {"name": "darts"}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(former))
    assert options("--resume", str(tmp_path)).strategy.name == "darts"


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


def test_options_check_themselves():
    for make in (lambda: SearchRunOptions(stop_after=0), lambda: WeightOptions(learning_rate=float("nan"))):
        with pytest.raises(UserError, match="expected"):
            make()


# --- what config.yaml and checkpoints hold: a run that an earlier version began must go on ---

SEARCH = {
    "network": "space channels layers partial_channels stem backend initial_weights",
    "data": "data test pipeline batch_size split alpha_images image_size limit normalise crop_padding flip cutout "
    "color_jitter validation_augment workers prefetch skip_unreadable check_images download",
    "weights": "epochs learning_rate learning_rate_min learning_rate_warm_up legacy_scheduler momentum nesterov "
    "weight_decay clip search_drop_path search_drop_path_schedule precision",
    "run": "out device seed deterministic cuda_graphs threads validate_every evidence stop_after elastic budget",
}
TRAIN = {
    "network": "genotype space channels layers stem auxiliary auxiliary_norm backend",
    "data": "data test validation pipeline batch_size image_size evaluated_share limit normalise crop_padding "
    "crop_scale flip cutout brightness contrast saturation hue workers prefetch skip_unreadable check_images download",
    "recipe": "epochs learning_rate learning_rate_min schedule learning_rate_decay learning_rate_warm_up "
    "legacy_scheduler momentum weight_decay clip auxiliary_weight label_smoothing drop_path drop_path_schedule "
    "precision ema accumulate compile channels_last",
    "run": "out device seeds select deterministic threads validate_every stop_after elastic budget",
}


def test_groups_and_options_keep_their_names_and_order():
    found = options().to_dict()
    assert list(found) == ["strategy", *SEARCH]
    assert {group: " ".join(found[group]) for group in SEARCH} == SEARCH
    assert {group: " ".join(values) for group, values in parse_train([], "test", "").to_dict().items()} == TRAIN


def test_only_what_does_not_matter_may_differ_when_a_run_goes_on():
    run = options("--preset", "demo").to_dict()
    now = options("--preset", "demo", "--out", "x", "--workers", "2", "--threads", "1")
    assert differences(run, now, movable=False) == []
    changed = differences(run, options("--preset", "demo", "--clip", "2", "--space", "darts"), movable=True)
    assert changed == ["network.space is 'darts' but was None", "weights.clip is 2.0 but was 5.0"]


def test_an_option_that_a_run_did_not_know_yet_was_its_default():
    run = options("--preset", "demo").to_dict()
    del run["data"]["check_images"], run["weights"]["nesterov"]
    assert differences(run, options("--preset", "demo"), movable=False) == []
    now = options("--preset", "demo", "--check-images", "bytes")
    assert differences(run, now, movable=False) == ["data.check_images is 'bytes' but was 'sizes'"]


def test_images_may_move_where_they_are_compared(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for was, now, movable, same in (
        ("folder:here", "folder:there", True, True),
        ("folder:here", "folder:there", False, False),
        ("folder:here", f"folder:{tmp_path}/here", False, True),
        ("folder:here", "imagenet:here", True, False),
        ("folder:here", "digits", True, False),
        ("digits", "folder:here", True, False),
    ):
        found = differences(options("--data", was).to_dict(), options("--data", now), movable)
        assert found == ([] if same else [f"data.data is {now!r} but was {was!r}"])
