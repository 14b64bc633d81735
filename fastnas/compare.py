"""`python -m fastnas.compare`: many seeds of several strategies on one evaluator, as a table and a page."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from rich.console import Console

from fastnas.cli.arguments import parse_arguments
from fastnas.cli.command import INTERRUPTED, command_line, print_text, program_name, run_command
from fastnas.cli.comparison import compare
from fastnas.cli.options import CompareOptions
from fastnas.cli.run_directory import locked_directory
from fastnas.cli.summary import print_report
from fastnas.report.comparison import Summary, write_comparison

PROGRAM = "fastnas.compare"
DESCRIPTION = """Compares strategies that evaluate architectures, with many seeds of each.

Every run gets the same budget, on the clock of the evaluator.

Finished runs are kept: the same command goes on, and more can be added later."""


def print_table(summaries: Sequence[Summary], console: Console) -> None:
    width = max(len("strategy"), *(len(summary.strategy) for summary in summaries))
    header = f"{'strategy':<{width}} {'runs':>5} {'mean ± std (%)':>15} {'worst to best':>16} {'evaluations':>12}"
    print_text(console, header, style="bold")
    for s in summaries:
        spread = f"{s.worst:.2f} to {s.best:.2f}"
        row = f"{f'{s.mean:.2f} ± {s.std:.2f}':>15} {spread:>16} {s.evaluations:>12.1f}"
        print_text(console, f"{s.strategy:<{width}} {s.runs:>5} {row}")


@run_command
def main(arguments: list[str], console: Console) -> int:
    """The command. Returns the exit status: 0, 130 after Ctrl-C, or 2 after an error of the user."""
    options = parse_arguments(CompareOptions, arguments, program_name(PROGRAM), DESCRIPTION)
    try:
        with locked_directory(options.out):
            print_table(compare(options, console), console)
            print_report(write_comparison(options.out), console)
        return 0
    except KeyboardInterrupt:
        again = command_line(PROGRAM, *arguments)
        print_text(console, f"stopped; finished runs are kept, continue with: {again}")
        return INTERRUPTED


if __name__ == "__main__":
    sys.exit(main())
