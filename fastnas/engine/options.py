"""How weights are trained: what a search and a retraining share, and the options of a search.

Options are frozen dataclasses whose fields become flags and keys of config.yaml, and whose docstrings become the help.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from fastnas.errors import UserError
from fastnas.option_types import Count, CountOrZero, NotNegative, Options, ShareBelowOne

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


@dataclass(frozen=True, kw_only=True)
class SGDOptions(Options):
    """SGD with a learning rate that falls from epoch to epoch."""

    epochs: Count
    """Passes over the training images."""
    learning_rate: NotNegative
    """Learning rate of the first epoch."""
    learning_rate_min: NotNegative = 0.0
    """Learning rate at the end of the cosine."""
    learning_rate_warm_up: CountOrZero = 0
    """Epochs over which the rate rises linearly."""
    legacy_scheduler: bool = False
    """Use the rate of the next epoch, as code does that calls scheduler.step() at the beginning of an epoch."""
    momentum: ShareBelowOne = 0.9
    """Momentum of SGD."""
    weight_decay: NotNegative = 3e-4
    """Weight decay (L2 penalty) of all weights."""
    clip: NotNegative = 5.0
    """Largest gradient norm of a step; 0 for no limit."""


DropPathSchedule = Literal["constant", "linear", "scheduled"]


def drop_path_at(largest: float, schedule: DropPathSchedule, epoch: int, epochs: int) -> float:
    """The drop path probability of an epoch (of the last cell, where it depends on the depth)."""
    return largest if schedule == "constant" else largest * epoch / epochs


@ordered
@dataclass(frozen=True, kw_only=True)
class WeightOptions(SGDOptions):
    """The weights: SGD with a cosine schedule."""

    epochs: Count = 50
    """Passes over the weight half of the images."""
    learning_rate: NotNegative = 0.1
    learning_rate_warm_up: CountOrZero = 0
    """Epochs over which the rate rises linearly to the cosine's."""
    nesterov: bool = listed(False, after="momentum")
    """Use Nesterov momentum."""
    weight_decay: NotNegative = 3e-4
    """Weight decay (L2 penalty) of the weights, never of α."""
    search_drop_path: ShareBelowOne = 0.0
    """Probability that a weight step drops the output of an edge for an image (drop path); 0 for never."""
    search_drop_path_schedule: DropPathSchedule = "constant"
    """constant (SNAS); linear: rises from 0 to --search-drop-path; scheduled: and rises with the cell's depth (NASNet).
    """
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    """Precision of activations, by autocast; float16 also scales the loss."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.nesterov and self.momentum == 0:
            raise UserError("nesterov is True, but momentum is 0: raise the momentum, or leave nesterov out.")

    def rate(self, epoch: int, epochs: int | None = None) -> float:
        """The learning rate of an epoch: a pure function, so that a resumed run cannot start from a wrong place.

        epochs: the number over which it falls; by default all."""
        position = epoch + 1 if self.legacy_scheduler else epoch
        cosine = (1 + math.cos(math.pi * position / (epochs or self.epochs))) / 2
        rate = self.learning_rate_min + (self.learning_rate - self.learning_rate_min) * cosine
        if epoch < self.learning_rate_warm_up:
            rate *= (epoch + 1) / self.learning_rate_warm_up
        return rate
