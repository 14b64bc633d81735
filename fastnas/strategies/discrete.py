"""What the strategies share that evaluate whole architectures: the loop around `ask` and `tell`."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any, ClassVar, Literal

from torch import Tensor

from fastnas.errors import UserError
from fastnas.evaluators.base import Evaluation, Evaluator
from fastnas.evaluators.shared import path_logits
from fastnas.genotype import AnyGenotype
from fastnas.nn.supernet import OpWeights
from fastnas.option_types import Count, CountOrZero
from fastnas.spaces.encoding import Code, Encoding, encoding_of
from fastnas.strategies.base import Strategy
from fastnas.strategies.context import SearchContext
from fastnas.strategies.scoring import for_search, scored_on


@dataclass(frozen=True)
class Individual:
    """An architecture that was evaluated."""

    code: Code
    evaluation: Evaluation

    @property
    def accuracy(self) -> float:
        return self.evaluation.accuracy

    def state(self) -> list[Any]:
        return [list(self.code), self.evaluation.accuracy, self.evaluation.seconds, dict(self.evaluation.costs)]

    @classmethod
    def from_state(cls, state: list[Any]) -> Individual:
        return cls(tuple(state[0]), Evaluation(*state[1:]))


@dataclass
class DiscreteStrategy(Strategy):
    """Base of the strategies that sample, evolve or learn to choose architectures.

    A subclass says what to evaluate next (`ask`) and learns from the results (`tell`); it runs on any `Evaluator`,
    through `run` or inside a search. There the shared weights are trained on one random path a step, and the
    evaluations are spread evenly over the epochs from `warm_up` on, each after the weight steps of its epoch.
    """

    default_space: ClassVar[str] = "egnas"
    default_evaluations: ClassVar[int] = 200
    default_warm_up: ClassVar[float] = 1.0
    """As a share of the epochs; with 1 all evaluations come after the last epoch, so that they see the same weights."""

    warm_up: CountOrZero | None = None
    """Epochs before architectures are evaluated; None for the strategy's own share of the epochs."""
    evaluations: Count | None = None
    """Architectures that a search evaluates, rounded up to whole generations; None for the strategy's default."""
    evaluator: str = "shared"
    """shared: with the shared weights; training:EPOCHS: each one trained from scratch (1 epoch by default);
    python:MODULE:FUNCTION: a function of your own; nb201:PATH: the table of NAS-Bench-201."""
    bn_mode: Literal["batch", "running", "recalibrate"] = "batch"
    """BatchNorm with shared weights: statistics of the batch, running ones, or recomputed for each path."""
    fitness_batch_size: Count = 128
    """Images in a batch that architectures are scored on."""
    fitness_batches: Count = 1
    """Batches of that size; more give less noise."""

    # --- what a strategy is ---

    def begin(self, encoding: Encoding, seed: int) -> None:
        """Before the first `ask`: `self.encoding`, `self.random`, from which all draws come, and `self.wanted`: how
        many architectures a search still wants, for strategies that need no whole generations; None for no limit."""
        self.encoding = encoding
        self.random = Random(seed)
        self.best: Individual | None = None
        self.evaluated = 0
        self.wanted: int | None = None

    @abstractmethod
    def ask(self) -> list[Code]:
        """What to evaluate next; called again only after `tell`."""

    @abstractmethod
    def tell(self, individuals: Sequence[Individual]) -> None:
        """The results of what was asked, in the same order."""

    def budget(self, epochs: int) -> int:
        """How many architectures a search of this many epochs evaluates."""
        return self.evaluations or self.default_evaluations

    def costs(self) -> tuple[str, ...]:
        """What to measure of an architecture besides its accuracy; see `evaluators.Costs`."""
        return ()

    def training_code(self, rng: Random) -> Code:
        """The path whose shared weights are trained next; by default a uniformly random one."""
        return self.encoding.sample(rng)

    def learn(self, codes: Sequence[Code], evaluations: Sequence[Evaluation]) -> None:
        """Calls `tell`, and keeps the most accurate architecture, which all strategies do."""
        individuals = [Individual(code, result) for code, result in zip(codes, evaluations, strict=True)]
        for individual in individuals:
            if self.best is None or individual.accuracy > self.best.accuracy:
                self.best = individual
        self.evaluated += len(individuals)
        self.tell(individuals)

    # --- without a supernet ---

    def run(self, evaluator: Evaluator, seed: int, seconds: float) -> Iterator[Individual]:
        """Searches until the evaluator's clock has reached `seconds`; an evaluation that would end later is not
        counted.

        Yields:
            Every counted individual, in order.
        """
        self.begin(evaluator.encoding, seed)
        spent = 0.0
        while True:
            codes = self.ask()
            results: list[Evaluation] = []
            for code in codes:
                (result,) = evaluator.evaluate([code])
                spent += result.seconds
                if spent > seconds:
                    return
                results.append(result)
                yield Individual(code, result)
            self.learn(codes, results)

    # --- in a search ---

    def start(self, search: SearchContext) -> None:
        self._search = search
        self._space = search.network.space
        self.begin(encoding_of(self._space), search.seed_for(0))
        share = round(self.default_warm_up * search.epochs)
        self._first = min(share if self.warm_up is None else self.warm_up, search.epochs - 1)
        if self.warm_up is not None and self.warm_up >= search.epochs:
            raise UserError(
                f"warm_up is {self.warm_up} epochs, but the search has {search.epochs}: nothing would be evaluated. "
                "Lower the warm-up or raise the epochs."
            )
        self._budget = self.budget(search.epochs)
        self._evaluator = for_search(search, self, self.costs())
        self._by = scored_on(search, self)
        self._unlogged: list[float] = []  # accuracies since the last "population" event

    def logits(self, search: SearchContext, images: Tensor) -> Tensor:
        code = self.training_code(Random(search.seed_for(1, search.epoch, search.step)))
        return search.network.path_logits(images, encoding_of(self._space).op_weights(code))

    def after_epoch(self, search: SearchContext) -> None:
        if search.epoch < self._first:
            return
        done = search.epoch - self._first + 1
        target = self._budget * done // (search.epochs - self._first)
        while self.evaluated < target:
            self.wanted = target - self.evaluated
            codes = self.ask()
            results = self._evaluator.evaluate(codes)
            self.learn(codes, results)
            self._unlogged += [result.accuracy for result in results]
            search.show("evaluation", min(self.evaluated, target), target)
            search.check_stop()
        if self._unlogged and self.best is not None:
            search.log.write("population", epoch=search.epoch, step=done - 1, accuracy=self._unlogged)
            search.log.write(
                "update",
                epoch=search.epoch,
                step=done - 1,
                evaluated=self.evaluated,
                asked=self._budget,
                by=self._by,
                best_accuracy=self.best.accuracy,
                **({"best_costs": self.best.evaluation.costs} if self.best.evaluation.costs else {}),
            )
            self._unlogged = []

    def mean_op_weights(self, search: SearchContext) -> OpWeights:
        if self.best is None:
            return search.network.op_weights()
        weights = encoding_of(self._space).op_weights(self.best.code)
        return {kind: table.to(search.device) for kind, table in weights.items()}  # [E, O]

    def validation_logits(self, search: SearchContext, images: Tensor) -> Tensor:
        if self.best is None:
            return search.network(images)
        return path_logits(search.network, images, self.encoding.op_weights(self.best.code), self.bn_mode == "batch")

    @property
    def validates(self) -> Literal["supernet", "cell"]:
        return "supernet" if self.best is None else "cell"

    @property
    def chosen(self) -> dict[str, Any] | None:
        if self.best is None:
            return None
        return {"accuracy": self.best.accuracy, "by": self._by, "evaluated": self.evaluated}

    def genotype(self, search: SearchContext) -> AnyGenotype:
        """The most accurate architecture so far; before the first evaluation, the one derived from the initial α."""
        return super().genotype(search) if self.best is None else self.encoding.decode(self.best.code)

    # --- state ---

    def state_dict(self) -> dict[str, Any]:
        version, internal, gauss = self.random.getstate()
        return {
            "random": [version, list(internal), gauss],
            "best": None if self.best is None else self.best.state(),
            "evaluated": self.evaluated,
            "unlogged": list(self._unlogged),
            **self.own_state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        version, internal, gauss = state["random"]
        self.random.setstate((version, tuple(internal), gauss))
        self.best = None if state["best"] is None else Individual.from_state(state["best"])
        self.evaluated = state["evaluated"]
        self._unlogged = list(state["unlogged"])
        self.load_own_state(state)

    def own_state(self) -> dict[str, Any]:
        """What a subclass keeps between `tell` and `ask`."""
        return {}

    def load_own_state(self, state: dict[str, Any]) -> None:
        """The inverse of `own_state`."""


def individuals_state(individuals: Sequence[Individual]) -> list[list[Any]]:
    return [individual.state() for individual in individuals]


def load_individuals(state: Sequence[list[Any]]) -> list[Individual]:
    return [Individual.from_state(entry) for entry in state]
