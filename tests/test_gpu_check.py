"""The check for machines with a GPU: rehearsed without one, and what it says of what went wrong."""

from __future__ import annotations

import importlib
import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from cuda_emulation import emulation

TOOLS = Path(__file__).resolve().parents[1] / "tools"


@pytest.fixture
def gpu_check(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(TOOLS)
    return importlib.import_module("gpu_check")


@pytest.mark.skipif(not emulation.library_path().is_file(), reason="needs the emulated kernels: make emulation")
def test_every_step_passes_a_rehearsal(tmp_path: Path) -> None:
    command = [sys.executable, str(TOOLS / "gpu_check.py"), "--rehearse", "--minutes=60", f"--out={tmp_path}"]
    done = subprocess.run(command, capture_output=True, text=True)
    record = json.loads((tmp_path / "gpu_check.json").read_text())
    log = (tmp_path / "gpu_check.log").read_text()[-4000:]
    assert {name: step["status"] for name, step in record["steps"].items()} == dict.fromkeys(record["steps"], "ok"), log
    assert done.returncode == 0
    assert len(record["steps"]) == 13
    assert record["steps"]["operators"]["unseen"] == []
    assert {row["precision"] for row in record["steps"]["weight step"]["rows"]} == {"float32", "bfloat16"}
    assert len(record["steps"]["search"]["phases"]) == 2
    table = (tmp_path / "gpu_check.txt").read_text().splitlines()
    assert table == done.stdout.splitlines()[-len(table) :]
    assert len(table) <= 30


def test_a_step_that_hangs_costs_its_limit_only(gpu_check: ModuleType, tmp_path: Path) -> None:
    result = gpu_check.in_process("operators", 0.2, True, 0, tmp_path)
    assert result["status"] == "stopped after 0 s"
    assert 0.2 <= result["seconds"] < 30


def test_a_step_ends_with_the_check(tmp_path: Path) -> None:
    """A process left behind would keep its memory on the GPU."""
    command = [sys.executable, str(TOOLS / "gpu_check.py"), "--rehearse", "--only=operators", f"--out={tmp_path}"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as check:
        children: list[str] = []
        while not children and check.poll() is None:
            time.sleep(0.05)
            children = Path(f"/proc/{check.pid}/task/{check.pid}/children").read_text().split()
        time.sleep(0.5)  # the check, too, has to know that it has begun
        check.terminate()
        assert check.wait(30) == 128 + signal.SIGTERM
    assert children
    assert not any(Path("/proc", child).exists() for child in children)


def test_a_wrong_operator_is_a_failure(gpu_check: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The step that compares operators, given kernels of which one adds a thousandth."""
    if not emulation.library_path().is_file():
        pytest.skip("needs the emulated kernels: make emulation")
    from gpu_steps.ground import Ground

    right = emulation.kernel

    def wrong(name: str) -> Any:
        def pool(*arguments: Any) -> Any:
            first, *others = right(name)(*arguments)
            return (first + 1e-3 * first.abs().max() if first.numel() else first, *others)

        return pool if name == "pool" else right(name)

    monkeypatch.setattr(emulation, "kernel", wrong)
    monkeypatch.setenv("OPERATOR_CASES", "200")
    ground = Ground("operators", True, 5, tmp_path / "step.json")
    importlib.import_module("gpu_steps.operators").run(ground)
    failures = json.loads((tmp_path / "step.json").read_text())["failures"]
    assert failures
    assert all(failure.startswith("pool, seed 5, case ") for failure in failures)


def test_steps_that_rest_on_a_failed_one_are_left_out(
    gpu_check: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    tried = []

    def pretended(name: str, limit: float, *others: Any) -> dict[str, Any]:
        tried.append((name, limit))
        return {"status": "failed: no nvcc" if name == "build" else "ok"}

    monkeypatch.setattr(gpu_check, "in_process", pretended)
    assert gpu_check.check(False, 540.0, 0, tmp_path, None) == 1
    assert [name for name, _ in tried] == ["machine", "build"]
    record = json.loads((tmp_path / "gpu_check.json").read_text())
    assert record["steps"]["kernels"] == {"status": "left out: no build"}
    assert capsys.readouterr().out.splitlines()[-1] == "look first: build failed: no nvcc"
    tried.clear()
    monkeypatch.setattr(
        gpu_check, "in_process", lambda name, limit, *others: tried.append((name, limit)) or {"status": "ok"}
    )
    assert gpu_check.check(False, 540.0, 0, tmp_path, None) == 0
    limits = dict(tried)
    assert limits["build"] >= 120, "enough for a build, and the rest is kept for what follows"
    assert all(limits[step.name] >= min(step.least, step.seconds) for step in gpu_check.STEPS)


def test_the_table_says_what_to_look_at(gpu_check: ModuleType) -> None:
    operator = {"operator": "fastnas::stage", "calls": 3, "ms": 9.0, "floor_ms": 2.0, "lost_ms": 7.0}
    steps: dict[str, Any] = {
        "machine": {
            "status": "ok",
            "gpu": "NVIDIA H200",
            "torch": "2.11.0",
            "missing": ["cmaes"],
            "tools": {"ncu": None},
        },
        "operators": {"status": "ok", "cases": 900, "of_each": {"pool": 450, "stage": 450}},
        "tests": {"status": "left out: needs expecttest"},
        "kernels": {"status": "ok", "operators": [operator], "launched": 2900, "launches": 2882},
    }
    record = {"rehearsed": False, "seed": 1, "seconds": 300.0, "steps": steps}
    lines = gpu_check.lines_of(record)
    assert any("NVIDIA H200" in line for line in lines)
    assert any("missing: cmaes" in line for line in lines)
    assert lines[-1].startswith("look first: fastnas::stage loses 7.00 ms of 9.00")
    steps["tests"] = {"status": "stopped after 75 s"}
    assert gpu_check.lines_of(record)[-1] == "look first: tests stopped after 75 s"
    steps["operators"] |= {"status": "1 failures", "failures": ["stage, seed 1, case 4: differs"]}
    assert gpu_check.lines_of(record)[-1] == "look first: operators: stage, seed 1, case 4: differs"
