"""Runs a command of the installation, and says at least every 15 seconds what it does and how far it is.

    python3 tools/with_progress.py "installing torch" pip install torch

What the command itself prints goes to build/install.log, and is shown where it fails.
"""

from __future__ import annotations

import re
import subprocess
import sys
import threading
import time
from pathlib import Path

SECONDS = 15
LOG = Path("build/install.log")
SHOWN = 40  # last lines of the log of a command that failed

COMPILING = re.compile(r"\[(\d+)/(\d+)\] (?:Building \w+ object .*?([\w.-]+)\.o\b|(.*))")
DOWNLOADING = re.compile(r"^\s*(?:Downloading|Collecting|Using cached) (?:https?://\S*/)?([^\s/]+)")
LOADED = re.compile(r"^Progress (\d+) of (\d+)")


class Reading:
    """What the lines so far say about the command."""

    def __init__(self) -> None:
        self.doing = ""
        self.file = ""

    def take(self, line: str) -> None:
        if found := COMPILING.search(line):
            self.doing = f"step {found[1]} of {found[2]}, {found[3] or found[4].strip()}"
        elif found := LOADED.match(line):
            done, total = int(found[1]), int(found[2])
            if total:
                self.doing = f"downloading {self.file}, {100 * done // total} % of {total / 1e6:,.0f} MB"
        elif found := DOWNLOADING.match(line):
            self.file = found[1]
            self.doing = f"finding and downloading {self.file}"
        elif line.startswith("Installing collected packages"):
            count = line.count(",") + 1
            self.doing = f"unpacking {count} package{'s' if count > 1 else ''}"


def spent(begin: float) -> str:
    minutes, seconds = divmod(round(time.monotonic() - begin), 60)
    return f"{minutes} min {seconds:02d} s" if minutes else f"{seconds} s"


def main(title: str, command: list[str]) -> int:
    LOG.parent.mkdir(exist_ok=True)
    begin, reading, ended = time.monotonic(), Reading(), threading.Event()
    print(f"{title} …", flush=True)

    def report() -> None:
        while not ended.wait(SECONDS):
            print(f"  {spent(begin)}: {reading.doing or 'starting'}", flush=True)

    reporter = threading.Thread(target=report, daemon=True)
    reporter.start()
    with LOG.open("a", encoding="utf-8") as log:
        log.write(f"$ {' '.join(command)}\n")
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, encoding="utf-8", errors="replace"
        )
        assert process.stdout is not None
        lines: list[str] = []
        for line in process.stdout:
            log.write(line)
            reading.take(line)
            if not LOADED.match(line):
                lines = [*lines[1 - SHOWN :], line]
        status = process.wait()
    ended.set()
    reporter.join()
    if status:
        print("".join(lines), end="", file=sys.stderr)
        print(f"{title} failed with status {status}; everything it printed is in {LOG}", file=sys.stderr)
    else:
        print(f"  done in {spent(begin)}", flush=True)
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))
