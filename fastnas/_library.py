"""Loads the compiled operators, or says why they cannot be loaded."""

from __future__ import annotations

import torch

try:
    from fastnas import _C
except ImportError as error:
    if "FASTNAS_ISA" in str(error):
        raise ImportError(f"{error}: set it to another value, or unset it.") from None
    raise ImportError(
        f"fastnas' compiled operators did not load ({error}). They run on torch 2.11 and later, and this is "
        f"{torch.__version__}. Where that is new enough, build them with `pip install -e . --no-build-isolation` in "
        "the source folder, with the Python that you use."
    ) from error

__all__ = ["_C"]
