"""Command lines: flags with values that they may not have, in every order, of every command."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import torch
import yaml
from fuzz.cases import Case, command, run_kind
from hypothesis import strategies as st

from fastnas import Genotype, compare, evaluate, export, search, train
from fastnas.cli.configuration import parse_search, parse_train
from fastnas.cli.options import CompareOptions
from fastnas.nn import DerivedNetwork
from fastnas.report.__main__ import main as report

VALUES = [
    "0", "-1", "1", "2", "3", "0.5", "1.5", "nan", "inf", "-inf", "1e400", "1e-400", "9" * 30, "9" * 5000, "0x10",
    "", " ", "None", "True", "False", "yes", "x", "[red]", "[/red]", "\x1b[1m", "a\nb", "--", "-", "--out", "*", "1_0",
    "~", "~/x", "~nobody/x", "/dev/null", "/dev/full", "/proc/self/mem", "x" * 300, "x" * 5000, "ü", "\udcff", "auto",
    "python:x", "python:a:b", "digits", "folder:", "folder:.", "npz:/dev/zero", "cifar10:~", "nb201:", "nb201:.", "cpu",
    "training:digits:x", "egnas", "darts", "cuda:99", "meta", "a,b", "random:x=*a", "random:warm_up={", "python:",
]  # fmt: skip
texts = st.text(st.characters(exclude_characters="\0"), max_size=20)
REAL = 25  # of so many cases one is a process of its own
ROOT = Path(__file__).resolve().parents[2]
COMMANDS = {
    "search": search.main, "train": train.main, "compare": compare.main, "evaluate": evaluate.main,
    "export": export.main, "report": report,
}  # fmt: skip


@cache
def _flags() -> dict[str, list[str]]:
    """The flags of each command."""
    found: dict[str, list[str]] = {}
    for name, options in (("search", parse_search([], "", "")), ("train", parse_train([], "", ""))):
        groups = [getattr(options, field.name) for field in dataclasses.fields(options)]
        found[name] = [field.name for group in groups for field in dataclasses.fields(group) if field.init]
    for name, kind in (
        ("compare", CompareOptions),
        ("evaluate", evaluate.EvaluateOptions),
        ("export", export.ExportOptions),
    ):
        found[name] = [field.name for field in dataclasses.fields(kind)]
    found["report"] = ["space"]
    return {name: [f"--{flag.replace('_', '-')}" for flag in flags] for name, flags in found.items()}


def prepare(folder: Path) -> None:
    torch.manual_seed(0)
    genotype = Genotype.published("DARTS_V2")
    DerivedNetwork(genotype, channels=2, layers=3, in_channels=1, auxiliary=False).save(folder / "network")


def _usual(name: str, case: Case) -> list[str]:
    """Arguments that work, and end at once."""
    match name:
        case "search" | "train":
            return ["--print-config"]
        case "evaluate":
            return [str(case.folder.parent / "network.json"), "--image-size", "8", "--runs", "0"]
        case "export":
            return [str(case.folder.parent / "network"), "--save", "copy"]
        case "report":
            return ["."]
    return ["--strategies", "random", "--evaluator", "nb201:missing.csv", "--out", "out"]


def one(case: Case) -> str:
    rng = case.rng
    os.chdir(case.folder)
    name = rng.choice([*COMMANDS, "search", "train"])
    arguments = _usual(name, case)
    for _ in range(rng.choice([0, 1, 1, 2, 3])):
        flag = rng.choice(_flags()[name])
        value = case.draw(texts) if case.chance(0.3) else rng.choice(VALUES)
        words = rng.choice(
            [[flag, value], [f"{flag}={value}"], [flag], [value], [f"--no-{flag[2:]}"], [flag[:-1], value]]
        )
        place = rng.randrange(len(arguments) + 1)
        arguments[place:place] = words
    if any(word in ("-h", "--help") for word in arguments) or "--device" in arguments:
        return "refused"
    case.given = f"{name} {arguments!r}"
    if case.number % REAL == REAL - 1:
        return _real(name, [word for word in arguments if "\0" not in word])
    status, printed = command(COMMANDS[name], arguments)
    if status == 0 and name in ("search", "train") and "--print-config" in arguments and printed:
        Path("config.yaml").write_text(printed, encoding="utf-8")
        status, again = command(COMMANDS[name], ["--config", "config.yaml", "--print-config"])
        # Only the comments differ, which say where values come from.
        options = yaml.safe_load(printed)
        assert (status, yaml.safe_load(again)) == (0, options), "a printed configuration is another one when it is read"
        assert isinstance(options, dict)
    return "refused" if status else "result"


def _real(name: str, arguments: Sequence[str]) -> str:
    """The same as a shell would."""
    done = subprocess.run(
        [sys.executable, "-m", f"fastnas.{name}", *arguments],
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert done.returncode in (0, 2), done
    if done.returncode == 2:
        assert done.stderr.startswith("error: "), done.stderr
        assert done.stderr.count("\n") == 1, done.stderr
    return "refused" if done.returncode else "result"


def run(deadline: float, seed: int) -> dict[str, int]:
    """See `fuzz.cases.run_kind`."""
    return run_kind(one, deadline, seed, prepare)
