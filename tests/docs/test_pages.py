"""The way of a user, from README.md through docs/ to the reports: every command and every Python block, as printed.

All of them run in one folder, in the order of the pages, on images like those of users; `tiny_runs` makes them small.
What is for developers, needs a download or belongs to a record of results is parsed: its programs, targets, files and
options must exist.
"""

from __future__ import annotations

import csv
import gzip
import importlib
import itertools
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import tiny_runs
import tyro
from doc_pages import OTHER_PAGES, ROOT, USER_PAGES, Block, blocks, inline_commands, report_blocks
from flower_images import make_flowers
from torch.distributed import run as torchrun

from benchmarks import __main__ as benchmarks
from fastnas import compat
from fastnas.cli.arguments import parse_arguments
from fastnas.cli.configuration import parse_search, parse_train
from fastnas.cli.options import CompareOptions
from fastnas.spaces import nb201
from fastnas.study.__main__ import StudyOptions

RUN = ("search", "train", "evaluate", "export", "compare")

# Fenced blocks that neither run nor are parsed: what their text begins with, and why.
SKIPPED = {
    'pytestmark = pytest.mark.usefixtures("backend")': "a line of a test file of operators",
    "evidence  better than": "what the whole demo prints, in figures of its own",
}
# Commands that do not run: a part of them, and why. They are parsed all the same.
NOT_RUN = {
    "cifar10:./data": "needs a download of 170 MB",
    "make ": "builds or tests the repository itself",
    "pip install": "installs packages",
    "fastnas.study": "takes minutes; tests/study/ runs tiny ones",
    "fastnas.report runs/egnas-table1": "a study that did not run",
    "torchrun ": "starts several processes; tests/distributed does so",
    "sbatch ": "needs a cluster",
    "tools/gpu_check.py": "needs a GPU, or minutes; tests/test_gpu_check.py rehearses it",
}
# Words within backticks that begin as commands do, and what they are instead.
NO_COMMAND = {
    "python -m benchmarks NAME … [--threads N] [--seconds S] [--out FILE]": "the form of a command",
    "pytest -m cuda": "the form of a command",
    "python setup.py build_ext --inplace": "not a command of this package",
}
PLACEHOLDERS = {"SEED": "1", "SPEC": "digits", "OPTIONS": "", "NAME": "darts"}  # in commands that are parsed only


class Reader:
    """Somebody who types what the pages print, in the current folder."""

    def __init__(self) -> None:
        self.files: set[str] = set()  # that Python blocks were saved in

    def run(self, command: str) -> None:
        """Runs a command, or parses one of `NOT_RUN`."""
        if any(part in command for part in NOT_RUN):
            parse(command)
            return
        words = shlex.split(command, comments=True)
        program, arguments = split_program(words)
        if program is None:
            assert words[0] == "python", f"nothing is known of: {command}"
            if words[1] in self.files:
                self.run_file(words[1], words[2:])
            else:  # a file that a command before has written, to be run without fastnas
                subprocess.run([sys.executable, *words[1:]], check=True)
            return
        assert program in RUN, f"nothing is known of: {command}"
        status = importlib.import_module(f"fastnas.{program}").main(arguments)
        assert status == 0, f"status {status} of: {command}"

    def run_file(self, name: str, arguments: list[str]) -> None:
        before, sys.argv = sys.argv, [name, *arguments]
        try:
            with pytest.raises(SystemExit) as end:
                runpy.run_path(name, run_name="__main__")
            assert not end.value.code, f"status {end.value.code} of {name} {arguments}"
        finally:
            sys.argv = before

    def save(self, block: Block) -> dict[str, Any]:
        """A block with the name of a file in its first line goes there; a second one of that name is appended.

        Returns what it defines, unless it is a program."""
        assert block.file is not None
        with open(block.file, "a", encoding="utf-8") as file:
            file.write(block.text + "\n")
        self.files.add(block.file)
        if "__main__" in block.text:
            return {}
        name = block.file.removesuffix(".py")
        importlib.invalidate_caches()
        sys.modules.pop(name, None)
        return vars(importlib.import_module(name))

    def read(self, page: Path) -> dict[str, Any]:
        """Types everything on a page; returns the names that its Python blocks have defined."""
        names: dict[str, Any] = {}
        for block in blocks(page):
            if is_skipped(block) or block.language in ("text", "json", "yaml"):
                continue
            if block.language == "bash":
                for command in block.commands():
                    self.run(command)
                continue
            assert block.language == "python", f"{block}: nobody knows how to run {block.language!r}"
            if block.file is not None:
                names.update(self.save(block))
            else:
                code = compile("\n" * (block.line - 1) + block.text, str(page), "exec")  # errors name the line
                exec(code, names)
        return names


