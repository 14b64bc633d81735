"""Errors that a user can act on."""

from __future__ import annotations


class UserError(Exception):
    """Something the user gave cannot work: a path, a file, an option.

    The message says what was given, what was expected and what to do. The command line prints it as one line,
    without a traceback, and exits with status 2.
    """
