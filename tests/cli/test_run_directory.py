"""What a run finds in its directory, and what it finds again when it goes on somewhere else."""

from __future__ import annotations

import errno
import json
import os
import random
import shlex
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from fastnas import Genotype, search, train
from fastnas.cli.run_directory import locked_directory, new_directory, run_directory
from fastnas.engine.checkpoint import load_checkpoint
from fastnas.errors import UserError

SEARCH = shlex.split(
    "--channels 4 --layers 3 --epochs 3 --batch-size 8 --partial-channels 1 --strategy random --evaluations 4 "
    "--fitness-batch-size 8 --test none"
)
TRAIN = shlex.split(
    "--channels 2 --layers 3 --epochs 3 --batch-size 8 --cutout 0 --auxiliary False --test none "
    "--genotype genotype-of-mine.json"
)
COMMON = ["--data", "folder:images", "--stop-after", "1", "--device", "cpu"]
COMMANDS = {
    "search": (search.main, [*SEARCH, *COMMON]),
    "train": (train.main, [*TRAIN, *COMMON]),
}
every_command = pytest.mark.parametrize("command", COMMANDS)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder: images, and a genotype."""
    folder = tmp_path / "project"
    for label, name in enumerate(("ant", "bee")):
        (folder / "images" / name).mkdir(parents=True)
        for number in range(12):
            pixels = np.random.default_rng(100 * label + number).integers(0, 256, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / "images" / name / f"{number:02}.png")
    Genotype.published("DARTS_V2").to_json(folder / "genotype-of-mine.json")
    monkeypatch.chdir(folder)
    return folder


def run(command: str, *flags: str) -> int:
    main, begin = COMMANDS[command]
    return main([*([] if "--resume" in flags else begin), *flags])


def resume(command: str, out: str | Path, *flags: str) -> int:
    return run(command, "--resume", str(out), "--stop-after", "1", *flags)


def contents(directory: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def error(capsys: Any) -> str:
    text = capsys.readouterr().err
    assert text.startswith("error: ")
    assert text.count("\n") == 1
    return text


# --- files of somebody else ---


@every_command
@pytest.mark.parametrize("name", ["config.yaml", "genotype.json", "metrics.jsonl", "report.html", "network.json"])
def test_files_of_somebody_else_stay(command: str, name: str, project: Path, capsys: Any) -> None:
    (project / "out").mkdir()
    (project / "out" / name).write_text('{"mine": 1}\n')
    assert run(command, "--out", "out") == 2
    assert f"out holds {name}, which no run of fastnas has written" in error(capsys)
    assert contents(project / "out") == {str(project / "out" / name): b'{"mine": 1}\n'}


@every_command
def test_a_folder_with_other_things_in_it_is_fine(command: str, project: Path) -> None:
    (project / "out").mkdir()
    (project / "out" / "notes.txt").write_text("mine")
    (project / "out" / "metrics.jsonl").touch()
    assert run(command, "--out", "out") == 0
    assert (project / "out" / "notes.txt").read_text() == "mine"


@every_command
def test_a_run_that_ended_before_its_first_checkpoint_is_begun_anew(command: str, project: Path) -> None:
    assert run(command, "--out", "out") == 0
    (project / "out" / "checkpoint.pt").unlink()
    assert (project / "out" / "report.html").exists()
    with run_directory(None, "out", "x", None):  # and ends again, before it has written anything
        assert [path.name for path in (project / "out").iterdir()] == [".fastnas.lock"]
    assert run(command, "--out", "out") == 0


def test_what_a_killed_process_was_writing_is_removed(project: Path) -> None:
    assert run("search", "--out", "out") == 0
    (project / "out" / ".genotype-abcd1234").mkdir()
    (project / "out" / ".genotype-abcd1234" / "genotype.json").write_text("{")
    (project / "out" / ".fastnas-1-2-0.partial").write_text("half")
    (project / "out" / ".genotype-mine").mkdir()
    assert resume("search", "out") == 0
    assert {path.name for path in (project / "out").glob(".*")} == {".genotype-mine"}


def test_what_cannot_work_leaves_nothing(project: Path) -> None:
    def fail() -> None:
        with run_directory(None, "a/b/c", "x", None):
            assert Path("a/b/c/.fastnas.lock").exists()
            raise UserError("enough")

    with pytest.raises(UserError, match="enough"):
        fail()
    assert not Path("a").exists()
    with locked_directory(Path("d")):
        Path("d", "kept").touch()
    assert [path.name for path in Path("d").iterdir()] == ["kept"]


def test_runs_that_begin_in_one_second_have_two_directories(project: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda _: new_directory(None, "egnas", "digits")[0], range(32)))
    assert len(set(made)) == 32
    assert all(path.is_dir() for path in made)


@pytest.mark.parametrize("out", ["file", "file/below", "/proc/nowhere"])
def test_directories_that_cannot_be_made_get_one_line(out: str, project: Path, capsys: Any) -> None:
    (project / "file").write_text("mine")
    assert run("search", "--out", out) == 2
    assert f"cannot create the run directory {out}" in error(capsys)
    assert (project / "file").read_text() == "mine"


@pytest.mark.parametrize("name", ["metrics.jsonl", ".fastnas.lock", "report.html"])
def test_pipes_in_a_run_directory_are_not_waited_for(name: str, project: Path) -> None:
    (project / "out").mkdir()
    os.mkfifo(project / "out" / name)
    for resumed, out in ((None, "out"), (project / "out", None)):
        with (
            pytest.raises(UserError, match=f"out holds {name}, a pipe or a device: remove it"),
            run_directory(resumed, out, "x", "y"),
        ):
            pass
    assert os.listdir(project / "out") == [name]


def test_a_name_with_a_zero_byte_is_no_directory() -> None:
    with pytest.raises(UserError, match=r"cannot create the run directory a\\x00b: embedded null byte; give another"):
        new_directory("a\0b", "x", "y")


def test_home_is_known(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(project))
    assert run("search", "--out", "~/out") == 0
    assert resume("search", "~/out") == 0
    assert not Path("~").exists()


# --- the records ---


@every_command
@pytest.mark.parametrize("left", [0.0, 0.6])
def test_records_that_are_lost_are_named_and_the_run_goes_on(
    command: str, left: float, project: Path, capsys: Any
) -> None:
    assert run(command, "--out", "out") == 0
    path = project / "out" / "metrics.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole[: int(left * len(whole))]) if left else path.unlink()
    assert run(command, "--resume", "out") == 0
    assert "metrics.jsonl lacks" in capsys.readouterr().out
    events = [json.loads(line) for line in path.read_text().splitlines()]
    assert [event["epoch"] for event in events if event["event"] == "epoch"] == [1, 2]
    assert events[-1]["event"] == "end"
    assert "metrics.jsonl lacks the records of epoch 1" in (project / "out" / "report.html").read_text()


def test_a_full_disk_leaves_no_half_record(project: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    assert run("search", "--out", "out") == 0
    before = (project / "out" / "checkpoint.pt").read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        assert resume("search", "out") == 2
    assert "No space left on device; make room and repeat the command" in error(capsys)
    assert (project / "out" / "checkpoint.pt").read_bytes() == before
    assert resume("search", "out") == 0


# --- the genotype ---


@pytest.mark.parametrize("later", ["other wires", "other operations", "gone"])
@pytest.mark.parametrize("seeds", ["1", "1,2"])
def test_a_training_goes_on_with_its_own_genotype(later: str, seeds: str, project: Path) -> None:
    own = Genotype.published("DARTS_V2")
    assert run("train", "--seeds", seeds, "--out", "out") == 0
    if later == "gone":
        Path("genotype-of-mine.json").unlink()
    elif later == "other wires":
        wires = own.to_dict()
        wires["normal"][7][1] = 3 if wires["normal"][7][1] != 3 else 1
        Genotype.from_dict(wires).to_json("genotype-of-mine.json")
    else:
        Genotype.published("DARTS_V1").to_json("genotype-of-mine.json")
    assert run("train", "--resume", "out") == 0
    for path in (project / "out").rglob("network.json"):
        assert Genotype.from_dict(json.loads(path.read_text())["genotype"]) == own
        assert Genotype.from_json(path.with_name("genotype.json")) == own
    assert len(list((project / "out").rglob("network.json"))) == len(seeds.split(","))


def test_a_genotype_that_was_changed_in_the_run_is_refused(project: Path, capsys: Any) -> None:
    assert run("train", "--out", "out") == 0
    Genotype.published("DARTS_V1").to_json("out/genotype.json")
    before = contents(project / "out")
    assert resume("train", "out") == 2
    assert "out/genotype.json is not the one that the run began with" in error(capsys)
    assert contents(project / "out") == before
    Path("out/genotype.json").unlink()
    assert resume("train", "out") == 0
    assert Genotype.from_json("out/genotype.json") == Genotype.published("DARTS_V2")


# --- the images ---


def exchange(folder: Path) -> None:
    """Two images of one class change places: count, classes and sizes stay."""
    first, second = sorted(folder.glob("images/ant/*"), key=lambda path: path.stat().st_size)[::11]
    first.rename(folder / "images/third")
    second.rename(first)
    (folder / "images/third").rename(second)


CHANGES: dict[str, Callable[[Path], Any]] = {
    "renamed": lambda folder: (folder / "images/ant/03.png").rename(folder / "images/ant/99.png"),
    "exchanged": exchange,
    "relabelled": lambda folder: (
        (folder / "images/ant/03.png").rename(folder / "images/bee/99.png"),
        (folder / "images/bee/03.png").rename(folder / "images/ant/99.png"),
    ),
}


@every_command
@pytest.mark.parametrize("change", CHANGES)
def test_other_images_are_noticed(command: str, change: str, project: Path, capsys: Any) -> None:
    assert run(command, "--out", "out") == 0
    CHANGES[change](project)
    before = contents(project / "out")
    assert resume(command, "out") == 2
    assert "images have been renamed, exchanged, added or removed" in error(capsys)
    assert contents(project / "out") == before


@pytest.mark.parametrize(("how", "status"), [("sizes", 0), ("bytes", 2)])
def test_bytes_are_compared_on_request(how: str, status: int, project: Path, seed: int) -> None:
    """An image of the same name, size and end with another pixel."""
    for path in project.glob("images/*/*"):
        Image.open(path).resize((32, 32)).save(path.with_suffix(".bmp"))
        path.unlink()
    assert run("search", "--out", "out", "--check-images", how) == 0
    path = random.Random(seed).choice(sorted(project.glob("images/*/*")))
    content = bytearray(path.read_bytes())
    content[-1500] ^= 1
    path.write_bytes(content)
    assert resume("search", "out") == status


def test_test_images_are_compared_as_well(project: Path, capsys: Any) -> None:
    shutil.copytree(project / "images", project / "split" / "train")
    shutil.copytree(project / "images", project / "split" / "test")
    flags = ["--data", "folder:split", "--test", "same"]
    assert run("train", *flags, "--out", "out") == 0
    (project / "split/test/ant/03.png").rename(project / "split/test/ant/99.png")
    assert resume("train", "out") == 2
    assert "test images have been renamed" in error(capsys)


@every_command
def test_from_another_working_directory(
    command: str, project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(command, "--out", "out") == 0
    monkeypatch.chdir(tmp_path)
    assert resume(command, "project/out") == 0
    assert resume(command, project / "out") == 0


@every_command
def test_images_that_moved(command: str, project: Path, tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    assert run(command, "--out", "out") == 0
    shutil.move("images", tmp_path / "elsewhere")
    assert resume(command, "out") == 2
    assert "images" in error(capsys)
    assert resume(command, "out", "--data", f"folder:{tmp_path}/elsewhere") == 0
    assert yaml.safe_load(Path("out/config.yaml").read_text())["data"]["data"] == f"folder:{tmp_path}/elsewhere"
    monkeypatch.chdir(tmp_path)
    assert resume(command, project / "out") == 0  # it has learned the place


@every_command
def test_a_run_that_moved_together_with_its_images(
    command: str, project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(command, "--out", "runs/out") == 0
    for name in ("second", "third"):
        monkeypatch.chdir(tmp_path)
        project = project.rename(tmp_path / name)
        assert resume(command, project / "runs" / "out") == 0
    assert load_checkpoint(project / "runs/out/checkpoint.pt")["clock"]["epoch"] == 3


@every_command
def test_images_of_another_kind_are_other_options(command: str, project: Path, capsys: Any) -> None:
    assert run(command, "--out", "out") == 0
    assert resume(command, "out", "--data", "digits") == 2
    assert "data.data is 'digits' but was 'folder:" in error(capsys)


def test_a_seed_that_is_done_is_tidied_up_when_the_run_goes_on(project: Path) -> None:
    """Its process was killed after the last record, before the report."""
    assert run("train", "--seeds", "1,2", "--out", "out", "--epochs", "1", "--stop-after", "5") == 0
    done = project / "out" / "seed-1"
    before = (done / "metrics.jsonl").read_bytes()
    (done / "report.html").unlink()
    (done / ".fastnas.lock").write_text(json.dumps({"host": "x"}))
    assert run("train", "--resume", "out") == 0
    assert (done / "report.html").exists()
    assert not (done / ".fastnas.lock").exists()
    assert (done / "metrics.jsonl").read_bytes() == before
