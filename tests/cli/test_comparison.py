"""Comparisons: the same numbers however they were cut into processes and pieces."""

from __future__ import annotations

import json
import os
import re
import shlex
from contextlib import contextmanager
from dataclasses import replace
from html import unescape
from pathlib import Path

import numpy as np
import pytest
import torch
import tyro
from rich.console import Console

from fastnas import compare
from fastnas.cli import comparison
from fastnas.cli.options import CompareOptions
from fastnas.errors import UserError
from fastnas.evaluators.clock import Stopwatch
from fastnas.report.comparison import Result, read_results, summarise, write_comparison

SCORES = '''
def score(genotype):
    """A simulated clock: every evaluation takes 3 seconds."""
    return {"accuracy": sum("conv" in name for name, _ in genotype.normal) / 8, "seconds": 3.0, "macs": 1.0}
'''


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "scores_to_compare.py").write_text(SCORES)
    monkeypatch.syspath_prepend(tmp_path)

    def run(out: str, *flags: str) -> int:
        begin = ["--evaluator", "python:scores_to_compare:score", "--out", str(tmp_path / out), "--budget", "60"]
        return compare.main([*begin, "--processes", "1", *flags])

    return run


def lines(path: Path) -> list[str]:
    return sorted((path / "runs.jsonl").read_text().splitlines())


def test_runs_go_on_where_they_were_stopped(command, tmp_path, monkeypatch, capsys):
    assert command("whole", "--strategies", "random,aging-evolution", "--runs", "4") == 0
    out = capsys.readouterr().out
    assert "random" in out
    assert "±" in out
    real, calls = comparison.run_once, 0

    def stop(*arguments):
        nonlocal calls
        calls += 1
        if calls == 4:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(comparison, "run_once", stop)
    assert command("cut", "--strategies", "random,aging-evolution", "--runs", "4") == 130
    assert "continue with: python -m fastnas.compare" in " ".join(capsys.readouterr().out.split())
    monkeypatch.setattr(comparison, "run_once", real)
    with (tmp_path / "cut" / "runs.jsonl").open("a") as file:
        file.write('{"strategy": "torn')
    assert command("cut", "--strategies", "random", "--runs", "2") == 0
    assert command("cut", "--strategies", "random,aging-evolution", "--runs", "4") == 0
    assert "runs of 8 are there already" in capsys.readouterr().out
    assert lines(tmp_path / "cut") == lines(tmp_path / "whole")


def test_processes_change_nothing(command, tmp_path):
    assert command("one", "--strategies", "random,genetic", "--runs", "3") == 0
    assert command("two", "--strategies", "random,genetic", "--runs", "3", "--processes", "2") == 0
    assert lines(tmp_path / "two") == lines(tmp_path / "one")


def test_only_runs_that_can_be_compared_are_joined(command, capsys):
    assert command("run", "--strategies", "random", "--runs", "1") == 0
    assert command("run", "--strategies", "random", "--runs", "1", "--space", "darts") == 2
    assert "had space='egnas', not 'darts'" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--strategies darts --runs 1", "darts moves α of a supernet"),
        ("--strategies randm --runs 1", "did you mean 'random'"),
        ("--strategies random --runs 0", "runs is 0"),
        ("--strategies , --runs 1", "no strategy"),
        ("--strategies random --runs 1 --budget 1", "a budget of 1 seconds does not suffice"),
        ("--strategies random --runs 1 --evaluator table.csv", "unknown evaluator 'table.csv'"),
        ("--strategies random --runs 1 --evaluator nb201:nowhere.csv", "cannot read the table"),
    ],
)
def test_what_cannot_be_compared_is_explained(command, capsys, flags, message):
    assert command("run", *shlex.split(flags)) == 2
    assert message in " ".join(capsys.readouterr().err.split())


def test_options_of_strategies_stand_in_the_list():
    names = comparison.split_names("random, reinforce:controller=independent,reward_power=2,enas,random")
    assert names == ["random", "reinforce:controller=independent,reward_power=2", "enas"]


def test_short_training_is_an_evaluator_of_comparisons(tmp_path, monkeypatch):
    @contextmanager
    def one_second():
        yield Stopwatch(1.0)

    monkeypatch.setattr("fastnas.evaluators.training.stopwatch", one_second)
    flags = (
        "--evaluator training:digits --limit 60 --batch-size 10 --channels 4 --layers 3 --runs 1 --budget 2 "
        f"--strategies nsga2:population=2,random --processes 1 --out {tmp_path / 'run'}"
    )
    assert compare.main(shlex.split(flags)) == 0
    results = read_results(tmp_path / "run")
    assert {result.strategy for result in results} == {"nsga2:population=2", "random"}
    assert all((result.judged, result.seconds, result.evaluations) == (None, 2.0, 2) for result in results)
    path = tmp_path / "run" / "comparison.json"
    options = json.loads(path.read_text())
    assert options.pop("device") == "cpu"
    path.write_text(json.dumps(options))  # as comparisons wrote it that knew no device
    assert compare.main([*shlex.split(flags), "--device", "cpu", "--threads", "1"]) == 0
    assert compare.main([*shlex.split(flags), "--device", "cuda:99"]) == 2


