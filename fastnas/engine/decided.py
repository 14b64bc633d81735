"""How far α has decided: whether its movement had a direction, or only a size."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

DRAWS = 999
LEVEL = 0.05
"""Share of the choices that count as decided where α moves at random."""


def decided(history: np.ndarray, allowed: Sequence[int]) -> np.ndarray:
    """Which edges' choices are decided: bool [E].

    The choice of an edge is its heaviest candidate, its margin the distance in weight to the runner-up. The weights
    came to where they are in steps, one an epoch, from equal weights. Had each step been as large but its direction a
    matter of chance, margins would arise too: the sign of every epoch's step is drawn 999 times, and the choice is
    decided if at most 5 % of these margins reach the real one. This is a randomisation test by random signs (Fisher,
    "The Design of Experiments", 1935), so that about 5 % of the choices of an α without direction count as
    decided, whatever the size of its steps. With fewer than five epochs in which α has moved nothing can be decided.

    Args:
        history: operation weights after each epoch, [T, E, O]; each row is normalised first.
        allowed: columns of the candidates that can be chosen.
    """
    totals = history.sum(-1, keepdims=True)
    weights = history.astype(np.float64) / np.where(totals > 0, totals, 1.0)  # [T, E, O]
    present = weights[-1] > 0  # [E, O]; the others were dropped
    start = present / np.maximum(1, present.sum(-1, keepdims=True))  # [E, O]
    steps = np.diff(weights, axis=0, prepend=start[None])  # [T, E, O]
    signs = np.random.default_rng(0).choice((-1.0, 1.0), (DRAWS, len(steps)))  # [R, T]
    walks = start + np.tensordot(signs, steps, 1)  # [R, E, O]
    usable = np.zeros_like(present)
    usable[:, list(allowed)] = True
    usable &= present
    margins, margin = _margins(walks, usable), _margins(weights[-1], usable)  # [R, E], [E]
    # A walk that repeats the real steps differs from them by rounding.
    reached = 1 + (margins >= margin - 1e-12).sum(0)  # [E]
    choices: np.ndarray = (usable.sum(-1) > 1) & (margin > 0) & (reached <= LEVEL * (1 + DRAWS))
    return choices


def _margins(weights: np.ndarray, usable: np.ndarray) -> np.ndarray:
    """Heaviest less second heaviest of the usable candidates: [..., E, O], [E, O] → [..., E]."""
    if weights.shape[-1] < 2:
        return np.zeros(weights.shape[:-1])
    highest = np.sort(np.where(usable, weights, -np.inf), axis=-1)[..., -2:]  # [..., E, 2]
    return np.where(usable.sum(-1) > 1, highest[..., 1] - np.where(usable.sum(-1) > 1, highest[..., 0], 0), 0.0)
