"""`python -m fastnas.export`: a trained network for other programs, as ONNX or torch.export files, or saved anew."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from rich.console import Console

from fastnas.cli.command import command, print_text
from fastnas.cli.own_code import add_space_flag, import_space
from fastnas.engine.export import export_onnx, export_program
from fastnas.engine.trained import image_size_of, load_trained
from fastnas.errors import UserError


@command
def main(arguments: list[str], console: Console) -> int:
    """The command. Returns the exit status: 0, or 2 after an error of the user."""
    options = _parser().parse_args(arguments)
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


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m fastnas.export",
        description="Writes a trained network as an ONNX or torch.export file, which needs neither fastnas nor its "
        "extension, or as a description with weights, which DerivedNetwork.load reads.",
    )
    parser.add_argument("network", type=Path, help="run directory of fastnas.train, or a saved network (.json)")
    parser.add_argument("--onnx", type=Path, metavar="FILE", help="ONNX, checked against onnxruntime")
    parser.add_argument("--program", type=Path, metavar="FILE", help="torch.export program (.pt2)")
    parser.add_argument("--save", type=Path, metavar="FILE", help="JSON description with safetensors weights beside it")
    parser.add_argument("--image-size", type=int, help="pixels a side (default: of the training images)")
    add_space_flag(parser)
    return parser


if __name__ == "__main__":
    sys.exit(main())
