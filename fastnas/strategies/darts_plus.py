"""DARTS+ (Liang et al., "DARTS+: Improved Differentiable Architecture Search with Early Stopping", 2019), around any
strategy that moves α by gradient: the search stops where skip connections begin to take over."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from fastnas.errors import UserError
from fastnas.genotype import Genotype
from fastnas.strategies.base import Strategy
from fastnas.strategies.gradient import GradientStrategy

if TYPE_CHECKING:
    from fastnas.engine.search import Search
    from fastnas.genotype import AnyGenotype
    from fastnas.nn.supernet import OpWeights


@dataclass
class DARTSPlus(Strategy):
    """Early stopping around another strategy, whose every decision stands until then."""

    name: ClassVar[str] = "darts-plus"
    recipe: ClassVar = GradientStrategy.recipe

    base: str = "darts:order=1"
    """The strategy that searches, with its options: NAME or NAME:OPTION=VALUE,OPTION=VALUE."""
    rule: Literal["skip", "ranking"] = "skip"
    """Stop when a normal cell of the genotype has so many skips, or when the convolutions rank alike for long
    enough."""
    skips: int = 2
    """Skip connections in a normal cell that stop the search."""
    patience: int = 10
    """Epochs of the same ranking that stop the search."""
    rollback: bool = True
    """By the rule of skips: give the genotype of the epoch before."""

    def __post_init__(self) -> None:
        from fastnas.strategies import parse  # which knows this strategy, too

        self.inner = parse(self.base)
        if not isinstance(self.inner, GradientStrategy):
            raise UserError(
                f"darts-plus stops strategies that move α by gradient, and {self.base!r} is not one of them."
            )
        if self.rule not in ("skip", "ranking"):
            raise UserError(f"unknown rule {self.rule!r}: expected skip or ranking.")
        for name in ("skips", "patience"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}, expected at least 1.")
        self.stopped = False
        self.last: AnyGenotype | None = None  # the last genotype that did not break the rule of skips
        self.ranking: list[list[int]] = []  # of the convolutions of every edge, best first
        self.unchanged = 0  # epochs

    # --- early stopping ---

    def after_epoch(self, search: Search) -> None:
        self.inner.after_epoch(search)
        if self.rule == "skip":
            genotype = self.inner.genotype(search)
            kinds = [kind for kind in search.network.space.kinds if kind.endswith("normal")]
            self.stopped = any(genotype.skip_count(kind) >= self.skips for kind in kinds)
            if not self.stopped:
                self.last = genotype
        else:
            ranking = self._ranking(search)
            self.unchanged = self.unchanged + 1 if ranking == self.ranking else 0
            self.ranking = ranking
            self.stopped = self.unchanged >= self.patience
        if self.stopped:
            search.log.write("stopped", after_epoch=search.epoch, rule=self.rule)

    def _ranking(self, search: Search) -> list[list[int]]:
        learnable = [i for i, name in enumerate(search.network.space.candidates) if "conv" in name]
        tables = torch.cat(
            [table.detach().cpu() for table in self.inner.mean_op_weights(search).values()]
        )  # [edges, O]
        return tables[:, learnable].argsort(dim=-1, descending=True, stable=True).tolist()

    def finished(self, search: Search) -> bool:
        return self.stopped or self.inner.finished(search)

    def genotype(self, search: Search) -> AnyGenotype:
        if self.stopped and self.rule == "skip" and self.rollback and self.last is not None:
            return self.last
        return self.inner.genotype(search)

    # --- everything else is the other strategy's ---

    def start(self, search: Search) -> None:
        self.inner.start(search)

    def logits(self, search: Search, images: Tensor) -> Tensor:
        return self.inner.logits(search, images)

    def penalty(self, search: Search) -> Tensor | float:
        return self.inner.penalty(search)

    def mean_op_weights(self, search: Search) -> OpWeights:
        return self.inner.mean_op_weights(search)

    def validation_logits(self, search: Search, images: Tensor) -> Tensor:
        return self.inner.validation_logits(search, images)

    def before_epoch(self, search: Search) -> None:
        self.inner.before_epoch(search)

    def before_step(self, search: Search) -> None:
        self.inner.before_step(search)

    def after_step(self, search: Search) -> None:
        self.inner.after_step(search)

    def schedule(self, search: Search) -> tuple[int, int]:
        return self.inner.schedule(search)

    def clipped_parameters(self, search: Search) -> list[nn.Parameter]:
        return self.inner.clipped_parameters(search)

    def state_dict(self) -> dict[str, Any]:
        return {
            "inner": self.inner.state_dict(),
            "stopped": self.stopped,
            "last": None if self.last is None else self.last.to_dict(),
            "ranking": self.ranking,
            "unchanged": self.unchanged,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.inner.load_state_dict(state["inner"])
        self.stopped, self.ranking, self.unchanged = state["stopped"], state["ranking"], state["unchanged"]
        self.last = None if state["last"] is None else Genotype.from_dict(state["last"])
