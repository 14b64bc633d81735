"""`python -m benchmarks [NAME …]`: measures, prints tables, and writes CSV and JSON.

`python -m benchmarks profile`, `roofline`, `resources` and `instructions` look into a run or a compiled library instead
(benchmarks/analysis), with options of their own.
"""

from __future__ import annotations

import argparse
import importlib
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from benchmarks.harness import Row
from benchmarks.harness.networks import SPACES, Options
from benchmarks.harness.output import show, write
from fastnas.cli.output import safe_output
from fastnas.cli.process import resolve_device
from fastnas.env import environment
from fastnas.errors import UserError
from fastnas.option_types import Count, NotNegative, Processes, check_value, reading

HERE = Path(__file__).parent


def operators() -> list[str]:
    return _stems(HERE / "ops")


def end_to_end() -> list[str]:
    return _stems(HERE)


def analyses() -> list[str]:
    return _stems(HERE / "analysis")


def _stems(folder: Path) -> list[str]:
    return sorted(path.stem for path in folder.glob("*.py") if not path.stem.startswith("__"))


def run(name: str, device: torch.device, seconds: float, sizes: dict[str, Any]) -> list[Row]:
    """The rows of one benchmark. Operators have their sizes in their file; `sizes` are for the end-to-end ones, whose
    own SIZES, if any, are the defaults."""
    if name in operators():
        return importlib.import_module(f"benchmarks.ops.{name}").measure(device, seconds)
    module = importlib.import_module(f"benchmarks.{name}")
    return module.measure(device, seconds, Options(**(getattr(module, "SIZES", {}) | sizes)))


def main(arguments: Sequence[str] | None = None) -> None:
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if arguments and arguments[0] in analyses():
        importlib.import_module(f"benchmarks.analysis.{arguments[0]}").main(arguments[1:])
        return
    known = [*operators(), *end_to_end()]
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "names",
        nargs="*",
        metavar="NAME",
        help=f"any of {', '.join(known)}, or ops for every operator (default: ops; on CUDA everything)",
    )
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N (default: cpu)")
    parser.add_argument("--threads", type=_checked(Processes), help="CPU threads (default: PyTorch's choice)")
    parser.add_argument(
        "--seconds", type=_checked(NotNegative), default=2.0, help="per case and mode, at least 3 rounds (default: 2)"
    )
    parser.add_argument("--out", type=Path, help="write OUT.csv and OUT.json")
    sizes = parser.add_argument_group(f"end to end ({', '.join(end_to_end())})")
    sizes.add_argument("--space", choices=SPACES, help="only this space (default: all that a benchmark has)")
    sizes.add_argument(
        "--batch", type=_checked(Count), help="images of a batch (default: 64; population: 128; derived_step: 32)"
    )
    sizes.add_argument("--channels", type=_checked(Count), help="C of the first cell (default: 16; derived_step: 36)")
    sizes.add_argument("--layers", type=_checked(Count), help="cells (default: 8; cell has one; derived_step: 20)")
    sizes.add_argument("--size", type=_checked(Count), help="pixels a side (default: 32)")
    sizes.add_argument("--individuals", type=_checked(Count), help="of a population (default: 50; search_epoch: 4)")
    sizes.add_argument("--timed", type=_checked(Count), help="individuals that plain torch is timed with (default: 3)")
    sizes.add_argument("--images", type=_checked(Count), help="of search_epoch (default: 512), of each set of data")
    sizes.add_argument(
        "--compile",
        action=argparse.BooleanOptionalAction,
        help="cell: torch.compile takes part; it needs minutes (default: on CUDA)",
    )
    sizes.add_argument("--no-memory", dest="memory", action="store_false", help="do not measure peak memory")
    given = parser.parse_args(arguments)
    default = ["ops", *end_to_end()] if given.device.startswith("cuda") else ["ops"]
    names = list(dict.fromkeys(name for word in given.names or default for name in _expand(word)))
    if given.compile is None:
        given.compile = given.device.startswith("cuda")
    if unknown := set(names) - set(known):
        parser.error(f"unknown benchmark {', '.join(sorted(unknown))}: choose from {', '.join(['ops', *known])}")
    if given.threads:
        torch.set_num_threads(given.threads)
    try:
        device = resolve_device(given.device)
    except UserError as error:
        parser.error(str(error))
    values = {field.name: getattr(given, field.name) for field in fields(Options)}
    given_sizes = {name: value for name, value in values.items() if value is not None}
    console = Console()
    about = environment(device)
    origin = ", ".join(f"{key} {about[key]}" for key in ("commit", "torch", "cpu", "threads", "isa", "device"))
    console.print(origin, highlight=False, soft_wrap=True)
    rows: list[Row] = []
    for name in names:
        try:
            new = run(name, device, given.seconds, given_sizes)
        except UserError as error:
            parser.error(f"{name}: {error}")
        show(new, console)
        rows += new
        if given.out:  # after each, so that nothing is lost where the next one is stopped
            write(rows, given.out, device, shlex.join(["python", "-m", "benchmarks", *arguments]))


def _expand(word: str) -> list[str]:
    return operators() if word == "ops" else [word]


def _checked(hint: Any) -> Callable[[str], Any]:
    """Reads the value of a flag that may be what the type `hint` says."""

    def read(text: str) -> Any:
        value = reading(text, hint)
        try:
            check_value("it", value, hint)
        except UserError as error:
            raise argparse.ArgumentTypeError(str(error)) from error
        return value

    return read


if __name__ == "__main__":
    with safe_output():
        main()
