"""What every evaluator promises: a code in; an accuracy to search by, and what it cost to know it, out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field

from fastnas.spaces.encoding import Code, Encoding


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation of one architecture gave.

    Args:
        accuracy: on validation images, in 0..1.
        seconds: duration, on the clock of the evaluator.
        costs: further objectives by name, the lower the better: "parameters", "macs", "latency".
    """

    accuracy: float
    seconds: float
    costs: dict[str, float] = field(default_factory=dict)


class Evaluator(ABC):
    """Says how good architectures are.

    Attributes:
        encoding: of the codes that it takes.
        clock: "simulated" or "real": whose seconds an evaluation reports.
    """

    encoding: Encoding
    clock: str = "real"

    @abstractmethod
    def evaluate(self, codes: Sequence[Code]) -> list[Evaluation]:
        """Evaluates these architectures, one result for each."""

    def judge(self, code: Code) -> float | None:
        """The number that is reported for the architecture a search ends with, in 0..1, which a search must not see: a
        test accuracy. None where there is nothing better than the accuracy of `evaluate`."""
        return None
