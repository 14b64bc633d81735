"""Cells on the fused operators against the definition, which is the "reference" backend in float64."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from fused_pair import FEW, SMALL, UNUSUAL, agree, error, images, norms, outcome, pair, train

from fastnas.nn import Supernet
from fastnas.nn.batch_norm import individual_statistics
from fastnas.spaces import CELL_KINDS, SPACES, CellSpace

pytestmark = [pytest.mark.usefixtures("backend"), pytest.mark.emulated_cases(3)]

KNOWN = (*SPACES["darts"].candidates, "sep_conv_7x7")


# Numbers


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize(
    ("space", "options", "size"),
    [
        (SPACES["darts"], {}, (2, 12, 12)),
        (SPACES["egnas"], {"channels": 16, "partial_channels": 4}, (2, 16, 16)),
        (SMALL["darts"], {"channels": 24, "partial_channels": 2, "layers": 4}, (1, 15, 13)),
        (SMALL["egnas"], {"channels": 6, "layers": 2}, (5, 9, 9)),
        (SMALL["darts"], {"stem": "imagenet", "partial_channels": 2, "layers": 2}, (3, 65, 72)),
        (SMALL["egnas"], {"stem": "imagenet", "layers": 1}, (3, 64, 57)),
        *((space, {"partial_channels": k}, (3, 15, 13)) for space in UNUSUAL for k in (1, 2)),
    ],
    ids=lambda value: value.name if isinstance(value, CellSpace) else str(value),
)
def test_float64(space: CellSpace, options: dict[str, Any], size: tuple[int, int, int], training: bool) -> None:
    fused, reference = (network.train(training) for network in pair(space, **options))
    x = images(*size)
    expected = outcome(reference, x)
    agree(outcome(fused, x), expected)
    agree(list(fused.buffers()), list(reference.buffers()))
    agree(outcome(fused, x.contiguous(memory_format=torch.channels_last)), expected)


@pytest.mark.parametrize("draw", range(12))
def test_float64_at_random(draw: int, seed: int) -> None:
    rng = random.Random(seed + draw)
    candidates = (*rng.choices(KNOWN, k=rng.randint(1, 7)), rng.choice(KNOWN[1:]))
    space = CellSpace("random", candidates, rng.random() < 0.5, rng.randint(1, 4))
    parts = rng.choice([1, 2, 4])
    options = {"channels": 2 * parts * rng.randint(1, 3), "layers": rng.randint(1, 4), "partial_channels": parts}
    # After two reductions at least 4×4 values of an image: over fewer, BatchNorm can amplify rounding a thousandfold.
    x = images(rng.randint(1, 5), rng.randint(13, 20), rng.randint(13, 20))
    print(space, options, x.shape)
    fused, reference = (network.train(draw % 3 > 0) for network in pair(space, **options))
    agree(outcome(fused, x), outcome(reference, x), 1e-9)


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize(
    ("space", "options"),
    [
        (SPACES["darts"], {}),
        (SMALL["darts"], {"channels": 8, "partial_channels": 2, "layers": 4}),
        (SPACES["egnas"], {"channels": 16, "partial_channels": 4}),
        (UNUSUAL[0], {"layers": 2}),
    ],
    ids=["darts", "darts-2", "egnas-4", "seven"],
)
def test_float32(space: CellSpace, options: dict[str, Any], training: bool) -> None:
    """Forward within 1e-5 and gradients within 1e-4 of float64, relative to the largest value of each tensor.

    The last cell still has 4×4 values of each of 4 images. Over fewer, 1/σ of a channel that happens to be nearly
    constant amplifies rounding beyond any such bound, in plain torch as well. Also a value may lie so near to 0 that
    ReLU decides otherwise than in float64, or two so near to each other that a pool does: a draw with such a value may
    miss the bound, but rarely; three in a row do not.
    """
    for _ in range(3):
        fused, reference = (network.train(training) for network in pair(space, **options))
        x = images(4)
        expected = outcome(reference, x)
        logits, *gradients = outcome(fused.float(), x.float())
        forward = error(logits, expected[0])
        backward = max(map(error, gradients, expected[1:]))
        if forward <= 1e-5 and backward <= 1e-4:
            return
    pytest.fail(f"forward {forward:.1e}, gradients {backward:.1e}")


def test_given_weights_and_their_gradient() -> None:
    fused, reference = pair(partial_channels=2)
    x, tables = images(), {kind: torch.randn(5, 8, dtype=torch.float64) for kind in CELL_KINDS}
    results = []
    for network in (fused, reference):
        given = {kind: table.clone().requires_grad_() for kind, table in tables.items()}
        network(x, given).square().sum().backward()
        results.append([given[kind].grad for kind in CELL_KINDS])
    agree(results[0], results[1])


# Statistics


def test_running_statistics_follow() -> None:
    fused, reference = pair(partial_channels=2)
    for norm in [*norms(fused), *norms(reference)]:
        norm.momentum = 0.3
    steps = [(images(2), torch.tensor([step % 5, 0])) for step in range(4)]
    agree(train(fused, steps), train(reference, steps))
    before = [buffer.clone() for buffer in fused.buffers()]
    agree(before, list(reference.buffers()))
    assert {norm.num_batches_tracked.item() for norm in norms(fused)} == {4}
    with torch.no_grad():
        agree([fused(steps[0][0])], [reference(steps[0][0])])
    agree(list(fused.buffers()), list(reference.buffers()))
    assert {norm.num_batches_tracked.item() for norm in norms(fused)} == {5}


@pytest.mark.parametrize("each", [2, 4])
def test_individual_statistics_leave_them_alone(each: int) -> None:
    """Several individuals in a batch of four dimensions are computed edge by edge."""
    fused, reference = pair(fallback=each < 4)
    x, before = images(4), [buffer.clone() for buffer in fused.buffers()]
    with individual_statistics(fused, each), individual_statistics(reference, each):
        agree(outcome(fused, x), outcome(reference, x))
    assert all(map(torch.equal, fused.buffers(), before))


def test_evaluation_leaves_them_alone() -> None:
    fused, _ = pair()
    before = [buffer.clone() for buffer in fused.buffers()]
    outcome(fused.eval(), images())
    assert all(map(torch.equal, fused.buffers(), before))


# Training


@pytest.mark.cpu_only
def test_loss_curves_differ_less_than_those_of_two_seeds() -> None:
    """50 steps in float32: rounding grows, but the curve of the reference with another seed is farther away."""
    generator = torch.Generator().manual_seed(0)
    prototypes = torch.randn(5, 3, 8, 8, generator=generator)
    labels = torch.randint(5, (50, 16), generator=generator)
    steps = [(prototypes[row] + torch.randn(16, 3, 8, 8, generator=generator), row) for row in labels]
    curves = []
    for seed, backend in ((0, "fused"), (0, "reference"), (1, "reference")):
        torch.manual_seed(seed)
        network = Supernet(FEW, channels=4, layers=2, num_classes=5, backend=backend)
        curves.append(torch.stack(train(network, steps, rate=0.02)))
    fused, same, other = curves
    assert fused[-10:].mean() < 0.7 * fused[:10].mean(), "it learns"
    assert (fused - same).abs().mean() < 0.5 * (other - same).abs().mean()


# Populations


@pytest.mark.parametrize("mode", ["running", "batch"])
@pytest.mark.parametrize(
    ("space", "options"),
    [
        (SMALL["darts"], {"layers": 1}),
        (SPACES["egnas"], {"layers": 2, "partial_channels": 4, "channels": 8}),
        (UNUSUAL[1], {"partial_channels": 2}),
        (UNUSUAL[3], {}),
    ],
    ids=["darts-1", "egnas-4", "twice-2", "skip"],
)
def test_population(space: CellSpace, options: dict[str, Any], mode: Any) -> None:
    fused, reference = pair(space, **options)
    x, individuals = images(), 5
    shape = (individuals, *fused.alphas["normal"].shape)
    alphas = {kind: torch.randn(shape, dtype=torch.float64) for kind in CELL_KINDS}
    expected = reference.population_logits(x, alphas, bn_mode=mode)
    for chunk in (1, 2, 3, individuals, "auto"):
        agree([fused.population_logits(x, alphas, chunk, mode)], [expected])
    one = {kind: table[:1] for kind, table in alphas.items()}
    agree([fused.population_logits(x, one, bn_mode=mode)], [expected[:1]])
    fused.float()
    alphas = {kind: table.float() for kind, table in alphas.items()}
    single = fused.population_logits(x.float(), alphas, 1, mode)
    for chunk in (2, 3, individuals):
        assert error(fused.population_logits(x.float(), alphas, chunk, mode), single.double()) <= 1e-6
