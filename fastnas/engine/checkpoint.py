"""Checkpoints: written completely or not at all, read without unpickling anything but tensors and plain values.

The file is what `torch.save` writes, a zip archive. Its archive comment holds the SHA-256 of all bytes before it, so
that a damaged file is refused, and `torch.load` reads it all the same. Files without a digest are read as well.
"""

from __future__ import annotations

import hashlib
import io
import random
import re
from collections.abc import Mapping
from pathlib import Path
from types import NoneType
from typing import Any

import numpy as np
import torch

from fastnas.atomic_file import replace_file
from fastnas.errors import UserError

FORMAT = 1
DIGEST = b"fastnas sha256 "  # before the digest in the archive comment
END = b"PK\x05\x06"  # begins the last record of a zip archive, 22 bytes without the comment
TAIL = 2 + len(DIGEST) + 64  # bytes: the length of the comment, the comment

Layout = Mapping[str, Any]
"""The keys that a mapping must have, each with its type, its types, or the layout of the mapping that it is."""


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Replaces `path`. Whatever happens meanwhile, power loss included, there is always one whole checkpoint.

    Raises:
        UserError: it cannot be written; the old checkpoint is still there.
    """
    file = io.BytesIO()
    torch.save({"format": FORMAT, **state}, file)
    file.seek(-2, io.SEEK_END)  # the length of the archive comment, which is the end of the file
    tail = _tail(file.getbuffer()[:-2])
    file.write(tail)
    replace_file(path, file.getbuffer(), "the checkpoint")


def load_checkpoint(path: Path) -> dict[str, Any]:
    """What `save_checkpoint` was given, tensors on the CPU. UserError, naming the file, if it is not a checkpoint."""
    try:
        content = path.read_bytes() if path.is_file() else None
    except OSError as error:
        raise UserError(f"cannot read the checkpoint {path}: {error.strerror}; make it readable.") from error
    if content is None:
        raise UserError(f"no checkpoint at {path}: give the directory of a run that has begun.")
    # Without a digest the archive ends in a comment of no length.
    if content[-TAIL:] != _tail(memoryview(content)[:-TAIL]) and content[-22:-18] != END:
        raise UserError(
            f"{path} is not a checkpoint of fastnas, or damaged since it was written: restore a copy or start anew."
        )
    try:
        state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # damaged bytes make the reader fail in any way
        raise UserError(
            f"{path} is not a checkpoint of fastnas ({refusal(error)}): restore a copy, or start a new run."
        ) from error
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise UserError(f"{path} has a format this version does not read: resume with the version that wrote it.")
    return state


def check_layout(state: Any, layout: Layout, path: Path, where: str = "") -> None:
    """UserError, with the first key that is missing or of another type, unless a checkpoint has a layout."""
    for key, expected in layout.items():
        name = f"{where}{key}"
        if key not in state:
            raise UserError(f"the checkpoint {path} lacks {name!r}: it is not one of such a run; start a new run.")
        value, nested = state[key], isinstance(expected, Mapping)
        kinds = (dict,) if nested else expected if isinstance(expected, tuple) else (expected,)
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            wanted = " or ".join("None" if kind is NoneType else kind.__name__ for kind in kinds)
            raise UserError(
                f"{name!r} in the checkpoint {path} is a {type(value).__name__}, expected {wanted}; start a new run."
            )
        if nested:
            check_layout(value, expected, path, f"{name}.")


def refusal(error: Exception) -> str:
    """Why `torch.load` refuses a file, in a few words: its own message is a page, with the reason at the end."""
    text = str(error)
    if found := re.search(r"GLOBAL (\S+)", text):
        kind = "a NumPy value" if found[1].startswith("numpy") else "an object"
        return f"it holds {kind}, {found[1][:80]}, where only tensors and plain values are read"
    return f"{type(error).__name__}: {text}".split("\n", 1)[0][:200]


def _tail(body: memoryview) -> bytes:
    comment = DIGEST + hashlib.sha256(body).hexdigest().encode()
    return len(comment).to_bytes(2, "little") + comment


def random_state() -> dict[str, Any]:
    """The state of every global random generator that user code or a strategy may draw from."""
    _, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    version, internal, gauss = random.getstate()
    return {
        "python": [version, list(internal), gauss],
        "numpy": [torch.from_numpy(np.asarray(keys).astype(np.int64)), position, has_gauss, cached],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def set_random_state(state: dict[str, Any]) -> None:
    """The inverse of `random_state`. CUDA generators are restored where there are as many devices as there were."""
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state(("MT19937", keys.numpy().astype(np.uint32), position, has_gauss, cached))
    torch.set_rng_state(state["torch"])
    if state["cuda"] and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])
