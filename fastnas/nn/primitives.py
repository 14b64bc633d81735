"""Candidate operations of the DARTS family of cells, as modules under the names that genotypes use.

`PRIMITIVES` maps a name to a constructor with one signature for all, `(channels, stride, norm)`. Every candidate maps
`[B, C, H, W]` to `[B, C, ceil(H / stride), ceil(W / stride)]`, so the outputs of all candidates of an edge can be added
at any image size. No convolution has a bias: a normalisation follows each. The modules are those of
`fastnas.standalone`; here two of them are guarded against a fault of oneDNN that concerns training only.

Source: Liu, Simonyan, Yang, "DARTS: Differentiable Architecture Search", ICLR 2019, section 3.1 and appendix A.
`sep_conv_7x7` and `conv_7x1_1x7` come from Zoph et al., "Learning Transferable Architectures", CVPR 2018 (NASNet),
`nor_conv_1x1` and `nor_conv_3x3` from Dong, Yang, "NAS-Bench-201", ICLR 2020.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from fastnas import onednn, standalone
from fastnas.errors import UserError
from fastnas.primitive_names import check_primitive, register_name
from fastnas.standalone import Conv7x1And1x7, DepthwiseStage, DilatedConv, Norm, SeparableConv, Zero

__all__ = [
    "PRIMITIVES",
    "Constructor",
    "Conv7x1And1x7",
    "DepthwiseStage",
    "DilatedConv",
    "FactorizedReduce",
    "Norm",
    "ReLUConvNorm",
    "SeparableConv",
    "Zero",
    "make_primitive",
    "register_primitive",
]


class ReLUConvNorm(standalone.ReLUConvNorm):
    """ReLU, convolution, normalisation: `[B, channels_in, H, W]` → `[B, channels_out, H', W']`."""

    def __init__(self, channels_in: int, channels_out: int, kernel: int, stride: int, padding: int, norm: Norm) -> None:
        super().__init__(channels_in, channels_out, kernel, stride, padding, norm)
        onednn.guard(self)


class FactorizedReduce(standalone.FactorizedReduce):
    """Halves height and width: `[B, channels_in, H, W]` → `[B, channels_out, ceil(H/2), ceil(W/2)]`.

    Raises:
        UserError: `channels_out` is odd and cannot be halved.
    """

    def __init__(self, channels_in: int, channels_out: int, norm: Norm) -> None:
        if channels_out % 2:
            raise UserError(
                f"FactorizedReduce got channels_out={channels_out}, expected an even number: "
                "each of its two convolutions gives half of the channels. Choose an even number of channels."
            )
        super().__init__(channels_in, channels_out, norm)
        onednn.guard(self)


def _skip_connect(channels: int, stride: int, norm: Norm) -> nn.Module:
    return nn.Identity() if stride == 1 else FactorizedReduce(channels, channels, norm)


Constructor = Callable[[int, int, Norm], nn.Module]
"""`(channels, stride, norm)` → a module that maps [B, C, H, W] to [B, C, ⌈H/stride⌉, ⌈W/stride⌉]."""

PRIMITIVES: dict[str, Constructor] = {
    **standalone.PRIMITIVES,
    # With the guarded modules of this file:
    "skip_connect": _skip_connect,
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
