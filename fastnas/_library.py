"""Loads the compiled operators, or says why they cannot be loaded."""

from __future__ import annotations

import torch  # noqa: F401  (its libraries must be loaded before the extension, which is linked against them)

try:
    from fastnas import _C
except ImportError as error:
    if "FASTNAS_ISA" in str(error):
        raise ImportError(f"{error}: set it to another value, or unset it.") from None
    raise ImportError(
        f"fastnas' compiled operators did not load ({error}). Build them with `pip install -e . --no-build-isolation` "
        "in the source folder, in the environment whose torch you use; after changing torch's version, build again."
    ) from error

__all__ = ["_C"]
