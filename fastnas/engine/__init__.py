"""The engine: loops, checkpoints and logs that every strategy shares."""

from fastnas.engine.loop import DivergedError
from fastnas.engine.search import Outcome, Search

__all__ = ["DivergedError", "Outcome", "Search"]
