"""Trained networks for other programs, as files that do not need fastnas."""

from __future__ import annotations

import copy
import logging
import warnings
from pathlib import Path

import torch
from torch import Tensor

from fastnas.errors import UserError
from fastnas.nn import DerivedNetwork

TOLERANCE = 1e-4  # largest difference of a logit, relative to the largest logit


def export_program(network: DerivedNetwork, path: Path, image_size: tuple[int, int]) -> torch.export.ExportedProgram:
    """Writes a `torch.export` program, which `torch.export.load` reads: images [B, C, H, W] → logits, any B.

    Args:
        network: on any device, in any mode; it is not changed.
        path: of the file; `.pt2` is usual.
        image_size: (H, W).
    """
    plain, images = _plain(network, image_size)
    program = torch.export.export(plain, (images,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    _check("the exported program", program.module()(images), plain(images))
    try:
        torch.export.save(program, path)
    except (OSError, RuntimeError) as error:
        raise UserError(f"cannot write {str(path)!r}: {error}; give a file in a writable folder.") from error
    return program


def export_onnx(network: DerivedNetwork, path: Path, image_size: tuple[int, int]) -> None:
    """Writes an ONNX file with the input `images` [batch, C, H, W] and the output `logits`, checked against
    onnxruntime: the same logits within 1e-4 of the largest, at two batch sizes.

    Raises:
        UserError: onnx, onnxscript or onnxruntime is missing, or the file cannot be written.
    """
    try:
        import onnxruntime
        import onnxscript  # noqa: F401  (what torch.onnx.export needs)
    except ImportError as error:
        raise UserError(f'{error.name} is missing: pip install "fastnas[export]".') from error
    plain, images = _plain(network, image_size)
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
    try:
        program.save(path)
    except OSError as error:
        raise UserError(f"cannot write {str(path)!r}: {error.strerror}; give a file in a writable folder.") from error
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for inputs in (images, images[:1]):
        (logits,) = session.run(["logits"], {"images": inputs.numpy()})
        _check("onnxruntime", torch.from_numpy(logits), plain(inputs))


def _plain(network: DerivedNetwork, image_size: tuple[int, int]) -> tuple[DerivedNetwork, Tensor]:
    """A copy on the CPU without fused operators, for evaluation, and images [2, C, H, W]."""
    plain = copy.deepcopy(network).cpu().float().eval().to(memory_format=torch.contiguous_format)
    plain.backend = "reference"
    plain.auxiliary_head = None  # serves training only
    images = torch.randn(2, network.options["in_channels"], *image_size, generator=torch.Generator().manual_seed(0))
    return plain.requires_grad_(False), images


def _check(what: str, got: Tensor, expected: Tensor) -> None:
    largest = expected.abs().max().item()
    difference = (got - expected).abs().max().item()
    if not difference <= TOLERANCE * max(1.0, largest):
        raise UserError(f"{what} gives other logits than the network: they differ by {difference:.2e}; do not use it.")
