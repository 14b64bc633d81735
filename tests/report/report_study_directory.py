"""Writes study directories by hand: a plan, and run directories of a few events."""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path
from typing import Any

import yaml
from report_synthetic_run import write_run

from fastnas.genotype import Genotype

CELL = Genotype.published("DARTS_V2")
THREADS = 2


class StudyDirectory:
    """A study whose cells are the points of a grid, in each of them a unit of each stage for each seed."""

    def __init__(
        self,
        path: Path,
        grid: dict[str, list[Any]],
        seeds: tuple[int, ...] = (0, 1),
        stages: tuple[str, ...] = ("search",),
        labels: dict[str, str] | None = None,
        **plan: Any,
    ) -> None:
        path.mkdir(parents=True)
        self.path = path
        self.units: dict[str, dict[str, Any]] = {}
        for values in product(*grid.values()):
            options = dict(zip(grid, values, strict=True))
            slug = "_".join(f"{name}-{value}" for name, value in options.items())
            label = ", ".join(f"{name} {value}" for name, value in options.items())
            for seed, stage in product(seeds, stages):
                name = f"{slug}/seed-{seed}/{stage}"
                self.units[name] = {
                    "id": name, "stage": stage, "cell": slug, "label": (labels or {}).get(slug, label),
                    "options": options, "seed": seed, "directory": f"cells/{name}",
                    "needs": [f"{slug}/seed-{seed}/search"] if stage == "train" else [],
                }  # fmt: skip
        self.plan: dict[str, Any] = {
            "name": "mine", "title": "My study", "note": "Small.", "scale": "small", "stages": list(stages),
            "grid": grid, "seeds": list(seeds), "published": None, **plan,
        }  # fmt: skip
        self.write_plan()
        study = {"name": "mine", "base": {"channels": 8}, "grid": grid, "seeds": list(seeds)}
        (path / "study.yaml").write_text(yaml.safe_dump(study))

    def write_plan(self) -> None:
        text = json.dumps({**self.plan, "units": list(self.units.values())})
        (self.path / "plan.json").write_text(text)

    def folder(self, unit: str) -> Path:
        return self.path / self.units[unit]["directory"]

    def search(
        self,
        unit: str,
        accuracies: list[float],
        ended: bool = True,
        seconds: float = 60.0,
        device: str = "cpu",
        **end: Any,
    ) -> Path:
        """A search whose validation accuracies are these, one for each epoch."""
        events = [
            {
                "event": "run", "argv": ["python"], "resumed": False,
                "environment": {"device": device, "threads": THREADS}, "network": {"parameters": 999},
            },
            *(
                {"event": "epoch", "epoch": i, "valid_accuracy": each, "seconds": {"train": seconds / len(accuracies)}}
                for i, each in enumerate(accuracies)
            ),
        ]  # fmt: skip
        if ended:
            derived = [{"channels": 36, "layers": 20, "parameters": 3_349_342, "macs": 529_910_000}]
            events.append(
                {"event": "end", "valid_accuracy": accuracies[-1], "seconds": seconds, "derived": derived} | end
            )
        config = {"weights": {"epochs": 4}, "strategy": {"name": "darts"}}
        return write_run(self.folder(unit), events, CELL, config)

    def training(self, unit: str, test: float, valid: float | None = None) -> Path:
        """A training that has ended with this test accuracy."""
        epoch = {"event": "epoch", "epoch": 0, "train_accuracy": 0.9, "seconds": {"train": 30.0}}
        events = [
            {
                "event": "run", "command": "train", "environment": {"device": "cuda:0"},
                "network": {"parameters": 5000, "macs": 7000}, "data": {"classes": ["a", "b"]},
            },
            epoch | ({} if valid is None else {"valid_accuracy": valid}),
            {"event": "end", "seconds": 30.0, "test": {"top1": test, "loss": 0.5}},
        ]  # fmt: skip
        return write_run(self.folder(unit), events, CELL, {"recipe": {"epochs": 1}})

    def fail(self, unit: str, error: str, seconds: float = 3.0) -> None:
        folder = self.folder(unit)
        folder.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps({"error": error, "seconds": seconds, "finished_at": "2026-01-31T12:00:00+00:00"})
        folder.with_name(f"{folder.name}.failed.json").write_text(text)

    def claim(self, unit: str) -> None:
        folder = self.folder(unit)
        folder.parent.mkdir(parents=True, exist_ok=True)
        folder.with_name(f"{folder.name}.claim").write_text("{}")
