"""The search loop: weight steps, strategy hooks, validation, checkpoints. It knows no strategy by name."""

from __future__ import annotations

import math
import resource
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fastnas.data import Pipeline
from fastnas.engine.checkpoint import random_state, save_checkpoint, set_random_state
from fastnas.engine.cuda_graph import Graphs
from fastnas.engine.interrupt import Interrupted, InterruptGuard
from fastnas.engine.log import RunLog
from fastnas.engine.options import WeightOptions
from fastnas.errors import UserError
from fastnas.genotype import Genotype
from fastnas.nn import Supernet
from fastnas.spaces import CELL_KINDS
from fastnas.strategies import Strategy

# Reading the loss waits for a GPU, so there it is checked once in so many steps.
STEPS_BETWEEN_CHECKS = {"cpu": 1, "cuda": 20}


class DivergedError(UserError):
    """The loss became NaN or infinite."""


@dataclass(frozen=True)
class Outcome:
    """How a call of `Search.run` ended."""

    status: Literal["finished", "interrupted", "stopped"]  # by itself, by a signal, by stop_after
    epoch: int  # epochs completed since the search began
    genotype: Genotype
    valid_accuracy: float | None  # of the last validation, in 0..1


@dataclass
class Meter:
    """Running sums of the epoch in progress, on the device and part of the checkpoint."""

    loss: Tensor  # [] float64
    correct: Tensor  # [] int64
    images: int = 0

    @classmethod
    def on(cls, device: torch.device) -> Meter:
        return cls(
            torch.zeros((), dtype=torch.float64, device=device), torch.zeros((), dtype=torch.int64, device=device)
        )

    def add(self, loss: Tensor, logits: Tensor, labels: Tensor) -> None:  # [], [B, classes], [B]
        self.loss += loss.detach().double() * len(labels)
        self.correct += (logits.argmax(-1) == labels).sum()
        self.images += len(labels)

    def means(self) -> tuple[float, float]:
        """Loss and accuracy per image."""
        return self.loss.item() / self.images, self.correct.item() / self.images


