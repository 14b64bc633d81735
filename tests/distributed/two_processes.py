"""Starts pairs of processes that are one run, as `torchrun` and as a user of torch.distributed would."""

from __future__ import annotations

import json
import os
import shlex
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SMALL = shlex.split(
    "--data digits --limit 90 --split 0.5 --batch-size 16 --image-size 8 --channels 4 --layers 3 --partial-channels 1 "
    "--epochs 2 --device cpu --threads 1 --no-evidence"
)
EVALUATED = "--evaluations 5 --fitness-batch-size 20 --warm-up 1"
OWN = {
    "egnas": "--warm-up 1 --population 5 --samples 1 --fitness-batch-size 20",
    "darts": "--evidence",
    "pc-darts": "--warm-up 1 --partial-channels 2",
    "gdas": "",
    "snas": "",
    "enas": f"{EVALUATED} --children-per-update 5 --derive-samples 3",
    "aging-evolution": f"{EVALUATED} --population 3 --finalists 3",
}
"""Flags of the strategies that are searched with."""
KILLED = [*SMALL, "--strategy", "egnas", *shlex.split(OWN["egnas"]), "--epochs", "5", "--learning-rate", "0.05"]
"""A run that is killed in between."""


def flags_of(strategy: str) -> list[str]:
    return [*SMALL, "--strategy", strategy, *shlex.split(OWN[strategy])]


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def surroundings(rank: int, port: int) -> dict[str, str]:
    """The variables by which `torchrun` tells one of two processes who it is."""
    own = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return {**os.environ, "OMP_NUM_THREADS": "1", **{name: str(value) for name, value in own.items()}}


def start_two(*words: str) -> list[subprocess.Popen[str]]:
    """`python WORDS` in two processes of one run."""
    port = free_port()
    return [
        subprocess.Popen(
            [sys.executable, *words],
            env=surroundings(rank, port),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in (0, 1)
    ]


def torchrun(program: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", str(free_port())]
    return subprocess.run(
        [sys.executable, *launcher, str(program), *arguments],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )


@dataclass
class Killed:
    """How the process that was left has ended."""

    status: int
    error: str
    seconds: float


@dataclass
class Pair:
    """What both processes have found, by check and rank, and where their runs are."""

    folder: Path
    found: list[dict[str, Any]]
    output: str

    def of(self, name: str) -> tuple[Any, Any]:
        return self.found[0][name], self.found[1][name]


def last_record(run: Path) -> dict[str, Any]:
    return json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
