"""The evolution step of EG-NAS as the paper has it, and what all variants share."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from cmaes import CMA
from egnas_search import (
    FakeSearch,
    Recorder,
    Scripted,
    Toy,
    alpha_of,
    assert_interruptible,
    batch,
    by_kind,
    calibrated,
    loss_of,
    tiny_supernet,
)
from torch import Tensor, nn

from fastnas.engine.interrupt import Interrupted
from fastnas.nn.batch_norm import individual_statistics
from fastnas.spaces import CELL_KINDS, encoding_of
from fastnas.strategies.alpha_vector import AlphaVector
from fastnas.strategies.egnas import EGNAS
from fastnas.strategies.egnas_fitness import similarity
from fastnas.strategies.egnas_variants import VARIANTS

# --- the step as a whole ----------------------------------------------------------------------------------------------


def score_by_hand(network: Toy, z: Tensor, epoch: int) -> tuple[float, float]:
    """Loss and accuracy of z [2, E, O] on the batch of an epoch."""
    images, labels = batch(epoch, 0)
    logits = network.answer(images, torch.softmax(z, -1)[None])[0].double()  # [B, classes]
    return F.cross_entropy(logits, labels).item(), (logits.argmax(-1) == labels).double().mean().item()


def paper_step(network: Toy, alpha: Tensor, search: FakeSearch, epoch: int, step: int, **options: Any) -> Tensor:
    """One evolution step, written down from the paper: α [2, E, O] → α."""
    population, samples, generations = options["population"], options["samples"], options["generations"]
    _, current_accuracy = score_by_hand(network, alpha, epoch)
    winners = []
    for sample in range(samples):
        generator = torch.Generator().manual_seed(search.seed_for(step, sample, 0))
        mean = alpha + 0.01 * torch.randn(alpha.shape, generator=generator, dtype=torch.float64).float()
        cma = CMA(
            mean.flatten().double().numpy(),
            max(0.02, 1 / (step + 1)),
            seed=search.seed_for(step, sample, 1),
            population_size=population,
        )
        scored: list[tuple[float, float, Tensor]] = []

        def fitness(z: Tensor, scored: list[tuple[float, float, Tensor]] = scored) -> float:
            loss, accuracy = score_by_hand(network, z, epoch)
            likeness = (1 + F.cosine_similarity(alpha.flatten(), z.flatten(), dim=0).item()) / 2
            value = loss + 0.4 * likeness if current_accuracy <= accuracy else loss - 0.4 * likeness
            scored.append((value, accuracy, z))
            return value

        for _ in range(generations):
            asked = [cma.ask() for _ in range(population)]
            cma.tell([(x, fitness(torch.from_numpy(x).float().view(alpha.shape))) for x in asked])
        fitness(torch.from_numpy(cma.mean.copy()).float().view(alpha.shape))
        winners.append(min(scored, key=lambda one: one[0]))
    z = max(winners, key=lambda winner: (winner[1], -winner[0]))[2]
    alpha = alpha + 0.1 * torch.softmax(z, -1)
    return alpha - alpha.mean(-1, keepdim=True)


@pytest.mark.parametrize("generations", [1, 3])
def test_steps_by_hand(generations: int, seed: int) -> None:
    """Three epochs of the strategy are three steps of the paper."""
    options: dict[str, Any] = {"population": 8, "samples": 3, "generations": generations}
    network = Toy()
    search = FakeSearch(network, EGNAS(warm_up=0, **options), seed=seed)
    alpha = alpha_of(network)
    for epoch in range(3):
        alpha = paper_step(network, alpha, search, epoch, step=epoch, **options)
        search.run(epoch, epoch)
        torch.testing.assert_close(alpha_of(network), alpha, rtol=0, atol=1e-6)


def test_counts_154_individuals() -> None:
    """1 + N·(λ·T + 1) at the published settings."""
    network = Toy(edges=14)
    FakeSearch(network, EGNAS(warm_up=0)).run(0, 0)
    assert network.individuals == 154
    network = Toy()
    FakeSearch(network, EGNAS(warm_up=0, population=6, samples=2, generations=3)).run(0, 0)
    assert network.individuals == 1 + 2 * (6 * 3 + 1)
    assert set(network.modes) == {"batch"}


def test_waits_for_the_warm_up() -> None:
    network = Toy()
    before = alpha_of(network)
    search = FakeSearch(network, EGNAS(warm_up=3, population=4)).run(0, 2)
    assert torch.equal(alpha_of(network), before)
    assert not network.scored
    assert not search.log.all
    search.run(3, 3)
    assert not torch.equal(alpha_of(network), before)
    assert [event["epoch"] for event in search.log.named("update")] == [3]


@pytest.mark.parametrize("when", ["before", "after"])
def test_evolves_before_or_after_the_weight_steps(when: Any) -> None:
    network = Toy()
    search = FakeSearch(network, EGNAS(warm_up=0, population=4, evolve=when))
    search.strategy.before_epoch(search.search)
    assert bool(network.scored) == (when == "before")
    search.strategy.after_epoch(search.search)
    assert len(search.log.named("update")) == 1


# --- populations ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        (None, [1, 1 / 2, 1 / 3, 1 / 4]),
        ("es_step", [1, 1 / 2, 1 / 3, 1 / 4]),
        ("global_epoch", [1 / 3, 1 / 4, 1 / 5, 1 / 6]),
        ("constant", [1, 1, 1, 1]),
    ],
)
def test_sigma_schedules(schedule: Any, expected: list[float], cma_runs: list[Recorder]) -> None:
    strategy = EGNAS(warm_up=2, population=4, samples=2, sigma_schedule=schedule)
    search = FakeSearch(Toy(), strategy).run(0, 5)
    assert [event["sigma"] for event in search.log.named("update")] == pytest.approx(expected)
    assert [run.sigma for run in cma_runs] == pytest.approx([sigma for sigma in expected for _ in range(2)])


def test_sigma_has_a_floor() -> None:
    by_step, by_epoch = EGNAS(sigma=2.0), EGNAS(sigma_schedule="global_epoch", sigma_floor=0.03)
    assert by_step.step_size_of(0, epoch=15) == 2
    assert by_step.step_size_of(98, epoch=113) == pytest.approx(0.0202, abs=1e-4)
    assert by_step.step_size_of(99, epoch=114) == by_step.step_size_of(500, epoch=515) == 0.02
    assert by_epoch.step_size_of(0, epoch=32) == pytest.approx(1 / 33)
    assert by_epoch.step_size_of(0, epoch=33) == 0.03
    assert EGNAS(sigma_schedule="constant", sigma=0.01).step_size_of(7, epoch=9) == 0.01


def test_populations_are_independent(cma_runs: list[Recorder]) -> None:
    """Every sample has noise and random numbers of its own, in every epoch."""
    network = Toy(edges=14)
    alpha = alpha_of(network)
    FakeSearch(network, EGNAS(warm_up=0, population=6, sigma_schedule="constant")).run(0, 1)
    assert len(cma_runs) == 6
    normals = [run.samples[0] - run.first_mean.double() for run in cma_runs]  # [λ, n]
    noises = [run.first_mean.view(alpha.shape) - alpha for run in cma_runs[:3]]
    for one in range(6):
        for other in range(one):
            assert not torch.equal(normals[one], normals[other])
            assert abs(torch.corrcoef(torch.stack([normals[one].flatten(), normals[other].flatten()]))[0, 1]) < 0.2
    for one in range(3):
        assert noises[one].std().item() == pytest.approx(0.01, rel=0.3)
        assert abs(noises[one].mean()) < 0.004  # around α itself, in logits
        for other in range(one):
            assert not torch.equal(noises[one], noises[other])


def test_noise_option(cma_runs: list[Recorder]) -> None:
    network = Toy()
    alpha = alpha_of(network)
    FakeSearch(network, EGNAS(warm_up=0, population=4, noise=0.0)).run(0, 0)
    assert all(torch.equal(run.first_mean.view(alpha.shape), alpha) for run in cma_runs)


def test_every_generation_is_told(cma_runs: list[Recorder]) -> None:
    network = Toy()
    search = FakeSearch(network, EGNAS(warm_up=0, population=5, samples=2, generations=3)).run(0, 0)
    assert [run.generation for run in cma_runs] == [3, 3]
    events = search.log.named("population")
    assert [(event["sample"], event["generation"]) for event in events] == [(n, t) for n in range(2) for t in range(3)]
    # What was scored is what was asked for, and at the end the mean that came out.
    for sample, run in enumerate(cma_runs):
        first = 1 + sample * 4
        for generation in range(3):
            asked = torch.softmax(run.samples[generation].view(5, 2, 2, 7).float(), -1)
            assert torch.equal(network.scored[first + generation], asked)
        assert torch.equal(network.scored[first + 3], torch.softmax(run.mean.view(1, 2, 2, 7).float(), -1))
        assert not torch.equal(run.samples[0].mean(0), run.samples[1].mean(0))


def test_the_mean_can_win() -> None:
    """Where the loss is a bowl, the recombined mean is better than every sample of a large population."""

    class Bowl(Toy):
        def answer(self, x: Tensor, weights: Tensor) -> Tensor:
            _, labels = batch(0, 0)
            distance = (weights - weights.new_full((7,), 1 / 7)).square().sum((1, 2, 3))  # [P]
            return (-20 * distance[:, None, None]) * F.one_hot(labels, 4) + 1e-3 * F.one_hot(labels, 4)

    network = Bowl()
    with torch.no_grad():
        for alpha in network.alphas.values():
            alpha.zero_()
    search = FakeSearch(network, EGNAS(warm_up=0, population=40, samples=1, eta=0.0)).run(0, 0)
    best = search.log.named("update")[0]["best_fitness"]
    assert best < min(search.log.named("population")[0]["fitness"])
    moved = 0.1 * network.scored[2][0]  # [2, E, O]
    torch.testing.assert_close(alpha_of(network), moved - moved.mean(-1, keepdim=True))


# --- winners ----------------------------------------------------------------------------------------------------------

WORSE = (2, 3.0)


def moved_by(network: Scripted, before: Tensor, call: int, individual: int) -> Tensor:
    """α [2, E, O] after a step that was won by an individual of a call of the network."""
    moved = before + 0.1 * network.scored[call][individual]
    return moved - moved.mean(-1, keepdim=True)


def run_script(
    special: dict[tuple[int, int], tuple[int, float]], **options: Any
) -> tuple[Scripted, Tensor, FakeSearch]:
    """A step in which the individuals `special` (call, place) score as given and all others the same."""
    network = Scripted(lambda call, individual: special.get((call, individual), WORSE))
    before = alpha_of(network)
    search = FakeSearch(network, EGNAS(**{"warm_up": 0, "population": 5, "eta": 0.0, **options})).run(0, 0)
    return network, before, search


def test_winner_has_the_highest_accuracy() -> None:
    # Sample 0 has the lowest loss of all, sample 2 the highest accuracy; within each, the loss decides.
    sure, right = (6, 1.2), (7, 0.3)
    assert loss_of(*sure) < loss_of(*right) < loss_of(*WORSE)
    network, before, search = run_script({(1, 3): sure, (5, 1): right, (5, 2): (8, 0.05)})
    assert loss_of(8, 0.05) > loss_of(*right)  # so the most accurate of its population does not win there
    assert torch.equal(alpha_of(network), moved_by(network, before, 5, 1))
    update = search.log.named("update")[0]
    assert update["best_accuracy"] == 7 / 8
    assert update["current_accuracy"] == 2 / 8
    assert update["best_fitness"] == pytest.approx(loss_of(*right))


def test_equally_accurate_winners_are_told_apart_by_fitness() -> None:
    network, before, _ = run_script({(1, 3): (6, 1.0), (3, 4): (6, 1.2), (5, 0): (6, 1.1)})
    assert torch.equal(alpha_of(network), moved_by(network, before, 3, 4))


def test_winner_can_go_by_fitness() -> None:
    """Among the samples' best individuals, too; then accuracy does not count."""
    sure, right = (6, 1.2), (7, 0.3)
    network, before, search = run_script({(1, 3): sure, (5, 1): right}, winner="fitness")
    assert torch.equal(alpha_of(network), moved_by(network, before, 1, 3))
    update = search.log.named("update")[0]
    assert update["best_loss"] == update["best_fitness"] == pytest.approx(loss_of(*sure))


