"""One process at a time in a run directory, and nobody kept out by one that is gone."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from fastnas.cli import run_lock
from fastnas.cli.run_lock import LOCK, RunLock
from fastnas.errors import UserError

HOLD = "import sys; from fastnas.cli.run_lock import RunLock\nwith RunLock(__import__('pathlib').Path(sys.argv[1])): "
WAIT = "print('held', flush=True); sys.stdin.read()"


@pytest.fixture
def holder(tmp_path: Path):
    """Another process that holds the directory."""
    command = [sys.executable, "-c", HOLD + WAIT, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def write(directory: Path, age: float = 0, **changes: Any) -> Path:
    """A lock as this process would hold it, but for some changes."""
    path = directory / LOCK
    path.write_text(json.dumps(run_lock._this_process() | changes))
    now = time.time() - age
    os.utime(path, (now, now))
    return path


def test_a_second_process_is_told_who_is_there(holder: Any, tmp_path: Path) -> None:
    before = (tmp_path / LOCK).read_bytes()
    expected = rf"is in use by process {holder.pid} on {socket.gethostname()} \(last sign of life \d seconds ago\)"
    with pytest.raises(UserError, match=expected), RunLock(tmp_path):
        pass
    assert (tmp_path / LOCK).read_bytes() == before
    holder.stdin.close()
    assert holder.wait() == 0
    assert not (tmp_path / LOCK).exists()
    with RunLock(tmp_path):
        assert (tmp_path / LOCK).exists()
    assert list(tmp_path.iterdir()) == []


def test_a_killed_process_keeps_nobody_out(holder: Any, tmp_path: Path) -> None:
    holder.send_signal(signal.SIGSTOP)
    with pytest.raises(UserError, match="is in use"), RunLock(tmp_path):
        pass
    holder.kill()
    holder.wait()
    assert (tmp_path / LOCK).exists()
    with RunLock(tmp_path) as lock:
        lock.check()


def test_a_later_process_of_the_same_number_is_another_one(tmp_path: Path) -> None:
    write(tmp_path, pid=os.getppid(), started="1 ticks after boot before")
    with RunLock(tmp_path):
        pass


@pytest.mark.parametrize("elsewhere", [{"host": "node-7"}, {"processes": "pid:[1]"}])
def test_a_process_elsewhere_counts_as_gone_after_ten_silent_minutes(tmp_path: Path, elsewhere: dict[str, str]) -> None:
    """On another host, or in another container: whether it is alive cannot be asked, only heard."""
    write(tmp_path, age=590, pid=1, **elsewhere)
    with pytest.raises(UserError, match="is in use by process 1 on"), RunLock(tmp_path):
        pass
    write(tmp_path, age=610, pid=1, **elsewhere)
    with RunLock(tmp_path):
        pass


def test_the_holder_gives_signs_of_life(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_lock, "BEAT", 0.01)
    with RunLock(tmp_path):
        os.utime(tmp_path / LOCK, (0, 0))
        for _ in range(1000):
            if (tmp_path / LOCK).stat().st_mtime > 0:
                break
            time.sleep(0.01)
        assert (tmp_path / LOCK).stat().st_mtime > 0


def test_who_was_taken_over_notices_and_leaves_the_lock_alone(tmp_path: Path) -> None:
    with RunLock(tmp_path) as lock:
        lock.check()
        path = write(tmp_path, host="node-7")
        with pytest.raises(UserError, match="was taken over by another process"):
            lock.check()
    assert json.loads(path.read_text())["host"] == "node-7"


@pytest.mark.parametrize("content", ["", "{", "[]", '{"host": 1}', "null"])
def test_half_a_lock_is_none(tmp_path: Path, content: str) -> None:
    (tmp_path / LOCK).write_text(content)
    with RunLock(tmp_path):
        pass


def test_of_many_at_once_one_gets_it(tmp_path: Path) -> None:
    """All of them find the lock of a process that is gone."""
    write(tmp_path, pid=2**22 + 1)
    held = "print('held', flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", HOLD + held, str(tmp_path)]
    pipe = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    several = [subprocess.Popen(command, **pipe) for _ in range(4)]  # type: ignore[call-overload]
    lines: list[str] = []
    threads = [threading.Thread(target=lambda p=each: lines.append(p.stdout.readline())) for each in several]
    for thread in threads:
        thread.start()
    for _ in range(600):  # the others end by themselves
        if sum(each.poll() is not None for each in several) == 3:
            break
        time.sleep(0.1)
    for each in several:
        each.communicate("")
    for thread in threads:
        thread.join()
    assert sorted(lines) == ["", "", "", "held\n"]


def test_a_directory_that_cannot_be_written_gets_one_line(tmp_path: Path) -> None:
    (tmp_path / LOCK).mkdir()
    with pytest.raises(UserError, match=r"cannot write in the run directory .*: Is a directory"), RunLock(tmp_path):
        pass
