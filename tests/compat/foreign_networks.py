"""Supernets in the shape of DARTS, PC-DARTS and EG-NAS, in plain torch: the same names, the same computation."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, affine=False)


class Op(nn.Module):
    """A candidate or preprocessing whose layers stand in `op`."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.op = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.op(x)


class Zero(nn.Module):
    def __init__(self, stride: int) -> None:
        super().__init__()
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        return x[:, :, :: self.stride, :: self.stride].mul(0.0)


class FactorizedReduce(nn.Module):
    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__()
        self.relu = nn.ReLU(inplace=False)
        self.conv_1 = nn.Conv2d(c_in, c_out // 2, 1, stride=2, bias=False)
        self.conv_2 = nn.Conv2d(c_in, c_out // 2, 1, stride=2, bias=False)
        self.bn = norm(c_out)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(x)
        return self.bn(torch.cat([self.conv_1(x), self.conv_2(x[:, :, 1:, 1:])], dim=1))


def stage(c: int, kernel: int, stride: int, dilation: int = 1) -> list[nn.Module]:
    padding = dilation * (kernel // 2)
    depthwise = nn.Conv2d(c, c, kernel, stride, padding, dilation, groups=c, bias=False)
    return [nn.ReLU(inplace=False), depthwise, nn.Conv2d(c, c, 1, bias=False), norm(c)]


def pointwise(c_in: int, c_out: int) -> Op:
    return Op(nn.ReLU(inplace=False), nn.Conv2d(c_in, c_out, 1, bias=False), norm(c_out))


def candidate(name: str, c: int, stride: int) -> nn.Module:
    if name == "none":
        return Zero(stride)
    if name == "skip_connect":
        return nn.Identity() if stride == 1 else FactorizedReduce(c, c)
    if name == "max_pool_3x3":
        return nn.MaxPool2d(3, stride, 1)
    if name == "avg_pool_3x3":
        return nn.AvgPool2d(3, stride, 1, count_include_pad=False)
    kernel = int(name[-1])
    if name.startswith("sep"):
        return Op(*stage(c, kernel, stride), *stage(c, kernel, 1))
    return Op(*stage(c, kernel, stride, dilation=2))


PRIMITIVES = ["skip_connect", "sep_conv_3x3", "sep_conv_5x5", "dil_conv_3x3", "dil_conv_5x5"]
DARTS = ["none", "max_pool_3x3", "avg_pool_3x3", *PRIMITIVES]
EGNAS = ["avg_pool_3x3", "max_pool_3x3", *PRIMITIVES]


class MixedOp(nn.Module):
    def __init__(self, names: list[str], c: int, stride: int, k: int, pool_norm: bool) -> None:
        super().__init__()
        self.k = k
        self.mp = nn.MaxPool2d(2, 2)
        self._ops = nn.ModuleList()
        for name in names:
            op = candidate(name, c // k, stride)
            self._ops.append(nn.Sequential(op, norm(c // k)) if pool_norm and "pool" in name else op)

    def forward(self, x: Tensor, weights: Tensor) -> Tensor:
        part = x.shape[1] // self.k
        y = sum(w * op(x[:, :part]) for w, op in zip(weights, self._ops, strict=True))
        if self.k == 1:
            return y
        rest = x[:, part:] if y.shape[2] == x.shape[2] else self.mp(x[:, part:])
        y = torch.cat([y, rest], dim=1)
        return y.unflatten(1, (self.k, -1)).transpose(1, 2).flatten(1, 2)


class Cell(nn.Module):
    def __init__(
        self, names: list[str], c0: int, c1: int, c: int, reduction: bool, reduction_prev: bool, k: int, pool_norm: bool
    ) -> None:
        super().__init__()
        self.reduction = reduction
        self.preprocess0 = FactorizedReduce(c0, c) if reduction_prev else pointwise(c0, c)
        self.preprocess1 = pointwise(c1, c)
        strides = [2 if reduction and j < 2 else 1 for i in range(4) for j in range(2 + i)]
        self._ops = nn.ModuleList(MixedOp(names, c, stride, k, pool_norm) for stride in strides)

    def forward(self, s0: Tensor, s1: Tensor, weights: Tensor, betas: Tensor) -> Tensor:
        states, offset = [self.preprocess0(s0), self.preprocess1(s1)], 0
        for _ in range(4):
            s = sum(betas[offset + j] * self._ops[offset + j](h, weights[offset + j]) for j, h in enumerate(states))
            offset += len(states)
            states.append(s)
        return torch.cat(states[2:], dim=1)


class Network(nn.Module):
    """kind: "darts", "pc-darts" or "egnas"."""

    def __init__(
        self,
        kind: str,
        c: int = 4,
        classes: int = 5,
        layers: int = 3,
        k: int | None = None,
        stem: str = "cifar",
        in_channels: int = 3,
    ) -> None:
        super().__init__()
        names = EGNAS if kind == "egnas" else DARTS
        k = k or (1 if kind == "darts" else 2)
        width = 3 * c
        first = [nn.Conv2d(in_channels, width // 2, 3, 2, 1, bias=False), nn.BatchNorm2d(width // 2), nn.ReLU(True)]
        if stem == "cifar":
            self.stem = nn.Sequential(nn.Conv2d(in_channels, width, 3, padding=1, bias=False), nn.BatchNorm2d(width))
        else:
            second = [nn.Conv2d(width // 2, width, 3, 2, 1, bias=False), nn.BatchNorm2d(width)]
            self.stem0 = nn.Sequential(*first, *second)
            third = nn.Conv2d(width, width, 3, 2, 1, bias=False)
            self.stem1 = nn.Sequential(nn.ReLU(True), third, nn.BatchNorm2d(width))
        self.cells = nn.ModuleList()
        c0, c1, reduction_prev = width, width, stem != "cifar"
        for i in range(layers):
            reduction = i in (layers // 3, 2 * layers // 3)
            c = 2 * c if reduction else c
            self.cells.append(Cell(names, c0, c1, c, reduction, reduction_prev, k, pool_norm=kind != "egnas"))
            c0, c1, reduction_prev = c1, 4 * c, reduction
        self.classifier = nn.Linear(c1, classes)
        for cell in ("normal", "reduce"):
            alpha = torch.randn(14, len(names))
            setattr(self, f"alphas_{cell}", nn.Parameter(alpha) if kind == "egnas" else alpha.requires_grad_())
            if kind == "pc-darts":
                setattr(self, f"betas_{cell}", torch.randn(14).requires_grad_())

    def forward(self, x: Tensor) -> Tensor:
        if hasattr(self, "stem"):
            s0 = s1 = self.stem(x)
        else:
            s0 = self.stem0(x)
            s1 = self.stem1(s0)
        for cell in self.cells:
            kind = "reduce" if cell.reduction else "normal"
            betas = torch.ones(14, dtype=x.dtype)
            if hasattr(self, "betas_normal"):
                parts = getattr(self, f"betas_{kind}").to(x.dtype).split([2, 3, 4, 5])
                betas = torch.cat([F.softmax(part, -1) for part in parts])
            weights = F.softmax(getattr(self, f"alphas_{kind}").to(x.dtype), -1)
            s0, s1 = s1, cell(s0, s1, weights, betas)
        return self.classifier(s1.mean((2, 3)))

    def tables(self) -> dict[str, Tensor]:
        """α and β, as one adds them to the state dict."""
        names = [f"{table}_{cell}" for table in ("alphas", "betas") for cell in ("normal", "reduce")]
        return {name: getattr(self, name) for name in names if hasattr(self, name)}
