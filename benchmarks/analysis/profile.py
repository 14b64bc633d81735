"""`python -m benchmarks profile`: where the time of a workload goes, operator by operator.

A weight step, a population or a step of retraining runs under torch's profiler. For each operator: the time in it, what
it computes and moves (counted from the shapes of this run, see `counting`), the least time that takes at the machine's
measured rates, and what is lost beyond that. Sorted by lost time, so that the first row is where work pays most. What
no operator accounts for is Python, autograd and the cost of the profiler itself.
"""

from __future__ import annotations

import argparse
import csv
import statistics
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks import derived_step, population, supernet_step
from benchmarks.analysis.counting import Count, Counting
from benchmarks.harness import FASTNAS
from benchmarks.harness.ceilings import Ceilings, ceilings, floor_ms
from benchmarks.harness.clock import Run
from benchmarks.harness.networks import SPACES, Options
from fastnas.env import environment
from fastnas.errors import UserError

if TYPE_CHECKING:
    from rich.console import Console

DROP_PATH = 0.2  # of the retraining step
REST = "Python and autograd"


@dataclass(frozen=True)
class Row:
    """An operator in one call of a workload; medians over the calls."""

    workload: str
    operator: str
    calls: int
    ms: float  # in the operator itself, not in those that it calls
    share: float  # of the workload
    gflops: float  # that it computes, a multiply-add counting 2
    gigabytes: float  # that it reads and writes, each tensor once
    floor_ms: float  # at the machine's rates, call by call the slower of arithmetic and memory
    lost_ms: float  # ms - floor_ms
    gflops_per_second: float
    gigabytes_per_second: float


Build = Callable[[torch.device, dict[str, Any]], Run]


def _all(sizes: dict[str, Any]) -> dict[str, Any]:
    return asdict(Options(**sizes))


def _weight_step(space: str) -> Build:
    return lambda device, sizes: supernet_step.task(device, FASTNAS, space, "both", _all(sizes)).run


def _population(bn_mode: population.BatchNormMode) -> Build:
    return lambda device, sizes: population.task(device, FASTNAS, population.SPACE, bn_mode, _all(sizes)).run


def _retraining_step(device: torch.device, sizes: dict[str, Any]) -> Run:
    return derived_step.task(device, FASTNAS, DROP_PATH, "both", _all(derived_step.SIZES | sizes)).run


WORKLOADS: dict[str, Build] = {
    **{f"weight step {space}": _weight_step(space) for space in SPACES},
    **{f"population {bn_mode}": _population(bn_mode) for bn_mode in population.MODES},
    "retraining step": _retraining_step,
}


def measure(workload: str, device: torch.device, sizes: dict[str, Any], repetitions: int) -> list[Row]:
    """The rows of a workload, by lost time, and then the rest.

    sizes: what of `Options` is given; the benchmarks choose the others.
    """
    run = WORKLOADS[workload](device, sizes)
    run()
    with Counting() as counting:
        run()
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.type == "cuda" else [])]
    times: dict[str, list[float]] = defaultdict(list)
    totals = []
    for _ in range(repetitions):
        with profile(activities=activities) as trace:
            run()
        events = trace.key_averages()
        name = "self_device_time_total" if device.type == "cuda" else "self_cpu_time_total"
        for event in events:
            times[event.key].append(getattr(event, name) / 1e3)
        totals.append(sum(getattr(event, name) for event in events) / 1e3)
    return rows_of(
        workload,
        {operator: statistics.median(values) for operator, values in times.items()},
        statistics.median(totals),
        {name.replace(".", "::"): count for name, count in counting.counts.items()},
        ceilings(device),
    )


def rows_of(
    workload: str, times: dict[str, float], total: float, counts: dict[str, Count], limits: Ceilings
) -> list[Row]:
    """Operators with what they need, by lost time; last, all that does no counted work."""
    rows = []
    for operator, count in counts.items():
        ms = times.get(operator, 0.0)
        floor = sum(floor_ms(flops, nbytes, limits) for nbytes, flops in count.each)
        rows.append(_row(workload, operator, count.calls, ms, total, count, floor))
    rows.sort(key=lambda row: -row.lost_ms)
    rest = total - sum(row.ms for row in rows)
    return [*rows, _row(workload, REST, 0, rest, total, Count(), 0.0)]


def _row(workload: str, operator: str, calls: int, ms: float, total: float, count: Count, floor: float) -> Row:
    seconds = ms / 1e3
    rates = [amount / seconds / 1e9 if seconds else 0.0 for amount in (count.flops, count.bytes)]
    share = ms / total if total else 0.0
    return Row(
        workload,
        operator,
        calls,
        ms,
        share,
        count.flops / 1e9,
        count.bytes / 1e9,
        floor,
        ms - floor,
        rates[0],
        rates[1],
    )


