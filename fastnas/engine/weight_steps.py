"""How the weights of a supernet are trained: one step of SGD on one batch, by several processes if need be."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from fastnas.engine.cuda_graph import Graphs
from fastnas.engine.loop import Loop
from fastnas.engine.options import WeightOptions, drop_path_at
from fastnas.nn import Supernet
from fastnas.strategies.base import Strategy
from fastnas.strategies.context import SearchContext


class WeightSteps(Loop):
    """A loop that trains the weights of a supernet under a strategy. A subclass sets the attributes, and then calls
    `_optimize`."""

    network: Supernet
    strategy: Strategy
    weights: WeightOptions
    graphs: Graphs
    scaler: torch.amp.GradScaler

    @property
    def _context(self) -> SearchContext:
        return cast(SearchContext, self)  # a subclass is one

    def _optimize(self) -> None:
        self.weight_parameters = self.network.weight_parameters()
        self.optimizer = torch.optim.SGD(
            self.weight_parameters,
            lr=self.weights.rate(0),
            momentum=self.weights.momentum,
            weight_decay=self.weights.weight_decay,
            nesterov=self.weights.nesterov,
        )

    def _weight_step(self, images: Tensor, labels: Tensor) -> None:  # [B, C, H, W], [B]
        op_weights = self.strategy.op_weights(self._context) if self.strategy.plain_step else None
        tables = [] if op_weights is None else [op_weights[kind] for kind in self.network.alphas]  # [E, O] each
        # A graph would cut off the gradients of the tables, and repeat the random draws of a step that is not plain. A
        # scaler waits for the GPU, to see whether gradients are finite.
        plain = self.strategy.plain_step and self.weights.search_drop_path == 0 and not self.scaler.is_enabled()
        if not plain or any(table.requires_grad for table in tables):
            loss, logits, _ = self._update_weights(images, labels, *tables)
        elif self.world.size == 1:
            loss, logits, _ = self.graphs.call("weight step", self._update_weights, images, labels, *tables)
        else:  # a graph cannot wait for other processes
            loss, logits, _ = self.graphs.call("gradients", self._differentiate, images, labels, *tables)
            self.world.average_gradients(self.network.parameters())
            self.graphs.call("step of the optimizer", self._step_weights)
        self._meter.add(loss, logits, labels)
        self._check_finite(self.optimizer.param_groups[0]["lr"])

    def _update_weights(
        self, images: Tensor, labels: Tensor, *tables: Tensor
    ) -> tuple[Tensor, Tensor, list[Tensor | None]]:
        """One step of the optimizer; loss [] and logits [B, classes] before it, and all gradients."""
        results = self._differentiate(images, labels, *tables)
        self.world.average_gradients(self.network.parameters())
        self._step_weights()
        return results

    def _differentiate(
        self, images: Tensor, labels: Tensor, *tables: Tensor
    ) -> tuple[Tensor, Tensor, list[Tensor | None]]:
        """Loss [] and logits [B, classes], and all gradients, in `.grad`.

        A recorded step accumulates into the `.grad` tensors that it was recorded with, so the recording has to keep
        them alive; that is why they are returned.
        """
        self.optimizer.zero_grad(set_to_none=True)
        with self._dropping():
            if self.strategy.plain_step:
                op_weights = dict(zip(self.network.alphas, tables, strict=True)) if tables else None
                logits = self.network(images, op_weights)  # [B, classes]
            else:
                logits = self.strategy.logits(self._context, images)  # [B, classes]
        loss = F.cross_entropy(logits, labels)
        self.scaler.scale(loss + self.strategy.penalty(self._context)).backward()
        return loss.detach(), logits.detach(), [parameter.grad for parameter in self.network.parameters()]

    def _step_weights(self) -> None:
        self._unscale()
        if self.weights.clip > 0:
            torch.nn.utils.clip_grad_norm_(self.strategy.clipped_parameters(self._context), self.weights.clip)
        self.scaler.step(self.optimizer)
        self.scaler.update()

    @property
    def loss_scale(self) -> float:
        """What losses are multiplied by before they are differentiated, for float16; 1 otherwise."""
        return self.scaler.get_scale()

    def _unscale(self) -> None:
        """The gradients of all parameters as they are without the scale of float16, those of α included."""
        if not self.scaler.is_enabled():
            return
        self.scaler.unscale_(self.optimizer)
        weights, factor = {id(parameter) for parameter in self.weight_parameters}, 1 / self.loss_scale
        for parameter in self.network.parameters():
            if parameter.grad is not None and id(parameter) not in weights:
                parameter.grad.mul_(factor)

    @contextmanager
    def _dropping(self) -> Iterator[None]:
        """Within it the network drops edges, as `search_drop_path` says."""
        network, schedule = self.network, self.weights.search_drop_path_schedule
        network.drop_path_by_depth = schedule == "scheduled"
        largest = self.weights.search_drop_path
        network.drop_path_prob = drop_path_at(largest, schedule, *self.strategy.schedule(self._context))
        try:
            yield
        finally:
            network.drop_path_prob = 0.0
