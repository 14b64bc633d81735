"""`python -m benchmarks resources`: what the compiler made of every CUDA kernel, read off the built extension.

No GPU is needed. For each kernel and architecture: registers, shared memory, the share of a multiprocessor's warps
that can be resident with these (occupancy; dynamic shared memory is not known here), and how wide the kernel's
instances access global memory. `--check` ends with status 1 where a kernel breaks a rule:

* no spills and no stack: nothing of local memory is touched;
* at least MIN_OCCUPANCY of the warps fit;
* for each dtype one instance loads and stores 16 bytes at a time, within its loops if it has any, unless NARROW says
  why not.

Kernels in double are for comparisons, such as gradcheck, not for training: one block has to fit, without spills.
"""

from __future__ import annotations

import argparse
import csv
import os
import re
import shutil
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from importlib.util import find_spec
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

from fastnas.errors import UserError

TABLE = Path(__file__).resolve().parents[1] / "results" / "cuda-resources.csv"

MIN_OCCUPANCY = 0.25
FOR_COMPARISONS = "double"
HALF = ("Half", "BFloat16")

# (file, or "" for a kernel of a header; kernel): {"loads", "stores", or either of "half": why they are narrow}
NARROW: dict[tuple[str, str], dict[str, str]] = {
    ("augment_batch", "augment_kernel"): {"loads": "bytes of an image, from wherever a crop begins"},
    ("color_jitter", "color_jitter_kernel"): {"loads": "pixels of 3 bytes", "stores": "pixels of 3 bytes"},
    ("mixed_sum", "partial_kernel"): {"stores": "one sum for each block and candidate"},
    ("mixed_sum", "merge_kernel"): {
        "loads": "a column of partial sums for each block",
        "stores": "one sum for each block",
    },
    ("node_sum_grad", "bypass_weights_kernel"): {
        "loads": "the channels of a group are shuffled: neighbouring threads read neighbouring values",
        "stores": "one sum for each block",
    },
    ("node_sum_grad", "merge_kernel"): {"loads": "columns of partial sums", "stores": "one sum for each column"},
    ("philox", "philox_kernel"): {"loads": "one position for each 32 bytes that are written"},
    ("pool", "forward_kernel"): {
        "half loads": "4 channels of a thread: of 8, sums and statistics take more registers than two blocks have",
        "half stores": "4 channels of a thread",
    },
    ("preprocess", "forward_kernel"): {"half stores": "4 results of a thread; neighbours fill the sector"},
    ("preprocess_grad", "grad_kernel"): {"half stores": "4 results of a thread; neighbours fill the sector"},
    ("preprocess_grad", "merge_kernel"): {"loads": "columns of partial sums", "stores": "one sum for each column"},
    ("stage_grad", "merge_kernel"): {"loads": "columns of partial sums", "stores": "one sum for each column"},
    ("", "merge_statistics_kernel"): {"loads": "columns of statistics", "stores": "a mean for each column"},
    ("", "prepare_kernel"): {"loads": "a transposition of weights", "stores": "neighbours write neighbouring weights"},
}

# compute capability → bytes of shared memory of a multiprocessor (CUDA C++ Programming Guide, "Compute Capabilities").
SHARED_BYTES = {80: 164 << 10, 90: 228 << 10, 100: 228 << 10}
REGISTERS = 65536  # of a multiprocessor, and the same for the next three on all of these
WARPS = 64
BLOCKS = 32
THREADS_OF_A_WARP = 32
REGISTER_UNIT = 256  # registers are given to a warp in such pieces
SHARED_RESERVED = 1024  # bytes that the system takes of each block's; from sm_90 on the compiler counts them in


