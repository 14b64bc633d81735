"""Evaluation by any Python callable."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from fastnas.errors import UserError
from fastnas.evaluators.base import Evaluation, Evaluator
from fastnas.evaluators.clock import stopwatch
from fastnas.python_object import load_object, reason_of
from fastnas.spaces.encoding import Code, Encoding


class Function(Evaluator):
    """Calls `function(genotype)`.

    Args:
        function: gives the accuracy in 0..1, or a mapping with "accuracy", optionally "seconds", above 0 (otherwise
            they are measured), and any costs, the lower the better.
        encoding: of the space whose genotypes it takes.
    """

    def __init__(self, function: Callable[[Any], float | Mapping[str, float]], encoding: Encoding) -> None:
        self.function, self.encoding = function, encoding

    def evaluate(self, codes: Sequence[Code]) -> list[Evaluation]:
        return [self._one(code) for code in codes]

    def _one(self, code: Code) -> Evaluation:
        genotype = self.encoding.decode(code)
        try:
            with stopwatch() as clock:
                answer = self.function(genotype)
        except UserError:
            raise
        except (Exception, SystemExit) as error:  # whatever the user's code raises
            raise UserError(f"the evaluator's function raised {reason_of(error)}") from error
        values = dict(answer) if isinstance(answer, Mapping) else {"accuracy": answer}
        try:
            numbers = {str(name): float(value) for name, value in values.items()}
            accuracy, seconds = numbers.pop("accuracy"), numbers.pop("seconds", clock.seconds)
        except Exception as error:  # whatever the answer's own conversion raises
            raise UserError(
                f"the evaluator's function returned {answer!r}: expected the accuracy, or a mapping with 'accuracy'."
            ) from error
        return Evaluation(accuracy, seconds, numbers)


def load(name: str) -> Callable[[Any], float | Mapping[str, float]]:
    """The callable MODULE:NAME. UserError if there is none."""
    function = load_object(name, "evaluator")
    if not callable(function):
        raise UserError(f"evaluator python:{name} is not callable: expected a function of a genotype.")
    return function
