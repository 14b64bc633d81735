"""fastnas: neural architecture search for PyTorch whose inner loops run on fused C++ and CUDA operators."""

from fastnas.counting import count_macs, count_parameters
from fastnas.genotype import Genotype
from fastnas.version import __version__

__all__ = ["Genotype", "__version__", "count_macs", "count_parameters"]
