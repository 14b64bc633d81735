"""Options say in their types what they may be: every number has a range, wherever it comes from it is held to it."""

from __future__ import annotations

import importlib
import math
import pkgutil
from collections.abc import Iterator
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import pytest

import fastnas
from fastnas import strategies
from fastnas.cli.configuration import parse_search, parse_train
from fastnas.errors import UserError
from fastnas.option_types import Count, Options, Range, ShareBelowOne, check_value, option_hints, ranges_of, reading

for module in pkgutil.walk_packages(fastnas.__path__, "fastnas."):
    if not module.name.endswith(("__main__", "._C")):
        importlib.import_module(module.name)


def declared(kind: type[Any] = Options) -> Iterator[type[Any]]:
    """Every dataclass of options of the package."""
    for each in kind.__subclasses__():
        if each.__module__.startswith("fastnas.") and is_dataclass(each):
            yield each
        yield from declared(each)


CLASSES = sorted(set(declared()), key=lambda kind: kind.__qualname__)
OPTIONS = [(kind, name, hint) for kind in CLASSES for name, hint in option_hints(kind).items()]


def numbers_of(hint: Any, within: tuple[Range, ...] = ()) -> list[tuple[type, tuple[Range, ...]]]:
    """The kinds of numbers in a type, each with its ranges."""
    if hint in (int, float):
        return [(hint, within)]
    parts = () if hint is bool else [part for part in get_args(hint) if part not in ranges_of(hint)]
    return [found for part in parts for found in numbers_of(part, (*within, *ranges_of(hint)))]


NUMBERS = [
    pytest.param(kind, name, number, limits[0], id=f"{kind.__name__}.{name}")
    for kind, name, hint in OPTIONS
    for number, limits in numbers_of(hint)
    if limits
]


def test_every_number_has_a_range() -> None:
    assert len(OPTIONS) > 200, "the walk has missed some"
    without = [
        f"{kind.__name__}.{name}" for kind, name, hint in OPTIONS for _, limits in numbers_of(hint) if len(limits) != 1
    ]
    assert without == []


def test_every_command_and_strategy_is_among_them() -> None:
    names = {kind.__name__ for kind in CLASSES}
    assert {"SearchRunOptions", "TrainDataOptions", "TrainingRecipe", "WeightOptions", "CompareOptions"} <= names
    assert {kind.__name__ for kind in strategies.STRATEGIES.values()} <= names


@pytest.mark.parametrize(("kind", "name", "number", "limits"), NUMBERS)
def test_values_outside_of_the_range_are_refused(kind: type[Any], name: str, number: type, limits: Range) -> None:
    required = {
        each.name: "x" if "str" in str(each.type) else Path("x") if "Path" in str(each.type) else 1
        for each in fields(kind)
        if each.default is MISSING and each.default_factory is MISSING
    }
    beyond = [limits.least - 1, limits.most + 1, *limits.without, True, "1x"]
    beyond += [1.5] if number is int else [math.nan, math.inf, -math.inf, 1e308]
    for value in beyond:
        with pytest.raises(UserError, match=rf"^{name} is .*, expected ") as error:
            kind(**{**required, name: value})
        assert len(str(error.value)) < 300


@pytest.mark.parametrize("kind", CLASSES)
def test_defaults_are_what_the_types_allow(kind: type[Any]) -> None:
    hints = option_hints(kind)
    for each in fields(kind):
        if each.init and each.default is not MISSING:
            check_value(each.name, each.default, hints[each.name])


# --- the rules themselves ---


@dataclass
class Example(Options):
    count: Count = 1
    share: ShareBelowOne = 0.5
    between: Annotated[float, Range(0, 2, without=(0, 2))] = 1.0
    few: Count | Literal["auto"] | None = None
    order: Literal[1, 2] = 1
    flag: bool = False
    word: str = "a"
    file: Path | None = None
    state: int = field(init=False, default=-1)


def test_what_fits_is_taken() -> None:
    for values in (
        {
            "count": 10**9,
            "share": 0,
            "between": 1e-9,
            "few": 3,
            "order": 2,
            "flag": True,
            "word": "",
            "file": Path("x"),
        },
        {"share": 0.999999, "few": "auto"},
    ):
        example = Example(**values)
        assert all(getattr(example, name) == value for name, value in values.items())


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"count": 0}, r"count is 0, expected a whole number from 1 to 1,000,000,000\."),
        ({"count": 1.0}, r"count is 1\.0, expected a whole number from 1"),
        ({"count": True}, r"count is True, expected a whole number"),
        ({"share": 1}, r"share is 1, expected a number from 0 to less than 1\."),
        ({"share": math.nan}, r"share is nan, expected a number from 0"),
        ({"between": 2.0}, r"between is 2\.0, expected a number above 0 and below 2\."),
        ({"few": "all"}, r"few is 'all', expected a whole number from 1 to 1,000,000,000, auto or None\."),
        ({"order": True}, r"order is True, expected 1 or 2\."),
        ({"order": 3}, r"order is 3, expected 1 or 2\."),
        ({"flag": 1}, r"flag is 1, expected True or False\."),
        ({"word": 3}, r"word is 3, expected a text\."),
        ({"file": "x"}, r"file is 'x', expected a Path or None\."),
    ],
)
def test_what_does_not_fit_is_said(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=f"^{message}"):
        Example(**values)


def test_words_are_read_as_the_option_needs_them() -> None:
    hints = option_hints(Example)
    read = [("share", "1e-3", 1e-3), ("word", 12, "12"), ("file", "x", Path("x")), ("few", "4", 4), ("few", None, None)]
    assert [reading(value, hints[name]) for name, value, _ in read] == [value for _, _, value in read]
    for name, value in (("count", "1.5"), ("count", True), ("share", "x"), ("flag", 1)):
        assert reading(value, hints[name]) is value


# --- where options come from ---


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("weights: {momentum: 7}", "momentum is 7, expected a number from 0 to less than 1"),
        ("weights: {epochs: many}", "epochs is 'many', expected a whole number"),
        ("weights: {learning_rate: .nan}", "learning_rate is nan"),
        ("strategy: {population: 4.5}", "population is 4.5, expected a whole number from 4"),
        ("strategy: {eta: .inf}", "eta is inf"),
        ("data: {flip: 3}", "flip is 3, expected True or False or None"),
        ("run: {seed: -1}", "seed is -1"),
    ],
)
def test_files_go_through_the_same_check(line: str, message: str, tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(line)
    with pytest.raises(UserError, match=f"config.yaml: {message}"):
        parse_search(["--config", str(config)], "test", "")


def test_what_yaml_takes_for_text_is_still_a_number(tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text("recipe: {weight_decay: 1e-3}\nrun: {seeds: 7}\n")
    options = parse_train(["--config", str(config)], "test", "")
    assert (options.recipe.weight_decay, options.run.seeds) == (1e-3, "7")


def test_strategies_in_one_word_are_checked() -> None:
    assert strategies.parse("darts:alpha_learning_rate=1e-3") == strategies.create("darts", alpha_learning_rate=1e-3)
    for text in ("random:evaluations=1.5", "aging-evolution:population=2.5", "snas:temperature=.nan", "random:batch=0"):
        with pytest.raises(UserError, match=r"is (1\.5|2\.5|nan|0), expected a"):
            strategies.parse(text)


def test_options_that_contradict_each_other() -> None:
    with pytest.raises(UserError, match="nesterov is True, but momentum is 0"):
        parse_search(["--nesterov", "--momentum", "0"], "test", "")
