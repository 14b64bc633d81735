"""Loss and accuracy of the individuals of EG-NAS by shared weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from fastnas.nn import Supernet
from fastnas.nn.supernet import OpWeights
from fastnas.spaces.encoding import encoding_of
from fastnas.strategies.alpha_vector import AlphaVector
from fastnas.strategies.context import RecordedCalls
from fastnas.strategies.egnas_variants import BatchNormMode, Score
from fastnas.strategies.gumbel import gumbel_softmax
from fastnas.world import World

Batches = Sequence[tuple[Tensor, Tensor]]


class Scores:
    """Scores individuals on batches of images; the network stays as it is, but for running statistics in `bn_mode`
    "train".

    Args:
        network: the supernet.
        graphs: of the search.
        vector: how its α is a vector.
        score: "mixture": all candidates weighed by softmax(z); "cell": the cell that is derived from it alone.
        bn_mode: "batch", "running", or "train": by the batch, while running statistics are updated.
        chunk: individuals in one forward pass.
        world: the processes that share out the individuals; in `bn_mode` "train", where each leaves its statistics to
            the next one, all do the same.
    """

    def __init__(
        self,
        network: Supernet,
        graphs: RecordedCalls,
        vector: AlphaVector,
        score: Score,
        bn_mode: BatchNormMode,
        chunk: int | Literal["auto"],
        world: World,
    ) -> None:
        self._network = network
        self._graphs = graphs
        self._vector = vector
        self._score = score
        self._bn_mode = bn_mode
        self._chunk = None if chunk == "auto" else chunk
        self._world = world

    @torch.no_grad()
    def of(self, candidates: Tensor, batches: Batches) -> tuple[Tensor, Tensor]:
        """Mean loss [P] and accuracy [P] of candidates [P, n] as logits."""
        if self._bn_mode == "train":
            return self._of_own(candidates, batches)
        own = candidates[self._world.part(len(candidates))]
        found = torch.stack(self._of_own(own, batches), -1) if len(own) else torch.empty(0, 2, dtype=torch.float64)
        loss, accuracy = self._world.joined_parts(found, len(candidates)).unbind(-1)
        return loss, accuracy

    def _of_own(self, candidates: Tensor, batches: Batches) -> tuple[Tensor, Tensor]:
        tables = self._vector.split(candidates)  # [P, E, O] each
        loss = torch.zeros(len(candidates), dtype=torch.float64, device=candidates.device)  # [P], sum over the images
        correct, count = torch.zeros_like(loss), 0  # integers, so that equal accuracies are equal to the last bit
        for images, labels in batches:
            logits = self._logits(images, tables).double()  # [P, B, classes]
            each = F.cross_entropy(logits.flatten(0, 1), labels.repeat(len(candidates)), reduction="none")  # [P·B]
            loss += each.view(len(candidates), -1).sum(1)
            correct += (logits.argmax(-1) == labels).sum(1)
            count += len(labels)
        return (loss / count).cpu(), (correct / count).cpu()

    def drawn_path(self, generator: torch.Generator) -> OpWeights:
        """The path of a cell that is drawn from softmax(α): the one that is derived from α after Gumbel noise."""
        alphas = {kind: alpha.detach().cpu() for kind, alpha in self._network.alphas.items()}  # [E, O]
        return self.path_of(
            {kind: gumbel_softmax(torch.log_softmax(a, -1), 1.0, generator) for kind, a in alphas.items()}
        )

    def path_of(self, op_weights: OpWeights) -> OpWeights:
        """One-hot operation weights [E, O] of the cell that is derived from these."""
        encoding = encoding_of(self._network.space)
        return encoding.op_weights(encoding.encode(self._network.space.derive(op_weights)))

    def _logits(self, images: Tensor, tables: dict[str, Tensor]) -> Tensor:
        if self._score == "cell":
            return self._cells(images, tables)
        if self._bn_mode == "train":
            return self._in_training_mode(images, tables)
        network, bn_mode = self._network, self._bn_mode
        if self._chunk is None:
            # Only once: free memory changes from call to call, but a recording needs one size.
            self._chunk = network.fitting_chunk(images)
        chunk = self._chunk

        def evaluate(images: Tensor, *tables: Tensor) -> Tensor:
            alphas = dict(zip(self._vector.shapes, tables, strict=True))
            return network.population_logits(images, alphas, chunk=chunk, bn_mode=bn_mode)

        return self._graphs.call("population", evaluate, images, *tables.values())

    def _cells(self, images: Tensor, tables: dict[str, Tensor]) -> Tensor:
        weights = {kind: torch.softmax(table, -1).cpu() for kind, table in tables.items()}  # [P, E, O]
        count = len(next(iter(weights.values())))
        paths = [self.path_of({kind: table[p] for kind, table in weights.items()}) for p in range(count)]
        assert self._bn_mode != "train"
        return self._network.path_population_logits(images, paths, bn_mode=self._bn_mode)

    def _in_training_mode(self, images: Tensor, tables: dict[str, Tensor]) -> Tensor:
        network = self._network
        weights = {kind: torch.softmax(table, -1) for kind, table in tables.items()}  # [P, E, O]
        count = len(next(iter(weights.values())))
        was_training = network.training
        try:
            network.train()
            each = [network(images, {kind: table[p] for kind, table in weights.items()}) for p in range(count)]
        finally:
            network.train(was_training)
        return torch.stack(each)
