"""What an option may be: its type says so, and here it is checked, for flags, presets, files and Python alike.

An option is a field of a dataclass derived from `Options`; a number states its range in its type:

    epochs: Count = 50
    momentum: ShareBelowOne = 0.9
    population: Annotated[int, Range(4, 100_000)] = 50
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import types
from dataclasses import dataclass
from numbers import Integral, Real
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from fastnas.errors import UserError
from fastnas.input_file import path_of


@dataclass(frozen=True)
class Range:
    """The numbers from `least` to `most`. Infinity and NaN lie in no range.

    Args:
        least, most: the ends, which are finite.
        without: the ends that do not belong to it.
    """

    least: float
    most: float
    without: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        assert math.isfinite(self.most - self.least)

    def __contains__(self, value: float) -> bool:
        return self.least <= value <= self.most and value not in self.without

    def __str__(self) -> str:
        low, high = (f"{end:,}" if isinstance(end, int) else f"{end:g}" for end in (self.least, self.most))
        if self.least in self.without:
            return f"above {low} and {'below' if self.most in self.without else 'at most'} {high}"
        return f"from {low} to less than {high}" if self.most in self.without else f"from {low} to {high}"


LARGE = 10**6
"""Weights, rates and step sizes end here: what is computed with them stays finite in float32."""
MOST_INDIVIDUALS = 100_000

Count = Annotated[int, Range(1, 10**9)]
CountOrZero = Annotated[int, Range(0, 10**9)]
Channels = Annotated[int, Range(1, 2**16)]
Layers = Annotated[int, Range(1, 1000)]
Processes = Annotated[int, Range(1, 1024)]  # or threads
ProcessesOrZero = Annotated[int, Range(0, 1024)]
Side = Annotated[int, Range(1, 2**14)]  # pixels
SideOrZero = Annotated[int, Range(0, 2**14)]
Population = Annotated[int, Range(1, MOST_INDIVIDUALS)]
Seed = Annotated[int, Range(0, 2**32 - 1)]

NotNegative = Annotated[float, Range(0, LARGE)]
Positive = Annotated[float, Range(0, LARGE, without=(0,))]
Temperature = Annotated[float, Range(1e-6, LARGE)]
Seconds = Annotated[float, Range(0, 10**12, without=(0,))]
Share = Annotated[float, Range(0, 1)]
ShareAboveZero = Annotated[float, Range(0, 1, without=(0,))]
ShareBetween = Annotated[float, Range(0, 1, without=(0, 1))]
Turn = Annotated[float, Range(0, 0.5)]  # of the colour circle
ShareBelowOne = Annotated[float, Range(0, 1, without=(1,))]


class Options:
    """Base of the dataclasses whose fields are options: a new object has checked its values."""

    def __post_init__(self) -> None:
        """UserError for a value that its field's type does not allow. `~` in a path becomes the home folder."""
        for name, hint in option_hints(type(self)).items():
            value = getattr(self, name)
            check_value(name, value, hint)
            if isinstance(value, Path):
                object.__setattr__(self, name, path_of(value))


def option_hints(kind: type[Any]) -> dict[str, Any]:
    """The types of the options of a dataclass, with their ranges, by name."""
    hints = get_type_hints(kind, include_extras=True)
    return {field.name: hints[field.name] for field in dataclasses.fields(kind) if field.init}


def reading(value: Any, hint: Any) -> Any:
    """What a word of a file or of a command line says to an option of type `hint`, such as the number 1e-3, which YAML
    takes for text, or the text 12, which it takes for a number; the value itself where no reading of it fits."""
    text = str(value)
    if not _allows(hint, value):
        for kind in (str, Path, int, float):
            with contextlib.suppress(ValueError):
                if _allows(hint, kind(text)):
                    return kind(text)
    return value


def check_value(name: str, value: Any, hint: Any) -> None:
    """UserError unless `value` is what the type `hint` says."""
    if not _allows(hint, value):
        *most, last = _alternatives(hint)
        raise UserError(f"{name} is {value!r}, expected {', '.join(most)}{' or ' if most else ''}{last}.")


def _allows(hint: Any, value: Any) -> bool:
    kind, arguments = get_origin(hint), get_args(hint)
    if kind is Annotated:
        return _allows(arguments[0], value) and all(value in each for each in ranges_of(hint))
    if kind in (Union, types.UnionType):
        return any(_allows(each, value) for each in arguments)
    if kind is Literal:
        return any(value == each and type(value) is type(each) for each in arguments)
    if hint in (int, float):  # a bool is neither, whatever Python says
        return isinstance(value, Integral if hint is int else Real) and not isinstance(value, bool)
    return not isinstance(hint, type) or isinstance(value, hint)


def _alternatives(hint: Any) -> list[str]:
    """What an option of this type may be, in words."""
    kind, arguments = get_origin(hint), get_args(hint)
    if kind is Annotated:
        return [" ".join([*_alternatives(arguments[0]), *map(str, ranges_of(hint))])]
    if kind in (Union, types.UnionType):
        return [words for each in arguments for words in _alternatives(each)]
    if kind is Literal:
        return [str(each) for each in arguments]
    words = {int: "a whole number", float: "a number", bool: "True or False", str: "a text", types.NoneType: "None"}
    return [words.get(hint) or f"a {getattr(hint, '__name__', hint)}"]


def ranges_of(hint: Any) -> list[Range]:
    """The ranges that an annotated type states, itself and not in a part of it."""
    return [each for each in getattr(hint, "__metadata__", ()) if isinstance(each, Range)]
