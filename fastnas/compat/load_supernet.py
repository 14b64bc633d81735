"""Weights of the supernets of DARTS, PC-DARTS and EG-NAS, read into ours and written back under their names.

All three name a weight by its place: `cells.{i}._ops.{edge}._ops.{candidate}.op.{layer}.weight`, and likewise
`cells.{i}.preprocess0`, `stem`, `classifier`. DARTS and PC-DARTS keep α and β outside of the state dict, EG-NAS has α
in it as `alphas_normal` and `alphas_reduce`; entries of these names are read from any state dict.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fastnas.errors import UserError
from fastnas.nn import MixedOp, Supernet
from fastnas.nn.cell import SearchCell
from fastnas.nn.primitives import DepthwiseStage, FactorizedReduce, ReLUConvNorm, SeparableConv
from fastnas.nn.stem import CIFARStem
from fastnas.spaces import CELL_KINDS, CellSpace, find

SPACES = {"darts": "darts", "pc-darts": "darts", "egnas": "egnas"}
"""What a foreign code base is called → its space."""

ALPHAS = {kind: f"alphas_{kind}" for kind in CELL_KINDS}
BETAS = {kind: f"betas_{kind}" for kind in CELL_KINDS}
APART = {*ALPHAS.values(), *BETAS.values()}  # often added by hand, without the prefix of a wrapper
WRAPPERS = ("module.", "_orig_mod.")  # of DataParallel and DistributedDataParallel, of torch.compile
STEM_MULTIPLIER = 3
LISTED = 3  # names in an error


def load_supernet(state_dict: Mapping[str, Tensor], space: str | CellSpace, *, backend: str = "auto") -> Supernet:
    """Our supernet with the weights of a foreign one: the same logits, and a search can go on.

    Channels, cells, classes, image channels, partial channels and the stem are read off the shapes. Prefixes `module.`
    (DataParallel) and `_orig_mod.` (torch.compile) are dropped.

    Args:
        state_dict: of the foreign network. α is taken from its entries `alphas_normal` and `alphas_reduce` [E, O],
            before the softmax. EG-NAS has them; to those of DARTS and PC-DARTS add them:
            ``{**model.state_dict(), "alphas_normal": model.alphas_normal, "alphas_reduce": model.alphas_reduce}``.
            Without them there is a warning, and α starts anew at 1e-3·N(0, 1). `betas_normal` and `betas_reduce` of
            PC-DARTS may be there, too: `load_betas` reads them.
        space: "darts", "pc-darts", "egnas", or a `CellSpace` whose candidates are in the order of the foreign ones.
        backend: of the supernet.

    Returns:
        A `Supernet` on the CPU, in training mode, of the dtype of the foreign classifier.

    Raises:
        UserError: this is not a state dict, a key is missing or unknown, a shape does not fit, or the keys are those of
            another space.
    """
    cells = _cell_space(space)
    found = _unwrapped(state_dict)
    options = _options(found)
    with torch.device("meta"):  # a large network is built only if the weights are there
        expected = Supernet(cells, **options)
    names, shapes = _foreign_names(expected), expected.state_dict()
    _check(found, {theirs: shapes[ours] for ours, theirs in names.items()}, cells)
    network = Supernet(cells, **options, backend=backend)
    own = network.state_dict()
    network.to(found["classifier.weight"].dtype)
    network.load_state_dict(own | {ours: found[theirs] for ours, theirs in names.items() if theirs in found})
    alphas = _tables(found, ALPHAS, tuple(network.alphas["normal"].shape))
    if not alphas:
        warnings.warn(
            "the state dict holds no α, which starts anew: add alphas_normal and alphas_reduce to it to go on from "
            "where the search was.",
            stacklevel=2,
        )
    with torch.no_grad():
        for kind, alpha in alphas.items():
            network.alphas[kind].copy_(alpha)
    return network


def load_betas(state_dict: Mapping[str, Tensor], space: str | CellSpace = "pc-darts") -> dict[str, Tensor]:
    """β of PC-DARTS, before its softmax over the edges of a node: {"normal": [E], "reduce": [E]}, {} if there is none.

    The weights of the edges, as `Supernet.forward` takes them, are ``edge_softmax(beta, network.space)`` of
    `fastnas.strategies.pc_darts`.

    Raises:
        UserError: one of the two is missing, or has another shape.
    """
    return _tables(_unwrapped(state_dict), BETAS, (len(_cell_space(space).edges),))


def foreign_state_dict(network: Supernet, naming: str) -> dict[str, Tensor]:
    """The weights of a supernet of ours under the names of another code base; the inverse of `load_supernet`.

    Args:
        network: in the space of that code base, or in a `CellSpace` of your own.
        naming: "darts", "pc-darts" or "egnas". The last has α in its state dict; for the others copy it by hand:
            ``model.alphas_normal.data.copy_(network.alphas["normal"])``.

    Returns:
        What their ``load_state_dict`` takes, sharing memory with the network as a state dict does.

    Raises:
        UserError: an unknown naming, or a network of another space.
    """
    if naming not in SPACES:
        raise UserError(f"unknown naming {naming!r}: expected {', '.join(SPACES)}.")
    named = network.space.name in SPACES.values()
    if tuple(network.space.kinds) != CELL_KINDS or (named and network.space.name != SPACES[naming]):
        raise UserError(
            f"the network has the space {network.space.name!r}, but {naming!r} has {SPACES[naming]!r}: "
            "choose the naming of its own space."
        )
    own = network.state_dict()
    alphas = {name: own[f"alphas.{kind}"] for kind, name in ALPHAS.items()} if naming == "egnas" else {}
    return alphas | {theirs: own[ours] for ours, theirs in _foreign_names(network).items()}


# --- names ---

_STAGE = ("depthwise", "pointwise", "norm")


def _layers(module: nn.Module) -> dict[str, str]:
    """Our name → theirs, of each layer with tensors in a candidate or a preprocessing."""
    match module:
        case FactorizedReduce():
            return {"conv_even": "conv_1", "conv_odd": "conv_2", "norm": "bn"}
        case ReLUConvNorm():
            return {"conv": "op.1", "norm": "op.2"}
        case SeparableConv():
            first = {f"0.{name}": f"op.{i}" for i, name in enumerate(_STAGE, 1)}
            return first | {f"1.{name}": f"op.{i}" for i, name in enumerate(_STAGE, 5)}
        case DepthwiseStage():
            return {name: f"op.{i}" for i, name in enumerate(_STAGE, 1)}
    # Sequences of plain layers, such as a pool and its normalisation, look the same on both sides.
    return {name: name for name, layer in module.named_modules() if [*layer.parameters(False), *layer.buffers(False)]}


def _foreign_layers(network: Supernet) -> dict[str, str]:
    if isinstance(network.stem, CIFARStem):
        layers = {"stem.conv": "stem.0", "stem.norm": "stem.1"}
    else:
        layers = {f"stem.stem0.{i}": f"stem0.{i}" for i in (0, 1, 3, 4)}
        layers |= {"stem.stem1.conv": "stem1.1", "stem.stem1.norm": "stem1.2"}
    for i, cell in enumerate(network.cells):
        assert isinstance(cell, SearchCell)
        places = {f"preprocess{j}": (getattr(cell, f"preprocess{j}"), f"preprocess{j}") for j in (0, 1)}
        for e, edge in enumerate(cell.edges):
            assert isinstance(edge, MixedOp)
            for o, candidate in enumerate(edge.candidates):
                places[f"edges.{e}.candidates.{o}"] = candidate, f"_ops.{e}._ops.{o}"
        for place, (module, foreign) in places.items():
            layers |= {f"cells.{i}.{place}.{a}": f"cells.{i}.{foreign}.{b}" for a, b in _layers(module).items()}
    return layers | {"classifier": "classifier"}


def _foreign_names(network: Supernet) -> dict[str, str]:
    """Our name → theirs, of every weight and buffer except α."""
    layers = _foreign_layers(network)
    names = {}
    for name in network.state_dict():
        layer, _, tensor = name.rpartition(".")
        if layer != "alphas":
            names[name] = f"{layers[layer]}.{tensor}"
    return names


# --- what a state dict says of its network ---


def _cell_space(space: str | CellSpace) -> CellSpace:
    if isinstance(space, str):
        if space not in SPACES:
            raise UserError(f"unknown space {space!r} of a foreign supernet: expected {', '.join(SPACES)}.")
        return find(SPACES[space])
    if tuple(space.kinds) != CELL_KINDS or space.inputs != 2:
        raise UserError(f"space {space.name!r} has cells that DARTS, PC-DARTS and EG-NAS do not have.")
    return space


def _unwrapped(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    found = dict(state_dict)
    for name, value in found.items():
        if not isinstance(name, str):
            raise UserError(
                f"the key {name!r} of the state dict is a {type(name).__name__}, expected a parameter's name: give "
                "what state_dict() of the network returns."
            )
        if not isinstance(value, Tensor):
            raise UserError(
                f"{name!r} of the state dict is a {type(value).__name__}, expected a tensor: give the state dict "
                "itself, for example checkpoint['state_dict']."
            )
        if value.layout != torch.strided or value.is_quantized or value.is_complex():
            raise UserError(f"{name!r} of the state dict is no plain tensor of numbers: save the weights as floats.")
    while wrapped := [prefix for prefix in WRAPPERS if any(name.startswith(prefix) for name in found)]:
        (prefix, *_) = wrapped
        if bare := [name for name in found if not name.startswith(prefix) and name not in APART]:
            inside = next(name for name in found if name.startswith(prefix))
            raise UserError(
                f"some keys of the state dict begin with {prefix!r} and some do not ({inside!r}, {bare[0]!r}): "
                "give the state dict of one network."
            )
        found = {name.removeprefix(prefix): value for name, value in found.items()}
    return found


def _options(found: Mapping[str, Tensor]) -> dict[str, Any]:
    """The options of the supernet, as far as shapes tell; contradictions are left to `_check`."""
    stem, first = ("imagenet", "stem0.0.weight") if "stem0.0.weight" in found else ("cifar", "stem.0.weight")
    last = "stem0.3.weight" if stem == "imagenet" else first
    preprocess = "cells.0.preprocess1.op.1.weight"
    if missing := [name for name in (first, last, preprocess, "classifier.weight") if name not in found]:
        raise UserError(
            f"the state dict lacks {missing[0]!r}, so it is not that of a supernet of DARTS, PC-DARTS or EG-NAS "
            f"while searching; it has {_some(found) or 'no keys'}."
        )
    for name, dimensions in ((first, 4), (last, 4), (preprocess, 4), ("classifier.weight", 2)):
        if found[name].dim() != dimensions or not found[name].is_floating_point():
            raise UserError(
                f"{name!r} of the state dict is {found[name].dtype} {list(found[name].shape)}, expected a weight of "
                f"{dimensions} dimensions in floating point."
            )
    indices = (re.match(r"cells\.([0-9]{1,7})\.", name) for name in found)
    layers = 1 + max(int(index[1]) for index in indices if index)
    out_channels = found[last].shape[0]
    width = found[preprocess].shape[0]  # of the first cell, which reduces if there are one or two
    channels = width if layers >= 3 else width // 2
    if out_channels != STEM_MULTIPLIER * channels:
        raise UserError(
            f"the stem has {out_channels} channels and the first cell {channels}: expected {STEM_MULTIPLIER} times as "
            f"many in the stem (stem_multiplier={STEM_MULTIPLIER})."
        )
    # A factorized reduction has convolutions of half the width, but its normalisation has all of it.
    edge = [t.shape[0] for name, t in found.items() if name.startswith("cells.0._ops.0._ops.") and t.dim()]
    if not edge or not max(edge) or width % max(edge):
        raise UserError(
            f"the first edge has weights for {max(edge, default=0)} of {width} channels, expected one share of them "
            "for all candidates: the number of partial channels cannot be told."
        )
    return {
        "channels": channels,
        "layers": layers,
        "num_classes": found["classifier.weight"].shape[0],
        "in_channels": found[first].shape[1],
        "partial_channels": width // max(edge),
        "stem": stem,
    }


def _check(found: Mapping[str, Tensor], expected: Mapping[str, Tensor], space: CellSpace) -> None:
    missing, unknown = _difference(found, expected)
    if missing or unknown:
        parts = [f"lacks {_some(missing)}"] if missing else []
        parts += [f"has {_some(unknown)}, which such a network does not have"] if unknown else []
        other = _resembling(found)
        advice = f"its keys are those of the space {other!r}." if other else "give the state dict of the whole network."
        raise UserError(
            f"this is not the state dict of a supernet of the space {space.name!r}: it {' and '.join(parts)}; {advice}"
        )
    for name, tensor in expected.items():
        if name in found and found[name].shape != tensor.shape:
            raise UserError(
                f"{name!r} of the state dict has shape {list(found[name].shape)}, expected {list(tensor.shape)} from "
                "the other shapes."
            )


def _difference(found: Iterable[str], expected: Iterable[str]) -> tuple[list[str], list[str]]:
    """The weights that are missing, and the names that are not expected."""
    found, expected = dict.fromkeys(found), dict.fromkeys(expected)
    # PyTorch before 0.4.1 did not count batches.
    missing = [name for name in expected if name not in found and not name.endswith("num_batches_tracked")]
    return missing, [name for name in found if name not in expected and name not in APART]


def _resembling(found: Mapping[str, Tensor]) -> str | None:
    """The known space whose supernets have just these keys."""
    for space in dict.fromkeys(SPACES.values()):
        with torch.device("meta"):
            network = Supernet(space, **_options(found))
        if _difference(found, _foreign_names(network).values()) == ([], []):
            return space
    return None


def _tables(found: Mapping[str, Tensor], names: Mapping[str, str], shape: tuple[int, ...]) -> dict[str, Tensor]:
    """α or β of both kinds of cells, {} where there are none."""
    present = {kind: found[name].detach() for kind, name in names.items() if name in found}
    if missing := [name for kind, name in names.items() if present and kind not in present]:
        raise UserError(f"the state dict lacks {missing[0]!r}: expected both of {' and '.join(names.values())}.")
    for kind, table in present.items():
        if tuple(table.shape) != shape:
            raise UserError(f"{names[kind]!r} has shape {list(table.shape)}, expected {list(shape)}.")
    return present


def _some(names: Iterable[str]) -> str:
    names = list(names)
    rest = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return ", ".join(repr(name) for name in names[:LISTED]) + rest
