"""`python -m fastnas.train`: a genotype and images in, trained networks, their test accuracy and a report out."""

from __future__ import annotations

import sys

from rich.console import Console

from fastnas import api
from fastnas.cli.command import INTERRUPTED, print_document, program_name, run_command
from fastnas.cli.configuration import origins, parse_train
from fastnas.cli.training import PROGRAM, prepare

__all__ = ["main", "prepare"]

DESCRIPTION = """Trains the network of a genotype, and tests it once, at the end. For example:
$ python -m fastnas.train --from runs/flowers
$ python -m fastnas.train --preset darts-cifar10 --genotype DARTS_V2

Defaults, then --preset, then --config, then flags: each overrides those before."""


@run_command
def main(arguments: list[str], console: Console) -> int:
    """The command. Returns the exit status: 0, 130 after Ctrl-C or SIGTERM, or 2 after an error of the user."""
    options = parse_train(arguments, program_name(PROGRAM), DESCRIPTION)
    if options.command.print_config:
        print_document(options.to_yaml(origins=origins(options, arguments)))
        return 0
    if options.command.dry_run:
        api.show_train(options, console)
        return 0
    result = api.run_train(options, arguments, console)
    return INTERRUPTED if result.status == "interrupted" else 0


if __name__ == "__main__":
    sys.exit(main())
