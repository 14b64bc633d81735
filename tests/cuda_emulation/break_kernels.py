"""Breaks the CUDA kernels on purpose, one line at a time, and reports which emulated test catches it.

    python tests/cuda_emulation/break_kernels.py [WORD …] > docs/results/broken-kernels.md

Plants, in a copy, the faults of `faults.py` whose file, kernel or description holds one of the words; all without any.
Ends with status 1 if no test catches one of them.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path

from faults import FAULTS, Fault

ROOT = Path(__file__).resolve().parents[2]
COPY = Path(tempfile.mkdtemp(prefix="broken-kernels-"))
BUILD = ROOT / "build" / "emulate"
CACHE = BUILD / "CMakeCache.txt"
HEADING = """# CUDA kernels, broken on purpose

Every kernel was broken in a copy, one line at a time, compiled for the CPU and run by the emulated tests of its
operator. `python tests/cuda_emulation/break_kernels.py` repeats it; `tests/cuda_emulation/faults.py` holds the lines,
and a test requires a fault for every kernel. The builds `address` and `thread` are instrumented with a sanitizer.

| kernel | file | what was broken | build | who saw it |
|---|---|---|---|---|"""


def main() -> None:
    words = sys.argv[1:]
    found = [(fault, f"{fault.file} {fault.kernel} {fault.what}") for fault in FAULTS]
    faults = [fault for fault, text in found if not words or any(word in text for word in words)]
    if not CACHE.is_file():
        sys.exit("the kernels were never built for the CPU: run `make emulation` first, `make emulate` for sanitizers")
    print(HEADING)
    unseen = 0
    for fault in faults:
        seen = test(fault, build(fault, plant(fault)))
        unseen += not seen
        row = (f"`{fault.kernel}`", f"`{fault.file}`", fault.what, fault.build, seen or "**nobody**")
        print(f"| {' | '.join(row)} |", flush=True)
    shutil.rmtree(COPY, ignore_errors=True)
    sys.exit(1 if unseen else 0)


def plant(fault: Fault) -> Path:
    """The source file that launches the kernel, in a copy of the sources that holds the fault."""
    shutil.rmtree(COPY, ignore_errors=True)
    shutil.copytree(ROOT / "csrc", COPY / "csrc")
    path = COPY / "csrc" / "cuda" / fault.file
    text = path.read_text()
    if (count := text.count(fault.old)) != 1:
        sys.exit(f"{fault.file}, {fault.what}: the line to break occurs {count} times, expected once")
    path.write_text(text.replace(fault.old, fault.new))
    (source,) = (one for one in path.parent.glob("*.cu") if f'"{fault.kernel}"' in one.read_text())
    return source


def build(fault: Fault, source: Path) -> Path:
    """Compiles that file alone, and links it with the objects of the emulation's build; returns the library."""
    target = f"emulated_{fault.build}"
    commands = json.loads((BUILD / "compile_commands.json").read_text())
    original = ROOT / source.relative_to(COPY)
    (compile,) = (
        one["command"] for one in commands if one["file"] == str(original) and f"{target}.dir" in one["command"]
    )
    (known,) = re.findall(r"-o (\S+)", compile)
    broken, library = COPY / "broken.o", COPY / f"{target}.so"
    compile = compile.replace(f"{ROOT}/csrc", f"{COPY}/csrc").replace(f"-o {known}", f"-o {broken}")
    ninja = next(
        line.split("=", 1)[1] for line in CACHE.read_text().splitlines() if line.startswith("CMAKE_MAKE_PROGRAM")
    )
    listed = subprocess.run([ninja, "-t", "commands", target], cwd=BUILD, capture_output=True, text=True, check=True)
    link = re.sub(r"-o \S+", f"-o {library}", listed.stdout.splitlines()[-1]).replace(f" {known} ", f" {broken} ")
    for command in (compile, link):
        done = subprocess.run(command, shell=True, cwd=BUILD, capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"{fault.file}, {fault.what}: {done.stdout[-2000:]}{done.stderr[-2000:]}")
    return library


def test(fault: Fault, library: Path) -> str:
    """What caught it, in a few words, or an empty string."""
    environment = dict(os.environ, FASTNAS_EMULATED=str(library))
    environment |= {"OMP_NUM_THREADS": "1", "FASTNAS_TEST_SEED": "1", "PYTHONPATH": str(ROOT)}
    runtime = {"address": ("asan", "stdc++"), "thread": ("tsan",)}.get(fault.build, ())
    libraries = [subprocess.check_output(["g++", f"-print-file-name=lib{one}.so"], text=True) for one in runtime]
    if libraries:
        environment["LD_PRELOAD"] = ":".join(map(str.strip, libraries))
        environment["ASAN_OPTIONS"] = "detect_leaks=0"
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-s", "-p", "no:cacheprovider", "-m", "emulated"]
    files, _, words = fault.tests.partition(" -k ")
    command += [*files.split(), *(["-k", words] if words else [])]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    output = done.stdout + done.stderr
    if done.returncode == 5:  # pytest selected nothing
        sys.exit(f"{fault.file}, {fault.what}: {fault.tests} names no test")
    if report := re.search(
        r"ERROR: AddressSanitizer: ([\w-]+)|WARNING: ThreadSanitizer: ([\w ]+) \(|runtime error: ", output
    ):
        kind = "AddressSanitizer" if report[1] else "ThreadSanitizer" if report[2] else "UndefinedBehaviorSanitizer"
        return f"{kind}: {report[1] or report[2] or ''}".strip()
    if done.returncode == 0:
        return ""
    if problem := re.search(r"RuntimeError: emulated kernel: (.*)", output):
        return f"the emulator: {textwrap.shorten(problem[1], 120)}"
    if problem := re.search(r"AssertionError: (\w+), (?:result|argument) \d+\S* differs", output):
        return f"comparison with the CPU: `{problem[1]}`"
    return "a failed test: " + (re.findall(r"^FAILED ([^\s\[]+)", output, re.MULTILINE) or ["?"])[0]


if __name__ == "__main__":
    main()
