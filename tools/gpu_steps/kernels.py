"""Where the time of a weight step goes: operator by operator against its floor, and the kernels that take longest."""

from __future__ import annotations

from dataclasses import asdict

from gpu_steps.ground import Ground

SHOWN = 25  # kernels


def run(ground: Ground) -> None:
    import torch
    from torch.profiler import ProfilerActivity, profile

    from benchmarks.analysis import profile as by_operator
    from benchmarks.analysis.counting import GPUS, total
    from benchmarks.analysis.roofline import Sizes, weight_step
    from benchmarks.harness import FASTNAS

    ground.prepare_benchmarks()
    device = ground.device
    sizes = {"batch": 4, "channels": 4, "layers": 3, "size": 8} if ground.rehearse else {"batch": 256}
    rows = by_operator.measure("weight step egnas", device, sizes, 1 if ground.rehearse else 5)
    ground.say(operators=[asdict(row) for row in rows])
    counted = total(weight_step(FASTNAS, Sizes(**sizes)))
    ground.say(launches=counted.launches, predicted_ms={gpu.name: round(counted.floor_ms(gpu), 2) for gpu in GPUS})
    if device.type == "cuda":
        step = by_operator.WORKLOADS["weight step egnas"](device, sizes)
        step()
        with profile(activities=[ProfilerActivity.CUDA]) as trace:
            step()
            torch.cuda.synchronize()
        kernels = sorted(trace.key_averages(), key=lambda event: -event.self_device_time_total)
        shown = [
            (event.key[:90], event.count, round(event.self_device_time_total / 1e3, 3)) for event in kernels[:SHOWN]
        ]
        ground.say(kernels=shown, launched=sum(event.count for event in kernels))
