"""Mistakes in arguments are one line, whatever the command."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from fastnas import compare, evaluate, export, search, train
from fastnas.cli.arguments import _mistake
from fastnas.report.__main__ import main as report_main


@pytest.mark.parametrize(
    ("main", "arguments", "message"),
    [
        (search.main, ["--epochs", "many"], "error parsing --epochs: "),
        (search.main, ["--epochs"], "missing value for argument '--epochs'"),
        (search.main, ["--epoch", "3"], "unrecognized options: --epoch, 3; did you mean --epochs?; see"),
        (search.main, ["--no-such-flag"], "unrecognized options: --no-such-flag; see python -m fastnas.search --help."),
        (search.main, ["--preset"], "argument --preset: expected one argument."),
        (
            search.main,
            ["--pipeline", "dal"],
            "invalid choice 'dal' for argument '--pipeline'. Expected",
        ),
        (search.main, ["--threads", "1.5"], "error parsing --threads: no type matching "),
        (search.main, ["--deterministic", "perhaps"], "unrecognized options: perhaps"),
        (train.main, ["--ema", "a\nb"], "error parsing --ema: "),
        (train.main, ["[red]", "\x1b[1m"], "unrecognized options: [red]; see"),
        (compare.main, ["--runs", "3"], "missing: --strategies, --evaluator, --out; see"),
        (evaluate.main, [], "missing: "),
        (evaluate.main, ["net.json", "--runs", "x"], "error parsing --runs: "),
        (export.main, ["net.json", "--image-size"], "missing value for argument '--image-size'"),
        (report_main, [], "missing: "),
    ],
)
def test_a_mistake_is_one_line(main: Any, arguments: Sequence[str], message: str, capsys: Any) -> None:
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith(f"error: {message}")
    assert captured.err.count("\n") == 1
    assert captured.out == ""


def test_terminals_draw_boxes_of_two_kinds(capsys: Any) -> None:
    lines = ("Unrecognized options: --epoch", "Perhaps you meant:", "    --epochs INT", "For full helptext, run x")
    round_box = ["╭─ Unrecognized options ──╮", *(f"│ {line:<30} │" for line in lines), "╰──────────╯"]
    for at in (3, 2):
        round_box.insert(at if at == 2 else 5, "│ ───────── │")
    plain = [" Unrecognized options ", " ------- ", f"  {lines[0]}  ", "  -----", *lines[1:3], "  -----", lines[3]]
    for box in (round_box, plain):
        assert _mistake("\n".join(box)) == "unrecognized options: --epoch; did you mean --epochs?"


def test_help_is_no_mistake(capsys: Any) -> None:
    for main in (search.main, train.main, compare.main, evaluate.main, export.main, report_main):
        with pytest.raises(SystemExit) as end:
            main(["--help"])
        assert end.value.code == 0
        assert "--help" in capsys.readouterr().out


def test_paths_begin_at_home(capsys: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for main, arguments in (
        (search.main, ["--config=~/x.yaml"]),
        (search.main, ["--resume=~/x.yaml"]),
        (train.main, ["--config=~/x.yaml"]),
        (evaluate.main, ["~/x.yaml"]),
        (export.main, ["~/x.yaml", "--save=x"]),
        (report_main, ["~/x.yaml"]),
        (search.main, ["--preset=demo", "--data=folder:~/x.yaml"]),
        (train.main, ["--data=digits", "--test=none", "--genotype=~/x.yaml"]),
        (compare.main, ["--strategies=random", "--evaluator=nb201:~/x.yaml", f"--out={tmp_path}/out"]),
    ):
        assert main(arguments) == 2
        assert f"{tmp_path}/x.yaml" in capsys.readouterr().err
