"""Calls of node_sum, and what they are compared with: the plain-torch reference in float64."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from closeness import assert_close, largest
from torch import Tensor

from fastnas.ops import node_sum, node_sum_reference
from fastnas.ops.layout import acc_dtype

OPS = torch.ops.fastnas
EPS = 1e-5

# N, C, H, W, groups: supernet sizes, odd channels, one row, one pixel, several tiles with a part of one at the end.
SIZES = [
    (2, 4, 32, 32, 4),
    (2, 16, 9, 7, 1),
    (3, 5, 7, 5, 3),
    (1, 1, 1, 5, 2),
    (2, 3, 1, 7, 4),
    (2, 6, 5, 5, 1),
    (1, 12, 33, 17, 4),
    (2, 20, 3, 8, 2),
    (1, 64, 8, 8, 1),
    (2, 4, 45, 23, 4),
    (1, 2, 50, 47, 1),
    (24, 7, 1, 1, 1),
]


@dataclass
class Inputs:
    candidates: list[Tensor]
    bypass: list[Tensor]
    mean: Tensor
    rstd: Tensor
    weights: Tensor
    bypass_weights: Tensor | None
    individuals: int = 1
    normalized: list[bool] | None = None
    images: int | None = None
    prev_node: Tensor | None = None

    def __call__(self, function) -> Tensor:
        options = {
            "prev_node": self.prev_node,
            "individuals": self.individuals,
            "normalized": self.normalized,
            "images": self.images,
        }
        return function(
            self.candidates, self.mean, self.rstd, self.weights, self.bypass, self.bypass_weights, **options
        )

    def to(self, dtype: torch.dtype, leaves: bool = False) -> Inputs:
        """A copy with images in this dtype, statistics and weights in that of sums, and the same strides."""
        summed = acc_dtype(dtype)

        def leaf(t: Tensor) -> Tensor:
            return t.requires_grad_() if leaves else t

        return replace(
            self,
            candidates=[leaf(kept(t, dtype)) for t in self.candidates],
            bypass=[leaf(kept(t, dtype)) for t in self.bypass],
            prev_node=None if self.prev_node is None else leaf(kept(self.prev_node, dtype)),
            mean=self.mean.to(summed),
            rstd=self.rstd.to(summed),
            weights=leaf(self.weights.detach().to(summed, copy=True)),
            bypass_weights=(
                None if self.bypass_weights is None else leaf(self.bypass_weights.detach().to(summed, copy=True))
            ),
        )

    def absolute(self) -> Inputs:
        """For Σ|terms|, in float64: nothing cancels, and statistics are constants."""
        a = self.to(torch.float64)
        return replace(
            a,
            candidates=[t.abs() for t in a.candidates],
            bypass=[t.abs() for t in a.bypass],
            prev_node=None if a.prev_node is None else a.prev_node.abs(),
            mean=-a.mean.abs(),
            rstd=a.rstd.abs(),
            weights=a.weights.detach().abs(),
            bypass_weights=None if a.bypass_weights is None else a.bypass_weights.detach().abs(),
            normalized=[False] * len(a.candidates),
        )

    def leaves(self) -> list[Tensor]:
        others = [t for t in (self.bypass_weights, self.prev_node) if t is not None]
        return [*self.candidates, *self.bypass, self.weights, *others]


def kept(t: Tensor, dtype: torch.dtype) -> Tensor:
    """A copy with the same strides."""
    copy = torch.empty_strided(t.size(), t.stride(), dtype=dtype)
    return copy.copy_(t.detach())


def image(images: int, channels: int, height: int, width: int, kind: str, first: int = 0) -> Tensor:
    """[N, C, H, W], of `kind`; slices begin at channel `first` of a wider image."""
    if kind == "sliced":
        wide = torch.randn(images, height, width, first + channels + 3).permute(0, 3, 1, 2)
        return wide[:, first : first + channels]
    if kind == "channels_last":
        return torch.randn(images, height, width, channels).permute(0, 3, 1, 2)
    if kind == "transposed":
        return torch.randn(images, channels, width, height).transpose(2, 3)
    return torch.randn(images, channels, height, width)


def statistics(candidates: list[Tensor], individuals: int, images: int) -> tuple[Tensor, Tensor]:
    """mean and rstd [K, P, C] of the batch, in float64."""
    means, rstds = [], []
    for y in candidates:
        split = y.double().reshape(individuals if len(y) > images else 1, images, *y.shape[1:])  # [P or 1, B, C, H, W]
        variance, mean = torch.var_mean(split, dim=(1, 3, 4), correction=0)
        means.append(mean.expand(individuals, -1))
        rstds.append((variance + EPS).rsqrt().expand(individuals, -1))
    return torch.stack(means), torch.stack(rstds)


def make(
    size: tuple[int, int, int, int, int] = (2, 4, 9, 7, 4),
    count: int = 4,
    edges: int = 2,
    kinds: tuple[str, ...] = ("channels_last", "sliced"),
    individuals: int = 1,
    shared: tuple[bool, ...] = (False,),
    weighted: bool = True,
    prev_node: bool = False,
) -> Inputs:
    """Random inputs; kinds and sharing take turns. prev_node: where there are groups, the node follows another one."""
    images, channels, height, width, groups = size
    edges = edges if groups > 1 else 0

    def several(number: int, channels: int, first: int) -> list[Tensor]:
        return [
            image(
                images * (1 if shared[i % len(shared)] else individuals),
                channels,
                height,
                width,
                kinds[i % len(kinds)],
                first,
            )
            for i in range(number)
        ]

    candidates = several(count, channels, 0)
    mean, rstd = statistics(candidates, individuals, images)
    return Inputs(
        candidates,
        several(edges, (groups - 1) * channels, channels),
        mean,
        rstd,
        torch.randn(individuals, count),
        torch.randn(individuals, edges) if weighted and edges else None,
        individuals,
        images=images,
        prev_node=several(1, groups * channels, 1)[0] if prev_node and groups > 1 else None,
    )


def run(function, inputs: Inputs, grad: Tensor) -> list[Tensor]:
    """The result and the gradients of everything that has one."""
    inputs = inputs.to(grad.dtype, leaves=True)
    result = inputs(function)
    return [result.detach(), *torch.autograd.grad(result, inputs.leaves(), grad)]


def terms_of(inputs: Inputs, grad: Tensor) -> list[Tensor]:
    """Σ|terms| of what `run` gives."""
    result, *grads = run(node_sum_reference, inputs.absolute(), grad.double().abs())
    # That of a normalised candidate: dy = w · rstd · (dx - mean(dx) - ŷ · mean(dx · ŷ)).
    double = inputs.to(torch.float64)
    for k, y in enumerate(double.candidates):
        normal = (y - double.mean[k, 0, :, None, None]) * double.rstd[k, 0, :, None, None]
        grads[k] = torch.tensor(largest(grads[k]) * (2 + largest(normal)))
    return [result, *grads]


def check(inputs: Inputs, dtype: torch.dtype, grad: Tensor | None = None) -> None:
    """Against the reference in float64, on the same rounded values."""
    inputs = inputs.to(dtype)
    if grad is None:
        grad = torch.randn(inputs(node_sum).shape, dtype=dtype)
    ours = run(node_sum, inputs, grad)
    assert ours[0].dtype == dtype
    assert ours[0].is_contiguous(memory_format=torch.channels_last)
    assert_close(ours, run(node_sum_reference, inputs, grad.double()), terms_of(inputs, grad))


def check_bypass_grad(channels: int, groups: int, dtype: torch.dtype, seen: bool = True, addends: int = 2) -> None:
    groups = max(groups, 2)
    size = (2, channels * groups, 11, 7)
    kinds = ["channels_last", "sliced", "contiguous"]
    grads = [image(*size, kind=kind).to(dtype) for kind in kinds]
    others = [image(*size, kind=kind).to(dtype) for kind in kinds[:addends]]
    weights = torch.randn(3, dtype=acc_dtype(dtype))
    front = image(2, channels, 11, 7, "sliced").to(dtype) if seen else None
    result, nothing = OPS.bypass_grad(front, grads, weights, others, channels)
    assert nothing.numel() == 0
    assert result.dtype == dtype
    assert result.is_contiguous(memory_format=torch.channels_last)
    expected, terms = torch.zeros(2, *size, dtype=torch.float64)
    for x in others:
        expected += x.double()
        terms += x.double().abs()
    if front is not None:
        expected[:, :channels] += front
        terms[:, :channels] += front.abs()
    for grad, weight in zip(grads, weights, strict=True):
        rest = grad.double().unflatten(1, (channels, groups)).transpose(1, 2)[:, 1:].flatten(1, 2)
        expected[:, channels:] += weight * rest
        terms[:, channels:] += weight.abs() * rest.abs()
    assert_close([result], [expected], [terms])
    # Of a node that passes on what bypassed it: that of all groups but the first.
    result, own = OPS.bypass_grad(front, grads, weights, others, channels, True)
    others_only = torch.arange(channels * groups).remainder(groups).ne(0)
    for grad in grads:
        expected += grad.double() * others_only[:, None, None]
        terms += grad.double().abs() * others_only[:, None, None]
    assert own.is_contiguous(memory_format=torch.channels_last)
    assert_close([result, own], [expected, expected[:, ::groups]], [terms, terms[:, ::groups]])
