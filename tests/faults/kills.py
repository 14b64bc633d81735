"""Kills search, train and compare with SIGKILL at random moments, and compares their ends with uninterrupted runs.

python tests/faults/kills.py --kills 200 [--command search|train|compare] [--seed N]
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

from small_runs import COMMANDS, Command, assert_same, checkpoints, complete, remove, result, start, wait

from fastnas.engine.checkpoint import load_checkpoint


def place(command: Command, directory: Path) -> str:
    """Where the run stands after a kill; every checkpoint must be readable."""
    torn = ", killed while writing a file" if list(directory.rglob(".fastnas-*.partial")) else ""
    if command.name == "compare":
        runs = directory / "runs.jsonl"
        return f"{len(runs.read_bytes().splitlines()) if runs.exists() else 0} runs" + torn
    clocks = [load_checkpoint(path)["clock"] for path in checkpoints(directory)]
    if not clocks:
        return "no checkpoint yet" + torn
    return f"epoch {clocks[-1]['epoch']}, step {clocks[-1]['step']}" + torn


def kill_until_done(command: Command, directory: Path, output: Path, draw: random.Random, longest: float, kills: int):
    """Kills one run at most `kills` times before it ends by itself; yields a line for each kill."""
    for _ in range(kills):
        pid = start(command, directory, output)
        delay = draw.uniform(0, longest)
        time.sleep(delay)
        os.kill(pid, signal.SIGKILL)
        status = wait(pid)
        if status == 0:  # it was done before the kill came
            return
        assert status == -signal.SIGKILL, f"{command.name} ended by itself with {status}: {output.read_text()[-2000:]}"
        yield f"{command.name:<8} after {delay:5.2f} s: {place(command, directory)}"
    complete(command, directory, output)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=secrets.randbelow(2**31))
    parser.add_argument("--command", choices=[command.name for command in COMMANDS], help="only this one")
    options = parser.parse_args()
    commands = [command for command in COMMANDS if options.command in (None, command.name)]
    draw = random.Random(options.seed)
    print(f"seed {options.seed}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        output, wholes, durations = Path(folder, "output"), {}, {}
        for command in commands:
            begin = time.perf_counter()
            complete(command, Path(folder, command.name), output)
            durations[command] = time.perf_counter() - begin
            wholes[command] = result(command, Path(folder, command.name))
            print(f"{command.name}: uninterrupted in {durations[command]:.1f} s", flush=True)
        kills, runs = 0, 0
        while kills < options.kills:
            for command in commands:
                directory = Path(folder, "killed")
                most = min(8, options.kills - kills)
                for line in kill_until_done(command, directory, output, draw, durations[command] / 2, most):
                    kills += 1
                    print(f"kill {kills:>3}: {line}", flush=True)
                assert_same(command, directory, wholes[command])
                runs += 1
                remove(directory)
    print(f"{kills} kills in {runs} runs, {kills} exact resumes: every run ended in the bits of an uninterrupted one")
    return 0


if __name__ == "__main__":
    sys.exit(main())
