"""The engine: loops, checkpoints and logs that every strategy shares."""

from fastnas.engine.search import DivergedError, Outcome, Search

__all__ = ["DivergedError", "Outcome", "Search"]
