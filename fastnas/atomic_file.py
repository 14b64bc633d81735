"""Files that are replaced whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import os
import threading
from collections.abc import Mapping
from pathlib import Path

from fastnas.errors import UserError

TEMPORARY = ".fastnas-*.partial"
"""What a process that was killed while it wrote has left behind; whoever is alone in a folder may remove it."""

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# What file systems answer that cannot synchronise (FUSE, SMB, shared folders of virtual machines).
_NOT_SYNCHRONISED = (errno.EINVAL, errno.ENOTSUP, errno.EBADF, errno.ENOSYS, errno.EACCES, errno.EPERM, errno.EISDIR)


def replace_file(path: Path, content: str | bytes | memoryview, what: str = "the file") -> None:
    """Replaces `path` by a complete new file. Whatever happens meanwhile, power loss included, there is always the old
    one or the new one, and no reader ever meets half of it.

    Args:
        path: of the file, in a folder that exists.
        content: of the file; text becomes UTF-8.
        what: the file is, for the message.

    Raises:
        UserError: it cannot be written; the old one is still there.
    """
    replace_files({path: content}, what)


def replace_files(contents: Mapping[Path, str | bytes | memoryview], what: str) -> None:
    """`replace_file` of files that belong together: all are written before the first one is replaced."""
    written: list[tuple[Path, Path]] = []
    for number, (path, content) in enumerate(contents.items()):
        # A neighbour, for a rename is atomic only within one file system; the name is short and no other writer's.
        temporary = path.with_name(f".fastnas-{os.getpid()}-{threading.get_ident()}-{number}.partial")
        written.append((temporary, path))
        try:
            with temporary.open("wb") as file:
                file.write(content.encode() if isinstance(content, str) else content)
                file.flush()
                synchronise(file.fileno())
        except BaseException as error:
            _remove(written)
            if isinstance(error, OSError):
                raise cannot_write(what, path, error) from error
            raise
    for temporary, path in written:
        try:
            temporary.replace(path)
            _synchronise_folder(path.parent)  # so that the rename itself is on disk
        except OSError as error:
            _remove(written)
            raise cannot_write(what, path, error) from error


def synchronise(descriptor: int) -> None:
    """`os.fsync`, but for file systems that do not know it."""
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NOT_SYNCHRONISED:
            raise


def cannot_write(what: str, path: Path, error: OSError) -> UserError:
    """What to raise where a file cannot be written."""
    advice = "give a file in a writable folder"
    if error.errno in _NO_ROOM:
        advice = "make room and repeat the command; a run goes on with --resume"
    return UserError(f"cannot write {what} {str(path)!r}: {error.strerror or error}; {advice}.")


def _remove(written: list[tuple[Path, Path]]) -> None:
    for temporary, _ in written:
        with contextlib.suppress(OSError):
            temporary.unlink()


def _synchronise_folder(folder: Path) -> None:
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:  # a folder that may be written but not read
        return
    try:
        synchronise(descriptor)
    finally:
        os.close(descriptor)
