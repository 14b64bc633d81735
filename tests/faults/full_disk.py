"""Lets the disk become full at random moments of search, train and compare, and resumes once there is room.

python tests/faults/full_disk.py --times 20 [--seed N]

A file system with room for a drawn number of bytes is played by Python's `open`: what is written beyond them raises
ENOSPC, after a part of it was written. The process must end with one line and exit status 2, each checkpoint that was
there must still be whole, and the resumed run must end in the bits of an undisturbed one.
"""

from __future__ import annotations

import argparse
import builtins
import errno
import io
import os
import random
import secrets
import sys
import tempfile
from pathlib import Path
from typing import Any

from small_runs import COMMANDS, assert_same, checkpoints, complete, one_line, remove, result, start, wait

from fastnas.engine.checkpoint import load_checkpoint


class Disk:
    """Room for `room` bytes in all files that are opened for writing from now on."""

    def __init__(self, room: int) -> None:
        self.room, self.written = room, 0

    def install(self) -> None:
        plain = io.open

        def opened(file: Any, mode: str = "r", buffering: int = -1, *rest: Any, **more: Any) -> Any:
            if "b" not in mode or set(mode) <= {"r", "b"}:
                return plain(file, mode, buffering, *rest, **more)
            raw = _File(self, file, mode.replace("b", ""), more.get("closefd", True))
            if buffering == 0:
                return raw
            return io.BufferedRandom(raw) if "+" in mode else io.BufferedWriter(raw)

        builtins.open = io.open = opened

    def take(self, count: int) -> int:
        """How many of `count` bytes still fit."""
        fits = min(count, max(0, self.room - self.written))
        if count and not fits:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self.written += fits
        return fits


class _File(io.FileIO):
    def __init__(self, disk: Disk, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._disk = disk

    def write(self, content: Any) -> int:
        view = memoryview(content).cast("B")
        return super().write(view[: self._disk.take(len(view))])


def bytes_written(command: Any, directory: Path, output: Path, folder: Path) -> int:
    """How much an undisturbed run writes."""
    count = folder / "bytes"

    def prepare() -> None:
        disk = Disk(sys.maxsize)
        disk.install()
        leave = os._exit

        def note(status: int) -> None:
            count.write_text(str(disk.written))
            leave(status)

        os._exit = note  # type: ignore[assignment]

    assert wait(start(command, directory, output, prepare)) == 0, output.read_text()[-2000:]
    return int(count.read_text())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=20)
    parser.add_argument("--seed", type=int, default=secrets.randbelow(2**31))
    options = parser.parse_args()
    draw = random.Random(options.seed)
    print(f"seed {options.seed}", flush=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        output, wholes, volumes = folder / "output", {}, {}
        for command in COMMANDS[: options.times]:
            volumes[command] = bytes_written(command, folder / command.name, output, folder)
            wholes[command] = result(command, folder / command.name)
            print(f"{command.name}: undisturbed, {volumes[command]:,} bytes written", flush=True)
        for number in range(1, options.times + 1):
            command, directory = COMMANDS[(number - 1) % len(COMMANDS)], folder / "full"
            room = draw.randrange(volumes[command])
            output.unlink()
            status = wait(start(command, directory, output, Disk(room).install))
            if status == 0:  # only what TensorBoard writes did not fit
                end = "went on: nothing that counts was lost"
            else:
                line = one_line(output.read_text())
                assert status == 2, f"status {status}: {line}"
                assert "No space left on device" in line, line
                end = line.replace(name, "…")
            states = [load_checkpoint(path)["clock"] for path in checkpoints(directory)]
            complete(command, directory, output)
            assert_same(command, directory, wholes[command])
            kept = f"checkpoint of epoch {states[-1]['epoch']} whole" if states else "no checkpoint yet"
            print(f"{number:>3} {command.name:<8} full after {room:,} bytes, {kept}; {end}", flush=True)
            remove(directory)
    print(f"{options.times} full disks: every checkpoint whole, every run ended in the bits of an undisturbed one")
    return 0


if __name__ == "__main__":
    sys.exit(main())