def test_first_of_equals_wins() -> None:
    network, before, _ = run_script({})
    assert torch.equal(alpha_of(network), moved_by(network, before, 1, 0))


def test_best_of_all_generations_wins() -> None:
    # Calls of a sample: three generations, then the mean.
    network, before, _ = run_script({(2, 1): (7, 2.0), (3, 0): (7, 1.5)}, generations=3, samples=1)
    assert torch.equal(alpha_of(network), moved_by(network, before, 2, 1))
    network, before, _ = run_script({(1, 4): (7, 2.0), (2, 0): (7, 1.5), (4, 0): (7, 1.9)}, generations=3, samples=1)
    assert torch.equal(alpha_of(network), moved_by(network, before, 1, 4))


@pytest.mark.parametrize("form", ["eq3", "rebased"])
def test_equal_accuracy_is_penalised(form: Any) -> None:
    """The fitness in the log is equation 3 with the sign of "at least as accurate as α"."""
    script = {(0, 0): (5, 1.0), (1, 0): (4, 1.0), (1, 1): (5, 1.0), (1, 2): (6, 1.0)}
    _, _, search = run_script(script, samples=1, eta=0.4, zeta=1.5, fitness=form)
    event = search.log.named("population")[0]
    assert event["accuracy"][:3] == [4 / 8, 5 / 8, 6 / 8]
    assert event["loss"][:3] == pytest.approx([loss_of(4, 1.0), loss_of(5, 1.0), loss_of(6, 1.0)])
    differences = [value - 1.5 * loss for value, loss in zip(event["fitness"], event["loss"], strict=True)]
    assert differences[1] > 0
    assert differences[2] > 0
    assert (differences[0] < 0) == (form == "eq3")
    assert all(abs(difference) <= 0.4 for difference in differences)


