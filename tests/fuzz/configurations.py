"""YAML files of options, given to --config of a search and of a training."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable
from functools import cache
from typing import Any

import yaml
from fuzz.cases import Case, command, run_kind
from fuzz.mutations import change_bytes, change_tree, values

from fastnas import search, train
from fastnas.cli.configuration import SearchOptions, TrainOptions, parse_search, parse_train

LINES = [
    "weights: {epochs: 2024-01-31}", "weights: {epochs: 0b1010}", "weights: {epochs: 1_000}", "run: {out: ~}",
    "data: {limit: 190:20:30}", "run: {out: !!str 7}", "run: {seed: !!float 3}", "weights: &w {clip: 1}\nrun: *w",
    "{<<: {a: 1}}", "run: {out: !!binary aGVsbG8=}", "run: !!set {out, seed}", "!!omap [run: 1]", "--- {}\n--- {}",
    "%YAML 9.9\n---\n{}", "weights:\n\tepochs: 3", 'run: {out: "\\0"}', "run: {out: |\n  a\n  b\n}", "? {a: b}\n: c",
    "weights: {epochs: 3, epochs: 4}", "run: {deterministic: maybe}", "run: {deterministic: on}", "=: 1", "{", "7",
    "weights: {learning_rate: .inf}", "weights: {learning_rate: 1e-3}", "weights: {clip: -0.0}", "strategy: {name: ''}",
    "strategy: {name: 7}", "strategy: {name: 'python:x:y'}", "run: {device: 'cuda:99'}", "{run: null}", "run: []",
]  # fmt: skip
Parse = Callable[[list[str], str, str], Any]


@cache
def _seeds() -> list[tuple[Any, dict[str, Any]]]:
    """A command and options that it takes."""
    found: list[tuple[Any, dict[str, Any]]] = []
    commands: list[tuple[Any, Parse, Any]] = [(search, parse_search, SearchOptions), (train, parse_train, TrainOptions)]
    for module, parse, kind in commands:
        for preset in kind.preset_names():
            found.append((module, parse(["--preset", preset], "", "").to_dict()))
    for strategy in ("darts", "p-darts", "snas", "enas", "cma-es", "nsga2", "multi-level"):
        with contextlib.suppress(Exception), contextlib.redirect_stderr(io.StringIO()):
            found.append((search, parse_search(["--strategy", strategy], "", "").to_dict()))
    return found


def one(case: Case) -> str:
    rng = case.rng
    module, seed = rng.choice(_seeds())
    text = yaml.safe_dump(
        seed, sort_keys=case.chance(0.5), allow_unicode=True, default_flow_style=rng.choice([True, False, None])
    )
    same = False
    match rng.randrange(6):
        case 0:
            content = change_bytes(rng, text.encode())
        case 1 | 2:
            tree = change_tree(rng, seed, case.draw(values))
            content = yaml.dump(tree, sort_keys=False, allow_unicode=True).encode("utf-8", "surrogatepass")
        case 3:
            content = (
                change_bytes(rng, rng.choice(LINES).encode(), 1) if case.chance(0.5) else rng.choice(LINES).encode()
            )
        case 4:
            some = {group: options for group, options in seed.items() if case.chance(0.5)}
            content = yaml.safe_dump(some).encode()
        case _:
            same, content = True, text.replace("\n", rng.choice(["\n", "\r\n"])).encode()
    case.given = f"{module.__name__} {content!r}"
    path = case.folder / "config.yaml"
    path.write_bytes(content)
    status, printed = command(module.main, ["--config", str(path), "--print-config"])
    if status:
        assert not same, "options that were printed are refused"
        return "refused"
    path.write_text(printed, encoding="utf-8")
    options = yaml.safe_load(printed)
    status, again = command(module.main, ["--config", str(path), "--print-config"])
    assert (status, yaml.safe_load(again)) == (0, options)  # only the comments differ: where values come from
    if same:
        assert options == seed
    return "result"


def run(deadline: float, seed: int) -> dict[str, int]:
    """See `fuzz.cases.run_kind`."""
    return run_kind(one, deadline, seed)
