"""The engine: loops, checkpoints and logs that every strategy shares."""

from fastnas.engine.search import Diverged, Outcome, Search

__all__ = ["Diverged", "Outcome", "Search"]
