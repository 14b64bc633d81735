"""Rehearsals: they measure the run that follows, and leave no trace in it."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from run_files import SMALL, events, same_bits

from fastnas.cli import searching, training
from fastnas.cli.configuration import parse_search, parse_train
from fastnas.cli.images import open_train_sources
from fastnas.engine import rehearsal
from fastnas.engine.checkpoint import load_checkpoint, random_state
from fastnas.engine.evidence import Evidence
from fastnas.engine.forecast import Forecast, fitting_epochs, least_epochs
from fastnas.engine.loop import Loop
from fastnas.engine.rehearsal import TrainingRehearsal, generators_kept
from fastnas.engine.retrain import Retrain
from fastnas.engine.search import Search
from fastnas.errors import UserError
from fastnas.strategies import STRATEGIES, Strategy, create
from fastnas.strategies.base import Work, known_work

STRATEGY_FLAGS = {
    "egnas": "--generations 2 --variant official_imagenet --epochs 2",
    "darts": "",
    "p-darts": "--epochs 3 --warm-up 0 --add-layers-2 1 --add-layers-3 2 --dropout-1 0.3 --partial-channels 1",
    "enas": "--evaluations 4 --children-per-update 2 --derive-samples 2 --split 0.5 --fitness-batch-size 20",
}
TRAINING = shlex.split(
    "--data digits --limit 120 --image-size 8 --genotype PDARTS --channels 2 --layers 3 --batch-size 16 --epochs 2 "
    "--cutout 2 --device cpu --validation 0.2 --ema 0.9 --accumulate 2 --drop-path 0.3"
)


def parts_of(name: str, *flags: str) -> searching.SearchParts:
    common = SMALL if name == "egnas" else [*SMALL[: SMALL.index("--warm-up")], "--device", "cpu", "--epochs", "2"]
    arguments = [*common, "--strategy", name, *shlex.split(STRATEGY_FLAGS.get(name, "")), *flags]
    torch.rand(7)  # whatever state the process is in
    return searching.search_parts(parse_search(arguments, "test", ""))


def measured(parts: Any) -> Any:
    with generators_kept():
        found = parts.rehearsal()
        assert found.measure()
    return found


def last_checkpoint(run: Loop) -> dict[str, Any]:
    state = load_checkpoint(run.checkpoint_path)
    return {key: value for key, value in state.items() if key not in ("seconds", "log_position")}


@pytest.mark.parametrize("name", STRATEGY_FLAGS)
def test_a_search_has_the_same_bits_after_a_rehearsal(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rehearsal, "LONG_ENOUGH", 0.0)
    monkeypatch.chdir(tmp_path)
    checkpoints = []
    for kind in ("without", "with"):
        (tmp_path / kind).mkdir()
        parts = parts_of(name)
        if kind == "with":
            files, before = sorted(tmp_path.rglob("*")), random_state()
            measured(parts)
            assert sorted(tmp_path.rglob("*")) == files
            assert same_bits(random_state(), before)
        search = searching.begin(parts, (), tmp_path / kind)
        assert search.run().status == "finished"
        checkpoints.append(last_checkpoint(search))
    plain, rehearsed = ({**state, "strategy": _timeless(state["strategy"])} for state in checkpoints)
    assert same_bits(plain, rehearsed)
    assert events(tmp_path / "without") == events(tmp_path / "with")


def _timeless(state: Any) -> Any:
    """Without the seconds of [code, accuracy, seconds, costs]."""
    if isinstance(state, dict):
        return {key: _timeless(value) for key, value in state.items()}
    if isinstance(state, list) and len(state) == 4 and isinstance(state[3], dict):
        return [state[0], state[1], state[3]]
    return [_timeless(value) for value in state] if isinstance(state, list) else state


def test_a_training_has_the_same_bits_after_a_rehearsal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rehearsal, "LONG_ENOUGH", 0.0)
    checkpoints = []
    for kind in ("without", "with"):
        options = parse_train(TRAINING, "test", "")
        parts = training.training_parts(options, open_train_sources(options), tmp_path / kind, 0)
        if kind == "with":
            measured(parts)
        retrain = training.begin(parts, (), tmp_path / kind)
        assert retrain.run().status == "finished"
        checkpoints.append(last_checkpoint(retrain))
    assert same_bits(*checkpoints)
    assert events(tmp_path / "without") == events(tmp_path / "with")


# --- what is measured, on a clock that only the parts of a run move ---


class Clock:
    """Every weight step takes 1 s, every validated image 0.1 s."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.time = 0.0
        self.taking(monkeypatch, Search, "_weight_step", lambda images, labels: 1.0)
        self.taking(monkeypatch, Search, "_validate_on", lambda images, labels, meter: 0.1 * len(labels))
        self.taking(monkeypatch, Retrain, "_step", lambda images, labels: 2.0)
        monkeypatch.setattr(rehearsal.Rehearsal, "now", lambda _: self.time)

    def taking(
        self, monkeypatch: pytest.MonkeyPatch, kind: type[Any], name: str, seconds: Callable[..., float]
    ) -> None:
        real = getattr(kind, name)

        def method(loop: Any, *arguments: Any) -> Any:
            self.time += seconds(*arguments)
            return real(loop, *arguments)

        monkeypatch.setattr(kind, name, method)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


