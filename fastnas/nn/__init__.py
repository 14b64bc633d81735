"""Networks: candidates, mixed operations, cells, the supernet, and the network that a genotype stands for."""

from fastnas.nn.derived import DerivedNetwork
from fastnas.nn.mixed_op import MixedOp
from fastnas.nn.nb201 import NB201Network
from fastnas.nn.primitives import register_primitive
from fastnas.nn.supernet import Supernet

__all__ = ["DerivedNetwork", "MixedOp", "NB201Network", "Supernet", "register_primitive"]