def test_similarity_in_the_log(cma_runs: list[Recorder]) -> None:
    """What is compared with α are the samples as they were drawn; both terms of the fitness are logged."""
    for kind in ("flat_logits", "edge_mean", "edge_mean_probabilities"):
        cma_runs.clear()
        _, before, search = run_script({}, samples=1, eta=0.4, similarity=kind)
        event = search.log.named("population")[0]
        likeness = similarity(by_kind(before), by_kind(cma_runs[0].samples[0].view(-1, *before.shape).float()), kind)
        expected = [loss_of(*WORSE) + 0.4 * value for value in likeness.tolist()]
        assert event["fitness"] == pytest.approx(expected, rel=1e-6)
        assert event["similarity"] == pytest.approx(likeness.tolist(), rel=1e-6)


def test_nan_loses() -> None:
    network, before, search = run_script({(1, 0): (6, math.nan), (1, 2): (3, 1.0)}, samples=1)
    assert search.log.named("population")[0]["fitness"][0] == math.inf
    assert torch.equal(alpha_of(network), moved_by(network, before, 1, 2))


def test_nothing_but_nan_is_survived() -> None:
    network = Scripted(lambda call, individual: (4, math.nan))
    FakeSearch(network, EGNAS(warm_up=0, population=5, generations=2)).run(0, 1)
    assert alpha_of(network).isfinite().all()


