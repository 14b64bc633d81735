"""The weight step of a search: forward, cross-entropy and backward of the whole supernet under softmax(α)."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import torch
import torch.nn.functional as F

from benchmarks.harness import PLAIN, Row, compare
from benchmarks.harness.clock import Run
from benchmarks.harness.memory import Task, peak_memory
from benchmarks.harness.networks import (
    CLASSES,
    Options,
    as_launched,
    build,
    contenders,
    describe,
    draw_images,
    unrecorded,
    work,
)

BATCH = 64


def measure(device: torch.device, seconds: float, options: Options) -> list[Row]:
    rows: list[Row] = []
    batch = options.batch or BATCH
    for space in options.spaces():
        needed = work(space, options.channels, options.layers, batch, options.size)
        for mode in ("forward", "both"):
            arguments: dict[str, Any] = {"space": space, "mode": mode, "sizes": asdict(options)}
            memory = {}
            if options.memory and mode == "both":
                memory = {
                    name: peak_memory(__name__, device, contender=name, **arguments) for name in unrecorded(device)
                }
            rows += compare(
                "supernet_step",
                describe(space, batch, options),
                mode,
                {name: task(device, contender=name, **arguments).run for name in contenders(device)},
                baseline=PLAIN,
                flops=needed.flops(mode),
                least_bytes=needed.bytes(mode),
                memory=memory,
                images=batch,
                device=device,
                seconds=seconds,
            )
    return rows


def task(device: torch.device, contender: str, space: str, mode: str, sizes: dict[str, Any]) -> Task:
    """One contender. "forward" is that of training, which keeps what backward needs."""
    options = Options(**sizes)
    network = build(space, contender, device, options.channels, options.layers)
    parameters = list(network.parameters())

    def step_of(batch: int) -> Run:
        images = draw_images(batch, options.size, contender, device)  # [B, 3, H, W]
        labels = torch.arange(batch, device=device) % CLASSES  # [B]

        def step() -> None:
            for parameter in parameters:  # as an optimizer does; network.zero_grad would look for them each time
                parameter.grad = None
            loss = F.cross_entropy(network(images), labels)
            if mode == "both":
                loss.backward()

        return step

    return Task(run=as_launched(step_of(options.batch or BATCH), contender, device), small=step_of(2))
