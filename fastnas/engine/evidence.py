"""What a search says about its own worth: how its cell fares beside random ones, and how far α has decided."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Mapping
from random import Random
from typing import Any

import torch
from torch import Tensor

from fastnas.engine.decided import decided
from fastnas.engine.sizes import operation_parameters
from fastnas.errors import UserError
from fastnas.evaluators.shared import joined
from fastnas.genotype import AnyGenotype
from fastnas.nn.batch_norm import individual_statistics
from fastnas.spaces.encoding import encoding_of, op_weights_of, zero_weights
from fastnas.strategies.base import Strategy
from fastnas.strategies.context import SearchContext

RANDOM_CELLS = 100
DRAWN = 2000
"""Random cells of which the `RANDOM_CELLS` nearest in size are taken."""
LEAST_IMAGES = 64
TRAINED_PER_IMAGE = {"supernet": 400, "cell": 800}
"""Cells are compared on one image for so many that the weights were trained on, repetitions counted: so the comparison
takes a small share of the run, and the same one in every repetition. By what the strategy validates: one that validates
a cell trains paths, whose weight steps are shorter."""
MOST_SKIPS = 2
"""In a normal cell, as P-DARTS (M) and DARTS+ (criterion 1) have it."""
AT_ONCE = 25  # cells between two looks for a signal
SEED_KEY = 2**31  # which no epoch and no step reaches


class Evidence:
    """Watches a search and sums it up at its end.

    Cells are evaluated as paths through the supernet, by its weights as they are, each operation with weight 1 and
    without weights of edges. Every BatchNorm takes the statistics of the images at hand, at least 64 at a time where
    there are so many: running statistics belong to the mixture of all candidates and would normalise single paths
    wrongly. Nothing of the search changes: no parameter, no statistics, no random number that it draws.

    Args:
        strategy: of the search.
        group: at least so many images are evaluated at once, if there are as many.
    """

    def __init__(self, strategy: Strategy, group: int) -> None:
        self.strategy = strategy
        self.group = group
        self.forget()

    def forget(self) -> None:
        """Begins anew, with a new supernet."""
        self._history: dict[str, list[Tensor]] = {}  # operation weights [E, O] after each epoch, by kind
        self._begin_validation()

    @property
    def _has_gap(self) -> bool:
        """Whether the supernet is something else than its cell."""
        return self.strategy.derives_from_alpha and self.strategy.validates == "supernet"

    def _begin_validation(self) -> None:
        self._hits: list[Tensor] = []  # [2]: correct answers of the supernet and of its cell
        self._images = 0

    # --- on the way ---

    @torch.no_grad()
    def validated(self, search: SearchContext, images: Tensor, labels: Tensor, logits: Tensor | None) -> None:
        """On the first images of a validation [B, C, H, W], [B]: what supernet and derived cell get right.

        Args:
            logits: of the supernet, [B, classes], by the statistics of these images; None where they have to be
                computed.
        """
        if self._images >= LEAST_IMAGES or not self._has_gap:
            return
        path = _path(search, self.strategy.genotype(search))
        if path is None:
            return
        with individual_statistics(search.network, images=len(images)):
            if logits is None:
                logits = self.strategy.validation_logits(search, images)
            cell = search.network.path_logits(images, path)
        self._hits.append(torch.stack([(each.argmax(-1) == labels).sum() for each in (logits, cell)]))
        self._images += len(labels)

    def after_epoch(self, op_weights: Mapping[str, Tensor]) -> dict[str, float] | None:
        """Takes the operation weights [E, O] of an epoch. Accuracies of the supernet and of its cell in its validation,
        if there was one."""
        for kind, table in op_weights.items():
            self._history.setdefault(kind, []).append(table)
        measured = _gap(self._hits, self._images)
        self._begin_validation()
        return measured

    # --- at the end ---

    @torch.no_grad()
    def sum_up(self, search: SearchContext) -> dict[str, Any]:
        """The fields of the "evidence" event; `docs/evidence.md` explains them.

        Raises:
            Interrupted: the user asked to stop. The next process begins anew, and comes to the same figures.
        """
        begin = time.perf_counter()
        genotype = self.strategy.genotype(search)
        record: dict[str, Any] = {"cells": {kind: _operations(genotype, kind) for kind in genotype.kinds}}
        path = _path(search, genotype)
        if path is not None:
            search.network.eval()
            try:
                record |= self._compare(search, path)
            finally:
                search.network.train()
        if self.strategy.derives_from_alpha and self._history:
            record["alpha"] = self._alpha(search)
        return {**record, "seconds": time.perf_counter() - begin}

    def _compare(self, search: SearchContext, path: dict[str, Tensor]) -> dict[str, Any]:
        size, others, sizes = _comparable(search, path)
        if not others:
            return {}
        network, strategy = search.network, self.strategy
        trained = search.epoch * len(search.weight_pipeline) * search.weight_pipeline.batch_size
        wanted = max(LEAST_IMAGES, trained // TRAINED_PER_IMAGE[strategy.validates])
        pipeline = search.valid_pipeline
        # A GPU takes as long for few images as for many.
        group = min(wanted, 8 * pipeline.batch_size if search.device.type == "cuda" else self.group)
        total = -(-min(wanted, len(pipeline.indices)) // group) * (len(others) + 1)
        paths = [path, *others]
        count, done = 0, 0
        hits = torch.zeros(len(paths), dtype=torch.int64, device=search.device)  # [P]
        supernet: list[Tensor] = []
        for images, labels in joined(pipeline.epoch(0), group):
            for first in range(0, len(paths), AT_ONCE):
                some = paths[first : first + AT_ONCE]
                logits = network.path_population_logits(images, some, bn_mode="batch")  # [n, B, classes]
                hits[first : first + AT_ONCE] += (logits.argmax(-1) == labels).sum(1)
                done += len(some)
                search.show("evidence", min(done, total), total)
                search.check_stop()
            if self._has_gap:
                with individual_statistics(network, images=len(images)):
                    logits = strategy.validation_logits(search, images)  # [B, classes]
                supernet.append((logits.argmax(-1) == labels).sum())
            count += len(labels)
            if count >= wanted:
                break
        found, *rest = hits.tolist()
        better, equal = sum(each < found for each in rest), sum(each == found for each in rest)
        comparison = {
            "images": count,
            "of_images": len(pipeline.indices),
            "accuracy": found / count,
            "random": [each / count for each in rest],
            "better_than": better,
            "equal": equal,
            "percentile": 100 * (better + equal / 2) / len(rest),
            "parameters": size,
            "random_parameters": [min(sizes), max(sizes)],
            "drawn": DRAWN,
        }
        if not supernet:
            return {"comparison": comparison}
        right = torch.stack([torch.stack(supernet).sum(), hits[0]])
        return {"comparison": comparison, "derivation": _gap([right], count)}

    def _alpha(self, search: SearchContext) -> dict[str, Any]:
        space = search.network.space
        # "none" is never derived where nodes choose their edges.
        allowed = [column for column, name in enumerate(space.candidates) if name != "none" or space.inputs == 1]
        kinds = {}
        for kind, tables in self._history.items():
            history = torch.stack(tables).double().cpu().numpy()  # [T, E, O]
            choices = decided(history, allowed)  # [E]
            kinds[kind] = {
                "choices": len(choices),
                "decided": int(choices.sum()),
                "entropy": entropy(tables[-1]),
                "uniform": math.log(len(space.candidates)),
            }
        totals = {name: sum(each[name] for each in kinds.values()) for name in ("choices", "decided")}
        return {**totals, "kinds": kinds}

    # --- what a checkpoint holds ---

    def state_dict(self) -> dict[str, Any]:
        return {"op_weights": {kind: torch.stack(tables) for kind, tables in self._history.items()}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._history = {kind: list(tables) for kind, tables in state["op_weights"].items()}


def _path(search: SearchContext, genotype: AnyGenotype) -> dict[str, Tensor] | None:
    """Operation weights of a genotype's path; None for a cell that is not in the space, as a strategy of one's own may
    make it."""
    try:
        return op_weights_of(search.network.space, genotype)
    except UserError:
        return None


def _comparable(search: SearchContext, path: Mapping[str, Tensor]) -> tuple[int, list[dict[str, Tensor]], list[int]]:
    """Parameters of a path's operations, the paths of other cells of about that size, and their parameters.

    Of `DRAWN` random cells, each decision uniform, those `RANDOM_CELLS` that are different and nearest in size.
    """
    space = search.network.space
    costs, encoding = operation_parameters(search.network), encoding_of(space)
    own = {(kind, edge, column): int(n) for kind, table in path.items() for (edge, column), n in _entries(table)}
    size = sum(n * costs[kind][edge][column] for (kind, edge, column), n in own.items())
    random = Random(search.seed_for(SEED_KEY))
    drawn = dict.fromkeys(frozenset(encoding.operations(encoding.sample(random))) for _ in range(DRAWN))
    drawn.pop(frozenset(own), None)
    sizes = [(sum(costs[kind][edge][column] for kind, edge, column in cell), cell) for cell in drawn]
    nearest = sorted(sizes, key=lambda pair: abs(pair[0] - size))[:RANDOM_CELLS]  # stable
    paths = []
    for _, cell in nearest:
        weights = zero_weights(space)
        for kind, edge, column in cell:
            weights[kind][edge, column] = 1
        paths.append(weights)
    return size, paths, [count for count, _ in nearest]


def _entries(table: Tensor) -> list[tuple[tuple[int, int], float]]:
    """((row, column), value) of what is not 0."""
    return [((row, column), table[row, column].item()) for row, column in table.nonzero().tolist()]


def _operations(genotype: AnyGenotype, kind: Any) -> dict[str, Any]:
    """How often each operation occurs in a cell, the most frequent first, and the skip connections among them."""
    names = Counter(name for pairs in genotype.pairs(kind) for name, _ in pairs)
    skips = genotype.skip_count(kind)
    many = skips > MOST_SKIPS and genotype.inputs == 2 and kind.endswith("normal")
    return {"operations": dict(names.most_common()), "skips": skips, "many_skips": many}


def _gap(hits: list[Tensor], images: int) -> dict[str, float] | None:
    """Accuracies from correct answers [2] of the supernet and of its cell."""
    if not hits:
        return None
    supernet, cell = torch.stack(hits).sum(0).tolist()
    return {"supernet": supernet / images, "cell": cell / images}


def entropy(op_weights: Tensor) -> float:
    """Mean over edges of -Σ p ln p, in nats: op_weights [E, O]; ln O where α is uniform, 0 where it is decided.

    Each row is normalised first: a strategy may weigh whole edges, or leave some out."""
    p = op_weights.double()
    p = p / p.sum(-1, keepdim=True).clamp(min=1e-300)
    return max(0.0, -torch.xlogy(p, p).sum(-1).mean().item())  # not -0.0
