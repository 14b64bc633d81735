"""A step of retraining DARTS_V2, 36 channels and 20 cells, by all contenders."""

from __future__ import annotations

from dataclasses import asdict

from gpu_steps.ground import Ground
from gpu_steps.timing import built, keep

DROP_PATH = 0.2


def run(ground: Ground) -> None:
    import torch

    from benchmarks import derived_step
    from benchmarks.harness import CHANNELS_LAST, FASTNAS, FASTNAS_GRAPHED, GRAPHED, compare
    from benchmarks.harness.networks import Options, work_of

    ground.prepare_benchmarks()
    device = ground.device
    options = Options(batch=96, channels=36, layers=20)
    if ground.rehearse:
        options = Options(batch=2, channels=4, layers=3, size=8)
    batch = options.batch or 0
    with torch.device("meta"):
        needed = work_of(derived_step.build("reference", options).eval(), batch, options.size)
    arguments = {"drop_path": DROP_PATH, "mode": "both", "sizes": asdict(options)}
    names = (FASTNAS, FASTNAS_GRAPHED, CHANNELS_LAST, GRAPHED)
    runs = built(ground, derived_step.task, names, **arguments)
    if FASTNAS in runs:
        rows = compare(
            "derived_step", f"{derived_step.GENOTYPE} batch {batch} C={options.channels}", "both", runs,
            baseline=FASTNAS, device=device, seconds=0.0 if ground.rehearse else 2.0, flops=needed.flops("both"),
            least_bytes=needed.bytes("both"), warm_up=0 if ground.rehearse else 2,
        )  # fmt: skip
        keep(ground, "float32", rows)
