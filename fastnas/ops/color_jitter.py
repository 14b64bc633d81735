"""color_jitter: brightness, contrast, saturation and hue of a batch of uint8 images, each read twice.

Plain torch needs a pass over a float copy of the images for each of the steps, some twenty for the hue alone, image by
image since each has factors of its own.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastnas import _library  # noqa: F401  (registers torch.ops.fastnas)

_color_jitter = torch.ops.fastnas.color_jitter.default


def color_jitter_reference(images: Tensor, factors: Tensor) -> Tensor:
    """The same with torchvision: the oracle of the tests and the baseline of the benchmarks."""
    from torchvision.transforms.v2 import functional as transforms  # here: operators and networks run without it

    result = torch.empty_like(images)
    for place, image in enumerate(images.permute(0, 3, 1, 2)):  # [3, H, W]
        brightness, contrast, saturation, hue = factors[place].tolist()
        image = transforms.adjust_contrast(transforms.adjust_brightness(image, brightness), contrast)
        image = transforms.adjust_hue(transforms.adjust_saturation(image, saturation), hue)
        result[place] = image.permute(1, 2, 0)
    return result


def color_jitter(images: Tensor, factors: Tensor) -> Tensor:
    """Changes the colours of each image, as torchvision's ``adjust_brightness``, ``_contrast``, ``_saturation`` and
    ``_hue`` do one after the other; results may differ by one level for each step that rounds.

    Args:
        images: uint8 [B, H, W, 3], red, green, blue.
        factors: float32 [B, 4]. Factors of brightness, of contrast (towards the mean grey of the image) and of
            saturation (towards the grey of the pixel), from 0, 1 changes nothing; turns of the hue, -1/2..1/2. On the
            CPU, whatever the device of the images, they are checked without waiting for a GPU.

    Returns:
        uint8 [B, H, W, 3]. Carries no gradient.

    Raises:
        RuntimeError: a shape, dtype or device does not fit, or a factor is outside of its range, infinite or NaN; the
            message names it.

    >>> import torch
    >>> from fastnas import ops
    >>> images = torch.randint(0, 256, (2, 32, 32, 3), dtype=torch.uint8)
    >>> factors = torch.tensor([[1.2, 0.8, 1.0, 0.1], [1.0, 1.0, 1.0, 0.0]])
    >>> jittered = ops.color_jitter(images, factors)  # the second image stays as it is
    >>> torch.equal(jittered[1], images[1])
    True
    """
    result: Tensor = _color_jitter(images, factors)
    return result


@torch.library.register_fake("fastnas::color_jitter")
def _(images: Tensor, factors: Tensor) -> Tensor:
    return images.new_empty(images.shape)
