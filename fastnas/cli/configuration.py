"""How a command gets its options: defaults (of a search: what its strategy published), then --preset, then --config,
then flags; each overrides what came before.

All of them go through one parser: a preset or a config file is turned into flags that stand before the user's own. The
file format is that of --print-config and of config.yaml in a run directory: one mapping per group of options.
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import tyro
import yaml

from fastnas import strategies
from fastnas.cli.arguments import parse_arguments
from fastnas.cli.options import (
    DerivedOptions,
    SearchCommandOptions,
    SearchDataOptions,
    SearchRunOptions,
    SupernetOptions,
    TrainCommandOptions,
    TrainDataOptions,
    TrainRunOptions,
)
from fastnas.cli.places import PLACES, same_kind
from fastnas.cli.search_run import read_search
from fastnas.engine.options import WeightOptions
from fastnas.engine.recipe import TrainingRecipe
from fastnas.errors import UserError
from fastnas.input_file import path_of, read_text
from fastnas.option_types import check_value, option_hints, reading
from fastnas.strategies import Strategy
from fastnas.strategies.registry import spec_of
from fastnas.yaml_text import parse_yaml

MOST_BYTES = 128 * 2**10  # of a YAML file; one with every option has 3,000, and a large one takes minutes to read

# What may differ when a run is resumed.
RESUMABLE = {
    *(("run", name) for name in ("out", "device", "cuda_graphs", "evidence", "threads", "stop_after", "elastic")),
    *(("data", name) for name in ("workers", "prefetch")),
}

# What an option was for runs that did not know it yet.
FORMERLY: dict[tuple[str, str], Any] = {
    ("data", "test"): "none",  # all images of a source without a test split were searched on
    ("data", "color_jitter"): True,  # of ImageNet
    ("data", "validation_augment"): False,
    ("strategy", "evolve"): "before",  # EG-NAS
    ("strategy", "auxiliary_weight"): 0.0,  # ENAS
}


class Configuration:
    """Every option of a command: a dataclass with a field for where options come from, and one for each group."""

    presets: ClassVar[Path]
    """Folder of the YAML files that --preset names: NAME.yaml for all strategies, which sets data and sizes, and
    NAME.STRATEGY.yaml with more for one of them."""
    groups: ClassVar[tuple[str, ...]]
    """As config.yaml orders them."""

    @classmethod
    def preset_names(cls) -> list[str]:
        return sorted(path.stem for path in cls.presets.glob("*.yaml") if "." not in path.stem)

    def to_dict(self) -> dict[str, dict[str, Any]]:
        """Plain values by group, as config.yaml holds them."""
        return {name: plain_values(getattr(self, name)) for name in self.groups}

    def to_yaml(
        self,
        resolved: Mapping[str, Mapping[str, Any]] | None = None,
        origins: Mapping[str, Mapping[str, str]] | None = None,
    ) -> str:
        """What was asked for, as config.yaml holds it, with comments.

        Args:
            resolved: by group and option, what took the place of None and "auto".
            origins: by group and option, where the value comes from, as far as that is to be said.
        """
        return to_text(self.to_dict(), resolved, origins)


@dataclass(frozen=True)
class SearchOptions(Configuration):
    """Every option of a search."""

    presets = Path(__file__).parents[1] / "presets"
    groups = ("strategy", "network", "data", "weights", "run")

    command: SearchCommandOptions
    run: SearchRunOptions
    data: SearchDataOptions
    network: SupernetOptions
    weights: WeightOptions
    strategy: Strategy

    def to_dict(self) -> dict[str, dict[str, Any]]:
        """Plain values by group, as config.yaml holds them."""
        groups = super().to_dict()
        return {**groups, "strategy": {"name": spec_of(self.strategy), **groups["strategy"]}}


@dataclass(frozen=True)
class TrainOptions(Configuration):
    """Every option of a retraining."""

    presets = SearchOptions.presets / "train"
    groups = ("network", "data", "recipe", "run")

    command: TrainCommandOptions
    network: DerivedOptions
    data: TrainDataOptions
    recipe: TrainingRecipe
    run: TrainRunOptions


AnyOptions = TypeVar("AnyOptions", bound=Configuration)
OptionFile = tuple[str, dict[str, Any]]  # where the options come from, and the options by group


def parse_search(
    arguments: Sequence[str],
    program: str,
    description: str,
    keywords: Mapping[str, Any] | None = None,
    strategy: Strategy | None = None,
) -> SearchOptions:
    """Options of `fastnas.search`.

    Args:
        arguments: flags.
        program, description: for --help.
        keywords: options by name or "group.name", as Python gives them; they override files and flags of `arguments`.
        strategy: instead of the one that flags or files name; its options are the defaults.

    Raises:
        UserError: a preset, file, group or option that does not exist.
        SystemExit: --help, or a flag with a wrong value (the parser has explained it).
    """
    name, files = _search_files(arguments, None if strategy is None else spec_of(strategy))
    strategy = strategies.create(name) if strategy is None else strategy
    groups = {
        "run": SearchRunOptions,
        "data": SearchDataOptions,
        "network": SupernetOptions,
        "weights": WeightOptions,
    }
    published = {name: options(**strategy.published_defaults.get(name, {})) for name, options in groups.items()}
    defaults = SearchOptions(command=SearchCommandOptions(strategy=name), strategy=strategy, **published)
    return _parse_layers(defaults, files, arguments, program, description, keywords)


def parse_train(
    arguments: Sequence[str], program: str, description: str, keywords: Mapping[str, Any] | None = None
) -> TrainOptions:
    """Options of `fastnas.train`; takes and raises what `parse_search` does."""
    defaults = TrainOptions(
        TrainCommandOptions(), DerivedOptions(), TrainDataOptions(), TrainingRecipe(), TrainRunOptions()
    )
    return _parse_layers(defaults, _option_files(TrainOptions, arguments), arguments, program, description, keywords)


def origins(options: Configuration, arguments: Sequence[str]) -> dict[str, dict[str, str]]:
    """Where each of the options that these arguments gave comes from, by group and option."""
    layers = _option_files(type(options), arguments)
    if isinstance(options, SearchOptions):
        name = spec_of(options.strategy)
        published: Any = options.strategy.published_defaults
        layers = [(f"strategy {name}", published), *_search_files(arguments, name)[1]]
    found = {group: dict.fromkeys(values, "default") for group, values in options.to_dict().items()}
    words = [word[2:].partition("=")[0].replace("-", "_") for word in arguments if word.startswith("--")]
    given = {"name" if word == "strategy" else word.removeprefix("no_") for word in words}
    for group, values in found.items():
        for origin, content in [*layers, ("command line", {each: dict.fromkeys(given) for each in found})]:
            other = group == "strategy" and content.get(group, {}).get("name") not in (
                None,
                options.to_dict()[group]["name"],
            )
            values.update({name: origin for name in content.get(group, {}) if name in values and not other})
    return found


def differences(run: dict[str, dict[str, Any]], options: Configuration, movable: bool) -> list[str]:
    """A description of each option that differs between a run and its continuation although it must not.

    movable: whether the images may lie elsewhere by now, since what they are is compared."""
    changed = []
    for group, now in options.to_dict().items():
        defaults = {field.name: field.default for field in dataclasses.fields(getattr(options, group))}
        for name in {**run[group], **now}:
            # An option that the run did not know yet was what it is by default.
            formerly = FORMERLY.get((group, name), defaults.get(name))
            before, after = run[group].get(name, formerly), now.get(name)
            if before == after or (group, name) in RESUMABLE:
                continue
            if (group, name) in (("data", place) for place in PLACES) and same_kind(before, after, movable):
                continue
            changed.append(f"{group}.{name} is {after!r} but was {before!r}")
    return changed


def _peek(arguments: Sequence[str], *names: str) -> argparse.Namespace:
    """The flags that decide how the others are read."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    for name in names:
        parser.add_argument(f"--{name}")
    try:
        return parser.parse_known_args(arguments)[0]
    except argparse.ArgumentError as error:
        raise UserError(f"{error}.") from error


