"""`--space python:MODULE:OBJECT` of commands that build no space: it registers the user's own candidates."""

from __future__ import annotations

import argparse

from fastnas import spaces


def add_space_flag(parser: argparse.ArgumentParser) -> None:
    """Adds --space, which `import_space` acts on before any genotype is read."""
    parser.add_argument(
        "--space",
        metavar="SPACE",
        help="python:MODULE:OBJECT, a space of your own whose candidates the genotype names",
    )


def import_space(space: str | None) -> None:
    """Imports the module of a space, which registers its candidates. UserError if there is no such space."""
    if space is not None:
        spaces.find(space)