@dataclass(frozen=True)
class Instance:
    """One compiled kernel: an instance of a template, for one architecture."""

    file: str
    kernel: str
    arguments: str  # of the template
    architecture: int  # 80 for sm_80
    threads: int  # of a block at most (__launch_bounds__)
    registers: int  # of a thread
    shared_bytes: int  # static
    stack_bytes: int
    local: int  # instructions that touch local memory
    loads: int  # of global memory
    wide_loads: int  # of these, those of 16 bytes, within loops where the kernel has any
    stores: int
    wide_stores: int

    @property
    def dtype(self) -> str:
        return next((name for name in ("double", "float", "Half", "BFloat16") if name in self.arguments), "")

    @property
    def occupancy(self) -> float:
        """Share of a multiprocessor's warps that can be resident."""
        warps = -(-self.threads // THREADS_OF_A_WARP)
        per_warp = -(-self.registers * THREADS_OF_A_WARP // REGISTER_UNIT) * REGISTER_UNIT
        blocks = min(
            BLOCKS,
            WARPS // warps,
            REGISTERS // max(1, per_warp) // warps,
            SHARED_BYTES[self.architecture] // (self.shared_bytes + SHARED_RESERVED),
        )
        return blocks * warps / WARPS


@dataclass(frozen=True)
class Row:
    """A kernel on an architecture: the worst of its instances."""

    file: str
    kernel: str
    architecture: str
    instances: int
    wide_instances: int  # that load or store 16 bytes at a time
    threads: int
    registers: int
    shared_bytes: int
    stack_bytes: int
    local_instructions: int
    occupancy: float


def tool(name: str) -> str:
    """A tool of the CUDA toolkit; triton, which comes with torch, has the ones that read binaries.

    Raises:
        UserError: it is not found.
    """
    folders = [Path(os.environ[home], "bin") for home in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(home)]
    folders.append(Path("/usr/local/cuda/bin"))
    spec = find_spec("triton")
    if spec is not None and spec.origin:
        folders.append(Path(spec.origin).parent / "backends" / "nvidia" / "bin")
    found = next((str(folder / name) for folder in folders if (folder / name).is_file()), None) or shutil.which(name)
    if found is None:
        raise UserError(f"no {name} in {', '.join(map(str, folders))} or on PATH: set CUDA_HOME.")
    return found


def read(binary: Path) -> list[Instance]:
    """All kernels in an object file or a shared library, for every architecture that it holds code for.

    Raises:
        UserError: the binary holds no CUDA code, or the tools to read it are missing.
    """
    listing = _run(tool("cuobjdump"), "-lelf", str(binary))
    architectures = sorted({int(number) for number in re.findall(r"\.sm_(\d+)\.cubin", listing)})
    if not architectures:
        raise UserError(f"{binary} holds no CUDA code: build with FASTNAS_CUDA=1 first.")
    instances = []
    for architecture in architectures:
        assembly = _assembly(_run(tool("cuobjdump"), "-arch", f"sm_{architecture}", "-sass", str(binary)))
        threads = _threads(_run(tool("cuobjdump"), "-arch", f"sm_{architecture}", "-elf", str(binary)))
        resources = _resources(_run(tool("cuobjdump"), "-arch", f"sm_{architecture}", "-res-usage", str(binary)))
        readable = _demangled(assembly)
        for name, lines in assembly.items():
            file, kernel, arguments = readable[name]
            instances.append(
                Instance(
                    file,
                    kernel,
                    arguments,
                    architecture,
                    threads[name],
                    resources[name]["REG"],
                    max(0, resources[name]["SHARED"] - (SHARED_RESERVED if architecture >= 90 else 0)),
                    resources[name]["STACK"] + resources[name]["LOCAL"],
                    **_accesses(lines),
                )
            )
    return instances


def _run(*command: str, text: str | None = None) -> str:
    done = subprocess.run(command, capture_output=True, text=True, input=text)
    if done.returncode:
        raise UserError(f"{' '.join(command)} ended with status {done.returncode}: {done.stderr.strip()}")
    return done.stdout


# An instruction: its address and what it says, without the predicate.
Line = tuple[int, str]


def _assembly(text: str) -> dict[str, list[Line]]:
    kernels: dict[str, list[Line]] = {}
    lines: list[Line] = []
    for line in text.splitlines():
        if start := re.search(r"Function : (\S+)", line):
            lines = kernels.setdefault(start[1], [])
        elif code := re.match(r"\s+/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P\w+\s+)?([^;]+?)\s*;", line):
            lines.append((int(code[1], 16), code[2]))
    return kernels


def _threads(text: str) -> dict[str, int]:
    """From the attributes of each kernel, whose name stands in the section before them."""
    threads: dict[str, int] = {}
    kernel = ""
    lines = iter(text.splitlines())
    for line in lines:
        if section := re.match(r"\.nv\.info\.(\S+)", line):
            kernel = section[1]
        elif "EIATTR_MAX_THREADS" in line or "EIATTR_REQNTID" in line:
            next(lines)
            x, y, z = (int(number, 16) for number in re.findall(r"0x[0-9a-f]+", next(lines)))
            threads[kernel] = x * y * z
    return threads


def _resources(text: str) -> dict[str, dict[str, int]]:
    """REG, STACK, SHARED and LOCAL of each kernel."""
    found: dict[str, dict[str, int]] = {}
    kernel = ""
    for line in text.splitlines():
        if start := re.match(r"\s*Function (\S+):", line):
            kernel = start[1]
        elif kernel and "REG:" in line:
            found[kernel] = {name: int(value) for name, value in re.findall(r"(REG|STACK|SHARED|LOCAL):(\d+)", line)}
    return found


def _demangled(names: Iterable[str]) -> dict[str, tuple[str, str, str]]:
    """Mangled name → (file, kernel, template arguments).

    Raises:
        UserError: a kernel is not in an unnamed namespace.
    """
    mangled = list(names)
    readable = _run(tool("c++filt"), text="\n".join(mangled)).splitlines()
    result = {}
    for name, text in zip(mangled, readable, strict=True):
        # nvcc calls the unnamed namespace after the file.
        file = re.search(r"_GLOBAL__N__[0-9a-f]+_\d+_(\w+?)_cu_[0-9a-f]{8}", name)
        kernel = re.search(r"\(anonymous namespace\)::(\w+)(?:<(.*?)>)?\(", text)
        if file is None or kernel is None:
            raise UserError(f"{text} is not in an unnamed namespace; kernels are, so that each is known by its file.")
        result[name] = (file[1], kernel[1], kernel[2] or "")
    return result


def _accesses(lines: list[Line]) -> dict[str, int]:
    loops = []
    for address, text in lines:
        jump = re.match(r"BRA\S*(?: .*)? 0x([0-9a-f]+)$", text)
        if jump and int(jump[1], 16) < address:
            loops.append((int(jump[1], 16), address))

    def count(kinds: tuple[str, ...], width: str = "", hot: bool = False) -> int:
        return sum(
            text.startswith(kinds)
            and width in text.split()[0]
            and (not hot or not loops or any(begin <= address <= end for begin, end in loops))
            for address, text in lines
        )

    loads, stores = ("LDG", "LDGSTS"), ("STG",)
    return {
        "local": count(("LDL", "STL")),
        "loads": count(loads),
        "wide_loads": count(loads, ".128", hot=True),
        "stores": count(stores),
        "wide_stores": count(stores, ".128", hot=True),
    }


def summarize(instances: list[Instance]) -> list[Row]:
    """One row for each kernel and architecture."""
    groups: dict[tuple[str, str, int], list[Instance]] = defaultdict(list)
    for instance in instances:
        groups[instance.file, instance.kernel, instance.architecture].append(instance)
    return [
        Row(
            file,
            kernel,
            f"sm_{architecture}",
            len(group),
            sum(bool(one.wide_loads or one.wide_stores) for one in group),
            max(one.threads for one in group),
            max(one.registers for one in group),
            max(one.shared_bytes for one in group),
            max(one.stack_bytes for one in group),
            sum(one.local for one in group),
            round(min(one.occupancy for one in group), 3),
        )
        for (file, kernel, architecture), group in sorted(groups.items())
    ]


def violations(instances: list[Instance]) -> list[str]:
    """The broken rules, one sentence each."""
    found = []
    widest: dict[tuple[str, str, int, str], list[Instance]] = defaultdict(list)
    for one in instances:
        where = f"{one.file}.cu: {one.kernel}<{one.arguments}> on sm_{one.architecture}"
        if one.stack_bytes or one.local:
            found.append(
                f"{where} has {one.stack_bytes} bytes of stack and {one.local} accesses to local memory; "
                "is an argument table copied, or a tile too large?"
            )
        least = MIN_OCCUPANCY if one.dtype != FOR_COMPARISONS else -(-one.threads // THREADS_OF_A_WARP) / WARPS
        if one.occupancy < least:
            found.append(
                f"{where} has {one.registers} registers and {one.shared_bytes} bytes of shared memory, which leaves "
                f"{one.occupancy:.0%} of the warps; at least {least:.0%} are expected"
            )
        widest[one.file, one.kernel, one.architecture, one.dtype].append(one)
    for (file, kernel, architecture, dtype), group in sorted(widest.items()):
        narrow = NARROW.get((file, kernel)) or NARROW.get(("", kernel), {})
        for kind in ("loads", "stores"):
            if kind in narrow or (dtype in HALF and f"half {kind}" in narrow) or dtype == FOR_COMPARISONS:
                continue
            if not any(getattr(one, kind) for one in group):
                continue
            if not any(getattr(one, f"wide_{kind}") for one in group):
                found.append(
                    f"{file}.cu: {kernel}, {dtype}, sm_{architecture}: no instance {kind} 16 bytes at a time in its "
                    f"loops; use load() and store() of device.h, or say in NARROW why not"
                )
    return found


def show(rows: list[Row], console: Console) -> None:
    table = Table(
        title="CUDA kernels as compiled",
        box=box.SIMPLE_HEAD,
        caption="built: instances of the template, 16 B: those that load or store 16 bytes at a time; then the worst "
        "instance: threads of a block, registers of a thread, bytes of static shared memory, share of a "
        "multiprocessor's warps that fit.",
    )
    table.add_column("kernel", no_wrap=True)
    for heading in ("sm", "built", "16 B", "threads", "regs", "shared", "warps"):
        table.add_column(heading, justify="right", no_wrap=True)
    before = ""
    for row in rows:
        name = f"{row.file} {row.kernel.removesuffix('_kernel')}"
        numbers = (row.instances, row.wide_instances, row.threads, row.registers, row.shared_bytes)
        sm = row.architecture.removeprefix("sm_")
        table.add_row(name if name != before else "", sm, *map(str, numbers), f"{row.occupancy:.0%}")
        before = name
    console.print(table)


def write(rows: list[Row], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(Row)], lineterminator="\n")
        writer.writeheader()
        writer.writerows(asdict(row) for row in rows)


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks resources", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--binary", type=Path, help="object file or library to read (default: the built extension)")
    parser.add_argument("--check", action="store_true", help="end with status 1 where a rule is broken")
    parser.add_argument("--out", type=Path, help=f"write the table there; the committed one is {TABLE.name}")
    given = parser.parse_args(arguments)
    try:
        instances = read(given.binary or built_extension())
    except UserError as error:
        parser.error(str(error))
    rows = summarize(instances)
    console = Console()
    show(rows, console)
    if given.out:
        write(rows, given.out)
    if given.check and (broken := violations(instances)):
        for sentence in broken:
            console.print(f"[red]✗[/] {sentence}", soft_wrap=True, highlight=False)
        sys.exit(1)


def built_extension() -> Path:
    from fastnas._library import _C

    return Path(str(_C.__file__))
