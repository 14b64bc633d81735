"""The auxiliary head of ENAS' search: random weights that stay as they are."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

POOL, POOL_STRIDE = 5, 3
HIDDEN = (128, 768)


class UntrainedHead:
    """A second classifier whose gradients reach the cells below it, and whose own weights nobody trains.

    The released ENAS program adds the loss of this head, and leaves the head's weights out of those that it
    differentiates. ReLU, average pool 5×5 of stride 3 without padding, then twice convolution, BatchNorm by the
    statistics of the batch and ReLU: 1×1 to 128 channels, and as large as the maps, with padding, to 768; global
    average pooling; linear without a bias. Weights are drawn as Keras' "he_normal": from N(0, 2/fan_in), cut off at two
    standard deviations.

    Args:
        channels: of the maps.
        sides: height and width of the maps, at least 5 each.
        num_classes: length of the logits.
        seed: of the weights.
        device: of the weights.
    """

    def __init__(
        self, channels: int, sides: tuple[int, int], num_classes: int, seed: int, device: torch.device | str = "cpu"
    ) -> None:
        pooled = [(side - POOL) // POOL_STRIDE + 1 for side in sides]
        # So that the maps keep their size; of an odd number of rows the larger half comes last, as in TensorFlow.
        self.padding = [part for side in reversed(pooled) for part in ((side - 1) // 2, side // 2)]
        generator = torch.Generator().manual_seed(seed)
        self.weights = [
            _he_normal(shape, generator).to(device)
            for shape in ((HIDDEN[0], channels, 1, 1), (HIDDEN[1], HIDDEN[0], *pooled), (num_classes, HIDDEN[1]))
        ]

    def __call__(self, x: Tensor) -> Tensor:
        """Logits [B, num_classes] of maps [B, C, H, W]."""
        first, second, last = (weight.to(x.dtype) for weight in self.weights)
        x = F.avg_pool2d(F.relu(x), POOL, POOL_STRIDE)  # [B, C, H', W']
        x = _normalised(F.conv2d(x, first))  # [B, 128, H', W']
        x = _normalised(F.conv2d(F.pad(x, self.padding), second))  # [B, 768, H', W']
        return F.linear(x.mean((-2, -1)), last)


def _normalised(x: Tensor) -> Tensor:
    # Not F.batch_norm, which refuses one value in a channel.
    return F.relu(torch.batch_norm(x, None, None, None, None, True, 0.0, 1e-5, False))


def _he_normal(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    deviation = math.sqrt(2 / math.prod(shape[1:]))
    weight = torch.empty(shape)
    return torch.nn.init.trunc_normal_(weight, 0.0, deviation, -2 * deviation, 2 * deviation, generator=generator)
