"""Plans of studies: what they say, at which scale, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from tiny_studies import QUIET, SEARCH, TRAIN

from fastnas.errors import UserError
from fastnas.study.definition import Baseline, Definition, read_definition, ready_names
from fastnas.study.option_sets import flattened, of_stage, overridden
from fastnas.study.plan import StudyPlan, changed
from fastnas.study.unit_options import check


def read(**plan: Any) -> Definition:
    return read_definition({"name": "mine", **plan})


def units(**plan: Any) -> list[str]:
    return list(StudyPlan(read(**plan)).units)


# --- options ---


def test_the_last_of_several_ways_to_say_an_option_counts() -> None:
    base = flattened("base", {"strategy": {"name": "egnas", "eta": 0.3}, "epochs": 5, "weights": {"clip": 1.0}})
    assert base == {"strategy": "egnas", "strategy.eta": 0.3, "epochs": 5, "weights.clip": 1.0}
    assert overridden(base, {"eta": 0.5})["eta"] == 0.5
    assert "strategy.eta" not in overridden(base, {"eta": 0.5})
    assert overridden(base, {"weights.epochs": 9}) == {
        "strategy": "egnas", "strategy.eta": 0.3, "weights.clip": 1.0, "weights.epochs": 9,
    }  # fmt: skip
    assert overridden({"data.limit": 1}, {"run.limit": 2}) == {"data.limit": 1, "run.limit": 2}  # two options


def test_another_strategy_comes_without_the_options_of_the_one_before() -> None:
    base = flattened("base", {"strategy": {"name": "egnas", "eta": 0.3}, "layers": 5})
    assert overridden(base, {"strategy": "darts"}) == {"layers": 5, "strategy": "darts"}
    assert overridden(base, {"strategy": "egnas"}) == base


def test_stages_have_options_of_their_own() -> None:
    options = flattened("base", {"epochs": 5, "train": {"epochs": 6, "recipe": {"clip": 1.0}}, "train.layers": 7})
    assert of_stage(options, "") == {"epochs": 5}
    assert of_stage(options, "train") == {"epochs": 6, "recipe.clip": 1.0, "layers": 7}
    assert overridden(options, {"train.recipe.epochs": 8})["epochs"] == 5


# --- cells and units ---


def test_grid_times_list_times_seeds() -> None:
    plan = StudyPlan(
        read(
            grid={"zeta": [1.0, 0.5], "weights": {"epochs": [3]}},
            list=[{"name": "plain"}, {"name": "with β", "layers": 6}],
            seeds="0-1",
        )
    )
    assert [cell.slug for cell in plan.cells] == [
        "plain_zeta-1.0_epochs-3", "plain_zeta-0.5_epochs-3", "with-_zeta-1.0_epochs-3", "with-_zeta-0.5_epochs-3",
    ]  # fmt: skip
    assert [cell.label for cell in plan.cells][-1] == "with β, zeta 0.5, epochs 3"
    assert plan.settings(plan.cells[-1], "search") == {"threads": 1, "layers": 6, "zeta": 0.5, "weights.epochs": 3}
    ids = list(plan.units)
    assert len(ids) == len(set(ids)) == 8
    assert ids[:2] == ["plain_zeta-1.0_epochs-3/seed-0/search", "plain_zeta-1.0_epochs-3/seed-1/search"]
    content = plan.to_dict()
    assert content["grid"] == {"zeta": [1.0, 0.5], "epochs": [3]}
    assert content["units"][4] == {
        "id": ids[4], "stage": "search", "cell": "with-_zeta-1.0_epochs-3", "label": "with β, zeta 1.0, epochs 3",
        "options": {"layers": 6, "zeta": 1.0, "epochs": 3}, "seed": 0, "directory": f"cells/{ids[4]}", "needs": [],
    }  # fmt: skip


def test_every_search_is_trained_with_its_seed_or_with_given_ones() -> None:
    stages = ["search", "train", "evaluate"]
    assert units(stages=stages, seeds=[3]) == ["base/seed-3/search", "base/seed-3/train", "base/seed-3/evaluate"]
    several = StudyPlan(read(stages=stages, seeds=[3, 4], train={"seeds": [0, 1]}))
    names = ["search", "train-0", "evaluate-0", "train-1", "evaluate-1"]
    assert sorted(several.units) == sorted(f"base/seed-{seed}/{name}" for seed in (3, 4) for name in names)
    training = several.units["base/seed-4/train-1"]
    assert (training.seed, training.needs) == (1, ("base/seed-4/search",))
    assert several.units["base/seed-4/evaluate-1"].needs == (training.id,)


def test_the_best_search_of_a_cell_is_trained() -> None:
    plan = StudyPlan(read(stages=["search", {"choose": "best-of 2"}, "train"], seeds=[3, 4], train={"seeds": "0,1"}))
    assert plan.chooses
    assert list(plan.units)[2:] == ["base/seed-0/train", "base/seed-1/train"]
    assert plan.units["base/seed-0/train"].needs == ("base/seed-3/search", "base/seed-4/search")
    assert units(stages=["search", "train"], choose="best", seeds=[3, 4])[2:] == ["base/seed-3/train"]


def test_a_baseline_stands_beside_what_is_trained() -> None:
    plan = StudyPlan(read(stages=["search", "train"], seeds=[3], baseline={"random": 2, "within": "10%"}))
    assert plan.definition.baseline == Baseline(2, 0.1)
    assert list(plan.units)[2:] == ["base/seed-3/baseline-0", "base/seed-3/baseline-1"]
    assert plan.units["base/seed-3/baseline-1"].needs == ("base/seed-3/search",)
    assert plan.settings(plan.cells[0], "baseline") == plan.settings(plan.cells[0], "train")


def test_trainings_without_a_search() -> None:
    plan = StudyPlan(read(stages=["train"], grid={"genotype": ["DARTS_V1", "PDARTS"]}, base={"epochs": 3}, seeds=2))
    assert list(plan.units) == ["genotype-DARTS_V1/seed-2/train", "genotype-PDARTS/seed-2/train"]
    assert plan.settings(plan.cells[1], "train") == {"epochs": 3, "threads": 1, "genotype": "PDARTS"}
    assert StudyPlan(read(stages=["train"], train={"epochs": 3})).settings(plan.cells[1], "train")["epochs"] == 3


@pytest.mark.parametrize(
    ("seeds", "expected"), [([1, 5], (1, 5)), ("0-3", (0, 1, 2, 3)), ("7, 1-2", (7, 1, 2)), (4, (4,)), ("9", (9,))]
)
def test_seeds(seeds: Any, expected: tuple[int, ...]) -> None:
    assert read(seeds=seeds).seeds == expected


def test_names_of_folders_differ_where_options_do() -> None:
    plan = StudyPlan(read(list=[{"name": "α"}, {"name": "β"}, {"name": "a/b"}, {"name": "x" * 200}]))
    slugs = [cell.slug for cell in plan.cells]
    assert len(set(slugs)) == 4
    assert slugs[2] == "a-b"
    assert all(len(slug) <= 90 and "/" not in slug for slug in slugs)


# --- scales, files, the resolved plan ---

SCALED = {
    "name": "mine",
    "base": {"strategy": {"name": "egnas", "eta": 0.3}, "epochs": 50},
    "train": {"epochs": 600, "layers": 20},
    "stages": ["search", "train"],
    "seeds": [0, 1, 2, 3],
    "scales": {
        "small": {
            "base": {"weights": {"epochs": 5}}, "train": {"epochs": 6}, "seeds": [0], "note": "Small.",
            "grid": {"zeta": [1.0]},
        },
        "paper": {},
    },
}  # fmt: skip


def test_a_scale_overrides_options_and_replaces_the_rest() -> None:
    small, paper = (read_definition(SCALED, scale) for scale in ("small", "paper"))
    assert small == read_definition(SCALED)
    assert (small.scale, small.note, small.seeds) == ("small", "Small.", (0,))
    plan = StudyPlan(small)
    assert plan.settings(plan.cells[0], "search") == {
        "strategy": "egnas", "strategy.eta": 0.3, "weights.epochs": 5, "threads": 1, "zeta": 1.0,
    }  # fmt: skip
    assert plan.settings(plan.cells[0], "train") == {"layers": 20, "epochs": 6, "threads": 1}
    assert (paper.seeds, paper.base["epochs"], paper.grid) == ((0, 1, 2, 3), 50, {})
    with pytest.raises(UserError, match="no scale 'huge': expected one of small, paper"):
        read_definition(SCALED, "huge")


def test_the_resolved_plan_says_the_same(tmp_path: Path) -> None:
    given = {
        **SCALED, "list": [{"name": "all", "train": {"cutout": 0}}], "baseline": {"random": 1}, "choose": "best",
        "train": {"epochs": 600, "layers": 20, "seeds": [5, 6]},
    }  # fmt: skip
    definition = read_definition(given, "small", threads=2)
    path = tmp_path / "study.yaml"
    path.write_text(definition.to_yaml())
    again = read_definition(path)
    assert again == read_definition(tmp_path)
    assert again.to_yaml() == definition.to_yaml()
    assert changed(StudyPlan(definition), StudyPlan(again)) is None
    assert list(StudyPlan(again).units) == list(StudyPlan(definition).units)
    assert again.train_seeds == (5, 6)
    assert StudyPlan(again).settings(StudyPlan(again).cells[0], "train")["threads"] == 2


def test_images_are_found_from_any_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.json").write_text("{}")
    definition = read(
        base={"data": {"data": "folder:images"}, "initial_weights": "mine.json"},
        grid={"train.test": ["same", "folder:test"]},
        stages=["search", "train"],
    )
    assert definition.base["data.data"] == f"folder:{tmp_path}/images"
    assert definition.base["initial_weights"] == f"{tmp_path}/mine.json"
    assert definition.grid == {"train.test": ["same", f"folder:{tmp_path}/test"]}


@pytest.mark.parametrize("name", ready_names())
@pytest.mark.parametrize("scale", ["small", "paper"])
def test_ready_studies_are_in_order(name: str, scale: str) -> None:
    plan = StudyPlan(read_definition(name, scale))
    assert plan.definition.scale == scale
    first = {option: values[:1] for option, values in plan.definition.grid.items()}
    assert check(StudyPlan(read_definition({**plan.definition.given, "grid": first})), QUIET)


# --- what is refused ---


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        ({"grids": {}}, "key 'grids' is unknown: did you mean 'grid'"),
        ({"stages": ["serch"]}, "stage 'serch' is unknown: did you mean 'search'"),
        ({"stages": ["evaluate"]}, "expected search, train or compare among them"),
        ({"stages": ["search", "evaluate"]}, "the stage evaluate needs the stage train"),
        ({"stages": ["search"], "baseline": {"random": 1}}, "the stage baseline needs the stage train"),
        ({"stages": ["search", "compare"]}, "the stage compare stands alone"),
        ({"stages": ["train"], "choose": "best"}, "the stage choose needs the stage search"),
        ({"choose": "worst"}, "choose is 'worst', expected all, best or best-of-N"),
        ({"choose": "best-of 4"}, "choose is 'best-of 4', but the study has 1 seeds"),
        ({"seeds": "3-1"}, "seeds is '3-1', expected whole numbers"),
        ({"seeds": [1, 1]}, "names a seed twice"),
        ({"seeds": [-1]}, "expected whole numbers"),
        ({"seeds": "0-999999999"}, "expected whole numbers"),
        ({"grid": {"zeta": 1.0}}, "zeta of grid is 1.0, expected a list"),
        ({"grid": {"zeta": [1.0, 1.0]}}, "zeta of grid has a value twice"),
        ({"grid": {"seed": [1, 2]}}, "seed is set by the study for every run: list the seeds as seeds"),
        ({"base": {"run": {"out": "x"}}}, "out is set by the study for every run: leave it out"),
        ({"base": {"zeta": [1.0]}}, "zeta is a list, expected a word or a number"),
        ({"base": 3}, "base is 3, expected options"),
        ({"train": {"epochs": 3}}, "train.epochs is an option of the stage train, which stages does not name"),
        ({"stages": ["search", "train"], "train": {"genotype": "PDARTS"}}, "train.genotype is that of the search"),
        ({"list": []}, "list is .*, expected a list of option sets"),
        ({"list": [{"name": "a"}, {"name": "a"}]}, "two option sets have the same name"),
        ({"stages": ["train"], "baseline": {"random": 0}}, "random of baseline is 0"),
        ({"stages": ["train"], "baseline": {"random": 1, "within": 5}}, "within of baseline is 5"),
        ({"stages": ["train"], "baseline": {"most": 1}}, "expected for example {random: 8, within: 5%}"),
        ({"scales": []}, "scales is .*, expected a mapping"),
        ({"title": 3}, "title is 3, expected a text"),
    ],
)
def test_a_plan_that_is_not_in_order(plan: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        read(**plan)


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        ({"list": [{"epochs": 3}, {"epochs": 3}]}, "two cells have the same options: epochs 3"),
        ({"list": [{"epochs": 3}], "grid": {"weights.epochs": [3]}}, "grid and list set the same option"),
        ({"seeds": "0-9999", "grid": {"zeta": [1.0, 2.0, 3.0]}}, "30,000 runs, expected at most 20,000"),
    ],
)
def test_cells_that_cannot_be(plan: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        assert StudyPlan(read(**plan)).units


def test_a_file_that_is_no_plan(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("- 1\n")
    with pytest.raises(UserError, match="expected name, title"):
        read_definition(path)
    path.write_text("a: [")
    with pytest.raises(UserError, match="is not YAML"):
        read_definition(path)
    with pytest.raises(UserError, match="study 'egnas-tabel1' is unknown: did you mean 'egnas-table1'"):
        read_definition("egnas-tabel1")
    with pytest.raises(UserError, match="cannot read study"):
        read_definition(tmp_path / "none.yaml")
    path.write_text(yaml.safe_dump({"base": {"epochs": 3}}))
    assert read_definition(path).name == "mine"
    with pytest.raises(UserError, match="has no scales: leave out --scale"):
        read_definition(path, "small")


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        ({"grid": {"zetta": [1.0]}}, "cell zetta 1.0: fastnas search: option 'zetta' is unknown: did you mean 'zeta'"),
        ({"grid": {"zeta": [1.0, "much"]}}, "cell zeta much: .*zeta is 'much', expected a number"),
        ({"grid": {"data.layers": [5]}}, "cell layers 5: .*option of data 'layers' is unknown"),
        ({"grid": {"wights.epochs": [5]}}, "cell epochs 5: .*group 'wights' is unknown: did you mean 'weights'"),
        ({"grid": {"epochs": [1]}}, "cell epochs 1: .*warm"),
        ({"grid": {"strategy": ["dart"]}}, "cell strategy dart: .*'dart'"),
        ({"base": {"preset": "cifar"}}, "unknown preset 'cifar'"),
        ({"stages": ["search", "train"], "train": {**TRAIN, "cutot": 3}}, "fastnas train: option 'cutot' is unknown"),
        ({"stages": ["search", "train"], "train": {**TRAIN, "epochs": 0}}, "epochs is 0, expected a whole number"),
        (
            {"stages": ["search", "train"], "base": {"strategy": "darts", "space": "nb201"}},
            "does not build the networks of the space nb201",
        ),
        ({"stages": ["train"], "base": {"data": "digits"}}, "the training has no genotype"),
        (
            {"stages": ["search", "train", "evaluate"], "evaluate": {"splits": "test"}},
            "option 'splits' is unknown: did you mean 'split'",
        ),
        ({"stages": ["compare"], "base": {"strategies": "random"}}, "a comparison needs evaluator"),
        (
            {"stages": ["compare"], "base": {"strategies": "darts", "evaluator": "training:digits"}},
            "darts moves α of a supernet",
        ),
    ],
)
def test_options_are_those_of_the_commands(plan: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        check(StudyPlan(read(**{"base": SEARCH, **plan})), QUIET)


def test_epochs_of_every_cell_are_known() -> None:
    grid = {"weights.epochs": [3, 4]}
    plan = StudyPlan(read(base=SEARCH, stages=["search", "train"], baseline={"random": 1}, train=TRAIN, grid=grid))
    assert check(plan, QUIET) == {
        (f"epochs-{epochs}", stage): count
        for epochs in (3, 4)
        for stage, count in (("search", epochs), ("train", 1), ("baseline", 1))
    }


def test_a_plan_may_grow_and_not_change() -> None:
    before = StudyPlan(read(base={"epochs": 3}, grid={"zeta": [1.0]}, seeds=[0]))
    grown = StudyPlan(read(base={"epochs": 3}, grid={"zeta": [1.0, 0.5]}, seeds=[0, 1], title="Another title"))
    assert changed(before, grown) is None
    assert changed(grown, before) == "it has no zeta-1.0/seed-1/search any more"
    other = StudyPlan(read(base={"epochs": 4}, grid={"zeta": [1.0]}, seeds=[0]))
    assert changed(before, other) == "epochs of zeta-1.0/seed-0/search is 4 but was 3"
    trained = StudyPlan(read(base={"epochs": 3}, grid={"zeta": [1.0]}, seeds=[0], stages=["search", "train"]))
    assert changed(before, trained) is None
    best = StudyPlan(
        read(base={"epochs": 3}, grid={"zeta": [1.0]}, seeds=[0], stages=["search", "choose", "train"], choose="best")
    )
    assert changed(trained, best) == "choose is 'best' but was 'all'"
