"""Strategies by name. A strategy registers itself with a decorator, from inside the package or from outside."""

from __future__ import annotations

import difflib
import sys
from typing import Any, TypeVar

from fastnas.errors import UserError
from fastnas.option_types import option_hints, reading
from fastnas.python_object import PREFIX, load_object
from fastnas.strategies.base import Strategy

STRATEGIES: dict[str, type[Strategy]] = {}
"""Classes by name, in the order in which they were registered."""

_origins: dict[type[Strategy], str] = {}

Class = TypeVar("Class", bound=type[Strategy])


def register_strategy(strategy: Class) -> Class:
    """Class decorator: makes a strategy known by its `name`, to `create`, to `parse` and so to `--strategy`.

    Raises:
        ValueError: another strategy has this name.
    """
    other = STRATEGIES.get(strategy.name)
    # The same class comes twice where its module is reloaded.
    if other is not None and (other.__module__, other.__qualname__) != (strategy.__module__, strategy.__qualname__):
        raise ValueError(
            f"{strategy.__qualname__} has the name {strategy.name!r}, as {other.__module__}.{other.__qualname__} has: "
            "give it a name of its own."
        )
    STRATEGIES[strategy.name] = strategy
    return strategy


def find(name: str) -> type[Strategy]:
    """The class of a strategy by its name, or one of a user's own as `python:MODULE:CLASS`.

    Raises:
        UserError: an unknown name, or an object that cannot be imported or is not a strategy.
    """
    if name.startswith(PREFIX):
        found = load_object(name, "strategy")
        if not (isinstance(found, type) and issubclass(found, Strategy)):
            raise UserError(f"the strategy {name} is not a class derived from fastnas.strategies.Strategy.")
        _origins[found] = name
        return found
    if name not in STRATEGIES:
        near = difflib.get_close_matches(name, STRATEGIES, n=1)
        advice = f"did you mean {near[0]!r}?" if near else f"expected one of {', '.join(STRATEGIES)}."
        raise UserError(f"unknown strategy {name!r}: {advice}")
    return STRATEGIES[name]


def spec_of(strategy: Strategy) -> str:
    """What `find` takes to find the class of a strategy again, in a process that has not imported it yet.

    A class that is neither registered nor in a module of its own is found only where it is given, under its name."""
    kind = type(strategy)
    if kind in _origins or STRATEGIES.get(strategy.name) is kind or kind.__module__ == "__main__":
        return _origins.get(kind, strategy.name)
    importable = getattr(sys.modules.get(kind.__module__), kind.__qualname__, None) is kind
    return f"{PREFIX}{kind.__module__}:{kind.__qualname__}" if importable else strategy.name


def create(name: str, **options: Any) -> Strategy:
    """A strategy by name, with its hyper-parameters as keywords. UserError for an unknown name."""
    return find(name)(**options)


def parse(text: str) -> Strategy:
    """A strategy as one word: NAME, or NAME:OPTION=VALUE,OPTION=VALUE, where NAME may be python:MODULE:CLASS.

    Raises:
        UserError: an unknown name or option, or a word that is not OPTION=VALUE.
    """
    parts = text.split(":")
    words = 3 if text.startswith(PREFIX) else 1  # that make the name
    name, listed = ":".join(parts[:words]), ":".join(parts[words:])
    hints = option_hints(find(name))
    options = {}
    for word in filter(None, listed.split(",")):
        option, equals, value = word.partition("=")
        option = option.strip().replace("-", "_")
        if not equals or option not in hints:
            raise UserError(
                f"{word!r} is not an option of {name}: expected OPTION=VALUE with one of {', '.join(hints)}."
            )
        from fastnas.yaml_text import parse_yaml  # here: strategies without options in words need no yaml

        try:
            options[option] = reading(parse_yaml(value), hints[option])
        except ValueError as error:
            raise UserError(f"{word!r} is not an option of {name}: {error}; give a word or a number.") from error
    return create(name, **options)
