"""GDAS (Dong, Yang, "Searching for a Robust Neural Architecture in Four GPU Hours", CVPR 2019).

Every step draws one candidate for each edge by the Gumbel-max trick. Only these are computed; the gradient of α is that
of the relaxed choice.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from fastnas.errors import UserError
from fastnas.option_types import Temperature
from fastnas.spaces.cell_space import Derivation
from fastnas.strategies.base import Work
from fastnas.strategies.context import SearchContext
from fastnas.strategies.gradient import GradientStrategy
from fastnas.strategies.gumbel import gumbel_softmax, straight_through
from fastnas.strategies.registry import register_strategy


@register_strategy
@dataclass
class GDAS(GradientStrategy):
    """GDAS: Adam updates α on batches of the α half, after each weight step; each step samples one path.

    The defaults are those of the released search in the space of DARTS. In that of NAS-Bench-201 the same program has
    batches of 64 and 15 cells.
    """

    name: ClassVar[str] = "gdas"
    published_defaults: ClassVar = {
        "weights": {
            "epochs": 250,
            "learning_rate": 0.025,
            "learning_rate_min": 0.001,
            "nesterov": True,
            "weight_decay": 5e-4,
        },
        "data": {"batch_size": 256},
        "network": {"channels": 16, "layers": 6, "partial_channels": 1},
    }

    temperature: Temperature = 10.0
    """τ, temperature of the Gumbel-softmax at the first epoch."""
    temperature_min: Temperature = 0.1
    """τ of the last epoch; it falls linearly."""
    derive: Derivation = "pairs"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.temperature_min > self.temperature:
            raise UserError(
                f"temperature is {self.temperature} and temperature_min {self.temperature_min}: expected "
                "temperature_min ≤ temperature."
            )

    def temperature_at(self, epoch: int, epochs: int) -> float:
        """τ of an epoch: `temperature` in the first one, `temperature_min` in the last."""
        return self.temperature + (self.temperature_min - self.temperature) * epoch / max(1, epochs - 1)

    def work(self, epoch: int, epochs: int) -> Work | None:
        return super().work(epoch, epochs)  # the step of α only comes after that of the weights

    def before_step(self, search: SearchContext) -> None:
        """The weights move first."""

    def after_step(self, search: SearchContext) -> None:
        self.alpha_step(search)

    def arch_weights(self, search: SearchContext, draw: int) -> dict[str, Any]:
        generator = torch.Generator().manual_seed(search.seed_for(search.epoch, search.step, draw))
        temperature = self.temperature_at(search.epoch, search.epochs)
        alphas = search.network.alphas
        soft = {kind: gumbel_softmax(torch.log_softmax(a, -1), temperature, generator) for kind, a in alphas.items()}
        return chosen({kind: straight_through(table) for kind, table in soft.items()})

    def validation_logits(self, search: SearchContext, images: Tensor) -> Tensor:
        """Those of the most probable candidate of each edge."""
        tables = {kind: straight_through(table) for kind, table in self.mean_op_weights(search).items()}
        return search.network(images, **chosen(tables))


def chosen(tables: dict[str, Tensor]) -> dict[str, Any]:
    """The network's arguments for one-hot operation weights [E, O]: they, and a mask of the candidates to compute."""
    return {"op_weights": tables, "active": {kind: (table.detach() > 0.5).cpu() for kind, table in tables.items()}}
