"""Killed processes, two processes in one directory, full disks: the scripts beside this file, in short."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
@pytest.mark.parametrize(
    ("script", "count", "end"),
    [
        ("kills.py", "--kills=9", "9 kills in "),
        ("two_processes.py", "--times=3", "3 second processes: exit status 2 and one line each"),
        ("full_disk.py", "--times=6", "6 full disks: every checkpoint whole"),
    ],
)
def test_nothing_is_lost(script: str, count: str, end: str) -> None:
    command = [sys.executable, str(Path(__file__).with_name(script)), count]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1200, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert end in done.stdout
