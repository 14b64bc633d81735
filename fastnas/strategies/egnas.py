"""EG-NAS: weights by gradient, α by an evolution strategy (Cai et al., "EG-NAS: Neural Architecture Search with Fast
Evolutionary Exploration", AAAI 2024).

Supernet weights ω are trained by SGD on one half of the images. Once per epoch, after a warm-up, α moves: CMA-ES
samples populations around it, all individuals are scored with the same ω on one batch of the α half, and α takes a step
towards the winner. α is never differentiated.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastnas.errors import UserError
from fastnas.evaluators.shared import path_logits
from fastnas.option_types import MOST_INDIVIDUALS, Count, CountOrZero, NotNegative, Positive, Range
from fastnas.strategies.alpha_vector import AlphaVector
from fastnas.strategies.base import Strategy, Work
from fastnas.strategies.cma_es import CMAES
from fastnas.strategies.context import SearchContext
from fastnas.strategies.egnas_fitness import compound_fitness, similarity
from fastnas.strategies.egnas_scores import Batches, Scores
from fastnas.strategies.egnas_variants import (
    VARIANTS,
    BatchNormMode,
    Evolve,
    FitnessForm,
    Score,
    SigmaSchedule,
    Similarity,
    Update,
    Variant,
    Weights,
    Winner,
)
from fastnas.strategies.registry import register_strategy
from fastnas.strategies.scoring import fitness_pipeline


@register_strategy
@dataclass
class EGNAS(Strategy):
    """EG-NAS. Where no default is given, the variant decides."""

    name: ClassVar[str] = "egnas"
    default_space: ClassVar[str] = "egnas"
    published_defaults: ClassVar = {
        "weights": {"epochs": 50, "learning_rate": 0.1, "learning_rate_min": 0.0},
        "data": {"batch_size": 256},
        "network": {"channels": 16, "layers": 8, "partial_channels": 4},
    }
    retraining: ClassVar[str] = "egnas"

    variant: Literal["paper", "official", "official_imagenet", "reproduction", "decided"] = "paper"
    """The paper; a released program or the published reproduction, quirks included; or decided, our own."""
    population: Annotated[int, Range(4, MOST_INDIVIDUALS)] | None = None
    """λ, individuals per generation, at least 4."""
    samples: Count | None = None
    """N, populations in an evolution step."""
    generations: Count | None = None
    """T, generations of CMA-ES per population."""
    warm_up: CountOrZero | None = None
    """Epochs before α moves for the first time."""
    evolve: Evolve | None = None
    """Whether α moves before or after the weight steps."""
    weights: Weights | None = None
    """Weight steps train the mixture under softmax(α), or paths drawn from it."""
    score: Score | None = None
    """Individuals are scored as mixtures, or as the cells derived from them."""
    sigma: Positive = 1.0
    """First step size of CMA-ES, in logits."""
    sigma_floor: Positive = 0.02
    """Smallest step size of a schedule."""
    sigma_schedule: SigmaSchedule | None = None
    """es_step: sigma / (1 + evolution steps so far); global_epoch: sigma / (1 + epoch); constant: sigma."""
    noise: NotNegative = 0.01
    """Scale of the random noise added to the centre of a population, in logits."""
    step_size: NotNegative | None = None
    """ξ, how far α moves towards the winner."""
    zeta: NotNegative = 1.0
    """ζ, weight of the loss in the fitness."""
    eta: NotNegative | None = None
    """η, weight of the similarity to α in the fitness."""
    fitness: FitnessForm = "eq3"
    """eq3: equation 3 of the paper; rebased: without its jump where a candidate is as accurate as α."""
    similarity: Similarity | None = None
    """Similarity to α: one cosine of all logits, or the mean of one for each edge."""
    winner: Winner | None = None
    """By what the best of all samples is chosen."""
    update: Update | None = None
    """softmax: add ξ·softmax(winner) to α; delta: add ξ·(winner - α)."""
    center: bool | None = None
    """Subtract from each row of α its mean after a step."""
    fitness_batch_size: Count | None = None
    """Images in a batch that individuals are scored on."""
    fitness_batches: Count | None = None
    """Batches of that size; more give less noise."""
    bn_mode: BatchNormMode | None = None
    """BatchNorm by the batch, running statistics, or the batch while updating those."""
    clip_includes_alpha: bool | None = None
    """Clip α's gradients, too, which are never set to zero."""
    cmaes_alias: bool = False
    """Begin each population where the last one ended (official)."""
    chunk: Count | Literal["auto"] = "auto"
    """Individuals in one forward pass; auto: as many as fit."""

    def __post_init__(self) -> None:
        super().__post_init__()
        overrides = {name: value for name in self._of_variant() if (value := getattr(self, name)) is not None}
        self.rules = replace(VARIANTS[self.variant], **overrides)
        if self.cmaes_alias and self.rules.independent:
            raise UserError(
                "cmaes_alias reproduces the released programs: use it with variant=official, official_imagenet or "
                "reproduction."
            )
        if self.rules.score == "cell" and self.rules.bn_mode == "train":
            raise UserError("score=cell leaves running statistics alone: use it with bn_mode=batch or running.")
        if self.rules.weights == "paths" and self.rules.clip_includes_alpha:
            raise UserError("α has no gradient with weights=paths: leave out clip_includes_alpha.")
        # A path is another one in every step, so it cannot be recorded.
        own_step = type(self).logits is not EGNAS.logits or type(self).penalty is not Strategy.penalty
        self.plain_step = self.rules.weights == "mixture" and not own_step  # type: ignore[misc]
        self.evolution_step = 0
        self._pending: dict[str, Any] | None = None  # an evolution step that was interrupted

    def check_epochs(self, epochs: int) -> None:
        if self.rules.warm_up >= epochs:
            raise UserError(
                f"warm_up is {self.rules.warm_up} epochs, but the search has {epochs}: α would never move. Lower the "
                "warm-up or raise the epochs."
            )

    def work(self, epoch: int, epochs: int) -> Work:
        """The generations of an evolution step, in every epoch after the warm-up."""
        return Work(own=self.rules.samples * self.rules.generations * (epoch >= self.rules.warm_up))

    def _of_variant(self) -> set[str]:
        """The options that the variant decides where they are None."""
        rules, options = ({field.name for field in dataclasses.fields(each)} for each in (Variant, EGNAS))
        return rules & options

    @property
    def resolved(self) -> Mapping[str, Any]:
        return {name: getattr(self.rules, name) for name in self._of_variant()}

    def start(self, search: SearchContext) -> None:
        network, rules = search.network, self.rules
        self._network = network
        self._vector = AlphaVector(dict(network.alphas))
        self._scores = Scores(
            network, search.graphs, self._vector, rules.score, rules.bn_mode, self.chunk, search.world
        )
        self._pipeline = fitness_pipeline(search, rules, rules.bn_mode)
        for alpha in network.alphas.values():
            alpha.requires_grad_(rules.clip_includes_alpha)

    def clipped_parameters(self, search: SearchContext) -> list[nn.Parameter]:
        alphas = search.network.alphas.values() if self.rules.clip_includes_alpha else ()
        return [*search.weight_parameters, *alphas]

    def logits(self, search: SearchContext, images: Tensor) -> Tensor:
        if self.rules.weights == "mixture":
            return super().logits(search, images)
        generator = torch.Generator().manual_seed(search.seed_for(search.epoch, search.step, 2))
        return search.network.path_logits(images, self._scores.drawn_path(generator))

    # A network that was trained by paths is none under softmax(α): of it, the derived cell is validated.

    def validation_logits(self, search: SearchContext, images: Tensor) -> Tensor:
        if self.rules.weights == "mixture":
            return super().validation_logits(search, images)
        path = self._scores.path_of(search.network.op_weights())
        return path_logits(search.network, images, path, self.rules.bn_mode != "running")

    @property
    def validates(self) -> Literal["supernet", "cell"]:
        return "supernet" if self.rules.weights == "mixture" else "cell"

    @property
    def validates_augmented(self) -> bool:
        return self.rules.validation_augment

    def step_size_of(self, evolution_step: int, epoch: int) -> float:
        """σ of an evolution step."""
        if self.rules.sigma_schedule == "constant":
            return self.sigma
        count = evolution_step if self.rules.sigma_schedule == "es_step" else epoch
        return max(self.sigma_floor, self.sigma / (count + 1))

    def before_epoch(self, search: SearchContext) -> None:
        if self.rules.evolve == "before":
            self._evolve(search)

    def after_epoch(self, search: SearchContext) -> None:
        if self.rules.evolve == "after":
            self._evolve(search)

    def _evolve(self, search: SearchContext) -> None:
        if search.epoch < self.rules.warm_up:
            return
        batches = [self._pipeline.batch(search.epoch, index) for index in range(self.rules.fitness_batches)]
        alpha = self._vector.flatten(dict(search.network.alphas)).detach()  # [n]
        if self._pending is None:
            self._pending = self._begin(search, alpha, batches)
        while len(self._pending["winners"]) < self.rules.samples:
            self._advance(search, alpha, batches, self._pending)
            search.show("evolution", self._generations_done(self._pending), self.rules.samples * self.rules.generations)
            search.check_stop()
        self._finish(search, alpha, batches, self._pending)
        self._pending = None
        self.evolution_step += 1

    # An evolution step is a dict from here on, so that it can be interrupted and checkpointed between generations:
    # "sigma", "current_accuracy", "centre" [n] and "run" of the sample in progress, "best" its best candidate so far,
    # and "winners", the best candidates of the samples that are done; a candidate is {"z": [n], "fitness", "loss",
    # "similarity", "accuracy"}.

    def _begin(self, search: SearchContext, alpha: Tensor, batches: Batches) -> dict[str, Any]:
        _, accuracy = self._scores.of(alpha[None], batches)
        return {
            "sigma": self.step_size_of(self.evolution_step, search.epoch),
            "current_accuracy": accuracy.item(),
            "centre": self._centre(search, alpha, sample=0),
            "run": None,
            "best": None,
            "winners": [],
        }

    def _generations_done(self, step: dict[str, Any]) -> int:
        return len(step["winners"]) * self.rules.generations + (0 if step["run"] is None else step["run"].generation)

    def _centre(self, search: SearchContext, alpha: Tensor, sample: int) -> Tensor:
        centre = alpha if self.rules.around == "logits" else self._vector.softmax(alpha)  # [n]
        draw = torch.randn if self.rules.distribution == "normal" else torch.rand
        generator = torch.Generator().manual_seed(search.seed_for(self.evolution_step, sample, 0))
        noise = draw(alpha.shape, generator=generator, dtype=torch.float64)  # on the CPU: the same on every device
        return centre + self.noise * noise.to(alpha)

    def _advance(self, search: SearchContext, alpha: Tensor, batches: Batches, step: dict[str, Any]) -> None:
        """One generation of the sample in progress."""
        sample = len(step["winners"])
        if step["run"] is None:
            if self.rules.independent and sample > 0:
                step["centre"] = self._centre(search, alpha, sample)
            step["run"] = CMAES(step["centre"], step["sigma"], self.rules.population, self._cma_seed(search, sample))
        run = step["run"]
        candidates = run.ask().to(alpha)  # [λ, n]
        fitness = self._compete(search, alpha, candidates, batches, step, generation=run.generation, sample=sample)
        run.tell(fitness)
        if run.generation < self.rules.generations:
            return
        final = run.mean[None].to(alpha) if self.rules.evaluate_mean else candidates[-1:]  # [1, n]
        self._compete(search, alpha, final, batches, step)
        if self.cmaes_alias:
            step["centre"] = run.mean.to(alpha)
        step["winners"].append(step["best"])
        step["best"], step["run"] = None, None

    def _cma_seed(self, search: SearchContext, sample: int) -> int:
        seeds = {"one": 1, "run": search.seed, "step": search.seed_for(self.evolution_step, sample, 1)}
        return seeds[self.rules.cma_seed]

    def _compete(
        self,
        search: SearchContext,
        alpha: Tensor,
        candidates: Tensor,
        batches: Batches,
        step: dict[str, Any],
        **logged: int,
    ) -> Tensor:
        """Scores candidates [P, n], keeps the best one in `step`, and returns the fitness [P]."""
        if self.rules.unit_rows:
            candidates = self._vector.by_row(lambda table: F.normalize(table, dim=-1), candidates)
        loss, accuracy = self._scores.of(candidates, batches)
        split = self._vector.split
        likeness = similarity(split(alpha), split(candidates), self.rules.similarity).to(loss)  # [P]
        fitness = compound_fitness(
            loss, likeness, accuracy, step["current_accuracy"], zeta=self.zeta, eta=self.rules.eta, form=self.fitness
        )
        fitness = torch.nan_to_num(fitness, nan=torch.inf)
        ties_win = self.rules.later_ties_win and bool(logged)  # not when a candidate is only scored again
        scores = {"fitness": fitness, "loss": loss, "similarity": likeness, "accuracy": accuracy}
        for index, value in enumerate(fitness.tolist()):
            best = step["best"]
            if best is None or value < best["fitness"] or (ties_win and value == best["fitness"]):
                own = {name: each[index].item() for name, each in scores.items()}
                step["best"] = {"z": candidates[index].cpu().clone(), **own}
        if logged:
            lists = {name: each.tolist() for name, each in scores.items()}
            of_step = {"epoch": search.epoch, "step": self.evolution_step, "sigma": step["sigma"]}
            search.log.write("population", **of_step, **logged, **lists)
        return fitness

    def _finish(self, search: SearchContext, alpha: Tensor, batches: Batches, step: dict[str, Any]) -> None:
        """Moves α towards the best winner."""
        rules, softmax = self.rules, self._vector.softmax
        winners = step["winners"]
        if rules.winner_softmaxes == 2:
            # The released program scores its winners once more, after the first of the two softmaxes.
            flat = torch.stack([softmax(winner["z"].to(alpha)) for winner in winners])  # [N, n]
            accuracies = self._scores.of(flat, batches)[1].tolist()
            winners = [{**winner, "accuracy": value} for winner, value in zip(winners, accuracies, strict=True)]
        best = max(winners, key=self._rank)
        target = best["z"].to(alpha)  # [n]
        for _ in range(rules.winner_softmaxes if rules.update == "softmax" else 0):
            target = softmax(target)
        change = rules.step_size * (target if rules.update == "softmax" else target - alpha)
        if self._adds_nothing(best):
            change = torch.zeros_like(alpha)
        moved = self._vector.split(alpha + change)
        with torch.no_grad():
            for kind, table in moved.items():
                centred = table - table.mean(-1, keepdim=True) if rules.center else table
                search.network.alphas[kind].copy_(centred)
        search.log.write(
            "update",
            epoch=search.epoch,
            step=self.evolution_step,
            sigma=step["sigma"],
            best_fitness=best["fitness"],
            best_loss=best["loss"],
            best_similarity=best["similarity"],
            best_accuracy=best["accuracy"],
            current_accuracy=step["current_accuracy"],
            form=self.fitness if rules.eta > 0 else "loss",
            winner=rules.winner,
        )

    def _rank(self, winner: dict[str, Any]) -> tuple[float, ...]:
        if self._adds_nothing(winner):
            return (math.inf,)  # the released program ranks by 1/accuracy, smallest first, and stores 0 for this one
        if self.rules.winner == "fitness":
            return (-winner["fitness"],)
        return (winner["accuracy"], -winner["fitness"]) if self.rules.fitness_breaks_ties else (winner["accuracy"],)

    def _adds_nothing(self, winner: dict[str, Any]) -> bool:
        rules = self.rules
        return rules.zero_accuracy_wins and rules.winner == "accuracy" and winner["accuracy"] == 0

    def state_dict(self) -> dict[str, Any]:
        pending = self._pending
        if pending is not None:
            run = None if pending["run"] is None else pending["run"].state_dict()
            pending = {**pending, "winners": list(pending["winners"]), "run": run}
        grads = {kind: alpha.grad for kind, alpha in self._network.alphas.items() if alpha.grad is not None}
        return {"evolution_step": self.evolution_step, "pending": pending, "alpha_grads": grads}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.evolution_step = state["evolution_step"]
        self._pending = pending = state["pending"]
        if pending is not None:
            run = None if pending["run"] is None else CMAES.from_state(pending["run"])
            self._pending = {**pending, "winners": list(pending["winners"]), "run": run}
        for kind, grad in state["alpha_grads"].items():
            alpha = self._network.alphas[kind]
            alpha.grad = grad.to(alpha, copy=True)
