"""`python -m benchmarks roofline`: bounds for a GPU, counted from shapes. Nothing is measured, nothing is computed.

The weight step of the supernet and the evaluation of a population run on tensors without data, once in plain torch and
once on the fused operators, and every operator that they call is counted:

* bytes: what it reads and writes in memory, each tensor once, in sectors of 32 bytes; views cost nothing. A cache may
  keep part of it, so the traffic of a real run can be lower, above all of small tensors.
* FLOPs: a multiply-add counts 2. Products and convolutions by their shapes, other operators one per element.
* launches: of plain torch the least that it can do: one for an operator, two where it fills and then copies, one for
  each gradient of a convolution. Of a fused operator what its CUDA side launches (LAUNCHES; tests/cuda_emulation holds
  the launchers to it).

The floor of a GPU is the sum over operators of max(bytes / bandwidth, FLOPs / arithmetic) at its public rates; no run
can be faster unless its caches help, and launches come on top. Tensor cores are left out: float32 results need float32
products.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from benchmarks.analysis.counting import GPUS, Counting, Counts, Gpu, total
from benchmarks.harness import FASTNAS, PLAIN
from benchmarks.harness.networks import CLASSES, SPACES
from fastnas.nn import Supernet
from fastnas.nn.fused import forward as cell_forward
from fastnas.ops import running_statistics
from fastnas.spaces import CELL_KINDS

if TYPE_CHECKING:
    from rich.console import Console

TABLE = Path(__file__).resolve().parents[1] / "results" / "roofline.csv"


@dataclass(frozen=True)
class Sizes:
    """The paper's setting by default: EG-NAS (Cai et al., AAAI 2024) on CIFAR-10."""

    space: str = "egnas"
    channels: int = 16
    layers: int = 8
    batch: int = 256
    size: int = 32  # pixels a side
    individuals: int = 50

    def __str__(self) -> str:
        return (
            f"{self.space} k={SPACES[self.space]} C={self.channels} {self.layers} cells, "
            f"{self.batch}×{self.size}×{self.size}"
        )


@contextmanager
def _without_data() -> Iterator[None]:
    """CPU tensors without data, which take the code path of GPU tensors."""
    nowhere: frozenset[str] = frozenset()
    with (
        FakeTensorMode(),
        patch.object(cell_forward, "FOLDING", nowhere),
        patch.object(running_statistics, "DEVICES", nowhere),
    ):
        yield


def _network(contender: str, sizes: Sizes) -> Supernet:
    return Supernet(
        sizes.space,
        channels=sizes.channels,
        layers=sizes.layers,
        num_classes=CLASSES,
        partial_channels=SPACES[sizes.space],
        backend="fused" if contender == FASTNAS else "reference",
    )


def _images(contender: str, sizes: Sizes) -> Tensor:
    images = torch.empty(sizes.batch, 3, sizes.size, sizes.size)  # [B, 3, H, W]
    return images if contender == PLAIN else images.contiguous(memory_format=torch.channels_last)


def weight_step(contender: str, sizes: Sizes) -> Counts:
    """Forward, cross-entropy and backward."""
    with _without_data():
        network, images = _network(contender, sizes), _images(contender, sizes)
        labels = torch.empty(sizes.batch, dtype=torch.long)  # [B]
        with Counting() as counting:
            F.cross_entropy(network(images), labels).backward()
    return counting.counts


def population(contender: str, sizes: Sizes) -> Counts:
    """The logits of all individuals, normalised by running statistics. Plain torch takes them one by one."""
    individuals = sizes.individuals if contender == FASTNAS else 1
    with _without_data():
        network, images = _network(contender, sizes), _images(contender, sizes)
        shape = (individuals, *network.alphas["normal"].shape)
        alphas = {kind: torch.empty(shape) for kind in CELL_KINDS}  # [P, E, O]
        with Counting() as counting:
            network.population_logits(images, alphas, chunk=individuals)
    counts = counting.counts
    if contender != FASTNAS:
        counts = {name: count.times(sizes.individuals) for name, count in counts.items()}
    return counts


WORKLOADS: dict[str, Callable[[str, Sizes], Counts]] = {"weight step": weight_step, "population": population}


