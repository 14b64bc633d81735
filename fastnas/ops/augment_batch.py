"""augment_batch: a batch of augmented, normalised images from a uint8 set, in one pass.

Plain torch makes a pass over the batch for each of gather, crop, flip, conversion, normalisation and cutout; the usual
DataLoader does so image by image in Python. The operator reads each pixel that stays visible once, as a byte, and
writes each value once. Values come from a table of 256 entries a channel, so its results are those of plain torch to
the bit.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from fastnas import _library  # noqa: F401  (registers torch.ops.fastnas)
from fastnas.ops.layout import empty_channels_last

_augment_batch = torch.ops.fastnas.augment_batch.default


def normalization_table(
    mean: Sequence[float],
    std: Sequence[float],
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> Tensor:
    """What each value 0..255 of each channel becomes: (value / 255 - mean) / std, rounded as torchvision does it.

    Args:
        mean, std: of each channel, in units where white is 1.
        dtype: of the table, and of the images that are made with it; computed in float32.

    Returns:
        [C, 256].

    >>> from fastnas import ops
    >>> ops.normalization_table(mean=[0.5], std=[0.25])[0, [0, 255]]
    tensor([-2.,  2.])
    """
    with torch.device("cpu"):  # so that it is the same for every device
        values = torch.arange(256, dtype=torch.float32).mul_(1 / 255)  # [256]
        centre, scale = (torch.tensor(list(numbers), dtype=torch.float32)[:, None] for numbers in (mean, std))  # [C, 1]
    return ((values - centre) / scale).to(dtype).to(device)


def augment_batch_reference(
    images: Tensor,
    table: Tensor,
    index: Tensor | None = None,
    draws: Tensor | None = None,
    *,
    padding: int = 0,
    cutout: int = 0,
) -> Tensor:
    """The same in plain torch: the oracle of the tests and the baseline of the benchmarks."""
    pixels = images if index is None else images.index_select(0, index)  # [B, H, W, C]
    count, height, width, channels = pixels.shape
    hole = None
    if draws is not None:
        top, left, flip, hole_row, hole_column = draws.long()[:, :, None].unbind(1)  # [B, 1] each
        y, x = (torch.arange(size, device=images.device) for size in (height, width))  # [H], [W]
        row = y + top  # [B, H], within the padded image
        column = torch.where(flip != 0, width - 1 - x, x) + left  # [B, W]
        pixels = F.pad(pixels, (0, 0, padding, padding, padding, padding))  # [B, H + 2p, W + 2p, C]
        place = row[:, :, None] * pixels.shape[2] + column[:, None, :]  # [B, H, W]
        place = place.flatten(1)[..., None].expand(-1, -1, channels)  # [B, H·W, C]
        pixels = pixels.flatten(1, 2).gather(1, place).view(count, height, width, channels)
        if cutout:
            row, column = y - hole_row + cutout // 2, x - hole_column + cutout // 2  # [B, H], [B, W]
            hole = ((row >= 0) & (row < cutout))[:, :, None] & ((column >= 0) & (column < cutout))[:, None, :]
    result = table[torch.arange(channels, device=images.device), pixels.long()]  # [B, H, W, C]
    if hole is not None:
        result.masked_fill_(hole[..., None], 0)
    return result.permute(0, 3, 1, 2)  # [B, C, H, W]


def augment_batch(
    images: Tensor,
    table: Tensor,
    index: Tensor | None = None,
    draws: Tensor | None = None,
    *,
    padding: int = 0,
    cutout: int = 0,
) -> Tensor:
    """Gathers, crops, flips, normalises and cuts out: uint8 images in, a batch for a network out.

    Args:
        images: the set, uint8 [N, H, W, C], contiguous.
        table: what each value of each channel becomes, [C, 256], float16, bfloat16, float32 or float64;
            `normalization_table` makes it.
        index: which images, int64 [B]; None for all, in order.
        draws: int32 [B, 5], None for no augmentation. Columns: top and left of the crop within the padded image
            (0..2·padding), whether to mirror left and right after it (not 0), row and column of the centre of the hole.
        padding: black pixels on every side of an image, out of which a crop of [H, W] is taken.
        cutout: side of the square hole in pixels, 0 for none; it covers row - cutout // 2 up to, but without,
            row - cutout // 2 + cutout, and columns alike, is clipped at the borders and filled with 0.

    Returns:
        [B, C, H, W] in the dtype of `table`, channels-last. Carries no gradient.

    Raises:
        RuntimeError: a shape, dtype, device or, on a CPU, an index does not fit; the message names it. On a GPU an
            index out of range gives an image of NaN, since checking would wait for the device.

    >>> import torch
    >>> from fastnas import ops
    >>> images = torch.randint(0, 256, (100, 32, 32, 3), dtype=torch.uint8)
    >>> table = ops.normalization_table(mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
    >>> draws = torch.tensor([[0, 8, 1, 16, 16], [4, 4, 0, 0, 0]], dtype=torch.int32)
    >>> batch = ops.augment_batch(images, table, torch.tensor([42, 7]), draws, padding=4, cutout=16)
    >>> batch.shape
    torch.Size([2, 3, 32, 32])
    """
    result: Tensor = _augment_batch(images, table, index, draws, padding, cutout)
    return result


@torch.library.register_fake("fastnas::augment_batch")
def _(images: Tensor, table: Tensor, index: Tensor | None, draws: Tensor | None, padding: int, cutout: int) -> Tensor:
    _, height, width, channels = images.shape
    count = images.shape[0] if index is None else index.shape[0]
    return empty_channels_last(table, (count, channels, height, width))