# --- how α moves ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("center", [True, False])
@pytest.mark.parametrize("step_size", [0.1, 0.6])
def test_update_softmax(center: bool, step_size: float) -> None:
    network, before, _ = run_script({(1, 2): (7, 2.0)}, samples=1, center=center, step_size=step_size)
    expected = before + step_size * network.scored[1][2]
    if center:
        expected = expected - expected.mean(-1, keepdim=True)
    assert torch.equal(alpha_of(network), expected)
    row_sums = alpha_of(network).sum(-1)
    if center:
        assert row_sums.abs().max() < 1e-6
    else:
        torch.testing.assert_close(row_sums, before.sum(-1) + step_size)


@pytest.mark.parametrize("center", [True, False])
def test_update_delta(center: bool, cma_runs: list[Recorder]) -> None:
    network, before, _ = run_script({(1, 2): (7, 2.0)}, samples=1, update="delta", center=center)
    z = cma_runs[0].samples[0][2].view(before.shape).float()
    expected = before + 0.1 * (z - before)
    if center:
        expected = expected - expected.mean(-1, keepdim=True)
    assert torch.equal(alpha_of(network), expected)


# --- what is left alone -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["batch", "running"])
@pytest.mark.parametrize("training", [True, False])
def test_statistics_and_training_flag_stay(mode: Any, training: bool) -> None:
    network = tiny_supernet()
    strategy = EGNAS(warm_up=0, population=4, samples=2, bn_mode=mode)
    search = FakeSearch(network, strategy)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    network.train(training)
    strategy.after_epoch(search.search)
    assert all(module.training is training for module in network.modules())
    changed = {name for name, tensor in network.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == {"alphas.normal", "alphas.reduce"}


def test_alpha_has_no_gradient() -> None:
    network = tiny_supernet()
    strategy = EGNAS(warm_up=0, population=4, samples=1)
    search = FakeSearch(network, strategy)
    for epoch in range(2):
        search.run(epoch, epoch)
        images, labels = batch(epoch, 1)
        F.cross_entropy(strategy.logits(search.search, images), labels).backward()
    clipped = strategy.clipped_parameters(search.search)
    assert [id(p) for p in clipped] == [id(p) for p in network.weight_parameters()]
    assert all(parameter.grad is not None for parameter in clipped)
    assert all(not alpha.requires_grad and alpha.grad is None for alpha in network.alphas.values())
    assert strategy.state_dict() == {"evolution_step": 2, "pending": None, "alpha_grads": {}}


# --- batches ----------------------------------------------------------------------------------------------------------


def test_scores_on_one_batch_of_the_epoch() -> None:
    search = FakeSearch(Toy(), EGNAS(warm_up=1, population=4, samples=1, fitness_batch_size=77)).run(0, 2)
    assert search.batch_sizes == [77]
    assert set(search.batches.served) == {(1, 0), (2, 0)}


def test_batches_are_averaged() -> None:
    network = Toy()
    search = FakeSearch(network, EGNAS(warm_up=0, population=4, samples=1, fitness_batches=3)).run(0, 0)
    assert set(search.batches.served) == {(0, 0), (0, 1), (0, 2)}
    event = search.log.named("population")[0]
    population = network.scored[3]  # calls 0 to 2 scored α
    images, labels = (torch.cat(parts) for parts in zip(*(batch(0, step) for step in range(3)), strict=True))
    logits = network.answer(images, population).double()  # [P, 24, classes]
    losses = [F.cross_entropy(each, labels).item() for each in logits]
    assert event["loss"] == pytest.approx(losses, rel=1e-6)
    assert event["accuracy"] == [(each.argmax(-1) == labels).sum().item() / 24 for each in logits]


@pytest.mark.parametrize("more", [-1, 0, 1])
def test_equal_accuracy_over_batches_is_equal(more: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """However the correct images are spread over the batches, the same number of them is a tie."""
    monkeypatch.setattr("egnas_search.IMAGES", 7)  # sevenths are rounded, eighths are not
    current = (0, 1, 5)  # a mean of three means is larger here than for others of the same sum
    spreads = [triple for triple in itertools.product(range(7), repeat=3) if sum(triple) == sum(current) + more]

    def script(call: int, individual: int) -> tuple[int, float]:
        return (current if call < 3 else spreads[individual])[call % 3], 1.0

    strategy = EGNAS(warm_up=0, population=len(spreads), samples=1, fitness_batches=3, zeta=0.0)
    search = FakeSearch(Scripted(script), strategy).run(0, 0)
    fitness = search.log.named("population")[0]["fitness"]
    assert all((value > 0) == (more >= 0) for value in fitness)


# --- repeating and resuming -------------------------------------------------------------------------------------------


def test_seed_decides() -> None:
    def outcome(seed: int) -> tuple[Tensor, list[dict[str, Any]]]:
        torch.randn(seed)  # the global generator has no part in it
        network = tiny_supernet()
        torch.randn(seed)
        search = FakeSearch(network, EGNAS(warm_up=0, population=5, samples=2), seed=seed).run(0, 1)
        return alpha_of(network), search.log.all

    alpha, events = outcome(4)
    again, events_again = outcome(4)
    other, events_other = outcome(5)
    assert torch.equal(alpha, again)
    assert events == events_again
    assert not torch.equal(alpha, other)
    assert events != events_other


def test_interruption_changes_nothing() -> None:
    assert_interruptible(Toy, population=4, samples=3, generations=2)
    assert_interruptible(Toy, population=4, samples=2, fitness_batches=2, update="delta")


def test_interruption_of_a_real_network_changes_nothing() -> None:
    assert_interruptible(tiny_supernet, population=4, samples=2, epochs=1)
    assert_interruptible(tiny_supernet, population=4, generations=2, epochs=1, variant="decided")


def test_checkpoint_of_an_interrupted_step_is_small() -> None:
    """A winner does not drag its whole population into the checkpoint."""
    strategy = EGNAS(warm_up=0, population=30)
    with pytest.raises(Interrupted):
        FakeSearch(Toy(), strategy, stop_at=1).run(0, 0)
    winner = strategy.state_dict()["pending"]["winners"][0]["z"]
    assert winner.untyped_storage().nbytes() == winner.numel() * winner.element_size()


def test_state_is_a_snapshot() -> None:
    """Going on after `state_dict` or `load_state_dict` does not change the state."""
    search = FakeSearch(Toy(), EGNAS(warm_up=0, population=4, generations=2), stop_at=3)
    with pytest.raises(Interrupted):
        search.run(0, 0)
    state = search.strategy.state_dict()
    outcomes = []
    for _ in range(2):
        continued = FakeSearch(Toy(), EGNAS(warm_up=0, population=4, generations=2))
        continued.strategy.load_state_dict(state)
        outcomes.append(alpha_of(continued.run(0, 0).network))
        search.run(0, 0)
    assert torch.equal(*outcomes)
    assert len(state["pending"]["winners"]) == 1
    assert len(state["pending"]["run"]["told"]) == 1


# --- kinds of cells ---------------------------------------------------------------------------------------------------


def test_kinds_are_in_order() -> None:
    """Index 0 of every [2, E, O] is the normal cell, in and out of the network."""
    assert CELL_KINDS == ("normal", "reduce")
    network = Toy()
    with torch.no_grad():
        network.alphas["normal"].fill_(0.0)
    FakeSearch(network, EGNAS(warm_up=0, population=4)).run(0, 0)
    assert torch.equal(network.scored[0][0, 0], torch.full((2, 7), 1 / 7))
    assert not torch.equal(network.scored[0][0, 1], torch.full((2, 7), 1 / 7))


def test_tables_of_unequal_shape_are_one_vector() -> None:
    tables = {"one": torch.randn(2, 3), "other": torch.randn(4, 5), "third": torch.randn(1, 1)}
    vector = AlphaVector(tables)
    flat = vector.flatten(tables)
    assert flat.tolist() == [value for table in tables.values() for value in table.flatten().tolist()]
    population = torch.stack([flat, 2 * flat])
    assert {kind: tuple(table.shape) for kind, table in vector.split(population).items()} == {
        "one": (2, 2, 3), "other": (2, 4, 5), "third": (2, 1, 1)
    }  # fmt: skip
    assert all(torch.equal(vector.split(flat)[kind], table) for kind, table in tables.items())
    sums = vector.by_row(lambda table: table.sum(-1, keepdim=True).expand_as(table), vector.softmax(population))
    torch.testing.assert_close(sums, torch.ones_like(population))


@pytest.mark.parametrize("variant", VARIANTS)
def test_any_kinds_of_cells(variant: Any) -> None:
    """One kind, and two whose tables differ in shape: all of α moves."""

    class Uneven(Toy):
        def __init__(self, shapes: dict[str, tuple[int, int]]) -> None:
            super().__init__()
            self.alphas = nn.ParameterDict({kind: nn.Parameter(torch.randn(shape)) for kind, shape in shapes.items()})

        def population_logits(self, x: Tensor, alphas: dict[str, Tensor], chunk: int, bn_mode: str) -> Tensor:
            sums = sum((table.softmax(-1).square().sum((1, 2)) for table in alphas.values()), torch.zeros(()))  # [P]
            return sums[:, None, None] * torch.ones(len(x), 4).cumsum(-1)

        def forward(self, x: Tensor, op_weights: dict[str, Tensor]) -> Tensor:
            return self.population_logits(x, {kind: table[None] for kind, table in op_weights.items()}, 1, "")[0]

    for shapes in ({"normal": (6, 5)}, {"low": (2, 3), "high": (4, 5)}):
        network = Uneven(shapes)
        before = {kind: alpha.detach().clone() for kind, alpha in network.alphas.items()}
        FakeSearch(network, EGNAS(variant=variant, warm_up=0, population=4, score="mixture")).run(0, 0)
        for kind, alpha in network.alphas.items():
            assert alpha.shape == before[kind].shape
            assert not torch.equal(alpha, before[kind])


# --- paths and cells --------------------------------------------------------------------------------------------------


def test_a_path_is_drawn_from_alpha() -> None:
    """A weight step trains a cell: those candidates and edges often that weigh most, and always the same ones where α
    is decided."""
    network = tiny_supernet()
    strategy = EGNAS(variant="decided", warm_up=0, population=4)
    search = FakeSearch(network, strategy)
    images, _ = batch(0, 0)
    drawn = []
    for step in range(3):
        search.step = step
        strategy.logits(search.search, images).sum().backward()
        trained = {name for name, p in network.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
        drawn.append(trained)
        network.zero_grad()
    assert drawn[0] != drawn[1] != drawn[2]
    with torch.no_grad():
        for alpha in network.alphas.values():
            alpha[:, 3] += 50.0
            alpha += 100.0 * torch.arange(len(alpha))[:, None]  # no effect within a row
    generator = torch.Generator().manual_seed(0)
    paths = [strategy._scores.drawn_path(generator) for _ in range(4)]
    for path in paths:
        for table in path.values():
            assert set(table.sum(-1).tolist()) <= {0.0, 1.0}
            assert table.sum() == table[:, 3].sum() == 8


def test_individuals_are_scored_as_cells() -> None:
    """Loss and accuracy are those of the derived cell alone, by the statistics of the batch."""
    network = calibrated()
    strategy = EGNAS(warm_up=0, population=4, samples=1, score="cell", eta=0.0)
    search = FakeSearch(network, strategy)
    z = torch.randn(3, 2 * 14 * 7)
    images, labels = batch(0, 0)
    loss, accuracy = strategy._scores.of(z, [(images, labels)])
    encoding = encoding_of(network.space)
    for index in range(3):
        cell = network.space.derive(
            {kind: table.softmax(-1) for kind, table in strategy._vector.split(z[index]).items()}
        )
        path = encoding.op_weights(encoding.encode(cell))
        with torch.no_grad(), individual_statistics(network, len(images)):
            logits = network.path_logits(images, path)
        assert loss[index].item() == pytest.approx(F.cross_entropy(logits, labels).item(), rel=1e-5)
        assert accuracy[index].item() == (logits.argmax(-1) == labels).double().mean().item()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    search.run(0, 0)
    changed = {name for name, tensor in network.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == {"alphas.normal", "alphas.reduce"}
