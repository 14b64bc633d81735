"""Ctrl-C, once and again and again: no traceback, and the run goes on later."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fastnas import compare, search, train

RUNS = {
    "search": "--data digits --limit 120 --batch-size 16 --image-size 8 --channels 4 --layers 3 --epochs 40 "
    "--warm-up 1 --population 4 --samples 2 --fitness-batch-size 20 --device cpu",
    "train": "--data digits --limit 120 --image-size 8 --genotype PDARTS --channels 2 --layers 3 --batch-size 16 "
    "--epochs 60 --cutout 2 --device cpu",
    "compare": "--strategies random --evaluator training:digits --limit 60 --batch-size 10 --channels 2 --layers 3 "
    "--runs 50 --budget 60 --processes 2",
}
MAIN = {"search": search.main, "train": train.main, "compare": compare.main}
BEGUN = {"search": "checkpoint.pt", "train": "checkpoint.pt", "compare": "comparison.json"}


@pytest.mark.parametrize("times", [1, 2, 5])
@pytest.mark.parametrize("command", RUNS)
def test_interrupted_again_and_again(command: str, times: int, tmp_path: Path, seed: int) -> None:
    out, draw = tmp_path / "out", random.Random(seed)
    arguments = [sys.executable, "-m", f"fastnas.{command}", *RUNS[command].split(), "--out", str(out)]
    with subprocess.Popen(
        arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        while not (out / BEGUN[command]).exists() and process.poll() is None:
            time.sleep(0.05)
        for _ in range(times):
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGINT)  # as a terminal does: every process of the group hears it
            time.sleep(draw.choice([0.0, 0.01, 0.3]))
        said, error = process.communicate()
    assert "Traceback" not in said + error
    assert process.returncode == 130, error
    assert list(out.rglob(".fastnas*")) == [] or times > 1  # at the second Ctrl-C it may stop anywhere
    if command != "compare":
        assert MAIN[command](["--resume", str(out), "--stop-after", "1"]) == 0
    assert list(out.rglob(".fastnas*")) == []
