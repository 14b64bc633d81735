"""`--space python:MODULE:OBJECT` of commands that build no space: it registers the user's own candidates."""

from __future__ import annotations

from fastnas import spaces


def import_space(space: str | None) -> None:
    """Imports the module of a space, which registers its candidates. UserError if there is no such space."""
    if space is not None:
        spaces.find(space)
