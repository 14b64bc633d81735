"""DARTS+ (Liang et al., "DARTS+: Improved Differentiable Architecture Search with Early Stopping", 2019), around any
strategy that moves α by gradient: the search stops where skip connections begin to take over."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch

from fastnas.errors import UserError
from fastnas.genotype import AnyGenotype
from fastnas.option_types import Count
from fastnas.spaces.nb201 import any_genotype
from fastnas.strategies.base import Work
from fastnas.strategies.context import SearchContext
from fastnas.strategies.gradient import GradientStrategy
from fastnas.strategies.registry import parse, register_strategy
from fastnas.strategies.wrapper import StrategyWrapper


@register_strategy
@dataclass
class DARTSPlus(StrategyWrapper):
    """Stops another strategy early; that one decides everything else."""

    name: ClassVar[str] = "darts-plus"
    published_defaults: ClassVar = GradientStrategy.published_defaults

    base: str = "darts:order=1"
    """The strategy that searches, with its options: NAME or NAME:OPTION=VALUE,OPTION=VALUE."""
    rule: Literal["skip", "ranking"] = "skip"
    """Stop at too many skip connections in a normal cell, or when the ranking of the convolutions stays the same."""
    skips: Count = 2
    """Skip connections in a normal cell that stop the search."""
    patience: Count = 10
    """Epochs without a change of the ranking that stop the search."""
    rollback: bool = True
    """With rule skip, return the genotype of the epoch before the one that stopped the search."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.inner = parse(self.base)
        if not isinstance(self.inner, GradientStrategy):
            raise UserError(
                f"darts-plus wraps strategies that move α by gradient, and {self.base!r} is not one of them: use "
                "darts, for example."
            )
        self.stopped = False
        self.last: AnyGenotype | None = None  # the last genotype with fewer skip connections than `skips`
        self.ranking: list[list[int]] = []  # of the convolutions of every edge, best first
        self.unchanged = 0  # epochs

    def work(self, epoch: int, epochs: int) -> Work | None:
        return super().work(epoch, epochs)  # `after_epoch` adds next to nothing

    # --- early stopping ---

    def after_epoch(self, search: SearchContext) -> None:
        super().after_epoch(search)
        if self.rule == "skip":
            genotype = super().genotype(search)
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

    def _ranking(self, search: SearchContext) -> list[list[int]]:
        learnable = [i for i, name in enumerate(search.network.space.candidates) if "conv" in name]
        tables = torch.cat([table.detach().cpu() for table in self.mean_op_weights(search).values()])  # [edges, O]
        return tables[:, learnable].argsort(dim=-1, descending=True, stable=True).tolist()

    def finished(self, search: SearchContext) -> bool:
        return self.stopped or super().finished(search)

    def genotype(self, search: SearchContext) -> AnyGenotype:
        if self.stopped and self.rule == "skip" and self.rollback and self.last is not None:
            return self.last
        return super().genotype(search)

    # --- what a checkpoint holds ---

    def state_dict(self) -> dict[str, Any]:
        return {
            **super().state_dict(),
            "stopped": self.stopped,
            "last": None if self.last is None else self.last.to_dict(),
            "ranking": self.ranking,
            "unchanged": self.unchanged,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.stopped, self.ranking, self.unchanged = state["stopped"], state["ranking"], state["unchanged"]
        self.last = None if state["last"] is None else any_genotype(state["last"])
