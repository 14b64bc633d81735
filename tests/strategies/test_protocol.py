"""What engine and strategies promise each other: the context of a search, the registry, and what a class declares."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch
from test_every_strategy import make

from fastnas.errors import UserError
from fastnas.strategies import STRATEGIES, Strategy, create, find, parse, register_strategy
from fastnas.strategies.context import SearchContext
from fastnas.strategies.egnas import EGNAS
from fastnas.strategies.gradient import GradientStrategy
from fastnas.strategies.wrapper import StrategyWrapper

HOOKS = [name for name, value in vars(Strategy).items() if inspect.isfunction(value) and not name.startswith("_")]


def test_a_search_is_a_search_context(tmp_path: Path):
    search = make(tmp_path / "run", "egnas")
    search.batch = torch.zeros(1), torch.zeros(1)  # there from the first weight step on
    assert isinstance(search, SearchContext)
    for name in [name for name in vars(SearchContext) if not name.startswith("_")]:
        assert inspect.getdoc(inspect.getattr_static(SearchContext, name)), f"{name} has no docstring"


# --- the registry ---


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> dict[str, type[Strategy]]:
    """The registry, for a test that adds to it."""
    copy = dict(STRATEGIES)
    monkeypatch.setattr("fastnas.strategies.registry.STRATEGIES", copy)
    return copy


def test_a_strategy_registers_by_its_name(registered):
    @register_strategy
    @dataclass
    class Mine(Strategy):
        name: ClassVar[str] = "mine"

        share: float = 0.5

    assert list(registered) == [*STRATEGIES, "mine"]
    assert find("mine") is Mine
    assert parse("mine:share=0.25") == create("mine", share=0.25) == Mine(0.25)
    assert register_strategy(Mine) is Mine, "a module that is loaded again registers again"


def test_a_name_is_given_once(registered):
    with pytest.raises(ValueError, match=r"Other has the name 'egnas', as fastnas\.strategies\.egnas\.EGNAS has"):

        @register_strategy
        class Other(Strategy):
            name = "egnas"

    assert find("egnas") is EGNAS


def test_strategies_keep_their_order():
    assert list(STRATEGIES) == [
        "egnas", "darts", "pc-darts", "p-darts", "snas", "gdas", "darts-plus", "multi-level", "random",
        "aging-evolution", "genetic", "nsga2", "particle-swarm", "reinforce", "nasnet-ppo", "enas",
    ]  # fmt: skip


# --- plain weight steps ---


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_strategy_says_whether_its_weight_step_is_plain(name: str):
    kind = STRATEGIES[name]
    overrides = kind.logits is not Strategy.logits or kind.penalty is not Strategy.penalty
    assert kind.plain_step is not overrides


@pytest.mark.parametrize("hook", ["logits", "penalty"])
def test_a_promise_of_plain_steps_that_would_be_broken_is_refused(hook: str):
    own = {hook: lambda self, search, *images: 0.0}
    with pytest.raises(TypeError, match=r"Mine overrides logits or penalty, .* set plain_step = False"):
        type("Mine", (Strategy,), {**own, "plain_step": True})
    type("Mine", (Strategy,), {**own, "plain_step": False})


def test_egnas_steps_plainly_where_it_trains_the_mixture():
    class Mine(EGNAS):
        def penalty(self, search):
            return 1.0

    assert [EGNAS().plain_step, EGNAS(weights="paths").plain_step, Mine().plain_step] == [True, False, False]


def test_steps_are_not_plain_unless_a_strategy_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    seen = []

    class Careless(EGNAS):
        def logits(self, search, images):
            seen.append(images.shape)
            return super().logits(search, images)

    monkeypatch.setitem(STRATEGIES, "egnas", Careless)
    search = make(tmp_path / "run", "egnas")
    search.run()
    assert len(seen) == search.epochs * len(search.weight_pipeline)


# --- wrappers ---


class Inner(Strategy):
    """Writes down how its hooks are called, and answers each with an object of its own."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, tuple[Any, ...]]] = []
        silent = [hook for hook in HOOKS if inspect.signature(getattr(Strategy, hook)).return_annotation == "None"]
        self.answers = {hook: None if hook in silent else object() for hook in HOOKS}


def _written_down(hook: str) -> Any:
    def method(self: Inner, *arguments: Any) -> Any:
        self.calls.append((hook, arguments))
        return self.answers[hook]

    return method


for _hook in HOOKS:
    setattr(Inner, _hook, _written_down(_hook))


@pytest.mark.parametrize("hook", HOOKS)
def test_a_wrapper_passes_every_hook_on(hook: str):
    wrapper = StrategyWrapper()
    wrapper.inner = inner = Inner()
    count = len(inspect.signature(getattr(Strategy, hook)).parameters) - 1
    arguments = tuple(object() for _ in range(count))
    given, expected = arguments, inner.answers[hook]
    if hook == "load_state_dict":
        given = ({"inner": arguments[0], "own": 1},)
    if hook == "state_dict":
        expected = {"inner": expected}
    answer = getattr(wrapper, hook)(*given)
    assert inner.calls == [(hook, arguments)]
    assert answer == expected


def test_early_stopping_takes_over_the_betas_of_its_base(tmp_path: Path):
    search = make(tmp_path / "run", "darts-plus")
    betas = {kind: torch.randn(14) for kind in ("normal", "reduce")}
    search.strategy.load_betas(search, betas)
    for kind, beta in betas.items():
        torch.testing.assert_close(search.strategy.inner.betas[kind].detach(), beta)
    with pytest.raises(UserError, match="the strategy 'darts' has no edge weights"):
        create("darts-plus", base="darts").load_betas(SimpleNamespace(), betas)


def test_wrappers_decide_themselves_only_where_they_say_so():
    own = set(vars(STRATEGIES["darts-plus"])) & set(HOOKS)
    assert own == {"work", "after_epoch", "finished", "genotype", "state_dict", "load_state_dict"}
    assert isinstance(create("darts-plus").inner, GradientStrategy)
