"""Kills one search with SIGKILL again and again, resumes it each time, and compares its end with an uninterrupted run.

python tests/engine/kill_resume.py --kills 20 [--seed N]

Each life of the search is a process forked from one that has imported everything, so that kills fall into work,
not into imports.
"""

from __future__ import annotations

import argparse
import os
import random
import secrets
import signal
import sys
import tempfile
import time
from pathlib import Path

from run_files import SMALL, events, same_bits

from fastnas import Genotype, search
from fastnas.engine.checkpoint import load_checkpoint

EPOCHS = "10"


def start(directory: Path) -> int:
    """A process that begins or resumes the search; its pid."""
    if (directory / "checkpoint.pt").exists():
        arguments = ["--resume", str(directory)]
    else:
        arguments = [*SMALL, "--epochs", EPOCHS, "--out", str(directory)]
    pid = os.fork()
    if pid == 0:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        os._exit(search.main(arguments))
    return pid


def wait(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def place(directory: Path) -> str:
    """Where the readable checkpoint stands."""
    if not (directory / "checkpoint.pt").exists():
        return "no checkpoint yet: the run begins anew"
    clock = load_checkpoint(directory / "checkpoint.pt")["clock"]
    torn = (directory / "checkpoint.pt.partial").exists()
    return f"epoch {clock['epoch']}, step {clock['step']}" + (", beside a torn one" if torn else "")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=secrets.randbelow(2**31))
    options = parser.parse_args()
    draw = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as folder:
        whole, killed = Path(folder, "whole"), Path(folder, "killed")
        begin = time.perf_counter()
        assert wait(start(whole)) == 0
        duration = time.perf_counter() - begin
        print(f"seed {options.seed}: uninterrupted, {EPOCHS} epochs in {duration:.1f} s", flush=True)
        kills = 0
        while kills < options.kills:
            pid = start(killed)
            delay = draw.uniform(0, duration / 3)
            time.sleep(delay)
            os.kill(pid, signal.SIGKILL)
            status = wait(pid)
            if status == 0:  # it was done before the kill came: kill another run of the same search
                print("          finished before the kill; compared, and begun anew", flush=True)
                compare(killed, whole)
                for path in sorted(killed.rglob("*"), reverse=True):
                    path.unlink() if path.is_file() else path.rmdir()
                continue
            assert status == -signal.SIGKILL, f"the search ended by itself with status {status}"
            kills += 1
            print(f"kill {kills:>3} after {delay:5.2f} s: {place(killed)}", flush=True)
        assert wait(start(killed)) == 0
        compare(killed, whole)
    print(f"{kills} kills: every checkpoint readable; genotype, metrics and state equal those of the uninterrupted run")
    return 0


def compare(killed: Path, whole: Path) -> None:
    assert Genotype.from_json(killed / "genotype.json") == Genotype.from_json(whole / "genotype.json")
    assert events(killed) == events(whole)
    ours, theirs = (load_checkpoint(directory / "checkpoint.pt") for directory in (killed, whole))
    for name in ("clock", "network", "optimizer", "strategy", "random", "valid_accuracy"):
        assert same_bits(ours[name], theirs[name]), name


if __name__ == "__main__":
    sys.exit(main())
