"""The weight step of EG-NAS and of DARTS by all contenders, in float32 and bfloat16."""

from __future__ import annotations

from dataclasses import asdict
from functools import partial

from gpu_steps.ground import Ground
from gpu_steps.timing import built, keep

CASES = (("egnas", 256), ("darts", 64))  # space, batch: of the papers
SECONDS = 2.0  # of each case and precision


def run(ground: Ground) -> None:
    import torch

    from benchmarks import supernet_step
    from benchmarks.harness import CHANNELS_LAST, FASTNAS, FASTNAS_GRAPHED, GRAPHED, PLAIN, compare
    from benchmarks.harness.networks import Options, describe, work

    ground.prepare_benchmarks()
    device, names = ground.device, (FASTNAS, FASTNAS_GRAPHED, PLAIN, CHANNELS_LAST, GRAPHED)
    for space, batch in CASES[: 1 if ground.rehearse else None]:
        options = Options(batch=batch)
        if ground.rehearse:
            options = Options(batch=4, channels=4, layers=3, size=8)
        needed = work(space, options.channels, options.layers, options.batch or batch, options.size)
        for precision in ("float32", "bfloat16"):
            if not ground.has_time():
                ground.add("left_out", f"{space} in {precision}")
                continue
            arguments = {"space": space, "mode": "both", "sizes": asdict(options)}
            # Recorded graphs hold the casts of their weights, so none may be kept between calls.
            with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16", cache_enabled=False):
                runs = built(ground, supernet_step.task, names, **arguments)
                if PLAIN in runs:
                    row_of = partial(
                        compare, "supernet_step", describe(space, options.batch or batch, options), "both", runs
                    )
                    amounts = {"flops": needed.flops("both"), "least_bytes": needed.bytes("both")}
                    seconds = 0.0 if ground.rehearse else SECONDS
                    warm_up = 0 if ground.rehearse else 3
                    keep(
                        ground,
                        precision,
                        row_of(baseline=PLAIN, device=device, seconds=seconds, warm_up=warm_up, **amounts),
                    )
            del runs
            if device.type == "cuda":
                torch.cuda.empty_cache()
