"""Errors that a user can act on."""

from __future__ import annotations

import re

MOST_CHARACTERS = 600
"""Of a message: what a user gave may be longer than anybody reads."""


class UserError(Exception):
    """Something the user gave cannot work: a path, a file, an option.

    The message says what was given, what was expected and what to do. The command line prints it as one line,
    without a traceback, and exits with status 2. As text it is that one line: control characters of whatever it quotes
    are written as `\\xNN`, and the middle of a very long message is left out.
    """

    def __str__(self) -> str:
        text = re.sub(r"\s*[\r\n]\s*", " ", super().__str__()).replace("\t", " ")
        text = re.sub(r"[\x00-\x1f\x7f-\x9f]", lambda sign: f"\\x{ord(sign[0]):02x}", text)
        if len(text) <= MOST_CHARACTERS:
            return text
        # Reason and advice are at the end.
        return f"{text[: MOST_CHARACTERS // 2]} … {text[-MOST_CHARACTERS // 2 :]}"
