"""stage against plain torch, at the sizes of a supernet: what leaves one state, and the second stages after it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.harness import FASTNAS, Row, compare
from fastnas.ops import stage

CHAIN_GRADIENT = (
    "The backward pass of the input's BatchNorm is three passes of plain torch here; in a network it is part of what "
    "reads this gradient next."
)

SEPARABLE = ((3, 1), (5, 1))  # (kernel, dilation)
DILATED = ((3, 2), (5, 2))


@dataclass(frozen=True)
class Case:
    """Stages of all edges that leave a state, or with `chain` the second stages, whose inputs are raw."""

    name: str
    channels: int  # of a candidate
    width: int  # of the state, of which candidates read the first channels
    size: int  # height = width
    edges: int = 4
    stride: int = 1
    chain: bool = False
    batch: int = 64

    @property
    def kinds(self) -> tuple[tuple[int, int], ...]:
        return (SEPARABLE if self.chain else SEPARABLE + DILATED) * self.edges

    @property
    def outputs(self) -> int:
        """Pixels of one output."""
        return self.batch * ((self.size + self.stride - 1) // self.stride) ** 2

    @property
    def operations(self) -> int:
        """Multiplications and additions of the forward pass's convolutions; taps on the zero border are counted."""
        return sum(2 * self.outputs * self.channels * (kernel**2 + self.channels) for kernel, _ in self.kinds)


CASES = (
    Case("C=4 of 16 32×32", 4, 16, 32),
    Case("C=4 of 16 32×32 chain", 4, 4, 32, chain=True),
    Case("C=16 32×32", 16, 16, 32),
    Case("C=16 32×32 stride 2", 16, 16, 32, stride=2),
    Case("C=16 32×32 chain", 16, 16, 32, chain=True),
    Case("C=32 16×16", 32, 32, 16),
    Case("C=32 16×16 chain", 32, 32, 16, chain=True),
    Case("C=64 8×8", 64, 64, 8),
    Case("C=64 8×8 chain", 64, 64, 8, chain=True),
)


Contender = Callable[[list[Tensor]], list[Tensor]]


class Run:
    """The tensors of a case, and the contenders on them.

    All give raw outputs. fastnas takes their statistics as well; plain torch takes those of the inputs of a chain.
    """

    def __init__(self, case: Case, device: torch.device) -> None:
        self.case = case
        channels = case.channels
        inputs = len(case.kinds) if case.chain else 1
        shape = (case.batch, case.width, case.size, case.size)
        self.states = [
            torch.randn(shape, device=device).contiguous(memory_format=torch.channels_last)[:, :channels]
            for _ in range(inputs)
        ]  # I × [N, C, H, W]
        self.depthwise = [torch.randn(channels, 1, k, k, device=device).requires_grad_() for k, _ in case.kinds]
        self.pointwise = [torch.randn(channels, channels, 1, 1, device=device).requires_grad_() for _ in case.kinds]
        self.statistics: tuple[Tensor, Tensor] | None = None
        if case.chain:
            variance, mean = torch.var_mean(torch.stack(self.states)[:, None], dim=(2, 4, 5), correction=0)  # [I, 1, C]
            self.statistics = mean, torch.rsqrt(variance + 1e-5)

    def contiguous(self) -> list[Tensor]:
        return [x.contiguous().requires_grad_() for x in self.states]

    def channels_last(self) -> list[Tensor]:
        """Slices of wider states stay slices."""
        return [x.detach().requires_grad_() for x in self.states]

    def plain(self, inputs: list[Tensor]) -> list[Tensor]:
        """One candidate after the other, as modules do it."""
        outputs = []
        for j, (_, dilation) in enumerate(self.case.kinds):
            x = inputs[j if self.case.chain else 0]
            if self.case.chain:
                x = F.batch_norm(x, None, None, training=True)
            taps = self.depthwise[j]
            padding = dilation * (taps.shape[-1] - 1) // 2
            z = F.conv2d(F.relu(x), taps, None, self.case.stride, padding, dilation, groups=len(taps))
            outputs.append(F.conv2d(z, self.pointwise[j]))
        return outputs

    def fastnas(self, inputs: list[Tensor]) -> list[Tensor]:
        mean, rstd = self.statistics or (None, None)
        dilations = [dilation for _, dilation in self.case.kinds]
        options = (dilations, self.case.stride, mean, rstd)
        return stage(inputs, self.depthwise, self.pointwise, *options, statistics=True)[0]

    def forward(self, function: Contender, inputs: list[Tensor], _: list[Tensor]) -> object:
        with torch.no_grad():
            return function(inputs)

    def both(self, function: Contender, inputs: list[Tensor], grads: list[Tensor]) -> object:
        outputs = function(inputs)
        return torch.autograd.grad(outputs, [*inputs, *self.depthwise, *self.pointwise], grads)


def measure(device: torch.device, seconds: float) -> list[Row]:
    rows: list[Row] = []
    for case in CASES:
        run = Run(case, device)
        arguments = {
            "plain torch": (run.plain, run.contiguous()),
            "channels-last torch": (run.plain, run.channels_last()),
            "fastnas": (run.fastnas, run.channels_last()),
        }
        contenders = {
            name: (function, inputs, [torch.randn_like(y) for y in function(inputs)])  # as strided as the outputs
            for name, (function, inputs) in arguments.items()
        }
        read = sum(x.numel() * x.element_size() for x in run.states)
        written = 4 * case.outputs * case.channels * len(case.kinds)
        modes = {
            "forward": (run.forward, read + written, case.operations),
            # Each convolution has two more in the backward pass: the gradients of inputs and of weights.
            "both": (run.both, 3 * read + 2 * written, 3 * case.operations),
        }
        for mode, (call, least, flops) in modes.items():
            rows += compare(
                "stage",
                case.name,
                mode,
                {name: partial(call, *contender) for name, contender in contenders.items()},
                baseline="plain torch",
                least_bytes=least,
                flops=flops,
                notes={FASTNAS: CHAIN_GRADIENT} if case.chain and mode == "both" else None,
                device=device,
                seconds=seconds,
            )
    return rows
