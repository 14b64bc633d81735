"""Trained networks on disk: of finished and unfinished runs, and saved ones. Opens images to match them."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import NoneType
from typing import Any

from torch import Tensor

from fastnas import data
from fastnas.engine.checkpoint import Layout, check_layout, load_checkpoint
from fastnas.errors import UserError
from fastnas.genotype import Genotype
from fastnas.input_file import path_of
from fastnas.nn import DerivedNetwork
from fastnas.nn.derived_file import DESCRIPTION


def load_trained(path: Path, backend: str = "auto") -> DerivedNetwork:
    """A trained network in evaluation mode, on the CPU.

    Args:
        path: a run directory of `fastnas.train` (the selected weights of a finished run, else those of its checkpoint),
            a description that `DerivedNetwork.save` wrote, or the weights beside it.
        backend: of `DerivedNetwork`.

    Raises:
        UserError: there is no trained network, or its files are damaged; the message names the file.
    """
    path = path_of(path)
    if os.path.isdir(path) and not (path / DESCRIPTION).exists():
        if any(path.glob("seed-*")):
            raise UserError(f"{path} holds runs of several seeds: give one of them, such as {path / 'seed-1'}.")
        return _from_checkpoint(path, backend)
    return DerivedNetwork.load(path, backend)


LAYOUT: Layout = {
    "options": {"network": {"channels": int, "layers": int, "stem": str}},
    "images": {"classes": list, "image_size": list},
    "network": dict,
    "average": (dict, NoneType),
}
"""What is read of the checkpoint of a training."""


def _from_checkpoint(directory: Path, backend: str) -> DerivedNetwork:
    path = directory / "checkpoint.pt"
    checkpoint = load_checkpoint(path)
    if "strategy" in checkpoint:
        raise UserError(f"{directory} is the run of a search, not of a training: give a run of fastnas.train.")
    check_layout(checkpoint, LAYOUT, path)
    options = checkpoint["options"]["network"]
    weights: dict[str, Any] = checkpoint["network"]
    if checkpoint["average"] is not None:
        prefix = "module."
        averaged = checkpoint["average"].items()
        weights = {name.removeprefix(prefix): value for name, value in averaged if name.startswith(prefix)}
    stem = next(iter(weights.values()), None)
    if not isinstance(stem, Tensor) or stem.dim() != 4:
        raise UserError(f"the checkpoint {path} holds no weights of a network: restore a copy, or train again.")
    network = DerivedNetwork.of_weights(
        weights,
        directory,
        genotype_of(checkpoint, directory),
        channels=options["channels"],
        layers=options["layers"],
        num_classes=len(checkpoint["images"]["classes"]),
        in_channels=stem.shape[1],
        auxiliary=any(name.startswith("auxiliary_head.") for name in weights),
        stem=options["stem"],
        backend=backend,
    )
    images = {name: checkpoint["images"][name] for name in ("classes", "image_size")}
    network.about = checkpoint.get("about") or {"images": images}  # old checkpoints have no more
    return network


def genotype_of(checkpoint: dict[str, Any], directory: Path) -> Genotype:
    """The genotype of a training that goes on: that of its checkpoint, which genotype.json beside it must not
    contradict; of an older checkpoint that of genotype.json.

    Raises:
        UserError: there is none, or the two differ.
    """
    path = directory / "genotype.json"
    if "genotype" not in checkpoint:
        return Genotype.from_json(path)
    genotype = Genotype.from_dict(checkpoint["genotype"])
    if path.exists() and Genotype.from_json(path) != genotype:
        raise UserError(
            f"the genotype in {path} is not the one that the run began with: remove the file, and the run goes on with "
            "its own."
        )
    return genotype


def image_size_of(network: DerivedNetwork, side: int | None = None) -> tuple[int, int]:
    """(H, W): `side`, else the size of the training images, else the size that the stem is made for."""
    if side is not None:
        return side, side
    known = _images_of(network).get("image_size")
    if known is not None:
        height, width = known
        return height, width
    return (32, 32) if network.options["stem"] == "cifar" else (224, 224)


def open_source(
    network: DerivedNetwork, spec: str, split: str, image_size: int | None = None, limit: int | None = None
) -> data.Source:
    """Images of the size and with the normalisation that the network was tested with.

    Raises:
        UserError: the images or their classes do not fit the network.
    """
    known = _images_of(network)
    height, width = known.get("image_size", (None, None))
    if image_size is None and height == width:
        image_size = height
    share = known.get("evaluated_share") if image_size else None
    source = data.open(
        spec,
        split,
        image_size=image_size,
        evaluated_share=share,
        limit=limit,
        test_share=known.get("test_share"),
    )
    classes = known.get("classes")
    if classes is not None and list(source.classes) != list(classes):
        raise UserError(
            f"the classes of {spec} are not those that the network was trained with: got {_named(source.classes)}, "
            f"expected {_named(classes)}."
        )
    have = (network.options["num_classes"], network.options["in_channels"])
    if have != (len(source.classes), source.channels):
        raise UserError(
            f"{spec} has {len(source.classes)} classes and {source.channels} channels, but the network has {have[0]} "
            f"and {have[1]}: give images like those that it was trained with."
        )
    if "mean" in known and "std" in known:
        source.published = (tuple(known["mean"]), tuple(known["std"]))
    return source


_KNOWN: dict[str, Callable[[Any], bool]] = {
    "classes": lambda value: _is_list(value, str),
    "image_size": lambda value: _is_list(value, int) and len(value) == 2 and all(0 < side <= 10_000 for side in value),
    "evaluated_share": lambda value: value is None or (isinstance(value, float | int) and 0 < value <= 1),
    "mean": lambda value: _is_list(value, float | int) and all(map(math.isfinite, value)),
    "std": lambda value: _is_list(value, float | int) and all(0 < each < math.inf for each in value),
}


def _images_of(network: DerivedNetwork) -> Mapping[str, Any]:
    """What the description says of the images. UserError where that cannot be."""
    images = network.about.get("images", {})
    if not isinstance(images, Mapping):
        raise UserError("the description of the network says no plain values of its images: save it again.")
    for name, is_right in _KNOWN.items():
        if name in images and not is_right(images[name]):
            raise UserError(f"the description of the network says {images[name]!r} of {name}: save it again.")
    if any(len(images[name]) != network.options["in_channels"] for name in ("mean", "std") if name in images):
        raise UserError(
            "the description of the network has mean and std of other channels than its images: save it again."
        )
    return images


def _is_list(value: Any, kind: Any) -> bool:
    return isinstance(value, list | tuple) and all(
        isinstance(each, kind) and not isinstance(each, bool) for each in value
    )


def _named(classes: Sequence[str]) -> str:
    return ", ".join(list(classes)[:5]) + (f" and {len(classes) - 5} more" if len(classes) > 5 else "")
