"""The names that genotypes and spaces use for candidate operations: the built-in ones and those that were registered.

`fastnas.nn.primitives` builds the candidates; a genotype needs their names only.
"""

from __future__ import annotations

import difflib
import re

from fastnas.errors import UserError

BUILT_IN = (
    "none",
    "max_pool_3x3",
    "avg_pool_3x3",
    "skip_connect",
    "sep_conv_3x3",
    "sep_conv_5x5",
    "sep_conv_7x7",
    "dil_conv_3x3",
    "dil_conv_5x5",
    "conv_7x1_1x7",
    "nor_conv_1x1",
    "nor_conv_3x3",
)
_names = dict.fromkeys(BUILT_IN)


def primitive_names() -> tuple[str, ...]:
    """All known names, the built-in ones first."""
    return tuple(_names)


def register_name(name: str) -> None:
    """Makes a name valid in genotypes.

    Raises:
        UserError: an invalid name, or that of a built-in candidate.
    """
    if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z_]\w*", name, re.ASCII):
        raise UserError(f"{name!r} cannot name a primitive: use letters, digits and _, and no digit first.")
    if name in BUILT_IN:
        raise UserError(f"{name!r} is already a primitive of fastnas: choose another name.")
    _names[name] = None


def check_primitive(name: object) -> None:
    """Raises `UserError`, with the nearest known name, if `name` is not the name of a primitive."""
    if isinstance(name, str) and name in _names:
        return
    nearest = difflib.get_close_matches(name, _names, n=1) if isinstance(name, str) else []
    advice = f"did you mean {nearest[0]!r}?" if nearest else f"known are {', '.join(_names)}."
    own = " Your own are known once their module is imported: --space python:MODULE:OBJECT." if not nearest else ""
    raise UserError(f"unknown primitive {name!r}: {advice}{own}")
