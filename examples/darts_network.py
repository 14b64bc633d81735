"""The supernet of DARTS (Liu et al. 2019) in plain PyTorch, as many code bases have it; fastnas plays no part."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

PRIMITIVES = (
    "none",
    "max_pool_3x3",
    "avg_pool_3x3",
    "skip_connect",
    "sep_conv_3x3",
    "sep_conv_5x5",
    "dil_conv_3x3",
    "dil_conv_5x5",
)
NODES = 4
EDGES = sum(2 + node for node in range(NODES))  # 14


class Zero(nn.Module):
    def __init__(self, stride: int) -> None:
        super().__init__()
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        return 0 * x[:, :, :: self.stride, :: self.stride]


class ReLUConvBN(nn.Module):
    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__()
        self.op = nn.Sequential(nn.ReLU(), nn.Conv2d(c_in, c_out, 1, bias=False), nn.BatchNorm2d(c_out, affine=False))

    def forward(self, x: Tensor) -> Tensor:
        return self.op(x)


class FactorizedReduce(nn.Module):
    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__()
        self.relu = nn.ReLU()
        self.conv_1 = nn.Conv2d(c_in, c_out // 2, 1, stride=2, bias=False)
        self.conv_2 = nn.Conv2d(c_in, c_out // 2, 1, stride=2, bias=False)
        self.bn = nn.BatchNorm2d(c_out, affine=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(x)
        return self.bn(torch.cat([self.conv_1(x), self.conv_2(x[:, :, 1:, 1:])], dim=1))


class SeparableConv(nn.Module):
    """ReLU, depthwise, pointwise, BatchNorm: once for `dil_conv`, twice for `sep_conv`."""

    def __init__(self, c: int, kernel: int, stride: int, dilation: int = 1, times: int = 1) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for s in (stride, 1)[:times]:
            padding = dilation * (kernel // 2)
            layers += [
                nn.ReLU(),
                nn.Conv2d(c, c, kernel, s, padding, dilation, groups=c, bias=False),
                nn.Conv2d(c, c, 1, bias=False),
                nn.BatchNorm2d(c, affine=False),
            ]
        self.op = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.op(x)


def candidate(name: str, c: int, stride: int) -> nn.Module:
    if name == "none":
        return Zero(stride)
    if name == "skip_connect":
        return nn.Identity() if stride == 1 else FactorizedReduce(c, c)
    if name == "max_pool_3x3":
        return nn.Sequential(nn.MaxPool2d(3, stride, 1), nn.BatchNorm2d(c, affine=False))
    if name == "avg_pool_3x3":
        pool = nn.AvgPool2d(3, stride, 1, count_include_pad=False)
        return nn.Sequential(pool, nn.BatchNorm2d(c, affine=False))
    kernel = int(name[-1])
    return SeparableConv(c, kernel, stride, times=2) if "sep" in name else SeparableConv(c, kernel, stride, dilation=2)


class MixedOp(nn.Module):
    def __init__(self, c: int, stride: int) -> None:
        super().__init__()
        self._ops = nn.ModuleList(candidate(name, c, stride) for name in PRIMITIVES)

    def forward(self, x: Tensor, weights: Tensor) -> Tensor:
        return sum(w * op(x) for w, op in zip(weights, self._ops, strict=True))


class Cell(nn.Module):
    def __init__(self, c_prev_prev: int, c_prev: int, c: int, reduction: bool, reduction_prev: bool) -> None:
        super().__init__()
        self.reduction = reduction
        self.preprocess0 = FactorizedReduce(c_prev_prev, c) if reduction_prev else ReLUConvBN(c_prev_prev, c)
        self.preprocess1 = ReLUConvBN(c_prev, c)
        self._ops = nn.ModuleList()
        for node in range(NODES):
            for source in range(2 + node):
                self._ops.append(MixedOp(c, stride=2 if reduction and source < 2 else 1))

    def forward(self, s0: Tensor, s1: Tensor, weights: Tensor) -> Tensor:
        states = [self.preprocess0(s0), self.preprocess1(s1)]
        offset = 0
        for _ in range(NODES):
            s = sum(self._ops[offset + j](h, weights[offset + j]) for j, h in enumerate(states))
            offset += len(states)
            states.append(s)
        return torch.cat(states[2:], dim=1)


class Network(nn.Module):
    def __init__(self, c: int = 16, num_classes: int = 10, layers: int = 8, in_channels: int = 3) -> None:
        super().__init__()
        width = 3 * c
        self.stem = nn.Sequential(nn.Conv2d(in_channels, width, 3, padding=1, bias=False), nn.BatchNorm2d(width))
        self.cells = nn.ModuleList()
        c_prev_prev, c_prev, reduction_prev = width, width, False
        for i in range(layers):
            reduction = i in (layers // 3, 2 * layers // 3)
            c = 2 * c if reduction else c
            self.cells.append(Cell(c_prev_prev, c_prev, c, reduction, reduction_prev))
            c_prev_prev, c_prev, reduction_prev = c_prev, NODES * c, reduction
        self.classifier = nn.Linear(c_prev, num_classes)
        # Outside of parameters(), as in the original: the optimizer of the weights must not see them.
        self.alphas = [(1e-3 * torch.randn(EDGES, len(PRIMITIVES))).requires_grad_() for _ in ("normal", "reduce")]

    def forward(self, x: Tensor) -> Tensor:
        s0 = s1 = self.stem(x)
        normal, reduce = (F.softmax(alpha, dim=-1) for alpha in self.alphas)
        for cell in self.cells:
            s0, s1 = s1, cell(s0, s1, reduce if cell.reduction else normal)
        return self.classifier(s1.mean((2, 3)))

    def genotype(self) -> dict[str, list[tuple[str, int]]]:
        """The two strongest edges of each node, each with its strongest candidate other than "none"."""
        cells = {}
        for kind, alpha in zip(("normal", "reduce"), self.alphas, strict=True):
            weights, chosen, offset = F.softmax(alpha.detach(), dim=-1)[:, 1:], [], 0
            for node in range(NODES):
                best, which = weights[offset : offset + 2 + node].max(dim=-1)
                for source in sorted(best.topk(2).indices.tolist()):
                    chosen.append((PRIMITIVES[1 + int(which[source])], source))
                offset += 2 + node
            cells[kind] = chosen
        return cells
