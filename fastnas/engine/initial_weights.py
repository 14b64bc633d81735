"""Weights of a supernet that another code base has trained, to begin a search with."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from fastnas.compat.load_supernet import load_betas, load_supernet
from fastnas.engine.checkpoint import refusal
from fastnas.errors import UserError
from fastnas.input_file import check_file, path_of
from fastnas.nn import Supernet


def load_initial_weights(network: Supernet, path: Path) -> dict[str, Tensor]:
    """Loads weights and α of another code base's supernet from a file. Returns its β as {kind: [E]}, {} without any.

    Raises:
        UserError: the file cannot be read, holds no such state dict, or one of a supernet of another size.
    """
    path = path_of(path)
    state = _read(path)
    try:
        foreign = load_supernet(state, network.space, backend=network.backend)
        betas = load_betas(state, network.space)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    names = ("channels", "layers", "num_classes", "in_channels", "partial_channels", "stem_name")
    differing = [
        f"{name.removesuffix('_name')} {getattr(foreign, name)} instead of {getattr(network, name)}"
        for name in names
        if getattr(foreign, name) != getattr(network, name)
    ]
    if differing:
        raise UserError(
            f"{path} holds a supernet of {', '.join(differing)}: set --channels, --layers, --partial-channels and "
            "--stem as they were, and give images of that kind."
        )
    network.load_state_dict(foreign.state_dict())
    return betas


def _read(path: Path) -> Mapping[str, Tensor]:
    """The state dict in a file."""
    check_file(path, f"the file {path}", "give a state dict that torch.save has written")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged bytes make the reader fail in any way
        raise UserError(
            f"{path} holds no state dict that can be read ({refusal(error)}). Where it is a checkpoint, save its state "
            "dict alone: torch.save(checkpoint['state_dict'], FILE)."
        ) from error
    if not isinstance(state, Mapping):
        raise UserError(f"{path} holds a {type(state).__name__}, expected a state dict.")
    return state