@pytest.mark.parametrize(("flags", "threads"), [([], 1), (["--threads", "2"], 2)])
def test_processes_take_the_threads_that_they_are_given(command, monkeypatch, flags, threads):
    seen = []
    monkeypatch.setattr(torch, "set_num_threads", seen.append)
    assert command("run", "--strategies", "random", "--runs", "1", "--processes", "1", *flags) == 0
    assert seen == [threads]


def result(strategy: str, seed: int, scores: list[float]) -> Result:
    curve = [(10.0 * (i + 1), score, None) for i, score in enumerate(scores)]
    return Result(strategy, seed, len(scores), 10.0 * len(scores), scores[-1], None, {}, curve)


def test_means_deviations_and_curves_are_those_of_the_runs(tmp_path):
    results = [result("a", 0, [0.5, 0.6]), result("a", 1, [0.4, 0.8]), result("b", 0, [0.9])]
    first, second = summarise(results)
    assert (first.strategy, second.strategy) == ("b", "a")
    assert (second.runs, second.mean, second.std) == (2, pytest.approx(70), pytest.approx(10))
    assert (second.worst, second.best) == (pytest.approx(60), pytest.approx(80))
    curve = results[0].score_at(np.array([0.0, 9.9, 10.0, 19.9, 20.0, 99.0]))
    np.testing.assert_array_equal(curve, [np.nan, np.nan, 0.5, 0.5, 0.6, 0.6])
    (tmp_path / "runs.jsonl").write_text("".join(json.dumps(vars(r)) + "\n" for r in results))
    (tmp_path / "comparison.json").write_text(json.dumps({"clock": "simulated", "evaluator": "x:<y>", "budget": 30}))
    page = write_comparison(tmp_path).read_text()
    assert page == write_comparison(tmp_path).read_text()
    assert "70.00 ± 10.00" in page
    assert "x:&lt;y&gt;" in page
    assert "<y>" not in page


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def refused(command, directory: Path, capsys) -> str:
    before = contents(directory)
    capsys.readouterr()
    assert command(directory.name, "--strategies", "random", "--runs", "3") == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert len(error) < 600
    assert contents(directory) == before
    return error


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (None, "holds runs.jsonl but no comparison.json, which says what evaluator and budget the runs had"),
        (b"", "comparison.json is not JSON"),
        (b"{", "comparison.json is not JSON"),
        (b"\xff\xfe\x00", "comparison.json: it is not UTF-8 text (byte 1)"),
        (b"[" * 100_000, "comparison.json is nested too deeply"),
        (b"[1]", "comparison.json holds no options of a comparison"),
        (b'{"mine": 1}', "comparison.json holds no options of a comparison"),
        (b'{"clock": 3, "evaluator": 3, "budget": null}', "comparison.json holds no options of a comparison"),
    ],
)
def test_options_that_are_lost_or_damaged_mix_no_budgets(command, tmp_path, capsys, options, message):
    assert command("run", "--strategies", "random", "--runs", "2") == 0
    (tmp_path / "run" / "comparison.json").unlink()
    if options is not None:
        (tmp_path / "run" / "comparison.json").write_bytes(options)
    assert message in refused(command, tmp_path / "run", capsys)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda line: b"{}", "line 1 is damaged (it is not that of a run)"),
        (lambda line: b"\xff", "it is not UTF-8 text (byte 1)"),
        (lambda line: b"[" * 100_000, "it is not that of a run"),
        (lambda line: line.replace(b'"seed"', b'"sead"'), "it is not that of a run"),
        (lambda line: line.replace(b'"seconds": ', b'"seconds": "x", "": '), "it is not that of a run"),
        (lambda line: re.sub(rb'"accuracy": [\d.]+', b'"accuracy": NaN', line), "finite"),
        (lambda line: line.replace(b'"seed": 0', b'"seed": "0"'), "seed is a str"),
        (lambda line: line.replace(b'"curve": [[', b'"curve": [[{}, '), "curve holds something else than points"),
    ],
)
def test_runs_that_are_damaged_are_named_by_their_line(command, tmp_path, capsys, change, message):
    assert command("run", "--strategies", "random", "--runs", "2") == 0
    path = tmp_path / "run" / "runs.jsonl"
    first, second = path.read_bytes().splitlines()
    path.write_bytes(change(first) + b"\n" + second + b"\n")
    error = refused(command, tmp_path / "run", capsys)
    assert "runs.jsonl" in error
    assert message in error


