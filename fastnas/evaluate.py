"""`python -m fastnas.evaluate`: accuracy, size, speed and memory of a trained network."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from fastnas import data
from fastnas.counting import count_macs, count_parameters
from fastnas.engine.evaluation import Evaluation, evaluate
from fastnas.engine.latency import latency
from fastnas.engine.loop import peak_memory_mb
from fastnas.engine.trained import load_trained
from fastnas.env import environment
from fastnas.errors import UserError
from fastnas.export import image_size_of
from fastnas.nn import DerivedNetwork
from fastnas.process import resolve_device

BATCHES = (1, 64)  # whose latency is measured
MOST_CLASSES = 20  # that are listed


def main(arguments: Sequence[str] | None = None) -> int:
    """The command. Returns the exit status: 0, or 2 after an error that the user can mend."""
    options = _parser().parse_args(arguments)
    console = Console()
    try:
        result = measure(options, console)
        if options.json:
            try:
                options.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
            except OSError as error:
                raise UserError(
                    f"cannot write {str(options.json)!r}: {error.strerror}; give a writable file."
                ) from error
    except UserError as error:
        Console(stderr=True).print(f"[bold red]error:[/bold red] {error}", highlight=False, soft_wrap=True)
        return 2
    return 0


def measure(options: argparse.Namespace, console: Console) -> dict[str, Any]:
    """Everything that the options ask for, printed and as plain values."""
    device = resolve_device(options.device)
    if options.threads:
        torch.set_num_threads(options.threads)
    network = load_trained(options.network, options.backend).to(device).to(memory_format=torch.channels_last)
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
        with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
            task = bar.add_task("evaluating", total=len(pipeline))
            evaluation = evaluate(network, pipeline, lambda done, total: bar.update(task, completed=done))
        result |= {"data": source.spec, "split": source.split, "evaluation": evaluation.to_dict()}
        print_evaluation(evaluation, source, console)
    if options.runs:
        times = []
        for batch in BATCHES:
            images = torch.randn(batch, *size).to(device).to(memory_format=torch.channels_last)  # [batch, C, H, W]
            times.append(latency(network, images, options.runs))
            console.print(
                f"latency, batch {batch:>2}: median {times[-1].median * 1000:.2f} ms, "
                f"p95 {times[-1].p95 * 1000:.2f} ms ({times[-1].runs} runs, {network.backend} on {device}, "
                f"{torch.get_num_threads()} threads)",
                highlight=False,
                soft_wrap=True,
            )
        result["latency"] = [asdict(each) for each in times]
    result["peak_memory_mb"] = peak_memory_mb(device)
    kind = "allocated on the device" if device.type == "cuda" else "resident, whole process"
    console.print(f"peak memory {result['peak_memory_mb']:.0f} MiB ({kind})", highlight=False)
    return result


def open_source(
    network: DerivedNetwork, spec: str, split: str, image_size: int | None = None, limit: int | None = None
) -> data.Source:
    """The images, brought to the size and normalised as those that the network was tested with.

    Raises:
        UserError: the images or their classes do not fit the network.
    """
    known = network.about.get("images", {})
    height, width = known.get("image_size", (None, None))
    if image_size is None and height == width:
        image_size = height
    share = known.get("evaluated_share") if image_size else None
    source = data.open(spec, split, image_size=image_size, evaluated_share=share, limit=limit)
    classes = known.get("classes")
    if classes is not None and list(source.classes) != list(classes):
        raise UserError(
            f"the classes of {spec} are not those that the network was trained with: got {_named(source.classes)}, "
            f"expected {_named(classes)}."
        )
    have = (network.options["num_classes"], network.options["in_channels"])
    if have != (len(source.classes), source.channels):
        raise UserError(
            f"{spec} has {len(source.classes)} classes and {source.channels} channels, but the network has {have[0]} "
            f"and {have[1]}: give images like those that it was trained with."
        )
    if "mean" in known and "std" in known:
        source.published = (tuple(known["mean"]), tuple(known["std"]))
    return source


def print_size(result: dict[str, Any], console: Console) -> None:
    channels, height, width = result["image_size"]
    console.print(
        f"{result['parameters']:,} parameters without the auxiliary head; for an image of {height}×{width}×{channels} "
        f"{result['macs']:,} multiply-adds of convolutions and linear layers, {result['flops_counter']:,} by the "
        "flops-counter rule",
        highlight=False,
        soft_wrap=True,
    )


def print_evaluation(evaluation: Evaluation, source: data.Source, console: Console) -> None:
    console.print(
        f"[bold]top-1 {evaluation.top1:.2%}[/bold], top-5 {evaluation.top5:.2%}, loss {evaluation.loss:.4f} on "
        f"{evaluation.images:,} images ({source.spec}, {source.split})",
        highlight=False,
        soft_wrap=True,
    )
    order = sorted(range(len(source.classes)), key=lambda k: evaluation.per_class[k] or 0.0)
    table = Table("class", "accuracy", "images", "most often taken for", box=None, header_style="bold", pad_edge=False)
    for column in (1, 2):
        table.columns[column].justify = "right"
    for k in order[:MOST_CLASSES]:
        row, share = evaluation.confusion[k], evaluation.per_class[k]
        wrong = max((count, j) for j, count in enumerate(row) if j != k) if len(row) > 1 else (0, 0)
        taken_for = f"{source.classes[wrong[1]]} ({wrong[0]})" if wrong[0] else "-"
        table.add_row(source.classes[k], "-" if share is None else f"{share:.1%}", str(sum(row)), taken_for)
    console.print(table)
    if len(order) > MOST_CLASSES:
        console.print(f"and {len(order) - MOST_CLASSES} classes with higher accuracy", style="dim")


def _named(classes: Sequence[str]) -> str:
    return ", ".join(list(classes)[:5]) + (f" and {len(classes) - 5} more" if len(classes) > 5 else "")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m fastnas.evaluate",
        description="Accuracy, parameters, multiply-adds, latency and peak memory of a trained network.",
    )
    parser.add_argument("network", type=Path, help="run directory of fastnas.train, or a saved network (.json)")
    parser.add_argument(
        "--data",
        help="digits, cifar10:ROOT, cifar100:ROOT, folder:ROOT, imagenet:ROOT or npz:FILE; without: no accuracy",
    )
    parser.add_argument("--split", choices=("test", "train"), default="test", help="of the images (default: test)")
    parser.add_argument("--image-size", type=int, help="pixels a side to resize and crop to (default: as trained)")
    parser.add_argument("--limit", type=int, help="at most this many images, evenly from all classes")
    parser.add_argument("--batch-size", type=int, default=256, help="images in a batch (default: 256)")
    parser.add_argument("--runs", type=int, default=30, help="timed runs for the latency; 0: none (default: 30)")
    parser.add_argument("--backend", choices=("auto", "fused", "reference"), default="auto", help="(default: auto)")
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:1, … (default: CUDA where there is a GPU)")
    parser.add_argument("--threads", type=int, help="CPU threads")
    parser.add_argument("--json", type=Path, help="also write everything to this file")
    return parser


if __name__ == "__main__":
    sys.exit(main())
