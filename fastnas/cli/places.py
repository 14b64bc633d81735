"""Where the images of a run lie: found again from another working directory, and after they moved."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any, TypeVar

from fastnas.cli.run_directory import RECORDS, RUN_EVENT
from fastnas.data import SOURCES
from fastnas.input_file import path_of

PLACES = ("data", "test")
"""Options of the images that say where they lie."""

Options = TypeVar("Options", bound=Any)


def absolute(spec: str | None) -> str | None:
    """Where images lie, such as folder:ROOT, independent of the working directory."""
    kind, path = _split(spec)
    return f"{kind}:{path_of(path).absolute()}" if path else spec


def with_absolute_places(options: Options, directory: Path | None = None) -> Options:
    """The options with the images where they are found from any working directory.

    Args:
        directory: of a run that goes on. Images that are no longer where they were are looked for at the same place
            relative to it, for it may have moved together with them.
    """
    places = {name: absolute(getattr(options.data, name)) for name in PLACES if hasattr(options.data, name)}
    former = None if directory is None else _former_directory(directory)
    if directory is not None and former is not None:
        for name, spec in places.items():
            kind, path = _split(spec)
            moved = os.path.normpath(directory.absolute() / os.path.relpath(path, former)) if path else ""
            if path and not os.path.exists(path) and os.path.exists(moved):
                places[name] = f"{kind}:{moved}"
    return dataclasses.replace(options, data=dataclasses.replace(options.data, **places))


def same_kind(before: Any, after: Any, movable: bool) -> bool:
    """Whether two places of images may mean the same: both in a folder or a file, and perhaps in another one."""
    if not isinstance(before, str) or not isinstance(after, str):
        return False
    (kind, path), (other_kind, other_path) = _split(before), _split(after)
    return kind == other_kind and bool(path and other_path) and (movable or absolute(before) == absolute(after))


def _split(spec: str | None) -> tuple[str, str]:
    """Kind and path of a source; no path where its kind has none."""
    kind, _, path = (spec or "").partition(":")
    placeholder, _ = SOURCES.get(kind, ("", None))
    return kind, path if placeholder else ""


def _former_directory(directory: Path) -> str | None:
    """Where a run directory was when its run last began or went on; None where its records do not say."""
    for path in (directory / RECORDS, *sorted(directory.glob(f"seed-*/{RECORDS}"))):
        try:
            with path.open("rb") as file:
                *_, last = (line for line in file if line.startswith(RUN_EVENT))
            where = os.fspath(json.loads(last)["directory"])
            return where if path.parent == directory else os.path.dirname(where)
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return None
