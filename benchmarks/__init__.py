"""Measurements of fastnas against plain PyTorch: `python -m benchmarks --help`."""