def is_skipped(block: Block) -> bool:
    return any(block.text.startswith(beginning) for beginning in SKIPPED)


def split_program(words: list[str]) -> tuple[str | None, list[str]]:
    """(search, arguments) of `python -m fastnas.search arguments` and of `fastnas search arguments`."""
    if words[:2] == ["python", "-m"] and words[2].startswith("fastnas."):
        return words[2].removeprefix("fastnas."), words[3:]
    return (words[1], words[2:]) if words[0] == "fastnas" else (None, words)


class ArgumentsRead(Exception):  # noqa: N818
    """Raised where a program has read its arguments."""


def parse(command: str) -> None:
    """Fails if a command names a program, a target, a file or an option that does not exist."""
    if " && " in command:
        for part in command.split(" && "):
            parse(part)
        return
    words = shlex.split(command.replace(".venv/bin/", ""), comments=True)
    words = [word for word in (PLACEHOLDERS.get(word, word) for word in words) if word]
    program, arguments = split_program(words)
    if program == "search":
        parse_search(arguments, "", "")
    elif program == "train":
        parse_train(arguments, "", "")
    elif program == "compare":
        tyro.cli(CompareOptions, args=arguments)
    elif program == "study":
        parse_arguments(StudyOptions, arguments, "", "")
    elif program in ("--help", "--version"):
        pass  # of the command `fastnas` itself
    elif program is not None:
        modules = (ROOT / "fastnas" / f"{program}.py", ROOT / "fastnas" / program / "__main__.py")
        assert any(path.exists() for path in modules), command
    elif words[0] == "make":
        parse_make(words[1:])
    elif words[:2] == ["pip", "install"]:
        parse_pip(words[2:])
    elif words[:3] == ["python", "-m", "benchmarks"]:
        parse_benchmarks(words[3:])
    elif words[0] == "python" and words[1].endswith(".py"):
        assert (ROOT / words[1]).exists(), command
    elif words[:3] == ["python", "-m", "pytest"]:
        assert words[3].startswith("tests/"), command
    elif words[0] in ("srun", "ray", "torchrun"):
        parse_launched(words)
    elif words[0] == "sbatch":
        assert words[1].endswith(".sbatch"), command
    elif words[0] == "setarch":
        parse(" ".join(words[2:]))
    else:
        raise AssertionError(f"nothing is known of: {command}")


def parse_make(words: list[str]) -> None:
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    for word in words:
        name, equals, _ = word.partition("=")
        defined = rf"^{re.escape(name)}( \?=| :=|\s*=)" if equals else rf"^{re.escape(name)}:"
        assert re.search(defined, text, flags=re.MULTILINE), f"the Makefile has no {name}"


def parse_pip(words: list[str]) -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    for word in words:
        if found := re.fullmatch(r"(?:\.|fastnas)\[(.*)\]", word):
            assert set(found[1].split(",")) <= set(extras), word


def parse_launched(words: list[str]) -> None:
    """`torchrun …`, also behind `srun` and `ray job submit … --`."""
    if words[0] == "ray":
        assert words[1:3] == ["job", "submit"], words
        words = words[words.index("--") :]
    if words[0] != "torchrun":
        words = words[1:]
    assert words[0] == "torchrun", words
    given = torchrun.get_args_parser().parse_args(words[1:])
    assert given.module, words
    arguments = list(given.training_script_args)
    for flag in ("--resume", "--from"):  # of a run that has not run here
        if flag in arguments:
            del arguments[(at := arguments.index(flag)) : at + 2]
    parse(shlex.join(["python", "-m", given.training_script, *arguments]))


def parse_benchmarks(words: list[str]) -> None:
    def stop(*arguments: Any) -> None:
        raise ArgumentsRead

    if words and words[0] in benchmarks.analyses():
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(benchmarks, "resolve_device", stop)
        patch.setattr(benchmarks, "run", stop)
        with pytest.raises(ArgumentsRead):
            benchmarks.main(words)
    names = list(itertools.takewhile(lambda word: not word.startswith("--"), words))
    assert set(names) <= {"ops", *benchmarks.operators(), *benchmarks.end_to_end()}, words


