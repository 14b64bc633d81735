"""A seeded sample of `pytest -m cuda`; in a rehearsal of the emulated tests."""

from __future__ import annotations

import os
import random
import re
import subprocess
import sys
from typing import Any

from gpu_steps.ground import ROOT, Ground

SAMPLE = 250
FOLDERS = ("tests/ops", "tests/nn", "tests/engine/test_cuda_graph.py")


def run(ground: Ground) -> None:
    import expecttest  # noqa: F401  (what tests/ops needs; a missing one is reported by its name)
    import hypothesis  # noqa: F401
    import pytest  # noqa: F401

    mark, folders, sample = (
        ("emulated", ("tests/ops/test_halve.py",), 2) if ground.rehearse else ("cuda", FOLDERS, SAMPLE)
    )
    command = [sys.executable, "-m", "pytest", "-q", "-m", mark, "--maxfail=8", "-p", "no:cacheprovider", "--tb=short"]
    command += ["-p", "gpu_steps.sampled_tests", *folders]
    environment = os.environ | {
        "FASTNAS_TEST_SEED": str(ground.seed),
        "SAMPLED_TESTS": str(sample),
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tools")]),
    }
    done = subprocess.run(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    print(done.stdout[-30_000:])
    lines = [line for line in done.stdout.splitlines() if line.strip()]
    ground.say(summary=lines[-1] if lines else "")
    for line in re.findall(r"^(?:FAILED|ERROR) .*", done.stdout, re.MULTILINE)[:8]:
        ground.add("failures", line[:300])
    if done.returncode and not ground.found.get("failures"):
        raise RuntimeError(f"pytest ended with {done.returncode}: {ground.found['summary']}")


def pytest_collection_modifyitems(config: Any, items: list[Any]) -> None:
    """As a plugin of pytest: keeps a sample of the tests, in the order in which they were found. Where a whole file
    cannot be imported, pytest says so and stops."""
    marked = config.getoption("-m")
    chosen = [item for item in items if item.get_closest_marker(marked)]
    count = int(os.environ["SAMPLED_TESTS"])
    kept = set(random.Random(os.environ["FASTNAS_TEST_SEED"]).sample(range(len(chosen)), min(count, len(chosen))))
    items[:] = [item for index, item in enumerate(chosen) if index in kept]