def _option_files(kind: type[Configuration], arguments: Sequence[str]) -> list[OptionFile]:
    """What --preset, --config and --resume name, in the order in which each overrides the one before."""
    first = _peek(arguments, "preset", "config", "resume", "from")
    files: list[OptionFile] = []
    search_run = getattr(first, "from") if kind is TrainOptions else None
    if first.preset is not None and first.preset not in kind.preset_names():
        raise UserError(f"unknown preset {first.preset!r}: expected one of {', '.join(kind.preset_names())}.")
    if search_run is not None:
        if first.resume is not None:
            raise UserError("--resume takes its options from the run: leave out --from.")
        found = read_search(Path(search_run))
        preset = first.preset or found.preset
        recipe = found.without_images(_read(kind.presets / f"{preset}.yaml", kind.groups))
        files += [(search_run, found.options()), (f"preset {preset}", recipe), (search_run, found.fitted(recipe))]
    elif first.preset is not None:
        files.append((f"preset {first.preset}", _read(kind.presets / f"{first.preset}.yaml", kind.groups)))
    if first.config is not None:
        files.append((first.config, _read(path_of(first.config), kind.groups)))
    if first.resume is not None:
        if first.config or first.preset:
            raise UserError("--resume takes its options from the run: leave out --preset and --config.")
        path = path_of(first.resume) / "config.yaml"
        if not os.path.exists(path):
            raise UserError(f"nothing to resume in {path.parent}: it has no config.yaml; give a run directory.")
        content = _read(path, kind.groups)
        content.get("run", {}).pop("stop_after", None)  # it concerned the process that stopped
        files.append((str(path), content))
    return files


