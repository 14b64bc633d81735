"""Evaluation by the shared weights of a supernet."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Literal, cast

import torch
from torch import Tensor, nn

from fastnas.evaluators.base import Evaluation, Evaluator
from fastnas.evaluators.clock import stopwatch
from fastnas.evaluators.costs import Costs
from fastnas.nn import Supernet
from fastnas.nn.batch_norm import individual_statistics
from fastnas.spaces.encoding import Code, encoding_of

Batches = Iterable[tuple[Tensor, Tensor]]
RECALIBRATION_BATCHES = 20


def joined(batches: Batches, images: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Neighbouring batches as one, until they have at least so many images; what is left over belongs to the last.

    Statistics of a batch are as good as it is large, and an incomplete last one may hold a single image.
    """
    held: tuple[Tensor, Tensor] | None = None  # complete, and kept back for what may be left over
    parts: list[tuple[Tensor, Tensor]] = []
    for batch in batches:
        parts.append(batch)
        if sum(len(labels) for _, labels in parts) >= images:
            if held is not None:
                yield held
            held, parts = _joined(parts), []
    if held is not None or parts:
        yield _joined([*([] if held is None else [held]), *parts])


def _joined(parts: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    if len(parts) == 1:
        return parts[0]
    # torch.cat keeps the memory format, which the operators read in place.
    return torch.cat([images for images, _ in parts]), torch.cat([labels for _, labels in parts])


class SharedWeights(Evaluator):
    """Accuracy of paths through a supernet (Bender et al., "Understanding and Simplifying One-Shot NAS", ICML 2018).

    Args:
        network: the supernet; its weights and running statistics stay as they are.
        batches: returns the validation batches for one call of `evaluate`; "recalibrate" calls it once for each path,
            and expects the same ones.
        bn_mode: "batch" normalises by the validation batch, "running" by the statistics of training, "recalibrate" by
            statistics of each path alone, taken anew from `training_batches`.
        training_batches: returns about 20 training batches; for "recalibrate" only.
        costs: what else is measured for each architecture.
    """

    together = True

    def __init__(
        self,
        network: Supernet,
        batches: Callable[[], Batches],
        bn_mode: Literal["batch", "running", "recalibrate"] = "batch",
        training_batches: Callable[[], Batches] | None = None,
        costs: Costs | None = None,
    ) -> None:
        self.network = network
        self.encoding = encoding_of(network.space)
        self.batches = batches
        self.bn_mode = bn_mode
        self.training_batches = training_batches
        self.costs = costs

    @torch.no_grad()
    def evaluate(self, codes: Sequence[Code]) -> list[Evaluation]:
        paths = [self.encoding.op_weights(code) for code in codes]
        with stopwatch() as clock:
            correct = torch.zeros(len(codes), dtype=torch.float64)  # [P]
            count = 0
            if self.bn_mode == "recalibrate":
                for index, path in enumerate(paths):
                    correct[index], count = self._recalibrated(path)
            else:
                for images, labels in self.batches():
                    logits = self.network.path_population_logits(images, paths, bn_mode=self.bn_mode)  # [P, B, classes]
                    correct += (logits.argmax(-1) == labels).sum(1).cpu()
                    count += len(labels)
        seconds = clock.seconds / max(1, len(codes))
        return [
            Evaluation(hits / count, seconds, self.costs.of(code) if self.costs else {})
            for code, hits in zip(codes, correct.tolist(), strict=True)
        ]

    def _recalibrated(self, path: Mapping[str, Tensor]) -> tuple[int, int]:
        """Correct answers, of how many, under statistics of this path alone; those of the network are put back."""
        assert self.training_batches is not None
        layers = [module for module in self.network.modules() if isinstance(module, nn.BatchNorm2d)]
        kept = copy.deepcopy([(layer._buffers, layer.momentum) for layer in layers])
        training = self.network.training
        try:
            self.network.train()
            for number, (images, _) in enumerate(self.training_batches()):
                for layer in layers:
                    layer.momentum = 1 / (number + 1)  # makes running statistics the mean over the batches
                self.network.path_logits(images, path)
            self.network.eval()
            hits, count = torch.zeros((), dtype=torch.int64), 0
            for images, labels in self.batches():
                hits += (self.network.path_logits(images, path).argmax(-1) == labels).sum().cpu()
                count += len(labels)
            return int(hits), count
        finally:
            for layer, (buffers, momentum) in zip(layers, kept, strict=True):
                for name, buffer in buffers.items():
                    cast(Tensor, layer._buffers[name]).copy_(cast(Tensor, buffer))
                layer.momentum = momentum
            self.network.train(training)


@torch.no_grad()
def path_logits(network: Supernet, images: Tensor, path: Mapping[str, Tensor], batch_statistics: bool) -> Tensor:
    """[B, classes] of one path, by the statistics of these images or by running ones."""
    if not batch_statistics:
        return network.path_logits(images, path)
    with individual_statistics(network, images=len(images)):
        return network.path_logits(images, path)
