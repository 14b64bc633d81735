"""Exported networks: the same logits as the network's own, without fastnas."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch

import fastnas
from fastnas import Genotype
from fastnas.engine.export import _check, describe, export_onnx, export_program, write_standalone
from fastnas.errors import UserError
from fastnas.nn import DerivedNetwork, register_primitive

onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed: pip install fastnas[export]")


IMAGES = {"classes": ["ä b", "c", "d"], "mean": [0.5, 0.4, 0.3], "std": [0.2, 0.25, 0.3], "evaluated_share": 0.875}


@pytest.fixture(scope="module")
def network() -> DerivedNetwork:
    """All kinds of primitives, with statistics as after training."""
    torch.manual_seed(0)
    cell = [
        [("sep_conv_3x3", 0), ("max_pool_3x3", 1)],
        [("dil_conv_5x5", 2), ("avg_pool_3x3", 0), ("skip_connect", 1)],
        [("conv_7x1_1x7", 0), ("none", 1)],
    ]
    net = DerivedNetwork(Genotype(cell, [3, 4], cell, [2, 4]), channels=4, layers=3, num_classes=3)
    net.about = {"images": IMAGES}
    for norm in net.modules():
        if isinstance(norm, torch.nn.BatchNorm2d):
            torch.nn.init.normal_(norm.weight, 1, 0.2)
            norm.running_mean.normal_()
            norm.running_var.uniform_(0.5, 2)
    return net.train()


def test_onnx_gives_the_same_logits_for_any_batch(network: DerivedNetwork, tmp_path: Path) -> None:
    path = tmp_path / "network.onnx"
    assert 0 <= export_onnx(network, path, (32, 32)) < 1e-4
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


def test_files_say_what_they_take(network: DerivedNetwork, tmp_path: Path) -> None:
    export_onnx(network, tmp_path / "network.onnx", (32, 24))
    export_program(network, tmp_path / "network.pt2", (32, 24))
    session = onnxruntime.InferenceSession(tmp_path / "network.onnx", providers=["CPUExecutionProvider"])
    metadata = session.get_modelmeta().custom_metadata_map
    texts = ("fastnas_version", "input")
    from_onnx = {name: text if name in texts else json.loads(text) for name, text in metadata.items()}
    extra = {"fastnas.json": ""}
    torch.export.load(tmp_path / "network.pt2", extra_files=extra)
    said = json.loads(extra["fastnas.json"])
    assert from_onnx == said == describe(network, (32, 24))
    assert {name: said[name] for name in IMAGES} == IMAGES
    assert said["fastnas_version"] == fastnas.__version__
    assert (said["channels"], said["image_size"], said["num_classes"]) == (3, [32, 24], 3)
    assert said["input"] == "float32 [batch, 3, 32, 24], (pixel / 255 - mean) / std"
    assert Genotype.from_dict(said["genotype"]) == network.genotype
    saved = json.loads(network.save(tmp_path / "saved.json").read_text())
    assert saved["fastnas_version"] == fastnas.__version__
    assert saved["about"]["images"] == IMAGES
    nothing = describe(DerivedNetwork(network.genotype, channels=4, layers=3, auxiliary=False), (32, 32))
    assert not set(IMAGES) & set(nothing)


def test_preprocessing_is_part_of_the_file(network: DerivedNetwork, tmp_path: Path) -> None:
    export_onnx(network, tmp_path / "network.onnx", (32, 32), preprocessing=True)
    export_program(network, tmp_path / "network.pt2", (32, 32), preprocessing=True)
    session = onnxruntime.InferenceSession(tmp_path / "network.onnx", providers=["CPUExecutionProvider"])
    assert session.get_modelmeta().custom_metadata_map["input"] == "uint8 [batch, 3, 32, 32], pixels 0..255"
    program = torch.export.load(tmp_path / "network.pt2").module()
    network = DerivedNetwork.load(network.save(tmp_path / "saved"))
    mean, std = (torch.tensor(IMAGES[name]).view(1, 3, 1, 1) for name in ("mean", "std"))
    for batch in (1, 5):
        images = torch.randint(0, 256, (batch, 3, 32, 32), dtype=torch.uint8)
        with torch.no_grad():
            expected = network((images / 255 - mean) / std)
            torch.testing.assert_close(program(images), expected, rtol=1e-4, atol=1e-4)
        (logits,) = session.run(["logits"], {"images": images.numpy()})
        torch.testing.assert_close(torch.from_numpy(logits), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("images", [{}, {"mean": [0.5], "std": [0.2]}, {"mean": [0.5] * 3}])
def test_preprocessing_needs_mean_and_deviation(
    network: DerivedNetwork, tmp_path: Path, images: dict[str, list[float]]
) -> None:
    other = DerivedNetwork(network.genotype, channels=4, layers=3, auxiliary=False)
    other.about = {"images": images}
    for export in (export_onnx, export_program):
        with pytest.raises(UserError, match=r"does not say how its images are normalised: .* expected 3 numbers"):
            export(other, tmp_path / "network", (32, 32), preprocessing=True)
    assert not (tmp_path / "network").exists()


def test_no_stand_alone_file_for_own_candidates(network: DerivedNetwork, tmp_path: Path) -> None:
    register_primitive("mine", lambda channels, stride, norm: torch.nn.MaxPool2d(1, stride))
    cell = [("mine", 0), ("skip_connect", 1)]
    own = DerivedNetwork(Genotype(cell, [2], cell, [2]), channels=4, layers=3, auxiliary=False)
    with pytest.raises(UserError, match="cannot build 'mine', a candidate of your own"):
        write_standalone(own, tmp_path / "network.py")
    assert not (tmp_path / "network.py").exists()
    write_standalone(network, tmp_path / "network.py")
    assert f"fastnas {fastnas.__version__}" in (tmp_path / "network.py").read_text(encoding="utf-8").split("\n")[0]


def test_a_difference_is_an_error() -> None:
    assert _check("x", torch.tensor([1.0]), torch.tensor([1.00005])) == pytest.approx(5e-5, rel=0.01)
    for got in (1.01, float("nan")):
        with pytest.raises(UserError, match="x gives other logits than the network"):
            _check("x", torch.tensor([got]), torch.tensor([1.0]))


def test_a_folder_that_is_not_there(network: DerivedNetwork, tmp_path: Path) -> None:
    for export in (export_onnx, export_program):
        with pytest.raises(UserError, match="cannot write"):
            export(network, tmp_path / "gone" / "network", (32, 32))
