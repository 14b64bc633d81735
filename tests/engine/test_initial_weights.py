"""A search that began with another code base goes on here."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from benchmarks.baselines import egnas, pc_darts
from fastnas.cli.configuration import parse_search
from fastnas.compat import foreign_state_dict
from fastnas.engine.search import Search
from fastnas.errors import UserError
from fastnas.search import prepare

SIZES = ["--channels", "8", "--layers", "3", "--partial-channels", "4"]
DATA = shlex.split(
    "--data digits --limit 120 --batch-size 16 --image-size 8 --epochs 2 --device cpu --no-evidence --warm-up"
)

OTHERS = {  # without the stem, just enough for the sizes of a supernet to be read off
    "cells.0.preprocess1.op.1.weight": torch.ones(8, 24, 1, 1),
    "cells.0._ops.0._ops.0.x": torch.ones(2),
    "classifier.weight": torch.ones(10, 128),
}


@pytest.fixture
def begin(tmp_path: Path) -> Callable[..., Search]:
    """Prepares a small search from flags; without any the search there was is resumed."""

    def make(*flags: str) -> Search:
        out = str(tmp_path / "run")
        arguments = [*DATA, "0", "--out", out, *SIZES, *flags] if flags else ["--resume", out]
        return prepare(parse_search(arguments, "test", ""), arguments)

    return make


def grey(network: nn.Module) -> nn.Module:
    """For digits."""
    network.stem[0] = nn.Conv2d(1, network.stem[0].out_channels, 3, padding=1, bias=False)
    return network


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    network = grey(pc_darts.Network(8, 10, 3, nn.CrossEntropyLoss()))
    names = [f"{table}_{kind}" for table in ("alphas", "betas") for kind in ("normal", "reduce")]
    path = tmp_path / "weights.pt"
    torch.save({**network.state_dict(), **{name: torch.randn_like(getattr(network, name)) for name in names}}, path)
    return path


def test_pc_darts_goes_on(begin: Callable[..., Search], weights: Path) -> None:
    foreign = torch.load(weights)
    search = begin("--strategy", "pc-darts", "--initial-weights", str(weights))
    begun = foreign_state_dict(search.network, "pc-darts")
    assert all(torch.equal(value, foreign[name]) for name, value in begun.items())
    assert torch.equal(search.network.alphas["normal"], foreign["alphas_normal"])
    assert torch.equal(search.strategy.betas["reduce"], foreign["betas_reduce"])
    search.run()
    assert not torch.equal(search.network.alphas["normal"], foreign["alphas_normal"])
    assert not torch.equal(search.strategy.betas["reduce"], foreign["betas_reduce"])
    weights.unlink()  # the run goes on from its checkpoint
    resumed = begin()
    assert torch.equal(resumed.network.alphas["normal"], search.network.alphas["normal"])
    assert torch.equal(resumed.strategy.betas["normal"], search.strategy.betas["normal"])


def test_egnas_goes_on(begin: Callable[..., Search], tmp_path: Path) -> None:
    network = grey(egnas.Network(8, 10, 3, k=4))
    torch.save(network.state_dict(), tmp_path / "weights.pt")
    search = begin(
        "--strategy", "egnas", "--fitness-batch-size", "20", "--initial-weights", str(tmp_path / "weights.pt")
    )
    for name, value in foreign_state_dict(search.network, "egnas").items():
        assert torch.equal(value, network.state_dict()[name])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ["--strategy", "pc-darts", "--layers", "4", "--partial-channels", "2"],
            "holds a supernet of layers 3 instead of 4, partial_channels 4 instead of 2: set --channels",
        ),
        (["--strategy", "darts"], "the initial weights hold β, but the strategy 'darts' has no edge weights: use"),
        (["--strategy", "egnas"], "its keys are those of the space 'darts'."),
    ],
)
def test_what_does_not_fit_is_refused(
    begin: Callable[..., Search], weights: Path, flags: list[str], message: str
) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        begin(*flags, "--initial-weights", str(weights))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot read the file .*: No such file"),
        (b"junk", "holds no state dict that can be read"),
        ([1], "holds a list, expected a state"),
        ({0: torch.ones(1)}, "the key 0 of the state dict is a int"),
        ({"best": np.float64(97.1)}, r"it holds a NumPy value, .*save its state dict alone"),
        ({"best": Path("x")}, r"it holds an object, pathlib\.\w+, where only tensors"),
        ({"stem.0.weight": torch.ones(()), **OTHERS}, r"'stem\.0\.weight' of the state dict is torch\.float32 \[\]"),
        ({"stem.0.weight": torch.ones(3, 3, 3, 3).to_sparse(), **OTHERS}, "is no plain tensor"),
        ({"stem.0.weight": torch.ones(24, 3, 3, 3, dtype=torch.int8), **OTHERS}, r"is torch\.int8 \[24"),
        (
            {"stem.0.weight": torch.ones(24, 3, 3, 3), **OTHERS, "cells.999999.x": torch.ones(1)},
            "expected at most 20,000",
        ),
    ],
)
def test_files_that_hold_none_are_named(
    begin: Callable[..., Search], tmp_path: Path, content: Any, message: str
) -> None:
    path = tmp_path / "weights.pt"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        torch.save(content, path)
    with pytest.raises(UserError, match=message) as caught:
        begin("--strategy", "darts", "--initial-weights", str(path))
    assert str(path) in str(caught.value)
    assert "\x1b" not in repr(str(caught.value))
