"""Rehearsals: the parts of a run are tried and timed, on a network, an optimizer and a strategy that are thrown away.

A rehearsal does what the run will do, through the same code: a few weight steps with the strategy's hooks, a few
batches of the validation, and the work of the strategy's own where `Strategy.work` says that there is any, which is
broken off once it has told for half a second how far it is. That is half a second for each kind of epoch, or two weight
steps where they take longer, of the thousands of a run. It writes no file. The global generators are left as they were,
so the run after it gives the same bits as without it.

What decoding images ahead (dali, torchvision) can no longer hide shows only after the batches that are prepared, so a
run that waits for its images takes longer than a rehearsal says.
"""

from __future__ import annotations

import copy
import dataclasses
import time
from abc import abstractmethod
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager, suppress
from itertools import count
from typing import Any, cast

import torch
from torch import Tensor

from fastnas.data import Pipeline
from fastnas.engine.checkpoint import random_state, set_random_state
from fastnas.engine.cuda_graph import WARM_UP
from fastnas.engine.forecast import Forecast
from fastnas.engine.interrupt import Interrupted
from fastnas.engine.log import SilentLog
from fastnas.engine.loop import Loop, is_validated, peak_memory_mb
from fastnas.engine.meter import Meter
from fastnas.engine.retrain import Retrain
from fastnas.engine.search import Search
from fastnas.evaluators.shared import joined
from fastnas.strategies.base import Strategy, known_work

LONG_ENOUGH = 0.5  # seconds of steps, batches or a hook from which the rest is inferred


