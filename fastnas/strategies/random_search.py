"""Random search: the baseline that every search must beat (Li, Talwalkar, "Random Search and Reproducibility for NAS",
UAI 2019; with shared weights this is their RandomNAS).

Details are those of the released program, except that its BatchNorms use running statistics when it scores, that it
scores on augmented images, the finalists, too, and that its samples may contain "none".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from fastnas.option_types import Population
from fastnas.spaces.encoding import Code
from fastnas.strategies.discrete import DiscreteStrategy, Individual
from fastnas.strategies.registry import register_strategy


@register_strategy
@dataclass
class RandomSearch(DiscreteStrategy):
    """Uniformly random architectures; with shared weights the best of the finalists is the result."""

    name: ClassVar[str] = "random"
    default_evaluations: ClassVar[int] = 1000

    fitness_images: Literal["same", "generation", "architecture"] = "generation"
    batch: Population = 10
    """Architectures that are evaluated at a time: a generation."""

    def ask(self) -> list[Code]:
        count = self.batch if self.wanted is None else min(self.batch, self.wanted)
        return [self.encoding.sample(self.random) for _ in range(count)]

    def tell(self, individuals: Sequence[Individual]) -> None:
        pass
