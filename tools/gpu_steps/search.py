"""Two epochs of a search, by phase: EG-NAS where `cmaes` is there, else random search with the same images."""

from __future__ import annotations

import importlib.util
import json
import tempfile
from pathlib import Path

from gpu_steps.ground import Ground


def run(ground: Ground) -> None:
    import numpy as np
    import torch

    from fastnas import data, strategies
    from fastnas.engine import Search
    from fastnas.engine.options import WeightOptions
    from fastnas.nn import Supernet

    device = ground.device
    count, size, batch, channels, layers = (48, 8, 8, 4, 3) if ground.rehearse else (8192, 32, 256, 16, 8)
    people = 4 if ground.rehearse else 10
    rng = np.random.default_rng(ground.seed)
    held = data.hold((rng.integers(0, 256, (count, size, size, 3), dtype=np.uint8), np.arange(count) % 4))
    source = data.open(held.name)
    for_weights, for_alpha = source.search_split(0.5)
    name = "egnas" if importlib.util.find_spec("cmaes") else "random"
    options = {"egnas": {"population": people, "samples": 1, "warm_up": 0}, "random": {"batch": people}}[name]
    if "fitness_batch_size" in strategies.find(name).__dataclass_fields__:
        options["fitness_batch_size"] = min(128, count // 4)

    def serve(indices: np.ndarray, batch_size: int, train: bool, seed: int) -> data.Pipeline:
        return data.pipeline(
            source, "tensor", batch_size=batch_size, indices=indices, train=train, seed=seed, device=device
        )

    network = Supernet("egnas", channels=channels, layers=layers, num_classes=4, partial_channels=4)
    ground.say(strategy=name, images=count, batch=batch)
    with tempfile.TemporaryDirectory() as folder:
        search = Search(
            network=network.to(device).to(memory_format=torch.channels_last),
            strategy=strategies.create(name, **options),
            weights=WeightOptions(epochs=2),
            weight_pipeline=serve(for_weights, batch, True, 0),
            alpha_pipeline=lambda size: serve(for_alpha, size, True, 1),
            valid_pipeline=serve(for_alpha, min(batch, len(for_alpha)), False, 0),
            directory=Path(folder),
            seed=0,
            options={},
            evidence=False,
        )
        search.run()
        lines = [json.loads(line) for line in Path(folder, "metrics.jsonl").read_text().splitlines()]
    ground.say(
        recorded=search.graphs.recorder is not None,
        steps=len(search.weight_pipeline),
        phases=[line["seconds"] for line in lines if line["event"] == "epoch"],
    )
