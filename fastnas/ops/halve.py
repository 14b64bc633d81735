"""halve: 2×2 max pooling of the channels that bypass the candidates of an edge of stride 2.

In a reduction cell of partial channels (PC-DARTS, Xu et al. 2020; EG-NAS, Cai et al. 2024) candidates see the first
C/k channels of a state, and the others bypass them through a 2×2 maximum. Plain torch copies those channels first, then
keeps where each maximum was, and puts the gradients of both parts side by side afterwards; here the channels are read
where they are, the maximum is found again in the backward pass, and both parts are written in one.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastnas import _library  # noqa: F401  (registers torch.ops.fastnas)
from fastnas.ops.layout import empty_channels_last

_forward = torch.ops.fastnas.halve.default
_grad = torch.ops.fastnas.halve_grad.default


def halve_reference(x: Tensor, seen: int) -> Tensor:
    """The same in plain torch: the oracle of the tests and the baseline of the benchmarks."""
    return F.max_pool2d(x[:, seen:], 2, 2, ceil_mode=True)


def halve(x: Tensor, seen: int = 0) -> Tensor:
    """The maximum of every 2×2 pixels, in the channels from `seen` on.

    Args:
        x: [N, C, H, W]; float16, bfloat16, float32 or float64. Channels-last tensors and the first channels of wider
            ones are read in place, anything else is copied first.
        seen: channels that are left out.

    Returns:
        [N, C - seen, ceil(H / 2), ceil(W / 2)], channels-last; windows are cut off at the edge of odd sizes. Of equal
        values the first gets the gradient, NaN stays. Differentiable once.

    Raises:
        RuntimeError: a shape or dtype does not fit; the message names it.

    >>> import torch
    >>> from fastnas.ops.halve import halve
    >>> halve(torch.randn(2, 16, 9, 8), seen=4).shape
    torch.Size([2, 12, 5, 4])
    """
    result: Tensor = _forward(x, seen)
    return result


@torch.library.register_fake("fastnas::halve")
def _(x: Tensor, seen: int) -> Tensor:
    count, channels, height, width = x.shape
    return empty_channels_last(x, (count, channels - seen, (height + 1) // 2, (width + 1) // 2))


@torch.library.register_fake("fastnas::halve_grad")
def _(grad: Tensor, x: Tensor, seen_grad: Tensor) -> Tensor:
    return empty_channels_last(x, x.shape)


def _setup_context(ctx: Any, inputs: tuple[Tensor, int], output: Tensor) -> None:
    x, ctx.seen = inputs
    ctx.save_for_backward(x)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
    (x,) = ctx.saved_tensors
    return _grad(grad, x, x.new_zeros(x.shape[0], ctx.seen, *x.shape[2:])), None


torch.library.register_autograd("fastnas::halve", _backward, setup_context=_setup_context)
