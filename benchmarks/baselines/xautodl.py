"""The shape of AutoDL-Projects (xautodl): edges by name, `forward_darts` and `forward_gdas`, biases."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

DARTS_SPACE = (
    "none",
    "skip_connect",
    "dua_sepc_3x3",
    "dua_sepc_5x5",
    "dil_sepc_3x3",
    "dil_sepc_5x5",
    "avg_pool_3x3",
    "max_pool_3x3",
)
NAS_BENCH_201 = ("none", "skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3")


class ReLUConvBN(nn.Module):
    def __init__(
        self, C_in: int, C_out: int, kernel: int, stride: int, padding: int, affine: bool, track_running_stats: bool
    ) -> None:
        super().__init__()
        self.op = nn.Sequential(
            nn.ReLU(inplace=False),
            nn.Conv2d(C_in, C_out, kernel, stride, padding, bias=not affine),
            nn.BatchNorm2d(C_out, affine=affine, track_running_stats=track_running_stats),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.op(x)


class SepConv(nn.Module):
    def __init__(
        self, C: int, kernel: int, stride: int, dilation: int, affine: bool, track_running_stats: bool
    ) -> None:
        super().__init__()
        padding = dilation * (kernel - 1) // 2
        self.op = nn.Sequential(
            nn.ReLU(inplace=False),
            nn.Conv2d(C, C, kernel, stride, padding, dilation, groups=C, bias=False),
            nn.Conv2d(C, C, 1, bias=not affine),
            nn.BatchNorm2d(C, affine=affine, track_running_stats=track_running_stats),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.op(x)


class DualSepConv(nn.Module):
    def __init__(self, C: int, kernel: int, stride: int, affine: bool, track_running_stats: bool) -> None:
        super().__init__()
        self.op_a = SepConv(C, kernel, stride, 1, affine, track_running_stats)
        self.op_b = SepConv(C, kernel, 1, 1, affine, track_running_stats)

    def forward(self, x: Tensor) -> Tensor:
        return self.op_b(self.op_a(x))


class POOLING(nn.Module):
    def __init__(self, stride: int, mode: str) -> None:
        super().__init__()
        if mode == "avg":
            self.op: nn.Module = nn.AvgPool2d(3, stride=stride, padding=1, count_include_pad=False)
        else:
            self.op = nn.MaxPool2d(3, stride=stride, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.op(x)


class Identity(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x


class Zero(nn.Module):
    def __init__(self, stride: int) -> None:
        super().__init__()
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        return x[:, :, :: self.stride, :: self.stride].mul(0.0)


class FactorizedReduce(nn.Module):
    def __init__(self, C_in: int, C_out: int, affine: bool, track_running_stats: bool) -> None:
        super().__init__()
        self.relu = nn.ReLU(inplace=False)
        self.convs = nn.ModuleList(nn.Conv2d(C_in, C_out // 2, 1, stride=2, bias=not affine) for _ in range(2))
        self.pad = nn.ConstantPad2d((0, 1, 0, 1), 0)
        self.bn = nn.BatchNorm2d(C_out, affine=affine, track_running_stats=track_running_stats)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(x)
        y = self.pad(x)
        return self.bn(torch.cat([self.convs[0](x), self.convs[1](y[:, :, 1:, 1:])], dim=1))


def operation(name: str, C: int, stride: int, affine: bool, track: bool) -> nn.Module:
    match name:
        case "none":
            return Zero(stride)
        case "skip_connect":
            return Identity() if stride == 1 else FactorizedReduce(C, C, affine, track)
        case "nor_conv_1x1":
            return ReLUConvBN(C, C, 1, stride, 0, affine, track)
        case "nor_conv_3x3":
            return ReLUConvBN(C, C, 3, stride, 1, affine, track)
        case "avg_pool_3x3" | "max_pool_3x3":
            return POOLING(stride, name[:3])
        case "dua_sepc_3x3" | "dua_sepc_5x5":
            return DualSepConv(C, int(name[-1]), stride, affine, track)
        case "dil_sepc_3x3" | "dil_sepc_5x5":
            return SepConv(C, int(name[-1]), stride, 2, affine, track)
    raise ValueError(f"unknown operation {name!r}")


class MixedOp(nn.Module):
    def __init__(self, space: Sequence[str], C: int, stride: int, affine: bool, track_running_stats: bool) -> None:
        super().__init__()
        self._ops = nn.ModuleList(operation(name, C, stride, affine, track_running_stats) for name in space)

    def forward_gdas(self, x: Tensor, weights: Tensor, index: int) -> Tensor:
        return self._ops[index](x) * weights[index] + sum(w for i, w in enumerate(weights) if i != index)

    def forward_darts(self, x: Tensor, weights: Tensor) -> Tensor:
        return sum(w * op(x) for w, op in zip(weights, self._ops, strict=True))


class NASNetSearchCell(nn.Module):
    def __init__(
        self,
        space: Sequence[str],
        steps: int,
        multiplier: int,
        C_prev_prev: int,
        C_prev: int,
        C: int,
        reduction: bool,
        reduction_prev: bool,
        affine: bool,
        track_running_stats: bool,
    ) -> None:
        super().__init__()
        self.reduction = reduction
        track = track_running_stats
        if reduction_prev:
            self.preprocess0: nn.Module = FactorizedReduce(C_prev_prev, C, affine, track)
        else:
            self.preprocess0 = ReLUConvBN(C_prev_prev, C, 1, 1, 0, affine, track)
        self.preprocess1 = ReLUConvBN(C_prev, C, 1, 1, 0, affine, track)
        self._steps = steps
        self._multiplier = multiplier
        self.edges = nn.ModuleDict(
            {
                f"{i}<-{j}": MixedOp(space, C, 2 if reduction and j < 2 else 1, affine, track)
                for i in range(steps)
                for j in range(2 + i)
            }
        )
        self.edge2index = {key: index for index, key in enumerate(sorted(self.edges))}

    def forward_gdas(self, s0: Tensor, s1: Tensor, weightss: Tensor, indexs: Sequence[int]) -> Tensor:
        states = [self.preprocess0(s0), self.preprocess1(s1)]
        for i in range(self._steps):
            outputs = []
            for j, h in enumerate(states):
                at = self.edge2index[f"{i}<-{j}"]
                outputs.append(self.edges[f"{i}<-{j}"].forward_gdas(h, weightss[at], indexs[at]))
            states.append(sum(outputs))
        return torch.cat(states[-self._multiplier :], dim=1)

    def forward_darts(self, s0: Tensor, s1: Tensor, weightss: Tensor) -> Tensor:
        states = [self.preprocess0(s0), self.preprocess1(s1)]
        for i in range(self._steps):
            outputs = []
            for j, h in enumerate(states):
                weights = weightss[self.edge2index[f"{i}<-{j}"]]
                outputs.append(self.edges[f"{i}<-{j}"].forward_darts(h, weights))
            states.append(sum(outputs))
        return torch.cat(states[-self._multiplier :], dim=1)


class NASNetworkDARTS(nn.Module):
    def __init__(
        self,
        C: int,
        N: int,
        steps: int,
        multiplier: int,
        stem_multiplier: int,
        num_classes: int,
        search_space: Sequence[str] = DARTS_SPACE,
        affine: bool = False,
        track_running_stats: bool = True,
    ) -> None:
        super().__init__()
        C_curr = C * stem_multiplier
        self.stem = nn.Sequential(nn.Conv2d(3, C_curr, 3, padding=1, bias=False), nn.BatchNorm2d(C_curr))
        reductions = [False] * N + [True] + [False] * (N - 1) + [True] + [False] * N
        C_prev_prev, C_prev, C_curr, reduction_prev = C_curr, C_curr, C, False
        self.cells = nn.ModuleList()
        for reduction in reductions:
            C_curr *= 2 if reduction else 1
            cell = NASNetSearchCell(
                search_space,
                steps,
                multiplier,
                C_prev_prev,
                C_prev,
                C_curr,
                reduction,
                reduction_prev,
                affine,
                track_running_stats,
            )
            self.cells.append(cell)
            C_prev_prev, C_prev, reduction_prev = C_prev, multiplier * C_curr, reduction
        self.lastact = nn.Sequential(nn.BatchNorm2d(C_prev), nn.ReLU(inplace=True))
        self.global_pooling = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(C_prev, num_classes)
        edges = steps * (steps + 3) // 2
        self.arch_normal_parameters = nn.Parameter(1e-3 * torch.randn(edges, len(search_space)))
        self.arch_reduce_parameters = nn.Parameter(1e-3 * torch.randn(edges, len(search_space)))

    def forward(self, inputs: Tensor) -> Tensor:
        s0 = s1 = self.stem(inputs)
        for cell in self.cells:
            alphas = self.arch_reduce_parameters if cell.reduction else self.arch_normal_parameters
            s0, s1 = s1, cell.forward_darts(s0, s1, F.softmax(alphas, dim=-1))
        out = self.global_pooling(self.lastact(s1))
        return self.classifier(out.view(out.size(0), -1))


class NAS201SearchCell(nn.Module):
    def __init__(
        self,
        C_in: int,
        C_out: int,
        stride: int,
        max_nodes: int,
        op_names: Sequence[str],
        affine: bool = False,
        track_running_stats: bool = True,
    ) -> None:
        super().__init__()
        self.max_nodes = max_nodes
        self.edges = nn.ModuleDict(
            {
                f"{i}<-{j}": nn.ModuleList(
                    operation(name, C_in, stride if j == 0 else 1, affine, track_running_stats) for name in op_names
                )
                for i in range(1, max_nodes)
                for j in range(i)
            }
        )
        self.edge2index = {key: index for index, key in enumerate(sorted(self.edges))}

    def forward(self, inputs: Tensor, weightss: Tensor) -> Tensor:
        nodes = [inputs]
        for i in range(1, self.max_nodes):
            outputs = []
            for j in range(i):
                weights = weightss[self.edge2index[f"{i}<-{j}"]]
                layers = self.edges[f"{i}<-{j}"]
                outputs.append(sum(layer(nodes[j]) * w for layer, w in zip(layers, weights, strict=True)))
            nodes.append(sum(outputs))
        return nodes[-1]

    def forward_gdas(self, inputs: Tensor, hardwts: Tensor, index: Sequence[int]) -> Tensor:
        nodes = [inputs]
        for i in range(1, self.max_nodes):
            outputs = []
            for j in range(i):
                at = self.edge2index[f"{i}<-{j}"]
                weights, chosen = hardwts[at], index[at]
                others = sum(w for o, w in enumerate(weights) if o != chosen)
                outputs.append(self.edges[f"{i}<-{j}"][chosen](nodes[j]) * weights[chosen] + others)
            nodes.append(sum(outputs))
        return nodes[-1]

    def forward_select(self, inputs: Tensor, structure: Sequence[int]) -> Tensor:
        nodes = [inputs]
        for i in range(1, self.max_nodes):
            keys = [f"{i}<-{j}" for j in range(i)]
            nodes.append(sum(self.edges[key][structure[self.edge2index[key]]](nodes[j]) for j, key in enumerate(keys)))
        return nodes[-1]
