"""SNAS (Xie et al., "SNAS: Stochastic Neural Architecture Search", ICLR 2019).

The optimisation has one level: the same batch updates weights and α, through a relaxed random choice whose temperature
falls. The loss may contain a penalty on expected resources.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastnas.counting import MACS, CostTable, count_parameters, sum_costs
from fastnas.errors import UserError
from fastnas.nn.cell import SearchCell
from fastnas.nn.mixed_op import MixedOp
from fastnas.nn.primitives import Zero
from fastnas.option_types import NotNegative, Temperature
from fastnas.spaces.cell_space import Derivation
from fastnas.strategies.base import Work
from fastnas.strategies.context import SearchContext
from fastnas.strategies.gradient import GradientStrategy, overflowed
from fastnas.strategies.gumbel import gumbel_softmax
from fastnas.strategies.registry import register_strategy

CLIP = 10.0  # of α's gradient norm
COSTS = 3  # parameters, operations, memory access


def _pooled(module: Any, x: Tensor, y: Tensor) -> int:
    side = module.kernel_size
    return y.numel() * (side[0] * side[1] if isinstance(side, tuple) else side * side)


def _read_and_written(module: Any, x: Tensor, y: Tensor) -> int:
    """Reads are the pixels that the strides step over, as in the released program."""
    down, across = module.stride if isinstance(module.stride, tuple) else (module.stride, module.stride)
    return x.shape[1] * y[:, 0].numel() * down * across + y.numel()


_POOLS = (nn.MaxPool2d, nn.AvgPool2d)
OPERATIONS: CostTable = (*MACS, (_POOLS, _pooled))
"""Multiply-accumulates, and k² for each output of a pool."""
MEMORY_ACCESS: CostTable = (
    ((nn.Conv2d, *_POOLS), _read_and_written),
    ((nn.Linear,), lambda module, x, y: x.numel() + y.numel()),
)
"""Values that convolutions, linear layers and pools read and write, those between them included; without weights."""


def resource(choice: Tensor, costs: Tensor, log: bool) -> Tensor:
    """The expected cost of a cell, []: choice [E, O] and costs [3, E, O] (size S, operations F, memory access M).

    log: Σ_e (ln S_e + ln F_e + ln M_e) / 3, each at least 1 before the logarithm; otherwise Σ_e 0.43·(2·S + F/4000 +
        M/100).
    """
    size, operations, memory = (choice * costs).sum(-1)  # [E] each
    if log:
        return torch.log(torch.stack([size, operations, memory]).clamp(min=1)).sum() / COSTS
    return 0.43 * (2 * size + operations / 4000 + memory / 100).sum()


@register_strategy
@dataclass
class SNAS(GradientStrategy):
    """SNAS with Adam for α, as in the paper and on several GPUs in the released program (on one it has SGD). A part of
    the images is held out for validation; the released program validated on test images."""

    name: ClassVar[str] = "snas"
    published_defaults: ClassVar = {
        "weights": {"epochs": 150, "learning_rate": 0.025, "learning_rate_min": 0.001, "search_drop_path": 0.3},
        "data": {"batch_size": 64, "split": 0.9},
        "network": {"channels": 16, "layers": 8, "partial_channels": 1},
    }

    temperature: Temperature = 1.0
    """τ, temperature of the Gumbel-softmax, from which it falls linearly; the first epoch is one step down already."""
    temperature_min: Temperature = 0.03
    """τ of the last epoch."""
    derive: Derivation = "edges"
    resource: Literal["log", "linear", "none"] = "log"
    """Penalty on expected parameters, operations and memory access: on their logarithms, on themselves, or none."""
    resource_weight: NotNegative = 1.5e-3
    """λ, weight of that penalty, as in the released commands; for linear 1e-4 to 1e-5."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.temperature_min > self.temperature:
            raise UserError(
                f"temperature is {self.temperature} and temperature_min {self.temperature_min}: expected "
                "temperature_min ≤ temperature."
            )

    def work(self, epoch: int, epochs: int) -> Work:
        """α moves with the weights."""
        return Work()

    def start(self, search: SearchContext) -> None:
        super().start(search)
        if self.resource != "none" and search.network.space.inputs != 2:
            raise UserError("resources are counted for cells with two inputs: give --resource none in this space.")
        generator = torch.Generator().manual_seed(search.seed_for(0))
        with torch.no_grad():
            for alpha in search.network.alphas.values():
                alpha.copy_(1 + 0.01 * torch.randn(alpha.shape, generator=generator))
        self._costs = cell_costs(search) if self.resource != "none" else {}

    def temperature_at(self, epoch: int, epochs: int) -> float:
        """τ of an epoch. The program's schedule steps once when it is made and once more before the first epoch."""
        return self.temperature + (self.temperature_min - self.temperature) * (epoch + 1) / epochs

    def arch_weights(self, search: SearchContext, draw: int) -> dict[str, Any]:
        generator = torch.Generator().manual_seed(search.seed_for(search.epoch, search.step, draw))
        temperature = self.temperature_at(search.epoch, search.epochs)
        alphas = search.network.alphas
        return {"op_weights": {kind: gumbel_softmax(a, temperature, generator) for kind, a in alphas.items()}}

    def logits(self, search: SearchContext, images: Tensor) -> Tensor:
        arch_weights = self.arch_weights(search, 0)
        self._choice = arch_weights["op_weights"]
        logits = search.network(images, **arch_weights)
        self._logits = logits.detach()
        return logits

    def alpha_loss(self, search: SearchContext, logits: Tensor, labels: Tensor) -> dict[str, Tensor]:
        loss = {"L_train": F.cross_entropy(logits, labels)}
        if self._costs:
            loss["λ·R"] = self.resource_weight * self._expected_resource()
        return loss

    def _expected_resource(self) -> Tensor:
        """Of the choice of the step in progress, []: the mean over the cells of each kind, added up."""
        means = [
            torch.stack([resource(self._choice[kind], costs, self.resource == "log") for costs in cells]).mean()
            for kind, cells in self._costs.items()
        ]
        return torch.stack(means).sum()

    def penalty(self, search: SearchContext) -> Tensor | float:
        loss = self.alpha_loss(search, self._logits, search.batch[1])
        if self.alpha_moves(search):
            self.log_terms(loss)
        return loss.get("λ·R", 0.0)

    def before_step(self, search: SearchContext) -> None:
        """α has no step of its own."""

    def after_step(self, search: SearchContext) -> None:
        if self.alpha_moves(search) and not overflowed(search, [alpha.grad for alpha in self.alpha_parameters]):
            nn.utils.clip_grad_norm_(self.alpha_parameters, CLIP)
            self.alpha_optimizer.step()
        self.alpha_optimizer.zero_grad(set_to_none=True)


