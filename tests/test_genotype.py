from __future__ import annotations

import json
import os
import pickle
import stat
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fastnas.errors import UserError
from fastnas.genotype import LEVELS, Genotype
from fastnas.nn import DerivedNetwork
from fastnas.nn.primitives import PRIMITIVES

SHARED_ORACLES = Path(__file__).resolve().parents[1] / ".." / "shared" / "data" / "published.json"

CELL = [("sep_conv_3x3", 0), ("skip_connect", 1), ("skip_connect", 2), ("none", 0)]
FIELDS: dict[str, Any] = {"normal": CELL, "normal_concat": [2, 3], "reduce": CELL[:2], "reduce_concat": [2]}


def make(**changes: Any) -> Genotype:
    return Genotype(**(FIELDS | changes))


@st.composite
def cells(draw: st.DrawFn) -> tuple[list[tuple[str, int]], list[int]]:
    nodes = draw(st.integers(1, 6))
    primitive = st.sampled_from(list(PRIMITIVES))
    pairs = [(draw(primitive), draw(st.integers(0, 1 + i // 2))) for i in range(2 * nodes)]
    concat = draw(st.lists(st.integers(2, nodes + 1), min_size=1, unique=True))
    return pairs, concat


@st.composite
def nested_cells(draw: st.DrawFn) -> tuple[list[list[tuple[str, int]]], list[int]]:
    """Nodes with one to four inputs."""
    nodes = draw(st.integers(1, 5))
    primitive = st.sampled_from(list(PRIMITIVES))
    cell = [
        draw(st.lists(st.tuples(primitive, st.integers(0, node + 1)), min_size=1, max_size=4)) for node in range(nodes)
    ]
    return cell, draw(st.lists(st.integers(2, nodes + 1), min_size=1, unique=True))


@st.composite
def genotypes(draw: st.DrawFn) -> Genotype:
    cell = st.one_of(cells(), nested_cells())
    if draw(st.booleans()):
        return Genotype.multi_level([draw(cell) for _ in LEVELS])
    (normal, normal_concat), (reduce, reduce_concat) = draw(cell), draw(cell)
    return Genotype(normal, normal_concat, reduce, reduce_concat)


# Values


def test_lists_become_tuples() -> None:
    genotype = make(normal=[list(pair) for pair in CELL], normal_concat=range(2, 4))
    assert genotype.normal == tuple(CELL)
    assert genotype.normal_concat == (2, 3)
    assert all(type(pair) is tuple for pair in genotype.normal)


def test_nodes_may_have_any_number_of_inputs() -> None:
    cell = [[("sep_conv_3x3", 0)], [("skip_connect", 1), ("none", 2), ("skip_connect", 0)]]
    genotype = make(normal=cell, normal_concat=[3])
    assert genotype.pairs("normal") == (tuple(cell[0]), tuple(cell[1]))
    assert genotype.normal == genotype.pairs("normal")
    assert genotype.skip_count("normal") == 2
    assert make(normal=[CELL[:2], CELL[2:]]) == make(), "one spelling for each cell"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"normal": [CELL[:2], []]}, "normal node 3 has no"),
        ({"normal": [[("skip_connect", 0)], [("skip_connect", 3)]]}, "normal node 3: 'skip_connect' reads node 3"),
        ({"normal": [CELL[:2], ("none", 0)], "normal_concat": [2]}, "every .primitive, source. must be a list"),
        ({"normal": [CELL[:1]], "normal_concat": [3]}, "normal_concat lists node 3, but .* are 2 to 2"),
        ({"levels": [(CELL, [2])] * 4}, "levels has 4 cells, expected 5"),
        ({"levels": [(CELL, [2])] * 5}, "levels does not begin with the normal and the reduction cell"),
        ({"levels": [(CELL, [2]), 1, 1, 1, 1]}, r"low_reduce: expected a cell .pairs, concat., got 1"),
        ({"levels": [(CELL, [7])] * 5}, "the concat of low_normal lists node 7"),
    ],
)
def test_invalid_nodes_and_levels(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make(**changes)


def test_levels() -> None:
    cells = [([(name, 0), (name, 1)], [2]) for name in list(PRIMITIVES)[:5]]
    genotype = Genotype.multi_level(cells)
    assert genotype.kinds == LEVELS
    assert [genotype.pairs(kind)[0][0][0] for kind in LEVELS] == list(PRIMITIVES)[:5]
    assert genotype.pairs("normal") == genotype.pairs("low_normal")
    assert make().kinds == ("normal", "reduce")
    with pytest.raises(UserError, match="'mid_normal' does not exist: use 'normal' or 'reduce'"):
        make().pairs("mid_normal")
    with pytest.raises(UserError, match="needs 5 cells"):
        Genotype.multi_level([])


def test_integers_of_numpy_and_torch_become_int() -> None:
    genotype = make(normal=[("none", np.int64(0)), ("none", torch.tensor(1))], normal_concat=np.array([2]))
    assert [type(source) for _, source in genotype.normal] == [int, int]
    assert type(genotype.normal_concat[0]) is int
    json.dumps(genotype.to_dict())


def test_equal_by_value_hashable_and_immutable() -> None:
    assert make() == make(normal=tuple(CELL))
    assert len({make(), make(), make(normal_concat=[3, 2])}) == 2
    assert make() != make(normal=[CELL[1], CELL[0], *CELL[2:]]), "the order of the pairs counts"
    with pytest.raises(AttributeError):
        make().normal = ()  # type: ignore[misc]
    assert pickle.loads(pickle.dumps(make())) == make()


def test_views() -> None:
    genotype = make()
    assert genotype.pairs("normal") == (tuple(CELL[:2]), tuple(CELL[2:]))
    assert genotype.pairs("reduce") == (tuple(CELL[:2]),)
    assert (genotype.concat("normal"), genotype.concat("reduce")) == ((2, 3), (2,))
    assert (genotype.skip_count("normal"), genotype.skip_count("reduce")) == (2, 1)
    for view in (genotype.pairs, genotype.concat, genotype.skip_count):
        with pytest.raises(UserError, match="cell kind 'reduction' does not exist: use 'normal' or 'reduce'"):
            view("reduction")  # type: ignore[operator]


def test_repr_is_python_with_one_line_per_node() -> None:
    text = repr(make())
    assert eval(text) == make()
    assert "        ('skip_connect', 2), ('none', 0),\n" in text
    assert max(map(len, repr(Genotype.published("DARTS_V2")).splitlines())) <= 80


# Validation


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"normal": [("sep_conv_3x4", 0), *CELL[1:]]},
            r"normal node 2: unknown primitive 'sep_conv_3x4': did you mean",
        ),
        ({"reduce": [("conv", 0), CELL[1]]}, "reduce node 2: unknown primitive 'conv'"),
        ({"reduce": [("warp drive", 0), CELL[1]]}, "unknown primitive 'warp drive': known are none, max_pool_3x3"),
        ({"reduce": [(None, 0), CELL[1]]}, "unknown primitive None: known are"),
        ({"normal": [*CELL[:3], ("none", 3)]}, "normal node 3: 'none' reads node 3, expected an earlier node, 0 to 2"),
        ({"normal": [("none", 2), *CELL[1:]]}, "normal node 2: 'none' reads node 2, expected an earlier node, 0 to 1"),
        ({"normal": [("none", -1), *CELL[1:]]}, "reads node -1"),
        ({"normal": [("none", 1.0), *CELL[1:]]}, "the source of 'none' must be an integer, got 1.0"),
        ({"normal": [("none", True), *CELL[1:]]}, "must be an integer, got True"),
        ({"normal": [("none", "0"), *CELL[1:]]}, "must be an integer, got '0'"),
        ({"normal": CELL[:3]}, "normal has 3 pairs: every node has two inputs"),
        ({"reduce": []}, "reduce is empty: a cell needs at least one node"),
        ({"reduce": ["ab", CELL[1]]}, r"every \(primitive, source\) must be a list, got 'ab'"),
        ({"reduce": [("none", 0, 1), CELL[1]]}, r"reduce node 2: expected a pair \(primitive, source\), got"),
        ({"reduce": [3, CELL[1]]}, r"every \(primitive, source\) must be a list, got 3"),
        ({"reduce": "skip_connect"}, "reduce must be a list, got 'skip_connect'"),
        ({"reduce": {"none": 0, "skip_connect": 1}}, "reduce must be a list, got {'none': 0"),
        ({"reduce": 5}, "reduce must be a list, got 5"),
        (
            {"normal_concat": []},
            "normal_concat is empty: list the nodes that form the output of the cell, such as 2 to 3",
        ),
        ({"normal_concat": [2, 4]}, "normal_concat lists node 4, but the intermediate nodes of this cell are 2 to 3"),
        ({"normal_concat": [1, 2]}, "normal_concat lists node 1, but the intermediate nodes"),
        ({"normal_concat": [2, 2]}, r"normal_concat lists a node twice: \[2, 2\]"),
        ({"normal_concat": {2, 3}}, "normal_concat must be a list, got {2, 3}"),
        ({"reduce_concat": ["2"]}, "reduce_concat: every item must be an integer, got '2'"),
        ({"reduce_concat": None}, "reduce_concat must be a list, got None"),
    ],
)
def test_invalid_genotype(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make(**changes)


def test_long_values_are_cut_in_messages() -> None:
    with pytest.raises(UserError) as caught:
        make(reduce="x" * 1000)
    assert len(str(caught.value)) < 120


# JSON


@given(genotypes())
def test_dict_and_repr_round_trip(genotype: Genotype) -> None:
    assert Genotype.from_dict(json.loads(json.dumps(genotype.to_dict()))) == genotype
    assert eval(repr(genotype)) == genotype


@given(genotype=genotypes())
def test_json_round_trip(tmp_path_factory: pytest.TempPathFactory, genotype: Genotype) -> None:
    path = tmp_path_factory.getbasetemp() / "round-trip.json"
    genotype.to_json(path)
    assert Genotype.from_json(path) == genotype
    assert json.loads(path.read_text()) == genotype.to_dict()


def test_json_is_readable(tmp_path: Path) -> None:
    make().to_json(tmp_path / "genotype.json")
    assert (tmp_path / "genotype.json").read_text() == (
        '{\n  "format": 1,\n'
        '  "normal": [\n    ["sep_conv_3x3", 0], ["skip_connect", 1],\n    ["skip_connect", 2], ["none", 0]\n  ],\n'
        '  "normal_concat": [2, 3],\n'
        '  "reduce": [\n    ["sep_conv_3x3", 0], ["skip_connect", 1]\n  ],\n'
        '  "reduce_concat": [2]\n}\n'
    )


def test_to_dict_holds_the_format_and_lists() -> None:
    assert make(reduce=CELL[:2]).to_dict() == {
        "format": 1,
        "normal": [["sep_conv_3x3", 0], ["skip_connect", 1], ["skip_connect", 2], ["none", 0]],
        "normal_concat": [2, 3],
        "reduce": [["sep_conv_3x3", 0], ["skip_connect", 1]],
        "reduce_concat": [2],
    }


def test_format_may_be_absent() -> None:
    assert Genotype.from_dict(FIELDS) == make()


def test_to_json_replaces_with_usual_permissions_and_leaves_nothing_behind(tmp_path: Path) -> None:
    path = tmp_path / "genotype.json"
    path.write_text("old")
    with path.open() as reader:
        make().to_json(str(path))
        assert reader.read() == "old", "a reader meets the old file or the new one, never a mixture"
    (tmp_path / "other").write_text("")
    assert Genotype.from_json(path) == make()
    assert sorted(os.listdir(tmp_path)) == ["genotype.json", "other"]
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE((tmp_path / "other").stat().st_mode)


def test_to_json_that_fails_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full_disk(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    path = tmp_path / "genotype.json"
    make().to_json(path)
    before = path.read_bytes()
    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(UserError, match=r"cannot write genotype '.*genotype.json': No space left on device; make room"):
        Genotype.published("DARTS_V2").to_json(path)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["genotype.json"]


def test_to_json_without_its_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot write genotype .*: No such file or directory"):
        make().to_json(tmp_path / "missing" / "genotype.json")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is not JSON"),
        ('{"normal": [', "is not JSON .*line 1 column 13"),
        ("[" * 100_000, "is nested too deeply"),
        ("[1, 2]", r"a genotype must be a mapping with the keys normal, normal_concat, .*, got \[1, 2\]"),
        ("null", "a genotype must be a mapping .*, got None"),
        (json.dumps({"format": 2} | FIELDS), "genotype format 2 is not readable, this version reads format 1: upgrade"),
        (json.dumps({"format": None} | FIELDS), "genotype format None is not readable"),
        (json.dumps({k: v for k, v in FIELDS.items() if k != "reduce"}), "the key 'reduce' is missing"),
        (json.dumps(FIELDS | {"edges": 14}), "the key 'edges' is unknown"),
        (json.dumps(FIELDS | {"reduce_concat": [7]}), "reduce_concat lists node 7"),
        (json.dumps(FIELDS | {"normal": {}}), "normal must be a list, got {}"),
    ],
)
def test_malformed_json_names_the_file(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "broken.json"
    path.write_text(text)
    with pytest.raises(UserError, match=message) as caught:
        Genotype.from_json(path)
    assert "broken.json" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_unreadable_files(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"cannot read genotype .*absent.json': No such file or directory; give the path"
    ):
        Genotype.from_json(tmp_path / "absent.json")
    with pytest.raises(UserError, match=r"is a folder: give a file, such as '.*genotype.json'"):
        Genotype.from_json(tmp_path)
    (tmp_path / "binary.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match=r"is not UTF-8 text \(byte 1\)"):
        Genotype.from_json(tmp_path / "binary.json")


# Published genotypes


def test_a_byte_order_mark_is_read_over(tmp_path):
    genotype = Genotype.published("DARTS_V2")
    (tmp_path / "g.json").write_bytes(b"\xef\xbb\xbf" + genotype.to_text().encode())
    assert Genotype.from_json(tmp_path / "g.json") == genotype


def test_every_published_genotype_is_valid_and_documented() -> None:
    entries = json.loads((Path(__file__).resolve().parents[1] / "fastnas" / "published_genotypes.json").read_text())
    assert Genotype.published_names() == tuple(entries)
    assert len(entries) == 39
    for name, entry in entries.items():
        assert list(entry) == ["paper", "note", "normal", "normal_concat", "reduce", "reduce_concat"]
        assert entry["paper"].rstrip("0123456789") != entry["paper"], f"{name}: the reference ends with its year"
        assert entry["note"].endswith(".")
        assert ("Report 101 of SZU-AdvTech-2024" in entry["paper"]) == name.startswith("SZU_")
        assert Genotype.published(name).normal_concat == tuple(entry["normal_concat"])


def test_published_content() -> None:
    assert Genotype.published("DARTS_V2") == Genotype(
        normal=[
            *[("sep_conv_3x3", 0), ("sep_conv_3x3", 1)] * 2,
            *[("sep_conv_3x3", 1), ("skip_connect", 0)],
            *[("skip_connect", 0), ("dil_conv_3x3", 2)],
        ],
        normal_concat=range(2, 6),
        reduce=[
            *[("max_pool_3x3", 0), ("max_pool_3x3", 1)],
            *[("skip_connect", 2), ("max_pool_3x3", 1)],
            *[("max_pool_3x3", 0), ("skip_connect", 2)],
            *[("skip_connect", 2), ("max_pool_3x3", 1)],
        ],
        reduce_concat=range(2, 6),
    )


def test_published_equals_the_shared_list() -> None:
    if not SHARED_ORACLES.exists():
        pytest.skip("needs ../shared/data/published.json")
    shared = json.loads(SHARED_ORACLES.read_text())
    oracles = shared["genotypes"] | shared["genotypes_without_counts"]
    del oracles["about"]
    assert set(Genotype.published_names()) == set(oracles)
    for name, oracle in oracles.items():
        assert Genotype.published(name).to_dict() == {"format": 1} | {field: oracle[field] for field in FIELDS}, name


def test_unknown_published_name() -> None:
    with pytest.raises(UserError, match="no published genotype is called 'darts_v2': did you mean DARTS_V2"):
        Genotype.published("darts_v2")
    with pytest.raises(UserError, match="no published genotype is called '@': known are DARTS_V1, DARTS_V2, "):
        Genotype.published("@")


def test_load_takes_a_name_or_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert Genotype.load("PDARTS") == Genotype.published("PDARTS")
    monkeypatch.chdir(tmp_path)
    for path in ("genotype.json", "without_suffix", "PDARTS"):
        make().to_json(path)
    assert Genotype.load(str(tmp_path / "genotype.json")) == make()
    assert Genotype.load("without_suffix") == make()
    assert Genotype.load("PDARTS") != make()
    assert Genotype.load("./PDARTS") == make()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("PDART", "'PDART' is neither a published genotype nor an existing file: did you mean PDARTS"),
        ("absent.json", "cannot read genotype 'absent.json': No such file"),
        ("absent/PDARTS", "cannot read genotype 'absent/PDARTS': No such file"),
        (".", "is a folder"),
        ("", "is a folder"),
    ],
)
def test_load_of_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, message: str) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message):
        Genotype.load(text)


