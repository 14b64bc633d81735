"""Objects from the user's own code, named on the command line as `python:MODULE:OBJECT`."""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from typing import Any

from fastnas.errors import UserError

PREFIX = "python:"


def load_object(text: str, what: str) -> Any:
    """The object that `MODULE:OBJECT` names, with or without `python:` in front. MODULE may be in the working folder.

    Args:
        text: the name, as the user gave it.
        what: what is being loaded, for messages: "space", "evaluator".

    Raises:
        UserError: no such module or object, or a module whose code fails.
    """
    module, _, name = text.removeprefix(PREFIX).partition(":")
    if not module or not name:
        raise UserError(f"the {what} {text!r} names no object: expected {PREFIX}MODULE:OBJECT.")
    if os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.append(os.getcwd())
    try:
        found: Any = importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise UserError(
            f"the {what} {PREFIX}{module}:{name} cannot be imported: {error}; is its folder on PYTHONPATH?"
        ) from error
    except (Exception, SystemExit) as error:  # whatever the user's module raises
        raise UserError(
            f"the {what} {PREFIX}{module}:{name} cannot be imported: its code raised {reason_of(error)}"
        ) from error
    try:
        return getattr(found, name)
    except AttributeError as error:
        raise UserError(
            f"the {what} {PREFIX}{module}:{name} cannot be imported: {error}; give the name of what the module defines."
        ) from error


def reason_of(error: BaseException) -> str:
    """One line about what a user's code has raised: kind, message, and where."""
    text = f"{type(error).__name__}: {error}".rstrip(": ").split("\n", 1)[0][:200]
    frames = traceback.extract_tb(error.__traceback__)
    if isinstance(error, SyntaxError) or not frames:
        return text  # which names the line itself
    return f"{text} ({frames[-1].filename}, line {frames[-1].lineno})"
