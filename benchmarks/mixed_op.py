"""A single `fastnas.nn.MixedOp`, as people with cells of their own use it."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from benchmarks.harness import CHANNELS_LAST, FASTNAS, PLAIN, Row, compare
from benchmarks.harness.clock import Run
from benchmarks.harness.memory import Task, peak_memory
from benchmarks.harness.networks import SPACES, Options, in_format, is_fused, work
from fastnas.nn import MixedOp
from fastnas.spaces import find

CONTENDERS = (PLAIN, CHANNELS_LAST, FASTNAS)
MODES = ("forward", "both")
BATCH = 64
LAYERS = 3  # of the supernet whose first edge is taken for the arithmetic


def measure(device: torch.device, seconds: float, options: Options) -> list[Row]:
    rows: list[Row] = []
    batch = options.batch or BATCH
    for space in options.spaces():
        inputs = 4 * batch * options.channels * options.size**2  # bytes of the state
        needed = work(space, options.channels, LAYERS, batch, options.size).within("cells.0.edges.0", inputs)
        arguments: dict[str, Any] = {"space": space, "sizes": asdict(options)}
        calls = {name: runs(device, name, batch=batch, **arguments) for name in CONTENDERS}
        for mode in MODES:
            memory = {}
            if options.memory and mode == "both":
                memory = {name: peak_memory(__name__, device, contender=name, **arguments) for name in CONTENDERS}
            rows += compare(
                "mixed_op",
                f"{space} k={SPACES[space]} C={options.channels}, {batch}×{options.size}×{options.size}",
                mode,
                {name: call[mode] for name, call in calls.items()},
                baseline=PLAIN,
                flops=needed.flops(mode),
                # Unlike images, the state has a gradient, which is written.
                least_bytes=needed.bytes(mode) + (inputs if mode == "both" else 0),
                memory=memory,
                images=batch,
                device=device,
                seconds=seconds,
            )
    return rows


def task(device: torch.device, contender: str, space: str, sizes: dict[str, Any]) -> Task:
    """Forward and backward of one contender."""
    batch = Options(**sizes).batch or BATCH
    run, small = (runs(device, contender, space, sizes, batch=images)["both"] for images in (batch, 2))
    return Task(run, small)


def runs(device: torch.device, contender: str, space: str, sizes: dict[str, Any], batch: int) -> dict[str, Run]:
    """The modes of one contender. "forward" is that of training, which keeps what backward needs."""
    options = Options(**sizes)
    torch.manual_seed(0)
    mixed = MixedOp(
        find(space).candidates,
        options.channels,
        partial_channels=SPACES[space],
        pool_norm=find(space).pool_norm,
        backend="fused" if is_fused(contender) else "reference",
    )
    mixed = in_format(mixed.to(device), contender)
    x = torch.randn(batch, options.channels, options.size, options.size)  # [B, C, H, W]
    grad = torch.randn_like(x)
    x, grad = (in_format(tensor.to(device), contender) for tensor in (x, grad))
    alpha = torch.zeros(len(mixed.candidates), device=device, requires_grad=True)  # [O]
    inputs = (x.requires_grad_(), alpha, *mixed.parameters())

    def forward() -> Tensor:
        return mixed(x, torch.softmax(alpha, -1))  # [B, C, H, W]

    def both() -> tuple[Tensor, ...]:
        return torch.autograd.grad(forward(), inputs, grad)

    return {"forward": forward, "both": both}
