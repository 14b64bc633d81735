"""Executors: the same bits from processes, from submitit and from Ray."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from tiny_studies import SEARCH, InProcess

from fastnas import study as studies
from fastnas.engine.checkpoint import load_checkpoint
from fastnas.errors import UserError
from fastnas.study.executors import Resources, base
from fastnas.study.executors.local import Local, LocalJob
from fastnas.study.executors.submitit import Submitit

PLAN: dict[str, Any] = {"name": "two", "base": SEARCH, "seeds": [0, 1]}


def numbers(out: Path) -> dict[str, Any]:
    """All that must not depend on where a unit ran."""
    found = {}
    for seed in (0, 1):
        folder = out / f"cells/base/seed-{seed}/search"
        events = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        weights = load_checkpoint(folder / "checkpoint.pt")["network"]
        found[folder.parent.name] = (
            [
                {key: value for key, value in event.items() if key not in ("seconds", "peak_memory_mb")}
                for event in events
                if event["event"] != "run"
            ],
            {name: tensor.numpy().tobytes() for name, tensor in weights.items()},
        )
    return found


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Of the same runs in this process."""
    out = tmp_path_factory.mktemp("here") / "study"
    assert studies.run(PLAN, out, executor=InProcess(out), progress=False).status == "finished"
    return numbers(out)


@pytest.mark.parametrize(
    ("executor", "how"),
    [("local", {"parallel": 2}), ("submitit", {"parallel": 2, "cluster": "local"}), ("ray", {"parallel": 2})],
)
def test_the_bits_do_not_depend_on_the_executor(
    executor: str, how: dict[str, Any], expected: dict[str, Any], tmp_path: Path
) -> None:
    if executor != "local":
        pytest.importorskip(executor, reason=f"{executor} is not installed")
    out = tmp_path / "study"
    result = studies.run(PLAN, out, executor=executor, progress=False, **how)
    assert (result.status, dict(result.failed)) == ("finished", {})
    assert numbers(out) == expected
    assert [path.name for path in out.glob(".*")] == []


@pytest.mark.parametrize("name", ["submitit", "ray"])
def test_a_missing_package_is_named_with_the_command_that_installs_it(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    extra = {"submitit": "slurm", "ray": "ray"}[name]
    with pytest.raises(UserError, match=rf"python -m pip install 'fastnas\[{extra}\]'"):
        studies.run(PLAN, tmp_path / "study", executor=name, progress=False)


def test_submitit_says_what_it_does_not_like(tmp_path: Path) -> None:
    pytest.importorskip("submitit", reason="submitit is not installed")
    with pytest.raises(UserError, match=r"submitit cannot be used: .*timout"):
        Submitit(tmp_path, Resources(cluster="local", parameters={"timout_min": 3}))


@pytest.mark.parametrize(
    ("resources", "slots"),
    [
        (Resources(), 6),
        (Resources(threads=2), 3),
        (Resources(threads=4), 1),
        (Resources(threads=16), 1),
        (Resources(parallel=9), 9),
        (Resources(gpus=2), 2),
        (Resources(gpus=2, parallel=1), 1),
        (Resources(gpus=2, parallel=9), 2),
    ],
)
def test_processes_share_cores_or_gpus(
    resources: Resources, slots: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(base.os, "sched_getaffinity", lambda pid: set(range(6)))
    assert Local(tmp_path, resources).slots == slots


def test_each_process_sees_a_gpu_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[dict[str, str]] = []

    class Process:
        returncode = 0
        stdin = None

        def __init__(self, *arguments: Any, env: dict[str, str], **more: Any) -> None:
            seen.append(env)

        def poll(self) -> int:
            return 0

    monkeypatch.setattr(subprocess, "Popen", Process)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4, 6")
    executor = Local(tmp_path, Resources(gpus=2, threads=3))
    first = executor.start("a/search")
    executor.start("b/search")
    assert [env["CUDA_VISIBLE_DEVICES"] for env in seen] == ["4", "6"]
    assert seen[0]["OMP_NUM_THREADS"] == "3"
    assert first.is_over()
    assert first.is_over()  # whose GPU is free once
    executor.start("c/search")
    assert seen[2]["CUDA_VISIBLE_DEVICES"] == "4"
    assert executor._free == []


@pytest.mark.parametrize(
    ("code", "problem"),
    [
        ("pass", None),
        ("import os; os.kill(os.getpid(), 9)", "its process was ended by SIGKILL (which the system does where memory"),
        ("import os; os.kill(os.getpid(), 11)", "its process was ended by SIGSEGV"),
        ("raise SystemExit('cannot import')", "its process ended with status 1: cannot import"),
    ],
)
def test_how_a_process_ended(code: str, problem: str | None, tmp_path: Path) -> None:
    log = tmp_path / "log"
    with log.open("wb") as output:
        process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stderr=output)
    process.wait()
    job = LocalJob(process, log, lambda: None)
    assert job.is_over()
    said = job.problem()
    assert said is None if problem is None else said is not None and said.startswith(problem)
    assert log.exists() == ("status" in str(problem))


@pytest.mark.slow
def test_ctrl_c_kills_and_the_end(tmp_path: Path, expected: dict[str, Any]) -> None:
    """The command, interrupted as a terminal does it, then killed, then let run: the bits of an uninterrupted one."""
    (tmp_path / "two.json").write_text(json.dumps(PLAN))  # which is YAML, too
    out = tmp_path / "study"
    command = [sys.executable, "-m", "fastnas.study", "two.json", "--out", "study", "--parallel", "2"]

    def start() -> subprocess.Popen[str]:
        return subprocess.Popen(
            command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
        )

    def begun(process: subprocess.Popen[str]) -> None:
        while not list(out.glob("cells/base/*/search.claim")) and process.poll() is None:
            time.sleep(0.02)

    with start() as process:
        begun(process)
        time.sleep(0.3)
        os.killpg(process.pid, signal.SIGINT)
        said, error = process.communicate()
    assert process.returncode == 130, said + error
    assert "Traceback" not in said + error
    assert "continue with: python -m fastnas.study two.json --out study --parallel 2" in " ".join(said.split())
    assert list(out.rglob("*.claim")) == []
    with start() as process:
        begun(process)
        time.sleep(0.3)
        process.kill()
    # Workers notice that the study is gone, and stop.
    with start() as process:
        said, error = process.communicate()
    assert process.returncode == 0, said + error
    assert numbers(out) == expected
    assert list(out.rglob("*.claim")) == list(out.rglob(".fastnas*")) == []


@pytest.mark.slow
def test_two_studies_in_one_directory_share_the_work(tmp_path: Path, expected: dict[str, Any]) -> None:
    (tmp_path / "two.json").write_text(json.dumps(PLAN))
    out = tmp_path / "study"
    command = [sys.executable, "-m", "fastnas.study", "two.json", "--out", "study", "--parallel", "2"]
    both = [
        subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        for _ in range(2)
    ]
    said = [process.communicate()[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert numbers(out) == expected
    for seed in (0, 1):
        lines = (out / f"cells/base/seed-{seed}/search/metrics.jsonl").read_text().splitlines()
        assert sum(json.loads(line)["event"] == "run" for line in lines) == 1