# Levels


def five_cells() -> Genotype:
    cells = [(("skip_connect", i % 2), ("sep_conv_3x3", 1 - i % 2)) for i in range(5)]
    return Genotype.multi_level((cell, (2,)) for cell in cells)


def test_levels_are_kept_by_json_and_have_kinds_of_their_own(tmp_path: Path) -> None:
    genotype = five_cells()
    genotype.to_json(tmp_path / "genotype.json")
    assert Genotype.from_json(tmp_path / "genotype.json") == genotype
    assert Genotype.from_dict(genotype.to_dict()) == genotype
    assert genotype.kinds == ("low_normal", "low_reduce", "mid_normal", "mid_reduce", "high_normal")
    assert genotype.pairs("mid_reduce") == ((("skip_connect", 1), ("sep_conv_3x3", 0)),)
    assert (genotype.normal, genotype.reduce) == (genotype.levels[0].pairs, genotype.levels[1].pairs)
    assert genotype.concat("high_normal") == (2,)
    assert genotype.skip_count("high_normal") == 1
    assert genotype.layout(6) == (
        "low_normal", "low_normal", "low_reduce", "mid_normal", "mid_reduce", "high_normal",
    )  # fmt: skip
    assert "levels" not in Genotype.published("DARTS_V2").to_dict()


def test_the_derived_network_takes_the_cells_of_each_level() -> None:
    network = DerivedNetwork(five_cells(), channels=4, layers=8, auxiliary=False)
    skips = [cell.sources[0] for cell in network.cells]  # skip_connect reads 0 in the cells of even number
    assert skips == [0, 0, 1, 0, 0, 1, 0, 0]
    kinds = [isinstance(cell.primitives[0], torch.nn.Identity) for cell in network.cells]
    assert kinds == [True, True, False, True, True, False, True, True]


def test_levels_that_do_not_fit_are_refused() -> None:
    genotype = five_cells()
    fields = {name: getattr(genotype, name) for name in ("normal", "normal_concat", "reduce", "reduce_concat")}
    with pytest.raises(UserError, match="levels has 4 cells, expected 5: low_normal"):
        Genotype(**fields, levels=genotype.levels[:4])
    with pytest.raises(UserError, match="levels does not begin with the normal and the reduction cell"):
        Genotype(**fields, levels=genotype.levels[1:] + genotype.levels[:1])
    with pytest.raises(UserError, match="cell kind 'low_normal' does not exist"):
        Genotype(**fields).pairs("low_normal")
