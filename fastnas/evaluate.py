"""`python -m fastnas.evaluate`: accuracy, size, speed and memory of a trained network."""

from __future__ import annotations

import sys

from rich.console import Console

from fastnas import api
from fastnas.cli.arguments import parse_arguments
from fastnas.cli.command import command, program_name
from fastnas.cli.evaluating import PROGRAM, EvaluateOptions

DESCRIPTION = "Accuracy, size, speed and peak memory of a trained network."


@command
def main(arguments: list[str], console: Console) -> int:
    """The command. Returns the exit status: 0, or 2 after an error of the user."""
    options = parse_arguments(EvaluateOptions, arguments, program_name(PROGRAM), DESCRIPTION)
    api.run_evaluate(options, arguments, console)
    return 0


if __name__ == "__main__":
    sys.exit(main())
