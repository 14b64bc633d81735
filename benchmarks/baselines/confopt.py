"""The shape of confopt: a block of operations with what samplers, partial connections and collapse guards need."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.baselines.darts_operations import (
    DilConv,
    FactorizedReduce,
    Identity,
    ReLUConvBN,
    SepConv,
    Zero,
    shuffled,
)


class Pooling(nn.Module):
    def __init__(self, C: int, stride: int, mode: str) -> None:
        super().__init__()
        if mode == "max":
            self.op: nn.Module = nn.MaxPool2d(3, stride=stride, padding=1)
        else:
            self.op = nn.AvgPool2d(3, stride=stride, padding=1, count_include_pad=False)
        self.bn = nn.BatchNorm2d(C, affine=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.op(x))


def operations(C: int, stride: int) -> nn.ModuleList:
    return nn.ModuleList(
        [
            Pooling(C, stride, "max"),
            Pooling(C, stride, "avg"),
            Identity() if stride == 1 else FactorizedReduce(C, C, affine=False),
            SepConv(C, 3, stride, 1, affine=False),
            SepConv(C, 5, stride, 2, affine=False),
            DilConv(C, 3, stride, 2, 2, affine=False),
            DilConv(C, 5, stride, 4, 2, affine=False),
            Zero(stride),
        ]
    )


class PartialConnector(nn.Module):
    def __init__(self, k: int) -> None:
        super().__init__()
        self.k = k
        self.mp = nn.MaxPool2d(2, 2)

    def forward(self, x: Tensor, alphas: Tensor, ops: nn.ModuleList, method: Callable[..., Tensor]) -> Tensor:
        seen = x.shape[1] // self.k
        mixed = method(x[:, :seen], ops, alphas)
        rest = x[:, seen:]
        rest = rest if mixed.shape[2] == x.shape[2] else self.mp(rest)
        return shuffled(torch.cat([mixed, rest], dim=1), self.k)


class OperationBlock(nn.Module):
    def __init__(
        self,
        ops: nn.ModuleList,
        is_reduction_cell: bool,
        partial_connector: PartialConnector | None = None,
        dropout: Any = None,
        weight_entangler: Any = None,
        device: torch.device | str = "cpu",
        is_argmax_sampler: bool = False,
        aux_skip: nn.Module | None = None,
        dan: Any = None,
    ) -> None:
        super().__init__()
        self.ops = ops
        self.is_reduction_cell = is_reduction_cell
        self.partial_connector = partial_connector
        self.dropout = dropout
        self.weight_entangler = weight_entangler
        self.device = device
        self.is_argmax_sampler = is_argmax_sampler
        self.aux_skip = aux_skip
        self.flops: list[float] | None = None

    def change_op_channel_size(self, k: float) -> None:
        """Every operation with `k` times the channels, newly initialised."""
        first = next(module for module in self.modules() if isinstance(module, nn.Conv2d))
        channels = int(first.in_channels * k)
        self.ops = operations(channels, first.stride[0])

    def forward_method(self, x: Tensor, ops: nn.ModuleList, alphas: Tensor) -> Tensor:
        if self.is_argmax_sampler:
            chosen = int(alphas.argmax())
            return alphas[chosen] * ops[chosen](x)
        return sum(w * op(x) for w, op in zip(alphas, ops, strict=True))

    def forward(self, x: Tensor, alphas: Tensor) -> Tensor:
        if self.flops is None:
            self.flops = [float(sum(p.numel() for p in op.parameters())) for op in self.ops]
        if self.partial_connector is None:
            states = self.forward_method(x, self.ops, alphas)
        else:
            states = self.partial_connector(x, alphas, self.ops, self.forward_method)
        return states if self.aux_skip is None else states + self.aux_skip(x)


class Cell(nn.Module):
    def __init__(self, C_pp: int, C_p: int, C: int, nodes: int, reduction: bool, k: int = 1) -> None:
        super().__init__()
        self.preprocess0 = ReLUConvBN(C_pp, C, 1, 1, 0, affine=False)
        self.preprocess1 = ReLUConvBN(C_p, C, 1, 1, 0, affine=False)
        self.nodes = nodes
        self._ops = nn.ModuleList()
        for i in range(nodes):
            for j in range(2 + i):
                ops = operations(C // k, 2 if reduction and j < 2 else 1)
                self._ops.append(OperationBlock(ops, reduction, PartialConnector(k) if k > 1 else None))

    def forward(self, s0: Tensor, s1: Tensor, alphas: Tensor, betas: Tensor | None = None) -> Tensor:
        states = [self.preprocess0(s0), self.preprocess1(s1)]
        offset = 0
        for _ in range(self.nodes):
            outputs = []
            for j, h in enumerate(states):
                output = self._ops[offset + j](h, alphas[offset + j])
                outputs.append(output if betas is None else betas[offset + j] * output)
            offset += len(states)
            states.append(sum(outputs))
        return torch.cat(states[2:], dim=1)
