"""The shape of NNI: a choice of layers with α of its own, and cells that stack the outputs of each edge."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn


class ReLUConvBN(nn.Sequential):
    def __init__(self, C_in: int, C_out: int, kernel: int, stride: int, padding: int) -> None:
        super().__init__(
            nn.ReLU(inplace=False),
            nn.Conv2d(C_in, C_out, kernel, stride=stride, padding=padding, bias=False),
            nn.BatchNorm2d(C_out),
        )


class DilConv(nn.Sequential):
    def __init__(self, C: int, kernel: int, stride: int, padding: int, dilation: int) -> None:
        super().__init__(
            nn.ReLU(inplace=False),
            nn.Conv2d(C, C, kernel, stride, padding, dilation, groups=C, bias=False),
            nn.Conv2d(C, C, 1, bias=False),
            nn.BatchNorm2d(C),
        )


class SepConv(nn.Sequential):
    def __init__(self, C: int, kernel: int, stride: int, padding: int) -> None:
        super().__init__(*DilConv(C, kernel, stride, padding, 1), *DilConv(C, kernel, 1, padding, 1))


class FactorizedReduce(nn.Module):
    def __init__(self, C_in: int, C_out: int) -> None:
        super().__init__()
        self.relu = nn.ReLU(inplace=False)
        self.conv_1 = nn.Conv2d(C_in, C_out // 2, 1, stride=2, bias=False)
        self.conv_2 = nn.Conv2d(C_in, C_out // 2, 1, stride=2, bias=False)
        self.bn = nn.BatchNorm2d(C_out)
        self.pad = nn.ConstantPad2d((0, 1, 0, 1), 0)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(x)
        y = self.pad(x)
        return self.bn(torch.cat([self.conv_1(x), self.conv_2(y[:, :, 1:, 1:])], dim=1))


class DropPath(nn.Module):
    """Drops images of a batch; one draw for each."""

    def __init__(self, drop_prob: float) -> None:
        super().__init__()
        self.drop_prob = drop_prob

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.drop_prob == 0:
            return x
        kept = torch.rand(len(x), 1, 1, 1, device=x.device) >= self.drop_prob
        return x * kept / (1 - self.drop_prob)


def operations(C: int, stride: int) -> dict[str, nn.Module]:
    return {
        "max_pool_3x3": nn.MaxPool2d(3, stride=stride, padding=1),
        "avg_pool_3x3": nn.AvgPool2d(3, stride=stride, padding=1, count_include_pad=False),
        "skip_connect": nn.Identity() if stride == 1 else FactorizedReduce(C, C),
        "sep_conv_3x3": SepConv(C, 3, stride, 1),
        "sep_conv_5x5": SepConv(C, 5, stride, 2),
        "dil_conv_3x3": DilConv(C, 3, stride, 2, 2),
        "dil_conv_5x5": DilConv(C, 5, stride, 4, 2),
    }


class DifferentiableMixedLayer(nn.Module):
    def __init__(self, paths: Sequence[tuple[str, nn.Module]], alpha: Tensor, softmax: nn.Module, label: str) -> None:
        super().__init__()
        self.op_names = []
        self.label = label
        for name, module in paths:
            self.add_module(name, module)
            self.op_names.append(name)
        self._arch_alpha = alpha
        self._softmax = softmax

    def _reduction(self, items: list[Tensor], weights: Sequence[float] | Tensor) -> Tensor:
        return sum(w * item for w, item in zip(weights, items, strict=True))

    def forward(self, *args: Tensor) -> Tensor:
        results = [self.get_submodule(name)(*args) for name in self.op_names]
        return self._reduction(results, self._softmax(self._arch_alpha))


class Preprocessor(nn.Module):
    def __init__(self, C_pp: int, C_p: int, C: int, last_cell_reduce: bool) -> None:
        super().__init__()
        self.pre0: nn.Module = FactorizedReduce(C_pp, C) if last_cell_reduce else ReLUConvBN(C_pp, C, 1, 1, 0)
        self.pre1 = ReLUConvBN(C_p, C, 1, 1, 0)

    def forward(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        return [self.pre0(inputs[0]), self.pre1(inputs[1])]


class Postprocessor(nn.Module):
    def forward(self, this_cell: Tensor, previous: Sequence[Tensor]) -> list[Tensor]:
        return [previous[-1], this_cell]


class DifferentiableMixedCell(nn.Module):
    def __init__(
        self,
        op_factory: Callable[[int, int], dict[str, nn.Module]],
        num_nodes: int,
        num_predecessors: int,
        preprocessor: nn.Module,
        postprocessor: nn.Module,
        label: str,
    ) -> None:
        super().__init__()
        self.num_predecessors = num_predecessors
        self.label = label
        self.preprocessor, self.postprocessor = preprocessor, postprocessor
        self.ops = nn.ModuleList()
        self._arch_alpha = nn.ParameterDict()
        self._softmax = nn.Softmax(-1)
        for i in range(num_predecessors, num_nodes + num_predecessors):
            self.ops.append(nn.ModuleList(nn.ModuleDict(op_factory(i, j)) for j in range(i)))
            for j in range(i):
                zeros = 1  # a branch that adds nothing
                candidates = len(self.ops[-1][j]) + zeros
                self._arch_alpha[f"{label}/{i}_{j}"] = nn.Parameter(1e-3 * torch.randn(candidates))

    def forward(self, *inputs: Tensor) -> list[Tensor]:
        processed = self.preprocessor(inputs)
        states = list(processed)
        for i, edges in enumerate(self.ops, start=self.num_predecessors):
            sums = []
            for j in range(i):
                results = torch.stack([op(states[j]) for op in edges[j].values()])
                results = torch.cat([results, torch.zeros_like(results[:1])])
                weights = self._softmax(self._arch_alpha[f"{self.label}/{i}_{j}"])
                sums.append((results * weights.view(-1, 1, 1, 1, 1)).sum(0))
            states.append(sum(sums))
        return self.postprocessor(torch.cat(states[self.num_predecessors :], dim=1), processed)


def cell(C_pp: int, C_p: int, C: int, nodes: int, reduction: bool, last_cell_reduce: bool) -> DifferentiableMixedCell:
    return DifferentiableMixedCell(
        lambda i, j: operations(C, 2 if reduction and j < 2 else 1),
        nodes,
        2,
        Preprocessor(C_pp, C_p, C, last_cell_reduce),
        Postprocessor(),
        "reduce" if reduction else "normal",
    )
