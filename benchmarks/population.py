"""A population: the same weights and images under P architectures, as an evolution step scores them."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any, Literal

import torch
from torch import Tensor

from benchmarks.harness import CHANNELS_LAST, PLAIN, Row, compare
from benchmarks.harness.clock import Run
from benchmarks.harness.memory import Task, peak_memory
from benchmarks.harness.networks import (
    Options,
    as_launched,
    build,
    contenders,
    describe,
    draw_images,
    is_fused,
    unrecorded,
    with_running_statistics,
    work,
)
from fastnas.spaces import CELL_KINDS

BatchNormMode = Literal["running", "batch"]
MODES: dict[BatchNormMode, str] = {"running": "running statistics", "batch": "batch statistics"}
SPACE = "egnas"
BATCH = 128
INDIVIDUALS = 50


def measure(device: torch.device, seconds: float, options: Options) -> list[Row]:
    rows: list[Row] = []
    space, batch = options.space or SPACE, options.batch or BATCH
    individuals = options.individuals or INDIVIDUALS
    timed = min(options.timed, individuals)
    needed = work(space, options.channels, options.layers, batch, options.size)
    one_by_one = [name for name in contenders(device) if not is_fused(name)]
    note = f"{timed} of {individuals} individuals, one by one; their time × {individuals / timed:.4g}."
    for bn_mode, mode in MODES.items():
        arguments: dict[str, Any] = {"space": space, "bn_mode": bn_mode, "sizes": asdict(options)}
        memory = {}
        if options.memory:
            memory = {name: peak_memory(__name__, device, contender=name, **arguments) for name in unrecorded(device)}
        rows += compare(
            "population",
            f"P={individuals} {describe(space, batch, options)}",
            mode,
            {name: task(device, contender=name, **arguments).run for name in contenders(device)},
            baseline=PLAIN,
            flops=needed.population_flops(individuals),
            least_bytes=needed.population_bytes(individuals, bn_mode),
            memory=memory,
            images=individuals * batch,
            notes=dict.fromkeys(one_by_one, note),
            scale=dict.fromkeys(one_by_one, individuals / timed),
            device=device,
            seconds=seconds,
        )
    return rows


def task(device: torch.device, contender: str, space: str, bn_mode: BatchNormMode, sizes: dict[str, Any]) -> Task:
    """One contender: fastnas with the whole population, plain torch with the individuals that are timed."""
    options = Options(**sizes)
    batch = options.batch or BATCH
    network = build(space, contender, device, options.channels, options.layers)
    with_running_statistics(network, draw_images(min(batch, 16), options.size, CHANNELS_LAST, device))
    individuals = options.individuals or INDIVIDUALS
    generator = torch.Generator().manual_seed(2)
    shape = (individuals, *network.alphas["normal"].shape)
    # As wide as the first population of EG-NAS.
    alphas = {kind: torch.randn(shape, generator=generator).to(device) for kind in CELL_KINDS}  # [P, E, O]

    def evaluation_of(batch: int, count: int) -> Run:
        images = draw_images(batch, options.size, contender, device)  # [B, 3, H, W]
        some = {kind: alpha[:count] for kind, alpha in alphas.items()}  # [count, E, O]
        chunk = network.fitting_chunk(images)  # beforehand, because a CUDA graph is recorded for one chunk size

        def evaluate() -> Tensor:
            return network.population_logits(images, some, chunk, bn_mode)  # [count, B, classes]

        return evaluate

    count = individuals if is_fused(contender) else min(options.timed, individuals)
    return Task(run=as_launched(evaluation_of(batch, count), contender, device), small=evaluation_of(2, 2))
