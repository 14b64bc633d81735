"""Derived networks on the fused operators against plain torch."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fastnas import Genotype
from fastnas.nn import DerivedNetwork
from fastnas.nn.derived_cell import DerivedCell
from fastnas.nn.fused.batch_norm import LEAST_GAMMA
from fastnas.nn.fused.branches import branch_of, match_op
from fastnas.nn.fused.node import fused_sum
from fastnas.nn.primitives import PRIMITIVES, make_primitive

pytestmark = [pytest.mark.usefixtures("backend"), pytest.mark.emulated_cases(6)]

NAMES = ["DARTS_V2", "PDARTS", "NASNet", "AmoebaNet", "SNAS_aggressive", "EG_NAS_cifar10"]


def disturb(network: nn.Module) -> None:
    """Affine parameters and running statistics as after training, some scales near 0 and below."""
    for norm in network.modules():
        if isinstance(norm, nn.BatchNorm2d):
            nn.init.uniform_(norm.weight, -0.2, 1.5)
            nn.init.normal_(norm.bias, 0, 0.5)
            norm.running_mean.normal_(0, 0.3)
            norm.running_var.uniform_(0.5, 2)


def pair(genotype: Genotype, dtype: torch.dtype = torch.float64, **options: Any) -> list[DerivedNetwork]:
    options = {"channels": 4, "layers": 3, "auxiliary": False} | options
    fused = DerivedNetwork(genotype, **options, backend="fused").to(dtype)
    disturb(fused)
    reference = copy.deepcopy(fused)
    reference.backend = "reference"
    return [fused, reference]


def results(network: nn.Module, x: Tensor) -> tuple[Tensor, list[Tensor | None], list[Tensor]]:
    """Outputs, gradients of input and parameters, buffers; the drawn masks are the same in every call."""
    torch.manual_seed(7)
    network.zero_grad()
    x = x.clone().requires_grad_()
    y = network(x)
    y = torch.cat(y, 1) if isinstance(y, tuple) else y
    (y * torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)).sum().backward()
    return y, [x.grad, *(p.grad for p in network.parameters())], [b.clone() for b in network.buffers()]


def assert_same(networks: list[DerivedNetwork], x: Tensor, tolerance: float = 1e-9) -> None:
    (y, grads, buffers), (y0, grads0, buffers0) = (results(network, x) for network in networks)
    torch.testing.assert_close(y, y0, rtol=tolerance, atol=tolerance)
    names = ["x", *(name for name, _ in networks[0].named_parameters())]
    for name, grad, expected in zip(names, grads, grads0, strict=True):
        if expected is None or grad is None:
            assert all(g is None or not g.any() for g in (grad, expected)), name
            continue
        largest = max(1.0, expected.abs().max().item())
        torch.testing.assert_close(grad, expected, rtol=0, atol=tolerance * largest, msg=lambda m, n=name: f"{n}: {m}")
    for buffer, expected in zip(buffers, buffers0, strict=True):
        torch.testing.assert_close(buffer, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("mode", ["train", "eval", "drop path"])
def test_network_equals_plain_torch(name: str, mode: str) -> None:
    networks = pair(Genotype.published(name), drop_path=0.4 if mode == "drop path" else 0.0)
    for network in networks:
        network.train(mode != "eval")
    assert_same(networks, torch.randn(3, 3, 8, 8, dtype=torch.float64))


def test_auxiliary_head_and_odd_sizes() -> None:
    genotype = Genotype.published("DARTS_V2")
    assert_same(pair(genotype, auxiliary=True), torch.randn(2, 3, 32, 32, dtype=torch.float64))
    assert_same(pair(genotype), torch.randn(2, 3, 11, 7, dtype=torch.float64))
    assert_same(pair(genotype, stem="imagenet", channels=2), torch.randn(2, 3, 65, 65, dtype=torch.float64))


def test_nodes_with_any_number_of_inputs() -> None:
    cell = [
        [("sep_conv_3x3", 0), ("avg_pool_3x3", 1), ("dil_conv_5x5", 1)],
        [("conv_7x1_1x7", 2)],
        [("none", 0), ("none", 3)],
        [("max_pool_3x3", 3), ("skip_connect", 4), ("sep_conv_7x7", 0), ("skip_connect", 0)],
    ]
    genotype = Genotype(cell, [5, 2], cell, [5, 3])
    networks = pair(genotype, drop_path=0.3)
    assert [len(node) for node in genotype.pairs("normal")] == [3, 1, 2, 4]
    assert_same(networks, torch.randn(3, 3, 8, 8, dtype=torch.float64))


@pytest.mark.parametrize("scale", [0.0, 1e-30, -1e-3, LEAST_GAMMA / 2])
def test_scales_near_zero_lose_nothing(scale: float) -> None:
    networks = pair(Genotype.published("DARTS_V2"))
    for network in networks:
        for norm in network.modules():
            if isinstance(norm, nn.BatchNorm2d):
                norm.weight.data[0] = scale
    assert_same(networks, torch.randn(3, 3, 8, 8, dtype=torch.float64))


def test_float32_is_as_near_as_its_rounding() -> None:
    # Relative to the largest gradient of a parameter; sums of thousands of products of seven digits. Where a value is
    # so near 0 that rounding decides whether a ReLU lets it through, gradients differ by more: one of three draws.
    for last in (False, False, True):
        networks, x = pair(Genotype.published("PDARTS"), torch.float32), torch.randn(4, 3, 16, 16)
        try:
            assert_same(networks, x, tolerance=2e-3)
        except AssertionError:
            if last:
                raise
        else:
            return


def test_bfloat16_autocast() -> None:
    fused, reference = pair(Genotype.published("DARTS_V2"), torch.float32)
    x = torch.randn(4, 3, 16, 16)
    with torch.autocast(x.device.type, torch.bfloat16):
        y, y0 = fused(x), reference(x)
    assert isinstance(y, Tensor)
    assert y.dtype == y0.dtype
    exact = copy.deepcopy(reference)(x)
    assert (y.float() - exact).abs().mean() < 2 * (y0.float() - exact).abs().mean() + 0.02


def test_cumulative_momentum_and_no_statistics_in_no_grad() -> None:
    networks = pair(Genotype.published("DARTS_V2"))
    x = torch.randn(3, 3, 8, 8, dtype=torch.float64)
    for network in networks:
        for norm in network.modules():
            if isinstance(norm, nn.BatchNorm2d):
                norm.momentum = None
                norm.reset_running_stats()
        with torch.no_grad():
            network(x)
            network(2 * x)
    for buffer, expected in zip(networks[0].buffers(), networks[1].buffers(), strict=True):
        torch.testing.assert_close(buffer, expected)


def test_frozen_norms_fall_back_to_plain_torch() -> None:
    networks = pair(Genotype.published("DARTS_V2"))
    for network in networks:
        next(iter(network.cells)).primitives[0][0].norm.eval()  # one of two norms of a separable convolution
    assert_same(networks, torch.randn(3, 3, 8, 8, dtype=torch.float64))


def test_one_value_per_channel_is_refused_as_by_plain_torch() -> None:
    for network in pair(Genotype.published("DARTS_V2")):
        with pytest.raises(ValueError, match="more than 1 value per channel"):
            network.train()(torch.randn(1, 3, 1, 1, dtype=torch.float64))


@pytest.mark.parametrize("primitive", sorted(PRIMITIVES))
@pytest.mark.parametrize("stride", [1, 2])
def test_every_primitive_alone(primitive: str, stride: int) -> None:
    module = make_primitive(primitive, 4, stride, norm=nn.BatchNorm2d).double()
    disturb(module)
    expected = copy.deepcopy(module)
    x = torch.randn(3, 4, 6, 6, dtype=torch.float64)
    y = fused_sum([module], [x])
    unknown = {"none", "conv_7x1_1x7", "nor_conv_3x3"} | ({"nor_conv_1x1"} if stride == 2 else set())
    if primitive in unknown:
        assert y is None, "nothing that the operators know"
        return
    torch.testing.assert_close(y, expected(x))
    assert branch_of(match_op(module)) is not None


def test_parts_of_a_state_equal_their_concatenation() -> None:
    cell = DerivedCell(Genotype.published("DARTS_V2"), "normal", (6, 6), 4, False, backend="fused").double().eval()
    parts = tuple(torch.randn(2, c, 5, 5, dtype=torch.float64) for c in (1, 2, 3))
    whole = torch.cat(parts, 1)
    torch.testing.assert_close(cell(parts, whole), cell(whole, whole))
    nodes = cell(whole, whole, join=False)
    assert isinstance(nodes, tuple)
    assert torch.equal(torch.cat(nodes, 1), cell(whole, whole))


def test_backend_is_an_attribute_and_copies_keep_it() -> None:
    network = DerivedNetwork(Genotype.published("DARTS_V2"), channels=4, layers=2, auxiliary=False)
    assert network.backend == "fused"
    network.backend = "reference"
    assert copy.deepcopy(network).backend == "reference"
    assert {cell.backend for cell in network.cells} == {"reference"}


@pytest.mark.parametrize("name", ["DARTS_V2", "NASNet", "EG_NAS_cifar10"])
@pytest.mark.parametrize("kind", ["normal", "reduce"])
def test_a_cell_in_training_is_one_step_of_autograd(name: str, kind: Any) -> None:
    cell = DerivedCell(Genotype.published(name), kind, (6, 6), 4, False, backend="fused").double()
    x = torch.randn(2, 6, 5, 5, dtype=torch.float64)
    functions = {node.grad_fn for node in cell(x, x, join=False)}
    assert [function.name() for function in functions] == ["_DerivedCellBackward"]
    with torch.no_grad():
        assert all(node.grad_fn is None for node in cell(x, x, join=False))


# Every way in which a cell differs from what is computed at once: dead nodes, a node twice, zeros alone.
APART = {
    "a node that reaches nothing": ([[("sep_conv_3x3", 0), ("skip_connect", 1)], [("max_pool_3x3", 0)]], [2]),
    "an input that nothing reads": ([[("sep_conv_3x3", 0), ("skip_connect", 0)]], [2]),
    "a node of zeros": ([[("none", 0), ("none", 1)], [("dil_conv_3x3", 0), ("skip_connect", 1)]], [2, 3]),
    "zeros beside others": ([[("none", 0), ("sep_conv_3x3", 1)], [("dil_conv_3x3", 0), ("avg_pool_3x3", 2)]], [3]),
    "one source for several": ([[("max_pool_3x3", 0), ("max_pool_3x3", 0), ("avg_pool_3x3", 1)]], [2]),
    "a 1×1 convolution": ([[("nor_conv_1x1", 0), ("nor_conv_1x1", 1)], [("nor_conv_1x1", 0)]], [3, 2]),
}


@pytest.mark.parametrize("case", APART)
@pytest.mark.parametrize("drop_path", [0.0, 0.4])
def test_cells_of_any_shape(case: str, drop_path: float) -> None:
    nodes, concat = APART[case]
    networks = pair(Genotype(nodes, concat, nodes, concat), drop_path=drop_path)
    assert_same(networks, torch.randn(3, 3, 8, 8, dtype=torch.float64))


def test_a_cell_notices_other_modules() -> None:
    """A cell remembers how it computes what its modules say, not the modules."""
    networks = pair(Genotype.published("DARTS_V2"))
    x = torch.randn(3, 3, 8, 8, dtype=torch.float64)
    assert_same(networks, x)
    other = make_primitive("dil_conv_5x5", 4, 1, norm=nn.BatchNorm2d).double()
    for network in networks:
        network.cells[0].primitives[0] = copy.deepcopy(other)
    assert_same(networks, x)
    for network in networks:
        network.cells[0].primitives[0].norm = nn.BatchNorm2d(4).double()
    networks[0] = copy.deepcopy(networks[0])
    assert_same(networks, x)
    for network in networks:
        network.cells[0].primitives[0].norm.eps = 0.1  # one ε for all norms of a cell, or one sum after another
    assert_same(networks, x)


def test_a_cell_is_copied_and_stored_without_what_it_remembers() -> None:
    cell = DerivedCell(Genotype.published("DARTS_V2"), "normal", (6, 6), 4, False, backend="fused").double()
    x = torch.randn(2, 6, 5, 5, dtype=torch.float64)
    fresh = len(pickle.dumps(cell))
    cell(x, x)
    assert len(pickle.dumps(cell)) == fresh


@pytest.mark.parametrize("constant", [False, True])
def test_a_gradient_for_some_nodes_only(constant: bool) -> None:
    """Nodes whose gradient is absent count as zeros, and so do those that no gradient reaches."""
    cell = DerivedCell(Genotype.published("DARTS_V2"), "normal", (6, 6), 4, False, backend="fused").double()
    disturb(cell)
    cell.train(not constant)
    expected = copy.deepcopy(cell)
    expected.backend = "reference"
    x = torch.randn(2, 6, 5, 5, dtype=torch.float64)
    gradients = []
    for each in (cell, expected):
        given = x.clone().requires_grad_()
        nodes = each(given, given, join=False)
        (nodes[1] * torch.linspace(-1, 1, nodes[1].numel(), dtype=x.dtype).view_as(nodes[1])).sum().backward()
        gradients.append([given.grad, *(p.grad for p in each.parameters())])
    for grad, same in zip(*gradients, strict=True):
        torch.testing.assert_close(torch.zeros_like(grad) if same is None else same, grad)


@pytest.mark.parametrize(
    "reduce", [lambda y: y.sum(), lambda y: y.mean((2, 3)).square().sum(), lambda y: y[:, 1:3].sum()]
)
def test_gradients_of_any_layout(reduce: Any) -> None:
    """Sums give gradients without memory of their own, slices give wide ones."""
    module = make_primitive("sep_conv_3x3", 4, 1, norm=nn.BatchNorm2d).double()
    expected = copy.deepcopy(module)
    x = torch.randn(3, 4, 6, 6, dtype=torch.float64)
    total = fused_sum([module], [x])
    assert total is not None
    reduce(total).backward()
    reduce(expected(x)).backward()
    for parameter, same in zip(module.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, same.grad)
