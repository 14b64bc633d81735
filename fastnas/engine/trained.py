"""Trained networks on disk: those of a finished run, of a run that goes on, and saved ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fastnas.engine.checkpoint import load_checkpoint
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


def _from_checkpoint(directory: Path, backend: str) -> DerivedNetwork:
    checkpoint = load_checkpoint(directory / "checkpoint.pt")
    options = checkpoint["options"].get("network", {})
    if "genotype" not in options:
        raise UserError(f"{directory} is a search, which trains no network of a genotype: give a run of fastnas.train.")
    weights: dict[str, Any] = checkpoint["network"]
    if checkpoint["average"] is not None:
        prefix = "module."
        averaged = checkpoint["average"].items()
        weights = {name.removeprefix(prefix): value for name, value in averaged if name.startswith(prefix)}
    network = DerivedNetwork(
        Genotype.from_json(directory / "genotype.json"),
        channels=options["channels"],
        layers=options["layers"],
        num_classes=len(checkpoint["images"]["classes"]),
        in_channels=next(iter(weights.values())).shape[1],
        auxiliary=any(name.startswith("auxiliary_head.") for name in weights),
        stem=options["stem"],
        backend=backend,
    )
    fill_network(network, weights, directory)
    images = {name: checkpoint["images"][name] for name in ("classes", "image_size")}
    network.about = {"images": images}
    return network.eval()
