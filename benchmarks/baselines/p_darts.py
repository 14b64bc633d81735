"""The shape of P-DARTS: candidates chosen by switches, and a dropout after skip connections."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.baselines.darts_operations import NAMES, FactorizedReduce, Identity, ReLUConvBN, operation


class MixedOp(nn.Module):
    def __init__(self, C: int, stride: int, switch: Sequence[bool], p: float) -> None:
        super().__init__()
        self.m_ops = nn.ModuleList()
        self.p = p
        for name, on in zip(NAMES, switch, strict=True):
            if not on:
                continue
            op = operation(name, C, stride, affine=False)
            if "pool" in name:
                op = nn.Sequential(op, nn.BatchNorm2d(C, affine=False))
            if isinstance(op, Identity) and p > 0:
                op = nn.Sequential(op, nn.Dropout(self.p))
            self.m_ops.append(op)

    def update_p(self) -> None:
        for op in self.m_ops:
            if isinstance(op, nn.Sequential) and isinstance(op[0], Identity):
                op[1].p = self.p

    def forward(self, x: Tensor, weights: Tensor) -> Tensor:
        return sum(w * op(x) for w, op in zip(weights, self.m_ops, strict=True))


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
        switches: Sequence[Sequence[bool]],
        p: float,
    ) -> None:
        super().__init__()
        self.reduction = reduction
        self.p = p
        if reduction_prev:
            self.preprocess0: nn.Module = FactorizedReduce(C_prev_prev, C, affine=False)
        else:
            self.preprocess0 = ReLUConvBN(C_prev_prev, C, 1, 1, 0, affine=False)
        self.preprocess1 = ReLUConvBN(C_prev, C, 1, 1, 0, affine=False)
        self._steps = steps
        self._multiplier = multiplier
        self.cell_ops = nn.ModuleList()
        for i in range(steps):
            for j in range(2 + i):
                switch = switches[len(self.cell_ops)]
                self.cell_ops.append(MixedOp(C, 2 if reduction and j < 2 else 1, switch, p))

    def update_p(self) -> None:
        for op in self.cell_ops:
            op.p = self.p
            op.update_p()

    def forward(self, s0: Tensor, s1: Tensor, weights: Tensor) -> Tensor:
        states = [self.preprocess0(s0), self.preprocess1(s1)]
        offset = 0
        for _ in range(self._steps):
            node = sum(self.cell_ops[offset + j](h, weights[offset + j]) for j, h in enumerate(states))
            offset += len(states)
            states.append(node)
        return torch.cat(states[-self._multiplier :], dim=1)


class Network(nn.Module):
    def __init__(
        self,
        C: int,
        num_classes: int,
        layers: int,
        steps: int,
        switches_normal: Sequence[Sequence[bool]],
        switches_reduce: Sequence[Sequence[bool]],
        p: float = 0.0,
    ) -> None:
        super().__init__()
        self.p = p
        C_curr = 3 * C
        self.stem = nn.Sequential(nn.Conv2d(3, C_curr, 3, padding=1, bias=False), nn.BatchNorm2d(C_curr))
        C_prev_prev, C_prev, C_curr = C_curr, C_curr, C
        self.cells = nn.ModuleList()
        reduction_prev = False
        for i in range(layers):
            reduction = i in (layers // 3, 2 * layers // 3)
            C_curr *= 2 if reduction else 1
            switches = switches_reduce if reduction else switches_normal
            self.cells.append(Cell(steps, steps, C_prev_prev, C_prev, C_curr, reduction, reduction_prev, switches, p))
            reduction_prev = reduction
            C_prev_prev, C_prev = C_prev, steps * C_curr
        self.global_pooling = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(C_prev, num_classes)
        self.alphas_normal = nn.Parameter(1e-3 * torch.randn(len(switches_normal), sum(switches_normal[0])))
        self.alphas_reduce = nn.Parameter(1e-3 * torch.randn(len(switches_reduce), sum(switches_reduce[0])))

    def update_p(self) -> None:
        for cell in self.cells:
            cell.p = self.p
            cell.update_p()

    def forward(self, images: Tensor) -> Tensor:
        s0 = s1 = self.stem(images)
        for cell in self.cells:
            weights = F.softmax(self.alphas_reduce if cell.reduction else self.alphas_normal, dim=-1)
            s0, s1 = s1, cell(s0, s1, weights)
        out = self.global_pooling(s1)
        return self.classifier(out.view(out.size(0), -1))
