from __future__ import annotations

import copy
import dataclasses
import functools
from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn

import fastnas.nn.supernet
from fastnas.errors import UserError
from fastnas.nn import Supernet
from fastnas.nn.batch_norm import BatchNorm
from fastnas.spaces import CELL_KINDS, SPACES

Mode = Literal["running", "batch"]
MODES: list[Mode] = ["running", "batch"]
BACKENDS = ["fused", "reference"]
close = functools.partial(torch.testing.assert_close, rtol=1e-10, atol=1e-10)


def images(batch: int = 3, size: int = 12, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, 3, size, size, dtype=torch.float64, generator=generator)


def supernet(space: str = "darts", nodes: int = 2, **options: Any) -> Supernet:
    """Small, in float64; no running statistic and no affine parameter has its initial value."""
    torch.manual_seed(0)
    small = dataclasses.replace(SPACES[space], nodes=nodes)
    network = Supernet(small, **({"channels": 4, "layers": 3} | options)).double()
    for module in network.stem.modules():
        if isinstance(module, BatchNorm):
            nn.init.normal_(module.weight)
            nn.init.normal_(module.bias)
    for step in range(2):
        network(2 * images(seed=step) + 1)
    return network


def population(network: Supernet, individuals: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    shape = (individuals, *network.alphas["normal"].shape)
    return {kind: 2 * torch.randn(shape, dtype=torch.float64, generator=generator) for kind in CELL_KINDS}


def one_by_one(network: Supernet, x: Tensor, alphas: dict[str, Tensor], mode: Mode) -> Tensor:
    """Each individual in a forward pass of its own, on a copy in evaluation or in training mode."""
    twin = copy.deepcopy(network).train(mode == "batch")
    weights = {kind: torch.softmax(alphas[kind], dim=-1) for kind in CELL_KINDS}
    individuals = range(len(alphas["normal"]))
    return torch.stack([twin(x, {kind: weights[kind][i] for kind in CELL_KINDS}).detach() for i in individuals])


# Results


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("space", "options"),
    [
        ("darts", {}),
        ("darts", {"partial_channels": 2, "stem": "imagenet"}),
        ("egnas", {"partial_channels": 4}),
        ("egnas", {"partial_channels": 2, "layers": 1, "nodes": 4}),
    ],
    ids=str,
)
def test_logits_are_those_of_each_individual(space: str, options: dict[str, Any], mode: Mode) -> None:
    x = images(size=12 if "stem" not in options else 40)
    network = supernet(space, **options)
    alphas = population(network, 3)
    reference = supernet(space, backend="reference", **options)
    reference.load_state_dict(network.state_dict())
    expected = one_by_one(reference, x, alphas, mode)
    for evaluated in (network.train(), network.eval(), reference):
        close(evaluated.population_logits(x, alphas, bn_mode=mode), expected)
    assert (expected[0] - expected[1]).abs().max() > 1e-3


def test_the_modes_differ_and_running_is_the_default() -> None:
    network = supernet()
    alphas = population(network, 2)
    running, batch = (network.population_logits(images(), alphas, bn_mode=mode) for mode in MODES)
    assert not torch.allclose(running, batch, rtol=1e-3)
    assert torch.equal(network.population_logits(images(), alphas), running)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_chunks_do_not_change_the_results(mode: Mode, backend: str) -> None:
    network = supernet(partial_channels=2, backend=backend)
    alphas = population(network, 5)
    expected = network.population_logits(images(), alphas, chunk=1, bn_mode=mode)
    for chunk in (2, 3, 5, 8, "auto"):
        close(network.population_logits(images(), alphas, chunk=chunk, bn_mode=mode), expected)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("chunk", [1, "auto"])
def test_a_population_of_none(mode: Mode, backend: str, chunk: Any) -> None:
    network = supernet(backend=backend, num_classes=7)
    logits = network.population_logits(images(), population(network, 0), chunk=chunk, bn_mode=mode)
    assert logits.shape == (0, 3, 7)
    assert logits.dtype == torch.float64


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_population_of_one(mode: Mode, backend: str) -> None:
    network = supernet(backend=backend, num_classes=7)
    alphas = population(network, 1)
    logits = network.population_logits(images(), alphas, bn_mode=mode)
    assert logits.shape == (1, 3, 7)
    close(logits, one_by_one(network, images(), alphas, mode))


def test_its_own_alphas_give_its_own_logits() -> None:
    network = supernet().eval()
    logits = network.population_logits(images(), {kind: alpha[None] for kind, alpha in network.alphas.items()})
    close(logits[0], network(images()))


# Chunks


def count_of_chunks(network: Supernet, x: Tensor, alphas: dict[str, Tensor], **options: Any) -> int:
    """How often the first cell ran; the stem runs once."""
    stems: list[int] = []
    cells: list[int] = []
    handles = [
        module.register_forward_hook(lambda *_, calls=calls: calls.append(1))
        for module, calls in ((network.stem, stems), (network.cells[0], cells))
    ]
    network.population_logits(x, alphas, **options)
    for handle in handles:
        handle.remove()
    assert len(stems) == 1
    return len(cells)


@pytest.mark.parametrize(("chunk", "expected"), [(1, 5), (2, 3), (3, 2), (5, 1), (9, 1), ("auto", 1)])
def test_number_of_chunks(chunk: Any, expected: int) -> None:
    network = supernet()
    assert count_of_chunks(network, images(), population(network, 5), chunk=chunk) == expected


