"""`python -m fastnas.search`: images in, a genotype and a report out."""

from __future__ import annotations

import sys

from rich.console import Console

from fastnas import api
from fastnas.cli.command import INTERRUPTED, print_document, print_text, program_name, run_command
from fastnas.cli.configuration import origins, parse_search
from fastnas.cli.searching import PROGRAM, prepare

__all__ = ["main", "prepare"]

DESCRIPTION = """Searches a network architecture for your images.

Without arguments: a demonstration on scanned digits, two minutes on two cores.

Defaults, then --preset, then --config, then flags: each overrides those before."""


@run_command
def main(arguments: list[str], console: Console) -> int:
    """The command. Returns the exit status: 0, 130 after Ctrl-C or SIGTERM, or 2 after an error of the user."""
    if not arguments:
        print_text(console, "No arguments: running the demo preset. See --help for your own images.")
        arguments = ["--preset", "demo"]
    options = parse_search(arguments, program_name(PROGRAM), DESCRIPTION)
    if options.command.print_config:
        print_document(options.to_yaml({"strategy": options.strategy.resolved}, origins(options, arguments)))
        return 0
    if options.command.dry_run:
        api.show_search(options, console)
        return 0
    result = api.run_search(options, arguments, console)
    return INTERRUPTED if result.status == "interrupted" else 0


if __name__ == "__main__":
    sys.exit(main())
