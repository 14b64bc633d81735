"""Foreign networks of every baseline's shape, and what tests compare of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.baselines import confopt, darts, egnas, naslib, nni, p_darts, pc_darts, pt_darts, xautodl

Five = [[True, False, True, True, True, False, True, False]] * 5
Three = [[False, True, False, True, False, False, True, False]] * 5


def images(count: int = 3, size: int = 8, channels: int = 3) -> Tensor:
    return torch.randn(count, channels, size, size, dtype=torch.float64)


class OfTwoStates(nn.Module):
    """Calls a cell with two views of one input, and a table of weights where it takes one."""

    def __init__(self, cell: nn.Module, tables: Sequence[tuple[int, ...]] = ()) -> None:
        super().__init__()
        self.cell = cell
        self.tables = nn.ParameterList(torch.rand(shape) + 0.1 for shape in tables)

    def forward(self, x: Tensor) -> Tensor:
        output = self.cell(x, x.flip(0).sin(), *self.tables)
        return output if isinstance(output, Tensor) else torch.cat([each.flatten() for each in output])


class OfOneState(nn.Module):
    def __init__(self, cell: nn.Module, method: str, table: tuple[int, ...]) -> None:
        super().__init__()
        self.cell, self.method = cell, method
        self.table = nn.Parameter(torch.rand(table) + 0.1)

    def forward(self, x: Tensor) -> Tensor:
        return getattr(self.cell, self.method)(x, self.table)


def layer_choice(channels: int = 4) -> nn.Module:
    paths = list(nni.operations(channels, 2).items())
    alpha = nn.Parameter(torch.randn(len(paths)))
    return nni.DifferentiableMixedLayer(paths, alpha, nn.Softmax(-1), "choice")


def nb201(affine: bool, track: bool) -> nn.Module:
    cell = xautodl.NAS201SearchCell(4, 4, 1, 4, xautodl.NAS_BENCH_201, affine, track)
    return OfOneState(cell, "forward", (6, 5))


Build = Callable[[], nn.Module]
LOSS = nn.CrossEntropyLoss()
# name: (network, channels of its input, classes that are accelerated)
NETWORKS: dict[str, tuple[Build, int, dict[str, str]]] = {
    "darts": (lambda: darts.Network(4, 5, 3, LOSS, 2, 2), 3, {"Cell": "cell", "MixedOp": "mixed operation"}),
    "pc-darts": (lambda: pc_darts.Network(8, 5, 3, LOSS, 2, 2), 3, {"Cell": "cell", "MixedOp": "mixed operation"}),
    "p-darts": (lambda: p_darts.Network(4, 5, 3, 2, Five, Three), 3, {"Cell": "cell", "MixedOp": "mixed operation"}),
    "egnas": (lambda: egnas.Network(8, 5, 3, 2), 3, {"Cell": "cell", "MixedOp": "mixed operation"}),
    "egnas k=1": (lambda: egnas.Network(4, 5, 3, 2, k=1), 3, {"Cell": "cell", "MixedOp": "mixed operation"}),
    "pt.darts": (lambda: pt_darts.SearchCNN(4, 5, 3, 2), 3, {"SearchCell": "cell", "MixedOp": "mixed operation"}),
    "xautodl": (lambda: xautodl.NASNetworkDARTS(4, 1, 2, 2, 3, 5), 3, {"MixedOp": "mixed operation"}),
    "xautodl affine": (
        lambda: xautodl.NASNetworkDARTS(4, 1, 2, 2, 3, 5, affine=True, track_running_stats=False),
        3,
        {"MixedOp": "mixed operation"},
    ),
    "xautodl nb201": (lambda: nb201(False, True), 4, {"NAS201SearchCell": "cell, node by node"}),
    "naslib": (lambda: naslib.Graph(4), 4, {"DARTSMixedOp": "mixed operation"}),
    "naslib partial": (lambda: naslib.Graph(8, 2), 8, {"DARTSMixedOp": "mixed operation"}),
    "nni cell": (
        lambda: OfTwoStates(nni.cell(4, 4, 4, 2, True, False)),
        4,
        {"DifferentiableMixedCell": "cell, node by node"},
    ),
    "nni choice": (layer_choice, 4, {"DifferentiableMixedLayer": "mixed operation"}),
    "confopt": (
        lambda: OfTwoStates(confopt.Cell(4, 4, 4, 2, True), [(5, 8)]),
        4,
        {"Cell": "cell", "OperationBlock": "mixed operation"},
    ),
    "confopt partial": (
        lambda: OfTwoStates(confopt.Cell(4, 4, 8, 2, False, k=2), [(5, 8), (5,)]),
        4,
        {"Cell": "cell", "OperationBlock": "mixed operation"},
    ),
}


def build(name: str, dtype: torch.dtype = torch.float64) -> nn.Module:
    """A network whose α are spread and whose running statistics have no initial value."""
    network = NETWORKS[name][0]()
    for alpha in alphas(network):
        nn.init.normal_(alpha)
    for norm in network.modules():
        if isinstance(norm, nn.BatchNorm2d):
            if norm.running_mean is not None:
                nn.init.normal_(norm.running_mean, std=0.1)
                nn.init.uniform_(norm.running_var, 0.5, 1.5)
            if norm.affine:
                nn.init.uniform_(norm.weight, 0.5, 1.5)
                nn.init.normal_(norm.bias)
    with torch.no_grad():
        for tensor in alphas(network):
            tensor.data = tensor.data.to(dtype)
    return network.to(dtype)


def alphas(network: Any) -> list[Tensor]:
    """Plain tensors that a network of DARTS' shape keeps beside its parameters."""
    return getattr(network, "_arch_parameters", [])


def outcome(network: nn.Module, x: Tensor) -> list[Tensor]:
    """The output, the gradients of the input, of every parameter and α, and all buffers afterwards."""
    x = x.detach().clone().requires_grad_()
    output = network(x)
    direction = torch.linspace(-3, 3, output.numel(), dtype=output.dtype).sin().view(output.shape)
    sources = [x, *network.parameters(), *alphas(network)]
    loss = (output * direction).sum()
    grads = torch.autograd.grad(loss, sources, allow_unused=True, materialize_grads=True)
    return [output.detach(), *grads, *(buffer.to(x.dtype).clone() for buffer in network.buffers())]


def errors(actual: Sequence[Tensor], expected: Sequence[Tensor]) -> list[float]:
    """Of each tensor the largest difference, relative to its largest value; or to a hundredth of that of all tensors,
    as some gradients are 0 but for rounding."""
    floor = 1e-2 * max(tensor.abs().max().item() for tensor in expected if tensor.numel())
    assert [tensor.shape for tensor in actual] == [tensor.shape for tensor in expected]
    return [
        (a.double() - b.double()).abs().max().item() / max(b.abs().max().item(), floor) if b.numel() else 0.0
        for a, b in zip(actual, expected, strict=True)
    ]


def agree(actual: Sequence[Tensor], expected: Sequence[Tensor], bound: float = 1e-9) -> None:
    assert max(errors(actual, expected)) <= bound
