"""Gives fastnas thousands of inputs that are wrong in every way, and some that are only unusual.

python tests/fuzz/run.py --seconds 600 [--seed 7] [--kinds genotypes arrays] [--number 5, to repeat a case]

An input of any kind either ends with one line and exit status 2, or gives the result of its canonical form. Prints the
seed and how many inputs of each kind did which; exits with 1 after a traceback, a crash or a hang.
"""

from __future__ import annotations

import argparse
import importlib
import secrets
import sys
import time
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(TESTS.parent), str(TESTS)]

from fuzz import cases  # noqa: E402

KINDS = sorted(
    path.stem for path in Path(__file__).parent.glob("*.py") if "\ndef run(deadline" in path.read_text(encoding="utf-8")
)


Counts = dict[str, dict[str, int]]


def run(seconds: float, seed: int, kinds: list[str], number: int | None = None) -> tuple[Counts, dict[str, str]]:
    """Counts and failures by kind; all get the same time."""
    counts: Counts = {}
    failures: dict[str, str] = {}
    deadline = time.monotonic() + seconds
    for place, kind in enumerate(kinds):
        module = importlib.import_module(f"fuzz.{kind}")
        now = time.monotonic()
        try:
            if number is not None:
                prepare = getattr(module, "prepare", None)
                counts[kind] = cases.run_kind(module.one, deadline, seed, prepare, range(number, number + 1))
            else:
                counts[kind] = module.run(now + max(1.0, (deadline - now) / (len(kinds) - place)), seed)
        except AssertionError as error:
            failures[kind] = str(error)
    return counts, failures


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--seed", type=int, default=secrets.randbelow(2**31))
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS, metavar="KIND")
    parser.add_argument("--number", type=int, help="only the case of this number")
    options = parser.parse_args()
    print(f"seed {options.seed}", flush=True)
    counts, failures = run(options.seconds, options.seed, options.kinds, options.number)
    print(f"{'kind':<16} {'refused':>8} {'result':>8}")
    for kind, count in counts.items():
        print(f"{kind:<16} {count['refused']:>8,} {count['result']:>8,}")
    print(f"{sum(sum(count.values()) for count in counts.values()):,} inputs")
    for kind, failure in failures.items():
        print(f"\n{kind} failed: {failure}")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
