"""Arguments of a command to its options, and every mistake in them as one line."""

from __future__ import annotations

import contextlib
import io
import re
import sys
from collections.abc import Sequence
from typing import Any, TypeVar

import tyro

from fastnas.cli.help import REGISTRY
from fastnas.errors import UserError

Options = TypeVar("Options")


def parse_arguments(
    kind: type[Options], arguments: Sequence[str], program: str, description: str, **more: Any
) -> Options:
    """`arguments` as an object of `kind`, a dataclass whose fields are options.

    Args:
        kind: see above.
        arguments: without the name of the program.
        program: its name, for --help.
        description: what it does, for --help.
        more: of `tyro.cli`.

    Raises:
        UserError: an unknown flag, one without a value or with one that its type does not allow.
        SystemExit: --help.
    """
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return tyro.cli(
                kind, args=list(arguments), prog=program, description=description, registry=REGISTRY, **more
            )
    except SystemExit as end:
        if not end.code:
            sys.stderr.write(said.getvalue())
            raise
        raise UserError(f"{_mistake(said.getvalue())}; see {program} --help.") from None


def _mistake(text: str) -> str:
    """What tyro says below the title of its box, and the flag that may have been meant, without what --help says."""
    lines = [re.sub(r"^[│\s]+|[│\s]+$", "", re.sub(r"\x1b\[[0-9;]*m", "", line)) for line in text.splitlines()]
    parts: list[list[str]] = [[]]
    for line in filter(None, lines[1:]):  # without the title
        if re.fullmatch(r"[-─╭╮╰╯╴╶]+", line):
            parts.append([])
        else:
            parts[-1].append(line)
    said = next(filter(None, parts), ["the arguments cannot be read"])
    if said[0].startswith("Missing from"):
        flags = [line.split(" ", 1)[0] for line in said if line.startswith("--")]
        return f"missing: {', '.join(flags)}"
    near = next((part[1].split(" ", 1)[0] for part in parts if len(part) > 1 and part[0].startswith("Perhaps")), None)
    # Of an option of several types it lists what each of them makes of the value.
    words = " ".join(said).partition(" Got errors:")[0].rstrip(" .,")
    return words[:1].lower() + words[1:] + (f"; did you mean {near}?" if near else "")
