"""The shape of PC-DARTS: a part of the channels, a shuffle, and weights β of the edges."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.baselines import darts
from benchmarks.baselines.darts_operations import NAMES, operation, shuffled

PARTS = 4


class MixedOp(nn.Module):
    def __init__(self, C: int, stride: int) -> None:
        super().__init__()
        self._ops = nn.ModuleList()
        self.mp = nn.MaxPool2d(2, 2)
        for name in NAMES:
            op = operation(name, C // PARTS, stride, affine=False)
            if "pool" in name:
                op = nn.Sequential(op, nn.BatchNorm2d(C // PARTS, affine=False))
            self._ops.append(op)

    def forward(self, x: Tensor, weights: Tensor) -> Tensor:
        seen = x.shape[1] // PARTS
        mixed = sum(w * op(x[:, :seen]) for w, op in zip(weights, self._ops, strict=True))
        rest = x[:, seen:]
        rest = rest if mixed.shape[2] == x.shape[2] else self.mp(rest)
        return shuffled(torch.cat([mixed, rest], dim=1), PARTS)


class Cell(darts.Cell):
    def __init__(
        self,
        steps: int,
        multiplier: int,
        C_prev_prev: int,
        C_prev: int,
        C: int,
        reduction: bool,
        reduction_prev: bool,
    ) -> None:
        super().__init__(steps, multiplier, C_prev_prev, C_prev, C, reduction, reduction_prev)
        self._ops = nn.ModuleList(
            MixedOp(C, 2 if reduction and j < 2 else 1) for i in range(steps) for j in range(2 + i)
        )

    def forward(self, s0: Tensor, s1: Tensor, weights: Tensor, weights2: Tensor) -> Tensor:
        states = [self.preprocess0(s0), self.preprocess1(s1)]
        offset = 0
        for _ in range(self._steps):
            node = sum(
                weights2[offset + j] * self._ops[offset + j](h, weights[offset + j]) for j, h in enumerate(states)
            )
            offset += len(states)
            states.append(node)
        return torch.cat(states[-self._multiplier :], dim=1)


class Network(darts.Network):
    def _cell(self, *arguments: int) -> nn.Module:
        return Cell(*arguments)

    def _initialize_alphas(self) -> None:
        super()._initialize_alphas()
        edges = len(self.alphas_normal)
        self.betas_normal = (1e-3 * torch.randn(edges)).requires_grad_()
        self.betas_reduce = (1e-3 * torch.randn(edges)).requires_grad_()
        self._arch_parameters += [self.betas_normal, self.betas_reduce]

    def forward(self, images: Tensor) -> Tensor:
        s0 = s1 = self.stem(images)
        for cell in self.cells:
            alphas, betas = (
                (self.alphas_reduce, self.betas_reduce) if cell.reduction else (self.alphas_normal, self.betas_normal)
            )
            parts = betas.split([2 + i for i in range(self._steps)])
            weights2 = torch.cat([F.softmax(part, dim=-1) for part in parts])
            s0, s1 = s1, cell(s0, s1, F.softmax(alphas, dim=-1), weights2)
        out = self.global_pooling(s1)
        return self.classifier(out.view(out.size(0), -1))