class Rehearsal(Loop):
    """What the rehearsals of a search and of a training share. A subclass stands before the loop that it rehearses."""

    def _begin(self, checkpoint: dict[str, Any] | None) -> None:
        self.log = SilentLog()

    def _describe_images(self, of_bytes: bool) -> dict[str, Any]:
        return {}

    def _check_finite(self, rate: float) -> None:
        """Whether the run diverges is its own affair."""

    def save(self) -> None:
        raise AssertionError("a rehearsal writes nothing")

    @abstractmethod
    def measure(self) -> bool:
        """Tries and times everything. False where the costs of the run cannot be known before it has run."""

    @abstractmethod
    def forecast(self, epochs: int) -> Forecast:
        """Of a run of so many epochs, once `measure` has been called."""

    def now(self) -> float:
        """Seconds on a clock, once the GPU has done its work."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def each(self, call: Callable[[], object], least: int = 2) -> float:
        """Seconds of one of the calls, the mean of `least` of them or more. Call it once before, to warm up."""
        begin = self.now()
        for done in count(1):
            call()
            if done >= least and (seconds := self.now() - begin) >= LONG_ENOUGH:
                return seconds / done
        raise AssertionError

    def image_seconds(self, pipeline: Pipeline, evaluate: Callable[[Tensor, Tensor], object], group: int = 1) -> float:
        """Seconds of `evaluate` for one image of the pipeline, loading included; so many images at a time, or more."""
        batches = _endless(pipeline, 0, group)
        images = 0

        def one_batch() -> None:
            nonlocal images
            batch = next(batches)
            evaluate(*batch)
            images += len(batch[1])

        one_batch()
        images, begin = 0, self.now()
        self.each(one_batch, least=1)
        return (self.now() - begin) / images


@contextmanager
def generators_kept() -> Iterator[None]:
    """Puts the global random generators back."""
    state = random_state()
    try:
        yield
    finally:
        set_random_state(state)


def _endless(pipeline: Pipeline, epoch: int, group: int = 1) -> Iterator[tuple[Tensor, Tensor]]:
    while True:
        yield from joined(pipeline.epoch(epoch), group)


class SearchRehearsal(Rehearsal, Search):
    """The rehearsal of a search.

    Args:
        network: is copied.
        strategy: is made anew from its options.
        others: as for `Search`; the pipelines are shared with the run.
    """

    def __init__(self, *, network: Any, strategy: Strategy, **others: Any) -> None:
        self._step_seconds: dict[Hashable, tuple[float, float]] = {}  # of the first ones together, of each other one
        self._valid_seconds: dict[Hashable, float] = {}  # of a whole validation
        self._end_seconds = 0.0
        self._own_seconds = 0.0  # for one piece of the strategy's own work
        self._hook: _TimedHook | None = None  # in progress
        super().__init__(network=copy.deepcopy(network), strategy=dataclasses.replace(cast(Any, strategy)), **others)
        self.show = self._heard
        self._recorded = 0 if self.graphs.recorder is None else WARM_UP + 1  # steps until a graph is there

    def measure(self) -> bool:
        """Rehearses one epoch of each kind. False if the strategy does not say what its epochs cost."""
        work = [known_work(self.strategy, epoch, self.epochs) for epoch in range(self.epochs)]
        own_known = False
        for epoch, kind in enumerate(work):
            if kind is None:
                return False
            new_steps, new_own = kind.steps not in self._step_seconds, kind.own > 0 and not own_known
            if not (new_steps or new_own):
                continue
            self.epoch, self.step = epoch, 0
            self.network.train()
            self.graphs.forget()
            own = self._piece_seconds(self.strategy.before_epoch, kind.own)
            self._set_rate()
            if new_steps:
                self._step_seconds[kind.steps] = self._time_steps()
            self.step = len(self.weight_pipeline)
            own += self._piece_seconds(self.strategy.after_epoch, kind.own)
            if new_own:
                self._own_seconds, own_known = own, True
            if new_steps:
                self._valid_seconds[kind.steps] = self._time_validation()
        self.epoch = self.epochs
        if self.evidence is not None:
            timed = self._timed_hook(self.evidence.sum_up)
            self._end_seconds = timed.seconds * timed.total / timed.pieces if timed.pieces else timed.seconds
        self._peak = peak_memory_mb(self.device)
        return True

    def forecast(self, epochs: int) -> Forecast:
        steps, seconds = len(self.weight_pipeline), []
        for epoch in range(epochs):
            work = known_work(self.strategy, epoch, epochs)
            assert work is not None
            first, each = self._step_seconds[work.steps]
            own = work.own * self._own_seconds
            seconds.append(first + max(0, steps - self._recorded) * each + own)
            if is_validated(epoch, epochs, self.validate_every):
                seconds[-1] += self._valid_seconds[work.steps]
        # The longer the search, the more images its cell is compared on.
        return Forecast(seconds, self._end_seconds * epochs / self.epochs, self._peak, self.strategy.ends_early)

    def _time_steps(self) -> tuple[float, float]:
        """Seconds of the steps at the beginning of an epoch until they are recorded, and of each one after them."""
        batches = _endless(self.weight_pipeline, self.epoch)
        self.step = 0

        def step() -> None:
            self._train_on(*next(batches))
            self.step = (self.step + 1) % len(self.weight_pipeline)

        for _ in range(max(1, self._recorded)):
            step()
        self.graphs.forget()
        begin = self.now()
        for _ in range(self._recorded):
            step()
        first = self.now() - begin
        return first, self.each(step)

    @torch.no_grad()
    def _time_validation(self) -> float:
        self.network.eval()
        meter = Meter.on(self.device)
        pipeline = self._validated
        seconds = self.image_seconds(
            pipeline, lambda images, labels: self._validate_on(images, labels, meter), self.group
        )
        self.network.train()
        return seconds * pipeline.count

    def _piece_seconds(self, hook: Callable[[Search], object], pieces: float) -> float:
        """Seconds of each of the pieces of work that a hook does; its end is inferred where it takes long."""
        timed = self._timed_hook(hook)
        return timed.seconds / (timed.pieces or max(pieces, 1.0))

    def _timed_hook(self, hook: Callable[[Search], object]) -> _TimedHook:
        timed = self._hook = _TimedHook(self.now())
        with suppress(Interrupted):
            hook(self)
        timed.seconds = self.now() - timed.begin + timed.rest
        self._hook = None
        return timed

    def _heard(self, phase: str, done: int, total: int) -> None:
        hook = self._hook
        if hook is None:
            return
        now = self.now()
        if phase not in hook.phases:
            hook.phases[phase] = hook.heard
        hook.heard = now
        spent = now - hook.phases[phase]
        if 0 < done < total and spent >= LONG_ENOUGH:
            if len(hook.phases) == 1:  # `Work.own` counts the pieces of this phase
                hook.pieces, hook.total = done, total
            else:
                hook.rest = spent * (total / done - 1)
            raise Interrupted


class _TimedHook:
    """A hook that is timed, and may be broken off."""

    def __init__(self, now: float) -> None:
        self.begin = self.heard = now
        self.phases: dict[str, float] = {}  # when each began
        self.pieces = self.total = 0  # that were done when it was broken off in its first phase, of how many
        self.seconds = 0.0
        self.rest = 0.0  # seconds that it would have taken further, where it was broken off in a later one


class TrainingRehearsal(Rehearsal, Retrain):
    """The rehearsal of a training.

    Args:
        network: is copied.
        others: as for `Retrain`; the pipelines are shared with the run.
    """

    def __init__(self, *, network: Any, **others: Any) -> None:
        super().__init__(network=copy.deepcopy(network), **others)

    def measure(self) -> bool:
        """Rehearses steps and evaluations. False where the network is compiled first, which takes minutes."""
        if self.recipe.compile:
            return False
        self.epoch = self.epochs // 2  # the probability of drop path is 0 at first
        self._set_up_epoch()
        batches = _endless(self.train_pipeline, self.epoch)

        def step() -> None:
            self._step(*next(batches))
            self.step = (self.step + 1) % len(self.train_pipeline)

        step()
        self._each_step = self.each(step, least=max(2, self.recipe.accumulate))
        self._valid = self._evaluation_seconds(self.valid_pipeline)
        self._tested = self._evaluation_seconds(self.test_pipeline)
        self._peak = peak_memory_mb(self.device)
        return True

    def forecast(self, epochs: int) -> Forecast:
        after = self._valid + (self._tested if self.select == "best_test" else 0.0)
        training = len(self.train_pipeline) * self._each_step
        seconds = [training + is_validated(epoch, epochs, self.validate_every) * after for epoch in range(epochs)]
        return Forecast(seconds, self._tested, self._peak)

    @torch.no_grad()
    def _evaluation_seconds(self, pipeline: Pipeline | None) -> float:
        if pipeline is None:
            return 0.0
        network = self.tested_network
        network.eval()
        with self._autocast():
            seconds = self.image_seconds(pipeline, lambda images, labels: network(images)) * pipeline.count
        network.train()
        return seconds
