"""What a GPU says about fastnas, in one command and nine minutes, on a machine that has nothing but torch and nvcc.

    python tools/gpu_check.py                  # everything, with the GPU; runs/gpu-check/ has table, log and JSON
    python tools/gpu_check.py --rehearse       # the same steps without a GPU: CPU, emulated kernels, small sizes
    python tools/gpu_check.py --only build operators
    python tools/gpu_check.py --table runs/gpu-check/gpu_check.json

It needs torch 2.11 or later with numpy and setuptools, nvcc, cmake and ninja, and no network; a step that needs another
package says which. Every step is a process of its own with a time limit of its own: what hangs or crashes costs that
step, and the JSON is written after each. This file imports neither torch nor fastnas.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import secrets
import signal
import subprocess
import sys
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
from gpu_steps.summary import lines_of

ROOT = Path(__file__).resolve().parents[1]
RESERVED = 5  # seconds for the table, and for processes to end


@dataclass(frozen=True)
class Step:
    name: str
    module: str  # of gpu_steps, whose function `run` it is
    seconds: int  # at most
    least: int  # that earlier steps leave for it
    needs: tuple[str, ...] = ()  # steps without whose success it makes no sense


# What later steps rest on comes first: a wrong operator makes every time that follows worthless.
STEPS = (
    Step("machine", "machine", 60, 20),
    Step("build", "build", 200, 120),
    Step("operators", "operators", 60, 25, ("build",)),
    Step("networks", "networks", 45, 15, ("build",)),
    Step("memcheck", "sanitizer", 75, 20, ("build",)),
    Step("racecheck", "sanitizer", 75, 20, ("build",)),
    Step("tests", "sampled_tests", 75, 20, ("build",)),
    Step("capture", "capture", 45, 15, ("build",)),
    Step("weight step", "weight_step", 110, 60, ("build",)),
    Step("kernels", "kernels", 50, 25, ("build",)),
    Step("population", "population", 50, 20, ("build",)),
    Step("search", "search", 60, 20, ("build",)),
    Step("retraining", "retraining", 45, 15, ("build",)),
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rehearse", action="store_true", help="without a GPU: CPU, emulated kernels, small sizes")
    parser.add_argument("--minutes", type=float, default=9.0, help="in all (default: 9)")
    parser.add_argument("--seed", type=int, help="of sizes, values and the sample of tests (default: drawn)")
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "gpu-check", help="folder (default: %(default)s)")
    parser.add_argument("--only", nargs="+", metavar="STEP", choices=[step.name for step in STEPS], help="these steps")
    parser.add_argument("--table", type=Path, metavar="JSON", help="print the table of an earlier check")
    parser.add_argument("--step", choices=[step.name for step in STEPS], help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.table:
        print(*lines_of(json.loads(given.table.read_text(encoding="utf-8"))), sep="\n")
        return 0
    seed = secrets.randbelow(2**31) if given.seed is None else given.seed
    if given.step:
        return run_step(given.step, given.rehearse, seed, given.out)
    return check(given.rehearse, 60 * given.minutes, seed, given.out, given.only)


def check(rehearse: bool, seconds: float, seed: int, out: Path, only: list[str] | None) -> int:
    """All steps, or `only` these; 0 where every one of them is well."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # ends the step in progress, too
    begin = time.monotonic()
    out.mkdir(parents=True, exist_ok=True)
    (out / "gpu_check.log").unlink(missing_ok=True)
    record: dict[str, Any] = {"rehearsed": rehearse, "seed": seed, "command": sys.argv, "steps": {}}
    steps = [step for step in STEPS if only is None or step.name in only]
    share = min(1.0, seconds / sum(step.least for step in STEPS) / 1.2)  # of what is left for each, where time is short
    patience = 10 if rehearse else 1  # a rehearsal tries the steps, on a machine that may have other work
    for place, step in enumerate(steps):
        left = seconds - RESERVED - (time.monotonic() - begin)
        limit = min(patience * step.seconds, left - share * sum(later.least for later in steps[place + 1 :]))
        unmet = [name for name in step.needs if record["steps"].get(name, {"status": "ok"})["status"] != "ok"]
        if unmet:
            result: dict[str, Any] = {"status": f"left out: no {unmet[0]}"}
        elif limit < 5:
            result = {"status": "left out: no time"}
        else:
            result = in_process(step.name, limit, rehearse, seed, out)
        record["steps"][step.name] = result
        record["seconds"] = round(time.monotonic() - begin, 1)
        (out / "gpu_check.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        print(f"{record['seconds']:6.0f} s  {step.name}: {result['status']}", flush=True)
    table = "\n".join(lines_of(record))
    (out / "gpu_check.txt").write_text(table + "\n", encoding="utf-8")
    print(f"\n{table}")
    return 0 if all(result["status"] == "ok" for result in record["steps"].values()) else 1


def in_process(name: str, limit: float, rehearse: bool, seed: int, out: Path) -> dict[str, Any]:
    """What a step has found by its end, by the limit, or until it crashed."""
    found = out / "step.json"
    found.unlink(missing_ok=True)
    command = [sys.executable, str(Path(__file__).resolve()), f"--step={name}", f"--seed={seed}", f"--out={out}"]
    command += ["--rehearse"] if rehearse else []
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", "STEP_SECONDS": f"{limit:.0f}"}
    begin = time.monotonic()
    with (out / "gpu_check.log").open("a", encoding="utf-8") as log:
        print(f"\n=== {name}, at most {limit:.0f} s", file=log, flush=True)
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            status = process.wait(limit)
        except subprocess.TimeoutExpired:
            status = None
        finally:  # with all that it has started
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    result = json.loads(found.read_text(encoding="utf-8")) if found.exists() else {}
    found.unlink(missing_ok=True)
    result["seconds"] = round(time.monotonic() - begin, 1)
    if status is None:
        result["status"] = f"stopped after {limit:.0f} s"
    elif status < 0:
        result["status"] = f"killed by {signal.Signals(-status).name}"
    else:
        result.setdefault("status", f"ended with {status}, see gpu_check.log")
    return result


def run_step(name: str, rehearse: bool, seed: int, out: Path) -> int:
    """One step, in this process."""
    from gpu_steps.ground import Ground

    ground = Ground(name, rehearse, seed, out / "step.json")
    step = next(step for step in STEPS if step.name == name)
    try:
        importlib.import_module(f"gpu_steps.{step.module}").run(ground)
    except ModuleNotFoundError as error:
        traceback.print_exc()
        ground.end(f"left out: needs {error.name}")
    except Exception as error:
        traceback.print_exc()
        ground.end(f"failed: {type(error).__name__}: {str(error).splitlines()[0][:200] if str(error) else ''}")
    else:
        ground.end("ok" if not ground.found.get("failures") else f"{len(ground.found['failures'])} failures")
    return 0


if __name__ == "__main__":
    sys.exit(main())
