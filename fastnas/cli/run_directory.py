"""Run directories: their names, who may write in them, and what a killed process has left there."""

from __future__ import annotations

import contextlib
import datetime
import errno
import re
import shutil
import stat
from collections.abc import Iterator, Sequence
from itertools import count
from pathlib import Path

from fastnas.atomic_file import TEMPORARY
from fastnas.cli.run_lock import RunLock
from fastnas.errors import UserError
from fastnas.input_file import path_of
from fastnas.world import World

CHECKPOINT = "checkpoint.pt"
RECORDS = "metrics.jsonl"
RUN_EVENT = b'{"event": "run"'
"""How the first record of a run, and of every process that goes on with it, begins."""
WRITTEN = (
    "config.yaml", "genotype.json", "report.html", "network.json", "network.safetensors", "results.json", "tensorboard",
)  # fmt: skip
"""What a run writes beside its checkpoint and its records."""

# Folders that earlier versions made around a file that they were writing.
_FORMER_TEMPORARY = (".genotype-????????", ".report.????????")


@contextlib.contextmanager
def run_directory(resume: Path | None, out: str | None, what: str, data: str | None) -> Iterator[RunLock]:
    """The directory of a run, made and locked while the context is open; removed again if nothing is in it then.

    Args:
        resume: the run to go on with, or None.
        out: where a new run is to be, or None for runs/<time>-<what>-<data>.
        what, data: for that name.

    Raises:
        UserError: it cannot be made, another process is in it, a run is in it already, or files that no run has
            written. Nothing has been changed then.
    """
    made: list[Path] = []
    if resume is not None:
        directory = path_of(resume)
    else:
        directory, made = new_directory(out, what, data)
    try:
        with locked_directory(directory) as lock:
            if resume is None:
                refuse_taken(directory)
            yield lock
    finally:
        _remove_empty(made)


class FollowedDirectory:
    """A run directory in which another process of the run writes: that one holds its lock."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def check(self) -> None:
        """Nothing to check: this process writes nothing."""


@contextlib.contextmanager
def for_all(world: World, own: contextlib.AbstractContextManager[RunLock]) -> Iterator[RunLock | FollowedDirectory]:
    """The directory that process 0 makes and locks, for all processes of a run.

    Raises:
        UserError: what `own` raises, in all of them.
    """
    with contextlib.ExitStack() as stack:
        with world.together():
            lock = stack.enter_context(own) if world.leads else None
        directory = world.broadcast(None if lock is None else str(lock.directory))
        yield FollowedDirectory(Path(str(directory))) if lock is None else lock


@contextlib.contextmanager
def locked_directory(directory: Path) -> Iterator[RunLock]:
    """A directory whose name is known, such as that of a comparison or of one seed of several: made and locked while
    the context is open, without what a killed process has left in it; removed again if nothing is in it then.

    Raises:
        UserError: it cannot be made, or another process is in it. Nothing has been changed then.
    """
    made = create_directory(directory)
    try:
        _refuse_pipes(directory)
        with RunLock(directory) as lock:
            remove_leftovers(directory)
            yield lock
    finally:
        _remove_empty(made)


def new_directory(out: str | None, what: str, data: str | None) -> tuple[Path, list[Path]]:
    """Makes the directory of a new run: `out`, or runs/<time>-<what>-<data>, which no other run has.

    Returns:
        Its path, and the folders that had to be made, inner ones first.
    """
    if out:
        directory = path_of(out)
        return directory, create_directory(directory)
    label = re.sub(r"[^A-Za-z0-9.]+", "-", Path((data or "").rstrip("/")).name).strip("-")
    name = f"{datetime.datetime.now():%Y%m%d-%H%M%S}-{what}-{label}"
    for number in count(1):
        directory = Path("runs", name if number == 1 else f"{name}-{number}")
        if (made := create_directory(directory)) and made[0] == directory:
            return directory, made
    raise AssertionError


def create_directory(directory: Path) -> list[Path]:
    """Makes it, unless it is there; returns the folders that this call has made, inner ones first.

    Raises:
        UserError: it cannot be made.
    """
    made: list[Path] = []
    try:
        for folder in (*reversed(directory.parents), directory):
            if folder.is_dir():
                continue
            with contextlib.suppress(FileExistsError):  # another process was faster
                folder.mkdir()
                made.insert(0, folder)
        if not directory.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, "Not a directory")
    except (OSError, ValueError) as error:  # ValueError: a name with a zero byte
        _remove_empty(made)
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"cannot create the run directory {directory}: {reason}; give another --out.") from error
    return made


def _refuse_pipes(directory: Path) -> None:
    """UserError for a pipe, socket or device in the directory, which a run would read or write, and wait."""
    for path in directory.iterdir():
        with contextlib.suppress(OSError):
            kind = path.stat().st_mode
            if not (stat.S_ISREG(kind) or stat.S_ISDIR(kind)):
                raise UserError(f"{directory} holds {path.name}, a pipe or a device: remove it, or give another --out.")


def refuse_taken(directory: Path) -> None:
    """UserError if a new run would write over something: another run, or files of somebody else.

    A run that ended before its first checkpoint has left nothing to keep: what it has written is removed.
    """
    _refuse_begun(directory)
    own = _has_begun(directory)
    refuse_foreign(directory, WRITTEN, own)
    if own:
        # The records, by which the files are known as those of a run, go last.
        for folder in (directory, *directory.glob("seed-*")):
            for name in WRITTEN:
                _remove(folder / name)
        for folder in (*directory.glob("seed-*"), directory):
            _remove(folder / RECORDS)


def refuse_run(resume: Path | None, out: str | None) -> None:
    """UserError where a new run is to be in the directory of another one; changes nothing."""
    if resume is None and out:
        _refuse_begun(path_of(out))


def _refuse_begun(directory: Path) -> None:
    if any(directory.glob(CHECKPOINT)) or any(directory.glob(f"seed-*/{CHECKPOINT}")):
        raise UserError(f"{directory} holds a run already: continue it with --resume, or give another --out.")


def refuse_foreign(directory: Path, names: Sequence[str], own: bool) -> None:
    """UserError if files of these names are there, unless they are those of an `own` run."""
    found = [name for name in names if (directory / name).exists() or (directory / name).is_symlink()]
    records = directory / RECORDS
    if records.is_symlink() or (records.exists() and (not records.is_file() or records.stat().st_size)):
        found.append(RECORDS)
    if found and not own:
        raise UserError(
            f"{directory} holds {', '.join(found)}, which no run of fastnas has written and a run would replace: give "
            "another --out."
        )


def remove_leftovers(directory: Path) -> None:
    """Removes what a process that was killed while it wrote a file has left behind."""
    for path in directory.glob(TEMPORARY):
        with contextlib.suppress(OSError):
            path.unlink()
    for pattern in _FORMER_TEMPORARY:
        for folder in directory.glob(pattern):
            if {path.name for path in folder.glob("*")} <= {"genotype.json", "report.html"}:
                shutil.rmtree(folder, ignore_errors=True)


def _has_begun(directory: Path) -> bool:
    """Whether the records are those of a run: their first event is its start, which is written before anything else."""
    for path in (directory / RECORDS, *directory.glob(f"seed-*/{RECORDS}")):
        try:
            with path.open("rb") as file:
                if file.read(len(RUN_EVENT)) == RUN_EVENT:
                    return True
        except OSError:
            continue
    return False


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _remove_empty(folders: Sequence[Path]) -> None:
    for folder in folders:
        with contextlib.suppress(OSError):
            folder.rmdir()
