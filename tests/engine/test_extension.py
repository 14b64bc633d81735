"""A user's own candidates and spaces: one file of the user's is all that it takes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from run_files import SMALL, events, same_bits

import fastnas
from fastnas import evaluate, export, search, spaces, strategies
from fastnas.errors import UserError
from fastnas.nn import DerivedNetwork, Supernet, register_primitive
from fastnas.nn.primitives import PRIMITIVES
from fastnas.primitive_names import primitive_names

OWN = '''
"""An inverted bottleneck (Sandler et al., MobileNetV2, CVPR 2018) as a candidate, and a space that has it."""
from torch import nn
from fastnas.nn import register_primitive
from fastnas.spaces import CellSpace

class InvertedBottleneck(nn.Sequential):
    def __init__(self, channels, stride, norm):
        wide = 2 * channels
        super().__init__(
            nn.Conv2d(channels, wide, 1, bias=False), norm(wide), nn.ReLU6(),
            nn.Conv2d(wide, wide, 3, stride, 1, groups=wide, bias=False), norm(wide), nn.ReLU6(),
            nn.Conv2d(wide, channels, 1, bias=False), norm(channels),
        )

register_primitive("inverted_bottleneck", InvertedBottleneck)
SPACE = CellSpace("mobile", ("skip_connect", "sep_conv_3x3", "inverted_bottleneck"), pool_norm=True, nodes=2)
'''
SPACE = "python:own_space:SPACE"
PAIRS = [("inverted_bottleneck", 0), ("sep_conv_3x3", 1), ("inverted_bottleneck", 2), ("skip_connect", 0)]


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the user's module, which is importable as long as the test runs."""
    (tmp_path / "own_space.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "own_space", raising=False)
    return tmp_path


def test_search_resume_derive_retrain_count_export(own: Path, capsys: Any) -> None:
    whole, pieces = own / "whole", own / "pieces"
    flags = [*SMALL, "--epochs", "2", "--space", SPACE]
    assert search.main([*flags, "--out", str(whole)]) == 0
    assert search.main([*flags, "--stop-after", "1", "--out", str(pieces)]) == 0
    assert search.main(["--resume", str(pieces)]) == 0
    states = [torch.load(run / "checkpoint.pt", weights_only=True)["network"] for run in (whole, pieces)]
    assert same_bits(*states)
    assert events(whole)[:-1] == [event for event in events(pieces) if event["event"] != "interrupted"][:-1]
    assert "mobile" in (whole / "report.html").read_text()

    concat = [2, 3]
    genotype = fastnas.Genotype(normal=PAIRS, normal_concat=concat, reduce=PAIRS, reduce_concat=concat)
    genotype.to_json(own / "genotype.json")
    network = DerivedNetwork(genotype, channels=4, layers=3, auxiliary=False)
    assert fastnas.count_parameters(network) == sum(weight.numel() for weight in network.parameters())
    assert fastnas.count_macs(network, (3, 16, 16)) > 0

    # In a process that has never heard of the candidate: a genotype file runs no code, the flag names the module.
    trained = own / "trained"
    words = ["--data", "digits", "--limit", "60", "--image-size", "8", "--channels", "4", "--layers", "3"]
    words += ["--epochs", "1", "--batch-size", "20", "--cutout", "0", "--device", "cpu", "--out", str(trained)]
    command = [sys.executable, "-m", "fastnas.train", "--genotype", "genotype.json", *words]
    refused = subprocess.run(command, cwd=own, capture_output=True, text=True, check=False)
    assert refused.returncode == 2
    assert "--space python:MODULE:OBJECT" in refused.stderr.replace("\n", " ")
    subprocess.run([*command, "--space", SPACE], cwd=own, check=True, capture_output=True)
    assert evaluate.main([str(trained), "--data", "digits", "--limit", "60", "--space", SPACE]) == 0
    assert export.main([str(trained), "--save", str(own / "net.json"), "--space", SPACE]) == 0
    assert json.loads((own / "net.json").read_text())["genotype"]["normal"][0] == ["inverted_bottleneck", 0]
    assert isinstance(DerivedNetwork.load(own / "net.json"), DerivedNetwork)
    capsys.readouterr()


@pytest.mark.parametrize("bn_mode", ["running", "batch"])
def test_own_candidate_beside_fused_ones_computes_what_plain_torch_does(own: Path, bn_mode: Any) -> None:
    networks = []
    for backend in ("reference", "fused"):
        torch.manual_seed(0)
        networks.append(Supernet(SPACE, channels=8, layers=3, partial_channels=2, backend=backend).double())
    x = torch.randn(4, 3, 8, 8, dtype=torch.float64)
    losses = [network(x).square().sum() for network in networks]
    torch.testing.assert_close(losses[1], losses[0])
    for loss in losses:
        loss.backward()
    for (name, theirs), ours in zip(networks[0].named_parameters(), networks[1].parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-6, atol=1e-8, msg=name)
    alphas = {kind: torch.randn(3, 5, 3, dtype=torch.float64) for kind in ("normal", "reduce")}
    logits = [network.population_logits(x, alphas, bn_mode=bn_mode) for network in networks]
    torch.testing.assert_close(logits[1], logits[0])


def test_registering() -> None:
    def build(channels: int, stride: int, norm: Any) -> torch.nn.Module:
        return torch.nn.AvgPool2d(1, stride)

    with pytest.raises(UserError, match="is already a primitive of fastnas"):
        register_primitive("skip_connect", build)
    for name in ("", "a b", "3x3", "ü", 3):
        with pytest.raises(UserError, match="cannot name a primitive"):
            register_primitive(name, build)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="expected a function"):
        register_primitive("mine", "build")  # type: ignore[arg-type]
    assert "mine" not in primitive_names()
    register_primitive("subsample", build)
    register_primitive("subsample", build)  # a module that is loaded again
    assert set(primitive_names()) == set(PRIMITIVES)


