"""The compound fitness of EG-NAS (Cai et al., AAAI 2024, equation 3), to be minimised."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from fastnas.strategies.egnas_variants import FitnessForm, Similarity


def similarity(current: Mapping[str, Tensor], candidates: Mapping[str, Tensor], kind: Similarity) -> Tensor:
    """L2 of equation 3, in [0, 1]; 1 where a candidate points in the direction of α.

    Args:
        current: α, a table [E, O] for each kind of cell.
        candidates: z, [P, E, O] for each.
        kind: "flat_logits": one cosine of all numbers in α and z. "edge_mean": the mean over edges of the cosine of
            softmax(α) and z, then over kinds of cells. "edge_mean_probabilities": the same of softmax(α) and
            softmax(z).

    Returns:
        [P].
    """
    if kind == "flat_logits":
        alpha = torch.cat([table.flatten() for table in current.values()])  # [n]
        z = torch.cat([candidates[cell].flatten(1) for cell in current], dim=-1)  # [P, n]
        return (1 + F.cosine_similarity(alpha[None], z, dim=-1, eps=1e-8)) / 2
    means = []
    for cell, table in current.items():
        compared = candidates[cell]  # [P, E, O]
        compared = torch.softmax(compared, -1) if kind == "edge_mean_probabilities" else compared
        cosine = F.cosine_similarity(torch.softmax(table, -1)[None], compared, dim=-1, eps=1e-8)  # [P, E]
        means.append(((1 + cosine) / 2).mean(-1))
    return torch.stack(means).mean(0)


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
    """ζ·L1 plus or minus η·L2, L1 the loss and L2 the similarity to α. Similarity is penalised where a candidate is at
    least as accurate as α (explore further), rewarded where it is less accurate (come back).

    "eq3" jumps up by 2·η·L2 where a candidate becomes as accurate as α; "rebased" replaces the reward -η·L2 by
    η·(1 - L2), which has the same slope and nearly no jump.

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
