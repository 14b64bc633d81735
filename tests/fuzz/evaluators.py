"""Evaluators of one's own: functions that return anything, modules that do not import, names that name nothing."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import torch
from fuzz.cases import Case, outcome, run_kind
from fuzz.mutations import change_bytes, values
from hypothesis import strategies as st

from fastnas import spaces
from fastnas.evaluators import Evaluation, Function
from fastnas.evaluators.function import load
from fastnas.spaces.encoding import encoding_of

SOURCE = b'"""Scores."""\n\nlimit = 3\n\n\ndef score(genotype):\n    return {"accuracy": 0.25, "seconds": 2}\n'
NAMES = ["score", "limit", "", "none", "score.x", "__name__", "a:b", "[red]", "\x1b[1m"]
# No letters but those of the module, so that a drawn name never imports something that acts.
names = st.text(st.sampled_from("zq:. _-/[]\n\x00üé"), max_size=12)


class Odd:
    """A number that is none."""

    def __float__(self) -> float:
        raise ZeroDivisionError("no\nnumber")

    def __repr__(self) -> str:
        return "an\nodd " + "x" * 3000


NUMBERS: list[Any] = [
    0, 1, 0.5, True, -0.0, 1.0000001, -1e-9, math.nan, math.inf, 2**2000, Fraction(1, 3), np.float32(0.5), 50, "0.5",
    np.array(0.5), np.array([0.5]), np.array([0.1, 0.2]), torch.tensor(0.5), torch.tensor([1.0, 2.0]), "x", b"0.5", 1j,
    None, [], Odd(), object,
]  # fmt: skip


def _number(case: Case) -> Any:
    return case.draw(values) if case.chance(0.3) else case.rng.choice(NUMBERS)


def _answer(case: Case) -> Any:
    if case.chance(0.4):
        return _number(case)
    answer: dict[Any, Any] = {"accuracy": _number(case) if case.chance(0.4) else case.rng.random()}
    if case.chance(0.5):
        answer["seconds"] = _number(case) if case.chance(0.6) else 1 + case.rng.random()
    for name in ("parameters", "latency", 7, "[red]"):
        if case.chance(0.2):
            answer[name] = _number(case)
    return answer


def _raising(case: Case) -> Callable[[Any], Any]:
    error = case.rng.choice([ValueError("a\nb"), SystemExit(3), MemoryError(), KeyError(), OSError(28, "full"), Odd()])

    def fail(genotype: Any) -> Any:
        if isinstance(error, Odd):
            return fail(genotype)
        raise error

    return fail


def _plain(answer: Any) -> dict[str, float]:
    """What the answer says, by the documented rules."""
    given = answer if isinstance(answer, dict) else {"accuracy": answer}
    return {str(name): float(value) for name, value in given.items()}


def one(case: Case) -> str:
    if case.chance(0.8):
        encoding = encoding_of(spaces.find(case.rng.choice(["egnas", "darts", "nb201"])))
        code = encoding.sample(case.rng)
        answer = _answer(case)
        fails = case.chance(0.1)
        function = _raising(case) if fails else lambda genotype: answer
        case.given = "raises" if fails else repr(answer)

        def check(found: list[Evaluation]) -> None:
            (evaluation,) = found
            assert not fails
            numbers = _plain(answer)
            assert 0 <= evaluation.accuracy == numbers.pop("accuracy") <= 1
            assert 0 < evaluation.seconds < math.inf
            assert evaluation.seconds == numbers.pop("seconds", evaluation.seconds)
            assert evaluation.costs == numbers
            assert all(map(math.isfinite, numbers.values()))

        return outcome(lambda: Function(function, encoding).evaluate([code]), check)
    return _module(case)


def _module(case: Case) -> str:
    content = SOURCE if case.chance(0.3) else change_bytes(case.rng, SOURCE)
    module = f"scores_{case.seed}_{case.number}"
    (case.folder / f"{module}.py").write_bytes(content)
    name = f"{module}:{case.rng.choice(NAMES)}" if case.chance(0.8) else case.draw(names)
    case.given = f"{name!r} of {content!r}"
    sys.path.insert(0, str(case.folder))
    try:
        return outcome(lambda: load(name), lambda found: None if callable(found) else 1 / 0)
    finally:
        sys.path.remove(str(case.folder))
        sys.modules.pop(module, None)


def run(deadline: float, seed: int) -> dict[str, int]:
    """See `fuzz.cases.run_kind`."""
    return run_kind(one, deadline, seed)
