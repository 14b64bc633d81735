"""The retraining loop: a derived network from random weights to a test accuracy."""

from __future__ import annotations

import copy
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import NoneType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from fastnas.data import Pipeline
from fastnas.engine.checkpoint import check_layout
from fastnas.engine.evaluation import Evaluation, evaluate
from fastnas.engine.loop import Loop, Status, is_validated, peak_memory_mb
from fastnas.engine.recipe import TrainingRecipe
from fastnas.nn import DerivedNetwork
from fastnas.nn.derived_file import DESCRIPTION
from fastnas.optimizer_state import load_optimizer
from fastnas.world import ALONE, World


@dataclass(frozen=True)
class TrainOutcome:
    """How a call of `Retrain.run` ended."""

    status: Status
    epoch: int  # epochs completed since the training began
    test: Evaluation | None  # of the selected weights; None until finished
    selected_epoch: int | None  # whose weights they are, counted from 0


class Retrain(Loop):
    """One training, from the first epoch or from a checkpoint.

    Args:
        network: on its device already.
        recipe: of the training.
        train_pipeline: augmented batches.
        valid_pipeline: held-out images without augmentation; None for none.
        test_pipeline: test images without augmentation; None for none.
        select: "last", "best_valid" or "best_test", see `TrainRunOptions`.
        directory, seed, options, checkpoint, validate_every, stop_after, check_images, world: as for `Search`.
    """

    layout = {  # noqa: RUF012 (declared as a ClassVar by the base class)
        "network": dict,
        "optimizer": dict,
        "scaler": dict,
        "average": (dict, NoneType),
        "best": (dict, NoneType),
    }

    def __init__(
        self,
        *,
        network: DerivedNetwork,
        recipe: TrainingRecipe,
        train_pipeline: Pipeline,
        valid_pipeline: Pipeline | None,
        test_pipeline: Pipeline | None,
        select: str,
        directory: Path,
        seed: int,
        options: dict[str, Any],
        checkpoint: dict[str, Any] | None = None,
        validate_every: int = 1,
        stop_after: int | None = None,
        check_images: str = "sizes",
        world: World = ALONE,
    ) -> None:
        self.test_pipeline = test_pipeline
        super().__init__(
            directory=directory,
            seed=seed,
            options=options,
            epochs=recipe.epochs,
            pipeline=train_pipeline,
            device=next(network.parameters()).device,
            stop_after=stop_after,
            check_images=check_images,
            world=world,
        )
        self.network = network
        self.recipe = recipe
        self.train_pipeline = train_pipeline
        self.valid_pipeline = valid_pipeline
        self.select = select
        self.validate_every = validate_every
        self.optimizer = torch.optim.SGD(
            network.parameters(), lr=recipe.rate(0), momentum=recipe.momentum, weight_decay=recipe.weight_decay
        )
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=recipe.precision == "float16")
        self.average: AveragedModel | None = None
        if recipe.ema:
            self.average = AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(recipe.ema), use_buffers=True)
        self._forward = torch.compile(network) if recipe.compile else network
        self._best: dict[str, Any] | None = None  # accuracy, epoch and weights, where the best are selected
        self._test: Evaluation | None = None
        self._evaluated = {
            phase: None if whole is None else whole.part(world.rank, world.size)
            for phase, whole in (("validation", valid_pipeline), ("test", test_pipeline))
        }
        if world.rank > 0:  # what is dropped out differs from process to process
            torch.manual_seed(self.seed_for(world.rank))
        self._begin(checkpoint)

    @property
    def tested_network(self) -> DerivedNetwork:
        """The one whose accuracy counts: the averaged weights, where weights are averaged."""
        return self.network if self.average is None else self.average.module  # type: ignore[return-value]

    def run(self) -> TrainOutcome:
        """Trains until the last epoch, `stop_after` or a signal; then tests the selected weights and writes them.

        Raises:
            DivergedError: NaN or infinite loss; the last checkpoint stays.
        """
        status = self._loop()
        finished = status == "finished"
        return TrainOutcome(status, self.epoch, self._test, self._selected_epoch() if finished else None)

    # --- one epoch ---

    def _run_epoch(self) -> None:
        rate = self._set_up_epoch()
        for images, labels in self._batches():
            with self._timed("train"):
                complete = self._step(images, labels)
            self.step += 1
            self.show("training", self.step, len(self.train_pipeline))
            if complete:  # gradients that wait for more batches are in no checkpoint
                self.check_stop()
        self._average_statistics()
        valid, test = None, None
        if is_validated(self.epoch, self.epochs, self.validate_every):
            with self._timed("valid"):
                valid = self._evaluate("validation", self.tested_network)
                test = self._evaluate("test", self.tested_network) if self.select == "best_test" else None
            self._keep_best(test if self.select == "best_test" else valid)
        train_loss, train_accuracy = self._meter.means(self.world)
        self.log.write(
            "epoch",
            epoch=self.epoch,
            learning_rate=rate,
            drop_path=self.network.drop_path_prob,
            train_loss=train_loss,
            train_accuracy=train_accuracy,
            valid_loss=valid.loss if valid else None,
            valid_accuracy=valid.top1 if valid else None,
            test_accuracy=test.top1 if test else None,
            seconds=self._seconds,
            peak_memory_mb=peak_memory_mb(self.device),
        )
        self._end_epoch()

    def _set_up_epoch(self) -> float:
        """Returns the learning rate."""
        self.network.train()
        rate = self.recipe.rate(self.epoch)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.network.drop_path_prob = self.recipe.drop_path_at(self.epoch)
        return rate

    def _step(self, images: Tensor, labels: Tensor) -> bool:  # [B, C, H, W], [B]
        """Trains on one batch; returns whether the optimizer made a step with the gradients gathered so far."""
        recipe, batches = self.recipe, len(self.train_pipeline)
        if not recipe.channels_last:
            images = images.contiguous()
        place = self.step % recipe.accumulate
        if place == 0:
            self.optimizer.zero_grad(set_to_none=True)
        with self._autocast():
            output = self._forward(images)
            logits, auxiliary = output if isinstance(output, tuple) else (output, None)  # [B, classes] each
            loss = F.cross_entropy(logits.float(), labels, label_smoothing=recipe.label_smoothing)
            total = loss
            if auxiliary is not None:
                extra = F.cross_entropy(auxiliary.float(), labels, label_smoothing=recipe.label_smoothing)
                total = loss + recipe.auxiliary_weight * extra
        # The last step of an epoch may gather fewer batches.
        gathered = min(recipe.accumulate, batches - (self.step - place))
        self.scaler.scale(total / gathered).backward()
        complete = place + 1 == gathered
        if complete:
            self.world.average_gradients(self.network.parameters())
            self.scaler.unscale_(self.optimizer)
            if recipe.clip > 0:
                torch.nn.utils.clip_grad_norm_(self.network.parameters(), recipe.clip)
            self.scaler.step(self.optimizer)
            self.scaler.update()
            if self.average is not None:
                self.average.update_parameters(self.network)
        self._meter.add(loss, logits, labels)
        self._check_finite(self.recipe.rate(self.epoch))
        return complete

    def _autocast(self) -> AbstractContextManager[Any]:
        if self.recipe.precision == "float32":
            return nullcontext()
        return torch.autocast(self.device.type, dtype=getattr(torch, self.recipe.precision))

    def _evaluate(self, phase: str, network: nn.Module) -> Evaluation | None:
        pipeline = self._evaluated[phase]
        if pipeline is None:
            return None
        with self._autocast():
            return evaluate(network, pipeline, lambda done, total: self.show(phase, done, total), self.world)

    # --- which weights count ---

    def _keep_best(self, evaluation: Evaluation | None) -> None:
        if self.select == "last" or evaluation is None:
            return
        if self._best is None or evaluation.top1 > self._best["accuracy"]:
            weights = {name: tensor.clone() for name, tensor in self.tested_network.state_dict().items()}
            self._best = {"accuracy": evaluation.top1, "epoch": self.epoch, "weights": weights}

    def _selected_epoch(self) -> int:
        return self.epochs - 1 if self._best is None else self._best["epoch"]

    def _final(self) -> dict[str, Any]:
        """Tests the selected weights, once, and writes them."""
        network = self.tested_network
        if self._best is not None:
            network = copy.deepcopy(network)
            network.load_state_dict(self._best["weights"])
        self._test = self._evaluate("test", network)
        if self.world.leads:
            network.save(self.directory / DESCRIPTION, about=self._about())
        return {
            "selected": self.select,
            "selected_epoch": self._selected_epoch(),
            "averaged": self.average is not None,
            "test": None if self._test is None else self._test.to_dict(),
        }

    def _about(self) -> dict[str, Any]:
        """What a saved network tells those who use it: which images it knows, and how they are normalised."""
        source = self.train_pipeline.source
        mean, std = source.statistics()
        images = {
            "classes": list(source.classes),
            "image_size": list(source.image_size),
            "evaluated_share": source.evaluated_share,
            "mean": list(mean),
            "std": list(std),
            "test_share": source.test_share,
        }
        if source.spec.startswith("memory:"):  # the only way to know these images again
            images["spec"] = source.spec
        return {"images": images, "seed": self.seed}

    # --- checkpoint ---

    @property
    def _networks(self) -> list[nn.Module]:
        return [self.network] if self.average is None else [self.network, self.average]

    def _describe_images(self, of_bytes: bool) -> dict[str, Any]:
        images = super()._describe_images(of_bytes)
        if self.test_pipeline is not None:
            images["test_digest"] = self.test_pipeline.source.digest(of_bytes)
        return images

    def _state(self) -> dict[str, Any]:
        return {
            "genotype": self.network.genotype.to_dict(),
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "average": None if self.average is None else self.average.state_dict(),
            "best": self._best,
            "about": self._about(),
        }

    def _load_state(self, checkpoint: dict[str, Any]) -> None:
        self.network.load_state_dict(checkpoint["network"])
        load_optimizer(self.optimizer, checkpoint["optimizer"])
        self.scaler.load_state_dict(checkpoint["scaler"])
        if self.average is not None:
            self.average.load_state_dict(checkpoint["average"])
        self._best = checkpoint["best"]
        if self._best is not None:
            check_layout(self._best, {"accuracy": float, "epoch": int, "weights": dict}, self.checkpoint_path, "best.")
