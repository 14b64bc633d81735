"""The fused operators: `torch.ops.fastnas.*` with autograd, for use in any PyTorch code."""

from fastnas.ops.mixed_sum import mixed_sum, mixed_sum_reference
from fastnas.ops.pool import pool, pool_reference

__all__ = ["mixed_sum", "mixed_sum_reference", "pool", "pool_reference"]
