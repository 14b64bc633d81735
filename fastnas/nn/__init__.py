"""Networks: candidates, mixed operations, cells, the supernet, and the network that a genotype stands for."""

from fastnas.nn.derived import DerivedNetwork
from fastnas.nn.mixed_op import MixedOp
from fastnas.nn.supernet import Supernet

__all__ = ["DerivedNetwork", "MixedOp", "Supernet"]
