"""compute-sanitizer watches the operators: memcheck (accesses, leaks of none), racecheck (shared memory)."""

from __future__ import annotations

import os
import re
import subprocess
import sys

from gpu_steps.ground import ROOT, Ground
from gpu_steps.machine import find

CASES = 44  # twice as many as operators: a call takes seconds under racecheck


def run(ground: Ground) -> None:
    tool = find("compute-sanitizer")
    if tool is None and not ground.rehearse:
        raise ModuleNotFoundError("compute-sanitizer is not there", name="compute-sanitizer")
    watched = [sys.executable, str(ROOT / "tools" / "gpu_check.py"), "--step=operators", f"--seed={ground.seed}"]
    watched += [f"--out={ground.path.parent / ground.name}", *(["--rehearse"] if ground.rehearse else [])]
    (ground.path.parent / ground.name).mkdir(exist_ok=True)
    watch = [] if ground.rehearse or tool is None else [tool, f"--tool={ground.name}", "--print-limit=20"]
    cases = 2 if ground.rehearse else CASES
    environment = os.environ | {"OPERATOR_CASES": str(cases), "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    done = subprocess.run(
        [*watch, *watched], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    print(done.stdout[-20_000:])
    summaries = re.findall(r"(?:ERROR|RACECHECK) SUMMARY: (\d+)", done.stdout)
    inner = (ground.path.parent / ground.name / "step.json").read_text(encoding="utf-8")
    ground.say(cases=cases, errors=[int(number) for number in summaries], watched=inner)
    if watch and not summaries:
        raise RuntimeError("the sanitizer wrote no summary: does it know this GPU? see gpu_check.log")
    for line in re.findall(r"========= ((?:Invalid|Error:|Race|Warning: Race|Program hit).*)", done.stdout)[:8]:
        ground.add("failures", line)
    if any(map(int, summaries)) and not ground.found.get("failures"):
        ground.add("failures", f"{summaries} errors")
