"""The shape of pt.darts: a dag of mixed operations, α by node, "none" last, pools that hold their normalisation."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

NAMES = (
    "max_pool_3x3",
    "avg_pool_3x3",
    "skip_connect",
    "sep_conv_3x3",
    "sep_conv_5x5",
    "dil_conv_3x3",
    "dil_conv_5x5",
    "none",
)


class PoolBN(nn.Module):
    def __init__(self, pool_type: str, C: int, kernel_size: int, stride: int, padding: int, affine: bool) -> None:
        super().__init__()
        if pool_type == "max":
            self.pool: nn.Module = nn.MaxPool2d(kernel_size, stride, padding)
        else:
            self.pool = nn.AvgPool2d(kernel_size, stride, padding, count_include_pad=False)
        self.bn = nn.BatchNorm2d(C, affine=affine)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.pool(x))


class StdConv(nn.Module):
    def __init__(self, C_in: int, C_out: int, kernel_size: int, stride: int, padding: int, affine: bool) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.ReLU(),
            nn.Conv2d(C_in, C_out, kernel_size, stride, padding, bias=False),
            nn.BatchNorm2d(C_out, affine=affine),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class DilConv(nn.Module):
    def __init__(self, C: int, kernel_size: int, stride: int, padding: int, dilation: int, affine: bool) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.ReLU(),
            nn.Conv2d(C, C, kernel_size, stride, padding, dilation, groups=C, bias=False),
            nn.Conv2d(C, C, 1, bias=False),
            nn.BatchNorm2d(C, affine=affine),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class SepConv(nn.Module):
    def __init__(self, C: int, kernel_size: int, stride: int, padding: int, affine: bool) -> None:
        super().__init__()
        self.net = nn.Sequential(
            DilConv(C, kernel_size, stride, padding, 1, affine), DilConv(C, kernel_size, 1, padding, 1, affine)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class Zero(nn.Module):
    def __init__(self, stride: int) -> None:
        super().__init__()
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        return x * 0.0 if self.stride == 1 else x[:, :, :: self.stride, :: self.stride] * 0.0


class FactorizedReduce(nn.Module):
    def __init__(self, C_in: int, C_out: int, affine: bool) -> None:
        super().__init__()
        self.relu = nn.ReLU()
        self.conv1 = nn.Conv2d(C_in, C_out // 2, 1, stride=2, bias=False)
        self.conv2 = nn.Conv2d(C_in, C_out // 2, 1, stride=2, bias=False)
        self.bn = nn.BatchNorm2d(C_out, affine=affine)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(x)
        return self.bn(torch.cat([self.conv1(x), self.conv2(x[:, :, 1:, 1:])], dim=1))


def operation(name: str, C: int, stride: int) -> nn.Module:
    match name:
        case "max_pool_3x3":
            return PoolBN("max", C, 3, stride, 1, affine=False)
        case "avg_pool_3x3":
            return PoolBN("avg", C, 3, stride, 1, affine=False)
        case "skip_connect":
            return nn.Identity() if stride == 1 else FactorizedReduce(C, C, affine=False)
        case "sep_conv_3x3":
            return SepConv(C, 3, stride, 1, affine=False)
        case "sep_conv_5x5":
            return SepConv(C, 5, stride, 2, affine=False)
        case "dil_conv_3x3":
            return DilConv(C, 3, stride, 2, 2, affine=False)
        case "dil_conv_5x5":
            return DilConv(C, 5, stride, 4, 2, affine=False)
    return Zero(stride)


class MixedOp(nn.Module):
    def __init__(self, C: int, stride: int) -> None:
        super().__init__()
        self._ops = nn.ModuleList(operation(name, C, stride) for name in NAMES)

    def forward(self, x: Tensor, weights: Tensor) -> Tensor:
        return sum(w * op(x) for w, op in zip(weights, self._ops, strict=True))


class SearchCell(nn.Module):
    def __init__(self, n_nodes: int, C_pp: int, C_p: int, C: int, reduction_p: bool, reduction: bool) -> None:
        super().__init__()
        self.reduction = reduction
        self.n_nodes = n_nodes
        if reduction_p:
            self.preproc0: nn.Module = FactorizedReduce(C_pp, C, affine=False)
        else:
            self.preproc0 = StdConv(C_pp, C, 1, 1, 0, affine=False)
        self.preproc1 = StdConv(C_p, C, 1, 1, 0, affine=False)
        self.dag = nn.ModuleList(
            nn.ModuleList(MixedOp(C, 2 if reduction and j < 2 else 1) for j in range(2 + i)) for i in range(n_nodes)
        )

    def forward(self, s0: Tensor, s1: Tensor, w_dag: Sequence[Tensor]) -> Tensor:
        states = [self.preproc0(s0), self.preproc1(s1)]
        for edges, w_list in zip(self.dag, w_dag, strict=True):
            states.append(sum(edges[i](s, w) for i, (s, w) in enumerate(zip(states, w_list, strict=True))))
        return torch.cat(states[2:], dim=1)


class SearchCNN(nn.Module):
    """Network and controller in one: α are ParameterLists, one table a node."""

    def __init__(self, C: int, n_classes: int, n_layers: int, n_nodes: int = 4, stem_multiplier: int = 3) -> None:
        super().__init__()
        C_cur = stem_multiplier * C
        self.stem = nn.Sequential(nn.Conv2d(3, C_cur, 3, 1, 1, bias=False), nn.BatchNorm2d(C_cur))
        C_pp, C_p, C_cur = C_cur, C_cur, C
        self.cells = nn.ModuleList()
        reduction_p = False
        for i in range(n_layers):
            reduction = i in (n_layers // 3, 2 * n_layers // 3)
            C_cur *= 2 if reduction else 1
            self.cells.append(SearchCell(n_nodes, C_pp, C_p, C_cur, reduction_p, reduction))
            reduction_p = reduction
            C_pp, C_p = C_p, C_cur * n_nodes
        self.gap = nn.AdaptiveAvgPool2d(1)
        self.linear = nn.Linear(C_p, n_classes)
        self.alpha_normal, self.alpha_reduce = (
            nn.ParameterList(nn.Parameter(1e-3 * torch.randn(i + 2, len(NAMES))) for i in range(n_nodes))
            for _ in range(2)
        )

    def forward(self, x: Tensor) -> Tensor:
        s0 = s1 = self.stem(x)
        for cell in self.cells:
            alphas = self.alpha_reduce if cell.reduction else self.alpha_normal
            s0, s1 = s1, cell(s0, s1, [F.softmax(alpha, dim=-1) for alpha in alphas])
        out = self.gap(s1)
        return self.linear(out.view(out.size(0), -1))
