"""The search loop: weight steps, strategy hooks, validation. It knows no strategy by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastnas.data import Pipeline
from fastnas.engine.cuda_graph import Graphs
from fastnas.engine.loop import Loop, Meter, Status, peak_memory_mb
from fastnas.engine.options import WeightOptions
from fastnas.genotype import Genotype
from fastnas.nn import Supernet
from fastnas.spaces import CELL_KINDS
from fastnas.strategies import Strategy


@dataclass(frozen=True)
class Outcome:
    """How a call of `Search.run` ended."""

    status: Status
    epoch: int  # epochs completed since the search began
    genotype: Genotype
    valid_accuracy: float | None  # of the last validation, in 0..1


class Search(Loop):
    """One search, from the first epoch or from a checkpoint.

    Args:
        network: on its device already.
        strategy: moves α.
        weights: optimisation of the weights.
        weight_pipeline: augmented batches of the weight half.
        alpha_pipeline: makes a pipeline of augmented batches of the α half from a batch size.
        valid_pipeline: the α half as it is.
        directory: of the run; exists.
        seed: of everything that the search draws.
        options: plain values, stored in the checkpoint and compared on resume.
        checkpoint: what to continue from; None begins.
        validate_every: epochs.
        stop_after: epochs of this call after which to stop; None for all.
        cuda_graphs: record the kernels of weight steps and populations and launch them together, on CUDA.

    Attributes for strategies:
        network, seed, epochs (planned), epoch and step (in progress, from 0), log, alpha_pipeline, weight_parameters,
        graphs (recordings; dropped at the beginning of each epoch and of its weight steps).
    """

    def __init__(
        self,
        *,
        network: Supernet,
        strategy: Strategy,
        weights: WeightOptions,
        weight_pipeline: Pipeline,
        alpha_pipeline: Callable[[int], Pipeline],
        valid_pipeline: Pipeline,
        directory: Path,
        seed: int,
        options: dict[str, Any],
        checkpoint: dict[str, Any] | None = None,
        validate_every: int = 1,
        stop_after: int | None = None,
        cuda_graphs: bool = True,
    ) -> None:
        super().__init__(
            directory=directory,
            seed=seed,
            options=options,
            epochs=weights.epochs,
            pipeline=weight_pipeline,
            device=next(network.parameters()).device,
            stop_after=stop_after,
        )
        self.network = network
        self.strategy = strategy
        self.weights = weights
        self.weight_pipeline = weight_pipeline
        self.alpha_pipeline = alpha_pipeline
        self.valid_pipeline = valid_pipeline
        self.validate_every = validate_every
        self.graphs = Graphs.on(self.device, cuda_graphs)
        self.weight_parameters = network.weight_parameters()
        self.optimizer = torch.optim.SGD(
            self.weight_parameters,
            lr=weights.rate(0),
            momentum=weights.momentum,
            weight_decay=weights.weight_decay,
        )
        self._prepared = False  # whether before_epoch is done
        self._valid_accuracy: float | None = None
        strategy.start(self)
        self._begin(checkpoint)

    def run(self) -> Outcome:
        """Searches until the last epoch, `stop_after` or a signal.

        Raises:
            DivergedError: NaN or infinite loss; the last checkpoint stays.
        """
        status = self._loop()
        return Outcome(status, self.epoch, self.strategy.genotype(self), self._valid_accuracy)

    # --- one epoch ---

    def _run_epoch(self) -> None:
        self.network.train()
        self.graphs.forget()
        if not self._prepared:
            with self._timed("evolution"):
                self.strategy.before_epoch(self)
            self._prepared = True
        rate = self.weights.rate(self.epoch)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.graphs.forget()
        for images, labels in self._batches():
            with self._timed("train"):
                self.strategy.before_step(self)
                self._weight_step(images, labels)
            self.step += 1
            self.show("weights", self.step, len(self.weight_pipeline))
            self.check_stop()
        self.strategy.after_epoch(self)
        valid_loss, valid_accuracy = None, None
        if (self.epoch + 1) % self.validate_every == 0 or self.epoch + 1 == self.epochs:
            with self._timed("valid"):
                valid_loss, valid_accuracy = self._validate()
            self._valid_accuracy = valid_accuracy
        genotype = self.strategy.genotype(self)
        train_loss, train_accuracy = self._meter.means()
        op_weights = {kind: weights.detach().cpu() for kind, weights in self.network.op_weights().items()}  # [E, O]
        self.log.write(
            "epoch",
            epoch=self.epoch,
            learning_rate=rate,
            train_loss=train_loss,
            train_accuracy=train_accuracy,
            valid_loss=valid_loss,
            valid_accuracy=valid_accuracy,
            alpha_entropy={kind: entropy(op_weights[kind]) for kind in CELL_KINDS},
            skip_count={"normal": genotype.skip_count("normal"), "reduce": genotype.skip_count("reduce")},
            op_weights={kind: op_weights[kind].tolist() for kind in CELL_KINDS},
            genotype=genotype.to_dict(),
            seconds=self._seconds,
            peak_memory_mb=peak_memory_mb(self.device),
        )
        genotype.to_json(self.directory / "genotype.json")
        self._prepared = False
        self._end_epoch()

    def _weight_step(self, images: Tensor, labels: Tensor) -> None:  # [B, C, H, W], [B]
        op_weights = self.strategy.op_weights(self)
        if op_weights is None:
            loss, logits, _ = self.graphs.call("weight step", self._update_weights, images, labels)
        elif any(weights.requires_grad for weights in op_weights.values()):
            # A graph would cut the gradient off from whatever they were computed from.
            loss, logits, _ = self._update_weights(images, labels, *(op_weights[kind] for kind in CELL_KINDS))
        else:
            tables = (op_weights[kind] for kind in CELL_KINDS)  # [E, O] each
            loss, logits, _ = self.graphs.call("weight step", self._update_weights, images, labels, *tables)
        self._meter.add(loss, logits, labels)
        self._check_finite(self.weights.rate(self.epoch))

    def _update_weights(
        self, images: Tensor, labels: Tensor, *op_weights: Tensor
    ) -> tuple[Tensor, Tensor, list[Tensor | None]]:
        """One step of the optimizer; loss [] and logits [B, classes] before it, and all gradients.

        A recording adds to the gradients that were there, of α above all; whoever keeps it has to keep them.
        """
        self.optimizer.zero_grad(set_to_none=True)
        weights = dict(zip(CELL_KINDS, op_weights, strict=True)) if op_weights else None
        logits = self.network(images, weights)  # [B, classes]
        loss = F.cross_entropy(logits, labels)
        loss.backward()
        if self.weights.clip > 0:
            torch.nn.utils.clip_grad_norm_(self.strategy.clipped_parameters(self), self.weights.clip)
        self.optimizer.step()
        return loss.detach(), logits.detach(), [parameter.grad for parameter in self.network.parameters()]

    @torch.no_grad()
    def _validate(self) -> tuple[float, float]:
        """Loss and accuracy of softmax(α) on the α half, by running statistics."""
        self.network.eval()
        meter = Meter.on(self.device)
        for step, (images, labels) in enumerate(self.valid_pipeline.epoch(0)):
            logits = self.network(images)  # [B, classes]
            meter.add(F.cross_entropy(logits, labels), logits, labels)
            self.show("validation", step + 1, len(self.valid_pipeline))
        self.network.train()
        return meter.means()

    # --- checkpoint ---

    def _state(self) -> dict[str, Any]:
        return {
            "prepared": self._prepared,
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "strategy": self.strategy.state_dict(),
            "valid_accuracy": self._valid_accuracy,
        }

    def _load_state(self, checkpoint: dict[str, Any]) -> None:
        self._prepared = checkpoint["prepared"]
        self.network.load_state_dict(checkpoint["network"])
        self.optimizer.load_state_dict(checkpoint["optimizer"])
        self.strategy.load_state_dict(checkpoint["strategy"])
        self._valid_accuracy = checkpoint["valid_accuracy"]

    def _final(self) -> dict[str, Any]:
        return {"valid_accuracy": self._valid_accuracy}


def entropy(op_weights: Tensor) -> float:
    """Mean over edges of -Σ p ln p, in nats: op_weights [E, O]; ln O where α is uniform, 0 where it is decided."""
    p = op_weights.double()
    return -torch.xlogy(p, p).sum(-1).mean().item()
