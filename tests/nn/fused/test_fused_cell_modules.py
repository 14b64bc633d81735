"""Fused cells as modules: whatever other code does with a module must have the effect that it has in plain torch."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable, Sequence
from typing import cast

import pytest
import torch
import torch.nn.functional as F
from fused_pair import FEW, SMALL, Fallback, agree, cells, edge, images, norms, outcome, pair, train
from torch import Tensor, nn

from fastnas.nn import Supernet
from fastnas.nn.batch_norm import BatchNorm
from fastnas.nn.primitives import ReLUConvNorm, make_primitive
from fastnas.spaces import CellSpace


def test_state_dicts_are_interchangeable() -> None:
    fused, reference = pair()
    x = images()
    train(fused, [(x, torch.tensor([0, 1, 2]))])
    reference.load_state_dict(fused.state_dict(), strict=True)
    agree(outcome(fused, x), outcome(reference, x))
    train(reference, [(x, torch.tensor([2, 1, 0]))])
    fused.load_state_dict(reference.state_dict(), strict=True)
    agree(outcome(fused, x), outcome(reference, x))


def saved_and_loaded(network: Supernet) -> Supernet:
    file = io.BytesIO()
    torch.save(network, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("copied", [copy.deepcopy, saved_and_loaded])
def test_copies_are_independent(copied: Callable[[Supernet], Supernet]) -> None:
    fused, _ = pair()
    x = images()
    outcome(fused, x)
    twin = copied(fused)
    expected = outcome(twin, x)
    agree(outcome(fused, x), expected, 0)
    assert all(map(torch.equal, fused.buffers(), twin.buffers())), "each has followed the same batches"
    with torch.no_grad():
        for tensor in [*fused.parameters(), *fused.buffers()]:
            tensor.zero_()
    agree(outcome(twin, x), expected, 0)


def _norm(channels: int) -> BatchNorm:
    return BatchNorm(channels, affine=False).double()


def _replace_candidate(network: Supernet) -> None:
    mixed = edge(network, 1, 0)
    mixed.candidates[3] = make_primitive("dil_conv_5x5", mixed.processed, 2, norm=_norm).double()


def _replace_preprocessing(network: Supernet) -> None:
    cell = cells(network)[1]
    conv = cell.preprocess1.conv
    cell.preprocess1 = ReLUConvNorm(conv.in_channels, conv.out_channels, 1, 1, 0, _norm).double()


def _replace_inner_convolution(network: Supernet) -> None:
    stage = edge(network, 0, 0).candidates[5][1]
    stage.pointwise = nn.Conv2d(4, 4, 1, bias=False).double()


def _replace_inner_norm(network: Supernet) -> None:
    edge(network, 0, 1).candidates[4][0].norm = nn.InstanceNorm2d(4).double()


def _replace_by_an_unknown(network: Supernet) -> None:
    edge(network, 1, 1).candidates[0] = nn.Conv2d(8, 8, 3, stride=2, padding=1).double()


def _other_epsilon(network: Supernet) -> None:
    edge(network, 0, 0).candidates[4][1].norm.eps = 1.0


def _cumulative_average(network: Supernet) -> None:
    for norm in norms(network):
        norm.momentum = None


def _norm_in_evaluation(network: Supernet) -> None:
    edge(network, 0, 0).candidates[4][1].norm.eval()


def _cell_in_evaluation(network: Supernet) -> None:
    cells(network)[1].eval()


def _frozen(network: Supernet) -> None:
    for parameter in [*cells(network)[0].parameters(), *network.alphas.parameters()]:
        parameter.requires_grad_(False)


@pytest.mark.parametrize(
    ("change", "fallback"),
    [
        (_replace_candidate, False),
        (_replace_preprocessing, False),
        (_replace_inner_convolution, False),
        (_replace_inner_norm, True),
        (_replace_by_an_unknown, True),
        (_other_epsilon, True),
        (_cumulative_average, True),
        (_norm_in_evaluation, True),
        (_cell_in_evaluation, False),
        (_frozen, False),
    ],
)
def test_a_change_after_the_first_step_is_honoured(
    change: Callable[[Supernet], None], fallback: bool, seed: int
) -> None:
    networks = pair(fallback=fallback)
    x, histories = images(), []
    for network in networks:
        outcome(network, x)
        network.zero_grad()
        torch.manual_seed(seed)
        change(network)
        logits = network(x)
        logits.square().sum().backward()
        gradients = [torch.zeros(1) if p.grad is None else p.grad for p in network.parameters()]
        # Not the indices of layouts, which only the fused cells make anew.
        buffers = [buffer for buffer in network.buffers() if buffer.is_floating_point() or buffer.dim() == 0]
        histories.append([logits, *gradients, *buffers, network.eval()(x)])
    agree(histories[0], histories[1])


def test_layouts_follow_their_cell_to_another_device() -> None:
    network, reference = pair()
    network.to("meta")
    for cell in cells(network):
        assert {index.device.type for index in cell.layout.indices.tensors()} == {"meta"}
    network.to_empty(device="cpu")
    network.load_state_dict(reference.state_dict())
    x = images()
    agree(outcome(network, x), outcome(reference, x))


def test_a_cell_that_was_pickled_without_a_layout() -> None:
    """As versions before this one did."""
    fused, reference = pair()
    for cell in cells(fused):
        del cell.layout, cell._planned_for
    x = images()
    agree(outcome(fused, x), outcome(reference, x))


def test_a_replica_has_a_layout_of_its_own_modules() -> None:
    """`nn.DataParallel` copies modules without their parts, and replaces these afterwards."""
    fused, _ = pair()
    cell = cells(fused)[0]
    replica = cell._replicate_for_data_parallel()
    assert replica._is_planned()
    replica.edges = copy.deepcopy(cell.edges)
    assert not replica._is_planned()
    replica._plan()
    assert replica._is_planned()
    assert cell._is_planned()
    assert "layout" not in "".join(cell.state_dict())


def test_unknown_candidates_are_computed_edge_by_edge() -> None:
    space = CellSpace("unknown", ("sep_conv_3x3", "conv_7x1_1x7", "none"), True, 2)
    with pytest.raises(Fallback):
        pair(space)[0](images())
    fused, reference = pair(space, fallback=True)
    x = images()
    agree(outcome(fused, x), outcome(reference, x))


def test_parameters_given_from_outside() -> None:
    networks = pair()
    x, results = images(), []
    for network in networks:
        given = {name: (1.5 * p).detach().requires_grad_() for name, p in network.named_parameters()}
        logits = torch.func.functional_call(network, given, (x,))
        results.append([logits.detach(), *torch.autograd.grad(logits.square().sum(), [*given.values()])])
    agree(results[0], results[1])


@pytest.mark.parametrize("training", [True, False])
def test_without_gradients(training: bool) -> None:
    """Also: what the first, gradient-free step leaves behind does not hinder those that follow."""
    fused, reference = (network.train(training) for network in pair(partial_channels=2))
    x = images()
    with torch.inference_mode():
        agree([fused(x)], [reference(x)])
    with torch.no_grad():
        agree([fused(x)], [reference(x)])
    agree(outcome(fused, x), outcome(reference, x))


def test_one_value_per_channel_is_refused_as_batch_norm_does() -> None:
    fused, _ = pair(fallback=True)
    state = torch.randn(1, fused.stem.out_channels, 1, 1, dtype=torch.float64)
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        fused.train().cells[0](state, state, fused.op_weights()["normal"])


def test_no_images() -> None:
    fused, _ = pair()
    assert fused.eval()(images(0)).shape == (0, 5)


# Precision, compilation, threads


def cosine(a: Sequence[Tensor], b: Sequence[Tensor]) -> float:
    first, second = (torch.cat([t.double().flatten() for t in tensors]) for tensors in (a, b))
    return F.cosine_similarity(first, second, dim=0).item()


@pytest.mark.parametrize("how", ["autocast", "bfloat16"])
@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize(("layers", "bound"), [(1, 0.98), (3, 0.95)])
def test_bfloat16(how: str, parts: int, layers: int, bound: float) -> None:
    """Cell by cell the gradients turn away from those of float32, in plain torch as much as here."""
    fused, reference = (network.float() for network in pair(partial_channels=parts, channels=8, layers=layers))
    x = images(8).float()
    logits, *gradients = outcome(fused, x)
    if how == "bfloat16":
        fused, reference, x = fused.bfloat16(), reference.bfloat16(), x.bfloat16()
    results = []
    for network in (fused, reference):
        with torch.autocast("cpu", torch.bfloat16, enabled=how == "autocast"):
            results.append(outcome(network, x))
    ours, theirs = results
    assert [tensor.dtype for tensor in ours] == [tensor.dtype for tensor in theirs]
    assert ours[0].dtype == torch.bfloat16
    assert all(tensor.isfinite().all() for tensor in ours)
    assert (ours[0] - logits).norm() < 0.05 * logits.norm()
    same = cosine(ours[1:], gradients)
    assert same > (0.99 if layers == 1 and how == "autocast" else bound)
    assert 1 - same < 2 * (1 - cosine(theirs[1:], gradients)) + 0.005


def test_autocast_leaves_float64_alone() -> None:
    fused, reference = pair()
    x = images()
    with torch.autocast("cpu", torch.bfloat16):
        agree(outcome(fused, x), outcome(reference, x))


def test_compiled_network() -> None:
    """One graph, forward and backward; running statistics follow."""
    fused, _ = pair(FEW)
    twin = copy.deepcopy(fused)
    torch.compiler.reset()
    compiled = torch.compile(twin.forward, backend="aot_eager", fullgraph=True)
    x = images(2, 12, 12)
    steps = []
    for network, call in ((fused, fused), (twin, compiled)):
        logits = call(x)
        logits.square().sum().backward()
        steps.append([logits, *(cast(Tensor, p.grad) for p in network.parameters()), *network.buffers()])
    agree(steps[0], steps[1])


@pytest.mark.parametrize("training", [True, False])
def test_compiled_cell(training: bool) -> None:
    fused, _ = pair(FEW, partial_channels=2)
    cell = cells(fused)[1].train(training)
    torch.compiler.reset()
    compiled = torch.compile(copy.deepcopy(cell), backend="aot_eager", fullgraph=True)
    states = [torch.randn(2, channels, 6, 6, dtype=torch.float64, requires_grad=True) for channels in (12, 8)]
    table = fused.op_weights()["reduce"].detach()
    results = []
    for call in (cell, compiled):
        output = call(*states, table)
        results.append([output, *torch.autograd.grad(output.square().sum(), states)])
    with torch.no_grad():
        results[0].append(cell(*states, table))
        results[1].append(compiled(*states, table))
    agree(results[0], results[1])


@pytest.mark.parametrize(("space", "parts"), [("darts", 1), ("egnas", 2)])
def test_threads_do_not_change_a_bit(space: str, parts: int) -> None:
    """Of the cells: plain torch computes the stem and the classifier."""
    fused, _ = pair(SMALL[space], partial_channels=parts)
    trained = fused.float().cells
    state = torch.randn(5, 12, 16, 16)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            twin = copy.deepcopy(trained)
            s0 = s1 = first = state.clone().requires_grad_()
            tables = {kind: table.detach().requires_grad_() for kind, table in fused.op_weights().items()}
            for cell in cells(twin):
                s0, s1 = s1, cell(s0, s1, tables[cell.kind])
            s1.square().sum().backward()
            gradients = [cast(Tensor, t.grad) for t in (first, *tables.values(), *twin.parameters())]
            results.append([s1, *gradients, *twin.buffers()])
    finally:
        torch.set_num_threads(before)
    for others in results[1:]:
        assert all(map(torch.equal, results[0], others))
