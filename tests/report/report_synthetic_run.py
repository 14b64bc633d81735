"""Writes a run directory like that of a real search, made of smooth random curves."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from fastnas.genotype import Genotype

CANDIDATES = [
    "avg_pool_3x3", "max_pool_3x3", "skip_connect", "sep_conv_3x3", "sep_conv_5x5", "dil_conv_3x3", "dil_conv_5x5",
]  # fmt: skip
EDGES = [(source, target) for target in range(2, 6) for source in range(target)]


def softmax(alpha: np.ndarray) -> np.ndarray:
    weights = np.exp(alpha - alpha.max(axis=1, keepdims=True))  # [edges, candidates]
    return weights / weights.sum(axis=1, keepdims=True)


def derive(weights: dict[str, np.ndarray]) -> Genotype:
    """The two strongest edges of every node with their strongest candidates."""
    fields: dict[str, Any] = {}
    for kind, table in weights.items():
        fields[kind] = []
        for node in range(2, 6):
            edges = sorted((i for i, (_, t) in enumerate(EDGES) if t == node), key=lambda i: -table[i].max())[:2]
            fields[kind] += [(CANDIDATES[int(table[i].argmax())], EDGES[i][0]) for i in edges]
        fields[f"{kind}_concat"] = [2, 3, 4, 5]
    return Genotype(**fields)


def start_event(directory: Path, **changes: Any) -> dict[str, Any]:
    event: dict[str, Any] = {
        "event": "run",
        "argv": ["python", "-m", "fastnas.search", "--data", "digits", "--strategy", "egnas", "--out", str(directory)],
        "resumed": False,
        "started": "2026-01-31T12:00:00+00:00",
        "environment": {
            "fastnas": "0.1.0", "commit": "abc1234", "python": "3.11.7", "torch": "2.14.1+cu130",
            "platform": "Linux-6.1.0-x86_64-with-glibc2.36", "cpu": "Example CPU @ 2.50GHz", "threads": 2,
            "device": "cpu", "isa": "AVX2",
        },
        "network": {"parameters": 299578, "candidates": CANDIDATES, "nodes": 4, "space": "egnas"},
        "data": {
            "spec": "digits", "images": 1437, "classes": [str(i) for i in range(10)], "image_size": [16, 16],
            "channels": 1, "weight_images": 718, "alpha_images": 719,
        },
    }  # fmt: skip
    return event | changes


def run_events(
    directory: Path, epochs: int = 50, warm_up: int = 15, samples: int = 3, population: int = 50, seed: int = 0
) -> tuple[list[dict[str, Any]], Genotype]:
    """The events of a complete run and its genotype."""
    random = np.random.default_rng(seed)
    alphas = {kind: 1e-3 * random.standard_normal((14, 7)) for kind in ("normal", "reduce")}
    events = [start_event(directory)]
    genotype = derive({kind: softmax(alpha) for kind, alpha in alphas.items()})
    for epoch in range(epochs):
        progress = (epoch + 1) / epochs
        accuracy = 0.95 - 0.82 * math.exp(-4.5 * progress) + 0.01 * random.standard_normal()
        loss = 0.16 + 2.2 * math.exp(-4.0 * progress) + 0.02 * random.standard_normal()
        evolves = epoch >= warm_up
        if evolves:
            sigma = max(0.02, 1 / (epoch - warm_up + 1))
            best = []
            for sample in range(samples):
                fitness = loss + 0.2 + sigma * random.gamma(2.0, 0.25, population)
                correct = np.clip(accuracy - 0.3 * sigma * random.gamma(2.0, 0.3, population), 0.05, 1)
                best.append((float(fitness.min()), float(correct.max())))
                events.append(
                    {
                        "event": "population", "epoch": epoch, "step": epoch - warm_up, "sample": sample,
                        "generation": 0, "sigma": sigma, "fitness": fitness.round(5).tolist(),
                        "accuracy": correct.round(4).tolist(), "loss": (fitness - 0.2).round(5).tolist(),
                    }
                )  # fmt: skip
            events.append(
                {
                    "event": "update", "epoch": epoch, "step": epoch - warm_up, "best_fitness": min(f for f, _ in best),
                    "best_accuracy": max(a for _, a in best), "current_accuracy": accuracy - 0.01, "sigma": sigma,
                }
            )  # fmt: skip
            for alpha in alphas.values():
                wanted = np.random.default_rng(7).standard_normal(alpha.shape) * 1.4
                alpha += 0.05 * (wanted - alpha) + 0.08 * sigma * random.standard_normal(alpha.shape)
        weights = {kind: softmax(alpha) for kind, alpha in alphas.items()}
        genotype = derive(weights)
        events.append(
            {
                "event": "epoch", "epoch": epoch, "learning_rate": 0.05 * (1 + math.cos(math.pi * epoch / epochs)),
                "train_loss": loss, "train_accuracy": accuracy,
                "valid_loss": loss * 1.1 + 0.05 if epoch % 2 == 0 or epoch == epochs - 1 else None,
                "valid_accuracy": accuracy - 0.03 if epoch % 2 == 0 or epoch == epochs - 1 else None,
                "alpha_entropy": {k: float(-(w * np.log(w)).sum(axis=1).mean()) for k, w in weights.items()},
                "skip_count": {kind: genotype.skip_count(kind) for kind in ("normal", "reduce")},
                "op_weights": {kind: w.round(5).tolist() for kind, w in weights.items()},
                "genotype": genotype.to_dict(),
                "seconds": {
                    "strategy": (4.2 + random.random()) if evolves else 0.0, "train": 10.1 + random.random(),
                    "valid": 2.0 if epoch % 2 == 0 else 0.0, "data": 0.2 + 0.2 * random.random(),
                },
                "peak_memory_mb": 812.3,
            }
        )  # fmt: skip
    final = [event for event in events if event["event"] == "epoch"][-1]["valid_accuracy"]
    events.append({"event": "end", "valid_accuracy": final, "seconds": 700.5})
    return events, genotype


CONFIG = {
    "strategy": {"name": "egnas", "variant": "paper", "population": 50, "samples": 3, "warm_up": 15, "step_size": 0.1},
    "network": {"space": "egnas", "channels": 16, "layers": 8, "partial_channels": 4, "stem": "cifar"},
    "data": {"data": "digits", "batch_size": 64, "split": 0.5, "image_size": None, "flip": False},
    "weights": {"epochs": 50, "learning_rate": 0.1, "weight_decay": 0.0003},
    "run": {"out": None, "device": "auto", "seed": 2},
}


def write_run(
    directory: Path, events: list[dict[str, Any]], genotype: Genotype | None, config: dict[str, Any] | None = None
) -> Path:
    """Writes the files of a run directory and returns the directory."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.yaml").write_text(yaml.safe_dump(config or CONFIG, sort_keys=False))
    (directory / "metrics.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    if genotype is not None:
        genotype.to_json(directory / "genotype.json")
    return directory
