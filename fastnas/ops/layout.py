"""What all operators agree on: where they run, the dtype they accumulate in, the memory format of their images."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastnas._library import _C

DEVICE_TYPES = {"cpu", "cuda"} if _C.build_info()["cuda"] else {"cpu"}
"""The device types that the extension was built for."""


def computation_dtype(images: Tensor) -> torch.dtype:
    """The dtype to which networks convert images for the operators: autocast's where it is enabled for their device."""
    kind = images.device.type
    lowered = torch.is_autocast_enabled(kind) and images.dtype != torch.float64  # which autocast leaves alone
    return torch.get_autocast_dtype(kind) if lowered else images.dtype


def acc_dtype(images: torch.dtype) -> torch.dtype:
    """The dtype of weights and statistics, and of all sums: float64 for float64 images, else float32."""
    return torch.float64 if images == torch.float64 else torch.float32


def empty_channels_last(like: Tensor, sizes: Sequence[int]) -> Tensor:
    """[N, C, H, W] as the operators allocate it, for their fake kernels."""
    _, channels, height, width = sizes
    # In strides the operators count an empty dimension as one element.
    c, h, w = max(channels, 1), max(height, 1), max(width, 1)
    return like.new_empty_strided(tuple(sizes), (h * w * c, 1, w * c, c))


def empty_images(like: Tensor, sizes: Sequence[int]) -> Tensor:
    """Uninitialised [N, C, H, W], channels-last, of the dtype and device of `like`.

    On a CPU it comes from the caching allocator of the operators: for large tensors torch's own gets new pages from the
    system each time, which have to be zeroed.
    """
    return torch.ops.fastnas.empty_images.default(like, list(sizes))


@torch.library.register_fake("fastnas::empty_images")
def _(like: Tensor, size: Sequence[int]) -> Tensor:
    return empty_channels_last(like, size)
