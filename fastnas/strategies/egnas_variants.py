"""What the printed EG-NAS, its two released programs, a reproduction and our own variant do differently, as a table."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

SigmaSchedule = Literal["es_step", "global_epoch", "constant"]
Similarity = Literal["flat_logits", "edge_mean", "edge_mean_probabilities"]
BatchNormMode = Literal["batch", "running", "train"]
FitnessForm = Literal["eq3", "rebased"]
Update = Literal["softmax", "delta"]
Winner = Literal["accuracy", "fitness"]
Evolve = Literal["before", "after"]
Weights = Literal["mixture", "paths"]
Score = Literal["mixture", "cell"]


@dataclass(frozen=True)
class Variant:
    """One row of the table. `EGNAS` options of the same name override it."""

    # Numbers
    population: int  # λ
    samples: int  # N
    generations: int  # T
    warm_up: int  # epochs before α moves
    step_size: float  # ξ
    eta: float  # η
    fitness_batch_size: int
    fitness_batches: int
    # Rules that are options, too
    evolve: Evolve  # before or after the weight steps of an epoch
    weights: Weights  # what a weight step trains: the mixture under softmax(α), or a path drawn from it
    score: Score  # what an individual is scored as: the mixture under softmax(z), or the cell derived from it
    sigma_schedule: SigmaSchedule
    similarity: Similarity
    bn_mode: BatchNormMode
    winner: Winner  # of the samples: the most accurate one, or the one of the lowest fitness
    update: Update  # what is added to α: ξ·softmax(winner) or ξ·(winner - α)
    center: bool
    clip_includes_alpha: bool
    # Quirks
    around: Literal["logits", "probabilities"]  # what the populations are centred on: α or softmax(α)
    distribution: Literal["normal", "uniform"]  # of the noise that is added to the centre
    independent: bool  # each sample has its own noise and random numbers; else all N populations are equal
    cma_seed: Literal["step", "run", "one"]  # of CMA-ES: from step and sample, the seed of the run, or always 1
    unit_rows: bool  # candidates are divided by the L2 norm of each row
    evaluate_mean: bool  # the updated mean of CMA-ES competes, too; else the last candidate again, to no effect
    later_ties_win: bool  # among equal fitness
    fitness_breaks_ties: bool  # among winners of equal accuracy; else the first one is taken
    winner_softmaxes: int  # how often the winner is softmaxed before it is added
    zero_accuracy_wins: bool  # a winner that classifies nothing correctly beats the others and adds nothing to α
    validation_augment: bool  # the accuracy of an epoch is that on augmented images, unless the images' options say


PAPER = Variant(
    population=50,
    samples=3,
    generations=1,
    warm_up=15,
    step_size=0.1,
    eta=0.4,
    fitness_batch_size=128,
    fitness_batches=1,
    evolve="after",
    weights="mixture",
    score="mixture",
    sigma_schedule="es_step",
    similarity="flat_logits",
    bn_mode="batch",
    winner="accuracy",
    update="softmax",
    center=True,
    clip_includes_alpha=False,
    around="logits",
    distribution="normal",
    independent=True,
    cma_seed="step",
    unit_rows=False,
    evaluate_mean=True,
    later_ties_win=False,
    fitness_breaks_ties=True,
    winner_softmaxes=1,
    zero_accuracy_wins=False,
    validation_augment=False,
)

OFFICIAL = replace(
    PAPER,
    evolve="before",
    sigma_schedule="constant",  # its epoch counter stays 0, so σ = 1/(0 + 1)
    similarity="edge_mean",
    bn_mode="running",
    center=False,
    clip_includes_alpha=True,
    around="probabilities",
    independent=False,
    cma_seed="one",
    unit_rows=True,
    evaluate_mean=False,
    later_ties_win=True,
    fitness_breaks_ties=False,
    winner_softmaxes=2,
    zero_accuracy_wins=True,
    validation_augment=True,
)

VARIANTS = {
    "paper": PAPER,
    "official": OFFICIAL,
    "official_imagenet": replace(
        OFFICIAL,
        samples=5,
        warm_up=40,
        fitness_batch_size=512,
        sigma_schedule="global_epoch",
        similarity="edge_mean_probabilities",
        bn_mode="train",
        # SGD and the clip take all parameters of the network, and α is none: it would be trained by SGD otherwise.
        clip_includes_alpha=False,
        distribution="uniform",
        cma_seed="run",
        unit_rows=False,
        winner_softmaxes=1,
        zero_accuracy_wins=False,
    ),
    "reproduction": replace(OFFICIAL, population=25, step_size=0.6, cma_seed="run"),
    "decided": replace(
        PAPER,
        samples=1,
        generations=10,
        step_size=1.0,
        eta=0.0,
        fitness_batches=2,
        weights="paths",
        score="cell",
        sigma_schedule="constant",
        winner="fitness",
        update="delta",
    ),
}
