"""Weights of foreign supernets, read and written back."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.baselines import darts, egnas, pc_darts
from benchmarks.baselines.darts_operations import FactorizedReduce
from fastnas.compat import foreign_state_dict, load_betas, load_supernet
from fastnas.errors import UserError
from fastnas.nn import Supernet
from fastnas.spaces import SPACES, CellSpace
from fastnas.strategies.pc_darts import edge_softmax

CASES: list[tuple[str, dict[str, Any]]] = [
    ("darts", {}),
    ("darts", {"layers": 1}),
    ("darts", {"layers": 2}),
    ("darts", {"layers": 8, "in_channels": 1, "classes": 3}),
    ("pc-darts", {"channels": 8}),
    ("egnas", {}),
    ("egnas", {"k": 1, "layers": 4}),
    ("egnas", {"stem": "imagenet", "channels": 8, "k": 4}),
]


class ForImageNet(egnas.Network):
    """With the stem of the ImageNet scripts of PC-DARTS and EG-NAS: states of two sizes."""

    def __init__(self, channels: int, *arguments: int, **options: int) -> None:
        super().__init__(channels, *arguments, **options)
        width = 3 * channels
        first = [nn.Conv2d(3, width // 2, 3, 2, 1, bias=False), nn.BatchNorm2d(width // 2), nn.ReLU(inplace=True)]
        second = [nn.Conv2d(width // 2, width, 3, 2, 1, bias=False), nn.BatchNorm2d(width)]
        third = [nn.ReLU(inplace=True), nn.Conv2d(width, width, 3, 2, 1, bias=False), nn.BatchNorm2d(width)]
        del self.stem
        self.stem0, self.stem1 = nn.Sequential(*first, *second), nn.Sequential(*third)
        self.cells[0].preprocess0 = FactorizedReduce(width, channels, affine=False)

    def forward(self, images: Tensor) -> Tensor:
        s0 = self.stem0(images)
        s1 = self.stem1(s0)
        for cell in self.cells:
            alphas = self.alphas_reduce if cell.reduction else self.alphas_normal
            s0, s1 = s1, cell(s0, s1, F.softmax(alphas, dim=-1))
        return self.classifier(self.global_pooling(s1).flatten(1))


def build(
    kind: str,
    channels: int = 4,
    classes: int = 5,
    layers: int = 3,
    k: int = 2,
    stem: str = "cifar",
    in_channels: int = 3,
) -> nn.Module:
    if kind == "egnas":
        network = (egnas.Network if stem == "cifar" else ForImageNet)(channels, classes, layers, k=k)
    else:
        network = {"darts": darts, "pc-darts": pc_darts}[kind].Network(channels, classes, layers, nn.CrossEntropyLoss())
    if in_channels != 3:
        network.stem[0] = nn.Conv2d(in_channels, 3 * channels, 3, padding=1, bias=False)
    for table in tables(network).values():
        nn.init.normal_(table)
    return network


def tables(network: nn.Module) -> dict[str, Tensor]:
    """α and β, as one adds them to the state dict."""
    names = [f"{table}_{cell}" for table in ("alphas", "betas") for cell in ("normal", "reduce")]
    return {name: getattr(network, name) for name in names if hasattr(network, name)}


def whole(network: nn.Module) -> dict[str, Tensor]:
    return {**network.state_dict(), **tables(network)}


def trained(kind: str, dtype: torch.dtype = torch.float64, **options: Any) -> nn.Module:
    """A network whose running statistics and affine parameters have left their initial values."""
    network = build(kind, **options)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.3)
    with torch.no_grad():
        network(images(network))
    for name, table in tables(network).items():
        if not isinstance(table, nn.Parameter):
            setattr(network, name, table.detach().to(dtype).requires_grad_())
    return network.to(dtype)


def images(network: nn.Module) -> Tensor:
    stem, size = (network.stem[0], 8) if hasattr(network, "stem") else (network.stem0[0], 64)
    return torch.randn(3, stem.in_channels, size, size, dtype=stem.weight.dtype)


def edges(network: nn.Module, ours: Supernet) -> dict[str, Tensor] | None:
    betas = load_betas(whole(network))
    return {kind: edge_softmax(beta, ours.space) for kind, beta in betas.items()} or None


@pytest.mark.parametrize(("kind", "options"), CASES, ids=str)
@pytest.mark.parametrize("backend", ["fused", "reference"])
def test_logits_are_the_same(kind: str, options: dict[str, Any], backend: str) -> None:
    foreign = trained(kind, **options)
    ours = load_supernet(whole(foreign), kind, backend=backend)
    assert ours.training
    assert ours.partial_channels == {"darts": 1, "pc-darts": 4}.get(kind, options.get("k", 2))
    for training in (True, False):
        foreign.train(training)
        ours.train(training)
        x = images(foreign)
        with torch.no_grad():
            torch.testing.assert_close(ours(x, edge_weights=edges(foreign, ours)), foreign(x))
    # After the step in training mode running statistics are alike, too.
    torch.testing.assert_close(foreign_state_dict(ours, kind), dict(foreign.state_dict()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("kind", "options"), CASES, ids=str)
def test_round_trip_to_the_bit(kind: str, options: dict[str, Any], dtype: torch.dtype) -> None:
    foreign = trained(kind, dtype, **options)
    before = foreign.state_dict()
    ours = load_supernet(whole(foreign), kind)
    after = foreign_state_dict(ours, kind)
    assert set(after) == set(before)
    for name, value in before.items():
        assert value.dtype == after[name].dtype
        assert torch.equal(value, after[name]), name
    for cell in ("normal", "reduce"):
        assert torch.equal(ours.alphas[cell], tables(foreign)[f"alphas_{cell}"])
    build(kind, **options).to(dtype).load_state_dict(after)


def test_betas_are_read_as_they_are() -> None:
    foreign = trained("pc-darts", channels=8)
    betas = load_betas(whole(foreign))
    assert torch.equal(betas["normal"], foreign.betas_normal)
    assert torch.equal(betas["reduce"], foreign.betas_reduce)
    assert not betas["normal"].requires_grad
    assert load_betas(foreign.state_dict()) == {}


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod."])
def test_prefixes_of_wrappers_are_dropped(prefix: str) -> None:
    foreign = trained("darts")
    wrapped = {prefix + name: value for name, value in foreign.state_dict().items()}
    ours = load_supernet({**wrapped, **tables(foreign)}, "darts")
    x = images(foreign)
    torch.testing.assert_close(ours(x), foreign(x))


def test_without_alpha_there_is_a_warning_and_a_fresh_one() -> None:
    foreign = trained("darts")
    with pytest.warns(UserWarning, match="holds no α, which starts anew"):
        ours = load_supernet(foreign.state_dict(), "darts")
    assert ours.alphas["normal"].abs().max() < 0.1


def test_counters_of_batches_may_be_missing() -> None:
    """As in files of PyTorch before 0.4.1."""
    foreign = trained("egnas")
    state = {name: value for name, value in foreign.state_dict().items() if "num_batches" not in name}
    x = images(foreign)
    torch.testing.assert_close(load_supernet(state, "egnas").eval()(x), foreign.eval()(x))


def test_a_space_of_ones_own() -> None:
    darts = SPACES["darts"]
    space = CellSpace("mine", darts.candidates, pool_norm=True)
    foreign = trained("darts")
    ours = load_supernet(whole(foreign), space)
    assert ours.space is space
    assert foreign_state_dict(ours, "darts").keys() == foreign.state_dict().keys()


def test_the_search_goes_on() -> None:
    """A step of the loaded network is a step of the foreign one."""
    foreign = trained("egnas", torch.float32)
    ours = load_supernet(foreign.state_dict(), "egnas")
    x, labels = images(foreign), torch.tensor([0, 1, 2])
    for network, parameters in ((foreign, [*foreign.parameters()]), (ours, [*ours.parameters()])):
        optimizer = torch.optim.SGD(parameters, lr=0.1, momentum=0.9)
        for _ in range(2):
            optimizer.zero_grad()
            F.cross_entropy(network(x), labels).backward()
            optimizer.step()
    torch.testing.assert_close(foreign_state_dict(ours, "egnas"), dict(foreign.state_dict()), rtol=1e-4, atol=1e-5)


# --- errors ---


def state(kind: str = "darts") -> dict[str, Any]:
    return whole(build(kind))


def without(key: str) -> dict[str, Any]:
    return {name: value for name, value in state().items() if name != key}


@pytest.mark.parametrize(
    ("given", "space", "message"),
    [
        ({}, "darts", "lacks 'stem.0.weight', so it is not that of a supernet of DARTS, PC-DARTS or EG-NAS while"),
        ({"epoch": 3, "state_dict": {}}, "darts", "'epoch' of the state dict is a int, expected a tensor: give"),
        (state("egnas"), "darts", "lacks 'cells.0._ops.0._ops.1.1.running_mean', "),
        (state("egnas"), "darts", "which such a network does not have; its keys are those of the space 'egnas'."),
        (state(), "egnas", "not the state dict of a supernet of the space 'egnas'"),
        (state(), "egnas", "its keys are those of the space 'darts'."),
        (without("classifier.bias"), "darts", "it lacks 'classifier.bias'; give the state dict of the whole network."),
        (state() | {"extra": torch.zeros(1)}, "darts", "it has 'extra', which such a network does not have"),
        (
            state() | {"classifier.bias": torch.zeros(7)},
            "darts",
            "'classifier.bias' of the state dict has shape [7], expected [5]",
        ),
        (
            {**{f"module.{k}": v for k, v in state().items()}, "classifier.bias": torch.zeros(5)},
            "darts",
            "some keys of the state dict begin with 'module.' and some do not ('module.stem.0.weight', 'classifier.bi",
        ),
        (without("alphas_reduce"), "darts", "lacks 'alphas_reduce': expected both of alphas_normal and alphas_reduce"),
        (
            state() | {"alphas_normal": torch.zeros(14, 7)},
            "darts",
            "'alphas_normal' has shape [14, 7], expected [14, 8]",
        ),
        (
            state() | {"stem.0.weight": torch.zeros(8, 3, 3, 3)},
            "darts",
            "the stem has 8 channels and the first cell 4: expected 3 times",
        ),
        (
            {name: value for name, value in state().items() if "cells.0._ops.0." not in name},
            "darts",
            "the first edge has weights for 0 of 4 channels",
        ),
        (state(), "nb201", "unknown space 'nb201' of a foreign supernet: expected darts, pc-darts, egnas."),
        (state(), SPACES["multi-level"], "space 'multi-level' has cells that DARTS, PC-DARTS and EG-NAS do not have"),
    ],
)
def test_errors_of_loading(given: dict[str, Any], space: Any, message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        load_supernet(given, space)


def test_errors_of_betas() -> None:
    with pytest.raises(UserError, match=re.escape("'betas_normal' has shape [3], expected [14]")):
        load_betas(whole(build("pc-darts", channels=8)) | {"betas_normal": torch.zeros(3)})


@pytest.mark.parametrize(
    ("space", "naming", "message"),
    [
        ("darts", "nni", "unknown naming 'nni': expected darts, pc-darts, egnas."),
        ("darts", "egnas", "the network has the space 'darts', but 'egnas' has 'egnas': choose the naming of its own"),
        ("egnas", "pc-darts", "the network has the space 'egnas', but 'pc-darts' has 'darts'"),
        ("multi-level", "darts", "the network has the space 'multi-level'"),
        ("nb201", "darts", "the network has the space 'nb201'"),
    ],
)
def test_errors_of_writing(space: str, naming: str, message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        foreign_state_dict(Supernet(space, channels=4, layers=3), naming)
