"""node_sum against plain torch, at the sizes of a node in the supernet.

Plain torch takes the statistics as part of its BatchNorm; node_sum is given them, as the fused stages leave them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.harness import Row, compare
from fastnas.ops import node_sum

# name: (N, C, H, W), K, groups, E
CASES: dict[str, tuple[tuple[int, int, int, int], int, int, int]] = {
    "C=4 of 16, 32×32": ((64, 4, 32, 32), 14, 4, 2),
    "C=16 32×32": ((64, 16, 32, 32), 14, 1, 0),
    "C=32 16×16": ((64, 32, 16, 16), 14, 1, 0),
    "C=64 8×8": ((64, 64, 8, 8), 14, 1, 0),
}


def plain(candidates: Sequence[Tensor], weights: Tensor, bypass: Sequence[Tensor], edges: Tensor) -> Tensor:
    """What DARTS code bases do: normalise, multiply, add; concatenate and shuffle."""
    total = sum(w * F.batch_norm(y, None, None, training=True) for w, y in zip(weights, candidates, strict=True))
    assert isinstance(total, Tensor)
    if not bypass:
        return total
    rest = sum(w * x for w, x in zip(edges, bypass, strict=True))
    joined = torch.cat([total, rest], 1)
    return F.channel_shuffle(joined, joined.shape[1] // total.shape[1])


def both(forward: Callable[[], Tensor], inputs: Sequence[Tensor], grad: Tensor) -> object:
    return torch.autograd.grad(forward(), inputs, grad)


def measure(device: torch.device, seconds: float) -> list[Row]:
    rows: list[Row] = []
    for name, (shape, count, groups, edges) in CASES.items():
        images, channels, height, width = shape
        result_shape = (images, channels * groups, height, width)
        candidates = [torch.randn(shape, device=device) for _ in range(count)]  # [N, C, H, W]
        states = [torch.randn(result_shape, device=device) for _ in range(edges)]  # [N, g·C, H, W]
        weights = torch.softmax(torch.randn(count, device=device), 0).requires_grad_()
        edge_weights = torch.softmax(torch.randn(edges, device=device), 0).requires_grad_()
        grad = torch.randn(result_shape, device=device)
        mean = torch.stack([y.mean((0, 2, 3)) for y in candidates])[:, None]  # [K, 1, C]
        rstd = torch.stack([(y.var((0, 2, 3)) + 1e-5).rsqrt() for y in candidates])[:, None]

        def ours(
            candidates: Sequence[Tensor],
            weights: Tensor,
            bypass: Sequence[Tensor],
            edges: Tensor,
            mean: Tensor = mean,
            rstd: Tensor = rstd,
        ) -> Tensor:
            return node_sum(candidates, mean, rstd, weights, bypass, edges if bypass else None)

        contenders: dict[str, Callable[[], Tensor]] = {}
        inputs: dict[str, list[Tensor]] = {}
        grads: dict[str, Tensor] = {}
        for contender, function, memory_format in (
            ("plain torch", plain, torch.contiguous_format),
            ("channels-last torch", plain, torch.channels_last),
            ("fastnas", ours, torch.channels_last),
        ):
            ys = [y.contiguous(memory_format=memory_format).requires_grad_() for y in map(Tensor.clone, candidates)]
            xs = [
                x.contiguous(memory_format=memory_format)[:, channels:].detach().requires_grad_()
                for x in map(Tensor.clone, states)
            ]
            contenders[contender] = partial(function, ys, weights, xs, edge_weights)
            grads[contender] = grad.contiguous(memory_format=memory_format)
            inputs[contender] = [*ys, *xs, weights, *([edge_weights] if edges else [])]

        candidate, rest = candidates[0].nbytes, (groups - 1) * candidates[0].nbytes
        read = count * candidate + edges * rest
        written = candidate + (rest if edges else 0)
        for mode, calls, least in (
            ("forward", contenders, read + written),
            (
                "both",
                {who: partial(both, contenders[who], inputs[who], grads[who]) for who in contenders},
                3 * read + count * candidate + 3 * written,
            ),
        ):
            rows += compare(
                "node_sum",
                name,
                mode,
                calls,
                baseline="plain torch",
                least_bytes=least,
                device=device,
                seconds=seconds,
            )
    return rows
