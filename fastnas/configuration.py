"""How a command gets its options: defaults, then --preset, then --config, then flags; each overrides what came before.

All of them go through one parser: a preset or a config file is turned into flags that stand before the user's own. The
file format is that of --print-config and of config.yaml in a run directory: one mapping per group of options.
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import typing
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import tyro
import yaml

from fastnas import strategies
from fastnas.engine.options import DataOptions, NetworkOptions, RunOptions, WeightOptions
from fastnas.errors import UserError
from fastnas.strategies import Strategy

Options = TypeVar("Options")

PRESETS = Path(__file__).with_name("presets")
GROUPS = ("strategy", "network", "data", "weights", "run")
# What may differ when a run is resumed.
RESUMABLE = {
    ("run", "out"),
    ("run", "device"),
    ("run", "cuda_graphs"),
    ("run", "threads"),
    ("run", "stop_after"),
    ("data", "workers"),
    ("data", "prefetch"),
}


@dataclass(frozen=True)
class CommandOptions:
    """Where the options come from."""

    preset: str | None = None
    """demo, cifar10 or imagenet: a set of options that fits together. Without any argument: demo."""
    config: Path | None = None
    """YAML file with options, such as config.yaml of a run."""
    strategy: str = "egnas"
    """How α is searched. Its own options are listed in a group of their own."""
    resume: Path | None = None
    """Run directory to continue, exactly where its checkpoint stands."""
    print_config: bool = False
    """Print the resolved options as YAML and exit."""


@dataclass(frozen=True)
class SearchOptions:
    """Every option of a search."""

    command: CommandOptions
    run: RunOptions
    data: DataOptions
    network: NetworkOptions
    weights: WeightOptions
    strategy: Strategy

    def to_dict(self) -> dict[str, dict[str, Any]]:
        """Plain values by group, as config.yaml holds them."""
        groups = {name: plain_options(getattr(self, name)) for name in GROUPS}
        return {**groups, "strategy": {"name": self.strategy.name, **groups["strategy"]}}

    def to_yaml(self) -> str:
        return yaml.safe_dump(self.to_dict(), sort_keys=False, allow_unicode=True)


def preset_names(folder: Path = PRESETS) -> list[str]:
    return sorted(path.stem for path in folder.glob("*.yaml"))


def parse(arguments: Sequence[str], program: str, description: str) -> SearchOptions:
    """Options of `fastnas.search`.

    Raises:
        UserError: a preset, file, group or option that does not exist.
        SystemExit: --help, or a flag with a wrong value (the parser has explained it).
    """
    peek = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    peek.add_argument("--strategy")
    first, _ = peek.parse_known_args(arguments)
    files = option_files(arguments, PRESETS, GROUPS)
    names = [content["strategy"]["name"] for _, content in files if "name" in content.get("strategy", {})]
    strategy = strategies.create(first.strategy or (names[-1] if names else CommandOptions.strategy))
    groups = {"run": RunOptions, "data": DataOptions, "network": NetworkOptions, "weights": WeightOptions}
    published = {name: options(**strategy.published_defaults.get(name, {})) for name, options in groups.items()}
    defaults = SearchOptions(command=CommandOptions(strategy=strategy.name), strategy=strategy, **published)
    return parse_layers(defaults, GROUPS, files, arguments, program, description)


OptionFile = tuple[str, dict[str, Any]]  # where the options come from, and the options by group


def option_files(arguments: Sequence[str], presets: Path, groups: Sequence[str]) -> list[OptionFile]:
    """What --preset, --config and --resume name, in the order in which each overrides the one before."""
    peek = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for name in ("preset", "config", "resume"):
        peek.add_argument(f"--{name}")
    first, _ = peek.parse_known_args(arguments)
    files: list[OptionFile] = []
    if first.preset is not None:
        if first.preset not in preset_names(presets):
            raise UserError(f"unknown preset {first.preset!r}: expected one of {', '.join(preset_names(presets))}.")
        files.append((f"preset {first.preset}", _read(presets / f"{first.preset}.yaml", groups)))
    if first.config is not None:
        files.append((first.config, _read(Path(first.config), groups)))
    if first.resume is not None:
        if first.config or first.preset:
            raise UserError("--resume takes its options from the run: leave out --preset and --config.")
        path = Path(first.resume, "config.yaml")
        if not path.exists():
            raise UserError(f"nothing to resume in {first.resume}: it has no config.yaml; give a run directory.")
        content = _read(path, groups)
        content.get("run", {}).pop("stop_after", None)  # it was about the process that stopped
        files.append((str(path), content))
    return files


def parse_layers(
    defaults: Options,
    groups: Sequence[str],
    files: Sequence[OptionFile],
    arguments: Sequence[str],
    program: str,
    description: str,
) -> Options:
    """Options of a command: `defaults`, then those of files, then flags."""
    flags = [flag for origin, content in files for flag in _flags(origin, content, defaults, groups)]
    return tyro.cli(
        type(defaults),
        args=[*flags, *arguments],
        default=defaults,
        prog=program,
        description=description,
        config=(tyro.conf.OmitArgPrefixes,),
    )


def differences(
    run: dict[str, dict[str, Any]],
    now: dict[str, dict[str, Any]],
    groups: Sequence[str] = GROUPS,
) -> list[str]:
    """Options that differ between a run and its continuation although they must not, in words."""
    changed = []
    for group in groups:
        for name in {**run.get(group, {}), **now.get(group, {})}:
            before, after = run.get(group, {}).get(name), now.get(group, {}).get(name)
            if before != after and (group, name) not in RESUMABLE:
                changed.append(f"{group}.{name} is {after!r} but was {before!r}")
    return changed


def _read(path: Path, groups: Sequence[str]) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read config {path}: {error.strerror}; give the path of a YAML file.") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"config {path} is not YAML: {str(error).splitlines()[0]}.") from error
    content = {} if content is None else content
    if not isinstance(content, dict) or not all(isinstance(group, dict) for group in content.values()):
        raise UserError(f"config {path}: expected groups ({', '.join(groups)}) of options, as --print-config prints.")
    return content


def _flags(origin: str, content: dict[str, Any], defaults: Any, groups: Sequence[str]) -> list[str]:
    """A file's options as flags; options of another strategy than the chosen one are left out."""
    flags: list[str] = []
    for group, options in content.items():
        _check_known(f"{origin}: group", group, groups)
        target = getattr(defaults, group)
        if group == "strategy":
            options = dict(options)
            if options.pop("name", target.name) != target.name:
                continue
        hints = typing.get_type_hints(type(target))
        known = [item.name for item in dataclasses.fields(target) if item.init]
        for name, value in options.items():
            _check_known(f"{origin}: option of {group}", name, known)
            flag = name.replace("_", "-")
            if hints[name] is bool and isinstance(value, bool):
                flags.append(f"--{flag}" if value else f"--no-{flag}")
            else:
                flags += [f"--{flag}", str(value)]
    return flags


def _check_known(what: str, name: str, known: Sequence[str]) -> None:
    if name in known:
        return
    near = difflib.get_close_matches(str(name), known, n=1)
    advice = f"did you mean {near[0]!r}?" if near else f"expected one of {', '.join(known)}."
    raise UserError(f"{what} {name!r} is unknown: {advice}")


def plain_options(options: Any) -> dict[str, Any]:
    values = {item.name: getattr(options, item.name) for item in dataclasses.fields(options) if item.init}
    return {name: str(value) if isinstance(value, Path) else value for name, value in values.items()}
