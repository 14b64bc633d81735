"""What a command does before its work begins: the device, the seeds."""

from __future__ import annotations

import os
import random

import numpy as np
import torch

from fastnas.errors import UserError
from fastnas.world import ALONE, World


def resolve_device(name: str, world: World = ALONE) -> torch.device:
    """ "auto" → CUDA where there is a GPU, which becomes the current one of the process: whatever names no device, such
    as pinned memory, would otherwise take hold of the first. Of several processes each takes a GPU of its own, unless
    one is named. UserError for a device that is not there."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and world.size > 1:
        name = f"cuda:{world.local_rank}"
        if world.local_rank >= (count := torch.cuda.device_count()):
            raise UserError(
                f"process {world.local_rank} of this machine finds {count} CUDA devices: give torchrun "
                f"--nproc-per-node {max(1, count)}, or --device cuda:0, which all share, or cpu."
            )
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UserError(f"unknown device {name!r}: expected auto, cpu, cuda or cuda:N.") from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(f"there is no device {name!r}: {torch.cuda.device_count()} CUDA devices were found; use cpu.")
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"device {name!r} is not supported: use cpu or cuda.")
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)
    return device


def seed_everything(seed: int) -> None:
    """The global generators, for whatever draws from them; fastnas' own draws name their seeds."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def make_deterministic(strictly: bool) -> None:
    """PyTorch's global switches; without `strictly` a GPU may choose the fastest algorithm."""
    torch.use_deterministic_algorithms(strictly)
    torch.backends.cudnn.benchmark = not strictly
    if strictly:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
