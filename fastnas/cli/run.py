"""What preparing a search and preparing a training share: checkpoint, process, and what is recorded at the start."""

from __future__ import annotations

import datetime
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from fastnas.cli.configuration import Configuration, differences
from fastnas.cli.options import RunOptions
from fastnas.cli.process import make_deterministic, resolve_device
from fastnas.data import Pipeline
from fastnas.engine.checkpoint import load_checkpoint
from fastnas.engine.loop import Loop
from fastnas.env import environment
from fastnas.errors import UserError

CHECKPOINT = "checkpoint.pt"


def resume_from(directory: Path, options: Configuration) -> dict[str, Any]:
    """The checkpoint of a run that is resumed.

    Raises:
        UserError: there is none, or the run began with other options.
    """
    checkpoint = load_checkpoint(directory / CHECKPOINT)
    if changed := differences(checkpoint["options"], options.to_dict()):
        raise UserError(
            f"the run in {directory} cannot go on with other options: {'; '.join(changed)}. Leave these flags out, "
            "or start a new run."
        )
    return checkpoint


def set_up_process(options: RunOptions) -> torch.device:
    """Sets threads and determinism; returns the device. UserError for a device that is not there."""
    device = resolve_device(options.device)
    if options.threads:
        torch.set_num_threads(options.threads)
    make_deterministic(options.deterministic)
    return device


def record_start(
    loop: Loop,
    options: Configuration,
    program: str,
    arguments: Sequence[str],
    *,
    device: torch.device,
    network: dict[str, Any],
    data: dict[str, Any],
    **more: Any,
) -> None:
    """Writes config.yaml, unless the run has it already, and the "run" event of this process."""
    if not loop.resumed:
        write_config(loop.directory, options)
    loop.log.write(
        "run",
        **more,
        argv=["python", "-m", program, *arguments],
        resumed=loop.resumed,
        started=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        environment=environment(device),
        network=network,
        data=data,
    )


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


def write_config(directory: Path, options: Configuration) -> None:
    (directory / "config.yaml").write_text(options.to_yaml(), encoding="utf-8")


def is_finished(directory: Path) -> bool:
    """Whether the run in `directory` has come to its end."""
    try:
        lines = (directory / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        return bool(lines) and json.loads(lines[-1]).get("event") == "end"
    except (OSError, ValueError):
        return False