@pytest.mark.parametrize("name", ["report.html", "runs.jsonl", "comparison.json", "checkpoint.pt", "config.yaml"])
def test_files_of_somebody_else_stay(command, tmp_path, capsys, name):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / name).write_text('{"mine": 1}\n')
    assert name in refused(command, tmp_path / "run", capsys)


def test_a_full_disk_keeps_whole_runs(command, tmp_path, monkeypatch, capsys):
    assert command("whole", "--strategies", "random", "--runs", "3") == 0
    real, calls = os.fsync, 0

    def full(descriptor):
        nonlocal calls
        calls += 1
        if calls > 3:
            raise OSError(28, "No space left on device")
        real(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        assert command("full", "--strategies", "random", "--runs", "3") == 2
    assert "cannot write the runs" in capsys.readouterr().err
    kept = lines(tmp_path / "full")
    assert kept == lines(tmp_path / "whole")[: len(kept)]
    assert command("full", "--strategies", "random", "--runs", "3") == 0
    assert lines(tmp_path / "full") == lines(tmp_path / "whole")


def page_of(folder: Path, results: list[Result], **options: object) -> str:
    folder.mkdir(exist_ok=True)
    (folder / "runs.jsonl").write_text("".join(json.dumps(vars(r)) + "\n" for r in results))
    (folder / "comparison.json").write_text(
        json.dumps({"clock": "real", "evaluator": "python:m:f", "budget": 30} | options)
    )
    return write_comparison(folder).read_text()


def test_the_page_names_the_best_architectures_and_repeats_by_its_command(tmp_path):
    results = [replace(result("a", 3, [0.5]), genotype={"n": 1}), replace(result("a", 4, [0.7]), genotype={"n": 2})]
    results += [replace(result("b:x=1,y=2", 3, [0.9]), genotype={"n": 3})]
    page = page_of(tmp_path / "my runs", results, space="egnas", limit=None)
    assert re.findall(r"<summary>(.*?): .*?<code>(.*?)</code>", page) == [
        ("b:x=1,y=2", "{&quot;n&quot;: 3}"), ("a", "{&quot;n&quot;: 2}"),
    ]  # fmt: skip
    command = re.search(r"<code>(python -m fastnas.compare .*?)</code>", page)
    assert command is not None
    words = shlex.split(unescape(command[1]))[3:]
    options = tyro.cli(CompareOptions, args=words)
    assert (options.strategies, options.evaluator, options.space) == ("a,b:x=1,y=2", "python:m:f", "egnas")
    assert (options.budget, options.runs, options.seed, options.out) == (30, 2, 3, tmp_path / "my runs")
    assert "<h1>Comparison of b:x=1,y=2 and a on f</h1>" in page


def test_columns_differ_and_clocks_have_their_names(tmp_path):
    judged = replace(result("a", 0, [0.5]), judged=0.25, curve=[(10.0, 0.5, 0.25)])
    for results, columns in (([result("a", 0, [0.5])], 5), ([judged], 6)):
        titles = re.findall(r'<th scope="col"[^>]*>(.*?)</th>', page_of(tmp_path, results))
        assert len(set(titles)) == len(titles) == columns
    page = page_of(tmp_path, [result("a", 0, [0.5])])
    assert "seconds that the evaluator reports" in page
    assert "real seconds" not in page
    assert "real seconds" in page_of(tmp_path, [result("a", 0, [0.5])], evaluator="training:digits")
    assert "simulated seconds" in page_of(tmp_path, [result("a", 0, [0.5])], evaluator="nb201:x", clock="simulated")


def test_directories_without_runs_are_explained(tmp_path):
    with pytest.raises(UserError, match="holds no finished run"):
        write_comparison(tmp_path)
    (tmp_path / "runs.jsonl").write_text('{"torn\n{"strategy"')
    with pytest.raises(UserError, match="line 1 is damaged"):
        read_results(tmp_path)


def test_the_table_is_aligned():
    console = Console(width=200, record=True)
    compare.print_table(summarise([result("a", 0, [0.5]), result("a-long-name:x=1", 0, [0.25])]), console)
    table = console.export_text().splitlines()
    assert len({len(line.rstrip()) for line in table}) == 1
