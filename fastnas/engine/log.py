"""The log of a run: one JSON object per line, and the same numbers for TensorBoard."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.tensorboard import SummaryWriter


class RunLog:
    """metrics.jsonl and tensorboard/ of a run directory.

    A checkpoint stores `position()`. A resumed run passes it as `resume_at`: whatever was written after the
    checkpoint is cut off, so that every epoch is in the file once.

    Args:
        directory: of the run; exists.
        resume_at: length of metrics.jsonl in bytes that is still valid, 0 for a new run.
        resume_epoch: epochs before this one are still valid.
    """

    def __init__(self, directory: Path, resume_at: int = 0, resume_epoch: int = 0) -> None:
        self._file = (directory / "metrics.jsonl").open("ab")
        self._file.truncate(resume_at)
        self._board = SummaryWriter(str(directory / "tensorboard"), purge_step=resume_epoch or None)
        self.listeners: list[Callable[[dict[str, Any]], None]] = []

    def write(self, event: str, **fields: Any) -> None:
        """Appends an event. Numbers of an "epoch" event become TensorBoard scalars, nested ones under their path; lists
        of numbers of other events become histograms."""
        record = {"event": event, **fields}
        self._file.write((json.dumps(_plain(record), ensure_ascii=False) + "\n").encode())
        self._file.flush()
        if "epoch" in fields:
            self._to_board(event, fields, fields["epoch"])
        for listener in self.listeners:
            listener(record)

    def position(self) -> int:
        """Bytes written so far, safely on disk."""
        os.fsync(self._file.fileno())
        return self._file.tell()

    def close(self) -> None:
        self._file.close()
        self._board.close()

    def _to_board(self, prefix: str, fields: Mapping[str, Any], epoch: int) -> None:
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


def _plain(value: Any) -> Any:
    """JSON knows neither NaN nor infinity: they become null."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value
