"""`python -m fastnas.export`: a trained network for other programs, as ONNX or torch.export files, or saved anew."""

from __future__ import annotations

import sys

from rich.console import Console

from fastnas import api
from fastnas.cli.arguments import parse_arguments
from fastnas.cli.command import command, program_name
from fastnas.cli.exporting import ExportOptions

PROGRAM = "fastnas.export"
DESCRIPTION = """Writes a trained network for other programs, which need no fastnas.

Folders that do not exist are made."""


@command
def main(arguments: list[str], console: Console) -> int:
    """The command. Returns the exit status: 0, or 2 after an error of the user."""
    options = parse_arguments(ExportOptions, arguments, program_name(PROGRAM), DESCRIPTION)
    api.run_export(options, console)
    return 0


if __name__ == "__main__":
    sys.exit(main())
