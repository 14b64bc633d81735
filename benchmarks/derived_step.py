"""A step of retraining the DARTS_V2 network: forward, both cross-entropies and backward, with and without drop path."""

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
    contenders,
    draw_images,
    in_format,
    is_fused,
    unrecorded,
    work_of,
)
from fastnas import Genotype
from fastnas.nn import DerivedNetwork

SIZES = {"batch": 32, "channels": 36, "layers": 20}  # of the CIFAR network that papers train
GENOTYPE = "DARTS_V2"
DROP_PATHS = (0.0, 0.2)


def measure(device: torch.device, seconds: float, options: Options) -> list[Row]:
    rows: list[Row] = []
    batch = options.batch or SIZES["batch"]
    with torch.device("meta"):
        needed = work_of(build("reference", options).eval(), batch, options.size)
    for drop_path in DROP_PATHS:
        case = (
            f"{GENOTYPE} C={options.channels} {options.layers} cells, drop path {drop_path:g}, "
            f"{batch}×{options.size}×{options.size}"
        )
        for mode in ("forward", "both"):
            arguments: dict[str, Any] = {"drop_path": drop_path, "mode": mode, "sizes": asdict(options)}
            memory = {}
            if options.memory and mode == "both":
                memory = {
                    name: peak_memory(__name__, device, contender=name, **arguments) for name in unrecorded(device)
                }
            rows += compare(
                "derived_step",
                case,
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


def build(backend: str, options: Options, drop_path: float = 0.0) -> DerivedNetwork:
    """The same weights for every backend. The auxiliary head takes part where the images have its size."""
    torch.manual_seed(0)
    return DerivedNetwork(
        Genotype.published(GENOTYPE),
        channels=options.channels,
        layers=options.layers,
        num_classes=CLASSES,
        auxiliary=options.size == 32,
        drop_path=drop_path,
        backend=backend,
    )


def task(device: torch.device, contender: str, drop_path: float, mode: str, sizes: dict[str, Any]) -> Task:
    """One contender. "forward" is that of training, which keeps what backward needs."""
    options = Options(**sizes)
    network = build("fused" if is_fused(contender) else "reference", options, drop_path)
    network = in_format(network.to(device), contender)

    def step_of(batch: int) -> Run:
        images = draw_images(batch, options.size, contender, device)  # [B, 3, H, W]
        labels = torch.arange(batch, device=device) % CLASSES  # [B]

        def step() -> None:
            network.zero_grad(set_to_none=True)
            output = network(images)
            outputs = output if isinstance(output, tuple) else (output,)  # [B, classes] each
            loss = sum((F.cross_entropy(logits, labels) for logits in outputs), torch.zeros((), device=device))
            if mode == "both":
                loss.backward()

        return step

    run = as_launched(step_of(options.batch or SIZES["batch"]), contender, device)
    return Task(run=run, small=step_of(2))
