"""Exported networks: the same logits as the network's own, without fastnas."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch

from fastnas import Genotype
from fastnas.engine.export import _check, export_onnx, export_program
from fastnas.errors import UserError
from fastnas.nn import DerivedNetwork

onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed: pip install fastnas[export]")


@pytest.fixture(scope="module")
def network() -> DerivedNetwork:
    """All kinds of primitives, with statistics as after training."""
    torch.manual_seed(0)
    cell = [
        [("sep_conv_3x3", 0), ("max_pool_3x3", 1)],
        [("dil_conv_5x5", 2), ("avg_pool_3x3", 0), ("skip_connect", 1)],
        [("conv_7x1_1x7", 0), ("none", 1)],
    ]
    net = DerivedNetwork(Genotype(cell, [3, 4], cell, [2, 4]), channels=4, layers=3)
    for norm in net.modules():
        if isinstance(norm, torch.nn.BatchNorm2d):
            torch.nn.init.normal_(norm.weight, 1, 0.2)
            norm.running_mean.normal_()
            norm.running_var.uniform_(0.5, 2)
    return net.train()


def test_onnx_gives_the_same_logits_for_any_batch(network: DerivedNetwork, tmp_path: Path) -> None:
    path = tmp_path / "network.onnx"
    export_onnx(network, path, (32, 32))
    assert network.training, "the network stays as it is"
    assert network.auxiliary_head is not None
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    network = DerivedNetwork.load(network.save(tmp_path / "saved"))
    for batch in (1, 5):
        images = torch.randn(batch, 3, 32, 32)
        (logits,) = session.run(["logits"], {"images": images.numpy()})
        with torch.no_grad():
            torch.testing.assert_close(torch.from_numpy(logits), network(images), rtol=1e-4, atol=1e-4)


def test_the_program_runs_where_fastnas_is_not(network: DerivedNetwork, tmp_path: Path) -> None:
    path = tmp_path / "network.pt2"
    export_program(network, path, (32, 32))
    images = torch.randn(3, 3, 32, 32)
    torch.save(images, tmp_path / "images.pt")
    script = """
        import sys, torch
        program = torch.export.load(sys.argv[1])
        torch.save(program.module()(torch.load(sys.argv[2])), sys.argv[3])
        assert not any(name.startswith("fastnas") for name in sys.modules)
    """
    files = [str(path), str(tmp_path / "images.pt"), str(tmp_path / "logits.pt")]
    subprocess.run([sys.executable, "-I", "-c", textwrap.dedent(script), *files], check=True)
    with torch.no_grad():
        expected = DerivedNetwork.load(network.save(tmp_path / "saved"))(images)
    torch.testing.assert_close(torch.load(tmp_path / "logits.pt"), expected, rtol=1e-4, atol=1e-4)


def test_a_difference_is_an_error() -> None:
    _check("x", torch.tensor([1.0]), torch.tensor([1.00005]))
    for got in (1.01, float("nan")):
        with pytest.raises(UserError, match="x gives other logits than the network"):
            _check("x", torch.tensor([got]), torch.tensor([1.0]))


def test_a_folder_that_is_not_there(network: DerivedNetwork, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot write"):
        export_program(network, tmp_path / "gone" / "network.pt2", (32, 32))
