"""Two processes that do everything that the tests of this folder look at, started once."""

from __future__ import annotations

import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch
from two_processes import KILLED, Killed, Pair, start_two, torchrun


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("pair")


@pytest.fixture(scope="session")
def killed(folder: Path) -> Killed:
    """A run whose process 1 is killed after two epochs."""
    both = start_two("-m", "fastnas.search", *KILLED, "--out", str(folder / "killed"))
    try:
        wait_for_epochs(folder / "killed" / "metrics.jsonl", 2, both)
        both[1].send_signal(signal.SIGKILL)
        begin = time.monotonic()
        _, error = both[0].communicate(timeout=90)
        return Killed(both[0].returncode, error, time.monotonic() - begin)
    finally:
        for process in both:
            process.kill()
            process.communicate()


def wait_for_epochs(records: Path, count: int, processes: list[subprocess.Popen[str]]) -> None:
    end = time.monotonic() + 120
    while time.monotonic() < end:
        lines = records.read_text().splitlines() if records.exists() else []
        if sum('"event": "epoch"' in line for line in lines) >= count:
            return
        for process in processes:
            assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    raise AssertionError("the run does not get on")


@pytest.fixture(scope="session")
def pair(folder: Path, killed: Killed) -> Pair:
    """Two processes by `torchrun`; see pair.py."""
    done = torchrun(Path(__file__).with_name("pair.py"), str(folder))
    assert done.returncode == 0, done.stdout + done.stderr
    found = [torch.load(folder / f"found-{rank}.pt", weights_only=False) for rank in (0, 1)]
    return Pair(folder, found, done.stdout)
