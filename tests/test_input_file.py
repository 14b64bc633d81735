"""Files that a user gave: whatever they are, they are read in the end, or one line says why not."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from fastnas import Genotype, data
from fastnas.cli.configuration import parse_search
from fastnas.engine.checkpoint import load_checkpoint
from fastnas.engine.initial_weights import load_initial_weights
from fastnas.engine.trained import load_trained
from fastnas.errors import MOST_CHARACTERS, UserError
from fastnas.evaluators import NB201
from fastnas.input_file import path_of, read_json, read_text
from fastnas.nn import DerivedNetwork, Supernet
from fastnas.report.run import read_run
from fastnas.spaces.nb201 import NB201Genotype
from fastnas.yaml_text import parse_yaml

READERS: dict[str, Callable[[Path], Any]] = {
    "genotype.json": Genotype.from_json,
    "genotype": lambda path: Genotype.load(str(path)),
    "cell.json": NB201Genotype.from_json,
    "config.yaml": lambda path: parse_search(["--config", str(path)], "test", ""),
    "network.json": DerivedNetwork.load,
    "set.npz": lambda path: data.open(f"npz:{path}"),
    "table.csv": NB201,
    "table.csv.gz": NB201,
    "checkpoint.pt": load_checkpoint,
    "checkpoint": lambda path: load_trained(path.parent),
    "weights.pt": lambda path: load_initial_weights(Supernet("darts", channels=4, layers=3), path),
}


@pytest.fixture
def in_time() -> Iterator[None]:
    """Ends a test that waits for a pipe."""

    def stop(*_: Any) -> None:
        raise TimeoutError("the reader waits")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(30)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def given(folder: Path, name: str) -> Path:
    """Where the reader of `name` looks."""
    return folder / ("checkpoint.pt" if name == "checkpoint" else name)


@pytest.mark.parametrize("name", READERS)
@pytest.mark.usefixtures("in_time")
def test_pipes_and_devices_are_refused_and_not_waited_for(tmp_path: Path, name: str) -> None:
    os.mkfifo(given(tmp_path, name))
    expected = "no checkpoint at" if name.startswith("checkpoint") else "it is a pipe or a device, not a regular file"
    with pytest.raises(UserError, match=expected) as caught:
        READERS[name](given(tmp_path, name))
    assert given(tmp_path, name).name in str(caught.value)
    given(tmp_path, name).unlink()
    given(tmp_path, name).symlink_to("/dev/zero")
    with pytest.raises(UserError, match=expected):
        READERS[name](given(tmp_path, name))


@pytest.mark.usefixtures("in_time")
def test_weights_and_records_that_are_pipes(tmp_path: Path) -> None:
    network = DerivedNetwork(Genotype.published("DARTS_V2"), channels=2, layers=3, auxiliary=False)
    path = network.save(tmp_path / "network")
    path.with_suffix(".safetensors").unlink()
    os.mkfifo(path.with_suffix(".safetensors"))
    with pytest.raises(UserError, match=r"cannot read the weights .*network\.safetensors': it is a pipe"):
        DerivedNetwork.load(path)
    for name in ("config.yaml", "metrics.jsonl"):
        os.mkfifo(tmp_path / name)
    assert [problem.split(" ", 1)[0] for problem in read_run(tmp_path).problems if "a pipe" in problem] == [
        "config.yaml",
        "metrics.jsonl",
    ]


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize("damage", ["empty", "zeros", "text", "bytes", "missing", "long"])
def test_files_of_something_else_get_one_line(tmp_path: Path, name: str, damage: str) -> None:
    path = given(tmp_path, name)
    contents = {"empty": b"", "zeros": bytes(100), "text": b"hello: [1\n", "bytes": b"\xff\xfe\x00\x9f"}
    if damage in contents:
        path.write_bytes(contents[damage])
    if damage == "long":
        path = path.with_name("x" * 300 + path.name)
    if (name, damage) == ("config.yaml", "empty"):
        READERS[name](path)
        return
    with pytest.raises(UserError) as caught:
        READERS[name](path)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) <= MOST_CHARACTERS + 10


def test_a_file_that_is_too_long(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_bytes(b" " * 11)
    assert read_text(tmp_path / "x.json", "text", "shorten it", 11) == " " * 11
    with pytest.raises(UserError, match=r"it has more than 10 bytes, the most that is read; shorten it\.$"):
        read_text(tmp_path / "x.json", "text", "shorten it", 10)


def test_json_that_is_none_says_where(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text('{"a": ')
    with pytest.raises(UserError, match=r"text is not JSON \(Expecting value: line 1.*\); mend it\.$"):
        read_json(tmp_path / "x.json", "text", "mend it")
    (tmp_path / "x.json").write_text("[" * 100_000)
    with pytest.raises(UserError, match="nested too deeply"):
        read_json(tmp_path / "x.json", "text", "mend it")


@pytest.mark.parametrize("name", ["genotype.json", "network.json", "table.csv", "weights.pt"])
def test_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / name).write_text("no such thing")
    with pytest.raises(UserError, match=str(tmp_path / name)):
        READERS[name](Path("~", name))
    assert path_of("~nobody-of-this-name/x") == Path("~nobody-of-this-name/x")


# --- messages ---


def test_a_message_is_one_line_of_moderate_length() -> None:
    text = str(UserError("no \x1b[1mfile\x1b[0m 'a\nb\tc'; give another."))
    assert text == r"no \x1b[1mfile\x1b[0m 'a b c'; give another."
    long = str(UserError(f"unknown {'x' * 10_000}: give another."))
    assert long.startswith("unknown xx")
    assert long.endswith("x: give another.")
    assert len(long) < MOST_CHARACTERS + 10
    assert str(UserError("short")) == "short"


def test_long_texts_in_a_genotype() -> None:
    with pytest.raises(
        UserError, match=r"^\"Genotype\(normal=\[.*\.\.\. is neither a published genotype nor"
    ) as caught:
        Genotype.load("Genotype(normal=[" + "('sep_conv_3x3', 0), " * 1000)
    assert len(str(caught.value)) < MOST_CHARACTERS + 10


# --- YAML ---


def test_yaml_is_words_numbers_and_nothing_else() -> None:
    text = "{a: 1, b: 0x10, c: 1.5, d: yes, e: null, f: 2024-01-31, g: 12:30:00, h: [x], i: 1e-3, j: ~}"
    assert parse_yaml(text) == {
        "a": 1, "b": 16, "c": 1.5, "d": True, "e": None, "f": "2024-01-31", "g": "12:30:00", "h": ["x"], "i": "1e-3",
        "j": None,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: &x 1\nb: *x", "line 2 has an alias"),
        ("a: 1\na: 2", "a key twice"),
        ("a: !!python/object:os.system x", r"could not determine a constructor .* \(line 1\)"),
        ("a: !own x", "could not determine a constructor"),
        ("a: !!int x", "invalid literal"),
        ("a: !!timestamp x", "object has no attribute"),
        ("a: 0b_", "invalid literal"),
        ("a: [1", r"expected .*\(line 1\)"),
        ("a: \x00", "special characters are not allowed"),
        ("[" * 5000, "nested too deeply"),
        ("? [a]\n: 1", r"found unhashable key \(line 1\)"),
    ],
)
def test_yaml_that_is_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        parse_yaml(text)
    assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("in_time")
def test_a_file_of_aliases_that_grows_endlessly(tmp_path: Path) -> None:
    lines = ["a0: &a0 {x: 1}", *(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 20))]
    for bomb in (lines, [line.replace("[", "{<<: [").replace("]", "]}") for line in lines]):
        (tmp_path / "bomb.yaml").write_text("\n".join(bomb))
        with pytest.raises(UserError, match=r"bomb\.yaml is not YAML: line 2 has an alias"):
            parse_search(["--config", str(tmp_path / "bomb.yaml")], "test", "")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- 1", "expected groups"),
        ("weights: 3", "expected groups"),
        ("{weights: {epochs: [3]}}", "epochs of weights is a list, expected a word or a number"),
        ("{weights: {epochs: !!binary MTI=}}", "epochs of weights is a bytes"),
        ("{weights: {epochs: !!timestamp 2024-01-01}}", "epochs of weights is a date"),
        ("{weights: {epochs: 0x" + "f" * 5000 + "}}", "epochs of weights is larger than any number of 64 bits"),
        ("{weights: {epochs: " + "9" * 5000 + "}}", "is not YAML: Exceeds the limit"),
        ("{strategy: {name: 3}}", "name of strategy is no word"),
        ("{strategy: {name: [darts]}}", "name of strategy is a list"),
        ("{1: {2: 3}}", "group 1 is unknown"),
        ("{weights: {1: 3}}", "option of weights 1 is unknown"),
        ("x" * 200_000, "has more than 131,072 bytes"),
    ],
)
def test_options_in_a_file_that_are_none(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(UserError, match=message) as caught:
        parse_search(["--config", str(tmp_path / "mine.yaml")], "test", "")
    assert "mine.yaml" in str(caught.value)


# --- sizes ---


@pytest.mark.usefixtures("in_time")
def test_genotypes_and_networks_beyond_all_bounds(tmp_path: Path) -> None:
    genotype = Genotype.published("DARTS_V2")
    node = '["skip_connect", 0], ["skip_connect", 1]'
    for many in (", ".join([node] * 200_000), ", ".join([f"[{node}, {node}]"] * 501)):
        text = f'{{"normal": [{many}], "normal_concat": [2], "reduce": [{node}], "reduce_concat": [2]}}'
        (tmp_path / "large.json").write_text(text)
        with pytest.raises(UserError, match=r"normal has [\d,]+ \(primitive, source\) pairs: expected at most 1,000"):
            Genotype.from_json(tmp_path / "large.json")
    for layers in (1_000_000, 2501):
        with pytest.raises(UserError, match=r"layers have [\d,]+ operations, expected at most 20,000"):
            DerivedNetwork(genotype, layers=layers)
        with pytest.raises(UserError, match=r"layers have [\d,]+ operations, expected at most 20,000"):
            Supernet("darts", layers=layers)
    for options in ({"layers": 10**9}, {"channels": 10**12}, {"num_classes": 2**40}):
        with pytest.raises(UserError, match="expected at most 1,000,000"):
            DerivedNetwork(genotype, **options)


def test_a_description_of_a_network_that_its_weights_are_not(tmp_path: Path) -> None:
    """It would take 90 GB."""
    network = DerivedNetwork(Genotype.published("DARTS_V2"), channels=2, layers=3, auxiliary=False)
    path = network.save(tmp_path / "network")
    weights = dict(network.state_dict())
    with pytest.raises(UserError, match="are of another network: stem"):
        DerivedNetwork.of_weights(weights, path, network.genotype, **{**network.options, "channels": 20_000})
    loaded = DerivedNetwork.of_weights(weights, path, network.genotype, **network.options)
    assert torch.equal(loaded.classifier.weight, network.classifier.weight)