def _search_files(arguments: Sequence[str], name: str | None) -> tuple[str, list[OptionFile]]:
    """The name of the strategy, where it is not known yet, and the files of a search."""
    files = _option_files(SearchOptions, arguments)
    names = [content["strategy"]["name"] for _, content in files if "name" in content.get("strategy", {})]
    name = name or _peek(arguments, "strategy").strategy or (names[-1] if names else SearchCommandOptions.strategy)
    preset = _peek(arguments, "preset").preset
    own = SearchOptions.presets / f"{preset}.{name}.yaml"
    if preset is not None and own.name in os.listdir(own.parent):
        files.insert(1, (f"preset {preset}", _read(own, SearchOptions.groups)))
    return name, files


def _parse_layers(
    defaults: AnyOptions,
    files: Sequence[OptionFile],
    arguments: Sequence[str],
    program: str,
    description: str,
    keywords: Mapping[str, Any] | None = None,
) -> AnyOptions:
    """`defaults`, then the options of files, then flags, then keywords."""
    if _peek(arguments, "resume").resume is not None:
        files = [(origin, _with_former(content, defaults)) for origin, content in files]
    flags = [flag for origin, content in files for flag in _flags(origin, content, defaults)]
    if keywords is not None:
        arguments = [*arguments, *keyword_flags(program, keywords, defaults)]
    options: Any = parse_arguments(
        type(defaults),
        [*flags, *arguments],
        program,
        description,
        default=defaults,
        config=(tyro.conf.OmitArgPrefixes,),
    )
    if options.command.resume is not None and options.run.budget is not None:
        raise UserError("a run that is resumed keeps its number of epochs: leave out --budget, or give --stop-after.")
    return options


def _read(path: Path, groups: Sequence[str]) -> dict[str, Any]:
    """The options of a file by group: each a word, a number, True, False or None."""
    text = read_text(path, f"config {path}", "give the path of a YAML file, as --print-config prints it", MOST_BYTES)
    try:
        content = parse_yaml(text)
    except ValueError as error:
        raise UserError(f"config {path} is not YAML: {error}; see what --print-config prints.") from error
    content = {} if content is None else content
    if not isinstance(content, dict) or not all(isinstance(group, dict) for group in content.values()):
        raise UserError(f"config {path}: expected groups ({', '.join(groups)}) of options, as --print-config prints.")
    for group, options in content.items():
        for name, value in options.items():
            if not isinstance(value, str | bool | int | float | None):
                raise UserError(
                    f"config {path}: {name} of {group} is a {type(value).__name__}, expected a word or a number."
                )
            if isinstance(value, int) and abs(value) >= 2**63:
                raise UserError(f"config {path}: {name} of {group} is larger than any number of 64 bits.")
    if not isinstance(content.get("strategy", {}).get("name", ""), str):
        raise UserError(f"config {path}: name of strategy is no word: expected one such as egnas.")
    return content


