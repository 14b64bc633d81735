"""`python -m benchmarks scaling`: what a search would take in several processes, by a model. Nothing is measured.

An epoch of EG-NAS is so many weight steps, each followed by an all-reduce of all gradients, and so many generations of
its population, which the processes share out. In W processes

* a weight step takes 1/W of the floor that `python -m benchmarks roofline` counts for one GPU, plus the all-reduce (a
  ring sends 2·(W - 1)/W of the gradient's bytes through each link, in 2·(W - 1) messages), plus the flag by which all
  stop together, which is one number;
* a generation takes ⌈P/W⌉/P of its floor, and the all-gather of 2·P numbers, in W - 1 messages.

A floor is a lower bound, so these are the shortest times, and the most that links and flags can matter.
"""

from __future__ import annotations

import argparse
import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.analysis.roofline import TABLE
from benchmarks.harness import FASTNAS

GRADIENT_BYTES = 4 * 299_578  # float32 weights of the space egnas, C = 16, 8 cells, k = 4
STEPS, GENERATIONS, INDIVIDUALS = 97, 3, 50  # of an epoch on 25,000 images in batches of 256, variant "paper"
FLAG_MICROSECONDS = 100.0  # a number that all processes add up over gloo
PROCESSES = (1, 2, 4, 8)


@dataclass(frozen=True)
class Link:
    """What connects two GPUs: its public rate in each direction, and what a message takes (assumed)."""

    name: str
    gigabytes_per_second: float
    microseconds: float


LINKS = (Link("NVLink 4", 450.0, 5.0), Link("InfiniBand NDR", 50.0, 10.0), Link("25 GbE", 3.125, 50.0))


@dataclass(frozen=True)
class Prediction:
    """Milliseconds in W processes."""

    processes: int
    step: float
    all_reduce: float  # of that step
    generation: float

    @property
    def epoch(self) -> float:
        """Milliseconds of an epoch."""
        return STEPS * self.step + GENERATIONS * self.generation


def all_reduce_ms(size: int, processes: int, link: Link) -> float:
    """A ring over the processes, of a tensor of `size` bytes."""
    share = (processes - 1) / processes
    return 2 * (share * size / link.gigabytes_per_second / 1e6 + (processes - 1) * link.microseconds / 1e3)


def predict(floors: tuple[float, float], processes: int, link: Link) -> Prediction:
    """floors: milliseconds of a weight step and of a generation on one GPU."""
    step, generation = floors
    exchange = all_reduce_ms(GRADIENT_BYTES, processes, link)
    flag = FLAG_MICROSECONDS / 1e3 * (processes > 1)
    share = math.ceil(INDIVIDUALS / processes) / INDIVIDUALS
    gathering = (processes - 1) * link.microseconds / 1e3
    return Prediction(processes, step / processes + exchange + flag, exchange, share * generation + gathering)


def floors_of(gpu: str) -> tuple[float, float]:
    """Milliseconds of a weight step and of a generation of 50, from the committed table of the roofline."""
    with TABLE.open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["contender"] == FASTNAS and row["operator"] == "all"]
    found = {row["workload"]: float(row[f"{gpu} floor ms"]) for row in rows}
    return found["weight step"], found["population"]


def table(gpu: str, link: Link) -> list[str]:
    """Rows of a table in Markdown."""
    floors = floors_of(gpu)
    alone = predict(floors, 1, link).epoch
    rows = []
    for processes in PROCESSES:
        found = predict(floors, processes, link)
        speed_up = alone / found.epoch
        cells = [
            f"{processes}",
            f"{found.step:.2f} ms",
            f"{found.all_reduce:.2f} ms",
            f"{found.generation:.1f} ms",
            f"{found.epoch / 1e3:.2f} s",
            f"{speed_up:.1f}",
            f"{100 * speed_up / processes:.0f} %",
        ]
        rows.append(f"| {' | '.join(cells)} |")
    return rows


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks scaling", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--gpu", default="H100", choices=("A100", "H100", "H200", "B200"), help="default: %(default)s")
    given = parser.parse_args(arguments)
    for link in LINKS:
        print(f"{given.gpu}, {link.name}: simulated\n")
        print("| processes | weight step | of it all-reduce | generation | epoch | speed-up | efficiency |")
        print("|---|---|---|---|---|---|---|")
        print("\n".join(table(given.gpu, link)), end="\n\n")
