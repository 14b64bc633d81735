"""The search loop: weight steps, strategy hooks, validation. It knows no strategy by name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import NoneType
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastnas.data import Pipeline
from fastnas.data.source import digest_of
from fastnas.engine.checkpoint import check_layout
from fastnas.engine.cuda_graph import Graphs
from fastnas.engine.evidence import Evidence, entropy
from fastnas.engine.loop import Status, is_validated, peak_memory_mb
from fastnas.engine.meter import Meter
from fastnas.engine.options import WeightOptions
from fastnas.engine.sizes import derived_sizes
from fastnas.engine.weight_steps import WeightSteps
from fastnas.evaluators.shared import joined
from fastnas.genotype import AnyGenotype
from fastnas.nn import Supernet
from fastnas.nn.batch_norm import individual_statistics
from fastnas.optimizer_state import load_optimizer
from fastnas.strategies.base import Strategy
from fastnas.world import ALONE, World


@dataclass(frozen=True)
class Outcome:
    """How a call of `Search.run` ended."""

    status: Status
    epoch: int  # epochs completed since the search began
    genotype: AnyGenotype
    valid_accuracy: float | None  # of the last validation, in 0..1
    valid_of: str = "supernet"  # whose accuracy it is: "supernet", or "cell": one architecture by shared weights
    chosen: dict[str, Any] | None = None  # see `Strategy.chosen`
    derived: Sequence[dict[str, Any]] = ()  # see `derived_sizes`; empty until finished
    evidence: dict[str, Any] | None = None  # see `Evidence.sum_up`; None until finished


SHORT_EPOCH = 50
"""Weight steps. Running statistics keep 0.9 of themselves in each step, so after fewer steps more than half a percent
of what they were before the epoch is left in them, in the first epoch of what they were before any training."""
GROUP = 128  # images that are validated at once, in at most eight batches


class Search(WeightSteps):
    """One search, from the first epoch or from a checkpoint: the `SearchContext` of its strategy.

    Args:
        network: on its device already.
        strategy: searches α, through its hooks.
        weights: how the weights are trained.
        weight_pipeline: augmented batches of the weight half.
        alpha_pipeline: batch size → a pipeline of augmented batches of the α half.
        valid_pipeline: the α half without augmentation, in an order in which classes are mixed.
        augmented_pipeline: the α half with augmentation, if the accuracy of an epoch is to be that on augmented images.
        directory: of the run; exists.
        seed: of everything that the search draws.
        options: plain values, stored in the checkpoint and compared on resume.
        checkpoint: what to continue from; None for a new search.
        validate_every: epochs between validations. Where an epoch has fewer than `SHORT_EPOCH` weight steps, the
            supernet is validated by the BatchNorm statistics of the validation images, not by running ones.
        evidence: watch the search, and sum it up at the end (`Evidence`).
        stop_after: stop after so many epochs in this process; None for no stop.
        cuda_graphs: record the kernels of weight steps and populations and launch them together, on CUDA.
        check_images, world: as for `Loop`. The pipelines are those of all processes together.
    """

    batch: tuple[Tensor, Tensor]
    layout = {  # noqa: RUF012 (declared as a ClassVar by the base class)
        "prepared": bool,
        "ended": bool,
        "network": dict,
        "optimizer": dict,
        "strategy": dict,
        "valid_accuracy": (float, NoneType),
    }

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
        augmented_pipeline: Pipeline | None = None,
        checkpoint: dict[str, Any] | None = None,
        validate_every: int = 1,
        evidence: bool = True,
        stop_after: int | None = None,
        cuda_graphs: bool = True,
        check_images: str = "sizes",
        world: World = ALONE,
    ) -> None:
        self.weight_pipeline = weight_pipeline
        self.valid_pipeline = valid_pipeline
        super().__init__(
            directory=directory,
            seed=seed,
            options=options,
            epochs=weights.epochs,
            pipeline=weight_pipeline,
            device=next(network.parameters()).device,
            stop_after=stop_after,
            check_images=check_images,
            world=world,
        )
        self.network = network
        self.strategy = strategy
        self.weights = weights
        self.alpha_pipeline = alpha_pipeline
        self.augmented_pipeline = augmented_pipeline
        validated = valid_pipeline if augmented_pipeline is None else augmented_pipeline
        self._validated = validated.part(world.rank, world.size)
        self.validate_every = validate_every
        self.group = max(valid_pipeline.batch_size, min(GROUP, 8 * valid_pipeline.batch_size))
        self.evidence = Evidence(strategy, self.group) if evidence else None
        self.graphs = Graphs.on(self.device, cuda_graphs)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=weights.precision == "float16")
        self._optimize()
        self._prepared = False  # whether before_epoch is done
        self._ended = False  # before the last epoch, by the strategy's wish
        self._valid_accuracy: float | None = None
        self._derived: list[dict[str, Any]] = []
        self._evidence: dict[str, Any] | None = None
        strategy.check_epochs(self.epochs)
        strategy.start(self)
        self._begin(checkpoint)

    def rebuild(self, **changes: Any) -> None:
        """Replaces the network by one with fresh weights, fresh α and these options changed (`Supernet.rebuilt`)."""
        self.network = self.network.rebuilt(**changes)
        if self.evidence is not None:
            self.evidence.forget()
        self._optimize()

    def run(self) -> Outcome:
        """Searches until the last epoch, `stop_after` or a signal.

        Raises:
            DivergedError: NaN or infinite loss; the last checkpoint stays.
        """
        status = self._loop()
        strategy = self.strategy
        genotype = strategy.genotype(self)
        return Outcome(
            status,
            self.epoch,
            genotype,
            self._valid_accuracy,
            strategy.validates,
            strategy.chosen,
            self._derived,
            self._evidence,
        )

    @property
    def valid_statistics(self) -> Literal["batch", "running"] | None:
        """By which statistics the supernet is validated; None where a strategy validates a cell, in its own way."""
        if self.strategy.validates != "supernet":
            return None
        return "batch" if len(self.weight_pipeline) < SHORT_EPOCH else "running"

    # --- one epoch ---

    def _run_epoch(self) -> None:
        self.network.train()
        self.graphs.forget()
        if not self._prepared:
            with self._timed("strategy"):
                self.strategy.before_epoch(self)
            self._prepared = True
        rate = self._set_rate()
        self.graphs.forget()
        for images, labels in self._batches():
            with self._timed("train"):
                self._train_on(images, labels)
            self.step += 1
            self.show("weights", self.step, len(self.weight_pipeline))
            self.check_stop()
        self._average_statistics()
        with self._timed("strategy"):
            self.strategy.after_epoch(self)
        self._ended = self.strategy.finished(self)
        valid_loss, valid_accuracy = None, None
        if self._ended or is_validated(self.epoch, self.epochs, self.validate_every):
            with self._timed("valid"):
                valid_loss, valid_accuracy = self._validate()
            self._valid_accuracy = valid_accuracy
        genotype = self.strategy.genotype(self)
        self._check_agreement(genotype)
        train_loss, train_accuracy = self._meter.means(self.world)
        with torch.no_grad():
            op_weights = {kind: w.detach().cpu() for kind, w in self.strategy.mean_op_weights(self).items()}  # [E, O]
        self.log.write(
            "epoch",
            epoch=self.epoch,
            learning_rate=rate,
            train_loss=train_loss,
            train_accuracy=train_accuracy,
            valid_loss=valid_loss,
            valid_accuracy=valid_accuracy,
            valid_of=self.strategy.validates,
            valid_statistics=self.valid_statistics,
            alpha_entropy={kind: entropy(table) for kind, table in op_weights.items()},
            skip_count={kind: genotype.skip_count(kind) for kind in genotype.kinds},
            op_weights={kind: table.tolist() for kind, table in op_weights.items()},
            genotype=genotype.to_dict(),
            **({} if self.evidence is None else {"derivation": self.evidence.after_epoch(op_weights)}),
            seconds=self._seconds,
            peak_memory_mb=peak_memory_mb(self.device),
        )
        if self.world.leads:
            genotype.to_json(self.directory / "genotype.json")
        self._prepared = False
        self._end_epoch()

    def _check_agreement(self, genotype: AnyGenotype) -> None:
        """UserError where the processes hold different architectures by now."""
        tables = [alpha.detach().cpu().numpy().tobytes() for alpha in self.network.alphas.values()]
        self.world.agree(
            f"after epoch {self.epoch + 1}",
            {"α": digest_of(tables), "genotype": repr(genotype)},
            "whatever a strategy draws must come from search.seed_for, and whatever it measures must be the same for "
            "all (search.world); the last checkpoint is that of the epoch before",
        )

    def _set_rate(self) -> float:
        rate = self.weights.rate(*self.strategy.schedule(self))
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        return rate

    def _train_on(self, images: Tensor, labels: Tensor) -> None:  # [B, C, H, W], [B]
        self.batch = images, labels
        self.strategy.before_step(self)
        self._weight_step(images, labels)
        self.strategy.after_step(self)

    @torch.no_grad()
    def _validate(self) -> tuple[float, float]:
        """Loss and accuracy of the strategy's architecture on the α half, in evaluation mode; on newly augmented images
        in each epoch, if on any."""
        self.network.eval()
        meter = Meter.on(self.device)
        pipeline, epoch = self._validated, 0 if self.augmented_pipeline is None else self.epoch
        for images, labels in joined(pipeline.epoch(epoch), self.group):
            self._validate_on(images, labels, meter)
            self.show("validation", -(-meter.images // pipeline.batch_size), len(pipeline))
        self.network.train()
        return meter.means(self.world)

    def _validate_on(self, images: Tensor, labels: Tensor, meter: Meter) -> None:  # [B, C, H, W], [B]
        by_batch = self.valid_statistics == "batch"
        with individual_statistics(self.network, images=len(images)) if by_batch else nullcontext():
            logits = self.strategy.validation_logits(self, images)  # [B, classes]
        meter.add(F.cross_entropy(logits, labels), logits, labels)
        if self.evidence is not None:
            self.evidence.validated(self, images, labels, logits if by_batch else None)

    # --- checkpoint ---

    @property
    def _networks(self) -> list[nn.Module]:
        return [self.network]

    def _describe_images(self, of_bytes: bool) -> dict[str, Any]:
        images = super()._describe_images(of_bytes)
        if self.valid_pipeline.source is not self.weight_pipeline.source:
            images["alpha_digest"] = self.valid_pipeline.source.digest(of_bytes)
        return images

    def _state(self) -> dict[str, Any]:
        return {
            "prepared": self._prepared,
            "ended": self._ended,
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "strategy": self.strategy.state_dict(),
            "valid_accuracy": self._valid_accuracy,
            **({"scaler": self.scaler.state_dict()} if self.scaler.is_enabled() else {}),
            **({} if self.evidence is None else {"evidence": self.evidence.state_dict()}),
        }

    def _load_state(self, checkpoint: dict[str, Any]) -> None:
        self._prepared, self._ended = checkpoint["prepared"], checkpoint["ended"]
        # None is what a strategy has none of yet, so only what there is from the beginning has a known type.
        fresh = {name: value for name, value in self.strategy.state_dict().items() if name in checkpoint["strategy"]}
        types = {name: (type(value), int, NoneType) for name, value in fresh.items() if value is not None}
        check_layout(checkpoint["strategy"], types, self.checkpoint_path, "strategy.")
        self.strategy.load_state_dict(checkpoint["strategy"])  # may rebuild the network
        self.network.load_state_dict(checkpoint["network"])
        load_optimizer(self.optimizer, checkpoint["optimizer"])
        if self.scaler.is_enabled():
            self.scaler.load_state_dict(checkpoint["scaler"])
        self._valid_accuracy = checkpoint["valid_accuracy"]
        if self.evidence is not None and "evidence" in checkpoint:  # else the run began without, or long ago
            self.evidence.load_state_dict(checkpoint["evidence"])

    def _finished(self) -> bool:
        return self._ended or super()._finished()

    def _conclude(self) -> None:
        if self.evidence is not None:
            self._evidence = self.evidence.sum_up(self)
            self.log.write("evidence", **self._evidence)

    def _final(self) -> dict[str, Any]:
        source = self.weight_pipeline.source
        size = (source.channels, *source.image_size)
        self._derived = derived_sizes(self.network, self.strategy.genotype(self), size)
        return {
            "valid_accuracy": self._valid_accuracy,
            "valid_of": self.strategy.validates,
            "chosen": self.strategy.chosen,
            "derived": self._derived,
        }
