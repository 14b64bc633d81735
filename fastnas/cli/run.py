"""What preparing a search and preparing a training share: checkpoint, process, and what is recorded at the start."""

from __future__ import annotations

import datetime
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import torch
import yaml

from fastnas.atomic_file import replace_file
from fastnas.cli.configuration import Configuration, SearchOptions, TrainOptions, differences, to_text
from fastnas.cli.options import RunOptions
from fastnas.cli.places import PLACES
from fastnas.cli.process import make_deterministic, resolve_device
from fastnas.cli.run_directory import CHECKPOINT, RECORDS
from fastnas.data import Pipeline
from fastnas.engine.checkpoint import check_layout, load_checkpoint
from fastnas.engine.loop import Loop
from fastnas.engine.search import Search
from fastnas.env import environment
from fastnas.errors import UserError
from fastnas.world import ALONE, World

Arguments: TypeAlias = Sequence[str] | str
"""How a run was asked for: the words after the name of a command, or a call in Python."""


def command_of(program: str, arguments: Arguments) -> list[str]:
    """The words of a command; a call in Python is a single one."""
    return [arguments] if isinstance(arguments, str) else ["python", "-m", program, *arguments]


def resume_from(
    directory: Path, options: SearchOptions | TrainOptions, loop: type[Loop], world: World = ALONE
) -> dict[str, Any]:
    """The checkpoint of a run of a loop that is resumed.

    Raises:
        UserError: there is none, it is not one of such a loop, or the run began with other options, or with another
            number of processes. Images may lie elsewhere by now, if the checkpoint has their digest, which the loop
            compares.
    """
    path = directory / CHECKPOINT
    checkpoint = load_checkpoint(path)
    check_layout(checkpoint, {"options": dict.fromkeys(options.groups, dict), "images": dict}, path)
    changed = differences(checkpoint["options"], options, movable="digest" in checkpoint["images"])
    if changed:
        raise UserError(
            f"the run in {directory} cannot go on with other options: {'; '.join(changed)[:300]}. Leave these flags "
            "out, or start a new run."
        )
    loop.check_keys(checkpoint, path)
    before = len(checkpoint.get("ranks", [None]))
    if before != world.size and not options.run.elastic:
        how = f"torchrun --nproc-per-node {before}" if before > 1 else "without torchrun"
        raise UserError(
            f"the run in {directory} has {before} {'process' if before == 1 else 'processes'}, not {world.size}: start "
            f"it {how}, or give --elastic, with which it goes on and its results differ in their bits."
        )
    return checkpoint


def set_up_process(options: RunOptions, world: World = ALONE) -> torch.device:
    """Sets threads and determinism; returns the device. UserError for a device that is not there."""
    device = resolve_device(options.device, world)
    if options.threads:
        torch.set_num_threads(options.threads)
    make_deterministic(options.deterministic)
    return device


def record_start(
    loop: Loop,
    options: Configuration,
    program: str,
    arguments: Arguments,
    *,
    device: torch.device,
    network: dict[str, Any],
    data: dict[str, Any],
    origins: Mapping[str, Mapping[str, str]],
    **more: Any,
) -> None:
    """Writes the "run" event of this process, by which a directory is known as that of a run, then config.yaml.

    origins: for the comments of config.yaml, see `Configuration.to_yaml`."""
    loop.log.write(
        "run",
        **more,
        argv=command_of(program, arguments),
        directory=str(loop.directory.absolute()),
        resumed=loop.resumed,
        started=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        environment=environment(device),
        **({} if loop.world.size == 1 else {"processes": loop.world.size}),
        network=network,
        data=data,
    )
    loop.log.position()  # on disk before any other file
    if not loop.world.leads:
        return
    strategy = loop.strategy.resolved if isinstance(loop, Search) else {}
    write_config(loop.directory, options, _resolved(device, network, data, strategy), origins)


def describe_images(pipeline: Pipeline) -> dict[str, Any]:
    """What the "run" events of searches and trainings both say about the images."""
    source = pipeline.source
    return {
        "spec": source.spec,
        "pipeline": pipeline.kind,
        "images": len(source),
        "classes": list(source.classes),
        "image_size": list(source.image_size),
        "channels": source.channels,
    }


def _resolved(
    device: torch.device, network: dict[str, Any], data: dict[str, Any], strategy: Mapping[str, Any]
) -> dict[str, Mapping[str, Any]]:
    """What took the place of options that were left to the program, by group and option."""
    augmentation = dict(data.get("augmentation", {}))
    jitter = zip(("brightness", "contrast", "saturation", "hue"), augmentation.pop("color_jitter", ()), strict=False)
    area = augmentation.pop("crop_area", None)
    return {
        "run": {"device": str(device), "threads": torch.get_num_threads()},
        "network": network,
        "strategy": strategy,
        "data": {**data, **augmentation, **dict(jitter), "crop_scale": area[0] if area else 0.0},
    }


def write_config(
    directory: Path,
    options: Configuration,
    resolved: Mapping[str, Mapping[str, Any]] | None = None,
    origins: Mapping[str, Mapping[str, str]] | None = None,
) -> None:
    """Writes config.yaml; of a run that goes on it changes only where the images lie."""
    path, wanted = directory / "config.yaml", options.to_dict()
    try:
        written = yaml.safe_load(path.read_text(encoding="utf-8"))["data"]
    except (OSError, UnicodeDecodeError, yaml.YAMLError, TypeError, KeyError):  # there is none yet
        replace_file(path, options.to_yaml(resolved, origins), "the options")
        return
    places = {name: wanted["data"][name] for name in PLACES if name in wanted["data"]}
    if any(written.get(name) != place for name, place in places.items()):
        text = path.read_text(encoding="utf-8")
        config = yaml.safe_load(text)
        config["data"] |= places
        replace_file(path, to_text(config, resolved, _fitted_epochs(text)), "the options")


def fitted_epochs(group: str, budget: str | None) -> dict[str, dict[str, str]]:
    """The comment on epochs that were fitted to a budget, for config.yaml."""
    return {} if budget is None else {group: {"epochs": f"fitted to --budget {budget}"}}


def _fitted_epochs(config: str) -> dict[str, dict[str, str]]:
    """The comment that an earlier process has written; only one group has epochs."""
    found = re.search(r"^  epochs: .*  # fitted to --budget (.*)$", config, re.MULTILINE)
    groups = yaml.safe_load(config)
    return fitted_epochs("recipe" if "recipe" in groups else "weights", found[1] if found else None)


def is_finished(directory: Path) -> bool:
    """Whether the run in `directory` has come to its end."""
    try:
        lines = (directory / RECORDS).read_text(encoding="utf-8").splitlines()
        return bool(lines) and json.loads(lines[-1]).get("event") == "end"
    except (OSError, ValueError):
        return False
