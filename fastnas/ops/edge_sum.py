"""edge_sum: all candidates of all edges that leave a state, summed as they are computed, in evaluation mode.

In training a candidate is normalised by statistics of its own output, so the output has to be there before it can be
summed. In evaluation mode normalisation is a scale and an offset, known in advance: an edge is Σ_m scale_m ⊙ term_m +
offset, and only that is written, one tensor for each edge instead of one for each candidate and stage. Populations are
scored this way.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from fastnas import _library  # noqa: F401  (registers torch.ops.fastnas)
from fastnas.ops.layout import acc_dtype, empty_channels_last
from fastnas.ops.pool import pool_reference

_edge_sum = torch.ops.fastnas.edge_sum.default


def edge_sum_reference(
    x: Tensor,
    depthwise: Sequence[Tensor],
    pointwise: Sequence[Tensor],
    depths: Sequence[int],
    dilations: Sequence[int],
    inner_scales: Tensor,
    inner_offsets: Tensor,
    scales: Tensor,
    offsets: Tensor,
    stride: int = 1,
    shared: bool = False,
) -> list[Tensor]:
    """The same in plain torch: the oracle of the tests and the baseline of the benchmarks."""
    individuals, edges, _, channels = scales.shape
    stages = len(dilations)
    y = x.to(scales.dtype)  # [N, C, H, W]
    same = list(pool_reference(y, stride)[:2])  # the terms that all edges have in common
    same += [y] if stride == 1 else []
    sums = []
    for edge in range(edges):
        terms, stage, inner = [], 0, 0
        for depth in depths:
            z = y
            for step in range(depth):
                taps, matrix = (group[edge * stages + stage] for group in (depthwise, pointwise))
                if step > 0:
                    z = z * inner_scales[edge, inner].view(-1, 1, 1) + inner_offsets[edge, inner].view(-1, 1, 1)
                    inner += 1
                padding = dilations[stage] * (taps.shape[-1] - 1) // 2
                step_stride = stride if step == 0 else 1
                z = F.conv2d(F.relu(z), taps, None, step_stride, padding, dilations[stage], groups=channels)
                z = F.conv2d(z, matrix)
                stage += 1
            terms.append(z)
        stacked = torch.stack([*terms, *same])  # [M, N, C, H', W']
        each = stacked[:, None] if shared else stacked.unflatten(1, (individuals, -1))  # [M, P or 1, B, C, H', W']
        weights = scales[:, edge].transpose(0, 1)[:, :, None, :, None, None]  # [M, P, 1, C, 1, 1]
        total = (weights * each).sum(0) + offsets[:, edge, None, :, None, None]  # [P, B, C, H', W']
        sums.append(total.flatten(0, 1).to(x.dtype))
    return sums


def edge_sum(
    x: Tensor,
    depthwise: Sequence[Tensor],
    pointwise: Sequence[Tensor],
    depths: Sequence[int],
    dilations: Sequence[int],
    inner_scales: Tensor,
    inner_offsets: Tensor,
    scales: Tensor,
    offsets: Tensor,
    stride: int = 1,
    shared: bool = False,
) -> list[Tensor]:
    """For each of E edges, Σ_m scales[p, e, m] ⊙ term_m(x) + offsets[p, e], for P individuals.

    The M terms of an edge: its J convolutional candidates in their order, the 3×3 average and the 3×3 maximum of x
    (padding 1, the average over the pixels inside), and at stride 1 x itself. A candidate is one or two stages ReLU →
    depthwise → pointwise, with an affine function between them. All edges have the same kinds of candidates, and
    weights of their own. A term whose scale is 0 is not computed, so one-hot choices cost what they choose.

    Args:
        x: [N, C, H, W], channels-last or the first channels of a wider one; anything else is copied. float16, bfloat16,
            float32 or float64. N = P·B, individual after individual, or N = B with `shared`.
        depthwise: E·S weights [C, 1, K, K] for S stages of an edge, K odd: edge after edge, candidate after candidate.
            Like all tables below they are used as float32 (float64 for float64 x), in which sums are accumulated.
        pointwise: E·S weights [C, C, 1, 1].
        depths: [J], 1 or 2 stages each; S is their sum.
        dilations: [S], each at most 1024, or the larger side of the images.
        inner_scales, inner_offsets: [E, S - J, C], what normalises the input of each second stage.
        scales: [P, E, M, C], M = J + 3, or J + 2 at stride 2.
        offsets: [P, E, C].
        stride: 1 or 2, of first stages and pools.
        shared: whether all individuals share the images of x.

    Returns:
        E sums [P·B, C, ceil(H/stride), ceil(W/stride)] in the dtype of x, channels-last. They carry no gradient.

    Raises:
        RuntimeError: the shapes, dtypes or devices do not fit; the message names the argument and its shape.

    >>> import torch
    >>> from fastnas import ops
    >>> x = torch.randn(4, 8, 6, 6)  # read by three individuals, two edges of one dilated convolution each
    >>> taps, matrices = [torch.randn(8, 1, 3, 3)] * 2, [torch.randn(8, 8, 1, 1)] * 2
    >>> none = torch.empty(2, 0, 8)  # no second stage
    >>> scales, offsets = torch.rand(3, 2, 4, 8), torch.zeros(3, 2, 8)  # convolution, average, maximum, x
    >>> a, b = ops.edge_sum(x, taps, matrices, [1], [2], none, none, scales, offsets, shared=True)
    >>> a.shape  # 3 individuals with 4 images each
    torch.Size([12, 8, 6, 6])
    """
    dtype = acc_dtype(x.dtype)
    return _edge_sum(
        x,
        [weight.to(dtype) for weight in depthwise],
        [weight.to(dtype) for weight in pointwise],
        list(depths),
        list(dilations),
        *(table.to(dtype) for table in (inner_scales, inner_offsets, scales, offsets)),
        stride,
        shared,
    )


@torch.library.register_fake("fastnas::edge_sum")
def _(
    x: Tensor,
    depthwise: Sequence[Tensor],
    pointwise: Sequence[Tensor],
    depths: Sequence[int],
    dilations: Sequence[int],
    inner_scales: Tensor,
    inner_offsets: Tensor,
    scales: Tensor,
    offsets: Tensor,
    stride: int,
    shared: bool,
) -> list[Tensor]:
    images, channels, height, width = x.shape
    individuals, edges = scales.shape[:2]
    size = (images * (individuals if shared else 1), channels, -(-height // stride), -(-width // stride))
    return [empty_channels_last(x, size) for _ in range(edges)]
