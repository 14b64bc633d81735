"""The shape of NASLib: primitives are called with the data of their edge, which also hold α."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn


class Identity(nn.Module):
    def forward(self, x: Tensor, edge_data: Any) -> Tensor:
        return x


class Zero(nn.Module):
    def __init__(self, stride: int) -> None:
        super().__init__()
        self.stride = stride

    def forward(self, x: Tensor, edge_data: Any) -> Tensor:
        return x.mul(0.0) if self.stride == 1 else x[:, :, :: self.stride, :: self.stride].mul(0.0)


class FactorizedReduce(nn.Module):
    def __init__(self, C_in: int, C_out: int, affine: bool = False) -> None:
        super().__init__()
        self.relu = nn.ReLU(inplace=False)
        self.conv_1 = nn.Conv2d(C_in, C_out // 2, 1, stride=2, bias=False)
        self.conv_2 = nn.Conv2d(C_in, C_out // 2, 1, stride=2, bias=False)
        self.bn = nn.BatchNorm2d(C_out, affine=affine)
        self.pad = nn.ConstantPad2d((0, 1, 0, 1), 0)

    def forward(self, x: Tensor, edge_data: Any) -> Tensor:
        x = self.relu(x)
        y = self.pad(x)
        return self.bn(torch.cat([self.conv_1(x), self.conv_2(y[:, :, 1:, 1:])], dim=1))


class Pool(nn.Module):
    def __init__(self, C_in: int, stride: int, mode: str, use_bn: bool = True) -> None:
        super().__init__()
        if mode == "max":
            pool: nn.Module = nn.MaxPool2d(3, stride, padding=1)
        else:
            pool = nn.AvgPool2d(3, stride, padding=1, count_include_pad=False)
        self.pool = nn.Sequential(pool, nn.BatchNorm2d(C_in, affine=False)) if use_bn else pool

    def forward(self, x: Tensor, edge_data: Any) -> Tensor:
        return self.pool(x)


class SepConv(nn.Module):
    def __init__(self, C: int, kernel: int, stride: int, affine: bool = False) -> None:
        super().__init__()
        self.op = nn.Sequential(
            nn.ReLU(inplace=False),
            nn.Conv2d(C, C, kernel, stride, kernel // 2, groups=C, bias=False),
            nn.Conv2d(C, C, 1, bias=False),
            nn.BatchNorm2d(C, affine=affine),
            nn.ReLU(inplace=False),
            nn.Conv2d(C, C, kernel, 1, kernel // 2, groups=C, bias=False),
            nn.Conv2d(C, C, 1, bias=False),
            nn.BatchNorm2d(C, affine=affine),
        )

    def forward(self, x: Tensor, edge_data: Any) -> Tensor:
        return self.op(x)


class DilConv(nn.Module):
    def __init__(self, C: int, kernel: int, stride: int, affine: bool = False) -> None:
        super().__init__()
        self.op = nn.Sequential(
            nn.ReLU(inplace=False),
            nn.Conv2d(C, C, kernel, stride, kernel - 1, 2, groups=C, bias=False),
            nn.Conv2d(C, C, 1, bias=False),
            nn.BatchNorm2d(C, affine=affine),
        )

    def forward(self, x: Tensor, edge_data: Any) -> Tensor:
        return self.op(x)


def primitives(C: int, stride: int) -> list[nn.Module]:
    return [
        Identity() if stride == 1 else FactorizedReduce(C, C),
        Zero(stride),
        Pool(C, stride, "max"),
        Pool(C, stride, "avg"),
        SepConv(C, 3, stride),
        SepConv(C, 5, stride),
        DilConv(C, 3, stride),
        DilConv(C, 5, stride),
    ]


class MixedOp(nn.Module):
    def __init__(self, primitives: Sequence[nn.Module]) -> None:
        super().__init__()
        self.primitives = list(primitives)
        for i, primitive in enumerate(primitives):
            self.add_module(f"primitive-{i}", primitive)
        self.pre_process_hook: Callable[[Tensor, Any], Tensor] | None = None
        self.post_process_hook: Callable[[Tensor, Any], Tensor] | None = None

    def get_embedded_ops(self) -> list[nn.Module]:
        return self.primitives

    def get_weights(self, edge_data: Any) -> Tensor:
        raise NotImplementedError

    def process_weights(self, weights: Tensor) -> Tensor:
        raise NotImplementedError

    def apply_weights(self, x: Tensor, weights: Tensor) -> Tensor:
        raise NotImplementedError

    def forward(self, x: Tensor, edge_data: Any) -> Tensor:
        weights = self.get_weights(edge_data)
        if self.pre_process_hook:
            weights = self.pre_process_hook(weights, edge_data)
        weights = self.process_weights(weights)
        if self.post_process_hook:
            weights = self.post_process_hook(weights, edge_data)
        return self.apply_weights(x, weights)


class DARTSMixedOp(MixedOp):
    def get_weights(self, edge_data: Any) -> Tensor:
        return edge_data.alpha

    def process_weights(self, weights: Tensor) -> Tensor:
        return torch.softmax(weights, dim=-1)

    def apply_weights(self, x: Tensor, weights: Tensor) -> Tensor:
        return sum(w * op(x, None) for w, op in zip(weights, self.primitives, strict=True))


class PartialConnectionOp(nn.Module):
    def __init__(self, mixed_op: MixedOp, k: int) -> None:
        super().__init__()
        self.k = k
        self.mixed_op = mixed_op
        self.mp = nn.MaxPool2d(2, 2)

    def get_embedded_ops(self) -> list[nn.Module]:
        return self.mixed_op.get_embedded_ops()

    def forward(self, x: Tensor, edge_data: Any) -> Tensor:
        seen = x.shape[1] // self.k
        mixed = self.mixed_op(x[:, :seen], edge_data)
        rest = x[:, seen:]
        rest = rest if mixed.shape[2] == x.shape[2] else self.mp(rest)
        joined = torch.cat([mixed, rest], dim=1)
        batch, _, height, width = joined.shape
        return joined.view(batch, self.k, -1, height, width).transpose(1, 2).reshape(joined.shape)


class Graph(nn.Module):
    """Two nodes and two edges, each with its data."""

    def __init__(self, C: int, parts: int = 1) -> None:
        super().__init__()
        for index, stride in enumerate((1, 2)):
            op: nn.Module = DARTSMixedOp(primitives(C // parts, stride))
            self.add_module(f"edge-{index}", op if parts == 1 else PartialConnectionOp(op, parts))
        self.alphas = nn.ParameterList(nn.Parameter(1e-3 * torch.randn(8)) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        for index, alpha in enumerate(self.alphas):
            x = self.get_submodule(f"edge-{index}")(x, SimpleNamespace(alpha=alpha))
        return x
