"""Starts a second process in the directory of a running one: it must end with one line, and change nothing.

python tests/faults/two_processes.py --times 20 [--seed N]

The first process stands still while the second one tries, so that every change would be the second one's.
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

from small_runs import COMMANDS, assert_same, complete, one_line, remove, result, start, wait


def contents(directory: Path) -> dict[str, bytes]:
    """Every file below a directory."""
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=20)
    parser.add_argument("--seed", type=int, default=secrets.randbelow(2**31))
    options = parser.parse_args()
    draw = random.Random(options.seed)
    print(f"seed {options.seed}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        output, second_output, wholes, durations = Path(folder, "output"), Path(folder, "second"), {}, {}
        for command in COMMANDS[: options.times]:
            begin = time.perf_counter()
            complete(command, Path(folder, command.name), output)
            durations[command] = time.perf_counter() - begin
            wholes[command] = result(command, Path(folder, command.name))
        done = 0
        while done < options.times:
            command, directory = COMMANDS[done % len(COMMANDS)], Path(folder, "shared")
            first = start(command, directory, output)
            while not (directory / ".fastnas.lock").exists():
                time.sleep(0.001)
            time.sleep(draw.uniform(0, durations[command] / 2))
            os.kill(first, signal.SIGSTOP)
            before = contents(directory)
            if ".fastnas.lock" not in before:  # it was done already
                os.kill(first, signal.SIGCONT)
                assert wait(first) == 0
                remove(directory)
                continue
            second_output.unlink(missing_ok=True)
            status = wait(start(command, directory, second_output))
            line = one_line(second_output.read_text())
            assert status == 2, line
            assert f"is in use by process {first} on " in line, line
            assert contents(directory) == before, "the second process has changed something"
            os.kill(first, signal.SIGCONT)
            assert wait(first) == 0, output.read_text()[-2000:]
            assert_same(command, directory, wholes[command])
            done += 1
            print(f"{done:>3} {command.name:<8} refused, nothing changed: {line.replace(folder, '…')}", flush=True)
            remove(directory)
    print(f"{done} second processes: exit status 2 and one line each, nothing changed, the first ones ended as alone")
    return 0


if __name__ == "__main__":
    sys.exit(main())
