"""One normal cell, the first of the supernet: what `torch.compile` can compile in reasonable time."""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from benchmarks.harness import CHANNELS_LAST, COMPILED, FASTNAS, PLAIN, Row, compare
from benchmarks.harness.clock import Run
from benchmarks.harness.memory import Task, peak_memory
from benchmarks.harness.networks import SPACES, Options, build, in_format, work

CONTENDERS = (PLAIN, CHANNELS_LAST, FASTNAS)
MODES = ("forward", "both")
BATCH = 64
LAYERS = 3  # a supernet of so few cells reduces in the second and the third


def measure(device: torch.device, seconds: float, options: Options) -> list[Row]:
    rows: list[Row] = []
    batch = options.batch or BATCH
    for space in options.spaces():
        inputs = 2 * 4 * batch * 3 * options.channels * options.size**2  # two states of the stem, 3·C channels each
        needed = work(space, options.channels, LAYERS, batch, options.size).within("cells.0", inputs)
        arguments: dict[str, Any] = {"space": space, "sizes": asdict(options)}
        calls = {name: runs(device, name, batch=batch, **arguments) for name in CONTENDERS}
        notes = {}
        if options.compile:
            calls[COMPILED] = runs(device, COMPILED, batch=batch, **arguments)
            notes[COMPILED] = f"{space}: compiled in {compile_seconds(calls[COMPILED]):.0f} s, which no time includes."
        for mode in MODES:
            memory = {}
            if options.memory and mode == "both":
                memory = {name: peak_memory(__name__, device, contender=name, **arguments) for name in CONTENDERS}
            rows += compare(
                "cell",
                f"{space} k={SPACES[space]} C={options.channels}, {batch}×{options.size}×{options.size}",
                mode,
                {name: call[mode] for name, call in calls.items()},
                baseline=PLAIN,
                flops=needed.flops(mode),
                # Unlike images, the inputs of a cell have a gradient, which is written.
                least_bytes=needed.bytes(mode) + (inputs if mode == "both" else 0),
                memory=memory,
                notes=notes,
                images=batch,
                device=device,
                seconds=seconds,
            )
    return rows


def task(device: torch.device, contender: str, space: str, sizes: dict[str, Any]) -> Task:
    """Forward and backward of one contender."""
    options = Options(**sizes)
    run, small = (runs(device, contender, space, sizes, batch=batch)["both"] for batch in (options.batch or BATCH, 2))
    return Task(run, small)


def runs(device: torch.device, contender: str, space: str, sizes: dict[str, Any], batch: int) -> dict[str, Run]:
    """The modes of one contender. "forward" is that of training, which keeps what backward needs."""
    options = Options(**sizes)
    network = build(space, contender, device, options.channels, LAYERS)
    cell = network.cells[0]
    function = torch.compile(cell, dynamic=False) if contender == COMPILED else cell
    generator = torch.Generator().manual_seed(1)

    def draw(channels: int) -> Tensor:
        state = torch.randn(batch, channels, options.size, options.size, generator=generator)  # [B, channels, H, W]
        return in_format(state.to(device), contender)

    states = [draw(3 * options.channels).requires_grad_() for _ in range(2)]
    grad = draw(network.space.nodes * options.channels)
    alphas = torch.zeros_like(network.alphas["normal"], requires_grad=True)  # [E, O]
    inputs = (*states, alphas, *cell.parameters())

    def forward() -> Tensor:
        return function(*states, torch.softmax(alphas, -1))  # [B, nodes·C, H, W]

    def both() -> tuple[Tensor, ...]:
        return torch.autograd.grad(forward(), inputs, grad)

    return {"forward": forward, "both": both}


def compile_seconds(calls: dict[str, Run]) -> float:
    """The first call of both passes, with nothing taken from an earlier run's cache."""
    before = torch.compiler.config.force_disable_caches
    torch.compiler.config.force_disable_caches = True
    try:
        begin = time.perf_counter()
        calls["both"]()
        return time.perf_counter() - begin
    finally:
        torch.compiler.config.force_disable_caches = before
