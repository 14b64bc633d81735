"""Where the printed EG-NAS and its two released programs differ, as a table."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

SigmaSchedule = Literal["es_step", "global_epoch", "constant"]
Similarity = Literal["flat_logits", "edge_mean", "edge_mean_probabilities"]
BatchNormMode = Literal["batch", "running", "train"]
FitnessForm = Literal["eq3", "rebased"]
Update = Literal["softmax", "delta"]


@dataclass(frozen=True)
class Variant:
    """What differs between the paper and its two released programs. `EGNAS` options of the same name override it."""

    sigma_schedule: SigmaSchedule
    similarity: Similarity
    bn_mode: BatchNormMode
    clip_includes_alpha: bool
    center: bool
    around: Literal["logits", "probabilities"]  # what the populations are centred on: α or softmax(α)
    noise: Literal["normal", "uniform"]  # added to the centre
    independent: bool  # each sample has its own noise and random numbers; else all N populations are equal
    unit_rows: bool  # candidates are divided by the L2 norm of each row
    evaluate_mean: bool  # the updated mean of CMA-ES competes, too; else the last candidate again, to no effect
    later_ties_win: bool  # among equal fitness
    fitness_breaks_ties: bool  # among winners of equal accuracy; else the first one is taken
    winner_softmaxes: int  # how often the winner is softmaxed before it is added
    zero_accuracy_wins: bool  # a winner that classifies nothing correctly beats the others and adds nothing to α


VARIANTS = {
    "paper": Variant(
        sigma_schedule="es_step",
        similarity="flat_logits",
        bn_mode="batch",
        clip_includes_alpha=False,
        center=True,
        around="logits",
        noise="normal",
        independent=True,
        unit_rows=False,
        evaluate_mean=True,
        later_ties_win=False,
        fitness_breaks_ties=True,
        winner_softmaxes=1,
        zero_accuracy_wins=False,
    ),
    "official": Variant(
        sigma_schedule="constant",  # its epoch counter stays 0, so σ = 1/(0 + 1)
        similarity="edge_mean",
        bn_mode="running",
        clip_includes_alpha=True,
        center=False,
        around="probabilities",
        noise="normal",
        independent=False,
        unit_rows=True,
        evaluate_mean=False,
        later_ties_win=True,
        fitness_breaks_ties=False,
        winner_softmaxes=2,
        zero_accuracy_wins=True,
    ),
    "official_imagenet": Variant(
        sigma_schedule="global_epoch",
        similarity="edge_mean_probabilities",
        bn_mode="train",
        clip_includes_alpha=True,
        center=False,
        around="probabilities",
        noise="uniform",
        independent=False,
        unit_rows=False,
        evaluate_mean=False,
        later_ties_win=True,
        fitness_breaks_ties=False,
        winner_softmaxes=1,
        zero_accuracy_wins=False,
    ),
}
OVERRIDES = ("sigma_schedule", "similarity", "bn_mode", "clip_includes_alpha", "center")
