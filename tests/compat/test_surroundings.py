"""Accelerated networks in what surrounds them: DDP, DataParallel, autocast, torch.compile, second derivatives."""

from __future__ import annotations

import copy
import socket
from typing import Any

import pytest
import torch
import torch.multiprocessing as mp
from foreign import agree, alphas, build, errors, images, outcome
from torch import Tensor, nn

from fastnas import compat
from fastnas.compat.replacement import HOLDER


def pair(name: str = "darts") -> tuple[Any, Any]:
    network = build(name)
    plain = copy.deepcopy(network)
    return compat.accelerate(network, strict=True), plain


def _ddp(rank: int, port: int, state: dict[str, Tensor], tables: list[Tensor], results: Any) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    torch.manual_seed(rank)
    x = images(4)
    grads = []
    for accelerate in (True, False):
        network = build("darts")
        network.load_state_dict(state)
        for mine, theirs in zip(alphas(network), tables, strict=True):
            mine.data.copy_(theirs)
        if accelerate:
            compat.accelerate(network)
        parallel = nn.parallel.DistributedDataParallel(network)
        parallel(x).square().sum().backward()
        grads.append([parameter.grad for parameter in network.parameters()])
    results[rank] = max(errors(*grads))
    torch.distributed.destroy_process_group()


def test_ddp() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    network = build("darts")
    with mp.get_context("spawn").Manager() as manager:
        results = manager.dict()
        tables = [alpha.detach().clone() for alpha in alphas(network)]
        mp.spawn(_ddp, (port, network.state_dict(), tables, results), nprocs=2)
        assert dict(results).keys() == {0, 1}
        assert max(dict(results).values()) < 1e-9


def replica_of(module: nn.Module) -> nn.Module:
    """As `nn.DataParallel` makes them, with parameters that are not leaves."""
    copies = {each: each._replicate_for_data_parallel() for each in module.modules()}
    for each, twin in copies.items():
        for name, child in each._modules.items():
            twin._modules[name] = None if child is None else copies[child]
        for name, parameter in each._parameters.items():
            setattr(twin, name, None if parameter is None else parameter * 1)
        for name, buffer in each._buffers.items():
            twin._buffers[name] = None if buffer is None else buffer.clone()
    return copies[module]


@pytest.mark.parametrize("name", ["darts", "pc-darts"])
def test_replicas_of_data_parallel(name: str) -> None:
    network, plain = pair(name)
    x = images()
    outcome(network, x), outcome(plain, x)
    results = []
    for each in (network, plain):
        for parameter in each.parameters():
            parameter.grad = None
        replica = replica_of(each)
        with torch.no_grad():
            for parameter in each.parameters():
                parameter.copy_(parameter * 1)
        output = replica(x)
        output.square().sum().backward()
        results.append([output, *(parameter.grad for parameter in each.parameters())])
    agree(*results)
    fused = [m for m in replica_of(network).modules() if type(m).__name__ == "Cell"]
    assert all(HOLDER in vars(m) for m in fused)


def test_shallow_copies_use_their_own_modules() -> None:
    network, plain = pair()
    cell = network.cells[0]
    weights, state = torch.rand(5, 8, dtype=torch.float64), torch.randn(2, 12, 8, 8, dtype=torch.float64)
    twin = copy.copy(cell)
    twin._modules = dict(copy.deepcopy(cell)._modules)
    with torch.no_grad():
        for parameter in cell.parameters():
            parameter.zero_()
    agree([twin(state, state, weights)], [plain.cells[0](state, state, weights)])


def test_autocast() -> None:
    network, plain = (each.float() for each in pair("pc-darts"))
    for alpha in (*alphas(network), *alphas(plain)):
        alpha.data = alpha.data.float()
    x = images(8, 16).float()
    exact = plain(x)
    with torch.autocast("cpu", torch.bfloat16):
        ours, theirs = network(x), plain(x)
    assert ours.dtype == theirs.dtype
    assert (ours.float() - exact).norm() < 2 * (theirs.float() - exact).norm() + 0.02 * exact.norm()
    ours.float().square().sum().backward()


