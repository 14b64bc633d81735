"""One process at a time in a run directory: a lock that says who holds it, and that its holder is alive."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, Self

from fastnas.errors import UserError

LOCK = ".fastnas.lock"
BEAT = 30.0  # seconds between two signs of life
SILENCE = 600.0  # seconds after which a holder on another host counts as gone


class InUseError(UserError):
    """A living process holds the lock."""


class RunLock:
    """While the context is open, the directory is this process's.

    The file `.fastnas.lock` names host and process; its time of change is touched every 30 seconds. A lock of a process
    that is gone is taken over at once on its own host, and after ten minutes without a sign of life on another one,
    which sees the directory through a shared file system.

    Args:
        directory: of the run; exists.
        name: of the file, where something else than the directory is locked.

    Raises:
        InUseError: as the context is opened, if a living process holds the lock.
        UserError: the file cannot be written.
    """

    def __init__(self, directory: Path, name: str = LOCK) -> None:
        self.directory = directory
        self._path = directory / name
        self._own = _this_process()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="run lock", daemon=True)

    def __enter__(self) -> Self:
        try:
            with _alone(self._path) as file:
                self._refuse_living(file)
                file.seek(0)
                file.truncate()
                file.write(json.dumps(self._own).encode() + b"\n")
        except OSError as error:
            raise UserError(
                f"cannot write in the run directory {self.directory}: {error.strerror}; make room or make it writable, "
                "or give another --out."
            ) from error
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        with contextlib.suppress(OSError), _alone(self._path) as file:
            if _read(file) == self._own:
                self._path.unlink()

    def check(self) -> None:
        """UserError if another process has taken the directory over, because this one had stood still for so long."""
        if not self._is_own():
            raise UserError(
                f"{self.directory} was taken over by another process while this one stood still: it ends here, and "
                "changes nothing more."
            )

    def _is_own(self) -> bool:
        try:
            with self._path.open("rb") as file:
                return _read(file) == self._own
        except FileNotFoundError:
            return False
        except OSError:  # a shared file system that is away for a moment
            return True

    def _beat(self) -> None:
        while not self._stop.wait(BEAT):
            if self._is_own():
                with contextlib.suppress(OSError):
                    os.utime(self._path)

    def is_held(self) -> bool:
        """Whether a living process holds the lock now. Changes nothing."""
        try:
            with self._path.open("rb", buffering=0) as file:
                return self._holder(file) is not None
        except FileNotFoundError:
            return False
        except OSError:  # a shared file system that is away for a moment
            return True

    def _refuse_living(self, file: BinaryIO) -> None:
        holder = self._holder(file)
        if holder is not None:
            raise InUseError(
                f"{self.directory} is in use by process {holder['pid']} on {holder['host']} (last sign of life "
                f"{max(0, self._age(file)):.0f} seconds ago): wait for it, or give another --out."
            )

    def _holder(self, file: BinaryIO) -> dict[str, Any] | None:
        """Who holds the lock; None for nobody who is alive."""
        holder = _read(file)
        if holder is None:
            return None
        if all(holder[name] == self._own[name] for name in ("host", "processes")):
            return holder if _start_of(holder["pid"]) == holder["started"] else None
        return holder if self._age(file) < SILENCE else None

    def _age(self, file: BinaryIO) -> float:
        """Seconds since the last sign of life, by the clock of the file system: that of another host may differ."""
        with tempfile.TemporaryFile(dir=self.directory) as now:
            return os.fstat(now.fileno()).st_mtime - os.fstat(file.fileno()).st_mtime


def _this_process() -> dict[str, Any]:
    return {
        "host": socket.gethostname(),
        "processes": _process_table(),
        "pid": os.getpid(),
        "started": _start_of(os.getpid()),
    }


def _process_table() -> str:
    """Which processes a number may mean: every container counts its own. Empty where there are no such tables."""
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


def _start_of(pid: int) -> str | None:
    """When a process of this host began, which tells it from a later one of the same number; None if it is gone."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        if Path("/proc/self/stat").exists():
            return None
    else:  # the name in brackets may hold anything, so what follows is counted from its end; see proc(5)
        fields = text.rpartition(")")[2].split()
        return None if fields[0] in "ZX" else f"{fields[19]} ticks after boot {_boot()}"
    try:  # no such file system: whether there is a process of that number is all that can be told
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except OSError:  # somebody else's
        pass
    return "unknown"


def _boot() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return ""


def _read(file: BinaryIO) -> dict[str, Any] | None:
    """Who holds a lock; None for one that was being written when its process was killed."""
    try:
        holder = json.loads(file.read())
    except ValueError:
        return None
    types = {"host": str, "processes": str, "pid": int, "started": str}
    good = isinstance(holder, dict) and all(isinstance(holder.get(name), kind) for name, kind in types.items())
    return holder if good else None


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[BinaryIO]:
    """The lock file, made if need be, while no other process of this host looks at it."""
    while True:
        with os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o666), "r+b", buffering=0) as file:
            with contextlib.suppress(OSError):  # a file system without locks of its own
                fcntl.lockf(file, fcntl.LOCK_EX)
            try:
                current = os.stat(path)
            except FileNotFoundError:  # its holder removed it in between
                continue
            if os.path.samestat(current, os.fstat(file.fileno())):
                yield file
                return
