"""The `fastnas` command: `fastnas search …` is `python -m fastnas.search …`, and so on."""

from __future__ import annotations

import os
import runpy
import sys

from rich.console import Console

from fastnas.cli import command as cli_command
from fastnas.cli.command import command, print_text
from fastnas.errors import UserError
from fastnas.version import __version__

COMMANDS = {
    "search": "find an architecture for your images",
    "train": "train the network of a genotype",
    "evaluate": "accuracy, size and speed of a trained network",
    "export": "a trained network as ONNX or as a torch.export program",
    "study": "searches and trainings over a grid of options and over seeds",
    "compare": "compare strategies over many seeds",
    "report": "rewrite the report page of a run",
    "env": "versions, build and devices",
}


@command
def main(arguments: list[str], console: Console) -> int:
    """Runs a command, which exits the process itself. Returns only for --help (0) and unknown commands (2)."""
    wanted = arguments[0] if arguments else "--help"
    if wanted in ("-V", "--version"):
        print_text(console, f"fastnas {__version__}")
        return 0
    if wanted in ("-h", "--help"):
        width = max(map(len, COMMANDS))
        listed = "\n".join(f"  {name:<{width}}  {what}" for name, what in COMMANDS.items())
        usage = "usage: fastnas COMMAND [options]\n       fastnas --version"
        text = f"{usage}\n\n{listed}\n\n`fastnas COMMAND --help` lists the options."
        print_text(console, text)
        return 0
    if wanted not in COMMANDS:
        raise UserError(f"unknown command {wanted!r}: expected one of {', '.join(COMMANDS)}; see fastnas --help.")
    by_module = os.path.basename(sys.argv[0]) == "__main__.py"
    cli_command.called[:] = ["python", "-m", "fastnas"] if by_module else ["fastnas"]
    sys.argv = [f"fastnas {wanted}", *arguments[1:]]
    runpy.run_module(f"fastnas.{wanted}", run_name="__main__", alter_sys=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
