"""EG-NAS: weights by gradient, α by an evolution strategy (Cai et al., "EG-NAS: Neural Architecture Search with Fast
Evolutionary Exploration", AAAI 2024).

Supernet weights ω are trained by SGD on one half of the images. Once per epoch, after a warm-up, α moves: CMA-ES
samples populations around it, all individuals are scored with the same ω on one batch of the α half, and the winner
is added to α with a small step. α is never differentiated.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastnas.errors import UserError
from fastnas.option_types import MOST_INDIVIDUALS, Count, CountOrZero, NotNegative, Positive, Range
from fastnas.spaces import CELL_KINDS
from fastnas.strategies.base import Strategy
from fastnas.strategies.cma_es import CMAES
from fastnas.strategies.context import SearchContext
from fastnas.strategies.egnas_variants import (
    OVERRIDES,
    VARIANTS,
    BatchNormMode,
    FitnessForm,
    SigmaSchedule,
    Similarity,
    Update,
)
from fastnas.strategies.registry import register_strategy
from fastnas.strategies.scoring import fitness_pipeline

# --- fitness ----------------------------------------------------------------------------------------------------------


def similarity(current: Tensor, candidates: Tensor, kind: Similarity) -> Tensor:
    """L2 of equation 3, in [0, 1]; 1 where a candidate points in the direction of α.

    Args:
        current: α, [2, E, O].
        candidates: z, [P, 2, E, O].
        kind: "flat_logits": one cosine of the flattened α and z. "edge_mean": the mean over edges of the cosine of
            softmax(α) and z. "edge_mean_probabilities": the same of softmax(α) and softmax(z).

    Returns:
        [P].
    """
    if kind == "flat_logits":
        cosine = F.cosine_similarity(current.flatten()[None], candidates.flatten(1), dim=-1, eps=1e-8)  # [P]
        return (1 + cosine) / 2
    compared = torch.softmax(candidates, -1) if kind == "edge_mean_probabilities" else candidates
    cosine = F.cosine_similarity(torch.softmax(current, -1)[None], compared, dim=-1, eps=1e-8)  # [P, 2, E]
    return ((1 + cosine) / 2).mean(dim=(1, 2))


def compound_fitness(
    loss: Tensor,
    similarities: Tensor,
    accuracy: Tensor,
    current_accuracy: float,
    *,
    zeta: float,
    eta: float,
    form: FitnessForm,
) -> Tensor:
    """Equation 3, to be minimised: ζ·loss plus or minus η·similarity. Similarity to α is penalised where a candidate is
    at least as accurate as α (explore further), rewarded where it is less accurate (come back).

    "eq3" jumps up by 2·η·similarity where a candidate becomes as accurate as α; "rebased" replaces the reward
    -η·similarity by η·(1 - similarity), which has the same slope and nearly no jump.

    Args:
        loss, similarities, accuracy: [P]; accuracy in the unit of `current_accuracy`.
        current_accuracy: of α.
        zeta, eta: ζ and η.
        form: "eq3" or "rebased".

    Returns:
        [P].
    """
    reward = -similarities if form == "eq3" else 1 - similarities
    return zeta * loss + eta * torch.where(accuracy >= current_accuracy, similarities, reward)


# --- the strategy -----------------------------------------------------------------------------------------------------


@register_strategy
@dataclass
class EGNAS(Strategy):
    """EG-NAS. Where no default is given, the variant decides."""

    name: ClassVar[str] = "egnas"
    default_space: ClassVar[str] = "egnas"
    plain_step: ClassVar[bool] = True
    retraining: ClassVar[str] = "egnas"

    variant: Literal["paper", "official", "official_imagenet"] = "paper"
    """The paper as printed, or one of its two released programs, quirks included."""
    population: Annotated[int, Range(4, MOST_INDIVIDUALS)] = 50
    """λ, individuals per generation, at least 4."""
    samples: Count = 3
    """N, populations in an evolution step."""
    generations: Count = 1
    """T, generations of CMA-ES per population."""
    warm_up: CountOrZero = 15
    """Epochs before α moves for the first time."""
    sigma: Positive = 1.0
    """First step size of CMA-ES, in logits."""
    sigma_floor: Positive = 0.02
    """Smallest step size of a schedule."""
    sigma_schedule: SigmaSchedule | None = None
    """es_step: sigma / (1 + evolution steps so far); global_epoch: sigma / (1 + epoch); constant: sigma."""
    noise: NotNegative = 0.01
    """Scale of the random noise added to the centre of a population, in logits."""
    step_size: NotNegative = 0.1
    """ξ, how far α moves towards the winner."""
    zeta: NotNegative = 1.0
    """ζ, weight of the loss in the fitness."""
    eta: NotNegative = 0.4
    """η, weight of the similarity to α in the fitness."""
    fitness: FitnessForm = "eq3"
    """eq3: equation 3 of the paper; rebased: without its jump where a candidate is as accurate as α."""
    similarity: Similarity | None = None
    """Similarity to α: one cosine of all logits (flat_logits), or the mean of one for each edge."""
    update: Update = "softmax"
    """softmax: add ξ·softmax(winner) to α; delta: add ξ·(winner - α)."""
    center: bool | None = None
    """Subtract from each row of α its mean after a step."""
    fitness_batch_size: Count = 128
    """Images in a batch that individuals are scored on."""
    fitness_batches: Count = 1
    """Batches of that size; more give less noise."""
    bn_mode: BatchNormMode | None = None
    """BatchNorm by the batch, by running statistics, or by the batch while updating those (train)."""
    clip_includes_alpha: bool | None = None
    """Include α's gradients, which are never set to zero, in the clipped norm."""
    cmaes_alias: bool = False
    """Begin each population where the last one ended (official variants only)."""
    chunk: Count | Literal["auto"] = "auto"
    """Individuals in one forward pass; auto: as many as fit into the memory."""

    def __post_init__(self) -> None:
        super().__post_init__()
        overrides = {name: value for name in OVERRIDES if (value := getattr(self, name)) is not None}
        self.rules = replace(VARIANTS[self.variant], **overrides)
        if self.cmaes_alias and self.rules.independent:
            raise UserError(
                "cmaes_alias reproduces the released programs: use it with variant=official or "
                "variant=official_imagenet."
            )
        self.evolution_step = 0
        self._pending: dict[str, Any] | None = None  # an evolution step that was interrupted

    def start(self, search: SearchContext) -> None:
        if self.warm_up >= search.epochs:
            raise UserError(
                f"warm_up is {self.warm_up} epochs, but the search has {search.epochs}: α would never move. "
                "Lower the warm-up or raise the epochs."
            )
        self._network = search.network
        self._graphs = search.graphs
        self._chunk = None if self.chunk == "auto" else self.chunk
        self._pipeline = fitness_pipeline(search, self, self.rules.bn_mode)
        for alpha in self._network.alphas.values():
            alpha.requires_grad_(self.rules.clip_includes_alpha)

    def clipped_parameters(self, search: SearchContext) -> list[nn.Parameter]:
        alphas = search.network.alphas.values() if self.rules.clip_includes_alpha else ()
        return [*search.weight_parameters, *alphas]

    def step_size_of(self, evolution_step: int, epoch: int) -> float:
        """σ of an evolution step."""
        if self.rules.sigma_schedule == "constant":
            return self.sigma
        count = evolution_step if self.rules.sigma_schedule == "es_step" else epoch
        return max(self.sigma_floor, self.sigma / (count + 1))

    def before_epoch(self, search: SearchContext) -> None:
        if search.epoch < self.warm_up:
            return
        batches = [self._pipeline.batch(search.epoch, index) for index in range(self.fitness_batches)]
        alpha = torch.stack([self._network.alphas[kind].detach() for kind in CELL_KINDS])  # [2, E, O]
        if self._pending is None:
            self._pending = self._begin(search, alpha, batches)
        while len(self._pending["winners"]) < self.samples:
            self._advance(search, alpha, batches, self._pending)
            search.show("evolution", len(self._pending["winners"]), self.samples)
            search.check_stop()
        self._finish(search, alpha, batches, self._pending)
        self._pending = None
        self.evolution_step += 1

    # An evolution step is a dict from here on, so that it can be interrupted and checkpointed between generations:
    # "sigma", "current_accuracy", "centre" [2, E, O] and "run" of the sample in progress, "best" its best candidate so
    # far, and "winners", the best candidates of the samples that are done; a candidate is {"z", "fitness", "accuracy"}.

    def _begin(self, search: SearchContext, alpha: Tensor, batches: list[tuple[Tensor, Tensor]]) -> dict[str, Any]:
        _, accuracy = self._score(alpha[None], batches)
        return {
            "sigma": self.step_size_of(self.evolution_step, search.epoch),
            "current_accuracy": accuracy.item(),
            "centre": self._centre(search, alpha, sample=0),
            "run": None,
            "best": None,
            "winners": [],
        }

    def _centre(self, search: SearchContext, alpha: Tensor, sample: int) -> Tensor:
        centre = alpha if self.rules.around == "logits" else torch.softmax(alpha, -1)  # [2, E, O]
        draw = torch.randn if self.rules.noise == "normal" else torch.rand
        generator = torch.Generator().manual_seed(search.seed_for(self.evolution_step, sample, 0))
        noise = draw(alpha.shape, generator=generator, dtype=torch.float64)  # on the CPU: the same on every device
        return centre + self.noise * noise.to(alpha)

    def _advance(
        self, search: SearchContext, alpha: Tensor, batches: list[tuple[Tensor, Tensor]], step: dict[str, Any]
    ) -> None:
        """One generation of the sample in progress."""
        sample = len(step["winners"])
        if step["run"] is None:
            if self.rules.independent and sample > 0:
                step["centre"] = self._centre(search, alpha, sample)
            seed = self._cma_seed(search, sample)
            step["run"] = CMAES(step["centre"].flatten(), step["sigma"], self.population, seed)
        run = step["run"]
        candidates = run.ask().view(-1, *alpha.shape).to(alpha)  # [λ, 2, E, O]
        fitness = self._compete(search, alpha, candidates, batches, step, generation=run.generation, sample=sample)
        run.tell(fitness)
        if run.generation < self.generations:
            return
        final = run.mean.view(1, *alpha.shape).to(alpha) if self.rules.evaluate_mean else candidates[-1:]
        self._compete(search, alpha, final, batches, step)
        if self.cmaes_alias:
            step["centre"] = run.mean.view(alpha.shape).to(alpha)
        step["winners"].append(step["best"])
        step["best"], step["run"] = None, None

    def _cma_seed(self, search: SearchContext, sample: int) -> int:
        if self.variant == "official":
            return 1
        if not self.rules.independent:
            return search.seed
        return search.seed_for(self.evolution_step, sample, 1)

    def _compete(
        self,
        search: SearchContext,
        alpha: Tensor,
        candidates: Tensor,
        batches: list[tuple[Tensor, Tensor]],
        step: dict[str, Any],
        **logged: int,
    ) -> Tensor:
        """Scores candidates [P, 2, E, O], keeps the best one in `step`, and returns the fitness [P]."""
        if self.rules.unit_rows:
            candidates = F.normalize(candidates, dim=-1)
        loss, accuracy = self._score(candidates, batches)
        fitness = compound_fitness(
            loss,
            similarity(alpha, candidates, self.rules.similarity).to(loss),
            accuracy,
            step["current_accuracy"],
            zeta=self.zeta,
            eta=self.eta,
            form=self.fitness,
        )
        fitness = torch.nan_to_num(fitness, nan=torch.inf)
        ties_win = self.rules.later_ties_win and bool(logged)  # not when a candidate is only scored again
        for index, value in enumerate(fitness.tolist()):
            best = step["best"]
            if best is None or value < best["fitness"] or (ties_win and value == best["fitness"]):
                step["best"] = {
                    "z": candidates[index].cpu().clone(),
                    "fitness": value,
                    "accuracy": accuracy[index].item(),
                }
        if logged:
            search.log.write(
                "population",
                epoch=search.epoch,
                step=self.evolution_step,
                **logged,
                sigma=step["sigma"],
                fitness=fitness.tolist(),
                loss=loss.tolist(),
                accuracy=accuracy.tolist(),
            )
        return fitness

    def _score(self, candidates: Tensor, batches: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        """Mean loss [P] and accuracy [P] of candidates [P, 2, E, O] as logits."""
        alphas = {kind: candidates[:, index] for index, kind in enumerate(CELL_KINDS)}  # [P, E, O]
        loss = torch.zeros(len(candidates), dtype=torch.float64, device=candidates.device)  # [P], sum over the images
        correct, count = torch.zeros_like(loss), 0  # integers, so that equal accuracies are equal to the last bit
        for images, labels in batches:
            logits = self._logits(images, alphas).double()  # [P, B, classes]
            each = F.cross_entropy(logits.flatten(0, 1), labels.repeat(len(candidates)), reduction="none")  # [P·B]
            loss += each.view(len(candidates), -1).sum(1)
            correct += (logits.argmax(-1) == labels).sum(1)
            count += len(labels)
        return (loss / count).cpu(), (correct / count).cpu()

    @torch.no_grad()
    def _logits(self, images: Tensor, alphas: dict[str, Tensor]) -> Tensor:
        network = self._network
        bn_mode = self.rules.bn_mode
        if bn_mode != "train":
            if self._chunk is None:
                # Only once: free memory changes from call to call, but a recording needs one size.
                self._chunk = network.fitting_chunk(images)
            chunk = self._chunk

            def evaluate(images: Tensor, *tables: Tensor) -> Tensor:
                alphas = dict(zip(CELL_KINDS, tables, strict=True))
                return network.population_logits(images, alphas, chunk=chunk, bn_mode=bn_mode)

            return self._graphs.call("population", evaluate, images, *(alphas[kind] for kind in CELL_KINDS))
        weights = {kind: torch.softmax(alpha, -1) for kind, alpha in alphas.items()}  # [P, E, O]
        count = len(weights["normal"])
        was_training = network.training
        try:
            network.train()
            each = [network(images, {kind: weights[kind][p] for kind in CELL_KINDS}) for p in range(count)]
        finally:
            network.train(was_training)
        return torch.stack(each)

    def _finish(
        self, search: SearchContext, alpha: Tensor, batches: list[tuple[Tensor, Tensor]], step: dict[str, Any]
    ) -> None:
        """Moves α towards the best winner."""
        winners = step["winners"]
        if self.rules.winner_softmaxes == 2:
            # The released program scores its winners once more, after the first of the two softmaxes.
            flat = torch.stack([torch.softmax(winner["z"].to(alpha), -1) for winner in winners])  # [N, 2, E, O]
            accuracies = self._score(flat, batches)[1].tolist()
            winners = [{**winner, "accuracy": value} for winner, value in zip(winners, accuracies, strict=True)]
        best = max(winners, key=self._rank)
        target = best["z"].to(alpha)  # [2, E, O]
        for _ in range(self.rules.winner_softmaxes if self.update == "softmax" else 0):
            target = torch.softmax(target, -1)
        change = self.step_size * (target if self.update == "softmax" else target - alpha)
        if self.rules.zero_accuracy_wins and best["accuracy"] == 0:
            change = torch.zeros_like(alpha)
        moved = alpha + change
        if self.rules.center:
            moved = moved - moved.mean(-1, keepdim=True)
        with torch.no_grad():
            for index, kind in enumerate(CELL_KINDS):
                self._network.alphas[kind].copy_(moved[index])
        search.log.write(
            "update",
            epoch=search.epoch,
            step=self.evolution_step,
            sigma=step["sigma"],
            best_fitness=best["fitness"],
            best_accuracy=best["accuracy"],
            current_accuracy=step["current_accuracy"],
            form=self.fitness,
        )

    def _rank(self, winner: dict[str, Any]) -> tuple[float, ...]:
        if self.rules.zero_accuracy_wins and winner["accuracy"] == 0:
            return (math.inf,)  # the released program ranks by 1/accuracy, smallest first, and stores 0 for this one
        return (winner["accuracy"], -winner["fitness"]) if self.rules.fitness_breaks_ties else (winner["accuracy"],)

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
