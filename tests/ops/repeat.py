"""The operators' tests under many seeds: none may fail by chance. `docs/results/repeated-tests.md` has a record.

OMP_NUM_THREADS=1 python tests/ops/repeat.py --runs 30
"""

from __future__ import annotations

import argparse
import os
import re
import secrets
import subprocess
import sys
import time
from pathlib import Path

TESTS = Path(__file__).resolve().parent


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=30, help="seeds, each of all tests of a run (default: 30)")
    parser.add_argument("arguments", nargs="*", help="further arguments of pytest, behind --")
    given = parser.parse_args()
    failed = 0
    for run in range(1, given.runs + 1):
        seed = secrets.randbelow(2**31)
        command = [sys.executable, "-m", "pytest", "-q", "--no-header", "-r", "fE", str(TESTS), *given.arguments]
        begin = time.monotonic()
        result = subprocess.run(
            command, env={**os.environ, "FASTNAS_TEST_SEED": str(seed)}, capture_output=True, text=True, check=False
        )
        lines = result.stdout.strip().splitlines() or [result.stderr.strip()[-500:]]
        outcome = re.sub(r" in [0-9.]+s.*|=+", "", lines[-1]).strip()
        print(f"run {run:2}, seed {seed:10}: {outcome} in {time.monotonic() - begin:.0f} s", flush=True)
        if result.returncode != 0:
            failed += 1
            print(*(line for line in lines if line.startswith(("FAILED", "ERROR", "E  "))), sep="\n", flush=True)
    print(f"{given.runs} runs, {failed} with failures")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
