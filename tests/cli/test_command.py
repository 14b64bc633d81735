"""What all commands do alike: users' names are printed as they are, errors are one line, exit statuses are the same."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from rich.console import Console

from fastnas import Genotype, compare, evaluate, export, search, train
from fastnas.cli import exporting
from fastnas.cli.command import command, command_line, print_text
from fastnas.cli.progress import print_left_out
from fastnas.errors import UserError
from fastnas.report import print_genotype
from fastnas.report.__main__ import main as report_main

NAMES = ["[/old]", "[red]", "[bold]x[/bold]", ":car:", "fastnas[export]", "\\[red]"]  # for rich: error, styles, picture
NETWORK = ["--channels", "4", "--layers", "3", "--batch-size", "2", "--epochs", "1", "--device", "cpu"]


def joined(text: str) -> str:
    return " ".join(text.split())


# --- text ---


@pytest.mark.parametrize("name", NAMES)
def test_names_are_printed_as_they_are(capsys: Any, name: str) -> None:
    print_text(Console(), ("bold", "bold"), f" {name}", style="dim")
    assert capsys.readouterr().out == f"bold {name}\n"
    print_left_out([f"{name}/1.png: it is not an image"], Console())
    assert f"{name}/1.png" in capsys.readouterr().out
    assert command_line("fastnas.search", "--out", name).startswith("python -m fastnas.search --out ")


def test_styles_stay_on_terminals() -> None:
    console = Console(force_terminal=True, color_system="standard", no_color=False, width=80, record=True)
    with console.capture() as captured:
        print_text(console, ("seed 1", "bold"), " on [red]: 12 images")
    assert captured.get() == "\x1b[1mseed 1\x1b[0m on [red]: 12 images\n"


def test_long_lines_are_not_broken(capsys: Any) -> None:
    print_text(Console(width=20), "x " * 50)
    assert capsys.readouterr().out.count("\n") == 1


# --- exit statuses ---


@pytest.mark.parametrize("name", NAMES)
def test_an_error_is_one_line_and_status_2(capsys: Any, name: str) -> None:
    @command
    def main(arguments: list[str], console: Console) -> int:
        raise UserError(f"cannot read {arguments[0]}; give another.")

    assert main([name]) == 2
    captured = capsys.readouterr()
    assert captured.err == f"error: cannot read {name}; give another.\n"
    assert captured.out == ""


def test_ctrl_c_is_status_130_and_other_errors_are_not_hidden(capsys: Any) -> None:
    def stop(error: BaseException) -> Callable[[list[str], Console], int]:
        def body(arguments: list[str], console: Console) -> int:
            raise error

        return body

    assert command(stop(KeyboardInterrupt()))([]) == 130
    assert capsys.readouterr().err == "interrupted\n"
    with pytest.raises(ValueError, match="a mistake of ours"):
        command(stop(ValueError("a mistake of ours")))([])


@pytest.mark.parametrize("make", [lambda: np.empty(2**62, np.uint8), lambda: torch.empty(2**58)])
def test_memory_that_is_not_there_is_one_line(make: Callable[[], Any], capsys: Any) -> None:
    @command
    def main(arguments: list[str], console: Console) -> int:
        return len(make())

    assert main([]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: out of memory: ")
    assert error.endswith("; take smaller images, batches or networks.\n")
    assert error.count("\n") == 1


def test_arguments_are_those_of_the_process_by_default(monkeypatch: Any) -> None:
    seen = []

    @command
    def main(arguments: list[str], console: Console) -> int:
        seen.append(arguments)
        return 7

    monkeypatch.setattr(sys, "argv", ["fastnas", "--flag"])
    assert main() == main(["x"]) == 7
    assert seen == [["--flag"], ["x"]]


@pytest.mark.parametrize(
    ("main", "arguments"),
    [
        (search.main, ["--data", "folder:{name}"]),
        (search.main, ["--config", "{name}"]),
        (search.main, ["--preset", "{name}"]),
        (search.main, ["--preset", "demo", "--initial-weights", "{name}"]),
        (train.main, ["--data", "digits", "--genotype", "{name}"]),
        (train.main, ["--resume", "{name}"]),
        (compare.main, ["--strategies", "random", "--evaluator", "{name}", "--out", "out"]),
        (compare.main, ["--strategies", "random", "--evaluator", "nb201:{name}", "--out", "out"]),
        (evaluate.main, ["{name}.json"]),
        (export.main, ["{name}.json", "--onnx", "x.onnx"]),
        (report_main, ["{name}"]),
    ],
)
@pytest.mark.parametrize("name", ["[/old]", "[red]", ":car:"])
def test_every_command_names_what_it_was_given(
    main: Any, arguments: list[str], name: str, capsys: Any, monkeypatch: Any, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([word.format(name=name) for word in arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert name in error
    assert error.count("\n") == 1


def test_what_is_missing_is_named_with_its_extra(capsys: Any, monkeypatch: Any, tmp_path: Path) -> None:
    def missing(*_: Any) -> None:
        raise UserError('onnxscript is missing: pip install "fastnas[export]".')

    monkeypatch.setattr(exporting, "load_trained", missing)
    assert export.main(["x", "--onnx", str(tmp_path / "x")]) == 2
    assert '"fastnas[export]"' in capsys.readouterr().err


# --- whole commands on names that rich would read as markup ---


@pytest.fixture
def odd_images(tmp_path: Path) -> Path:
    """Images in classes with odd names, below a folder with an odd name."""
    from PIL import Image

    generator = np.random.default_rng(0)
    for split in ("train", "test"):
        for label in ("[red]", ":car:"):
            folder = tmp_path / "[/old]" / split / label
            folder.mkdir(parents=True)
            for number in range(8):
                pixels = generator.integers(0, 256, (8, 8, 3), dtype=np.uint8)  # [H, W, 3]
                Image.fromarray(pixels).save(folder / f"{number}.png")
    return tmp_path / "[/old]"


def test_a_search_between_odd_names(odd_images: Path, tmp_path: Path, capsys: Any) -> None:
    out = tmp_path / "x[/old]" / "run[red]"
    small = [*NETWORK, "--strategy", "darts", "--warm-up", "0"]
    assert search.main(["--data", f"folder:{odd_images}/train", "--out", str(out), *small]) == 0
    shown = joined(capsys.readouterr().out)
    for text in (f"on folder:{odd_images}/train:", f"run directory {out}", f"genotype {out}/genotype.json"):
        assert text in shown


def test_trained_evaluated_exported_and_reported_between_odd_names(
    odd_images: Path, tmp_path: Path, capsys: Any, monkeypatch: Any
) -> None:
    genotype, out, data = tmp_path / "[bold].json", tmp_path / "x[/old]" / "run[red]", f"folder:{odd_images}"
    Genotype.published("DARTS_V2").to_json(genotype)
    flags = ["--genotype", str(genotype), "--data", data, "--cutout", "0", *NETWORK]
    assert train.main([*flags, "--epochs", "2", "--stop-after", "1", "--out", str(out)]) == 0
    assert command_line("fastnas.train", "--resume", str(out)) in joined(capsys.readouterr().out)
    assert train.main(["--resume", str(out)]) == 0
    shown = joined(capsys.readouterr().out)
    assert f"on {data}:" in shown
    assert f"report {out}/report.html" in shown
    assert train.main(["--resume", str(out)]) == 0
    assert f"seed 0 is done: {out}" in joined(capsys.readouterr().out)
    assert evaluate.main([str(out), "--data", data, "--runs", "0", "--device", "cpu"]) == 0
    shown = joined(capsys.readouterr().out)
    assert f"({data}, test)" in shown
    assert re.search(r"\[red\] +[\d.]+%", shown)
    assert re.search(r":car: +[\d.]+%", shown)
    assert export.main([str(out), "--save", str(tmp_path / "[red].json")]) == 0
    assert joined(capsys.readouterr().out) == f"wrote {tmp_path}/[red].json"
    assert report_main([str(out)]) == 0
    assert capsys.readouterr().out == f"{out}/report.html\n"


def test_operations_with_odd_names_are_drawn_as_they_are(capsys: Any, monkeypatch: Any) -> None:
    pairs = Genotype.pairs

    def odd(self: Genotype, kind: Any) -> list[list[tuple[str, int]]]:
        return [[("[/old]", source) for _, source in node] for node in pairs(self, kind)]

    monkeypatch.setattr(Genotype, "pairs", odd)
    print_genotype(Genotype.published("DARTS_V2"), Console(width=100))
    assert capsys.readouterr().out.count("[/old]") == 16


# --- the commands as a shell sees them ---


def shell(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, timeout=120, check=False)


def test_env_prints_versions_build_and_devices() -> None:
    result = shell("-m", "fastnas.env")
    assert result.returncode == 0, result.stderr
    for word in ("fastnas", "torch", "isa", "extension", "extension cuda", "threads"):
        assert any(line.startswith(word) for line in result.stdout.splitlines()), word


def test_the_console_script() -> None:
    assert "search" in shell("-m", "fastnas").stdout + shell("-m", "fastnas").stderr
    assert shell("-m", "fastnas", "nonsense").returncode == 2
    printed = shell("-m", "fastnas", "search", "--preset", "demo", "--print-config")
    assert yaml.safe_load(printed.stdout)["data"]["data"] == "digits", printed.stderr
