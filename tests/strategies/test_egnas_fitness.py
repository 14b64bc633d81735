"""The fitness of EG-NAS as the paper has it, and the options of the strategy."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from egnas_search import FakeSearch, Toy, by_kind
from hypothesis import given
from hypothesis import strategies as st

from fastnas import strategies
from fastnas.errors import UserError
from fastnas.strategies.egnas import EGNAS
from fastnas.strategies.egnas_fitness import compound_fitness, similarity

# --- fitness ----------------------------------------------------------------------------------------------------------


def one_fitness(loss: float, likeness: float, accuracy: float, current: float, **options: Any) -> float:
    values = torch.tensor([[loss], [likeness], [accuracy]], dtype=torch.float64)
    options = {"zeta": 1.0, "eta": 0.4, "form": "eq3", **options}
    return compound_fitness(values[0], values[1], values[2], current, **options).item()


@pytest.mark.parametrize(("accuracy", "expected"), [(0.6, 1.36), (0.5, 1.36), (0.4, 0.64)])
def test_worked_example(accuracy: float, expected: float) -> None:
    """CE 1, L2 0.9, η 0.4: 1.36 for a candidate that is better or equal, 0.64 for a worse one."""
    assert one_fitness(1, 0.9, accuracy, 0.5) == pytest.approx(expected)


@given(
    loss=st.floats(0, 10), likeness=st.floats(0, 1), accuracy=st.floats(0, 1), current=st.floats(0, 1),
    zeta=st.floats(0, 3), eta=st.floats(0, 3), form=st.sampled_from(["eq3", "rebased"]),
)  # fmt: skip
def test_fitness_is_equation_3(
    loss: float, likeness: float, accuracy: float, current: float, zeta: float, eta: float, form: str
) -> None:
    if current <= accuracy:
        expected = zeta * loss + eta * likeness
    elif form == "eq3":
        expected = zeta * loss - eta * likeness
    else:
        expected = zeta * loss + eta * (1 - likeness)
    assert one_fitness(loss, likeness, accuracy, current, zeta=zeta, eta=eta, form=form) == pytest.approx(expected)


def test_rebasing_closes_the_gap() -> None:
    """At equal accuracy the jump shrinks from 2·η·L2 to η·(2·L2 - 1)."""
    for form, jump in (("eq3", 2 * 0.4 * 0.573), ("rebased", 0.4 * (2 * 0.573 - 1))):
        step = one_fitness(1, 0.573, 0.5, 0.5, form=form) - one_fitness(1, 0.573, 0.499, 0.5, form=form)
        assert step == pytest.approx(jump)


def cosine(a: list[float], b: list[float]) -> float:
    dot = sum(x * y for x, y in zip(a, b, strict=True))
    return dot / math.sqrt(sum(x * x for x in a)) / math.sqrt(sum(y * y for y in b))


def soft(row: list[float]) -> list[float]:
    powers = [math.exp(x) for x in row]
    return [power / sum(powers) for power in powers]


@pytest.mark.parametrize("kind", ["flat_logits", "edge_mean", "edge_mean_probabilities"])
def test_similarity_by_hand(kind: str) -> None:
    current, candidates = torch.randn(2, 3, 5).double(), torch.randn(4, 2, 3, 5).double()
    measured = similarity(by_kind(current), by_kind(candidates), kind)  # type: ignore[arg-type]
    assert measured.shape == (4,)
    for candidate, value in zip(candidates, measured.tolist(), strict=True):
        if kind == "flat_logits":
            expected = (1 + cosine(current.flatten().tolist(), candidate.flatten().tolist())) / 2
        else:
            cells = []
            for cell in range(2):
                rows = zip(current[cell].tolist(), candidate[cell].tolist(), strict=True)
                pairs = [(soft(a), soft(z) if kind.endswith("probabilities") else z) for a, z in rows]
                cells.append(sum((1 + cosine(a, z)) / 2 for a, z in pairs) / 3)
            expected = sum(cells) / 2
        assert value == pytest.approx(expected, rel=1e-12)


def test_similarity_of_directions() -> None:
    current = torch.randn(2, 14, 7)
    candidates = torch.stack([3 * current, -current, torch.zeros_like(current)])
    assert similarity(by_kind(current), by_kind(candidates), "flat_logits").tolist() == pytest.approx(
        [1, 0, 0.5], abs=1e-6
    )
    assert similarity(by_kind(current), by_kind(current[None]), "edge_mean_probabilities").item() == pytest.approx(1)


@pytest.mark.parametrize("kind", ["flat_logits", "edge_mean", "edge_mean_probabilities"])
def test_similarity_of_zero_is_a_number(kind: str) -> None:
    zero, some = torch.zeros(2, 14, 7), torch.randn(2, 14, 7)
    for current, candidate in ((zero, some), (some, zero), (zero, zero)):
        value = similarity(by_kind(current), by_kind(candidate[None]), kind).item()  # type: ignore[arg-type]
        assert 0 <= value <= 1 + 1e-6
    if kind != "edge_mean_probabilities":
        assert similarity(by_kind(some), by_kind(zero[None]), kind).item() == 0.5  # type: ignore[arg-type]


# --- options ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"variant": "papper"},
            "variant is 'papper', expected paper, official, official_imagenet, reproduction or decided",
        ),
        ({"variant": None}, "variant is None"),
        ({"sigma_schedule": "epoch"}, "sigma_schedule is 'epoch', expected es_step, global_epoch, constant or None"),
        (
            {"similarity": "cosine"},
            "similarity is 'cosine', expected flat_logits, edge_mean, edge_mean_prob",
        ),
        ({"bn_mode": "eval"}, "bn_mode is 'eval', expected batch, running, train or None"),
        ({"fitness": "eq4"}, "fitness is 'eq4', expected eq3 or rebased"),
        ({"update": "add"}, "update is 'add', expected softmax, delta or None"),
        ({"population": 3}, "population is 3, expected a whole number from 4 to 100,000"),
        ({"samples": 0}, "samples is 0, expected a whole number from 1"),
        ({"generations": 0}, "generations is 0, expected a whole number from 1"),
        ({"warm_up": -1}, "warm_up is -1, expected a whole number from 0"),
        ({"fitness_batch_size": 0}, "fitness_batch_size is 0, expected a whole number from 1"),
        ({"fitness_batches": 0}, "fitness_batches is 0, expected a whole number from 1"),
        ({"sigma": 0.0}, "sigma is 0.0, expected a number above 0"),
        ({"sigma": math.nan}, "sigma is nan"),
        ({"sigma": math.inf}, "sigma is inf"),
        ({"sigma_floor": -0.1}, "sigma_floor is -0.1"),
        ({"cmaes_alias": True}, "cmaes_alias .* variant=official"),
        ({"winner": "loss"}, "winner is 'loss', expected accuracy, fitness or None"),
        ({"evolve": "never"}, "evolve is 'never', expected before, after or None"),
        ({"score": "cell", "bn_mode": "train"}, "score=cell .* bn_mode=batch or running"),
        ({"weights": "paths", "clip_includes_alpha": True}, "no gradient with weights=paths"),
    ],
)
def test_impossible_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        strategies.create("egnas", **options)


@pytest.mark.parametrize(("warm_up", "epochs"), [(15, 15), (15, 3)])
def test_warm_up_must_end(warm_up: int, epochs: int) -> None:
    with pytest.raises(UserError, match=rf"warm_up is {warm_up} epochs, but the search has {epochs}"):
        EGNAS(warm_up=warm_up).check_epochs(epochs)
    EGNAS(warm_up=warm_up).check_epochs(warm_up + 1)


def test_fitness_batches_must_exist() -> None:
    FakeSearch(Toy(), EGNAS(fitness_batches=3))
    with pytest.raises(UserError, match=r"fitness_batches is 4, but the α images fill 3 batches of 128"):
        FakeSearch(Toy(), EGNAS(fitness_batches=4))


def test_strategies_by_name() -> None:
    assert strategies.find("egnas") is EGNAS
    assert strategies.create("egnas", population=10) == EGNAS(population=10)
    with pytest.raises(UserError, match="unknown strategy 'eg-nas': did you mean 'egnas'"):
        strategies.create("eg-nas")
    with pytest.raises(UserError, match=r"unknown strategy 'xyz': expected one of .*egnas"):
        strategies.find("xyz")


def test_defaults_are_the_published_settings() -> None:
    strategy = EGNAS()
    options = {"variant": "paper", "sigma": 1.0, "sigma_floor": 0.02, "noise": 0.01, "zeta": 1.0, "fitness": "eq3"}
    assert {name: getattr(strategy, name) for name in options} == options
    paper = {"population": 50, "samples": 3, "generations": 1, "warm_up": 15, "step_size": 0.1, "eta": 0.4,
             "update": "softmax", "fitness_batch_size": 128, "fitness_batches": 1, "evolve": "after",
             "winner": "accuracy", "weights": "mixture", "score": "mixture"}  # fmt: skip
    program = {"evolve": "before", "winner": "accuracy", "validation_augment": True}
    imagenet = {"samples": 5, "warm_up": 40, "fitness_batch_size": 512, "clip_includes_alpha": False}
    reproduction = {"population": 25, "step_size": 0.6, "cma_seed": "run", "unit_rows": True, "winner_softmaxes": 2}
    for variant, expected in (
        ("paper", paper),
        ("official", paper | program),
        ("official_imagenet", paper | program | imagenet),
        ("reproduction", paper | program | reproduction),
    ):
        rules = EGNAS(variant=variant).rules
        assert {name: getattr(rules, name) for name in expected} == expected
    assert EGNAS.default_space == "egnas"


def test_options_override_the_variant() -> None:
    rules = EGNAS(variant="official", bn_mode="batch", clip_includes_alpha=False, center=True).rules
    assert (rules.bn_mode, rules.clip_includes_alpha, rules.center) == ("batch", False, True)
    assert (rules.sigma_schedule, rules.similarity) == ("constant", "edge_mean")  # the others stay
    assert EGNAS(center=False).rules.center is False  # False is not "not given"
    rules = EGNAS(sigma_schedule="constant", similarity="edge_mean").rules
    assert (rules.sigma_schedule, rules.similarity) == ("constant", "edge_mean")
