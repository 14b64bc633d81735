"""A derived network in files: a JSON description, and weights in the safetensors format beside it."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fastnas.atomic_file import replace_files
from fastnas.errors import UserError
from fastnas.genotype import Genotype
from fastnas.input_file import cannot_read, check_file, read_json
from fastnas.version import __version__

KIND = "fastnas.nn.DerivedNetwork"
FORMAT = 1
DESCRIPTION = "network.json"
_OPTIONS = {"channels": int, "layers": int, "num_classes": int, "in_channels": int, "auxiliary": bool, "stem": str}


def save_network(network: Any, path: Path, about: dict[str, Any]) -> Path:
    """See `DerivedNetwork.save`."""
    from safetensors.torch import save  # here and below: networks run without it

    path = _description_of(path)
    weights = path.with_suffix(".safetensors")
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()}
    content = save(tensors, metadata={"kind": KIND})
    description = {
        "kind": KIND,
        "format": FORMAT,
        "fastnas_version": __version__,
        "weights": weights.name,
        "weights_sha256": hashlib.sha256(content).hexdigest(),
        "genotype": "HERE",
        "options": network.options,
        "about": about,
        "sha256": "",
    }
    # json.dumps cannot write one line for each node.
    text = json.dumps(description, indent=2, ensure_ascii=False).replace(
        '"HERE"', network.genotype.to_text().replace("\n", "\n  "), 1
    )
    digest = _digest_of(json.loads(text))
    text = f'"sha256": "{digest}"'.join(text.rsplit('"sha256": ""', 1)) + "\n"
    replace_files({weights: content, path: text}, "the network")
    return path


def _description_of(path: Path) -> Path:
    """The description that a name stands for: itself, the one beside weights, or the name with `.json` appended,
    whatever other dots it holds."""
    if path.suffix in (".json", ".safetensors"):
        return path.with_suffix(".json")
    return path.with_name(path.name + ".json")


def load_network(path: Path) -> tuple[Genotype, dict[str, Any], dict[str, Any], dict[str, Tensor]]:
    """Genotype, options, what `about` holds, and the weights."""
    path = path / DESCRIPTION if os.path.isdir(path) else _description_of(path)
    description = read_json(
        path, f"the network {str(path)!r}", "give the JSON file that DerivedNetwork.save wrote, or its folder"
    )
    if not isinstance(description, dict) or description.get("kind") != KIND:
        raise UserError(
            f"{str(path)!r} does not describe a network of fastnas: give a file that DerivedNetwork.save wrote."
        )
    if description.get("format") != FORMAT:
        raise UserError(
            f"{str(path)!r} has format {description.get('format')!r}, this version reads format {FORMAT}: upgrade "
            "fastnas, or save the network again."
        )
    options, about, weights = (description.get(name) for name in ("options", "about", "weights"))
    if not isinstance(options, dict) or {name: type(value) for name, value in options.items()} != _OPTIONS:
        raise UserError(f"{str(path)!r}: expected the options {', '.join(_OPTIONS)}; save the network again.")
    if not isinstance(about, dict) or not isinstance(weights, str) or not weights or Path(weights).name != weights:
        raise UserError(f"{str(path)!r} names no weights file beside it: save the network again.")
    try:
        genotype = Genotype.from_dict(description.get("genotype", {}))
    except UserError as error:
        raise UserError(f"{str(path)!r}: {error}") from error
    tensors = _read_weights(path.with_name(weights), description.get("weights_sha256"))
    if "sha256" in description and description["sha256"] != _digest_of(description):
        raise UserError(
            f"{str(path)!r} is damaged: it is not what was saved; copy it again, or save the network again."
        )
    return genotype, options, about, tensors


def check_weights(network: nn.Module, weights: dict[str, Tensor], path: Path) -> None:
    """Raises UserError, naming the first difference, if the weights belong to another network; it may be on "meta"."""
    expected = network.state_dict()
    for name in [*expected, *weights]:
        have, want = weights.get(name), expected.get(name)
        if _described(have) != _described(want):
            raise UserError(
                f"the weights of {str(path)!r} are of another network: {name} is {_described(have)}, expected "
                f"{_described(want)}; keep the description and the weights of one network together."
            )


def _described(value: Any) -> str:
    if not isinstance(value, Tensor) or value.layout != torch.strided:
        return "absent" if value is None else f"a {type(value).__name__}"
    kind = "" if value.is_floating_point() else f" of {str(value.dtype).removeprefix('torch.')}"
    return f"{list(value.shape)}{kind}"


def _read_weights(path: Path, digest: Any) -> dict[str, Tensor]:
    """digest: of the file, as its description has it; None in descriptions of before."""
    from safetensors import SafetensorError
    from safetensors.torch import load

    advice = "keep them beside the description"
    check_file(path, f"the weights {str(path)!r}", advice)
    try:
        content = path.read_bytes()
        tensors = load(content)
    except OSError as error:
        raise cannot_read(f"the weights {str(path)!r}", error, advice) from error
    except (SafetensorError, ValueError, RuntimeError) as error:
        reason = str(error).split("\n", 1)[0]
        raise UserError(f"{str(path)!r} is damaged or no safetensors file ({reason}): copy it again.") from error
    if digest is not None and digest != hashlib.sha256(content).hexdigest():
        raise UserError(
            f"the weights {str(path)!r} are damaged or of another network: they are not those that were saved with the "
            "description; copy both again."
        )
    return tensors


def _digest_of(description: dict[str, Any]) -> str:
    """Of everything else in a description, however it is laid out."""
    rest = {name: value for name, value in description.items() if name != "sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()