def test_compile() -> None:
    network, plain = pair()
    torch.compiler.reset()
    compiled = torch.compile(network, backend="aot_eager")
    x = images()
    results = []
    for each, call in ((network, compiled), (plain, plain)):
        output = call(x)
        results.append([output, *torch.autograd.grad(output.square().sum(), [*each.parameters(), *alphas(each)])])
    agree(*results)


def test_second_derivative_is_an_error() -> None:
    network, plain = pair()
    x = images()
    with pytest.raises(RuntimeError, match=r"fastnas.compat.restore"):
        torch.autograd.grad(network(x).square().sum(), alphas(network)[:1], create_graph=True)
    state = torch.randn(2, 4, 8, 8, dtype=torch.float64)
    loss = network.cells[0]._ops[0](state, alphas(network)[0][0]).square().sum()  # one mixed operation alone
    with pytest.raises(RuntimeError, match=r"fastnas.compat.restore"):
        torch.autograd.grad(loss, alphas(network)[:1], create_graph=True)
    compat.restore(network)
    hessians = []
    for each in (network, plain):
        (grad,) = torch.autograd.grad(each(x).square().sum(), alphas(each)[:1], create_graph=True)
        hessians.append(torch.autograd.grad(grad.square().sum(), alphas(each)[:1]))
    agree(*hessians)


def test_functorch_runs_as_it_is() -> None:
    network, plain = pair()
    cell, theirs = network.cells[0].eval(), plain.cells[0].eval()
    state = torch.randn(2, 12, 8, 8, dtype=torch.float64)

    def loss(which: nn.Module) -> Any:
        return torch.func.grad(lambda weights: which(state, state, weights).square().sum())

    weights = torch.rand(5, 8, dtype=torch.float64)
    agree([loss(cell)(weights)], [loss(theirs)(weights)])


def test_functional_call() -> None:
    network, plain = pair()
    x = images()
    others = {name: p.detach() * 1.1 for name, p in network.named_parameters()}
    agree([torch.func.functional_call(network, others, (x,))], [torch.func.functional_call(plain, others, (x,))])


def test_finite_difference_hessian() -> None:
    """As second-order DARTS takes it: weights are written in place between two forwards."""
    results = []
    x = images()
    network, plain = pair()
    for each in (network, plain):
        torch.manual_seed(0)
        vector = [torch.randn_like(p) for p in each.parameters()]
        grads = []
        for step in (0.01, -0.02, 0.01):
            for p, v in zip(each.parameters(), vector, strict=True):
                p.data.add_(v, alpha=step)
            grads.append(torch.autograd.grad(each(x).square().sum(), alphas(each)))
        results.append([(a - b) / 0.02 for a, b in zip(*grads[:2], strict=True)])
        results[-1] += grads[2]
    agree(*results, bound=1e-7)


def test_numpy_weights_of_egnas() -> None:
    network, plain = pair("egnas")
    x = images()
    tables = {name: torch.rand(5, 7).numpy() for name in ("alphas_normal", "alphas_reduce")}
    with torch.no_grad():
        agree([network.eval()(x, weights_dict=tables)], [plain.eval()(x, weights_dict=tables)])


def test_other_methods_stay() -> None:
    network: Any = build("xautodl")
    plain = copy.deepcopy(network)
    compat.accelerate(network)
    state = torch.randn(2, 12, 8, 8, dtype=torch.float64)
    weights = torch.rand(5, 8, dtype=torch.float64)
    index = [3, 5, 7, 1, 4]
    results = [each.cells[0].forward_gdas(state, state, weights, index) for each in (network, plain)]
    agree(results[:1], results[1:])
    nas: Any = build("naslib")
    ops = getattr(nas, "edge-0").get_embedded_ops()
    compat.accelerate(nas)
    assert getattr(nas, "edge-0").get_embedded_ops() is ops


def test_confopt_blocks_keep_what_their_code_needs() -> None:
    network: Any = build("confopt")
    compat.accelerate(network)
    x = images(channels=4)
    network(x)
    block = network.cell._ops[0]
    block(x, torch.rand(8, dtype=torch.float64))
    block.change_op_channel_size(2)
    plain = compat.restore(copy.deepcopy(block.double()))
    wide = images(channels=8)
    weights = torch.rand(8, dtype=torch.float64)
    agree([block(wide, weights)], [plain(wide, weights)])
