"""From the arguments of a call in Python to the options of a command, through the checks of the command line."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from fastnas import data as images
from fastnas import spaces
from fastnas.cli.configuration import check_known, plain_values
from fastnas.errors import UserError
from fastnas.genotype import Genotype
from fastnas.option_types import option_hints, reading
from fastnas.report.run import read_run
from fastnas.spaces import CellSpace
from fastnas.strategies import STRATEGIES, Strategy

Parsed = TypeVar("Parsed")
NAMED = str | int | float | os.PathLike


def flags(**values: Any) -> list[str]:
    """The flags of those that are not None."""
    return [word for name, value in values.items() if value is not None for word in (f"--{name}", os.fspath(value))]


def without_none(**keywords: Any) -> dict[str, Any]:
    """Those that are not None: what files say about the others stays."""
    return {name: value for name, value in keywords.items() if value is not None}


def call_text(function: str, **arguments: Any) -> str:
    """The call as a person would repeat it; an object stands there by the name of its argument."""
    words = []
    for name, value in without_none(**arguments).items():
        if isinstance(value, os.PathLike):
            value = os.fspath(value)
        plain = isinstance(value, str | int | float | Strategy)
        words.append(f"{name}={value!r}" if plain else f"{name}={getattr(value, '__name__', name)}")
    return f"fastnas.api.{function}({', '.join(words)})"


@contextlib.contextmanager
def named_data(
    data: Any, options: Mapping[str, Any], split: str = "train", trained_on: Mapping[str, Any] | None = None
) -> Iterator[dict[str, Any]]:
    """The options with `data` and `test` as texts, which `fastnas.data.open` understands while the context is open.

    Args:
        data: images in any form, or None.
        options: may hold other images as "test".
        split: that `data` is opened as.
        trained_on: what a network says about its images, to know their classes, and these very images again: of them
            it is the test split that is tested.
    """
    named, kept = dict(options), []
    known = trained_on or {}
    classes: Sequence[str] = known.get("classes", ())
    if data is not None and not isinstance(data, str | os.PathLike):
        kept.append(images.hold(data, "train" if trained_on is None else split, classes=classes))
        if kept[0].name == known.get("spec") and known.get("test_share") is not None:
            kept = [images.hold(data, "train", classes=classes)]
        data, classes = kept[0].name, kept[0].classes
    if data is not None:
        named["data"] = str(data)
    if (test := named.get("test")) is not None and not isinstance(test, NAMED):
        kept.append(images.hold(test, "test", classes=classes))
        named["test"] = kept[-1].name
    yield named
    del kept


def check_same_images(run: Any, keywords: Mapping[str, Any]) -> None:
    """UserError where a run that began with images in memory is to go on with others."""
    before, now = (
        (read_run(run).option("data", "data") if run is not None and os.path.isdir(run) else None),
        keywords.get("data"),
    )
    if now not in (None, before) and str(before).startswith("memory:"):
        raise UserError(
            f"these are not the images that the run in {os.fspath(run)} began with ({now}, not {before}): pass the "
            "same images and labels, in the same order, or start a new run."
        )


def options_of(function: str, kind: Callable[..., Parsed], keywords: Mapping[str, Any]) -> Parsed:
    """Options of this dataclass, which checks them. UserError for an unknown one."""
    hints = option_hints(kind)  # type: ignore[arg-type]
    for name in keywords:
        check_known(f"fastnas.api.{function}: option", name, list(hints))
    return kind(**{name: reading(value, hints[name]) for name, value in keywords.items()})


def own_strategy(strategy: Any) -> tuple[Strategy | None, dict[str, Any]]:
    """A strategy given as a class or an object, and the options that an object insists on; None for a name.

    Raises:
        UserError: it is none, or has the name of another one.
    """
    if strategy is None or isinstance(strategy, str):
        return None, {}
    kind = strategy if isinstance(strategy, type) else type(strategy)
    if not issubclass(kind, Strategy) or not isinstance(getattr(kind, "name", None), str):
        raise UserError(
            f"the strategy is {strategy!r}: expected a name, or a class or an object derived from "
            "fastnas.strategies.Strategy that has a name."
        )
    if not dataclasses.is_dataclass(kind) or "__dataclass_fields__" not in vars(kind):
        raise UserError(f"the strategy {kind.__qualname__} is no dataclass: write @dataclass above the class.")
    other = STRATEGIES.get(kind.name)
    if other is not None and (other.__module__, other.__qualname__) != (kind.__module__, kind.__qualname__):
        raise UserError(f"the strategy {kind.__qualname__} has the name {kind.name!r} of another: give it its own.")
    return (strategy(), {}) if isinstance(strategy, type) else (strategy, plain_values(strategy))


def space_name(space: str | CellSpace | None) -> str | None:
    """A name that finds the space. UserError where a space of one's own has the name of another."""
    if not isinstance(space, CellSpace):
        return space
    if spaces.SPACES.setdefault(space.name, space) != space:
        raise UserError(f"the space has the name {space.name!r} of another space: give it a name of its own.")
    return space.name


def trainable(genotype: Any) -> Genotype:
    """The genotype, if `fastnas.train` can train it. UserError otherwise."""
    if not isinstance(genotype, Genotype):
        raise UserError(
            f"the genotype is a {type(genotype).__name__}: expected a fastnas.Genotype, the name of a published one, a "
            "path or the result of a search. For NAS-Bench-201 use fastnas.nn.NB201Network."
        )
    return genotype
