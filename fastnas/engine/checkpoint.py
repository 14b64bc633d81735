"""Checkpoints: written completely or not at all, read without unpickling anything but tensors and plain values."""

from __future__ import annotations

import os
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fastnas.errors import UserError

FORMAT = 1


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Replaces `path`. Whatever happens meanwhile, power loss included, there is always one whole checkpoint."""
    temporary = path.with_name(path.name + ".partial")
    with temporary.open("wb") as file:
        torch.save({"format": FORMAT, **state}, file)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # so that the rename itself is on disk
    finally:
        os.close(folder)


def load_checkpoint(path: Path) -> dict[str, Any]:
    """What `save_checkpoint` was given, tensors on the CPU. UserError, naming the file, if it is not a checkpoint."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise UserError(f"no checkpoint at {path}: give the directory of a run that has begun.") from error
    except Exception as error:  # damaged bytes make the reader fail in any way
        reason = f"{type(error).__name__}: {error}".split("\n", 1)[0]
        raise UserError(f"{path} is not a checkpoint of fastnas ({reason}): resume from another run.") from error
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise UserError(f"{path} has a format this version does not read: resume with the version that wrote it.")
    return state


def random_state() -> dict[str, Any]:
    """The state of every global random generator that user code or a strategy may draw from."""
    _, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    version, internal, gauss = random.getstate()
    return {
        "python": [version, list(internal), gauss],
        "numpy": [torch.from_numpy(np.asarray(keys).astype(np.int64)), position, has_gauss, cached],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def set_random_state(state: dict[str, Any]) -> None:
    """The inverse of `random_state`. CUDA generators are restored where there are as many devices as there were."""
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state(("MT19937", keys.numpy().astype(np.uint32), position, has_gauss, cached))
    torch.set_rng_state(state["torch"])
    if state["cuda"] and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])
