"""How weights are trained: what a search and a retraining share, and the options of a search.

Options are frozen dataclasses whose fields become flags and keys of config.yaml, and whose docstrings become the help.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, TypeVar

from fastnas.errors import UserError

Kind = TypeVar("Kind", bound=type[Any])


def listed(default: Any, after: str | None) -> Any:
    """Default of a field that stands right after the field `after`, which may be inherited; first for None."""
    return dataclasses.field(default=default, metadata={"after": after})


def ordered(kind: Kind) -> Kind:
    """Class decorator: puts the fields of a dataclass where `listed` wants them.

    Otherwise the fields of a base class come first, and --help and config.yaml would separate what belongs together.
    """
    names = [field.name for field in dataclasses.fields(kind)]
    for field in dataclasses.fields(kind):
        if "after" in field.metadata:
            names.remove(field.name)
            after = field.metadata["after"]
            names.insert(0 if after is None else names.index(after) + 1, field.name)
    kind.__dataclass_fields__ = {name: kind.__dataclass_fields__[name] for name in names}
    return kind


def check_counts(options: Any, *names: str) -> None:
    """UserError for a number below 1; None is allowed."""
    for name in names:
        value = getattr(options, name)
        if value is not None and value < 1:
            raise UserError(f"{name} is {value}, expected at least 1.")


def check_not_negative(options: Any, *names: str) -> None:
    """UserError for a number that is negative, infinite or NaN."""
    for name in names:
        value = getattr(options, name)
        if not (math.isfinite(value) and value >= 0):
            raise UserError(f"{name} is {value}, expected a finite number of at least 0.")


@dataclass(frozen=True, kw_only=True)
class SGDOptions:
    """SGD with a learning rate that falls from epoch to epoch."""

    epochs: int
    """Passes over the training images."""
    learning_rate: float
    """Learning rate of the first epoch."""
    learning_rate_min: float = 0.0
    """Learning rate at the end of the cosine."""
    learning_rate_warm_up: int = 0
    """Epochs over which the rate rises linearly."""
    legacy_scheduler: bool = False
    """Use the rate of the next epoch, as code does that calls scheduler.step() at the beginning of an epoch."""
    momentum: float = 0.9
    """Momentum of SGD."""
    weight_decay: float = 3e-4
    """Weight decay (L2 penalty) of all weights."""
    clip: float = 5.0
    """Largest gradient norm of a step; 0 for no limit."""

    def __post_init__(self) -> None:
        check_counts(self, "epochs")
        check_not_negative(self, "learning_rate", "learning_rate_min", "momentum", "weight_decay", "clip")


@ordered
@dataclass(frozen=True, kw_only=True)
class WeightOptions(SGDOptions):
    """The weights: SGD with a cosine schedule."""

    epochs: int = 50
    """Passes over the weight half of the images."""
    learning_rate: float = 0.1
    learning_rate_warm_up: int = 0
    """Epochs over which the rate rises linearly to the cosine's."""
    nesterov: bool = listed(False, after="momentum")
    """Use Nesterov momentum."""
    weight_decay: float = 3e-4
    """Weight decay (L2 penalty) of the weights, never of α."""

    def rate(self, epoch: int, epochs: int | None = None) -> float:
        """The learning rate of an epoch: a pure function, so that a resumed run cannot start from a wrong place.

        epochs: the number over which it falls; by default all."""
        position = epoch + 1 if self.legacy_scheduler else epoch
        cosine = (1 + math.cos(math.pi * position / (epochs or self.epochs))) / 2
        rate = self.learning_rate_min + (self.learning_rate - self.learning_rate_min) * cosine
        if epoch < self.learning_rate_warm_up:
            rate *= (epoch + 1) / self.learning_rate_warm_up
        return rate