def _with_former(content: dict[str, Any], defaults: Configuration) -> dict[str, Any]:
    """The options of a run, with those that it did not know yet."""
    former = {group: dict(options) for group, options in content.items()}
    for (group, name), value in FORMERLY.items():
        if group in defaults.groups and name in option_hints(type(getattr(defaults, group))):
            former.setdefault(group, {}).setdefault(name, value)
    return former


def _flags(origin: str, content: dict[str, Any], defaults: Configuration) -> list[str]:
    """A file's options as flags; options of another strategy than the chosen one are left out."""
    flags: list[str] = []
    for group, options in content.items():
        check_known(f"{origin}: group", group, defaults.groups)
        target = getattr(defaults, group)
        if group == "strategy":
            options = dict(options)
            if options.pop("name", spec_of(target)) != spec_of(target):
                continue
        hints = option_hints(type(target))
        for name, value in options.items():
            check_known(f"{origin}: option of {group}", name, list(hints))
            value = reading(value, hints[name])
            check_value(f"{origin}: {name}", value, hints[name])
            flag = name.replace("_", "-")
            if hints[name] is bool and isinstance(value, bool):
                flags.append(f"--{flag}" if value else f"--no-{flag}")
            else:
                flags += [f"--{flag}", str(value)]
    return flags


def keyword_flags(origin: str, keywords: Mapping[str, Any], defaults: Configuration) -> list[str]:
    """Keywords of `parse_search` as flags. UserError for one that no group has, or whose value cannot be."""
    group_of = {name: group for group in defaults.groups for name in option_hints(type(getattr(defaults, group)))}
    content: dict[str, dict[str, Any]] = {}
    for key, value in keywords.items():
        group, _, name = key.rpartition(".")
        if not group:
            check_known(f"{origin}: option", name, list(group_of))
        content.setdefault(group or group_of[name], {})[name] = value
    return _flags(origin, content, defaults)


def check_known(what: str, name: str, known: Sequence[str]) -> None:
    """UserError, with what may have been meant, for a name that is not known."""
    if name in known:
        return
    near = difflib.get_close_matches(str(name), known, n=1)
    advice = f"did you mean {near[0]!r}?" if near else f"expected one of {', '.join(known)}."
    raise UserError(f"{what} {name!r} is unknown: {advice}")


def to_text(
    asked: Mapping[str, Mapping[str, Any]],
    resolved: Mapping[str, Mapping[str, Any]] | None = None,
    origins: Mapping[str, Mapping[str, str]] | None = None,
) -> str:
    """Options by group as YAML; see `Configuration.to_yaml`."""
    text = yaml.safe_dump(asked, sort_keys=False, allow_unicode=True)
    lines, group = [], ""
    for line in text.splitlines():
        name = line.strip().partition(":")[0]
        group = group if line.startswith(" ") else name
        if line.startswith("  ") and name in asked[group]:
            value = (resolved or {}).get(group, {}).get(name) if asked[group][name] in (None, "auto") else None
            said = (
                []
                if value is None
                else yaml.safe_dump(value, default_flow_style=True, allow_unicode=True).split("\n")[:1]
            )
            origin = (origins or {}).get(group, {}).get(name)
            said += [] if origin is None else [origin]
            line += f"  # {', '.join(said)}" if said else ""
        lines.append(line)
    return "\n".join(lines) + "\n"


def plain_values(options: Any) -> dict[str, Any]:
    """What a dataclass is made of, with paths as texts."""
    values = {item.name: getattr(options, item.name) for item in dataclasses.fields(options) if item.init}
    return {name: str(value) if isinstance(value, Path) else value for name, value in values.items()}