# --- what a person reads ---------------------------------------------------------------------------------------------

COLUMNS = ["workload", "case", "contender", "operator", "calls", "launches", "bytes", "flops"]


def rows_of(workload: str, case: str, contender: str, counts: Counts) -> list[dict[str, Any]]:
    """One row for each operator, and their sum, with the floor of each GPU in milliseconds."""
    rows = []
    for name, count in [("all", total(counts)), *sorted(counts.items(), key=lambda item: -item[1].bytes)]:
        values = (workload, case, contender, name, count.calls, count.launches, count.bytes, count.flops)
        floors = {f"{gpu.name} floor ms": f"{count.floor_ms(gpu):.4g}" for gpu in GPUS}
        rows.append(dict(zip(COLUMNS, values, strict=True)) | floors)
    return rows


def show(workload: str, case: str, counts: dict[str, Counts], console: Console) -> None:
    from rich import box  # here and below: what is counted is counted without it
    from rich.table import Table

    table = Table(title=f"{workload}: {case}", box=box.SIMPLE_HEAD, title_justify="left")
    table.add_column("operator", no_wrap=True)
    for heading in ("calls", "launches", "GB", "GFLOP"):
        table.add_column(heading, justify="right")
    for contender, of_contender in counts.items():
        largest = sorted(of_contender.items(), key=lambda item: -item[1].bytes)
        shown, rest = dict(largest[:8]), dict(largest[8:])
        entries = [(f"[bold]{contender}[/]", total(of_contender)), *shown.items()]
        entries += [(f"{len(rest)} other operators", total(rest))] if rest else []
        for name, one in entries:
            indent = "" if name.startswith("[") else "  "
            table.add_row(
                indent + name, f"{one.calls:,}", f"{one.launches:,}", f"{one.bytes / 1e9:.2f}", f"{one.flops / 1e9:.1f}"
            )
        table.add_section()
    console.print(table)
    plain, ours = (total(counts[name]) for name in (PLAIN, FASTNAS))
    floors = Table(title="Time floor in ms (bounds, not measurements)", box=box.SIMPLE_HEAD, title_justify="left")
    floors.add_column("")
    for gpu in GPUS:
        floors.add_column(gpu.name, justify="right")
    for contender, one in ((PLAIN, plain), (FASTNAS, ours)):
        floors.add_row(contender, *(f"{one.floor_ms(gpu):.2f}" for gpu in GPUS))
    console.print(floors)
    console.print(
        f"fastnas: 1/{plain.bytes / ours.bytes:.1f} of plain torch's bytes, "
        f"1/{plain.launches / ours.launches:.1f} of its launches\n",
        highlight=False,
    )


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks roofline", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    defaults = Sizes()
    parser.add_argument("--space", choices=SPACES, default=defaults.space, help="default: %(default)s")
    for name in ("batch", "channels", "layers", "size", "individuals"):
        parser.add_argument(f"--{name}", type=int, default=getattr(defaults, name), help="default: %(default)s")
    parser.add_argument("--out", type=Path, help=f"write the counts as CSV; the committed ones are {TABLE.name}")
    from rich.console import Console

    given = vars(parser.parse_args(arguments))
    out = given.pop("out")
    sizes = Sizes(**given)
    console = Console()
    console.print("Counted from shapes: bounds, not measurements.", *map(_rates, GPUS), sep="\n", highlight=False)
    rows: list[dict[str, Any]] = []
    for workload, count in WORKLOADS.items():
        case = str(sizes) if workload == "weight step" else f"P={sizes.individuals} {sizes}"
        counts = {contender: count(contender, sizes) for contender in (PLAIN, FASTNAS)}
        show(workload, case, counts, console)
        for contender, of_contender in counts.items():
            rows += rows_of(workload, case, contender, of_contender)
    if out:
        out.parent.mkdir(parents=True, exist_ok=True)
        with out.open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0], lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)


def _rates(gpu: Gpu) -> str:
    return f"{gpu.name}: {gpu.teraflops:g} TFLOP/s, {gpu.terabytes_per_second:g} TB/s ({gpu.source})"
