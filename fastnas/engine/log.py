"""The log of a run: one JSON object per line, and the same numbers for TensorBoard."""

from __future__ import annotations

import contextlib
import json
import math
import os
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.tensorboard import SummaryWriter

from fastnas.atomic_file import cannot_write, synchronise


class RunLog:
    """metrics.jsonl and tensorboard/ of a run directory.

    A checkpoint stores `position()`. A resumed run passes it as `resume_at`: whatever was written after the
    checkpoint is cut off, so that every epoch is in the file once. A file that is shorter has lost records: the
    whole lines that are left stay, and `lost` says how many bytes are missing.

    Args:
        directory: of the run; exists.
        resume_at: length of metrics.jsonl in bytes that is still valid, 0 for a new run.
        resume_epoch: epochs before this one are still valid.

    Raises:
        UserError: metrics.jsonl cannot be written.
    """

    def __init__(self, directory: Path, resume_at: int = 0, resume_epoch: int = 0) -> None:
        self._path = directory / "metrics.jsonl"
        try:
            # Unbuffered, so that what did not fit the disk is not written later, behind other records.
            self._file = self._path.open("r+b" if resume_at and self._path.exists() else "w+b", buffering=0)
            kept = _whole_lines(self._file.read(resume_at))
            self._position = self._file.seek(kept)
            self._file.truncate(kept)
        except OSError as error:
            raise cannot_write("the records", self._path, error) from error
        self.lost = resume_at - kept
        self._resume_epoch = resume_epoch
        self._board: SummaryWriter | None = None
        self._board_failed = False
        self.listeners: list[Callable[[dict[str, Any]], None]] = []

    def write(self, event: str, **fields: Any) -> None:
        """Appends an event. Numbers of an "epoch" event become TensorBoard scalars, nested ones under their path; lists
        of numbers of other events become histograms. What TensorBoard cannot write is left out.

        Raises:
            UserError: metrics.jsonl cannot be written; it is as it was.
        """
        record = {"event": event, **fields}
        line = (json.dumps(_plain(record), ensure_ascii=False) + "\n").encode(errors="backslashreplace")
        try:
            written = 0
            while written < len(line):
                written += self._file.write(line[written:]) or 0
        except OSError as error:
            with contextlib.suppress(OSError):
                self._file.seek(self._position)
                self._file.truncate(self._position)
            raise cannot_write("the records", self._path, error) from error
        self._position += len(line)
        if "epoch" in fields and not self._board_failed:
            try:
                self._to_board(event, fields, fields["epoch"])
            except OSError:  # the same numbers stand in metrics.jsonl
                self._board_failed = True
        for listener in self.listeners:
            listener(record)

    def position(self) -> int:
        """Bytes written so far, safely on disk. UserError where they cannot be."""
        try:
            synchronise(self._file.fileno())
        except OSError as error:
            raise cannot_write("the records", self._path, error) from error
        return self._position

    def close(self) -> None:
        self._file.close()
        if self._board is not None:
            with contextlib.suppress(OSError):
                self._board.close()

    def _to_board(self, prefix: str, fields: Mapping[str, Any], epoch: int) -> None:
        if self._board is None:
            _silence_board()
            folder = os.fspath(self._path.with_name("tensorboard"))
            self._board = SummaryWriter(folder, purge_step=self._resume_epoch or None)
        for name, value in fields.items():
            tag = f"{prefix}/{name}"
            if isinstance(value, Mapping) and name != "genotype":
                self._to_board(tag, value, epoch)
            elif isinstance(value, int | float) and name not in ("epoch", "step"):
                self._board.add_scalar(tag, value, epoch)
            elif isinstance(value, list) and value and isinstance(value[0], int | float):
                finite = [number for number in value if math.isfinite(number)]
                if finite:
                    self._board.add_histogram(tag, np.asarray(finite), epoch)


class SilentLog:
    """Takes what a `RunLog` does, and writes nothing: for rehearsals, and processes that leave it to another."""

    lost = 0

    def __init__(self) -> None:
        self.listeners: list[Callable[[dict[str, Any]], None]] = []

    def write(self, event: str, **fields: Any) -> None: ...

    def position(self) -> int:
        return 0

    def close(self) -> None: ...


def _silence_board() -> None:
    """TensorBoard writes in a thread, which would print a traceback where the disk is full; `write` hears of it."""
    before = threading.excepthook

    def hook(failure: threading.ExceptHookArgs) -> None:
        if not (isinstance(failure.exc_value, OSError) and type(failure.thread).__name__ == "_AsyncWriterThread"):
            before(failure)

    threading.excepthook = hook


def _whole_lines(content: bytes) -> int:
    """Bytes up to the end of the last whole line."""
    return content.rfind(b"\n") + 1


def _plain(value: Any) -> Any:
    """JSON knows neither NaN nor infinity: they become null."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value
