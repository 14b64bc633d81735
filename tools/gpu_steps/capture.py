"""Graphs are recorded while another thread allocates pinned memory and copies from it, as pipelines do."""

from __future__ import annotations

import threading
import warnings

from gpu_steps.ground import Ground

RECORDINGS = 20


def run(ground: Ground) -> None:
    import torch
    import torch.nn.functional as F

    from benchmarks.harness import networks
    from fastnas.engine.cuda_graph import WARM_UP, Graphs
    from fastnas.nn import Supernet

    ground.prepare_benchmarks()
    device = ground.device
    channels, size = (4, 8) if ground.rehearse else (16, 32)
    network = Supernet("egnas", channels=channels, layers=3, partial_channels=4).to(device)
    network = network.to(memory_format=torch.channels_last)
    images, labels = torch.randn(8, 3, size, size, device=device), torch.arange(8, device=device)
    stop, pinned, errors = threading.Event(), [0], list[str]()

    def pin() -> None:
        try:
            while not stop.is_set():
                kept = [torch.empty(2**18 + 2**12 * i, pin_memory=device.type == "cuda") for i in range(8)]
                for memory in kept:
                    memory.to(device, non_blocking=True)
                    pinned[0] += 1
        except Exception as error:
            errors.append(f"the other thread: {error}")

    def step() -> torch.Tensor:
        for parameter in network.parameters():
            parameter.grad = None
        loss = F.cross_entropy(network(images), labels)
        loss.backward()
        return loss.detach()

    thread = threading.Thread(target=pin, daemon=True)
    thread.start()
    try:
        for done in range(1, 1 + (1 if ground.rehearse else RECORDINGS)):
            graphs = Graphs(networks.CudaRecorder(device))
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                losses = [graphs.call("step", step).item() for _ in range(WARM_UP + 2)]
            if graphs.recorder is None:
                errors += [str(warning.message)[:300] for warning in caught]
            elif max(losses) - min(losses) > 1e-3 * abs(losses[0]):
                errors.append(f"the same step gives {losses}")
            ground.say(recordings=done, pinned=pinned[0])
            if errors or not ground.has_time():
                break
    finally:
        stop.set()
        thread.join(10)
    for error in errors[:4]:
        ground.add("failures", error.strip().splitlines()[0])
