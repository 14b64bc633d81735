"""None of our code runs into the bug of oneDNN that `fastnas.onednn` guards against."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn

import fastnas
from fastnas import onednn
from fastnas.nn import MixedOp, Supernet
from fastnas.nn.primitives import FactorizedReduce, ReLUConvNorm


class Halve(nn.Conv2d):
    """A layer of a user's, which accelerated code may give channels-last tensors."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, channels, 1, stride=2, bias=False)


class ForeignMixture(nn.Module):
    """Candidates that the operators know beside one that they do not."""

    def __init__(self) -> None:
        super().__init__()
        self._ops = nn.ModuleList(
            [nn.Sequential(nn.MaxPool2d(3, 2, 1), nn.BatchNorm2d(4, affine=False)), nn.Sequential(Halve(4), nn.Tanh())]
        )

    def forward(self, x, weights):
        return sum(w * op(x) for w, op in zip(weights, self._ops, strict=True))


def at_risk(network: nn.Module) -> list[nn.Conv2d]:
    return [layer for layer in network.modules() if onednn.is_at_risk(layer)]


def images(channels: int) -> torch.Tensor:
    x = torch.randn(8, channels, 16, 16)
    return x.contiguous(memory_format=torch.channels_last).requires_grad_()


def gradients(module: nn.Module, *arguments: torch.Tensor) -> list[torch.Tensor]:
    output = module(*arguments)
    direction = torch.linspace(-3, 3, output.numel(), dtype=output.dtype).sin().view(output.shape)
    return list(torch.autograd.grad((output * direction).sum(), [*module.parameters()], allow_unused=True))


def agrees_with_float64(module: nn.Module, *arguments: torch.Tensor) -> None:
    """Gradients ten times over (the bug shows at random) against those of the unguarded module in float64, where
    torch does not use oneDNN."""
    twin = copy.deepcopy(module).double()
    onednn.unguard(twin)
    expected = gradients(twin, *(argument.detach().double().contiguous() for argument in arguments))
    for _ in range(10):
        for ours, theirs in zip(gradients(module, *arguments), expected, strict=True):
            if theirs is not None:
                torch.testing.assert_close(ours.double(), theirs, rtol=1e-3, atol=1e-4 * float(theirs.abs().max()))


PATHS = {
    "factorized reduction": lambda: FactorizedReduce(4, 4, nn.BatchNorm2d),
    "strided pointwise": lambda: ReLUConvNorm(4, 4, 1, 2, 0, nn.BatchNorm2d),
}


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("channels_last_weights", [False, True])
def test_primitives(path: str, channels_last_weights: bool):
    module = PATHS[path]()
    if channels_last_weights:
        module.to(memory_format=torch.channels_last)
    assert at_risk(module)
    agrees_with_float64(module, images(4))


@pytest.mark.parametrize("backend", ["reference", "fused"])
def test_unknown_candidate_of_a_mixed_operation(backend: str):
    mixed = MixedOp(["max_pool_3x3", nn.Sequential(Halve(4), nn.Tanh())], channels=4, stride=2, backend=backend)
    agrees_with_float64(mixed, images(4), torch.tensor([0.4, 0.6]))


def test_supernet_and_derived_network_in_plain_torch():
    supernet = Supernet("egnas", channels=8, layers=3, partial_channels=4, backend="reference")
    genotype = fastnas.Genotype(
        normal=[("skip_connect", 0), ("skip_connect", 1)], normal_concat=[2],
        reduce=[("skip_connect", 0), ("skip_connect", 1)], reduce_concat=[2],
    )  # fmt: skip
    derived = fastnas.nn.DerivedNetwork(genotype, channels=2, layers=3, auxiliary=False, backend="reference")
    for network in (supernet, derived):
        found = at_risk(network)
        assert found
        assert all(type(layer) is not nn.Conv2d for layer in found)


def test_accelerated_code_that_runs_as_it_is():
    mixture = fastnas.compat.accelerate(ForeignMixture())
    assert fastnas.compat.report(mixture).fused
    agrees_with_float64(mixture, images(4), torch.tensor([0.4, 0.6]))
    names = list(mixture.state_dict())
    assert isinstance(mixture._ops[1][0], Halve)
    for copied in (copy.deepcopy(mixture), pickle.loads(pickle.dumps(mixture))):
        agrees_with_float64(copied, images(4), torch.tensor([0.4, 0.6]))
        assert type(copied._ops[1][0]) is type(mixture._ops[1][0])
    fastnas.compat.restore(mixture)
    assert type(mixture._ops[1][0]) is Halve
    assert list(mixture.state_dict()) == names


def test_only_layers_at_risk_are_guarded():
    safe = [nn.Conv2d(8, 4, 1, 2), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 3, 2, 1), nn.Conv2d(4, 4, 1, 2, groups=2)]
    network = nn.Sequential(*safe, nn.Conv2d(4, 4, 1, 2))
    onednn.guard(network)
    assert all(type(layer) is nn.Conv2d for layer in safe)
    guarded = network[4]
    x = torch.randn(2, 4, 7, 6)
    expected = nn.functional.conv2d(x, guarded.weight, guarded.bias, stride=2)
    torch.testing.assert_close(guarded(x), expected)
    onednn.unguard(network)
    assert type(guarded) is nn.Conv2d


def test_exported_program_keeps_its_convolution():
    module = FactorizedReduce(4, 4, nn.BatchNorm2d).eval()
    program = torch.export.export(module, (torch.randn(1, 4, 8, 8),))
    assert not any("slice" in str(node.target) for node in program.graph.nodes)
