"""What a study is to do, as a YAML file or a dict says it: read, brought to one scale, and checked for its form."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import yaml

from fastnas.cli.configuration import check_known
from fastnas.cli.places import PLACES, absolute
from fastnas.errors import UserError
from fastnas.input_file import path_of, read_text
from fastnas.study.option_sets import LATER, Settings, check_not_managed, flattened, overridden, short, split
from fastnas.yaml_text import parse_yaml

READY = Path(__file__).parents[1] / "presets" / "study"
FILE = "study.yaml"
STAGES = ("search", "choose", "train", "evaluate", "baseline", "compare")
KEYS = (
    "name", "title", "note", "published", "table", "scale", "stages", "choose", "baseline", "seeds", "grid", "list",
    "base", "train", "evaluate",
)  # fmt: skip
MOST_SEEDS = 10_000
_PATHS = ("config", "initial_weights", "genotype")  # options that name a file

AnyPlan: TypeAlias = str | os.PathLike[str] | Mapping[str, Any]


@dataclass(frozen=True)
class Baseline:
    """Random architectures, trained as the chosen one is.

    Args:
        random: how many.
        within: the largest difference from the parameters of the chosen one's network, as a share of them.
        space: from which they are drawn; None for that of the search.
    """

    random: int
    within: float
    space: str | None = None


@dataclass(frozen=True)
class Definition:
    """A study at one scale.

    Args:
        name: a word; title: a line; note: what is to be known of its results.
        published: the name of published results to show beside these.
        scale: of which it is; None for a study without scales.
        stages: of `STAGES`, in the order in which they follow each other.
        choose: which searches are trained: all, or of each cell the one of the best validation accuracy.
        baseline: None for none.
        seeds: of the first stage.
        train_seeds: of the trainings; empty for those of the searches.
        grid: values by option; sets: option sets by name, each combined with every point of the grid.
        base: options of all runs; those of training and evaluation begin with "train." and "evaluate.".
        given: what study.yaml holds.
    """

    name: str
    title: str
    note: str
    published: str | None
    scale: str | None
    stages: tuple[str, ...]
    choose: Literal["all", "best"]
    baseline: Baseline | None
    seeds: tuple[int, ...]
    train_seeds: tuple[int, ...]
    grid: Mapping[str, Sequence[Any]]
    sets: Sequence[tuple[str | None, Settings]]
    base: Settings
    given: Mapping[str, Any]

    @property
    def first(self) -> str:
        """The stage that options without a stage belong to."""
        return next(stage for stage in ("compare", "search", "train") if stage in self.stages)

    def to_yaml(self) -> str:
        return yaml.safe_dump(json.loads(json.dumps(self.given)), sort_keys=False, allow_unicode=True)


def ready_names() -> list[str]:
    """The studies that come with the package."""
    return sorted(path.stem for path in READY.glob("*.yaml"))


def read_definition(plan: AnyPlan, scale: str | None = None, threads: int | None = None) -> Definition:
    """A study from the name of a ready one, the path of a YAML file, the directory of a study, or a dict.

    Args:
        plan: see above.
        scale: one of those that the plan has; None for its first.
        threads: CPU threads of every run; None for what the plan says, else 1.

    Raises:
        UserError: there is no such plan, or it is not in order.
    """
    where, content = _content(plan)
    content = _scaled(where, content, scale)
    for key in content:
        check_known(f"{where}: key", key, KEYS)
    return _definition(where, content, threads)


def _content(plan: AnyPlan) -> tuple[str, dict[str, Any]]:
    """Where a plan is from, and what it says."""
    if isinstance(plan, Mapping):
        return f"study {plan.get('name', '')}".strip(), dict(plan)
    path = path_of(plan)
    text = os.fspath(plan)
    if text in ready_names() and not path.exists():
        path = READY / f"{text}.yaml"
    elif path.is_dir():
        path = path / FILE
    elif not path.exists() and path.name == text and not path.suffix:
        check_known("study", text, ready_names() or ["a YAML file"])
    where = f"study {path}"
    try:
        content = parse_yaml(read_text(path, where, "give a YAML file, or the name of a ready study"))
    except ValueError as error:
        raise UserError(f"{where} is not YAML: {error}.") from error
    if not isinstance(content, dict):
        raise UserError(f"{where}: expected {', '.join(KEYS)} and their values.")
    content.setdefault("name", path.parent.name if path.name == FILE else path.stem)
    return where, content


def _scaled(where: str, content: dict[str, Any], scale: str | None) -> dict[str, Any]:
    """The plan at one of its scales, whose options override those of the plan, and whose other keys replace its own."""
    scales = content.pop("scales", None)
    if scales is None:
        if scale not in (None, content.get("scale")):
            raise UserError(f"{where} has no scales: leave out --scale.")
        return content
    if not isinstance(scales, dict) or not scales:
        raise UserError(f"{where}: scales is {scales!r}, expected a mapping such as small: {{…}}.")
    scale = next(iter(scales)) if scale is None else scale
    if scale not in scales:
        raise UserError(f"{where} has no scale {scale!r}: expected one of {', '.join(map(str, scales))}.")
    chosen = scales[scale] or {}
    if not isinstance(chosen, dict):
        raise UserError(f"{where}: the scale {scale} is {chosen!r}, expected a mapping.")
    merged = {**content, **chosen, "scale": str(scale)}
    for key in ("base", *LATER):
        if key in content and key in chosen:
            sets = (flattened(f"{where}: {key}", each[key] or {}) for each in (content, chosen))
            merged[key] = overridden(*sets)
    return merged


def _definition(where: str, content: dict[str, Any], threads: int | None) -> Definition:
    stages, choose, baseline = _stages(where, content)
    seeds = _seeds(where, content.get("seeds", [0]))
    first = next(stage for stage in ("compare", "search", "train") if stage in stages)
    base = flattened(f"{where}: base", content.get("base") or {})
    for stage in LATER:
        if content.get(stage) is not None:
            own = flattened(f"{where}: {stage}", content[stage])
            base = overridden(base, {f"{stage}.{name}": value for name, value in own.items()})
    base = _for_first(base, first)
    train_seeds = _seeds(where, base.pop("train.seeds")) if "train.seeds" in base else ()
    grid = _grid(where, content.get("grid") or {}, first)
    sets = _sets(where, content.get("list"), first)
    for options in (base, grid, *(each for _, each in sets)):
        check_not_managed(where, options)
        for option in options:
            stage, _, name = split(option)
            if stage and stage not in stages:
                raise UserError(f"{where}: {option} is an option of the stage {stage}, which stages does not name.")
            if stage == "evaluate" and name in ("network", "report", "json"):
                raise UserError(f"{where}: {option} is set by the study for every run: leave it out.")
            if stage == "train" and name in ("genotype", "space") and "search" in stages:
                raise UserError(f"{where}: {option} is that of the search: leave it out.")
    for stage in ("", *(each for each in LATER if each in stages and each != first)):
        name = f"{stage}.threads" if stage else "threads"
        if threads is not None or not any(short(option) == name for option in base):
            base = overridden(base, {name: threads or 1})
    texts: dict[str, str | None] = {}
    for name in ("name", "title", "note", "published", "scale", "table"):
        value = content.get(name)
        if not isinstance(value, str | None):
            raise UserError(f"{where}: {name} is {value!r}, expected a text.")
        texts[name] = value
    base, sets = _placed(base), [(name, _placed(options)) for name, options in sets]
    grid = {name: [_place(name, value) for value in values] for name, values in grid.items()}
    given = {
        **{name: value for name, value in texts.items() if value is not None and name != "table"},
        **({"table": str(path_of(texts["table"]).absolute())} if texts["table"] else {}),
        "stages": list(stages),
        **({"choose": choose} if "choose" in stages else {}),
        **({"baseline": vars(baseline)} if baseline else {}),
        "seeds": list(seeds),
        "grid": grid,
        **({"list": [({"name": name} if name else {}) | options for name, options in sets]} if sets else {}),
        "base": base | ({"train.seeds": ",".join(map(str, train_seeds))} if train_seeds else {}),
    }
    return Definition(
        name=texts["name"] or "study",
        title=texts["title"] or texts["name"] or "study",
        note=texts["note"] or "",
        published=texts["published"],
        scale=texts["scale"],
        stages=stages,
        choose=choose,
        baseline=baseline,
        seeds=seeds,
        train_seeds=train_seeds,
        grid=grid,
        sets=sets,
        base=base,
        given=given,
    )


def _stages(where: str, content: Mapping[str, Any]) -> tuple[tuple[str, ...], Literal["all", "best"], Baseline | None]:
    """The stages in their order, which searches are trained, and the baseline."""
    listed = content.get("stages", ["search"])
    listed = [listed] if isinstance(listed, str) else listed
    named: dict[str, Any] = {}
    for item in listed if isinstance(listed, list) else [listed]:
        pairs: list[tuple[str, Any]] = list(item.items()) if isinstance(item, Mapping) else [(str(item), None)]
        for stage, value in pairs:
            check_known(f"{where}: stage", stage, STAGES)
            named[stage] = value
    for stage in ("choose", "baseline"):
        if content.get(stage) is not None:
            named[stage] = content[stage]
    wanted = {stage: value for stage, value in ((each, named.get(each)) for each in STAGES) if stage in named}
    if "compare" in wanted and len(wanted) > 1:
        raise UserError(f"{where}: the stage compare stands alone: it needs no other.")
    if not {"search", "train", "compare"} & set(wanted):
        raise UserError(f"{where}: stages is {listed!r}, expected search, train or compare among them.")
    needed = {"choose": "search", "evaluate": "train", "baseline": "train"}
    for stage, other in needed.items():
        if stage in wanted and other not in wanted:
            raise UserError(f"{where}: the stage {stage} needs the stage {other}.")
    count = len(_seeds(where, content.get("seeds", [0])))
    return tuple(wanted), _choose(where, wanted.get("choose") or "all", count), _baseline(where, wanted)


def _choose(where: str, value: Any, seeds: int) -> Literal["all", "best"]:
    words = str(value).replace("_", "-").replace(" ", "-")
    if words in ("all", "best"):
        return "all" if words == "all" else "best"
    found = re.fullmatch(r"best-of-(\d+)", words)
    if found is None:
        raise UserError(f"{where}: choose is {value!r}, expected all, best or best-of-N.")
    if int(found[1]) != seeds:
        raise UserError(f"{where}: choose is {value!r}, but the study has {seeds} seeds: write best, or other seeds.")
    return "best"


def _baseline(where: str, stages: Mapping[str, Any]) -> Baseline | None:
    if "baseline" not in stages:
        return None
    given = stages["baseline"]
    if not isinstance(given, Mapping) or not {"random"} <= set(given) <= {"random", "within", "space"}:
        raise UserError(f"{where}: baseline is {given!r}, expected for example {{random: 8, within: 5%}}.")
    count, within, space = given["random"], given.get("within", "5%"), given.get("space")
    if isinstance(within, str) and re.fullmatch(r"\d+(\.\d+)?\s*%", within):
        within = float(within.rstrip("% ")) / 100
    if not isinstance(count, int) or isinstance(count, bool) or not 1 <= count <= 1000:
        raise UserError(f"{where}: random of baseline is {count!r}, expected a whole number from 1 to 1,000.")
    if not isinstance(within, int | float) or isinstance(within, bool) or not 0 < within < 1:
        raise UserError(f"{where}: within of baseline is {within!r}, expected a share such as 5%.")
    if not isinstance(space, str | None):
        raise UserError(f"{where}: space of baseline is {space!r}, expected the name of a space.")
    return Baseline(count, float(within), space)


def _seeds(where: str, value: Any) -> tuple[int, ...]:
    """Seeds as a list, a number, or words such as 0-3 and 1,2,7."""
    words = value if isinstance(value, list | tuple) else str(value).split(",")
    seeds: list[int] = []
    for word in words:
        found = re.fullmatch(r"\s*(\d+)\s*(?:-\s*(\d+)\s*)?", str(word))
        first, last = (0, -1) if found is None else (int(found[1]), int(found[2] or found[1]))
        if not 0 <= first <= last < 2**32 or last - first >= MOST_SEEDS:
            raise UserError(f"{where}: seeds is {value!r}, expected whole numbers such as [1, 2, 3] or 0-3.")
        seeds += range(first, last + 1)
    if len(set(seeds)) < len(seeds):
        raise UserError(f"{where}: seeds is {value!r}, which names a seed twice.")
    return tuple(seeds)


def _grid(where: str, grid: Any, first: str) -> dict[str, list[Any]]:
    if not isinstance(grid, Mapping):
        raise UserError(f"{where}: grid is {grid!r}, expected options, each with a list of values.")
    found: dict[str, list[Any]] = {}
    for key, values in _nested(grid):
        if not isinstance(values, list | tuple) or not values:
            raise UserError(f"{where}: {key} of grid is {values!r}, expected a list of values.")
        each = [flattened(f"{where}: grid", {key: value}) for value in values]
        (name,) = _for_first(each[0], first)
        if len({repr(value) for value in values}) < len(values):
            raise UserError(f"{where}: {key} of grid has a value twice: {values!r}.")
        found[name] = [next(iter(value.values())) for value in each]
    return found


def _nested(grid: Mapping[Any, Any], before: str = "") -> list[tuple[str, Any]]:
    pairs: list[tuple[str, Any]] = []
    for key, values in grid.items():
        pairs += _nested(values, f"{before}{key}.") if isinstance(values, Mapping) else [(f"{before}{key}", values)]
    return pairs


def _sets(where: str, sets: Any, first: str) -> list[tuple[str | None, Settings]]:
    if sets is None:
        return []
    if not isinstance(sets, list | tuple) or not sets or not all(isinstance(each, Mapping) for each in sets):
        raise UserError(f"{where}: list is {sets!r}, expected a list of option sets.")
    found = []
    for number, each in enumerate(sets, start=1):
        name = each.get("name")
        if not isinstance(name, str | None):
            raise UserError(f"{where}: the name of option set {number} is {name!r}, expected a text.")
        options = {key: value for key, value in each.items() if key != "name"}
        found.append((name, _for_first(flattened(f"{where}: option set {name or number}", options), first)))
    names = [name for name, _ in found if name]
    if len(set(names)) < len(names):
        raise UserError(f"{where}: two option sets have the same name: {', '.join(names)}.")
    return found


def _for_first(options: Settings, first: str) -> Settings:
    """Options of the first stage without its name."""
    return overridden({}, {key.removeprefix(f"{first}."): value for key, value in options.items()})


def _placed(options: Settings) -> Settings:
    return {name: _place(name, value) for name, value in options.items()}


def _place(option: str, value: Any) -> Any:
    """Where images and files lie, independent of the working directory: runs begin on other machines, too."""
    name = split(option)[2]
    if not isinstance(value, str):
        return value
    if name in PLACES:
        return absolute(value)
    if name == "evaluator" and value.startswith(("nb201:", "training:")):
        kind, _, place = value.partition(":")
        return f"{kind}:{path_of(place).absolute() if kind == 'nb201' else absolute(place)}"
    return str(path_of(value).absolute()) if name in _PATHS and path_of(value).exists() else value
