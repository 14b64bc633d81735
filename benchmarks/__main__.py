"""`python -m benchmarks [NAME …]`: measures, prints a table, and writes CSV and JSON."""

from __future__ import annotations

import argparse
import importlib
import shlex
import sys
from pathlib import Path

import torch
from rich.console import Console

from benchmarks.harness import show, write
from fastnas.env import environment
from fastnas.search import resolve_device


def names() -> list[str]:
    return sorted(path.stem for path in Path(__file__).with_name("ops").glob("*.py") if path.stem != "__init__")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(names())}; all by default")
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N (default: cpu)")
    parser.add_argument("--threads", type=int, help="CPU threads (default: PyTorch's choice)")
    parser.add_argument("--seconds", type=float, default=2.0, help="per case and mode (default: 2)")
    parser.add_argument("--out", type=Path, help="write OUT.csv and OUT.json")
    options = parser.parse_args()
    if unknown := set(options.names) - set(names()):
        parser.error(f"unknown benchmark {', '.join(sorted(unknown))}: choose from {', '.join(names())}")
    if options.threads:
        torch.set_num_threads(options.threads)
    device = resolve_device(options.device)
    console = Console()
    about = environment(device)
    console.print(", ".join(f"{key} {about[key]}" for key in ("commit", "torch", "cpu", "threads", "isa", "device")))
    rows = []
    for name in options.names or names():
        rows += importlib.import_module(f"benchmarks.ops.{name}").measure(device, options.seconds)
    show(rows, console)
    if options.out:
        write(rows, options.out, device, shlex.join(["python", "-m", "benchmarks", *sys.argv[1:]]))


if __name__ == "__main__":
    main()
