"""Trained networks for other programs, as files that do not need fastnas."""

from __future__ import annotations

import copy
import inspect
import json
import logging
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fastnas import standalone
from fastnas.atomic_file import replace_file
from fastnas.errors import UserError
from fastnas.nn import DerivedNetwork
from fastnas.primitive_names import BUILT_IN
from fastnas.version import __version__

TOLERANCE = 1e-4  # largest difference of a logit, relative to the largest logit
DESCRIPTION = "fastnas.json"  # the extra file of a program


def export_program(
    network: DerivedNetwork, path: Path, image_size: tuple[int, int], preprocessing: bool = False
) -> torch.export.ExportedProgram:
    """Writes a `torch.export` program, which `torch.export.load` reads: images [B, C, H, W] → logits, any B. Its extra
    file `fastnas.json` holds what `describe` gives.

    Args:
        network: on any device, in any mode; it is not changed.
        path: of the file; `.pt2` is usual.
        image_size: (H, W).
        preprocessing: take uint8 images, and normalise them within the program.

    Raises:
        UserError: the file cannot be written, or (preprocessing) the network has no mean and standard deviation.
    """
    plain, images = _plain(network, image_size, preprocessing)
    program = torch.export.export(plain, (images,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    _check("the exported program", program.module()(images), plain(images))
    description = json.dumps(describe(network, image_size, preprocessing), ensure_ascii=False)
    try:
        torch.export.save(program, path, extra_files={DESCRIPTION: description})
    except (OSError, RuntimeError) as error:
        raise UserError(f"cannot write {str(path)!r}: {error}; give a file in a writable folder.") from error
    return program


def export_onnx(network: DerivedNetwork, path: Path, image_size: tuple[int, int], preprocessing: bool = False) -> float:
    """Writes an ONNX file with the input `images` [batch, C, H, W] and the output `logits`, checked against
    onnxruntime: the same logits within 1e-4 of the largest, at two batch sizes. Its metadata hold what `describe`
    gives: texts as they are, other values as JSON.

    Args:
        network, image_size, preprocessing: as for `export_program`.

    Returns:
        The largest difference of a logit between onnxruntime and torch.

    Raises:
        UserError: onnx, onnxscript or onnxruntime is missing, the file cannot be written, or (preprocessing) the
            network has no mean and standard deviation.
    """
    try:
        import onnxruntime
        import onnxscript  # noqa: F401  (what torch.onnx.export needs)
    except ImportError as error:
        raise UserError(f'{error.name} is missing: pip install "fastnas[export]".') from error
    plain, images = _plain(network, image_size, preprocessing)
    batch = torch.export.Dim("batch")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        program = torch.onnx.export(
            plain,
            (images,),
            dynamo=True,
            input_names=["images"],
            output_names=["logits"],
            dynamic_shapes=({0: batch},),
            verbose=False,
        )
    assert program is not None
    for name, value in describe(network, image_size, preprocessing).items():
        program.model.metadata_props[name] = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    content = program.model_proto.SerializeToString()
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    difference = 0.0
    for inputs in (images, images[:1]):
        (logits,) = session.run(["logits"], {"images": inputs.numpy()})
        difference = max(difference, _check("onnxruntime", torch.from_numpy(logits), plain(inputs)))
    replace_file(path, content, "the ONNX file")
    return difference


def write_standalone(network: DerivedNetwork, path: Path) -> None:
    """Writes the Python file that loads what `network.save` writes, in plain PyTorch: `fastnas.standalone`.

    Raises:
        UserError: the network has candidates of the user's own, or the file cannot be written.
    """
    genotype = network.genotype
    names = [name for kind in genotype.kinds for node in genotype.pairs(kind) for name, _ in node]
    if own := [name for name in names if name not in BUILT_IN]:
        raise UserError(
            f"a stand-alone file cannot build {own[0]!r}, a candidate of your own: use --onnx or --program, which hold "
            "the whole network."
        )
    origin = f"# Written by fastnas {__version__} (Apache-2.0): python -m fastnas.export --standalone\n"
    replace_file(path, origin + inspect.getsource(standalone), "the stand-alone file")


def describe(network: DerivedNetwork, image_size: tuple[int, int], preprocessing: bool = False) -> dict[str, Any]:
    """What a file says about the network that it holds, as plain values: `fastnas_version`; `input`, a sentence;
    `channels` and `image_size` [height, width] of the images; `num_classes`; `genotype`; and, where the network was
    saved with them, `classes`, `mean`, `std` and `evaluated_share`, see `fastnas.data.Source`."""
    images = network.about.get("images", {})
    channels, (height, width) = network.options["in_channels"], image_size
    shape = f"[batch, {channels}, {height}, {width}]"
    known = {name: images.get(name) for name in ("classes", "mean", "std", "evaluated_share")}
    return {
        "fastnas_version": __version__,
        "input": f"uint8 {shape}, pixels 0..255" if preprocessing else f"float32 {shape}, (pixel / 255 - mean) / std",
        "channels": channels,
        "image_size": [height, width],
        "num_classes": network.options["num_classes"],
        **{name: value for name, value in known.items() if value is not None},
        "genotype": network.genotype.to_dict(),
    }


def _plain(network: DerivedNetwork, image_size: tuple[int, int], preprocessing: bool) -> tuple[nn.Module, Tensor]:
    """A copy on the CPU without fused operators, for evaluation, and images [2, C, H, W] for it."""
    plain = copy.deepcopy(network).cpu().float().eval().to(memory_format=torch.contiguous_format)
    plain.backend = "reference"
    plain.auxiliary_head = None  # serves training only
    plain.requires_grad_(False)
    shape, generator = (2, network.options["in_channels"], *image_size), torch.Generator().manual_seed(0)
    if not preprocessing:
        return plain, torch.randn(shape, generator=generator)
    whole = nn.Sequential(_normalise(network), plain).eval()
    return whole, torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)


def _normalise(network: DerivedNetwork) -> standalone.Normalise:
    images = network.about.get("images", {})
    channels = network.options["in_channels"]
    for name in ("mean", "std"):
        values = images.get(name)
        if not isinstance(values, list | tuple) or len(values) != channels:
            raise UserError(
                f"the network does not say how its images are normalised: {name} is {values}, expected {channels} "
                "numbers. Export the run directory of its training, or leave out --with-preprocessing."
            )
    return standalone.Normalise(images["mean"], images["std"])


def _check(what: str, got: Tensor, expected: Tensor) -> float:
    """The largest difference. UserError where it is too large."""
    largest = expected.abs().max().item()
    difference = (got - expected).abs().max().item()
    if not difference <= TOLERANCE * max(1.0, largest):
        raise UserError(f"{what} gives other logits than the network: they differ by {difference:.2e}; do not use it.")
    return difference
