"""A trained network for other programs: options, and the files that they ask for."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch
import tyro
from rich.console import Console

from fastnas.cli.command import print_text
from fastnas.cli.own_code import import_space
from fastnas.engine.export import export_onnx, export_program, write_standalone
from fastnas.engine.trained import image_size_of, load_trained
from fastnas.errors import UserError
from fastnas.nn import DerivedNetwork
from fastnas.option_types import Options, Processes, Side


@dataclass(frozen=True, kw_only=True)
class ExportOptions(Options):
    """What is written."""

    network: tyro.conf.Positional[Path]
    """Run directory of fastnas.train, or a saved network (.json)."""
    onnx: Path | None = None
    """ONNX file, checked against onnxruntime."""
    program: Path | None = None
    """torch.export program (.pt2)."""
    save: Path | None = None
    """JSON description, with safetensors weights beside it."""
    standalone: Path | None = None
    """Python file that loads what --save writes, without fastnas."""
    with_preprocessing: bool = False
    """--onnx and --program take uint8 images [B, C, H, W] and normalise them, instead of normalised float32."""
    image_size: Side | None = None
    """Pixels a side; None: of the training images."""
    threads: Processes | None = None
    """CPU threads; None for PyTorch's choice."""
    space: str | None = None
    """python:MODULE:OBJECT: a space of your own whose candidates the genotype names."""


def write_files(options: ExportOptions, console: Console, given: DerivedNetwork | None = None) -> list[Path]:
    """Writes the files that the options name; returns their paths.

    given: the network, instead of the one that the options name; it is not changed.
    """
    targets = [path for path in (options.save, options.standalone, options.program, options.onnx) if path]
    if not targets:
        raise UserError("nothing to write: give --onnx FILE, --program FILE, --save FILE or --standalone FILE.")
    if options.with_preprocessing and not (options.onnx or options.program):
        raise UserError("--with-preprocessing is for --onnx and --program: give one of them, or leave it out.")
    import_space(options.space)
    if options.threads:
        torch.set_num_threads(options.threads)
    network = load_trained(options.network) if given is None else given
    size = image_size_of(network, options.image_size)
    for path in targets:
        _make_folder(path.parent)
    if options.save:
        options = replace(options, save=network.save(options.save))
        print_text(console, f"wrote {options.save}")
    if options.standalone:
        write_standalone(network, options.standalone)
        print_text(console, f"wrote {options.standalone}: loads the files of --save with PyTorch alone")
    if options.program:
        export_program(network, options.program, size, options.with_preprocessing)
        print_text(console, f"wrote {options.program}")
    if options.onnx:
        difference = export_onnx(network, options.onnx, size, options.with_preprocessing)
        print_text(
            console,
            f"wrote {options.onnx}; checked with onnxruntime: its logits differ from PyTorch's by at most "
            f"{difference:.1e}",
        )
    return [path for path in (options.save, options.standalone, options.program, options.onnx) if path]


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make the folder {str(folder)!r}: {error.strerror}; give another file.") from error
