"""An epoch of EG-NAS as the engine runs it: one evolution step, weight steps, log and checkpoint; no validation.

Every repetition resumes the same search after its first epoch, in which α does not change, and runs the second. The
engine keeps networks and images channels-last, so that is how plain torch takes part.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

from benchmarks.harness import CHANNELS_LAST, FASTNAS, Row, compare
from benchmarks.harness.networks import CLASSES, SPACES, Options, describe, work
from fastnas.cli.configuration import parse_search
from fastnas.engine.search import Search
from fastnas.search import prepare

BACKENDS = {CHANNELS_LAST: "reference", FASTNAS: "fused"}
SPACE = "egnas"
BATCH = 64
IMAGES = 512
FITNESS_BATCH = 128
# As in a search on CIFAR-10, where the weights see 25,000 images an epoch and 50 individuals × 3 samples are scored on
# 128 images each, the evolution step evaluates about as many images as the weight steps train on.
INDIVIDUALS = 4


def measure(device: torch.device, seconds: float, options: Options) -> list[Row]:
    space, batch = options.space or SPACE, options.batch or BATCH
    individuals = options.individuals or INDIVIDUALS
    count = options.images or IMAGES
    half = count // 2
    fitness_batch = min(FITNESS_BATCH, half)
    steps = half // batch
    step = work(space, options.channels, options.layers, batch, options.size)
    scored = work(space, options.channels, options.layers, fitness_batch, options.size)
    calls = (1, individuals, 1)  # what the engine evaluates in one go: α, the population, the winner
    with TemporaryDirectory() as folder:
        data = write_images(Path(folder), count, options.size)
        searches = {
            name: Epoch(
                Path(folder, backend),
                [f"--data=npz:{data}", "--test=none", f"--space={space}", f"--partial-channels={SPACES[space]}",
                 f"--backend={backend}", f"--channels={options.channels}", f"--layers={options.layers}",
                 f"--batch-size={batch}", f"--population={individuals}", f"--fitness-batch-size={fitness_batch}"],
                device,
            )
            for name, backend in BACKENDS.items()
        }  # fmt: skip
        return compare(
            "search_epoch",
            f"{describe(space, batch, options)}, {count} images, population {individuals}",
            f"{steps} steps + evolution",
            {name: search.run for name, search in searches.items()},
            baseline=CHANNELS_LAST,
            flops=steps * step.flops("both") + sum(scored.population_flops(count) for count in calls),
            least_bytes=steps * step.bytes("both") + sum(scored.population_bytes(count, "running") for count in calls),
            images=steps * batch,
            before={name: search.prepare for name, search in searches.items()},
            notes=dict.fromkeys(BACKENDS, "images/s counts the images of the weight steps."),
            device=device,
            seconds=seconds,
        )


class Epoch:
    """The second epoch of a search, over and over.

    Args:
        directory: for the runs; not yet there.
        arguments: of `fastnas.search`, beyond those that make the second epoch what it should be.
    """

    def __init__(self, directory: Path, arguments: list[str], device: torch.device) -> None:
        self.first = directory / "first"
        self.again = directory / "again"
        self.common = [f"--device={device}", "--stop-after=1"]
        begin = ["--strategy=egnas", "--epochs=3", "--warm-up=1", "--samples=1", "--validate-every=3", "--seed=2"]
        self.search: Search | None = self._search([*begin, *arguments, f"--out={self.first}"])
        self.run()

    def prepare(self) -> None:
        shutil.rmtree(self.again, ignore_errors=True)
        shutil.copytree(self.first, self.again)
        self.search = self._search([f"--resume={self.again}"])

    def run(self) -> None:
        assert self.search is not None, "call prepare before each run"
        search, self.search = self.search, None
        search.run()

    def _search(self, arguments: list[str]) -> Search:
        arguments = [*arguments, *self.common]
        return prepare(parse_search(arguments, "benchmark", ""), arguments)


def write_images(folder: Path, count: int, size: int) -> Path:
    """Noise, with as many images of each class."""
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (count, size, size, 3), dtype=np.uint8)  # [N, H, W, 3]
    path = folder / "images.npz"
    np.savez(path, images=images, labels=np.arange(count) % CLASSES)
    return path
