"""The options of `fastnas.train`: the same layers as those of a search, with groups and presets of their own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from fastnas.configuration import PRESETS, option_files, parse_layers, plain_options
from fastnas.engine.recipe import DerivedOptions, RecipeOptions, TrainDataOptions, TrainRunOptions

TRAIN_PRESETS = PRESETS / "train"
TRAIN_GROUPS = ("network", "data", "recipe", "run")


@dataclass(frozen=True)
class TrainCommandOptions:
    """Where the options come from."""

    preset: str | None = None
    """darts-cifar10, pc-darts-cifar10, p-darts-cifar10, egnas-cifar10, egnas-cifar100, darts-imagenet or
    egnas-imagenet: the recipe of a paper."""
    config: Path | None = None
    """YAML file with options, such as config.yaml of a run."""
    resume: Path | None = None
    """Run directory to continue, exactly where its checkpoints stand."""
    print_config: bool = False
    """Print the resolved options as YAML and exit."""


@dataclass(frozen=True)
class TrainOptions:
    """Every option of a retraining."""

    command: TrainCommandOptions
    network: DerivedOptions
    data: TrainDataOptions
    recipe: RecipeOptions
    run: TrainRunOptions

    def to_dict(self) -> dict[str, dict[str, Any]]:
        """Plain values by group, as config.yaml holds them."""
        return {name: plain_options(getattr(self, name)) for name in TRAIN_GROUPS}

    def to_yaml(self) -> str:
        return yaml.safe_dump(self.to_dict(), sort_keys=False, allow_unicode=True)


def parse_train(arguments: Sequence[str], program: str, description: str) -> TrainOptions:
    """Options of `fastnas.train`; raises what `fastnas.configuration.parse` raises."""
    defaults = TrainOptions(
        TrainCommandOptions(), DerivedOptions(), TrainDataOptions(), RecipeOptions(), TrainRunOptions()
    )
    files = option_files(arguments, TRAIN_PRESETS, TRAIN_GROUPS)
    return parse_layers(defaults, TRAIN_GROUPS, files, arguments, program, description)
