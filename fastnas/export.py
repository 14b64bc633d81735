"""`python -m fastnas.export`: a trained network for other programs, as ONNX or torch.export files, or saved anew."""

from __future__ import annotations

import sys

from rich.console import Console

from fastnas import api
from fastnas.cli.arguments import parse_arguments
from fastnas.cli.command import command
from fastnas.cli.exporting import ExportOptions

PROGRAM = "fastnas.export"
DESCRIPTION = """Writes a trained network as an ONNX or torch.export file, which needs neither fastnas nor its
extension, or as a description with weights, which DerivedNetwork.load reads, and so does a Python file without fastnas
(--standalone). Folders that do not exist are made."""


@command
def main(arguments: list[str], console: Console) -> int:
    """The command. Returns the exit status: 0, or 2 after an error of the user."""
    options = parse_arguments(ExportOptions, arguments, f"python -m {PROGRAM}", DESCRIPTION)
    api.run_export(options, console)
    return 0


if __name__ == "__main__":
    sys.exit(main())
