"""Trained networks on disk: of finished and unfinished runs, and saved ones. Opens images to match them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import NoneType
from typing import Any

from torch import Tensor

from fastnas import data
from fastnas.engine.checkpoint import Layout, check_layout, load_checkpoint
from fastnas.errors import UserError
from fastnas.genotype import Genotype
from fastnas.nn import DerivedNetwork
from fastnas.nn.derived_file import DESCRIPTION, fill_network


def load_trained(path: Path, backend: str = "auto") -> DerivedNetwork:
    """A trained network in evaluation mode, on the CPU.

    Args:
        path: a run directory of `fastnas.train` (the selected weights of a finished run, else those of its checkpoint),
            a description that `DerivedNetwork.save` wrote, or the weights beside it.
        backend: of `DerivedNetwork`.

    Raises:
        UserError: there is no trained network, or its files are damaged; the message names the file.
    """
    if path.is_dir() and not (path / DESCRIPTION).exists():
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
    network = DerivedNetwork(
        genotype_of(checkpoint, directory),
        channels=options["channels"],
        layers=options["layers"],
        num_classes=len(checkpoint["images"]["classes"]),
        in_channels=stem.shape[1],
        auxiliary=any(name.startswith("auxiliary_head.") for name in weights),
        stem=options["stem"],
        backend=backend,
    )
    fill_network(network, weights, directory)
    images = {name: checkpoint["images"][name] for name in ("classes", "image_size")}
    network.about = checkpoint.get("about") or {"images": images}  # old checkpoints have no more
    return network.eval()


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
    known = network.about.get("images", {}).get("image_size")
    if known:
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
    known = network.about.get("images", {})
    height, width = known.get("image_size", (None, None))
    if image_size is None and height == width:
        image_size = height
    share = known.get("evaluated_share") if image_size else None
    source = data.open(spec, split, image_size=image_size, evaluated_share=share, limit=limit)
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


def _named(classes: Sequence[str]) -> str:
    return ", ".join(list(classes)[:5]) + (f" and {len(classes) - 5} more" if len(classes) > 5 else "")