def test_strategy_of_ones_own_is_found_again_when_its_run_goes_on(own: Path, capsys: Any) -> None:
    (own / "own_strategy.py").write_text(
        "from dataclasses import dataclass\n"
        "from fastnas.strategies.darts import DARTS\n\n"
        "@dataclass\n"
        "class Slow(DARTS):\n"
        "    name = 'slow'\n"
        "    patience: int = 3\n"
        '    """Steps."""\n'
    )
    run, spec = own / "run", "python:own_strategy:Slow"
    few = ["--data", "digits", "--limit", "60", "--image-size", "8", "--channels", "4", "--layers", "3"]
    few += ["--batch-size", "10", "--epochs", "2", "--warm-up", "0", "--patience", "5", "--device", "cpu"]
    assert search.main(["--strategy", spec, *few, "--stop-after", "1", "--out", str(run)]) == 0
    assert yaml.safe_load((run / "config.yaml").read_text())["strategy"]["name"] == spec
    assert search.main(["--resume", str(run)]) == 0
    assert [event["epoch"] for event in events(run) if event["event"] == "epoch"] == [0, 1]
    found = strategies.parse(f"{spec}:patience=7,warm_up=1")
    assert (type(found).name, found.patience, found.warm_up) == ("slow", 7, 1)  # type: ignore[attr-defined]
    for text, message in (("python:own_strategy:dataclass", "is not a class derived"), ("python:x", "names no object")):
        with pytest.raises(UserError, match=message):
            strategies.create(text)
    capsys.readouterr()


def test_spaces_that_cannot_be_imported(own: Path) -> None:
    (own / "broken.py").write_text("raise ValueError('no luck')")
    for text, message in (
        ("python:own_space", "names no object"),
        ("python:absent:SPACE", "cannot be imported: No module named 'absent'"),
        ("python:own_space:SPCE", "cannot be imported"),
        ("python:own_space:InvertedBottleneck", "is a type: expected a fastnas.spaces.CellSpace"),
        ("python:broken:SPACE", "its code raised ValueError: no luck"),
    ):
        with pytest.raises(UserError, match=message):
            spaces.find(text)
    assert spaces.find(SPACE).candidates[2] == "inverted_bottleneck"