def show(rows: Sequence[Row], console: Console, shown: int = 12) -> None:
    """The operators that lose most; the others together. "floor" is the share of the time that has to be."""
    from rich import box  # here and below: what is measured is measured without it
    from rich.table import Table

    total = sum(row.ms for row in rows)
    table = Table(
        title=f"{rows[0].workload}: {total:,.0f} ms", box=box.SIMPLE_HEAD, title_justify="left", padding=(0, 1, 0, 0)
    )
    table.add_column("operator", no_wrap=True, max_width=26)
    for heading in ("calls", "ms", "share", "lost", "floor", "GFLOP/s", "GB/s"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in [*rows[:-1][:shown], rows[-1]]:
        fraction = f"{row.floor_ms / row.ms:.2f}" if row.ms and row.floor_ms else ""
        rates = [f"{rate:.1f}" if rate else "" for rate in (row.gflops_per_second, row.gigabytes_per_second)]
        calls = f"{row.calls:,}" if row.calls else ""
        table.add_row(
            row.operator, calls, f"{row.ms:,.1f}", f"{row.share:.1%}", f"{row.lost_ms:,.1f}", fraction, *rates
        )
    if left := rows[:-1][shown:]:
        ms, lost = sum(row.ms for row in left), sum(row.lost_ms for row in left)
        table.add_row(f"{len(left)} others", "", f"{ms:,.1f}", f"{ms / total:.1%}", f"{lost:,.1f}", "", "", "")
    console.print(table)


def write(rows: Sequence[Row], stem: Path, caption: str) -> None:
    """`stem`.csv with all rows, `stem`.png with the operators that lose most."""
    stem.parent.mkdir(parents=True, exist_ok=True)
    with stem.with_name(f"{stem.name}.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(Row)], lineterminator="\n")
        writer.writeheader()
        writer.writerows({name: _short(value) for name, value in asdict(row).items()} for row in rows)
    _draw(rows, stem.with_name(f"{stem.name}.png"), caption)


def _short(value: Any) -> Any:
    return f"{value:.4g}" if isinstance(value, float) else value


def _draw(rows: Sequence[Row], path: Path, caption: str) -> None:
    from matplotlib.figure import Figure

    workloads = list(dict.fromkeys(row.workload for row in rows))
    figure = Figure(figsize=(9, 2.6 * len(workloads)), layout="constrained")
    for axes, workload in zip(figure.subplots(len(workloads), squeeze=False)[:, 0], workloads, strict=True):
        own = [row for row in rows if row.workload == workload]
        largest = sorted(own, key=lambda row: row.lost_ms)[-8:]
        names = [row.operator for row in largest]
        axes.barh(names, [row.floor_ms for row in largest], color="#4c78a8", label="least time at the machine's rates")
        axes.barh(
            names,
            [max(0.0, row.lost_ms) for row in largest],
            left=[row.floor_ms for row in largest],
            color="#f2a65a",
            label="lost",
        )
        axes.set_title(f"{workload}: {sum(row.ms for row in own):,.0f} ms", loc="left", fontsize=10)
        axes.set_xlabel("ms")
        axes.tick_params(labelsize=8)
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[0].legend(fontsize=8, frameon=False, loc="lower right")
    figure.suptitle(caption, fontsize=8, x=0.01, ha="left")
    figure.savefig(path, dpi=120)


def main(arguments: Sequence[str]) -> None:
    from rich.console import Console

    from fastnas.cli.process import resolve_device

    parser = argparse.ArgumentParser(prog="python -m benchmarks profile", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("workloads", nargs="*", metavar="WORKLOAD", help=f"of {'; '.join(WORKLOADS)} (default: all)")
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N (default: cpu)")
    parser.add_argument("--threads", type=int, help="CPU threads (default: PyTorch's choice)")
    parser.add_argument("--repetitions", type=int, default=3, help="profiled calls (default: 3)")
    parser.add_argument("--individuals", type=int, default=10, help="of a population (default: 10)")
    for name in ("batch", "channels", "layers", "size"):
        parser.add_argument(f"--{name}", type=int, help="as of the benchmarks")
    parser.add_argument("--out", type=Path, help="write OUT.csv and OUT.png")
    given = parser.parse_args(arguments)
    workloads = given.workloads or list(WORKLOADS)
    if unknown := set(workloads) - set(WORKLOADS):
        parser.error(f"unknown workload {', '.join(sorted(unknown))}: choose from {'; '.join(WORKLOADS)}")
    if given.threads:
        torch.set_num_threads(given.threads)
    try:
        device = resolve_device(given.device)
    except UserError as error:
        parser.error(str(error))
    names = ("batch", "channels", "layers", "size", "individuals")
    sizes = {name: getattr(given, name) for name in names if getattr(given, name) is not None}
    about = environment(device)
    origin = ", ".join(f"{key} {about[key]}" for key in ("commit", "torch", "cpu", "threads", "isa", "device"))
    console = Console()
    console.print(origin, highlight=False, markup=False, soft_wrap=True)
    rows: list[Row] = []
    for workload in workloads:
        new = measure(workload, device, sizes, given.repetitions)
        show(new, console)
        rows += new
        if given.out:  # after each, so that nothing is lost where the next one is stopped
            write(rows, given.out, origin)
