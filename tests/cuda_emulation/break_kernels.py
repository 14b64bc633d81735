"""Breaks the CUDA kernels on purpose, one line at a time, and reports which emulated test sees it.

    python tests/cuda_emulation/break_kernels.py [WORD …] > docs/results/broken-kernels.md

Takes the trials whose file or description holds one of the words, or all. Works on a copy in build/broken. A kernel
gets its trials here when it is written: an index, a width, a barrier, a sum. Ends with status 1 where nobody sees one.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import textwrap
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
COPY = ROOT / "build" / "broken"
CACHE = ROOT / "build" / "emulate" / "CMakeCache.txt"


@dataclass(frozen=True)
class Trial:
    file: str  # in csrc/cuda
    what: str
    old: str  # once in the file
    new: str
    tests: str  # of pytest
    build: str = "plain"  # plain, address or thread


MIXED_SUM = "tests/ops/test_mixed_sum.py"
TRIALS = (
    Trial(
        "mixed_sum.cu",
        "forward: the weight of the next candidate",
        "const A weight = weights[k];\n#pragma unroll\n        for (int j = 0; j < Width; ++j) sum[j]",
        "const A weight = weights[(k + 1) % args.candidates];\n"
        "#pragma unroll\n        for (int j = 0; j < Width; ++j) sum[j]",
        MIXED_SUM,
    ),
    Trial(
        "mixed_sum.cu",
        "forward: the last value of a vector left out",
        "for (int j = 0; j < Width; ++j) sum[j] += weight * A(o.values[j]);\n      }\n      Vec<T, Width> out;",
        "for (int j = 0; j < Width - (Width > 1); ++j) sum[j] += weight * A(o.values[j]);\n      }\n"
        "      Vec<T, Width> out;",
        MIXED_SUM,
    ),
    Trial(
        "mixed_sum.cu",
        "gradient of shared outputs: one individual left out",
        "for (int64_t p = 0; p < args.individuals; ++p) {\n        const auto g",
        "for (int64_t p = 1; p < args.individuals; ++p) {\n        const auto g",
        MIXED_SUM,
    ),
    Trial(
        "mixed_sum.cu",
        "wide loads although N is no multiple of the width",
        "bool ok = args.elements % kWide<T> == 0 && aligned16(dense);",
        "bool ok = aligned16(dense);",
        f"{MIXED_SUM} -k equals_reference",
    ),
    Trial(
        "mixed_sum.cu",
        "gradient of the weights: reads past the end",
        "if (i < args.elements) vec = load<Width>(grad + p * args.elements + i);",
        "vec = load<Width>(grad + p * args.elements + i);",
        f"{MIXED_SUM} -k equals_reference",
        "address",
    ),
    Trial(
        "mixed_sum.cu",
        "merge: a chunk left out",
        "for (int64_t chunk = threadIdx.x; chunk < chunks;",
        "for (int64_t chunk = threadIdx.x + 1; chunk < chunks;",
        MIXED_SUM,
    ),
    Trial(
        "device.h",
        "block_sum: half of the lanes",
        "for (int offset = kWarp / 2; offset > 0; offset /= 2) value += __shfl_down_sync(kFullMask, value, offset);",
        "for (int offset = kWarp / 4; offset > 0; offset /= 2) value += __shfl_down_sync(kFullMask, value, offset);",
        MIXED_SUM,
    ),
    Trial(
        "device.h",
        "block_sum: no barrier before the sums are read",
        "if (lane == 0) scratch[warp] = value;\n  __syncthreads();",
        "if (lane == 0) scratch[warp] = value;",
        f"{MIXED_SUM} -k equals_reference",
        "thread",
    ),
    Trial(
        "device.h",
        "block_sum: no barrier before scratch is used again",
        "  __syncthreads();\n  return total;",
        "  return total;",
        f"{MIXED_SUM} -k equals_reference",
        "thread",
    ),
    Trial(
        "device.h",
        "block_sum: a barrier that only the first warp reaches",
        "  A total = 0;\n  if (threadIdx.x == 0) {",
        "  A total = 0;\n  if (threadIdx.x < kWarp) __syncthreads();\n  if (threadIdx.x == 0) {",
        f"{MIXED_SUM} -k equals_reference",
    ),
    Trial(
        "device.h",
        "block_sum: a shuffle without half of the warp",
        "value += __shfl_down_sync(kFullMask, value, offset);",
        "if (lane < 16) value += __shfl_down_sync(kFullMask, value, offset);",
        f"{MIXED_SUM} -k equals_reference",
    ),
)


def main() -> None:
    words = sys.argv[1:]
    trials = [trial for trial in TRIALS if not words or any(w in f"{trial.file} {trial.what}" for w in words)]
    if not CACHE.is_file():
        sys.exit("the kernels were never built for the CPU: run `make emulation` first")
    print("# CUDA kernels, broken on purpose\n")
    print(
        "Each line was changed in a copy, built for the CPU and tested; `python tests/cuda_emulation/break_kernels.py`"
    )
    print("repeats it.\n")
    print("| file | what was broken | build | who saw it |\n|---|---|---|---|")
    unseen = 0
    for trial in trials:
        prepare(trial)
        build(trial)
        seen = test(trial)
        unseen += not seen
        print(f"| `{trial.file}` | {trial.what} | {trial.build} | {seen or '**nobody**'} |", flush=True)
    shutil.rmtree(COPY, ignore_errors=True)
    sys.exit(1 if unseen else 0)


def prepare(trial: Trial) -> None:
    for part in ("csrc", "tests/cuda_emulation"):
        shutil.copytree(ROOT / part, COPY / part, dirs_exist_ok=True)
    (COPY / "fastnas").mkdir(exist_ok=True)
    for part in ("CMakeLists.txt", "fastnas/version.py"):
        shutil.copy2(ROOT / part, COPY / part)
    path = COPY / "csrc" / "cuda" / trial.file
    text = path.read_text()
    if text.count(trial.old) != 1:
        sys.exit(f"{trial.file}, {trial.what}: the line to break occurs {text.count(trial.old)} times, expected once")
    path.write_text(text.replace(trial.old, trial.new))
    for kernel in (COPY / "csrc" / "cuda").glob("*.cu"):
        kernel.touch()  # a copy keeps the old date of a line that was broken before


def build(trial: Trial) -> None:
    known = dict(re.findall(r"^(\w+):\w+=(.*)$", CACHE.read_text(), re.MULTILINE))
    names = ("TORCH_DIR", "Python_EXECUTABLE", "pybind11_DIR", "CMAKE_MAKE_PROGRAM", "FASTNAS_EMULATE")
    options = [f"-D{name}={known[name]}" for name in names if name in known]
    cmake, generator = known["CMAKE_COMMAND"], known["CMAKE_GENERATOR"]
    output = f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY={COPY / 'lib'}"
    for command in (
        [cmake, "-S", COPY, "-B", COPY / "build", "-G", generator, output, *options],
        [cmake, "--build", COPY / "build", "--target", f"emulated_{trial.build}"],
    ):
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"{trial.file}, {trial.what}: {done.stdout[-2000:]}{done.stderr[-2000:]}")


def test(trial: Trial) -> str:
    """Who saw it, in a few words, or nothing."""
    environment = dict(os.environ, FASTNAS_EMULATED=str(COPY / "lib" / f"emulated_{trial.build}.so"))
    environment |= {"OMP_NUM_THREADS": "1", "FASTNAS_TEST_SEED": "1", "PYTHONPATH": str(ROOT)}
    runtime = {"address": ("asan", "stdc++"), "thread": ("tsan",)}.get(trial.build, ())
    libraries = [subprocess.check_output(["g++", f"-print-file-name=lib{one}.so"], text=True) for one in runtime]
    if libraries:
        environment["LD_PRELOAD"] = ":".join(map(str.strip, libraries))
        environment["ASAN_OPTIONS"] = "detect_leaks=0"
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-s", "-p", "no:cacheprovider", "-m", "emulated"]
    done = subprocess.run(
        [*command, *trial.tests.split(maxsplit=2)], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    output = done.stdout + done.stderr
    if report := re.search(
        r"ERROR: AddressSanitizer: ([\w-]+)|WARNING: ThreadSanitizer: ([\w ]+) \(|runtime error: ", output
    ):
        kind = "AddressSanitizer" if report[1] else "ThreadSanitizer" if report[2] else "UndefinedBehaviorSanitizer"
        return f"{kind}: {report[1] or report[2] or ''}".strip()
    if done.returncode == 0:
        return ""
    if problem := re.search(r"RuntimeError: emulated kernel: (.*)", output):
        return f"the emulator: {textwrap.shorten(problem[1], 120)}"
    if problem := re.search(r"AssertionError: (\w+), (?:result|argument) \d+ differs", output):
        return f"comparison with the CPU: `{problem[1]}`"
    return "a failed test: " + (re.findall(r"^FAILED (\S+)", output, re.MULTILINE) or ["?"])[0]


if __name__ == "__main__":
    main()
