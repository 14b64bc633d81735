"""What all measurements share: turns, ceilings, peak memory, tables, and the networks of the end-to-end ones."""

from benchmarks.harness.timing import CHANNELS_LAST, COMPILED, FASTNAS, FASTNAS_GRAPHED, GRAPHED, PLAIN, Row, compare

__all__ = ["CHANNELS_LAST", "COMPILED", "FASTNAS", "FASTNAS_GRAPHED", "GRAPHED", "PLAIN", "Row", "compare"]
