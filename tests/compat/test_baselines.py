"""A network of every baseline's shape computes the same after `accelerate`: in training, copied, pickled."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from foreign import NETWORKS, agree, alphas, build, errors, images, outcome
from torch import Tensor, nn

from fastnas import compat

NAMES = list(NETWORKS)


def pair(name: str, dtype: torch.dtype = torch.float64) -> tuple[nn.Module, nn.Module]:
    """The accelerated network, and an equal one that was left as it was."""
    network = build(name, dtype)
    plain = copy.deepcopy(network)
    assert compat.accelerate(network) is network
    return network, plain


def inputs(name: str) -> Tensor:
    return images(channels=NETWORKS[name][1])


@pytest.mark.parametrize("name", NAMES)
def test_report(name: str) -> None:
    report = compat.report(pair(name)[0])
    levels = {entry.kind: entry.level for entry in report.fused}
    assert levels.items() >= NETWORKS[name][2].items()


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("name", NAMES)
def test_float64(name: str, training: bool) -> None:
    network, plain = pair(name)
    x = inputs(name)
    for each in (network, plain):
        each.train(training)
    agree(outcome(network, x), outcome(plain, x))


@pytest.mark.parametrize("name", NAMES)
def test_float32(name: str) -> None:
    """1e-4 of each tensor's largest value, unless plain torch is itself further away from float64.

    The best of three draws: where an input of a ReLU or two values in a pool are equal but for rounding, a gradient
    goes another way in float32, in plain torch as here, and not always in both.
    """
    exact = build(name)
    plain = copy.deepcopy(exact).float()
    for mine, theirs in zip(alphas(plain), alphas(exact), strict=True):
        mine.data = theirs.data.float()
    network = compat.accelerate(copy.deepcopy(plain))
    for training in (True, False):
        excess = []
        for _ in range(3):
            x = images(16, 16, NETWORKS[name][1])
            expected = outcome(exact.train(training), x)
            ours, theirs = (errors(outcome(each.train(training), x.float()), expected) for each in (network, plain))
            excess.append(max(ours) / max(1e-4, 8 * max(theirs)))
            if excess[-1] <= 1:
                break
        assert min(excess) <= 1, excess


@pytest.mark.parametrize("name", NAMES)
def test_without_gradients(name: str) -> None:
    network, plain = pair(name)
    x = inputs(name)
    with torch.no_grad():
        for training in (True, False):
            agree([network.train(training)(x)], [plain.train(training)(x)])
    agree(list(network.buffers()), list(plain.buffers()))


def steps(network: nn.Module, x: Tensor, optimizers: list[torch.optim.Optimizer]) -> list[Tensor]:
    """Weights and α in turn, as a first-order search."""
    losses = []
    for step in range(4):
        network.zero_grad()
        for alpha in alphas(network):
            alpha.grad = None
        output = network((x * (1 + step)).cos())
        loss = (output.float() if output.dtype == torch.float16 else output).square().mean()
        loss.backward()
        optimizers[step % 2].step()
        losses.append(loss.detach())
    return losses


def optimizers(network: nn.Module) -> list[torch.optim.Optimizer]:
    weights = torch.optim.SGD(network.parameters(), lr=0.02, momentum=0.9, weight_decay=3e-4)
    architecture = [*alphas(network)] or [p for p in network.parameters() if p.dim() in (1, 2)]
    return [weights, torch.optim.SGD(architecture, lr=0.1)]


@pytest.mark.parametrize("name", NAMES)
def test_training(name: str) -> None:
    """Optimizers that were made before `accelerate` go on with the same parameters."""
    network = build(name)
    plain = copy.deepcopy(network)
    made = [optimizers(network), optimizers(plain)]
    parameters = dict(network.named_parameters())
    buffers = dict(network.named_buffers())
    compat.accelerate(network)
    assert all(parameter is parameters[key] for key, parameter in network.named_parameters())
    assert all(buffer is buffers[key] for key, buffer in network.named_buffers())
    x = inputs(name)
    agree(steps(network, x, made[0]), steps(plain, x, made[1]), bound=1e-7)
    state, expected = network.state_dict(), plain.state_dict()
    assert list(state) == list(expected)
    agree([v.double() for v in state.values()], [v.double() for v in expected.values()], bound=1e-6)
    agree(outcome(network.eval(), x), outcome(plain.eval(), x), bound=1e-6)


@pytest.mark.parametrize("how", ["deepcopy", "pickle", "state_dict"])
@pytest.mark.parametrize("name", NAMES)
def test_copies(name: str, how: str) -> None:
    network, plain = pair(name)
    x = inputs(name)
    outcome(network, x)  # so that there is something that could be taken along
    outcome(plain, x)
    if how == "deepcopy":
        twin = copy.deepcopy(network)
    elif how == "pickle":
        twin = pickle.loads(pickle.dumps(network))
    else:
        twin = compat.accelerate(build(name))
        twin.load_state_dict(plain.state_dict(), strict=True)
        for mine, theirs in zip(alphas(twin), alphas(plain), strict=True):
            mine.data.copy_(theirs.data)
    assert [entry.level for entry in compat.report(twin).fused] == [
        entry.level for entry in compat.report(network).fused
    ]
    with torch.no_grad():  # the network's own weights must not matter to the copy any more
        for parameter in network.parameters():
            parameter.fill_(0.5)
    agree(outcome(twin, x), outcome(plain, x))
    assert set(map(id, twin.parameters())).isdisjoint(map(id, network.parameters()))


@pytest.mark.parametrize("name", NAMES)
def test_restore(name: str) -> None:
    network, plain = pair(name)
    compat.accelerate(network)  # twice is harmless
    assert compat.restore(network) is network
    assert [type(each) for each in network.modules()] == [type(each) for each in plain.modules()]
    assert [vars(each).keys() for each in network.modules()] == [vars(each).keys() for each in plain.modules()]
    assert compat.report(network).fused == ()
