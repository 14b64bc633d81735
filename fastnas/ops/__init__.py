"""The fused operators: `torch.ops.fastnas.*` with autograd, for use in any PyTorch code."""

from fastnas.ops.mixed_sum import mixed_sum, mixed_sum_reference
from fastnas.ops.stage import stage, stage_reference

__all__ = ["mixed_sum", "mixed_sum_reference", "stage", "stage_reference"]
