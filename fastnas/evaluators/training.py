"""Evaluation by a short training from scratch."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Sequence
from random import Random
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from fastnas.data import Pipeline
from fastnas.errors import UserError
from fastnas.evaluators.base import Evaluation, Evaluator
from fastnas.evaluators.clock import stopwatch
from fastnas.evaluators.costs import Costs
from fastnas.nn.batch_norm import check_one_image
from fastnas.spaces.encoding import Code, Encoding


class ShortTraining(Evaluator):
    """Validation accuracy after a few epochs: SGD with a cosine from 0.025 to 0, momentum 0.9, weight decay 3e-4,
    gradients clipped at 5 (the recipe of DARTS). The same code gets the same initial weights and the same batches every
    time.

    Args:
        encoding: of the codes.
        build: makes the network of a genotype.
        training: augmented batches.
        validation: other images, as they are.
        epochs: passes over the training images.
        seed: of the initial weights.
        costs: what else is measured for each architecture.
    """

    def __init__(
        self,
        encoding: Encoding,
        build: Callable[[Any], nn.Module],
        training: Pipeline,
        validation: Pipeline,
        epochs: int = 1,
        seed: int = 0,
        costs: Costs | None = None,
    ) -> None:
        if epochs < 1:
            raise UserError(f"epochs of short training is {epochs}, expected at least 1.")
        self.encoding, self.build = encoding, build
        self.training, self.validation = training, validation
        self.epochs, self.seed, self.costs = epochs, seed, costs
        if training.batch_size == 1:
            source = training.source
            with torch.random.fork_rng(devices=[]):
                network = build(encoding.decode(encoding.sample(Random(0))))
            check_one_image(network, (source.channels, *source.image_size), "give --batch-size 2 or more")

    def evaluate(self, codes: Sequence[Code]) -> list[Evaluation]:
        evaluations = []
        for code in codes:
            with stopwatch() as clock:
                accuracy = self._accuracy(code)
            evaluations.append(Evaluation(accuracy, clock.seconds, self.costs.of(code) if self.costs else {}))
        return evaluations

    def _accuracy(self, code: Code) -> float:
        device = self.training.device
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(zlib.crc32(repr((self.seed, code)).encode()))
            network = self.build(self.encoding.decode(code)).to(device).to(memory_format=torch.channels_last)
            self._train(network)
        network.eval()
        correct = 0
        with torch.no_grad():
            for images, labels in self.validation.epoch(0):
                correct += int((network(images).argmax(-1) == labels).sum())
        return correct / len(self.validation.indices)

    def _train(self, network: nn.Module) -> None:
        network.train()
        optimizer = torch.optim.SGD(network.parameters(), lr=0.025, momentum=0.9, weight_decay=3e-4)
        for epoch in range(self.epochs):
            for group in optimizer.param_groups:
                group["lr"] = 0.025 * (1 + math.cos(math.pi * epoch / self.epochs)) / 2
            for images, labels in self.training.epoch(epoch):
                optimizer.zero_grad(set_to_none=True)
                F.cross_entropy(network(images), labels).backward()
                torch.nn.utils.clip_grad_norm_(network.parameters(), 5.0)
                optimizer.step()
