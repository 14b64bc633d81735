"""The interface of evaluators: from a code to an accuracy to search by, and what it cost to measure it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field

from fastnas.spaces.encoding import Code, Encoding


@dataclass(frozen=True)
class Evaluation:
    """The result of evaluating one architecture.

    Args:
        accuracy: on validation images, in 0..1.
        seconds: duration, on the evaluator's clock.
        costs: further objectives by name, the lower the better: "parameters", "macs", "latency".
    """

    accuracy: float
    seconds: float
    costs: dict[str, float] = field(default_factory=dict)


class Evaluator(ABC):
    """Says how good architectures are.

    Attributes:
        encoding: the encoding of the codes that it takes.
        clock: "simulated" or "real": whose seconds an evaluation reports.
    """

    encoding: Encoding
    clock: str = "real"

    @abstractmethod
    def evaluate(self, codes: Sequence[Code]) -> list[Evaluation]:
        """Evaluates these architectures, one result for each."""

    def judge(self, code: Code) -> float | None:
        """The number to report for the final architecture of a search, in 0..1: a test accuracy, which the search must
        not see. None if there is nothing better than the accuracy of `evaluate`."""
        return None
