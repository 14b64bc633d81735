"""Files that are replaced whole or not at all, on file systems that are full or know less than others."""

from __future__ import annotations

import errno
import io
import os
import stat
from pathlib import Path
from typing import Any

import pytest

from fastnas.atomic_file import replace_file, replace_files
from fastnas.errors import UserError


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS])
def test_what_cannot_be_written_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    path = tmp_path / "file"
    replace_file(path, "old")

    def fail(descriptor: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", fail)
    advice = "make room" if number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) else "give a file in a writable folder"
    with pytest.raises(UserError, match=f"cannot write the thing '.*file': {os.strerror(number)}; {advice}"):
        replace_file(path, "new", "the thing")
    assert path.read_text() == "old"
    assert [each.name for each in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP, errno.EBADF, errno.ENOSYS])
@pytest.mark.parametrize("of_files", [False, True])
def test_file_systems_that_do_not_synchronise_are_no_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, of_files: bool
) -> None:
    calls = []

    def refuse(descriptor: int) -> None:
        calls.append(descriptor)
        if of_files or stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", refuse)
    replace_file(tmp_path / "file", b"content")
    assert len(calls) == 2  # the file and its folder
    assert (tmp_path / "file").read_bytes() == b"content"


def test_files_that_belong_together_are_replaced_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk becomes full at the second file."""
    first, second = tmp_path / "first", tmp_path / "second"
    replace_files({first: "old", second: "old"}, "the pair")
    plain = io.open

    def full(file: Any, *arguments: Any, **more: Any) -> Any:
        if str(file).endswith("-1.partial"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return plain(file, *arguments, **more)

    monkeypatch.setattr(io, "open", full)
    with pytest.raises(UserError, match=r"cannot write the pair '.*second': No space"):
        replace_files({first: "new", second: "new"}, "the pair")
    monkeypatch.undo()
    assert (first.read_text(), second.read_text()) == ("old", "old")
    assert len(list(tmp_path.iterdir())) == 2


def test_the_longest_name_is_no_problem(tmp_path: Path) -> None:
    path = tmp_path / ("n" * 255)
    replace_file(path, "content")
    assert path.read_text() == "content"