def test_automatic_chunks_fit_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    network = supernet(nodes=4, layers=1)
    alphas = population(network, 8)

    def chunks(budget: int, x: Tensor) -> int:
        monkeypatch.setattr(fastnas.nn.supernet, "MEMORY_BUDGET", budget)
        return count_of_chunks(network, x, alphas)

    x = images(1)
    assert chunks(1, x) == 8, "one at a time where not even one fits"
    # For each of 8 individuals the 6 states of the first cell and the 8 candidates of an edge, at least; but not much
    # more than those of all 14 edges.
    state = x[:, :1].nbytes * network.channels * 8
    budget = 14 * state
    assert chunks(budget - 1, x) > 1
    while chunks(budget, x) > 1:
        budget *= 2
    assert budget <= 2 * 14 * 11 * state
    # Twice the images, or images twice as high, take twice the memory; float32 takes half of it.
    for twice in (images(2), torch.cat([x, x], dim=2), torch.cat([x, x], dim=3)):
        assert chunks(budget, twice) > chunks(2 * budget, twice) == 1
    network.float()
    assert chunks(budget // 2, x.float()) == 1


# Side effects


def snapshot(network: Supernet) -> list[Any]:
    state: list[Any] = [tensor.clone() for tensor in network.state_dict().values()]
    state += [None if parameter.grad is None else parameter.grad.clone() for parameter in network.parameters()]
    state += [parameter.requires_grad for parameter in network.parameters()]
    state += [module.training for module in network.modules()]
    state += [module.images for module in network.modules() if isinstance(module, BatchNorm)]
    return [*state, torch.is_grad_enabled()]


def assert_unchanged(network: Supernet, before: list[Any]) -> None:
    for now, then in zip(snapshot(network), before, strict=True):
        assert torch.equal(now, then) if isinstance(then, Tensor) else now is then


class OutOfMemoryError(Exception):
    pass


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("training", ["train", "eval", "frozen stem"])
@pytest.mark.parametrize("failing", [False, True])
def test_nothing_is_changed(mode: Mode, backend: str, training: str, failing: bool) -> None:
    network = supernet(backend=backend).train(training != "eval")
    if training == "frozen stem":
        network.stem.eval().requires_grad_(False)
    network(images()).sum().backward()
    alphas = population(network, 3)
    copies = {kind: alpha.clone() for kind, alpha in alphas.items()}
    before = snapshot(network)
    if failing:

        def fail(*_: Any) -> None:
            raise OutOfMemoryError

        handle = network.cells[1].register_forward_hook(fail)
        with pytest.raises(OutOfMemoryError):
            network.population_logits(images(), alphas, bn_mode=mode)
        handle.remove()
    else:
        logits = network.population_logits(images(), alphas, chunk=2, bn_mode=mode)
        assert not logits.requires_grad
    assert_unchanged(network, before)
    assert all(torch.equal(alphas[kind], copies[kind]) for kind in CELL_KINDS)


def test_training_goes_on_as_if_nothing_had_happened() -> None:
    first, second = supernet(), supernet()
    for mode in MODES:
        first.population_logits(images(), population(first, 3), bn_mode=mode)
    assert torch.equal(first(images()), second(images()))
    assert torch.equal(first.eval()(images()), second.eval()(images()))


# Errors


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bn_mode": "eval"}, r"^unknown bn_mode 'eval': expected 'running' or 'batch'\.$"),
        ({"chunk": 0}, r"^chunk is 0: expected a positive number of individuals, or 'auto'\.$"),
        ({"chunk": "all"}, r"^chunk is 'all': expected a positive number of individuals, or 'auto'\.$"),
        ({"chunk": 2.0}, r"^chunk is 2\.0: expected a positive number of individuals, or 'auto'\.$"),
    ],
)
@pytest.mark.parametrize("backend", BACKENDS)
def test_option_errors(options: dict[str, Any], message: str, backend: str) -> None:
    network = supernet(backend=backend)
    with pytest.raises(UserError, match=message):
        network.population_logits(images(), population(network, 2), **options)


@pytest.mark.parametrize(
    ("normal", "reduce"),
    [
        ((5, 8), (5, 8)),
        ((2, 5, 7), (2, 5, 7)),
        ((2, 14, 8), (2, 14, 8)),
        ((2, 5, 8), (3, 5, 8)),
        ((2, 5, 8), (2, 5, 7)),
        ((1, 2, 5, 8), (1, 2, 5, 8)),
        ((), (2, 5, 8)),
    ],
)
def test_alphas_of_another_shape(normal: tuple[int, ...], reduce: tuple[int, ...]) -> None:
    with pytest.raises(UserError) as error:
        supernet().population_logits(images(), {"normal": torch.zeros(normal), "reduce": torch.zeros(reduce)})
    shapes = {"normal": normal, "reduce": reduce}
    assert str(error.value) == f"population α have shapes {shapes}, expected (P, 5, 8) for each kind."


def test_alphas_for_one_kind_of_cell() -> None:
    message = r"^population α lack 'reduce': expected a table for each of normal and reduce\.$"
    with pytest.raises(UserError, match=message):
        supernet().population_logits(images(), {"normal": torch.zeros(2, 5, 8)})
