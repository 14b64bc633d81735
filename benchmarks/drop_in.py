"""The weight step of foreign supernets, as their code builds them and after `fastnas.compat.accelerate`.

DARTS with all channels, PC-DARTS with a quarter of them and edge weights β (see `benchmarks.baselines`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.baselines import darts, pc_darts
from benchmarks.harness import PLAIN, Row, compare
from benchmarks.harness.clock import Run
from benchmarks.harness.memory import Task, peak_memory
from benchmarks.harness.networks import (
    CLASSES,
    Options,
    as_launched,
    contenders,
    draw_images,
    in_format,
    is_fused,
    unrecorded,
    work,
)
from fastnas import compat
from fastnas.errors import UserError

BATCH = 64
# name: (network, the space of ours that has the same candidates, partial channels)
BASELINES: dict[str, tuple[Callable[..., nn.Module], str, int]] = {
    "darts": (darts.Network, "darts", 1),
    "pc-darts": (pc_darts.Network, "darts", 4),
}


def measure(device: torch.device, seconds: float, options: Options) -> list[Row]:
    rows: list[Row] = []
    batch = options.batch or BATCH
    names = [name for name in BASELINES if options.space in (None, name)]
    if not names:
        raise UserError(f"there is no foreign supernet {options.space!r} here: expected {' or '.join(BASELINES)}.")
    for name in names:
        _, space, parts = BASELINES[name]
        needed = work(space, options.channels, options.layers, batch, options.size, parts)
        arguments: dict[str, Any] = {"name": name, "sizes": asdict(options)}
        memory = {}
        if options.memory:
            memory = {each: peak_memory(__name__, device, contender=each, **arguments) for each in unrecorded(device)}
        rows += compare(
            "drop_in",
            f"{name} C={options.channels} {options.layers} cells, {batch}×{options.size}×{options.size}",
            "both",
            {each: task(device, contender=each, **arguments).run for each in contenders(device)},
            baseline=PLAIN,
            flops=needed.flops("both"),
            least_bytes=needed.bytes("both"),
            memory=memory,
            images=batch,
            device=device,
            seconds=seconds,
        )
    return rows


def build(name: str, contender: str, device: torch.device, channels: int, layers: int) -> nn.Module:
    """The network as a contender runs it, all of them with the same weights and α."""
    torch.manual_seed(0)
    network = BASELINES[name][0](channels, CLASSES, layers, nn.CrossEntropyLoss())
    # α and β are plain tensors, which `to` does not move.
    for attribute, value in [(key, value) for key, value in vars(network).items() if isinstance(value, torch.Tensor)]:
        setattr(network, attribute, value.detach().to(device).requires_grad_())
    network = in_format(network.to(device), contender)
    return compat.accelerate(network, strict=True) if is_fused(contender) else network


def task(device: torch.device, contender: str, name: str, sizes: dict[str, Any]) -> Task:
    """One contender: forward, cross-entropy, backward."""
    options = Options(**sizes)
    network = build(name, contender, device, options.channels, options.layers)

    def step_of(batch: int) -> Run:
        images = draw_images(batch, options.size, contender, device)  # [B, 3, H, W]
        labels = torch.arange(batch, device=device) % CLASSES  # [B]

        def step() -> None:
            network.zero_grad(set_to_none=True)
            F.cross_entropy(network(images), labels).backward()

        return step

    return Task(run=as_launched(step_of(options.batch or BATCH), contender, device), small=step_of(2))
