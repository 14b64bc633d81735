"""Checkpoints that are damaged, older, foreign, or made for another run."""

from __future__ import annotations

import argparse
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from run_files import SMALL

from fastnas import search, train
from fastnas.engine.checkpoint import load_checkpoint, save_checkpoint
from fastnas.engine.trained import load_trained
from fastnas.errors import UserError

TRAIN = [
    *("--data", "digits", "--limit", "60", "--image-size", "8", "--genotype", "DARTS_V2", "--channels", "2"),
    *("--layers", "3", "--batch-size", "16", "--epochs", "3", "--cutout", "0", "--device", "cpu", "--stop-after", "1"),
]


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """A search and a training that were stopped after one epoch: all their files, by command and path."""
    files = {}
    for name, main, flags in (("search", search.main, [*SMALL, "--stop-after", "1"]), ("train", train.main, TRAIN)):
        out = tmp_path_factory.mktemp("begun") / name
        assert main([*flags, "--out", str(out)]) == 0
        files |= {f"{name}/{path.relative_to(out)}": path.read_bytes() for path in out.rglob("*") if path.is_file()}
    return files


@pytest.fixture
def runs(begun: dict[str, bytes], tmp_path: Path) -> Path:
    """The folder with a copy of both."""
    for name, content in begun.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    return tmp_path


def contents(directory: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def refused(main: Callable[[list[str]], int], directory: Path, capsys: Any) -> str:
    """The one line with which a resume ends, which has changed nothing."""
    before = contents(directory)
    capsys.readouterr()
    assert main(["--resume", str(directory)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert len(error) < 700
    assert contents(directory) == before
    return error


def test_any_bit_that_flips_is_noticed(runs: Path, seed: int) -> None:
    path = runs / "search" / "checkpoint.pt"
    whole, draw = path.read_bytes(), random.Random(seed)
    places = [draw.randrange(len(whole)) for _ in range(100)] + [len(whole) - 1 - back for back in range(100)]
    for place in places:
        damaged = bytearray(whole)
        damaged[place] ^= 1 << draw.randrange(8)
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=r"checkpoint\.pt is not a checkpoint of fastnas"):
            load_checkpoint(path)
    path.write_bytes(whole + b"\0")
    with pytest.raises(UserError, match="is not a checkpoint"):
        load_checkpoint(path)


def test_torch_reads_it_as_well(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "checkpoint.pt", {"x": torch.arange(3)})
    assert torch.equal(torch.load(tmp_path / "checkpoint.pt", weights_only=True)["x"], torch.arange(3))


def older(path: Path) -> dict[str, Any]:
    """A state as versions before the digest wrote it."""
    state = torch.load(path, weights_only=True)
    del state["images"]["digest"]
    state.pop("genotype", None)
    state["images"].pop("test_digest", None)
    del state["options"]["data"]["check_images"]
    return state


@pytest.mark.parametrize(("name", "main"), [("search", search.main), ("train", train.main)])
def test_older_checkpoints_go_on(runs: Path, name: str, main: Callable[[list[str]], int]) -> None:
    path = runs / name / "checkpoint.pt"
    torch.save(older(path), path)
    if name == "train":
        assert load_trained(runs / name).options["channels"] == 2
    assert main(["--resume", str(runs / name)]) == 0
    assert "digest" in load_checkpoint(path)["images"]


@pytest.mark.parametrize("missing", [False, True])
@pytest.mark.parametrize(("name", "main"), [("search", search.main), ("train", train.main)])
def test_keys_that_are_missing_or_of_another_type_change_nothing(
    runs: Path, capsys: Any, name: str, main: Callable[[list[str]], int], missing: bool
) -> None:
    path = runs / name / "checkpoint.pt"
    whole = load_checkpoint(path)
    nested = {"images": "count", "clock": "epoch", "meter": "loss", "options": "data", "random": "numpy"}
    keys = [(key,) for key in whole if key not in ("format", "genotype", "about")] + list(nested.items())
    for key in keys:
        state = {**whole, key[0]: dict(whole[key[0]]) if len(key) > 1 else whole[key[0]]}
        inner = state if len(key) == 1 else state[key[0]]
        if missing:
            del inner[key[-1]]
        else:
            inner[key[-1]] = "something else"
        save_checkpoint(path, state)
        assert key[-1] in refused(main, runs / name, capsys)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state["clock"].update(epoch=-1), "a count below 0"),
        (lambda state: state.update(log_position=-1), "a count below 0"),
        (lambda state: state["network"].popitem(), "Missing key"),
        (lambda state: state["network"].update(extra=torch.zeros(1)), "Unexpected key"),
        (lambda state: state["optimizer"]["state"][0].update(momentum_buffer=torch.zeros(3)), "momentum_buffer"),
        (lambda state: state["optimizer"].pop("param_groups"), "param_groups"),
        (lambda state: state["random"]["torch"].zero_().resize_(5), "does not fit this run"),
        (lambda state: state["seconds"].update(train="long"), "could not convert string to float"),
        (lambda state: state["strategy"].update(evolution_step="third"), "strategy.evolution_step"),
    ],
)
def test_states_that_do_not_fit_change_nothing(
    runs: Path, capsys: Any, change: Callable[[dict[str, Any]], None], message: str
) -> None:
    path = runs / "search" / "checkpoint.pt"
    state = load_checkpoint(path)
    change(state)
    save_checkpoint(path, state)
    assert message in refused(search.main, runs / "search", capsys)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"epoch": 3, "best_acc_top1": np.float64(97.1)}, "a NumPy value, numpy._core.multiarray.scalar"),
        ({"args": argparse.Namespace(lr=0.1)}, "an object, argparse.Namespace"),
        ({"epoch": 3}, "has a format this version does not read"),
        ([1, 2], "has a format this version does not read"),
        ({"format": 1}, "lacks 'options'"),
        ({"format": 1, "options": {}}, "lacks 'options.strategy'"),
    ],
)
def test_foreign_checkpoints_get_one_line(runs: Path, capsys: Any, content: Any, message: str) -> None:
    torch.save(content, runs / "search" / "checkpoint.pt")
    error = refused(search.main, runs / "search", capsys)
    assert message in error
    assert "\x1b" not in error


def test_the_checkpoint_of_a_training_is_none_of_a_search(runs: Path, capsys: Any) -> None:
    (runs / "search" / "checkpoint.pt").write_bytes((runs / "train" / "checkpoint.pt").read_bytes())
    assert "lacks 'options.strategy'" in refused(search.main, runs / "search", capsys)


def test_a_search_is_no_trained_network(runs: Path) -> None:
    with pytest.raises(UserError, match="is the run of a search, not of a training"):
        load_trained(runs / "search")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({3: torch.zeros(1)}, "the key 3 of the state dict is a int"),
        ({"epoch": 3, "state_dict": {"stem.0.weight": torch.zeros(1)}}, "checkpoint['state_dict']"),
        ({"state_dict": {}, "best": np.float64(1)}, "save its state dict alone"),
    ],
)
def test_initial_weights_of_training_scripts_get_one_line(
    tmp_path: Path, capsys: Any, content: Any, message: str
) -> None:
    torch.save(content, tmp_path / "weights.pt")
    arguments = [*SMALL, "--initial-weights", str(tmp_path / "weights.pt"), "--out", str(tmp_path / "run")]
    assert search.main(arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert "\x1b" not in error
