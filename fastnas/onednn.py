"""A workaround for a bug in oneDNN, to be removed once torch ships a fixed version.

On CPUs with AVX2 but no AVX-512, oneDNN as it comes with torch 2.14 writes past its workspace when it computes the
weight gradient of a 1×1 convolution with a stride, fewer than 8 input channels and channels-last tensors (oneDNN issue
6035): the heap is damaged, the process hangs, or the gradient is wrong. Such convolutions are the factorized reductions
of narrow supernets with partial channels. With a 1×1 kernel a stride only skips pixels, so the guard drops
those pixels first and convolves with stride 1, which is correct everywhere. The fused operators do not use oneDNN.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SAFE_CHANNELS = 8  # from this many input channels on, oneDNN takes another code path


def is_at_risk(layer: nn.Module) -> bool:
    """Whether oneDNN may fail in the weight gradient of this layer."""
    return (
        isinstance(layer, nn.Conv2d)
        and layer.in_channels < SAFE_CHANNELS
        and layer.groups == 1
        and layer.kernel_size == (1, 1)
        and layer.padding in ((0, 0), "valid", "same")
        and layer.stride != (1, 1)
    )


def guard(network: nn.Module) -> None:
    """Replaces the class of every layer at risk in a network by a guarded subclass, in place.

    Parameters and names stay the same, and so do results, up to rounding.
    """
    for layer in network.modules():
        if is_at_risk(layer) and type(layer)._conv_forward is nn.Conv2d._conv_forward:  # type: ignore[attr-defined]
            layer.__class__ = _guarded(cast(Any, type(layer)))


def unguard(network: nn.Module) -> None:
    """Undoes `guard`, in place."""
    for layer in network.modules():
        if getattr(type(layer), "_fastnas_guard", False):
            layer.__class__ = type(layer)._fastnas_original  # type: ignore[attr-defined]


@functools.cache
def _guarded(cls: Any) -> type[nn.Module]:
    """The guarded subclass of a class, cached. Instances pickle as the original class, and are guarded when loaded."""

    def conv_forward(self: nn.Conv2d, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        wanted = torch.is_grad_enabled() and weight.requires_grad and not torch.compiler.is_exporting()
        if not (wanted and x.device.type == "cpu" and is_at_risk(self)):
            return super(subclass, self)._conv_forward(x, weight, bias)  # type: ignore[misc]
        rows, columns = self.stride
        return F.conv2d(x[..., ::rows, ::columns], weight, bias)  # [B, C_out, ⌈H/rows⌉, ⌈W/columns⌉]

    def reduce_ex(self: nn.Module, protocol: Any) -> Any:
        reduced = super(subclass, self).__reduce_ex__(protocol)
        if isinstance(reduced, str):
            return reduced
        function, given, *rest = reduced
        return _rebuilt, (function, tuple(cls if each is subclass else each for each in given)), *rest

    names = {
        "_conv_forward": conv_forward,
        "__reduce_ex__": reduce_ex,
        "__module__": cls.__module__,
        "__qualname__": cls.__qualname__,
        "__doc__": cls.__doc__,
        "_fastnas_original": cls,
        "_fastnas_guard": True,
    }
    subclass: type[nn.Module] = type(cls)(cls.__name__, (cls,), names)
    return subclass


def _rebuilt(function: Callable[..., nn.Module], arguments: tuple[Any, ...]) -> nn.Module:
    layer = function(*arguments)
    layer.__class__ = _guarded(cast(Any, type(layer)))
    return layer