def write_table(path: Path) -> None:
    """A table of the form of NAS-Bench-201's, with random numbers."""
    numbers = ("valid_acc_12_epochs", "test_acc_200_epochs_mean", "train_s_per_epoch", "params_m", "mflops")
    with gzip.open(path, "wt", encoding="utf-8", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(("arch", *numbers, "latency_ms_edge_gpu"))
        for place, a in enumerate(itertools.product(nb201.CANDIDATES, repeat=6)):
            arch = f"|{a[0]}~0|+|{a[1]}~0|{a[2]}~1|+|{a[3]}~0|{a[4]}~1|{a[5]}~2|"
            rows.writerow((arch, *(20 + place * step % 70 for step in (7, 11, 13, 17, 19)), 5))


@pytest.mark.slow
def test_the_way_of_a_user(
    tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    monkeypatch.syspath_prepend(str(tmp_path))
    tiny_runs.shrink(monkeypatch)
    make_flowers(Path("flowers"), seed)
    write_table(Path("nb201_cifar10.csv.gz"))
    shutil.copy("flowers/rose/07.jpg", "photo.jpg")
    reader = Reader()
    for page in USER_PAGES:
        before = set(sys.modules)
        names = reader.read(page)
        shown = capsys.readouterr().out
        for text in (block.text for block in blocks(page) if block.language == "text" and not is_skipped(block)):
            assert text in shown, f"{page.name} shows what is not printed: {text}"
        check(page, names)
        for name in set(sys.modules) - before:  # files of one page are not those of another
            if f"{name}.py" in reader.files:
                del sys.modules[name]
    read_reports(reader, tmp_path)


def check(page: Path, names: dict[str, Any]) -> None:
    """What the last lines of a page's blocks leave behind."""
    if page.name == "README.md":
        assert [names[name].shape[0] for name in ("y", "node", "batch")] == [8, 8, 64]
        assert names["images"].ndim == 4
    if page.name == "drop-in.md":
        assert {type(cell).__name__ for cell in names["model"].cells} == {"Cell"}
        assert not compat.report(names["model"]).fused


def read_reports(reader: Reader, folder: Path) -> None:
    """Types what the reports print: those of a search, of a training of several seeds, and of one of them."""
    found: dict[str, int] = {}
    for report in sorted(Path("runs").glob("**/report.html")):
        for title, text in report_blocks(report):
            found[title] = found.get(title, 0) + 1
            if title.startswith("Repeat") or found[title] > 2 or "comparison" in str(report):
                parse_or_pass(text)
            elif text.startswith("python -m"):
                reader.run(text)
            elif title == "Use it in Python":
                exec(text, {})
    assert {"Train this genotype", "Evaluate it", "Export it", "Use it in Python"} <= set(found), found


def parse_or_pass(text: str) -> None:
    """Repeating a run as it was would find its directory taken: its words must be those of the command."""
    if text.startswith("python -m fastnas"):
        parse(text)


def test_every_block_is_typed_or_has_a_reason() -> None:
    everything = [block for page in (*USER_PAGES, *OTHER_PAGES) for block in blocks(page)]
    assert {block.language for block in everything} <= {"bash", "python", "text", "json", "yaml", ""}
    for beginning in SKIPPED:
        assert any(block.text.startswith(beginning) for block in everything), f"no block begins with {beginning!r}"
    typed = [block for block in everything if block.language == "bash"]
    for part in NOT_RUN:
        assert any(part in command for block in typed for command in block.commands()), f"no command has {part!r}"


@pytest.mark.parametrize("page", [*USER_PAGES, *OTHER_PAGES], ids=lambda page: page.name)
def test_other_commands_can_be_typed(page: Path) -> None:
    commands = inline_commands(page)
    if page in OTHER_PAGES:
        commands += [command for block in blocks(page) if block.language == "bash" for command in block.commands()]
    saved = {block.file for block in blocks(page)}
    for command in commands:
        words = command.split()
        if command not in NO_COMMAND and words[1] not in saved:
            parse(command.rstrip(" …"))
