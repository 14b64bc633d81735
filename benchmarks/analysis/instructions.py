"""`python -m benchmarks instructions`: what the compiler made of the CPU kernels, read off the built extension.

For each kernel and instruction set: its hot loops, which are the innermost ones that compute with whole vectors, and
what in them costs time that the source does not show. `--check` ends with status 1 where a hot loop breaks a rule:

* no scalar comparison: GCC compares and selects value by value where a vector is wider than the registers
  (`Run`, csrc/cpu/vec.h) or where a storage type is converted one value at a time (csrc/cpu/convert.h);
* no call;
* of moves of whole vectors to or from the stack no more than MOVES, or a sixth of the arithmetic: a tile of sums that
  does not fit the registers has more. This rule regards the instruction sets that kernels are laid out for, not
  "portable", whose instructions overwrite an operand.

Needs objdump and c++filt, which every compiler brings along.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks.analysis.resources import built_extension
from fastnas.errors import UserError

# Instruction set → registers that hold a whole vector.
REGISTERS = {"portable": "%xmm", "avx2": "%ymm", "avx512": "%zmm"}

# Moves to and from the stack that any hot loop may have, say for constants.
MOVES = 2

# Of the instructions of a hot loop, as many at least are arithmetic on whole vectors.
DENSITY = 1 / 16

ARITHMETIC = re.compile(r"v?(?:fn?m(?:add|sub)\w*|add|sub|mul|max|min|cmp\w*)p[sd]$")
COMPARISON = re.compile(r"v?u?comis[sd]$")
MOVE = re.compile(r"v?mov(?:[au]p[sd]|dq[au]\w*)$")


@dataclass(frozen=True)
class Instruction:
    address: int
    name: str
    operands: str


@dataclass(frozen=True)
class Loop:
    """A hot loop of a compiled kernel."""

    isa: str
    function: str  # without namespaces, arguments and return type
    begin: int  # address
    instructions: int
    arithmetic: int  # on whole vectors
    comparisons: int  # of scalars
    calls: int
    spills: int


def read(binary: Path) -> list[Loop]:
    """The hot loops of all CPU kernels in an object file or a shared library.

    Raises:
        UserError: the binary cannot be read, or holds no CPU kernel.
    """
    loops = hot_loops(_run("objdump", "-d", "--no-show-raw-insn", str(binary)))
    if not loops:
        raise UserError(f"{binary} holds no CPU kernel of fastnas.")
    return loops


def hot_loops(assembly: str) -> list[Loop]:
    """The hot loops of all CPU kernels in what objdump prints."""
    loops = []
    for symbol, instructions in _functions(assembly):
        if kernel := re.search(r"7fastnas\d+(portable|avx2|avx512)", symbol):
            loops += [(symbol, loop) for loop in _hot_loops(kernel[1], instructions)]
    names = _run("c++filt", text="\n".join(symbol for symbol, _ in loops)).splitlines()
    return [Loop(function=_short(name), **loop) for name, (_, loop) in zip(names, loops, strict=True)]


def _run(tool: str, *arguments: str, text: str | None = None) -> str:
    if shutil.which(tool) is None:
        raise UserError(f"no {tool} on PATH: install binutils.")
    done = subprocess.run([tool, *arguments], capture_output=True, text=True, input=text)
    if done.returncode:
        raise UserError(f"{tool} {' '.join(arguments)} ended with status {done.returncode}: {done.stderr.strip()}")
    return done.stdout


def _functions(assembly: str) -> Iterator[tuple[str, list[Instruction]]]:
    symbol, instructions = "", list[Instruction]()
    for line in assembly.splitlines():
        if start := re.match(r"[0-9a-f]+ <(.+)>:$", line):
            yield symbol, instructions
            symbol, instructions = start[1], []
        elif code := re.match(r"\s+([0-9a-f]+):\t(\S+)\s*(.*)$", line):
            instructions.append(Instruction(int(code[1], 16), code[2], code[3]))
    yield symbol, instructions


def _hot_loops(isa: str, instructions: list[Instruction]) -> Iterator[dict[str, Any]]:
    register = REGISTERS[isa]
    for begin, end in _innermost(instructions):
        body = [one for one in instructions if begin <= one.address <= end]
        arithmetic = sum(bool(ARITHMETIC.match(one.name)) and register in one.operands for one in body)
        comparisons = sum(bool(COMPARISON.match(one.name)) for one in body)
        # Sparse ones go over rows or candidates, unless what should be arithmetic became comparisons.
        wide = isa != "portable" and any(register in one.operands for one in body)  # scalars are in %xmm, too
        vectors = arithmetic + (comparisons if wide else 0)
        if vectors < DENSITY * len(body) or any(one.name.startswith("ret") for one in body):
            continue  # what follows a return was only moved there
        yield {
            "isa": isa,
            "begin": begin,
            "instructions": len(body),
            "arithmetic": arithmetic,
            "comparisons": comparisons,
            "calls": sum(one.name.startswith("call") for one in body),
            "spills": sum(
                bool(MOVE.match(one.name)) and register in one.operands and "(%rsp)" in one.operands for one in body
            ),
        }


def _innermost(instructions: list[Instruction]) -> list[tuple[int, int]]:
    """First and last address of the loops without loops in them, from the jumps back."""
    loops = set()
    for one in instructions:
        target = re.match(r"([0-9a-f]+)\b", one.operands) if one.name.startswith("j") else None
        if target and instructions[0].address <= int(target[1], 16) <= one.address:
            loops.add((int(target[1], 16), one.address))
    return [
        (begin, end)
        for begin, end in sorted(loops)
        if not any(begin <= first and last <= end for first, last in loops - {(begin, end)})
    ]


def _short(name: str) -> str:
    """`void fastnas::avx2::detail::depthwise_block<float, 5>(float const*, …)` → `depthwise_block<float, 5>`."""
    name = re.sub(r"\(anonymous namespace\)::|\bfastnas::(?:(?:portable|avx2|avx512)::)?|\bdetail::|\bc10::", "", name)
    depth = 0
    for place, letter in enumerate(name):
        depth += (letter == "<") - (letter == ">")
        if letter == "(" and depth == 0:
            name = name[:place]
            break
    return re.sub(r"^(?:void|auto|bool|\S+ (?=\w+<)) ?", "", name).strip()


def violations(loops: Sequence[Loop]) -> list[str]:
    """What breaks the rules, in sentences."""
    found = []
    for loop in loops:
        where = f"{loop.function}, {loop.isa}, the loop at {loop.begin:#x} of {loop.instructions} instructions"
        if loop.comparisons:
            found.append(f"{where} has {loop.comparisons} scalar comparisons; is a vector wider than the registers?")
        if loop.calls:
            found.append(f"{where} calls {loop.calls} functions; inline them, or take them out of the loop")
        allowed = max(MOVES, loop.arithmetic // 6)
        if loop.isa != "portable" and loop.spills > allowed:
            found.append(
                f"{where} moves {loop.spills} vectors to or from the stack, {allowed} are allowed; does the tile fit "
                "the registers?"
            )
    return found


def show(loops: Sequence[Loop], console: Console) -> None:
    table = Table(
        title="CPU kernels as compiled",
        box=box.SIMPLE_HEAD,
        caption="hot: innermost loops that compute with whole vectors; then, in all of them, scalar comparisons, "
        "calls, and moves of vectors to and from the stack.",
    )
    table.add_column("kernel", no_wrap=True)
    for heading in ("isa", "hot", "vector arithmetic", "comparisons", "calls", "spills"):
        table.add_column(heading, justify="right", no_wrap=True)
    groups: dict[tuple[str, str], list[Loop]] = defaultdict(list)
    for loop in loops:
        groups[re.sub(r"<.*", "", loop.function), loop.isa].append(loop)
    for (function, isa), group in sorted(groups.items()):
        numbers = [
            sum(getattr(loop, name) for loop in group) for name in ("arithmetic", "comparisons", "calls", "spills")
        ]
        table.add_row(function, isa, str(len(group)), *map(str, numbers))
    console.print(table)


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks instructions", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--binary", type=Path, help="object file or library to read (default: the built extension)")
    parser.add_argument("--check", action="store_true", help="end with status 1 where a rule is broken")
    given = parser.parse_args(arguments)
    try:
        loops = read(given.binary or built_extension())
    except UserError as error:
        parser.error(str(error))
    console = Console()
    show(loops, console)
    if given.check and (broken := violations(loops)):
        for sentence in broken:
            console.print(f"[red]✗[/] {sentence}", soft_wrap=True, highlight=False, markup=False)
        sys.exit(1)