class Search:
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
        self.network = network
        self.strategy = strategy
        self.weights = weights
        self.weight_pipeline = weight_pipeline
        self.alpha_pipeline = alpha_pipeline
        self.valid_pipeline = valid_pipeline
        self.directory = directory
        self.seed = seed
        self.options = options
        self.validate_every = validate_every
        self.stop_after = stop_after
        self.epochs = weights.epochs
        self.epoch = 0
        self.step = 0
        self.device = next(network.parameters()).device
        self.graphs = Graphs.on(self.device, cuda_graphs)
        self.weight_parameters = network.weight_parameters()
        self.optimizer = torch.optim.SGD(
            self.weight_parameters,
            lr=weights.rate(0),
            momentum=weights.momentum,
            weight_decay=weights.weight_decay,
        )
        self.show: Callable[[str, int, int], None] = lambda phase, done, total: None
        """Called with what is being done and how far it is; the command line draws a bar with it."""
        self._meter = Meter.on(self.device)
        self._prepared = False  # whether before_epoch is done
        self._valid_accuracy: float | None = None
        self._seconds: dict[str, float] = {}
        self._guard = InterruptGuard()
        strategy.start(self)
        self.resumed = checkpoint is not None
        if checkpoint is None:
            self.log = RunLog(directory)
        else:
            self._restore(checkpoint)

    @property
    def checkpoint_path(self) -> Path:
        return self.directory / "checkpoint.pt"

    def seed_for(self, *key: int) -> int:
        """A seed, below 2³², that depends on the run's seed and `key` alone: draws need no generator that lives on."""
        return int(np.random.SeedSequence(self.seed, spawn_key=key).generate_state(1)[0])

    def check_stop(self) -> None:
        """Raises `Interrupted` if the user asked to stop. Call it where the state is complete."""
        if self._guard.requested is not None:
            raise Interrupted

    def run(self) -> Outcome:
        """Searches until the last epoch, `stop_after` or a signal.

        Raises:
            DivergedError: NaN or infinite loss; the last checkpoint stays.
        """
        started = self.epoch
        status: Literal["finished", "interrupted", "stopped"] = "finished"
        with self._guard:
            if not self.resumed:
                self.save()
            try:
                while self.epoch < self.epochs:
                    self._run_epoch()
                    if self.epoch < self.epochs:
                        if self.stop_after is not None and self.epoch - started >= self.stop_after:
                            status = "stopped"
                            break
                        self.check_stop()
            except Interrupted:
                status = "interrupted"
                self.save()
        if status == "finished":
            self.log.write("end", valid_accuracy=self._valid_accuracy)
        else:
            reason = self._guard.requested or f"stop_after={self.stop_after}"
            self.log.write("interrupted", epochs_done=self.epoch, step=self.step, reason=reason)
        self.log.close()
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
        for images, labels in self._weight_batches():
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
        self.epoch += 1
        self.step, self._prepared = 0, False
        self._meter, self._seconds = Meter.on(self.device), {}
        self.save()

    def _weight_batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        batches = self.weight_pipeline.epoch(self.epoch, start=self.step)
        while True:
            with self._timed("data"):
                batch = next(batches, None)
            if batch is None:
                return
            yield batch

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
        interval = STEPS_BETWEEN_CHECKS.get(self.device.type, 1)
        if (self.step + 1) % interval == 0 or self.step + 1 == len(self.weight_pipeline):
            self._check_finite()

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

    def _check_finite(self) -> None:
        loss = self._meter.loss.item()
        if not math.isfinite(loss):
            raise DivergedError(
                f"the loss became {loss} at epoch {self.epoch}, step {self.step} (learning rate "
                f"{self.weights.rate(self.epoch):.4g}). The last good checkpoint is {self.checkpoint_path}; start "
                "again with a lower --learning-rate or a smaller --clip."
            )

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

    @contextmanager
    def _timed(self, phase: str) -> Iterator[None]:
        begin = time.perf_counter()
        try:
            yield
        finally:
            self._seconds[phase] = self._seconds.get(phase, 0.0) + time.perf_counter() - begin

    # --- checkpoint ---

    def save(self) -> None:
        """Writes the checkpoint: all that a process needs to go on as if nothing had happened."""
        save_checkpoint(
            self.checkpoint_path,
            {
                "options": self.options,
                "images": self._images(),
                "clock": {"epoch": self.epoch, "step": self.step, "prepared": self._prepared},
                "network": self.network.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "strategy": self.strategy.state_dict(),
                "meter": {"loss": self._meter.loss, "correct": self._meter.correct, "images": self._meter.images},
                "random": random_state(),
                "log_position": self.log.position(),
                "valid_accuracy": self._valid_accuracy,
                "seconds": dict(self._seconds),
            },
        )

    def _images(self) -> dict[str, Any]:
        """What a continuation must find unchanged: with other images the same positions would mean other batches."""
        source = self.weight_pipeline.source
        return {"count": len(source), "classes": list(source.classes), "image_size": list(source.image_size)}

    def _restore(self, checkpoint: dict[str, Any]) -> None:
        before, now = checkpoint["images"], self._images()
        if changed := [name for name in now if now[name] != before[name]]:
            name = changed[0]
            raise UserError(
                f"the images in {self.weight_pipeline.source.spec} are not those that the run in {self.directory} "
                f"began with: {name} is {now[name]} but was {before[name]}. Restore them, or start a new run."
            )
        clock, meter = checkpoint["clock"], checkpoint["meter"]
        self.epoch, self.step, self._prepared = clock["epoch"], clock["step"], clock["prepared"]
        self.network.load_state_dict(checkpoint["network"])
        self.optimizer.load_state_dict(checkpoint["optimizer"])
        self.strategy.load_state_dict(checkpoint["strategy"])
        self._meter = Meter(meter["loss"].to(self.device), meter["correct"].to(self.device), meter["images"])
        self._valid_accuracy = checkpoint["valid_accuracy"]
        self._seconds = dict(checkpoint["seconds"])
        self.log = RunLog(self.directory, checkpoint["log_position"], self.epoch)
        set_random_state(checkpoint["random"])


def entropy(op_weights: Tensor) -> float:
    """Mean over edges of -Σ p ln p, in nats: op_weights [E, O]; ln O where α is uniform, 0 where it is decided."""
    p = op_weights.double()
    return -torch.xlogy(p, p).sum(-1).mean().item()


def peak_memory_mb(device: torch.device) -> float:
    """Largest memory so far in MiB: allocated on a GPU, else resident in the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)
