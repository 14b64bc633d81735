"""The interface of evaluators: from a code to an accuracy to search by, and what it cost to measure it."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field

from fastnas.errors import UserError
from fastnas.spaces.encoding import Code, Encoding

LEAST_SECONDS = 1e-9  # of an evaluation


@dataclass(frozen=True)
class Evaluation:
    """The result of evaluating one architecture.

    Args:
        accuracy: on validation images, in 0..1.
        seconds: duration, on the evaluator's clock; above 0.
        costs: further objectives by name, the lower the better: "parameters", "macs", "latency".

    Raises:
        UserError: an accuracy outside of 0..1, seconds below 1e-9, or a number that is not finite.
    """

    accuracy: float
    seconds: float
    costs: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        # Whoever searches compares these numbers and adds up the seconds until a budget is spent.
        if not 0 <= self.accuracy <= 1:
            raise UserError(
                f"the evaluator gives the accuracy {self.accuracy}, expected a share from 0 to 1: divide what is in % "
                "by 100."
            )
        if not LEAST_SECONDS <= self.seconds < math.inf:
            raise UserError(
                f"the evaluator gives {self.seconds} seconds, expected a finite number of at least {LEAST_SECONDS:g}: "
                "otherwise no budget is ever spent."
            )
        for name, cost in self.costs.items():
            if not math.isfinite(cost):
                raise UserError(f"the evaluator gives the cost {name} as {cost}, expected a finite number.")


class Evaluator(ABC):
    """Says how good architectures are.

    Attributes:
        encoding: the encoding of the codes that it takes.
        clock: "simulated" or "real": whose seconds an evaluation reports.
        together: whether many codes in one call take less time than one by one.
    """

    encoding: Encoding
    clock: str = "real"
    together: bool = False

    @abstractmethod
    def evaluate(self, codes: Sequence[Code]) -> list[Evaluation]:
        """Evaluates these architectures, one result for each."""

    def judge(self, code: Code) -> float | None:
        """The number to report for the final architecture of a search, in 0..1: a test accuracy, which the search must
        not see. None if there is nothing better than the accuracy of `evaluate`."""
        return None
