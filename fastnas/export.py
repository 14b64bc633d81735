"""`python -m fastnas.export`: a trained network for other programs, as ONNX or torch.export files, or saved anew."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import tyro
from rich.console import Console

from fastnas.cli.command import command, print_text
from fastnas.cli.own_code import import_space
from fastnas.engine.export import export_onnx, export_program
from fastnas.engine.trained import image_size_of, load_trained
from fastnas.errors import UserError
from fastnas.option_types import Options, Side

PROGRAM = "fastnas.export"
DESCRIPTION = """Writes a trained network as an ONNX or torch.export file, which needs neither fastnas nor its
extension, or as a description with weights, which DerivedNetwork.load reads."""


@dataclass(frozen=True, kw_only=True)
class ExportOptions(Options):
    """What is written."""

    network: tyro.conf.Positional[Path]
    """Run directory of fastnas.train, or a saved network (.json)."""
    onnx: Path | None = None
    """ONNX file, checked against onnxruntime."""
    program: Path | None = None
    """torch.export program (.pt2)."""
    save: Path | None = None
    """JSON description, with safetensors weights beside it."""
    image_size: Side | None = None
    """Pixels a side; None: of the training images."""
    space: str | None = None
    """python:MODULE:OBJECT: a space of your own whose candidates the genotype names."""


@command
def main(arguments: list[str], console: Console) -> int:
    """The command. Returns the exit status: 0, or 2 after an error of the user."""
    options = tyro.cli(ExportOptions, args=arguments, prog=f"python -m {PROGRAM}", description=DESCRIPTION)
    if not (options.onnx or options.program or options.save):
        raise UserError("nothing to write: give --onnx FILE, --program FILE or --save FILE.")
    import_space(options.space)
    network = load_trained(options.network)
    size = image_size_of(network, options.image_size)
    saved = network.save(options.save) if options.save else None
    if options.program:
        export_program(network, options.program, size)
    if options.onnx:
        export_onnx(network, options.onnx, size)
    for path in (saved, options.program, options.onnx):
        if path:
            print_text(console, f"wrote {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
