"""How running averages follow, against torch."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from fastnas.nn.fused.batch_norm import Affine, BatchStats, Normalizer


@pytest.mark.parametrize("momentum", [0.1, 0.7, None])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_running_averages_follow(momentum: float | None, dtype: torch.dtype) -> None:
    """Those of norms of several momenta, one with a shift, in one pass."""
    norms = [nn.BatchNorm2d(4, momentum=momentum).to(dtype), nn.BatchNorm2d(4, momentum=0.2).to(dtype)]
    twins = copy.deepcopy(norms)
    acc_dtype = torch.float64 if dtype == torch.float64 else torch.float32
    shift = torch.randn(4, dtype=acc_dtype)
    for _ in range(3):
        normalizer = Normalizer(True, acc_dtype)
        for norm, twin in zip(norms, twins, strict=True):
            y = torch.randn(2, 4, 3, 3, dtype=acc_dtype)
            variance, mean = torch.var_mean(y, (0, 2, 3), correction=0)
            stats = BatchStats(mean.view(1, 1, -1), variance.view(1, 1, -1), 18)
            normalizer.normalization([norm], stats, [Affine(None, None, shift)])
            twin((y + shift.view(-1, 1, 1)).to(dtype))
        normalizer.follow()
    tolerance = 0.05 if dtype == torch.bfloat16 else 1e-5
    for norm, twin in zip(norms, twins, strict=True):
        for buffer, expected in zip(norm.buffers(), twin.buffers(), strict=True):
            torch.testing.assert_close(buffer, expected, rtol=tolerance, atol=tolerance)
