"""What the strategies share that evaluate whole architectures: the loop around `ask` and `tell`."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import Any, ClassVar, Literal

from torch import Tensor

from fastnas.errors import UserError
from fastnas.evaluators.base import Evaluation, Evaluator
from fastnas.evaluators.shared import RECALIBRATION_BATCHES, path_logits
from fastnas.genotype import AnyGenotype
from fastnas.nn.supernet import OpWeights
from fastnas.option_types import Count, CountOrZero
from fastnas.spaces.encoding import Code, Encoding, encoding_of
from fastnas.strategies.base import Strategy, Work
from fastnas.strategies.context import SearchContext
from fastnas.strategies.scoring import fitness_size, for_search, on_all_images, scored_on


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
    published_defaults: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "weights": {"epochs": 150, "learning_rate": 0.025, "learning_rate_min": 0.001, "clip": 1.0},
        "data": {"batch_size": 64},
        "network": {"channels": 24, "layers": 8, "partial_channels": 1},
    }
    """Those of RandomNAS, whose weights are shared and trained on one random path a step, too. Strategies whose paper
    trains every architecture from scratch take over what their paper says of the split."""
    default_evaluations: ClassVar[int] = 200
    default_warm_up: ClassVar[float] = 1.0
    """As a share of the epochs; with 1 all evaluations come after the last epoch, so that they see the same weights."""
    default_fitness_batch_size: ClassVar[int] = 64
    default_fitness_batches: ClassVar[int] = 10
    default_finalists: ClassVar[int] = 10

    warm_up: CountOrZero | None = None
    """Epochs before architectures are evaluated; None for the strategy's own share of the epochs."""
    evaluations: Count | None = None
    """Architectures that a search evaluates, rounded up to whole generations; None for the strategy's default."""
    evaluator: str = "shared"
    """shared: with the shared weights; training:EPOCHS: each one trained from scratch (1 epoch by default);
    python:MODULE:FUNCTION: a function of your own; nb201:PATH: the table of NAS-Bench-201."""
    bn_mode: Literal["batch", "running", "recalibrate"] = "batch"
    """BatchNorm with shared weights: statistics of the batch, running ones, or recomputed for each path."""
    fitness_batch_size: Count | None = None
    """Images in a batch that architectures are scored on; None for 64 (enas: 160), or for all where there are fewer."""
    fitness_batches: Count | None = None
    """Batches of that size, with shared weights; None for 10 (enas: 1), or for as many as there are. More give less
    noise."""
    fitness_images: Literal["same", "generation", "architecture"] = "same"
    """Which images they hold, with shared weights. same: all architectures of an epoch see the same ones; generation:
    those that are asked for together see new ones; architecture: each sees new ones."""
    finalists: CountOrZero | None = None
    """Architectures, the best so far, that are scored on the whole validation half in the end; the best of them is the
    result. 0 for none; None for 10 with shared weights (nsga2, enas: none)."""

    # --- what a strategy is ---

    def begin(self, encoding: Encoding, seed: int) -> None:
        """Before the first `ask`: `self.encoding`, `self.random`, from which all draws come, and `self.wanted`: how
        many architectures a search still wants, for strategies that need no whole generations; None for no limit."""
        self.encoding = encoding
        self.random = Random(seed)
        self.best: Individual | None = None
        self.evaluated = 0
        self.wanted: int | None = None
        self.places = 0  # for finalists
        self.leaders: list[Individual] = []  # the best so far, of different architectures, best first

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

    def merit(self, individual: Individual) -> tuple[float, ...]:
        """What the result is chosen by: the greatest, and the first of equals. The accuracy by default."""
        return (individual.accuracy,)

    def learn(self, codes: Sequence[Code], evaluations: Sequence[Evaluation]) -> None:
        """Calls `tell`, and keeps the best architecture, which all strategies do."""
        individuals = [Individual(code, result) for code, result in zip(codes, evaluations, strict=True)]
        for individual in individuals:
            if self.best is None or self.merit(individual) > self.merit(self.best):
                self.best = individual
        self._lead(individuals)
        self.evaluated += len(individuals)
        self.tell(individuals)

    def _lead(self, individuals: Sequence[Individual]) -> None:
        if not self.places:
            return
        ranked = sorted([*self.leaders, *individuals], key=self.merit, reverse=True)  # stable: the first of equals
        different: dict[Code, Individual] = {}
        for individual in ranked:
            different.setdefault(self.encoding.canonical(individual.code), individual)
        self.leaders = list(different.values())[: self.places]

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

    def check_epochs(self, epochs: int) -> None:
        if self.warm_up is not None and self.warm_up >= epochs:
            raise UserError(
                f"warm_up is {self.warm_up} epochs, but the search has {epochs}: nothing would be evaluated. Lower "
                "the warm-up or raise the epochs."
            )

    def work(self, epoch: int, epochs: int) -> Work | None:
        """The architectures that are evaluated after the epoch, and the finalists in the end. What a function of the
        user's own costs is unknown."""
        if self.evaluator.startswith("python:"):
            return None
        due = [self._due(each, self._first_epoch(epochs), epochs) for each in (epoch - 1, epoch)]
        return Work(own=due[1] - due[0] + (self._judging if epoch + 1 == epochs else 0.0))

    def _first_epoch(self, epochs: int) -> int:
        """The first one after which architectures are evaluated."""
        return min(round(self.default_warm_up * epochs) if self.warm_up is None else self.warm_up, epochs - 1)

    # What is known once a search has started.
    _started = False
    _judging = 0.0  # evaluations that take as long as the finalists

    def _images_of_a_finalist(self, search: SearchContext) -> float:
        """How many times the images of an evaluation it sees."""
        size, weights = fitness_size(search, self), search.weight_pipeline
        more = min(RECALIBRATION_BATCHES, len(weights)) * weights.batch_size if self.bn_mode == "recalibrate" else 0
        images = size.fitness_batch_size * size.fitness_batches
        return (len(search.valid_pipeline.indices) + more) / (images + more)

    def _due(self, epoch: int, first: int, epochs: int) -> int:
        """How many architectures have to be evaluated once an epoch has ended."""
        return 0 if epoch < first else self.budget(epochs) * (epoch - first + 1) // (epochs - first)

    def start(self, search: SearchContext) -> None:
        self._search, self._started = search, True
        self._space = search.network.space
        self.begin(encoding_of(self._space), search.seed_for(0))
        self._first = self._first_epoch(search.epochs)
        self._budget = self.budget(search.epochs)
        shared = self.evaluator == "shared"
        if self.finalists and not shared:
            raise UserError(
                f"finalists is {self.finalists}, but the evaluator {self.evaluator!r} scores no architecture twice: "
                "leave out --finalists, or give --evaluator shared."
            )
        if shared:
            self.places = self.default_finalists if self.finalists is None else self.finalists
            self._judging = self.places * self._images_of_a_finalist(search)
        self.draws = 0  # of images that architectures were scored on
        self._evaluator = for_search(
            search, self, self.costs(), None if self.fitness_images == "same" else lambda: self.draws
        )
        self._by = scored_on(search, self)
        self._unlogged: list[float] = []  # accuracies since the last "population" event
        self._judged = False  # whether the finalists are

    def logits(self, search: SearchContext, images: Tensor) -> Tensor:
        code = self.training_code(Random(search.seed_for(1, search.epoch, search.step)))
        return search.network.path_logits(images, encoding_of(self._space).op_weights(code))

    def score(self, codes: Sequence[Code], told: Callable[[int], object] = lambda done: None) -> list[Evaluation]:
        """Evaluates architectures in a search, on new images where `fitness_images` says so.

        told: hears how many of them are done."""
        together = self._evaluator.together and self.fitness_images != "architecture"
        first = self.draws

        def evaluate(numbered: Sequence[tuple[int, Code]]) -> list[Evaluation]:
            results: list[Evaluation] = []
            for group in [numbered] if together else [[each] for each in numbered]:
                self.draws = first if together else first + group[0][0]
                results += self._evaluator.evaluate([code for _, code in group])
                told(len(results))
            return results

        results = self._search.world.spread(list(enumerate(codes)), evaluate)
        self.draws = first + (1 if together else len(codes))
        return results

    def _judge(self, search: SearchContext) -> None:
        """Scores the finalists on the whole validation half; the best of them is the result."""
        evaluator = on_all_images(search, self)
        results = search.world.spread([leader.code for leader in self.leaders], evaluator.evaluate)
        judged = [
            Individual(leader.code, replace(leader.evaluation, accuracy=result.accuracy))
            for leader, result in zip(self.leaders, results, strict=True)
        ]
        self.best, self._judged = max(judged, key=self.merit), True
        search.log.write(
            "finalists",
            after_epoch=search.epoch,
            images=len(search.valid_pipeline.indices),
            before=[leader.accuracy for leader in self.leaders],
            accuracy=[individual.accuracy for individual in judged],
        )

    @property
    def resolved(self) -> dict[str, Any]:
        if not self._started:
            return {}
        found = {"warm_up": self._first, "evaluations": self._budget, "finalists": self.places}
        if self.evaluator == "shared":
            size = fitness_size(self._search, self)
            found |= {"fitness_batch_size": size.fitness_batch_size, "fitness_batches": size.fitness_batches}
        return found

    def after_epoch(self, search: SearchContext) -> None:
        if search.epoch < self._first:
            return
        done = search.epoch - self._first + 1
        target = self._due(search.epoch, self._first, search.epochs)
        while self.evaluated < target:
            self.wanted = target - self.evaluated
            codes = self.ask()

            def told(done: int, before: int = self.evaluated) -> None:
                search.show("evaluation", min(before + done, target), target)

            results = self.score(codes, told)
            self.learn(codes, results)
            self._unlogged += [result.accuracy for result in results]
            search.check_stop()
        if self.leaders and search.epoch + 1 == search.epochs:
            self._judge(search)
        if self._unlogged and self.best is not None:
            search.log.write("population", epoch=search.epoch, step=done - 1, accuracy=self._unlogged)
            search.log.write(
                "update",
                epoch=search.epoch,
                step=done - 1,
                evaluated=self.evaluated,
                asked=self._budget,
                by=self.by,
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
    def derives_from_alpha(self) -> bool:
        return False

    @property
    def chosen(self) -> dict[str, Any] | None:
        if self.best is None:
            return None
        return {"accuracy": self.best.accuracy, "by": self.by, "evaluated": self.evaluated}

    @property
    def by(self) -> str:
        """Who gave the best architecture its accuracy, and on what, in words."""
        if not self._judged:
            return self._by
        return f"shared weights, all {len(self._search.valid_pipeline.indices):,} images of the validation half"

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
            "draws": self.draws,
            "leaders": individuals_state(self.leaders),
            "judged": self._judged,
            **self.own_state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        version, internal, gauss = state["random"]
        self.random.setstate((version, tuple(internal), gauss))
        self.best = None if state["best"] is None else Individual.from_state(state["best"])
        self.evaluated = state["evaluated"]
        self._unlogged = list(state["unlogged"])
        # Older checkpoints hold none of these.
        self.draws, self._judged = state.get("draws", 0), state.get("judged", False)
        self.leaders = load_individuals(state.get("leaders", []))
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
