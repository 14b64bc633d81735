"""The page: complete, self-contained, escaped, and there for every state of a run."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import matplotlib as mpl
import pytest
from report_page_reader import Page, report
from report_synthetic_run import run_events, start_event, write_run

from fastnas.errors import UserError
from fastnas.report import write_report
from fastnas.report.__main__ import main

SECTIONS = ["result", "cells", "curves", "weights", "population", "time", "settings", "repeat", "genotype"]
EVIL = '"><script>alert(1)</script><img src=x onerror=alert(2)>&amp;'


@pytest.fixture(scope="module")
def complete(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("runs") / "digits-egnas"
    events, genotype = run_events(directory)
    return write_run(directory, events, genotype)


@pytest.fixture(scope="module")
def page(complete: Path) -> Page:
    return report(complete)


def test_complete_run_has_every_section_with_its_numbers(page: Page, complete: Path) -> None:
    events = [json.loads(line) for line in (complete / "metrics.jsonl").read_text().splitlines()]
    last = [event for event in events if event["event"] == "epoch"][-1]
    assert re.findall(r'<section id="(\w+)">', page.text) == SECTIONS
    assert 'class="missing"' not in page.text
    assert 'class="problems"' not in page.text
    assert page.tiles() == {
        "Data": "digits 1,437 images, 10 classes",
        "Strategy": "egnas seed 2",
        "Supernet accuracy": f"{100 * last['valid_accuracy']:.2f} % validation half, 719 images, at the end",
        "Epochs": "50 / 50 done / planned",
        "Time": "11 min 40 s 14.0 s an epoch",
        "Peak memory": "812 MiB cpu",
        "Supernet": "299,578 parameters, space egnas, 4 nodes",
    }
    assert "Search finished" in page.text
    assert "started 2026-01-31 12:00 UTC" in page.text
    curves = page.section("curves")
    for title in (
        "Loss",
        "Accuracy",
        "Entropy of the operation weights",
        "Skip connections",
        "Step size",
        "Learning rate",
    ):
        assert title in curves
    assert f"training {last['train_loss']:.3f}" in curves
    assert "ln 7 = 1.946" in curves
    assert "sep_conv_5x5" in page.section("weights")
    assert "median" in page.section("population")
    assert "waiting for data" in page.section("time")
    settings = page.section("settings")
    for text in (
        "weights.epochs 50",
        "strategy.step_size 0.1",
        "run.out null",
        "torch 2.14.1+cu130",
        "16 × 16",
        "10: 0, 1, 2",
    ):
        assert text in settings


def test_every_drawing_is_well_formed(page: Page) -> None:
    drawings = list(page.svgs())
    assert len(drawings) == 2 + 6 + 4 + 2 + 1
    ids = [element.get("id") for svg in drawings for element in svg.iter() if element.get("id")]
    assert len(ids) == len(set(ids)), "two elements of the page share an id"
    names = set(re.findall(r"--([\w-]+):", page.text))
    used = set(re.findall(r"var\(--([\w-]+)\)", page.text))
    assert used <= names


def test_page_is_self_contained(page: Page) -> None:
    for tag, attributes in page.tags:
        assert tag not in ("link", "img", "iframe", "object", "embed", "base", "image")
        for name in ("src", "href", "xlink:href", "srcset", "data", "action", "poster"):
            assert attributes.get(name, "#").startswith("#"), (tag, attributes)  # type: ignore[union-attr]
    assert not re.search(r"@import|url\((?!#)", page.text)
    assert not re.search(r"\b(fetch|XMLHttpRequest|import)\s*\(", page.text)
    without_namespaces = page.text.replace('xmlns="http://www.w3.org/2000/svg"', "")
    without_namespaces = without_namespaces.replace('xmlns:xlink="http://www.w3.org/1999/xlink"', "")
    assert not re.search(r"https?://", without_namespaces)


def test_page_is_small(page: Page) -> None:
    assert len(page.text.encode()) < 1_000_000


def test_links_lead_to_sections(page: Page) -> None:
    links = [attributes["href"] for tag, attributes in page.tags if tag == "a"]
    assert links == [f"#{key}" for key in SECTIONS]


def test_equal_files_give_an_equal_page_whatever_the_plot_style(tmp_path: Path) -> None:
    directory = write_run(tmp_path, *run_events(tmp_path, epochs=4, warm_up=1, samples=1, population=5))
    text = report(directory).text
    assert report(directory).text == text
    with mpl.rc_context({"axes.grid": True, "lines.linestyle": ":", "font.size": 30, "axes.xmargin": 0.4}):
        assert report(directory).text == text


def test_writing_leaves_nothing_but_the_page(complete: Path, page: Page) -> None:
    files = sorted(path.name for path in complete.iterdir())
    assert files == ["config.yaml", "genotype.json", "metrics.jsonl", "report.html"]


def test_an_empty_directory_says_what_is_missing(tmp_path: Path) -> None:
    page = report(tmp_path)
    assert re.findall(r'<section id="(\w+)">', page.text) == ["cells", "curves", "settings", "repeat"]
    for name in ("config.yaml", "metrics.jsonl", "genotype.json"):
        assert f"<li>{name} is missing" in page.text
    assert "Search not started" in page.text
    assert page.tiles()["Supernet accuracy"] == "– not measured yet"
    assert list(page.svgs()) == []


def test_a_run_before_its_first_epoch(tmp_path: Path) -> None:
    page = report(write_run(tmp_path, [start_event(tmp_path)], None))
    assert "Search unfinished" in page.text
    assert page.tiles()["Epochs"] == "0 / 50 done / planned"
    assert "No epoch has ended yet." in page.section("curves")
    assert "There is no genotype yet" in page.section("cells")
    assert not {"population", "weights", "time", "genotype"} & set(re.findall(r'<section id="(\w+)">', page.text))
    assert "python -m fastnas.search --data digits" in page.section("repeat")
    assert "genotype.json is not there yet" in page.section("repeat")


def test_a_run_before_its_first_evolution_step(tmp_path: Path) -> None:
    events, genotype = run_events(tmp_path, epochs=3, warm_up=15)
    page = report(write_run(tmp_path, events[:-1], genotype))
    assert "Search unfinished" in page.text
    assert page.tiles()["Epochs"] == "3 / 50 done / planned"
    assert 'id="population"' not in page.text
    assert "From genotype.json, not final." in page.section("cells")
    assert page.tiles()["Supernet accuracy"].endswith("after epoch 3")


def test_an_interrupted_and_resumed_run(tmp_path: Path) -> None:
    events, _ = run_events(tmp_path, epochs=4, warm_up=1, samples=1, population=4)
    interrupted = [*events[:-1], {"event": "interrupted", "epochs_done": 4, "reason": "SIGINT"}]
    page = report(write_run(tmp_path, interrupted, None))
    assert "Search interrupted by SIGINT" in page.text
    assert "From the record of epoch 4, not final." in page.section("cells")
    assert "genotype.json is not there yet" in page.section("repeat")
    again = start_event(tmp_path, resumed=True, argv=["python", "-m", "fastnas.search", "--resume", "x"])
    page = report(write_run(tmp_path, [*interrupted, again], None))
    assert "Search unfinished" in page.text
    assert "resumed once" in page.text
    assert "--resume" not in page.section("repeat")  # the first command repeats the run


def test_a_folder_of_images_goes_by_its_name(tmp_path: Path) -> None:
    event = start_event(tmp_path)
    event["data"]["spec"] = "folder:/some/where/flowers"
    page = report(write_run(tmp_path, [event], None))
    assert "<h1>Search with egnas on flowers, 50 epochs</h1>" in page.text
    assert "folder:/some/where/flowers" in page.section("settings")


def test_a_torn_last_line(tmp_path: Path) -> None:
    events, genotype = run_events(tmp_path, epochs=3, warm_up=1, samples=1, population=4)
    write_run(tmp_path, events, genotype)
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(path.read_bytes()[:-30])
    page = report(tmp_path)
    assert "Search unfinished" in page.text
    assert 'class="problems"' not in page.text


def test_another_strategy_with_fewer_records(tmp_path: Path) -> None:
    events: list[dict[str, Any]] = [
        start_event(tmp_path),
        {"event": "epoch", "epoch": 0, "train_loss": 2.0},
        {"event": "end"},
    ]
    page = report(write_run(tmp_path, events, None, {"strategy": {"name": "random"}}))
    assert page.tiles()["Strategy"] == "random"
    assert page.tiles()["Epochs"] == "1 done"
    assert len(list(page.svgs())) == 1


def test_everything_from_files_is_escaped(tmp_path: Path) -> None:
    directory = tmp_path / "run<b>&'\""
    events, genotype = run_events(directory, epochs=2, warm_up=0, samples=1, population=3)
    names = [f"{EVIL}{i}" for i in range(7)]
    events[0] = start_event(
        directory,
        argv=["python", EVIL],
        started=EVIL,
        environment={EVIL: EVIL, "device": EVIL},
        network={"parameters": 1, "candidates": names, "nodes": EVIL, "space": EVIL},
        data={
            "spec": f"folder:{EVIL}",
            "images": 2,
            "classes": [EVIL, "</script>"],
            "image_size": [EVIL],
            "channels": 1,
        },
    )
    for event in events:
        if event["event"] == "epoch":
            for key in ("op_weights", "alpha_entropy", "skip_count"):
                event[key] = {EVIL: next(iter(event[key].values()))}
            event["seconds"] = {EVIL: 1.0}
    events[-1] = {"event": "interrupted", "reason": EVIL}
    config = {"strategy": {"name": EVIL}, EVIL: {EVIL: [EVIL]}}
    page = report(write_run(directory, events, genotype, config))
    assert [tag for tag, _ in page.tags].count("script") == 1
    assert not {"img", "b"} & {tag for tag, _ in page.tags}
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)
    assert page.text.count("&lt;script&gt;alert(1)&lt;/script&gt;") > 20
    for svg in page.svgs():
        assert not any(element.tag.endswith(("script", "img")) for element in svg.iter())
    joined = "".join(page.words)
    assert joined.count(EVIL) > 20, "escaped texts must read as they were"


def test_long_runs_stay_small(tmp_path: Path) -> None:
    events, genotype = run_events(tmp_path, epochs=300, warm_up=50, samples=1, population=10)
    assert len(report(write_run(tmp_path, events, genotype)).text.encode()) < 2_000_000


def test_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path)]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "report.html")
    assert main([str(tmp_path / "nowhere")]) == 2
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1
    assert "nowhere" in captured.err


def test_python_dash_m(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "fastnas.report", str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert Path(done.stdout.strip()).is_file()
    assert done.stderr == ""


def test_a_page_that_cannot_be_replaced_is_a_user_error(tmp_path: Path) -> None:
    (tmp_path / "report.html" / "inside").mkdir(parents=True)
    with pytest.raises(UserError, match=r"cannot write .*report\.html"):
        write_report(tmp_path)
