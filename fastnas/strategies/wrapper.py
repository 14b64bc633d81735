"""The base of strategies around another one: what they do not override is left to the inner strategy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from torch import Tensor, nn

from fastnas.genotype import AnyGenotype
from fastnas.nn.supernet import OpWeights
from fastnas.strategies.base import Strategy, Work, known_work
from fastnas.strategies.context import SearchContext


class StrategyWrapper(Strategy):
    """Base of the strategies around another one: every hook is passed on to `inner`.

    A subclass sets `inner` in `__post_init__`, and overrides the hooks in which it decides otherwise.
    """

    inner: Strategy

    def check_epochs(self, epochs: int) -> None:
        self.inner.check_epochs(epochs)

    def work(self, epoch: int, epochs: int) -> Work | None:
        return known_work(self.inner, epoch, epochs)

    def start(self, search: SearchContext) -> None:
        self.inner.start(search)

    def load_betas(self, search: SearchContext, betas: Mapping[str, Tensor]) -> None:
        self.inner.load_betas(search, betas)

    # --- what the network computes ---

    def op_weights(self, search: SearchContext) -> OpWeights | None:
        return self.inner.op_weights(search)

    def logits(self, search: SearchContext, images: Tensor) -> Tensor:
        return self.inner.logits(search, images)

    def penalty(self, search: SearchContext) -> Tensor | float:
        return self.inner.penalty(search)

    def mean_op_weights(self, search: SearchContext) -> OpWeights:
        return self.inner.mean_op_weights(search)

    def validation_logits(self, search: SearchContext, images: Tensor) -> Tensor:
        return self.inner.validation_logits(search, images)

    @property
    def validates(self) -> Literal["supernet", "cell"]:
        return self.inner.validates

    @property
    def validates_augmented(self) -> bool:
        return self.inner.validates_augmented

    @property
    def derives_from_alpha(self) -> bool:
        return self.inner.derives_from_alpha

    @property
    def chosen(self) -> dict[str, Any] | None:
        return self.inner.chosen

    def genotype(self, search: SearchContext) -> AnyGenotype:
        return self.inner.genotype(search)

    @property
    def ends_early(self) -> bool:
        return self.inner.ends_early or type(self).finished is not StrategyWrapper.finished

    # --- when something happens ---

    def before_epoch(self, search: SearchContext) -> None:
        self.inner.before_epoch(search)

    def before_step(self, search: SearchContext) -> None:
        self.inner.before_step(search)

    def after_step(self, search: SearchContext) -> None:
        self.inner.after_step(search)

    def after_epoch(self, search: SearchContext) -> None:
        self.inner.after_epoch(search)

    def finished(self, search: SearchContext) -> bool:
        return self.inner.finished(search)

    # --- how the weights are trained ---

    def schedule(self, search: SearchContext) -> tuple[int, int]:
        return self.inner.schedule(search)

    def clipped_parameters(self, search: SearchContext) -> list[nn.Parameter]:
        return self.inner.clipped_parameters(search)

    # --- what a checkpoint holds ---

    def state_dict(self) -> dict[str, Any]:
        """A subclass adds its own entries beside "inner"."""
        return {"inner": self.inner.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.inner.load_state_dict(state["inner"])
