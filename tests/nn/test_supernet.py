from __future__ import annotations

import copy
import dataclasses
import functools
from collections.abc import Iterable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fastnas.errors import UserError
from fastnas.nn import MixedOp, Supernet
from fastnas.nn.cell import SearchCell
from fastnas.nn.primitives import FactorizedReduce, ReLUConvNorm
from fastnas.nn.stem import CIFARStem, ImageNetStem, make_stem
from fastnas.spaces import CELL_KINDS, SPACES, CellSpace

BACKENDS = ["fused", "reference"]
close = functools.partial(torch.testing.assert_close, rtol=1e-10, atol=1e-10)


def images(batch: int = 2, size: tuple[int, int] = (8, 8), channels: int = 3, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, channels, *size, dtype=torch.float64, generator=generator)


def supernet(space: str = "darts", nodes: int = 2, **options: Any) -> Supernet:
    """Small, in float64, with alphas far enough from zero for a mistake in them to show."""
    torch.manual_seed(0)
    small = dataclasses.replace(SPACES[space], nodes=nodes)
    network = Supernet(small, **({"channels": 4, "layers": 3} | options)).double()
    for alpha in network.alphas.values():
        nn.init.normal_(alpha)
    return network


def tables(network: Supernet, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shape = network.alphas["normal"].shape
    return {kind: torch.rand(shape, dtype=torch.float64, generator=generator) for kind in CELL_KINDS}


def gradients(tensors: Iterable[Tensor]) -> list[Tensor]:
    """Their gradients, all of which must be there."""
    found = [tensor.grad for tensor in tensors]
    assert all(gradient is not None for gradient in found)
    return [gradient for gradient in found if gradient is not None]


# Size


@pytest.mark.parametrize(
    ("options", "weights", "alphas"),
    [
        ({"space": "darts"}, 1_930_618, 224),
        ({"space": "darts", "num_classes": 100}, 1_953_748, 224),
        ({"space": "darts", "layers": 5}, 1_275_834, 224),  # the first stage of P-DARTS, 1,276,058 with α
        ({"space": "darts", "partial_channels": 4}, 299_578, 224),
        ({"space": "darts", "partial_channels": 4, "num_classes": 100}, 322_708, 224),
        ({"space": "darts", "partial_channels": 2, "num_classes": 1000, "stem": "imagenet"}, 956_512, 224),
        ({"space": "egnas", "partial_channels": 4}, 299_578, 196),
        ({"space": "egnas", "partial_channels": 4, "num_classes": 100}, 322_708, 196),
        ({"space": "egnas", "partial_channels": 4, "num_classes": 1000, "stem": "imagenet"}, 584_608, 196),
    ],
    ids=str,
)
def test_number_of_parameters(options: dict[str, Any], weights: int, alphas: int) -> None:
    network = Supernet(**options)
    assert sum(parameter.numel() for parameter in network.weight_parameters()) == weights
    assert sum(parameter.numel() for parameter in network.parameters()) == weights + alphas


@pytest.mark.parametrize("stem", ["cifar", "imagenet"])
@pytest.mark.parametrize(("size", "channels"), [((8, 8), 1), ((9, 12), 3), ((5, 3), 3)])
@pytest.mark.parametrize("partial_channels", [1, 2, 4])
@pytest.mark.parametrize("backend", BACKENDS)
def test_logits_for_any_image(
    stem: Any, size: tuple[int, int], channels: int, partial_channels: int, backend: str
) -> None:
    network = supernet(
        stem=stem, in_channels=channels, partial_channels=partial_channels, num_classes=7, backend=backend
    )
    logits = network(images(size=size, channels=channels))
    assert logits.shape == (2, 7)
    assert logits.isfinite().all()


@pytest.mark.parametrize(("space", "nodes"), [("darts", 4), ("egnas", 1)])
@pytest.mark.parametrize("layers", [1, 2, 6])
def test_cells(space: str, nodes: int, layers: int) -> None:
    network = supernet(space, nodes, layers=layers)
    shapes: list[tuple[int, ...]] = []
    for cell in network.cells:
        cell.register_forward_hook(lambda cell, args, output: shapes.append(tuple(output.shape)))
    network(images(size=(12, 12)))
    channels, size, expected = 4, 12, []
    for index in range(layers):
        if index in (layers // 3, 2 * layers // 3):
            channels, size = 2 * channels, (size + 1) // 2
        expected.append((2, nodes * channels, size, size))
    assert shapes == expected


@pytest.mark.parametrize(("stem", "first"), [("cifar", ReLUConvNorm), ("imagenet", FactorizedReduce)])
def test_preprocessing_halves_the_first_state_after_a_reduction(stem: Any, first: type) -> None:
    network = supernet(stem=stem, layers=5)  # reductions at 1 and 3
    kinds = [type(cell.preprocess0) for cell in network.cells]
    assert kinds == [first, ReLUConvNorm, FactorizedReduce, ReLUConvNorm, FactorizedReduce]


@pytest.mark.parametrize("stem", ["cifar", "imagenet"])
def test_norms_are_affine_in_the_stem_only(stem: Any) -> None:
    affine: dict[str, set[bool]] = {"stem": set(), "cells": set()}
    for name, module in supernet(stem=stem).named_modules():
        if isinstance(module, nn.BatchNorm2d):
            affine[name.split(".")[0]].add(module.affine)
    assert affine == {"stem": {True}, "cells": {False}}


@pytest.mark.parametrize(("space", "normalised"), [("darts", True), ("egnas", False)])
def test_pools_are_normalised_where_the_space_says_so(space: str, normalised: bool) -> None:
    network = supernet(space)
    column = network.space.candidates.index("max_pool_3x3")
    edges = [module for module in network.modules() if isinstance(module, MixedOp)]
    pools = {type(edge.candidates[column]) for edge in edges}
    assert len(edges) == len(network.cells) * len(network.space.edges)
    assert pools == {nn.Sequential if normalised else nn.MaxPool2d}


# Stems


def test_cifar_stem() -> None:
    stem = CIFARStem(3, 5).double()
    s0, s1 = stem(images())
    assert s0 is s1
    assert s0.shape == (2, stem.out_channels, 8, 8) == (2, 5, 8, 8)
    close(s0.mean((0, 2, 3)), torch.zeros(5, dtype=torch.float64))  # ends in the normalisation
    assert not stem.reduces


@pytest.mark.parametrize(("size", "quarter", "eighth"), [(16, 4, 2), (13, 4, 2), (9, 3, 2), (224, 56, 28)])
def test_imagenet_stem(size: int, quarter: int, eighth: int) -> None:
    stem = ImageNetStem(1, 6).double()
    s0, s1 = stem(images(size=(size, size), channels=1))
    assert stem.out_channels == 6
    assert s0.shape == (2, 6, quarter, quarter)
    assert s1.shape == (2, 6, eighth, eighth)
    assert s0.min() < 0, "the ReLU after the last normalisation belongs to whoever reads the state"
    assert s1.min() < 0
    assert stem.reduces


def test_stem_errors() -> None:
    with pytest.raises(UserError, match=r"^unknown stem 'mnist': use 'cifar' \(images of 32×32\) or 'imagenet'"):
        make_stem("mnist", 3, 4)
    with pytest.raises(UserError, match=r"^out_channels is 9, but the ImageNet stem halves it: choose an even number"):
        make_stem("imagenet", 3, 9)


# Outputs, against the definition


@pytest.mark.parametrize("stem", ["cifar", "imagenet"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_forward_is_the_sum_over_edges(stem: Any, backend: str) -> None:
    network = supernet(nodes=4, stem=stem, partial_channels=2, backend=backend).eval()
    x, weights = images(size=(12, 12)), tables(network)
    s0, s1 = network.stem(x)
    for index, cell in enumerate(network.cells):
        assert isinstance(cell, SearchCell)
        table = weights["reduce" if index in (1, 2) else "normal"]
        states = [cell.preprocess0(s0), cell.preprocess1(s1)]
        for node in (2, 3, 4, 5):
            incoming = [(edge, source) for edge, (source, target) in enumerate(network.space.edges) if target == node]
            states.append(sum(cell.edges[edge](states[source], table[edge]) for edge, source in incoming))
        s0, s1 = s1, torch.cat(states[2:], dim=1)
    expected = s1.mean((2, 3)) @ network.classifier.weight.T + network.classifier.bias
    close(network(x, weights), expected)


def test_by_default_softmax_of_alphas() -> None:
    network = supernet().eval()
    exponentials = {kind: alpha.exp() for kind, alpha in network.alphas.items()}
    softmaxed = {kind: table / table.sum(1, keepdim=True) for kind, table in exponentials.items()}
    close(network.op_weights(), softmaxed)
    close(network(images()), network(images(), softmaxed))
    assert not torch.allclose(network(images()), network(images(), exponentials)), "given weights are used as they are"


def test_each_kind_of_cell_has_its_table() -> None:
    network = supernet(layers=6)  # reductions at 2 and 4
    weights = tables(network)
    seen: list[Tensor] = []
    for cell in network.cells:
        cell.register_forward_pre_hook(lambda cell, args: seen.append(args[2]))
    network(images(), weights)
    assert len(seen) == 6
    for index, table in enumerate(seen):
        assert table is weights["reduce" if index in (2, 4) else "normal"]


def test_genotype_is_derived_from_the_softmax() -> None:
    network = supernet()
    genotype = network.genotype()
    assert genotype == network.space.derive(network.op_weights())
    with torch.no_grad():  # a constant added to a row is lost in the softmax, but would change the rank of the edge
        network.alphas["normal"] += torch.arange(5.0).view(5, 1) * torch.tensor([[-1.0], [1.0]])[[0, 1, 1, 0, 1]]
    assert network.genotype() == genotype
    assert network.space.derive(dict(network.alphas)) != genotype


# Backends


@pytest.mark.parametrize("stem", ["cifar", "imagenet"])
@pytest.mark.parametrize(("space", "nodes", "partial_channels"), [("darts", 2, 1), ("darts", 2, 2), ("egnas", 4, 4)])
def test_backends_agree_over_training_steps(space: str, nodes: int, partial_channels: int, stem: Any) -> None:
    histories = []
    for backend in BACKENDS:
        network = supernet(space, nodes, partial_channels=partial_channels, stem=stem, backend=backend)
        # Large images for the ImageNet stem: over few values BatchNorm amplifies the last bit.
        size = (12, 12) if stem == "cifar" else (48, 48)
        history: list[Tensor] = []
        for step in range(2):
            x = images(3, size, seed=step).requires_grad_()
            network.zero_grad()
            logits = network(x)
            nn.functional.cross_entropy(logits, torch.tensor([1, 2, 3])).backward()
            history += [logits, *gradients([x, *network.parameters()])]
            assert all(entry.abs().max() > 0 for entry in history)
            with torch.no_grad():
                for parameter, gradient in zip(network.parameters(), gradients(network.parameters()), strict=True):
                    parameter.sub_(0.05 * gradient)
        network.eval()
        history += [*network.buffers(), network(x)]
        network.zero_grad()
        network(x).square().sum().backward()
        histories.append([*history, *gradients(network.parameters())])
    for fused, reference in zip(*histories, strict=True):
        close(fused, reference)


@pytest.mark.parametrize("pair", [("fused", "reference"), ("reference", "fused")])
def test_state_dict_fits_the_other_backend(pair: tuple[str, str]) -> None:
    first, second = (supernet(backend=backend) for backend in pair)
    first(images())
    with torch.no_grad():
        for parameter in first.parameters():
            parameter.add_(0.1)
    second.load_state_dict(first.state_dict())
    close(second.eval()(images()), first.eval()(images()))


def test_backend_names() -> None:
    assert supernet().backend == supernet(backend="fused").backend == "fused"
    assert supernet(backend="reference").backend == "reference"
    assert "space='egnas', backend='reference'" in repr(supernet("egnas", backend="reference"))


@pytest.mark.parametrize("backend", BACKENDS)
def test_channels_last_images(backend: str) -> None:
    network = supernet(partial_channels=2, backend=backend).eval()
    x = images(3, (9, 8))
    expected = network(x)
    close(network(x.to(memory_format=torch.channels_last)), expected)
    close(network.to(memory_format=torch.channels_last)(x.to(memory_format=torch.channels_last)), expected)


@pytest.mark.parametrize("backend", BACKENDS)
def test_autocast(backend: str) -> None:
    network = supernet(partial_channels=2, backend=backend).float()
    x = images(3).float()
    expected = network(x)
    with torch.autocast("cpu", torch.bfloat16):
        logits = network(x)
        logits.float().square().sum().backward()
    assert logits.dtype == torch.bfloat16
    assert (logits - expected).norm() < 0.1 * expected.norm()
    assert all(gradient.isfinite().all() for gradient in gradients(network.parameters()))
    with torch.autocast("cpu", torch.bfloat16):
        population = network.eval().population_logits(x, {kind: alpha[None] for kind, alpha in network.alphas.items()})
        close(population[0], network(x), rtol=0.05, atol=0.05)


# α


def test_alphas_are_parameters_but_not_weights() -> None:
    network = supernet()
    alphas = {id(alpha) for alpha in network.alphas.values()}
    weights = [id(parameter) for parameter in network.weight_parameters()]
    assert not alphas & set(weights)
    assert {id(parameter) for parameter in network.parameters()} == alphas | set(weights)
    assert len(weights) == len(set(weights))
    assert {name for name in network.state_dict() if "alpha" in name} == {"alphas.normal", "alphas.reduce"}


def test_initial_alphas() -> None:
    torch.manual_seed(0)
    alphas = Supernet("egnas", channels=4, layers=3).alphas
    assert {kind: tuple(alpha.shape) for kind, alpha in alphas.items()} == {"normal": (14, 7), "reduce": (14, 7)}
    assert 0.5e-3 < torch.cat([*alphas.values()]).std() < 1.5e-3


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradient_of_alphas(backend: str) -> None:
    network = supernet(layers=6, partial_channels=2, backend=backend)
    x = images(3)
    weights = {kind: table.detach().requires_grad_() for kind, table in network.op_weights().items()}
    network(x, weights).square().sum().backward()
    network(x).square().sum().backward()
    assert network.space.candidates[0] == "none"
    for kind in CELL_KINDS:
        table = weights[kind].detach()
        gain, gradient = gradients([weights[kind], network.alphas[kind]])
        assert (gain[:, 0] == 0).all(), "none adds nothing, whatever its weight"
        assert (gain[:, 1:] != 0).all()
        close(gradient, table * (gain - (table * gain).sum(1, keepdim=True)))
        assert (gradient[:, 0] != 0).all(), "but it takes weight from the others"


def test_no_gradient_of_alphas_for_given_weights() -> None:
    network = supernet()
    network(images(), tables(network)).sum().backward()
    assert all(alpha.grad is None for alpha in network.alphas.values())
    gradients(network.weight_parameters())


@pytest.mark.parametrize("backend", BACKENDS)
def test_deepcopy_is_independent(backend: str) -> None:
    network = supernet(backend=backend)
    network(images())
    twin = copy.deepcopy(network)
    expected = network.eval()(images())
    close(twin.eval()(images()), expected)
    assert {id(alpha) for alpha in twin.alphas.values()}.isdisjoint(id(alpha) for alpha in network.alphas.values())
    assert len(twin.weight_parameters()) == len(network.weight_parameters())
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.zero_()
    twin.train()(images())
    close(network(images()), expected)


# Errors


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"channels": 0}, r"^channels is 0, expected at least 1\.$"),
        ({"layers": 0}, r"^layers is 0, expected at least 1\.$"),
        ({"num_classes": 0}, r"^num_classes is 0, expected at least 1\.$"),
        ({"in_channels": -1}, r"^in_channels is -1, expected at least 1\.$"),
        ({"partial_channels": 0}, r"^partial_channels is 0, expected at least 1\.$"),
        ({"partial_channels": 3}, r"^4 channels cannot be cut into partial_channels=3 equal parts: choose a number of"),
        ({"space": "dart"}, r"^unknown search space 'dart': expected one of darts, egnas, multi-level, nb201, a Cell"),
        ({"backend": "cuda"}, r"^unknown backend 'cuda': expected auto, fused or reference\.$"),
        ({"stem": "mnist"}, r"^unknown stem 'mnist': use 'cifar' \(images of 32×32\) or 'imagenet' \(224×224\)\.$"),
        ({"stem": "imagenet", "channels": 3}, "^out_channels is 9, but the ImageNet stem halves it: choose an even"),
        (
            {"space": CellSpace("own", ("skip_conect",), True)},
            "^unknown primitive 'skip_conect': did you mean 'skip_conn",
        ),
    ],
)
def test_construction_errors(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Supernet(**({"channels": 4, "layers": 3} | options))


@pytest.mark.parametrize("backend", BACKENDS)
def test_op_weights_of_another_shape(backend: str) -> None:
    network = supernet("egnas", nodes=4, backend=backend)
    good = tables(network)
    message = r"^op_weights have shapes {'normal': \(14, 7\), 'reduce': \(14, 8\)}, expected \(14, 7\) for both kinds"
    with pytest.raises(UserError, match=message):
        network(images(), good | {"reduce": torch.rand(14, 8)})
    with pytest.raises(
        UserError, match=r"^op_weights lack 'reduce': expected a table for each of normal and reduce\.$"
    ):
        network(images(), {"normal": good["normal"]})


@pytest.mark.parametrize("stem", ["cifar", "imagenet"])
def test_the_fused_network_is_channels_last_from_the_stem_on_whatever_the_images_are(stem):
    images = torch.randn(2, 3, 32, 32)
    fused, reference = (Supernet("darts", 4, 2, stem=stem, backend=backend) for backend in ("fused", "reference"))
    reference.load_state_dict(fused.state_dict())
    for state, expected in zip(fused.stem(images), reference.stem(images), strict=True):
        assert state.is_contiguous(memory_format=torch.channels_last)
        assert expected.is_contiguous()
        torch.testing.assert_close(state, expected)
