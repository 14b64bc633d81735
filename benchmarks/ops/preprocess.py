"""preprocess against its plain-torch reference, at the sizes of the preprocessings in the supernet."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from benchmarks.harness import FASTNAS, Row, compare
from fastnas.ops import preprocess, preprocess_reference

FOUR_CHANNELS = "Bound by putting the four channels of several pixels into a vector, not by bytes."

BATCH = 64

# name: (channels of each state, rows of each matrix, stride, height and width)
CASES: dict[str, tuple[tuple[int, ...], tuple[int, ...], int, int]] = {
    "4→4 32×32": ((4,), (4,), 1, 32),
    "16→16 32×32": ((16,), (16,), 1, 32),
    "4·16→16 32×32": ((16,) * 4, (16,), 1, 32),
    "4·16→2·16 32×32 reduced": ((16,) * 4, (16, 16), 2, 32),
    "4·32→32 16×16": ((32,) * 4, (32,), 1, 16),
    "4·64→64 8×8": ((64,) * 4, (64,), 1, 8),
}

Preprocess = Callable[..., tuple[Tensor, Tensor, Tensor]]


def measure(device: torch.device, seconds: float) -> list[Row]:
    rows: list[Row] = []
    for name, (channels, outputs, stride, size) in CASES.items():
        plain = [torch.randn(BATCH, c, size, size, device=device).requires_grad_() for c in channels]  # [B, C, H, W]
        weights = [torch.randn(o, sum(channels), device=device).requires_grad_() for o in outputs]  # [O, Cin]
        offsets = (0, 1)[: len(outputs)]
        grad = torch.randn(BATCH, sum(outputs), size // stride, size // stride, device=device)  # [B, ΣO, H', W']
        last = [_channels_last(x.detach()).requires_grad_() for x in plain]
        read = sum(x.numel() * x.element_size() for x in plain)
        written = grad.numel() * grad.element_size()
        products = 2 * grad.numel() * sum(channels)  # operations of the forward pass

        def forward(
            function: Preprocess,
            inputs: Sequence[Tensor],
            weights: list[Tensor] = weights,
            offsets: tuple[int, ...] = offsets,
            stride: int = stride,
        ) -> Tensor:
            return function(inputs, weights, offsets, stride, statistics=True)[0]

        def both(
            function: Preprocess,
            inputs: Sequence[Tensor],
            grad: Tensor,
            weights: list[Tensor] = weights,
            forward: Callable[[Preprocess, Sequence[Tensor]], Tensor] = forward,
        ) -> object:
            return torch.autograd.grad(forward(function, inputs), [*inputs, *weights], grad)

        grad_last = _channels_last(grad)
        modes: dict[str, tuple[dict[str, Callable[[], object]], int, int]] = {
            "forward": (
                {
                    "plain torch": partial(forward, preprocess_reference, plain),
                    "channels-last torch": partial(forward, preprocess_reference, last),
                    "fastnas": partial(forward, preprocess, last),
                },
                read + written,
                products,
            ),
            "both": (
                {
                    "plain torch": partial(both, preprocess_reference, plain, grad),
                    "channels-last torch": partial(both, preprocess_reference, last, grad_last),
                    "fastnas": partial(both, preprocess, last, grad_last),
                },
                3 * read + 2 * written,
                3 * products,  # the gradients of inputs and of weights are two more
            ),
        }
        for mode, (contenders, least, flops) in modes.items():
            rows += compare(
                "preprocess",
                name,
                mode,
                contenders,
                baseline="plain torch",
                least_bytes=least,
                flops=flops,
                notes={FASTNAS: FOUR_CHANNELS} if channels == (4,) else None,
                device=device,
                seconds=seconds,
            )
    return rows


def _channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)
