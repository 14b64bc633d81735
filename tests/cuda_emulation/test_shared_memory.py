"""Cards differ in the shared memory that a block may have; launches ask for no more than the one at hand allows."""

from __future__ import annotations

import pytest
import torch
from cuda_emulation import emulation
from cuda_emulation.emulation import SHARED_KIB

from fastnas.ops import edge_sum, stage

pytestmark = [
    pytest.mark.emulated,
    pytest.mark.skipif(
        not emulation.library_path().is_file(), reason="the CUDA kernels are not built for the CPU: make emulation"
    ),
]

CANDIDATES = ((3, 1), (5, 1), (3, 2), (5, 2))  # (kernel, dilation), those of DARTS


def weights(channels: int, kernels: list[int]) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Depthwise [C, 1, K, K] and pointwise [C, C, 1, 1]."""
    depthwise = [torch.randn(channels, 1, kernel, kernel, requires_grad=True) for kernel in kernels]
    return depthwise, [torch.randn(channels, channels, 1, 1, requires_grad=True) for _ in kernels]


@pytest.mark.parametrize("kib", SHARED_KIB)
@pytest.mark.parametrize(("channels", "stride"), [(16, 1), (64, 1), (64, 2)])
def test_stages(kib: int, channels: int, stride: int, seed: int) -> None:
    x = torch.randn(1, channels, 16, 16).contiguous(memory_format=torch.channels_last).requires_grad_()
    depthwise, pointwise = weights(channels, [kernel for kernel, _ in CANDIDATES])
    with emulation.emulated("shuffled", seed, kib):
        outputs, *_ = stage([x], depthwise, pointwise, [dilation for _, dilation in CANDIDATES], stride)
        sum(output.square().sum() for output in outputs).backward()


@pytest.mark.parametrize("kib", SHARED_KIB)
@pytest.mark.parametrize("channels", [16, 64])
def test_edge_sums_of_individuals_that_share_their_images(kib: int, channels: int, seed: int) -> None:
    individuals = 8
    x = torch.randn(1, channels, 16, 16).contiguous(memory_format=torch.channels_last)
    depthwise, pointwise = ([w.detach() for w in each] for each in weights(channels, [3, 3, 5, 5]))
    scales, offsets = torch.randn(individuals, 1, 5, channels), torch.randn(individuals, 1, channels)
    inner = torch.rand(1, 2, channels)
    with emulation.emulated("shuffled", seed, kib):
        edge_sum(x, depthwise, pointwise, [2, 2], [1] * 4, inner, inner, scales, offsets, 1, True)
