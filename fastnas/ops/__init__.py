"""The fused operators: `torch.ops.fastnas.*` with autograd, for use in any PyTorch code."""

from fastnas.ops.mixed_sum import mixed_sum, mixed_sum_reference
from fastnas.ops.preprocess import preprocess, preprocess_reference

__all__ = ["mixed_sum", "mixed_sum_reference", "preprocess", "preprocess_reference"]
