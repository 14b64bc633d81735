"""Files that a user gave. A pipe would never end, and a file of the wrong kind may be larger than the memory: what is
opened is checked first, and every reason not to read it becomes one line."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from fastnas.errors import UserError

MOST_BYTES = 64 * 2**20
"""Of a file of text. The largest that fastnas writes, the metrics of a long run, is far below."""


def path_of(text: str | os.PathLike[str]) -> Path:
    """The path that a user wrote, with `~` for the home folder."""
    try:
        return Path(text).expanduser()
    except RuntimeError:  # ~name of nobody: a file may be called so
        return Path(text)


def check_file(path: Path, name: str, advice: str) -> None:
    """Makes sure that `path` can be opened without waiting for anybody.

    Args:
        path: where it should be.
        name: the thing, for the message: "config mine.yaml".
        advice: what to do, the end of the message.

    Raises:
        UserError: there is nothing, or it is not a regular file.
    """
    try:
        path.stat()
    except (OSError, ValueError) as error:
        raise cannot_read(name, error, advice) from error
    if path.is_dir():
        raise UserError(f"cannot read {name}: it is a folder; {advice}.")
    if not path.is_file():
        raise UserError(f"cannot read {name}: it is a pipe or a device, not a regular file; {advice}.")


def cannot_read(name: str, error: Exception, advice: str) -> UserError:
    """What to raise where opening or reading has failed."""
    reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return UserError(f"cannot read {name}: {reason}; {advice}.")


def read_text(path: Path, name: str, advice: str, most_bytes: int = MOST_BYTES) -> str:
    """The whole file, UTF-8, without the byte order mark that some editors write. Arguments as in `check_file`.

    Raises:
        UserError: no regular file, one that cannot be read, is longer than `most_bytes` or is not UTF-8.
    """
    check_file(path, name, advice)
    try:
        with path.open("rb") as file:
            content = file.read(most_bytes + 1)
    except OSError as error:
        raise cannot_read(name, error, advice) from error
    if len(content) > most_bytes:
        raise UserError(f"cannot read {name}: it has more than {most_bytes:,} bytes, the most that is read; {advice}.")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"cannot read {name}: it is not UTF-8 text (byte {error.start + 1}); {advice}.") from error


def read_json(path: Path, name: str, advice: str) -> Any:
    """What a JSON file holds. Arguments as in `check_file`.

    Raises:
        UserError: as `read_text`, or it is not JSON; the message ends with the advice.
    """
    text = read_text(path, name, advice)
    try:
        return json.loads(text)
    except RecursionError as error:
        raise UserError(f"{name} is nested too deeply; {advice}.") from error
    except ValueError as error:
        raise UserError(f"{name} is not JSON ({error}); {advice}.") from error
