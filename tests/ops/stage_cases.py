"""Calls of the stage operator, and what they are compared with: the plain-torch reference in float64."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from closeness import assert_close, largest, of_moments
from torch import Tensor

from fastnas.ops import stage, stage_reference
from fastnas.ops.layout import acc_dtype

CANDIDATES = ((3, 1), (5, 1), (3, 2), (5, 2))  # (kernel, dilation) of the first stages of an edge
# Groups of one, two and three stages, out of order, and a kernel without code of its own.
MIXED = ((3, 1), (5, 2), (3, 1), (7, 1), (5, 2), (3, 1), (1, 1))


@dataclass(frozen=True)
class Case:
    """Arguments of one call. Inputs that come `raw` have mean and rstd; `batch`: those of this very batch."""

    kinds: Sequence[tuple[int, int]] = CANDIDATES  # (kernel, dilation) of each stage
    channels: int = 4
    count: int = 2
    height: int = 6
    width: int = 13  # rows of 13 take blocks of 8, 4 and 1
    stride: int = 1
    shared: bool = True
    raw: bool = False
    batch: bool = False
    individuals: int = 1
    dtype: torch.dtype = torch.float32


@dataclass
class Arguments:
    case: Case
    inputs: list[Tensor]  # I × [N, C, H, W]
    depthwise: list[Tensor]  # J × [C, 1, K, K]
    pointwise: list[Tensor]  # J × [C, C, 1, 1]
    mean: Tensor | None  # [I, P, C]
    rstd: Tensor | None

    @property
    def dilations(self) -> list[int]:
        return [dilation for _, dilation in self.case.kinds]

    @property
    def leaves(self) -> list[Tensor]:
        return [*self.inputs, *self.depthwise, *self.pointwise]

    def statistics(self, inputs: Sequence[Tensor]) -> tuple[Tensor | None, Tensor | None]:
        """Differentiable in the inputs where they are those of the batch."""
        if not self.case.batch or self.mean is None:
            return self.mean, self.rstd
        each = torch.stack(list(inputs)).unflatten(1, (self.case.individuals, -1))  # [I, P, B, C, H, W]
        variance, mean = torch.var_mean(each, dim=(2, 4, 5), correction=0)
        return mean, torch.rsqrt(variance + 1e-5)  # [I, P, C]

    def raw(self, statistics: bool = False) -> tuple[object, ...]:
        """For torch.ops.fastnas.stage."""
        options = (self.dilations, self.case.stride, self.case.individuals, statistics, self.case.batch)
        return self.inputs, self.mean, self.rstd, self.depthwise, self.pointwise, *options

    def double(self) -> Arguments:
        lists = [[t.detach().double() for t in tensors] for tensors in (self.inputs, self.depthwise, self.pointwise)]
        mean, rstd = (None if t is None else t.double() for t in (self.mean, self.rstd))
        return Arguments(replace(self.case, dtype=torch.float64), *lists, mean, rstd)

    def absolute(self) -> Arguments:
        """For Σ|terms|: nothing cancels, and statistics are constants."""
        a = self.double()
        lists = [[t.abs() for t in tensors] for tensors in (a.inputs, a.depthwise, a.pointwise)]
        mean, rstd = (None if t is None else t.abs() for t in (a.mean, a.rstd))
        return Arguments(replace(a.case, batch=False), *lists, None if mean is None else -mean, rstd)

    def normalized(self) -> list[Tensor]:
        """The inputs as stages read them, in float64, before the ReLU."""
        a = self.double()
        if a.mean is None or a.rstd is None:
            return a.inputs
        images = a.case.count // a.case.individuals
        mean, rstd = (t.repeat_interleave(images, 1)[..., None, None] for t in (a.mean, a.rstd))  # [I, N, C, 1, 1]
        return [(x - mean[i]) * rstd[i] for i, x in enumerate(a.inputs)]


def make(case: Case) -> Arguments:
    dtype, channels = acc_dtype(case.dtype), case.channels
    shape = (case.count, channels, case.height, case.width)
    inputs = [torch.randn(shape).to(case.dtype) for _ in range(1 if case.shared else len(case.kinds))]
    depthwise = [torch.randn(channels, 1, kernel, kernel, dtype=dtype) for kernel, _ in case.kinds]
    pointwise = [torch.randn(channels, channels, 1, 1, dtype=dtype) for _ in case.kinds]
    result = Arguments(case, inputs, depthwise, pointwise, None, None)
    if case.raw:
        result.mean = torch.randn(len(inputs), case.individuals, channels, dtype=dtype)
        result.rstd = torch.rand(len(inputs), case.individuals, channels, dtype=dtype) + 0.5
        with torch.no_grad():
            mean, rstd = result.statistics([x.double() for x in inputs])
            result.mean, result.rstd = mean.to(dtype), rstd.to(dtype)
    return result


def fused(a: Arguments, inputs: Sequence[Tensor], statistics: bool = True) -> tuple[list[Tensor], Tensor, Tensor]:
    return stage(
        inputs,
        a.depthwise,
        a.pointwise,
        a.dilations,
        a.case.stride,
        a.mean,
        a.rstd,
        normalized=a.case.batch,
        individuals=a.case.individuals,
        statistics=statistics,
    )


def reference(a: Arguments, inputs: Sequence[Tensor]) -> tuple[list[Tensor], Tensor, Tensor]:
    mean, rstd = a.statistics(inputs)
    return stage_reference(
        inputs, a.depthwise, a.pointwise, a.dilations, a.case.stride, mean, rstd, individuals=a.case.individuals
    )


def run(function: Callable, a: Arguments, grads: Sequence[Tensor] | None) -> tuple[list[Tensor], ...]:
    """Outputs, [mean, variance], and the gradients of inputs, depthwise and pointwise weights."""
    leaves = [t.detach().requires_grad_(grads is not None) for t in a.leaves]
    i, j = len(a.inputs), len(a.depthwise)
    a = replace(a, inputs=leaves[:i], depthwise=leaves[i : i + j], pointwise=leaves[i + j :])
    outputs, average, variance = function(a, a.inputs)
    if grads is None:
        return outputs, [average, variance], []
    gradients = torch.autograd.grad(outputs, leaves, [g.to(y.dtype) for g, y in zip(grads, outputs, strict=True)])
    return [y.detach() for y in outputs], [average, variance], list(gradients)


def gradients_like(outputs: Sequence[Tensor]) -> list[Tensor]:
    return [torch.randn_like(y) for y in outputs]


def terms_of(a: Arguments, grads: Sequence[Tensor] | None) -> tuple[list[Tensor | float], ...]:
    """Σ|terms| of what `run` gives."""
    grads = None if grads is None else [g.double().abs() for g in grads]
    outputs, _, gradients = run(reference, a.absolute(), grads)
    if a.case.batch:  # that of an input: dx = rstd · (dx̂ - mean(dx̂) - x̂ · mean(dx̂ · x̂))
        reach = 2 + max(largest(x) for x in a.normalized())
        gradients = [g * reach if i < len(a.inputs) else g for i, g in enumerate(gradients)]
    return outputs, of_moments(outputs), gradients


def check(a: Arguments) -> None:
    """Outputs, statistics and gradients are those of the reference in float64."""
    grads = gradients_like(fused(a, a.inputs)[0]) if a.case.individuals == 1 else None
    ours = run(fused, a, grads)
    for y in ours[0]:
        assert y.dtype == a.case.dtype
        assert y.is_contiguous(memory_format=torch.channels_last)
    assert all(g.dtype == t.dtype for g, t in zip(ours[2], a.leaves[: len(ours[2])], strict=True))
    names = "outputs", "moments", "gradients"
    for part in zip(ours, run(reference, a.double(), grads), terms_of(a, grads), names, strict=True):
        assert_close(*part)


def layout(x: Tensor, kind: str) -> Tensor:
    """The same values in other memory."""
    channels = x.shape[1]
    if kind == "channels_last":
        return x.contiguous(memory_format=torch.channels_last)
    if kind in ("sliced", "offset"):  # the first channels of a wider tensor, or others, at an odd address
        begin = 3 if kind == "offset" else 0
        wide = torch.full((len(x), channels + 7, *x.shape[2:]), torch.nan, dtype=x.dtype)
        wide = wide.contiguous(memory_format=torch.channels_last)
        wide[:, begin : begin + channels] = x
        return wide[:, begin : begin + channels]
    if kind == "transposed":
        return x.transpose(-1, -2).contiguous().transpose(-1, -2)
    if kind == "cropped":
        return torch.nn.functional.pad(x, (1, 1, 1, 1)).contiguous(memory_format=torch.channels_last)[..., 1:-1, 1:-1]
    if kind == "expanded":
        return x[..., :1].expand(x.shape)
    return x


LAYOUTS = ["contiguous", "channels_last", "sliced", "offset", "transposed", "cropped", "expanded"]