def cell_costs(search: SearchContext) -> dict[str, list[Tensor]]:
    """For each kind of cell, the costs [3, E, O] of the candidates in each cell, see `candidate_costs`."""
    found: dict[str, list[Tensor]] = {}
    known: dict[Any, list[float]] = {}
    shrink = 8 if search.network.stem_name == "imagenet" else 1
    height, width = (-(-side // shrink) for side in search.weight_pipeline.source.image_size)
    for cell in search.network.cells:
        assert isinstance(cell, SearchCell)
        table = torch.zeros(COSTS, len(cell.edges), len(cell.space.candidates))
        smaller = (-(-height // 2), -(-width // 2)) if cell.reduction else (height, width)
        for edge, (source, _) in enumerate(cell.space.edges):
            sides = (height, width) if source < 2 else smaller
            mixed = cast(MixedOp, cell.edges[edge])
            for column, candidate in enumerate(mixed.candidates):
                key = (cell.space.candidates[column], mixed.processed, mixed.stride, sides)
                if key not in known:
                    known[key] = candidate_costs(candidate, mixed.processed, sides)
                table[:, edge, column] = torch.tensor(known[key])
        found.setdefault(cell.kind, []).append(table.to(search.device))
        height, width = smaller
    return found


def candidate_costs(candidate: nn.Module, channels: int, sides: tuple[int, int]) -> list[float]:
    """Parameters, operations, and values read and written, for one image of [channels, *sides]: those of the released
    program, in which normalisations and ReLUs are free, a pool does k² operations for each output, and "none" costs
    nothing."""
    if isinstance(candidate, Zero):
        return [0.0, 0.0, 0.0]
    size = (channels, *sides)
    if isinstance(candidate, nn.Identity):
        return [0.0, 0.0, 2.0 * math.prod(size)]
    parameters = count_parameters(candidate)
    memory = sum_costs(candidate, size, MEMORY_ACCESS) + parameters
    return [float(parameters), float(sum_costs(candidate, size, OPERATIONS)), float(memory)]
