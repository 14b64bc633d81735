"""The file that loads a network without fastnas: the same numbers, and nothing of the package."""

from __future__ import annotations

import ast
import inspect
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from fastnas import Genotype, data, standalone
from fastnas.nn import DerivedNetwork, Supernet, register_primitive
from fastnas.ops import normalization_table
from fastnas.primitive_names import BUILT_IN

NESTED = Genotype(
    [[("skip_connect", 0)], [("none", 1), ("sep_conv_3x3", 2), ("max_pool_3x3", 0)]],
    [3],
    [[("avg_pool_3x3", 0), ("skip_connect", 1)], [("dil_conv_5x5", 2)], [("conv_7x1_1x7", 3)]],
    [4, 2],
)


def trained(genotype: Genotype, **options: Any) -> DerivedNetwork:
    """A network with statistics as after training."""
    small = {"channels": 4, "layers": 5, "num_classes": 4, "backend": "reference"}
    network = DerivedNetwork(genotype, **(small | options))
    for norm in network.modules():
        if isinstance(norm, nn.BatchNorm2d):
            nn.init.normal_(norm.weight, 1, 0.2)
            norm.running_mean.normal_()
            norm.running_var.uniform_(0.5, 2)
    return network.eval()


def check_equal(network: DerivedNetwork, folder: Path, size: tuple[int, int] = (32, 32)) -> None:
    path = network.save(folder / "network.json")
    twin, fused = standalone.load(path), DerivedNetwork.load(path)
    assert not twin.training
    x = torch.randn(3, network.options["in_channels"], *size)
    with torch.no_grad():
        assert torch.equal(twin(x), network(x))
        torch.testing.assert_close(twin(x), fused(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", BUILT_IN)
def test_every_primitive(name: str, tmp_path: Path) -> None:
    cell = [(name, 0), ("skip_connect", 1), (name, 2), (name, 1)]
    check_equal(trained(Genotype(cell, [2, 3], cell, [3, 2])), tmp_path, (19, 16))


@pytest.mark.parametrize("space", ["darts", "egnas", "multi-level"])
@pytest.mark.parametrize("stem", ["cifar", "imagenet"])
def test_every_space(space: str, stem: str, tmp_path: Path) -> None:
    network = Supernet(space, channels=4, layers=3)
    for alpha in network.alphas.values():
        nn.init.normal_(alpha)
    genotype = network.genotype()
    assert isinstance(genotype, Genotype)
    check_equal(trained(genotype, layers=7, stem=stem, auxiliary=False), tmp_path)


@pytest.mark.parametrize("layers", [1, 2, 3, 4, 6, 8])
def test_every_depth(layers: int, tmp_path: Path) -> None:
    cells = [([(name, 0), (name, 1)], [2]) for name in BUILT_IN[1:6]]
    for genotype in (Genotype.multi_level(cells), NESTED):
        check_equal(trained(genotype, layers=layers, in_channels=1, auxiliary=layers % 2 == 0), tmp_path)


@pytest.mark.parametrize("name", ["DARTS_V2", "NASNet", "AmoebaNet"])
def test_published_cells(name: str, tmp_path: Path) -> None:
    check_equal(trained(Genotype.published(name), channels=2), tmp_path)


def test_files_of_before_load(tmp_path: Path) -> None:
    path = trained(NESTED).save(tmp_path / "network.json")
    description = json.loads(path.read_text(encoding="utf-8"))
    for name in ("fastnas_version", "sha256", "weights_sha256"):
        del description[name]
    path.write_text(json.dumps(description), encoding="utf-8")
    assert DerivedNetwork.load(path).genotype == NESTED
    twin = standalone.load(path)
    assert (twin.classes, twin.image_size, twin.normalise) == ([], None, None)


def test_it_imports_nothing_of_the_package() -> None:
    tree = ast.parse(inspect.getsource(standalone))
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
    names = {alias.name for node in imports if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module or "." for node in imports if isinstance(node, ast.ImportFrom)}
    assert {name.partition(".")[0] for name in names} <= sys.stdlib_module_names | {
        *("torch", "safetensors", "PIL", "numpy")
    }


def test_what_it_cannot_build_is_refused(tmp_path: Path) -> None:
    register_primitive("mine", lambda channels, stride, norm: nn.MaxPool2d(1, stride))
    cell = [("mine", 0), ("mine", 1)]
    path = trained(Genotype(cell, [2], cell, [2])).save(tmp_path / "network.json")
    with pytest.raises(ValueError, match="no candidate 'mine'"):
        standalone.load(path)
    path.write_text('{"kind": "other"}')
    with pytest.raises(ValueError, match="is not a network of format 1"):
        standalone.load(path)


def test_it_normalises_as_the_pipelines_do() -> None:
    mean, std = (0.4914, 0.4822, 0.4465), (0.247, 0.2435, 0.2616)
    pixels = torch.arange(256, dtype=torch.uint8).expand(3, 1, 256)[None]  # [1, 3, 1, 256]
    normalised = standalone.Normalise(mean, std)(pixels)  # [1, 3, 1, 256]
    assert torch.equal(normalised[0, :, 0], normalization_table(mean, std))


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """Photographs of several shapes and modes: upright and on their side, palette, grey, transparent."""
    folder = tmp_path / "images" / "class"
    folder.mkdir(parents=True)
    generator = np.random.default_rng(torch.initial_seed())
    for name, shape in (("wide", (40, 75, 3)), ("high", (61, 40, 3)), ("clear", (50, 44, 4))):
        image = Image.fromarray(generator.integers(0, 256, shape, dtype=np.uint8))
        image.save(folder / f"{name}.png")
    image.convert("L").save(folder / "grey.png")
    image.convert("RGB").quantize(16).save(folder / "palette.png")
    exif = Image.Exif()
    exif[274] = 6  # on its side
    image.convert("RGB").save(folder / "turned.jpg", exif=exif)
    return tmp_path / "images"


@pytest.mark.parametrize("share", [None, 0.8])
def test_it_reads_images_as_they_were_tested(files: Path, tmp_path: Path, share: float | None) -> None:
    source = data.open(f"folder:{files}", image_size=32, evaluated_share=share)
    network = trained(NESTED)
    about = {"images": {"image_size": [32, 32], "evaluated_share": share, "mean": [0.5] * 3, "std": [0.25] * 3}}
    twin = standalone.load(network.save(tmp_path / "network.json", about))
    for index, path in enumerate(sorted((files / "class").iterdir())):
        assert torch.equal(twin.read_image(path).permute(1, 2, 0), torch.from_numpy(source.image(index))), path.name


def test_images_that_it_cannot_read(tmp_path: Path) -> None:
    for options, size in (({"in_channels": 1}, [32, 32]), ({}, [32, 24]), ({}, None)):
        path = trained(NESTED, **options).save(tmp_path / "network.json", {"images": {"image_size": size}})
        with pytest.raises(ValueError, match="not square RGB files"):
            standalone.load(path).read_image(tmp_path / "any.png")


def test_the_file_is_a_program(files: Path, tmp_path: Path) -> None:
    (tmp_path / "network.py").write_text(inspect.getsource(standalone), encoding="utf-8")
    images = {"classes": ["ä", "b", "c", "d"], "image_size": [32, 32], "mean": [0.5] * 3, "std": [0.25] * 3}
    network = trained(NESTED)
    network.save(tmp_path / "network.json", {"images": images})
    path = str(files / "class" / "high.png")
    without = "import runpy, sys; sys.modules['fastnas'] = None; del sys.argv[0]; "
    without += "runpy.run_path(sys.argv[0], None, '__main__')"
    command = [sys.executable, "-X", "utf8", "-c", without, "network.py", "network.json"]
    done = subprocess.run([*command, path], cwd=tmp_path, capture_output=True, text=True, encoding="utf-8", check=True)
    twin = standalone.load(tmp_path / "network.json")
    assert twin.normalise is not None
    with torch.no_grad():
        shares = network(twin.normalise(twin.read_image(path)[None])).softmax(-1)[0]
    order = shares.argsort(descending=True)[:3].tolist()
    printed = ", ".join(f"{images['classes'][k]} {shares[k]:.1%}" for k in order)
    assert done.stdout == f"{path}: {printed}\n"
    usage = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (usage.returncode, usage.stderr) == (1, "usage: python network.py network.json IMAGE ...\n")
    gone = subprocess.run([*command, "gone.png"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (gone.returncode, gone.stderr) == (1, "error: [Errno 2] No such file or directory: 'gone.png'\n")