@dataclass
class Slow(Strategy):
    """After two epochs every epoch begins with 10 pieces of work, of 3 s each."""

    name: ClassVar[str] = "slow"
    clock: ClassVar[Clock]
    pieces: ClassVar[int] = 0

    def work(self, epoch: int, epochs: int) -> Work | None:
        return Work(own=10.0 if epoch >= 2 else 0.0)

    def before_epoch(self, search: Any) -> None:
        for done in range(10 if search.epoch >= 2 else 0):
            Slow.clock.time += 3.0
            Slow.pieces += 1
            search.show("work", done + 1, 10)


@dataclass
class Silent(Slow):
    """Does something after each step, of which `work` knows nothing."""

    name: ClassVar[str] = "silent"

    def after_step(self, search: Any) -> None: ...


@pytest.fixture
def own(monkeypatch: pytest.MonkeyPatch, clock: Clock) -> None:
    monkeypatch.setattr("fastnas.strategies.registry.STRATEGIES", {**STRATEGIES, "slow": Slow, "silent": Silent})
    monkeypatch.setattr(Slow, "clock", clock, raising=False)
    monkeypatch.setattr(Slow, "pieces", 0)


@pytest.mark.usefixtures("own")
def test_epochs_are_added_up_from_what_was_measured() -> None:
    parts = parts_of("slow", "--epochs", "3", "--validate-every", "2")
    found = measured(parts)
    assert Slow.pieces == 1, "the work is broken off once it has told how far it is"
    steps, images = len(parts.weight_pipeline), len(parts.valid_pipeline.indices)
    training, validation, work = steps * 1.0, images * 0.1, 30.0
    assert found.forecast(5).epochs == pytest.approx(
        [training, training + validation, training + work, training + validation + work, training + validation + work]
    )
    assert found.forecast(5).seconds(done=3) == pytest.approx(2 * (training + validation + work))
    assert not found.forecast(5).at_most
    assert found.forecast(5).peak_memory_mb > 100


@pytest.mark.usefixtures("own")
def test_work_after_the_counted_pieces_is_timed_where_they_are_few(monkeypatch: pytest.MonkeyPatch) -> None:
    def before_epoch(self: Slow, search: Any) -> None:
        for phase, count, seconds in (("work", 2, 0.1), ("more", 5, 2.0)) if search.epoch >= 2 else ():
            for done in range(count):
                Slow.clock.time += seconds
                Slow.pieces += 1
                search.show(phase, done + 1, count)

    monkeypatch.setattr(Slow, "before_epoch", before_epoch)
    parts = parts_of("slow", "--epochs", "3", "--validate-every", "9")
    found = measured(parts)
    assert Slow.pieces == 3
    assert found.forecast(4).epochs[2] == pytest.approx(parts.steps + 0.2 + 10.0)


