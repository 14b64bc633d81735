"""Candidate operations of the DARTS family of cells, as modules under the names that genotypes use.

`PRIMITIVES` maps a name to a constructor with one signature for all, `(channels, stride, norm)`. Every candidate maps
`[B, C, H, W]` to `[B, C, ceil(H / stride), ceil(W / stride)]`, so the outputs of all candidates of an edge can be added
at any image size. No convolution has a bias: a normalisation follows each.

Source: Liu, Simonyan, Yang, "DARTS: Differentiable Architecture Search", ICLR 2019, section 3.1 and appendix A.
`sep_conv_7x7` and `conv_7x1_1x7` come from Zoph et al., "Learning Transferable Architectures", CVPR 2018 (NASNet),
`nor_conv_1x1` and `nor_conv_3x3` from Dong, Yang, "NAS-Bench-201", ICLR 2020.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastnas import onednn
from fastnas.errors import UserError
from fastnas.primitive_names import check_primitive, register_name

Norm = Callable[[int], nn.Module]
"""Builds the normalisation for a number of channels: `nn.BatchNorm2d` to train a derived network,
`functools.partial(nn.BatchNorm2d, affine=False)` to search (an affine scale would blur what α measures)."""


class Zero(nn.Module):
    """No connection: zeros of the shape that a convolution of this stride would give; no gradient reaches the input."""

    def __init__(self, stride: int) -> None:
        super().__init__()
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:  # [B, C, H, W]
        # Fresh zeros instead of `x * 0`, which would turn an infinite activation into NaN.
        return torch.zeros_like(x[:, :, :: self.stride, :: self.stride])  # [B, C, ceil(H/s), ceil(W/s)]

    def extra_repr(self) -> str:
        return f"stride={self.stride}"


class ReLUConvNorm(nn.Module):
    """ReLU, convolution, normalisation: `[B, channels_in, H, W]` → `[B, channels_out, H', W']`.

    With `kernel=1` it adapts the channels of a cell's inputs.
    """

    def __init__(self, channels_in: int, channels_out: int, kernel: int, stride: int, padding: int, norm: Norm) -> None:
        super().__init__()
        # Not in place, here and in every candidate: all edges that leave a state read the same tensor.
        self.relu = nn.ReLU()
        self.conv = nn.Conv2d(channels_in, channels_out, kernel, stride, padding, bias=False)
        self.norm = norm(channels_out)
        onednn.guard(self)

    def forward(self, x: Tensor) -> Tensor:  # [B, channels_in, H, W]
        return self.norm(self.conv(self.relu(x)))  # [B, channels_out, H', W']


class FactorizedReduce(nn.Module):
    """Halves height and width: `[B, channels_in, H, W]` → `[B, channels_out, ceil(H/2), ceil(W/2)]`.

    Two 1×1 convolutions of stride 2 each give half of the channels: one reads the pixels at even rows and columns, the
    other those at odd rows and columns.

    Raises:
        UserError: `channels_out` is odd and cannot be halved.
    """

    def __init__(self, channels_in: int, channels_out: int, norm: Norm) -> None:
        super().__init__()
        if channels_out % 2:
            raise UserError(
                f"FactorizedReduce got channels_out={channels_out}, expected an even number: "
                "each of its two convolutions gives half of the channels. Choose an even number of channels."
            )
        self.relu = nn.ReLU()
        self.conv_even = nn.Conv2d(channels_in, channels_out // 2, 1, stride=2, bias=False)
        self.conv_odd = nn.Conv2d(channels_in, channels_out // 2, 1, stride=2, bias=False)
        self.norm = norm(channels_out)
        onednn.guard(self)

    def forward(self, x: Tensor) -> Tensor:  # [B, channels_in, H, W]
        x = self.relu(x)
        # conv_odd reads x[:, :, 1:, 1:]. For an even size, stride 2 finds H/2 rows in those H - 1. For an odd size it
        # would find one row fewer than conv_even, so one zero row (column) at the end keeps the size at (H + 1) // 2,
        # that of a padded stride-2 convolution. A negative pad crops.
        height, width = x.shape[-2:]
        shifted = F.pad(x, (-1, width % 2, -1, height % 2))  # [B, channels_in, H - 1 + H % 2, W - 1 + W % 2]
        halves = (self.conv_even(x), self.conv_odd(shifted))  # 2 × [B, channels_out/2, ceil(H/2), ceil(W/2)]
        return self.norm(torch.cat(halves, dim=1))  # [B, channels_out, ceil(H/2), ceil(W/2)]


class DepthwiseStage(nn.Module):
    """ReLU, depthwise k×k, pointwise 1×1, normalisation: the stage that all separable candidates are made of.

    `[B, C, H, W]` → `[B, C, ceil(H/stride), ceil(W/stride)]` for an odd `kernel`, by zero padding on every side.
    """

    def __init__(self, channels: int, kernel: int, stride: int, dilation: int, norm: Norm) -> None:
        super().__init__()
        padding = dilation * (kernel - 1) // 2
        self.relu = nn.ReLU()
        self.depthwise = nn.Conv2d(channels, channels, kernel, stride, padding, dilation, groups=channels, bias=False)
        self.pointwise = nn.Conv2d(channels, channels, 1, bias=False)
        self.norm = norm(channels)

    def forward(self, x: Tensor) -> Tensor:  # [B, C, H, W]
        return self.norm(self.pointwise(self.depthwise(self.relu(x))))  # [B, C, ceil(H/s), ceil(W/s)]


class SeparableConv(nn.Sequential):
    """`sep_conv_kxk`: two depthwise stages, of which the first has the stride."""

    def __init__(self, channels: int, kernel: int, stride: int, norm: Norm) -> None:
        super().__init__(
            DepthwiseStage(channels, kernel, stride, dilation=1, norm=norm),
            DepthwiseStage(channels, kernel, stride=1, dilation=1, norm=norm),
        )


class DilatedConv(DepthwiseStage):
    """`dil_conv_kxk`: one depthwise stage with dilation 2, so 3×3 weights see 5×5 pixels and 5×5 see 9×9."""

    def __init__(self, channels: int, kernel: int, stride: int, norm: Norm) -> None:
        super().__init__(channels, kernel, stride, dilation=2, norm=norm)


class Conv7x1And1x7(nn.Sequential):
    """`conv_7x1_1x7`: ReLU, a full 1×7 convolution that strides the width, a 7×1 that strides the height, norm."""

    def __init__(self, channels: int, stride: int, norm: Norm) -> None:
        super().__init__(
            nn.ReLU(),
            nn.Conv2d(channels, channels, (1, 7), (1, stride), (0, 3), bias=False),
            nn.Conv2d(channels, channels, (7, 1), (stride, 1), (3, 0), bias=False),
            norm(channels),
        )


def _skip_connect(channels: int, stride: int, norm: Norm) -> nn.Module:
    return nn.Identity() if stride == 1 else FactorizedReduce(channels, channels, norm)


def _max_pool_3x3(channels: int, stride: int, norm: Norm) -> nn.Module:
    return nn.MaxPool2d(3, stride, padding=1)


def _avg_pool_3x3(channels: int, stride: int, norm: Norm) -> nn.Module:
    return nn.AvgPool2d(3, stride, padding=1, count_include_pad=False)


Constructor = Callable[[int, int, Norm], nn.Module]
"""`(channels, stride, norm)` → a module that maps [B, C, H, W] to [B, C, ⌈H/stride⌉, ⌈W/stride⌉]."""

PRIMITIVES: dict[str, Constructor] = {
    "none": lambda channels, stride, norm: Zero(stride),
    "max_pool_3x3": _max_pool_3x3,
    "avg_pool_3x3": _avg_pool_3x3,
    "skip_connect": _skip_connect,
    "sep_conv_3x3": lambda channels, stride, norm: SeparableConv(channels, 3, stride, norm),
    "sep_conv_5x5": lambda channels, stride, norm: SeparableConv(channels, 5, stride, norm),
    "sep_conv_7x7": lambda channels, stride, norm: SeparableConv(channels, 7, stride, norm),
    "dil_conv_3x3": lambda channels, stride, norm: DilatedConv(channels, 3, stride, norm),
    "dil_conv_5x5": lambda channels, stride, norm: DilatedConv(channels, 5, stride, norm),
    "conv_7x1_1x7": Conv7x1And1x7,
    "nor_conv_1x1": lambda channels, stride, norm: ReLUConvNorm(channels, channels, 1, stride, 0, norm),
    "nor_conv_3x3": lambda channels, stride, norm: ReLUConvNorm(channels, channels, 3, stride, 1, norm),
}
"""Name → constructor. `register_primitive` adds to it."""


def register_primitive(name: str, constructor: Constructor) -> None:
    """Registers your own candidate by name, for spaces, genotypes, networks, counters, reports, files and export.

    In a supernet its module runs unchanged, beside the candidates that the operators fuse. Registering a name again
    replaces its constructor.

    Args:
        name: letters, digits and _, no digit first; not a built-in name.
        constructor: `(channels, stride, norm)` → module, see `Constructor`. It builds its normalisations by
            `norm(channels)`, without affine parameters while searching; a module that keeps state between calls, or
            changes its input in place, disturbs the other candidates of its edge.

    Raises:
        UserError: an invalid name, a built-in name, or a constructor that cannot be called.

    >>> import torch
    >>> from fastnas.nn import register_primitive
    >>> def conv_1x1(channels, stride, norm):
    ...     return torch.nn.Sequential(torch.nn.Conv2d(channels, channels, 1, stride, bias=False), norm(channels))
    >>> register_primitive("conv_1x1", conv_1x1)
    """
    if not callable(constructor):
        raise UserError(f"{name!r} is built by {constructor!r}: expected a function (channels, stride, norm).")
    register_name(name)
    PRIMITIVES[name] = constructor


def make_primitive(name: str, channels: int, stride: int, *, norm: Norm, pool_norm: bool = False) -> nn.Module:
    """Builds the candidate `name` for an edge of `channels` channels.

    Args:
        name: a key of `PRIMITIVES`.
        channels: C of the input `[B, C, H, W]` and of the output `[B, C, ceil(H/stride), ceil(W/stride)]`.
        stride: 1, or 2 on the edges that leave the inputs of a reduction cell.
        norm: builds the normalisation layers from their number of channels.
        pool_norm: a pool becomes `Sequential(pool, norm(channels))`, as in the search of DARTS and PC-DARTS;
            EG-NAS and all derived networks leave pools bare.

    Raises:
        UserError: unknown `name`, or a `stride` other than 1 and 2.
    """
    check_primitive(name)
    if stride not in (1, 2):
        raise UserError(f"primitive {name!r} got stride {stride}, expected 1 (normal) or 2 (reduction).")
    primitive = PRIMITIVES[name](channels, stride, norm)
    if pool_norm and isinstance(primitive, nn.MaxPool2d | nn.AvgPool2d):
        return nn.Sequential(primitive, norm(channels))
    return primitive
