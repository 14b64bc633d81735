"""Standard output and error of a command: what they cannot show is written in ASCII, and where they are gone or full,
the command goes on."""

from __future__ import annotations

import contextlib
import os
import sys
import unicodedata
from collections.abc import Iterator
from typing import Any, TextIO

SIGNS = {"×": "x", "±": "+-", "·": "*", "–": "-", "—": "-", "−": "-", "…": "...", "≤": "<=", "≥": ">=", "→": "->"}
SIGNS |= {"←": "<-", "▶": ">", "²": "^2", "•": "*", "\N{NO-BREAK SPACE}": " "}


class Output:
    """A text stream on top of another one that raises neither for a character nor for a reader or a disk that is gone.

    Attributes:
        lost: what kept text from being written since `take_loss`, or None.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self.lost: OSError | None = None

    def write(self, text: str) -> int:
        with self._losing():
            try:
                self._stream.write(text)
            except UnicodeEncodeError:
                self._stream.write(in_encoding(text, self._stream.encoding))
        return len(text)

    def flush(self) -> None:
        with self._losing():
            self._stream.flush()

    def take_loss(self) -> OSError | None:
        """What has been lost, for whoever reports it; afterwards it counts as reported."""
        self.flush()
        lost, self.lost = self.lost, None
        return lost

    @contextlib.contextmanager
    def _losing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self.lost = self.lost or error
            # What is still in the stream's buffer must not fail again when the process ends.
            with contextlib.suppress(OSError), open(os.devnull, "wb") as nowhere:
                os.dup2(nowhere.fileno(), self._stream.fileno())

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextlib.contextmanager
def safe_output() -> Iterator[Output]:
    """Makes `sys.stdout` and `sys.stderr` an `Output` while the context is open; gives that of stdout."""
    before = sys.stdout, sys.stderr
    # None is what Python makes of a descriptor that was closed.
    streams = [each or open(os.devnull, "w", encoding="utf-8") for each in before]  # noqa: SIM115
    out, err = (each if isinstance(each, Output) else Output(each) for each in streams)
    sys.stdout, sys.stderr = out, err
    try:
        yield out
    finally:
        sys.stdout, sys.stderr = before


def in_encoding(text: str, encoding: str) -> str:
    """The text with ASCII in place of each character that the encoding does not have."""
    return "".join(sign if _has(encoding, sign) else in_ascii(sign) for sign in text)


def in_ascii(sign: str) -> str:
    """A character in ASCII: α as alpha, × as x, lines of boxes as -, | and +, all others as Python escapes them."""
    name = unicodedata.name(sign, "")
    if name.startswith("GREEK") and " LETTER " in name:
        letter = name.partition(" LETTER ")[2].partition(" ")[0]
        return letter.capitalize() if "CAPITAL" in name else letter.lower()
    if name.startswith("BOX DRAWINGS"):
        return {"HORIZONTAL": "-", "VERTICAL": "|"}.get(name.partition("BOX DRAWINGS ")[2].partition(" ")[2], "+")
    return SIGNS.get(sign) or sign.encode("ascii", "backslashreplace").decode()


def _has(encoding: str, sign: str) -> bool:
    try:
        sign.encode(encoding)
    except UnicodeEncodeError:
        return False
    return True