def test_the_evidence_at_the_end_is_part_of_the_run(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    def sum_up(self: Evidence, search: Any) -> None:
        for done in (25, 50, 75, 100):
            clock.time += 10.0
            search.show("evidence", done, 100)

    monkeypatch.setattr(Evidence, "sum_up", sum_up)
    found = measured(parts_of("egnas", "--evidence"))
    assert found.forecast(2).end == pytest.approx(40.0)
    assert found.forecast(6).end == pytest.approx(120.0), "a longer search compares its cell on more images"
    assert measured(parts_of("egnas", "--no-evidence")).forecast(2).end == 0


def test_the_finalists_of_a_choosing_strategy_are_counted() -> None:
    found = parts_of(
        "random", "--evaluations", "6", "--fitness-batch-size", "10", "--fitness-batches", "1", "--epochs", "2"
    )
    strategy = found.rehearsal().strategy
    images = len(found.valid_pipeline.indices)
    assert strategy.work(0, 2) == Work(own=0.0)
    assert strategy.work(1, 2) == Work(own=6 + 10 * images / 10)


@pytest.mark.usefixtures("own")
def test_a_strategy_that_does_not_say_what_its_epochs_cost_is_not_estimated() -> None:
    assert not parts_of("silent").rehearsal().measure()


@pytest.mark.usefixtures("clock")
def test_stages_are_measured_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    real = Search._train_on

    def train_on(self: Search, *batch: torch.Tensor) -> None:
        seen.append(self.network.layers)
        real(self, *batch)

    monkeypatch.setattr(Search, "_train_on", train_on)
    measured(parts_of("p-darts"))
    assert sorted(set(seen)) == [3, 4, 5]


@pytest.mark.usefixtures("clock")
def test_a_training_is_added_up(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def image_seconds(self: TrainingRehearsal, pipeline: Any, evaluate: Any) -> float:
        return 0.1 if pipeline is self.valid_pipeline else 0.5

    monkeypatch.setattr(rehearsal.Rehearsal, "image_seconds", image_seconds)
    for select in ("last", "best_test"):
        options = parse_train([*TRAINING, "--validate-every", "2", "--select", select], "test", "")
        parts = training.training_parts(options, open_train_sources(options), tmp_path, 0)
        assert parts.valid_pipeline is not None
        assert parts.test_pipeline is not None
        found = measured(parts).forecast(3)
        steps, valid, test = 2.0 * parts.steps, 0.1 * parts.valid_pipeline.count, 0.5 * parts.test_pipeline.count
        after = valid + test * (select == "best_test")
        assert found.epochs == pytest.approx([steps, steps + after, steps + after])
        assert found.end == pytest.approx(test)
    compiled = training.training_parts(
        parse_train([*TRAINING, "--compile"], "test", ""), open_train_sources(options), tmp_path, 0
    )
    assert not compiled.rehearsal().measure()


def test_recorded_steps_are_counted_once_an_epoch(clock: Clock) -> None:
    """On a GPU the first steps of an epoch run without a graph."""
    found = measured(parts_of("egnas"))
    found._recorded, found._step_seconds = 4, {0: (20.0, 1.0)}
    found._valid_seconds, found._own_seconds = {0: 0.0}, 5.0
    steps = len(found.weight_pipeline)
    assert found.forecast(2).epochs == pytest.approx([20.0 + max(0, steps - 4), 20.0 + max(0, steps - 4) + 4 * 5.0])


@pytest.mark.parametrize("name", STRATEGIES)
def test_every_strategy_says_what_its_epochs_cost(name: str) -> None:
    strategy = create(name)
    epochs = least_epochs(strategy.check_epochs)
    assert all(known_work(strategy, epoch, epochs) is not None for epoch in range(epochs))
    if hasattr(strategy, "budget"):
        done = [known_work(strategy, epoch, 7) for epoch in range(7)]
        assert sum(work.own for work in done if work) == strategy.budget(7)


def test_what_a_function_of_the_user_costs_is_unknown() -> None:
    assert known_work(create("random", evaluator="python:mine:f"), 0, 3) is None
    assert create("darts-plus").ends_early
    assert not create("darts").ends_early


# --- epochs that fit a time ---


def linear(epochs: int) -> Forecast:
    """2 s an epoch, 5 s more from the tenth on, 1 s at the end."""
    return Forecast([2.0 + 5.0 * (epoch >= 10) for epoch in range(epochs)], 1.0, 0.0)


def multiples_of_three(epochs: int) -> None:
    if epochs % 3:
        raise UserError("no")


@pytest.mark.parametrize(
    ("seconds", "epochs"), [(2.9, None), (3.0, 1), (20.9, 9), (21.0, 10), (27.9, 10), (28.0, 11), (7e5 + 1, 100_000)]
)
def test_as_many_epochs_as_fit(seconds: float, epochs: int | None) -> None:
    assert fitting_epochs(linear, lambda n: None, seconds) == epochs


def test_epochs_that_make_no_sense_are_passed_over() -> None:
    assert fitting_epochs(linear, multiples_of_three, 21.0) == 9
    assert fitting_epochs(linear, multiples_of_three, 6.9) is None
    assert fitting_epochs(linear, create("egnas", warm_up=12).check_epochs, 30.0) is None
    assert least_epochs(create("p-darts", warm_up=2).check_epochs) == 9
