"""How a derived network is trained: the options of a retraining, and what follows from them at each epoch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from fastnas.engine.options import DropPathSchedule, SGDOptions, drop_path_at, listed, ordered
from fastnas.option_types import Count, CountOrZero, NotNegative, ShareAboveZero, ShareBelowOne


@ordered
@dataclass(frozen=True, kw_only=True)
class TrainingRecipe(SGDOptions):
    """The training: SGD."""

    epochs: Count = 600
    learning_rate: NotNegative = 0.025
    """Learning rate of the first epoch after the warm-up."""
    schedule: Literal["cosine", "linear", "exponential"] = listed("cosine", after="learning_rate_min")
    """cosine: to the minimum; linear: to 0, five times slower in the last five epochs (PC-DARTS); exponential."""
    learning_rate_decay: ShareAboveZero = listed(0.97, after="schedule")
    """Factor per epoch of the exponential schedule."""
    learning_rate_warm_up: CountOrZero = 0
    """Epochs over which the rate rises linearly to --learning-rate, instead of following the schedule."""
    auxiliary_weight: NotNegative = 0.4
    """Weight of the auxiliary head's loss."""
    label_smoothing: ShareBelowOne = 0.0
    """Share of the target that is spread evenly over all classes."""
    drop_path: ShareBelowOne = 0.2
    """Largest probability that the output of an operation is dropped for an image."""
    drop_path_schedule: DropPathSchedule = "linear"
    """linear: rises from 0 to --drop-path; constant; scheduled: as linear, and rises with the cell's depth (NASNet)."""
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    """Precision of activations, by autocast; float16 also scales the loss."""
    ema: ShareBelowOne = 0.0
    """Decay of a moving average of the weights, such as 0.9999, which is then what is tested; 0 for no average."""
    accumulate: Count = 1
    """Batches whose gradients make one step of SGD."""
    compile: bool = False
    """Train through torch.compile instead of the fused operators; compiling takes minutes."""
    channels_last: bool = True
    """Memory format of images and weights; the fused operators need it."""

    def rate(self, epoch: int) -> float:
        """The learning rate of an epoch: a pure function, so that a resumed run cannot start from a wrong place."""
        if epoch < self.learning_rate_warm_up:
            return self.learning_rate * (epoch + 1) / self.learning_rate_warm_up
        epoch += self.legacy_scheduler
        left = self.epochs - epoch
        if self.schedule == "exponential":
            return self.learning_rate * self.learning_rate_decay**epoch
        if self.schedule == "linear":
            tail = 5 if self.epochs > 5 else 0
            share = (left - tail) / (self.epochs - tail) if left > tail else left / (5 * (self.epochs - tail))
            return self.learning_rate * share
        cosine = (1 + math.cos(math.pi * epoch / self.epochs)) / 2
        return self.learning_rate_min + (self.learning_rate - self.learning_rate_min) * cosine

    def drop_path_at(self, epoch: int) -> float:
        """The drop path probability of an epoch (of the last cell, where it depends on the depth)."""
        return drop_path_at(self.drop_path, self.drop_path_schedule, epoch, self.epochs)
