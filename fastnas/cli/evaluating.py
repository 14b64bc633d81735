"""Accuracy, size, speed and memory of a trained network: options, measuring, printing."""

from __future__ import annotations

import copy
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import tyro
from rich.console import Console
from rich.table import Table
from rich.text import Text

from fastnas import data
from fastnas.cli.command import print_text
from fastnas.cli.own_code import import_space
from fastnas.cli.phase_bar import phase_bar
from fastnas.cli.process import resolve_device
from fastnas.cli.run import Arguments, command_of
from fastnas.cli.summary import print_report
from fastnas.counting import count_macs, count_parameters
from fastnas.engine.evaluation import Evaluation, evaluate, pairs_of
from fastnas.engine.latency import latency
from fastnas.engine.loop import peak_memory_mb
from fastnas.engine.trained import image_size_of, load_trained, open_source
from fastnas.env import environment
from fastnas.errors import UserError
from fastnas.nn import DerivedNetwork
from fastnas.option_types import Count, CountOrZero, Options, Processes, Side
from fastnas.report.evaluated import PAGE, write_evaluation

PROGRAM = "fastnas.evaluate"
BATCHES = (1, 64)  # whose latency is measured
MOST_CLASSES = 20  # that are listed


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions(Options):
    """What is measured."""

    network: tyro.conf.Positional[Path]
    """Run directory of fastnas.train, or a saved network (.json)."""
    data: str | None = None
    """digits, cifar10:ROOT, cifar100:ROOT, folder:ROOT, imagenet:ROOT or npz:FILE; without it, no accuracy."""
    split: Literal["test", "train"] = "test"
    """Split to evaluate."""
    image_size: Side | None = None
    """Pixels a side to resize and crop to; None: as trained."""
    limit: Count | None = None
    """At most this many images, evenly from all classes."""
    batch_size: Count = 256
    """Images in a batch."""
    runs: CountOrZero = 30
    """Timed runs for the latency; 0 for none."""
    backend: Literal["auto", "fused", "reference"] = "auto"
    """fused: our operators; reference: plain PyTorch; auto: fused."""
    device: str = "auto"
    """cpu, cuda, cuda:1, …; auto takes CUDA where there is a GPU."""
    threads: Processes | None = None
    """CPU threads; None for PyTorch's choice."""
    space: str | None = None
    """python:MODULE:OBJECT: a space of your own whose candidates the genotype names."""
    report: Path | None = None
    """The page with classes and confusions; None: evaluation.html in the run directory."""
    json: Path | None = None
    """Also write everything to this file."""


def write_page(options: EvaluateOptions, result: dict[str, Any], arguments: Arguments, console: Console) -> None:
    """Writes the report page, by default into the run directory; where that cannot be written, it only says so."""
    folder = options.network if options.network.is_dir() else options.network.parent
    try:
        page = write_evaluation(result, options.report or folder / PAGE, command_of(PROGRAM, arguments))
        print_report(page, console)
    except UserError as error:
        if options.report:
            raise
        print_text(console, f"no report: {error}; or give --report FILE", style="yellow")


def measure(options: EvaluateOptions, console: Console, given: DerivedNetwork | None = None) -> dict[str, Any]:
    """Measures and prints everything that the options ask for; returns it as plain values.

    given: the network, instead of the one that the options name; it is not changed.
    """
    import_space(options.space)
    device = resolve_device(options.device)
    if options.threads:
        torch.set_num_threads(options.threads)
    network = load_trained(options.network, options.backend) if given is None else copy.deepcopy(given).eval()
    if given is not None and options.backend != "auto":
        network.backend = options.backend
    network.to(device).to(memory_format=torch.channels_last)
    source = None
    if options.data:
        source = open_source(network, options.data, options.split, options.image_size, options.limit)
        size = (source.channels, *source.image_size)
    else:
        size = (network.options["in_channels"], *image_size_of(network, options.image_size))
    macs, flops = count_macs(network, size), count_macs(network, size, "flops_counter")
    result: dict[str, Any] = {
        "network": str(options.network),
        "environment": environment(device),
        "parameters": count_parameters(network),
        "image_size": list(size),
        "macs": macs,
        "flops_counter": flops,
        "backend": network.backend,
    }
    print_size(result, console)
    if source is not None:
        pipeline = data.pipeline(source, batch_size=min(options.batch_size, len(source)), train=False, device=device)
        with phase_bar(console) as show:
            evaluation = evaluate(network, pipeline, lambda done, total: show("evaluating", done, total))
        result |= {"data": source.spec, "split": source.split, "classes": list(source.classes)}
        result["evaluation"] = evaluation.to_dict()
        print_evaluation(evaluation, source, console)
    if options.runs:
        times = []
        for batch in BATCHES:
            images = torch.randn(batch, *size).to(device).to(memory_format=torch.channels_last)  # [batch, C, H, W]
            times.append(latency(network, images, options.runs))
            print_text(
                console,
                f"latency, batch {batch:>2}: median {times[-1].median * 1000:.2f} ms, "
                f"p95 {times[-1].p95 * 1000:.2f} ms ({times[-1].runs} runs, {network.backend} on {device}, "
                f"{torch.get_num_threads()} threads)",
            )
        result["latency"] = [asdict(each) for each in times]
    result["peak_memory_mb"] = peak_memory_mb(device)
    kind = "allocated on the device" if device.type == "cuda" else "resident, whole process"
    print_text(console, f"peak memory {result['peak_memory_mb']:.0f} MiB ({kind})")
    return result


def print_size(result: dict[str, Any], console: Console) -> None:
    channels, height, width = result["image_size"]
    print_text(
        console,
        f"{result['parameters']:,} parameters without the auxiliary head; for an image of {height}×{width}×{channels} "
        f"{result['macs']:,} multiply-adds of convolutions and linear layers, {result['flops_counter']:,} "
        "with BatchNorm, ReLU, pools and biases, as flops-counter counts",
    )


def print_evaluation(evaluation: Evaluation, source: data.Source, console: Console) -> None:
    print_text(
        console,
        (f"top-1 {evaluation.top1:.2%}", "bold"),
        f"{f', top-5 {evaluation.top5:.2%}' if len(source.classes) > 5 else ''}, loss {evaluation.loss:.4f} on "
        f"{evaluation.images:,} images ({source.spec}, {source.split})",
    )
    order = sorted(range(len(source.classes)), key=lambda k: evaluation.per_class[k] or 0.0)
    table = Table("class", "accuracy", "images", "most often taken for", box=None, header_style="bold", pad_edge=False)
    for column in (1, 2):
        table.columns[column].justify = "right"
    pairs = pairs_of(evaluation.confusion)
    for k in order[:MOST_CLASSES]:
        row, share = {j: count for label, j, count in pairs if label == k}, evaluation.per_class[k]
        wrong, most = max((item for item in row.items() if item[0] != k), key=lambda item: item[1], default=(k, 0))
        taken_for = Text(f"{source.classes[wrong]} ({most})" if most else "-")
        images = str(sum(row.values()))
        table.add_row(Text(source.classes[k]), "-" if share is None else f"{share:.1%}", images, taken_for)
    console.print(table)
    if len(order) > MOST_CLASSES:
        print_text(console, f"and {len(order) - MOST_CLASSES} classes with higher accuracy", style="dim")
