"""The shape of EG-NAS: seven candidates, bare pools, 1/k of the channels, weights that may come from outside."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.baselines.darts_operations import FactorizedReduce, ReLUConvBN, operation, shuffled

NAMES = (
    "avg_pool_3x3",
    "max_pool_3x3",
    "skip_connect",
    "sep_conv_3x3",
    "sep_conv_5x5",
    "dil_conv_3x3",
    "dil_conv_5x5",
)


class MixedOp(nn.Module):
    def __init__(self, C: int, stride: int, k: int) -> None:
        super().__init__()
        self._ops = nn.ModuleList()
        self.mp = nn.MaxPool2d(2, 2)
        self.k = k
        for name in NAMES:
            self._ops.append(operation(name, C // k, stride, affine=False))

    def forward(self, x: Tensor, weights: Tensor) -> Tensor:
        seen = x.shape[1] // self.k
        mixed = sum(w * op(x[:, :seen]) for w, op in zip(weights, self._ops, strict=True))
        if self.k == 1:
            return mixed
        rest = x[:, seen:]
        rest = rest if mixed.shape[2] == x.shape[2] else self.mp(rest)
        return shuffled(torch.cat([mixed, rest], dim=1), self.k)


class Cell(nn.Module):
    def __init__(
        self,
        steps: int,
        multiplier: int,
        C_prev_prev: int,
        C_prev: int,
        C: int,
        reduction: bool,
        reduction_prev: bool,
        k: int,
    ) -> None:
        super().__init__()
        self.reduction = reduction
        self.k = k
        if reduction_prev:
            self.preprocess0: nn.Module = FactorizedReduce(C_prev_prev, C, affine=False)
        else:
            self.preprocess0 = ReLUConvBN(C_prev_prev, C, 1, 1, 0, affine=False)
        self.preprocess1 = ReLUConvBN(C_prev, C, 1, 1, 0, affine=False)
        self._steps = steps
        self._multiplier = multiplier
        self._ops = nn.ModuleList(
            MixedOp(C, 2 if reduction and j < 2 else 1, k) for i in range(steps) for j in range(2 + i)
        )

    def forward(self, s0: Tensor, s1: Tensor, weights: Tensor) -> Tensor:
        states = [self.preprocess0(s0), self.preprocess1(s1)]
        offset = 0
        for _ in range(self._steps):
            node = sum(self._ops[offset + j](h, weights[offset + j]) for j, h in enumerate(states))
            offset += len(states)
            states.append(node)
        return torch.cat(states[-self._multiplier :], dim=1)


class Network(nn.Module):
    def __init__(self, C: int, num_classes: int, layers: int, steps: int = 4, k: int = 4) -> None:
        super().__init__()
        C_curr = 3 * C
        self.stem = nn.Sequential(nn.Conv2d(3, C_curr, 3, padding=1, bias=False), nn.BatchNorm2d(C_curr))
        C_prev_prev, C_prev, C_curr = C_curr, C_curr, C
        self.cells = nn.ModuleList()
        reduction_prev = False
        for i in range(layers):
            reduction = i in (layers // 3, 2 * layers // 3)
            C_curr *= 2 if reduction else 1
            self.cells.append(Cell(steps, steps, C_prev_prev, C_prev, C_curr, reduction, reduction_prev, k))
            reduction_prev = reduction
            C_prev_prev, C_prev = C_prev, steps * C_curr
        self.global_pooling = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(C_prev, num_classes)
        edges = steps * (steps + 3) // 2
        self.alphas_normal = nn.Parameter(1e-3 * torch.randn(edges, len(NAMES)))
        self.alphas_reduce = nn.Parameter(1e-3 * torch.randn(edges, len(NAMES)))

    def forward(self, images: Tensor, weights_dict: Mapping[str, np.ndarray] | None = None) -> Tensor:
        """weights_dict: {"alphas_normal", "alphas_reduce"}, tables that are taken as they are."""
        s0 = s1 = self.stem(images)
        for cell in self.cells:
            name = "alphas_reduce" if cell.reduction else "alphas_normal"
            if weights_dict is None:
                weights = F.softmax(getattr(self, name), dim=-1)
            else:
                weights = torch.from_numpy(weights_dict[name]).to(images.device)
            s0, s1 = s1, cell(s0, s1, weights)
        out = self.global_pooling(s1)
        return self.classifier(out.view(out.size(0), -1))
