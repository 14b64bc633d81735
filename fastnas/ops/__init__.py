"""The fused operators: `torch.ops.fastnas.*` with autograd, for use in any PyTorch code.

docs/operators.md lists them. `<operator>_reference` is the same in plain torch.
"""

from fastnas.ops.augment_batch import augment_batch, augment_batch_reference, normalization_table
from fastnas.ops.color_jitter import color_jitter, color_jitter_reference
from fastnas.ops.edge_sum import edge_sum, edge_sum_reference
from fastnas.ops.mixed_sum import mixed_sum, mixed_sum_reference
from fastnas.ops.node_sum import node_sum, node_sum_reference
from fastnas.ops.philox import philox, philox_reference
from fastnas.ops.pool import pool, pool_reference
from fastnas.ops.preprocess import preprocess, preprocess_reference
from fastnas.ops.stage import stage, stage_reference

__all__ = [
    "augment_batch",
    "augment_batch_reference",
    "color_jitter",
    "color_jitter_reference",
    "edge_sum",
    "edge_sum_reference",
    "mixed_sum",
    "mixed_sum_reference",
    "node_sum",
    "node_sum_reference",
    "normalization_table",
    "philox",
    "philox_reference",
    "pool",
    "pool_reference",
    "preprocess",
    "preprocess_reference",
    "stage",
    "stage_reference",
]
