"""Derived networks in files: round trips, and what damaged or foreign files lead to."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastnas import Genotype
from fastnas.errors import UserError
from fastnas.nn import DerivedNetwork

GENOTYPE = Genotype.published("NASNet")


def network(**options: Any) -> DerivedNetwork:
    return DerivedNetwork(GENOTYPE, **({"channels": 2, "layers": 3, "num_classes": 5, "auxiliary": False} | options))


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    return network().save(tmp_path / "network.json", about={"classes": ["ä", "b"]})


@pytest.mark.parametrize("options", [{}, {"in_channels": 1}, {"stem": "imagenet"}, {"auxiliary": True}])
def test_round_trip(tmp_path: Path, options: dict[str, Any]) -> None:
    original = network(**options)
    path = original.save(tmp_path / "any name", about={"seed": 3})
    assert path == tmp_path / "any name.json"
    loaded = DerivedNetwork.load(path)
    assert (loaded.genotype, loaded.options, loaded.about) == (original.genotype, original.options, {"seed": 3})
    assert not loaded.training
    assert loaded.state_dict().keys() == original.state_dict().keys()
    assert all(
        torch.equal(a, b) for a, b in zip(loaded.state_dict().values(), original.state_dict().values(), strict=True)
    )
    x = torch.randn(2, original.options["in_channels"], 32, 32)
    assert torch.equal(loaded(x), original.eval()(x))


def test_the_description_is_found_from_the_folder_and_from_the_weights(saved: Path) -> None:
    for path in (saved, saved.parent, saved.with_suffix(".safetensors")):
        assert DerivedNetwork.load(path, backend="reference").about == {"classes": ["ä", "b"]}
    assert sorted(path.name for path in saved.parent.iterdir()) == ["network.json", "network.safetensors"]


@pytest.mark.parametrize("name", ["net", "net.v2", "net.v2.json", "net.2026-11-30.best", "net.json.old"])
def test_what_save_was_given_is_what_load_reads(tmp_path: Path, name: str) -> None:
    network(channels=4).save(tmp_path / "net")
    if name != "net":
        network(channels=6).save(tmp_path / name)
    assert DerivedNetwork.load(tmp_path / name).options["channels"] == (4 if name == "net" else 6)
    assert DerivedNetwork.load(tmp_path / "net").options["channels"] == 4


def test_saving_again_keeps_what_it_is_about(saved: Path, tmp_path: Path) -> None:
    DerivedNetwork.load(saved).save(tmp_path / "copy")
    assert DerivedNetwork.load(tmp_path / "copy.json").about == {"classes": ["ä", "b"]}


@given(share=st.floats(0, 0.99))
@settings(max_examples=15, deadline=None)
def test_truncated_weights_get_one_line(tmp_path_factory: pytest.TempPathFactory, share: float) -> None:
    path = network().save(tmp_path_factory.mktemp("cut") / "network").with_suffix(".safetensors")
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(UserError, match=r"network\.safetensors' is damaged or no safetensors file") as error:
        DerivedNetwork.load(path)
    assert "\n" not in str(error.value)


def test_a_byte_order_mark_is_read_over(saved: Path) -> None:
    saved.write_bytes(b"\xef\xbb\xbf" + saved.read_bytes())
    assert DerivedNetwork.load(saved).about == {"classes": ["ä", "b"]}


def test_foreign_files(saved: Path, tmp_path: Path) -> None:
    cases = {
        "no file": (None, "cannot read the network .*No such file"),
        "text": ("hello", "is not JSON"),
        "list": ("[1]", "does not describe a network of fastnas"),
        "genotype": (json.dumps(GENOTYPE.to_dict()), "does not describe a network of fastnas"),
    }
    for name, (text, message) in cases.items():
        path = tmp_path / f"{name}.json"
        if text is not None:
            path.write_text(text)
        with pytest.raises(UserError, match=message):
            DerivedNetwork.load(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 2}, "has format 2, this version reads format 1"),
        ({"options": {"channels": 2}}, "expected the options channels, layers"),
        ({"weights": "../x"}, "names no weights file beside it"),
        ({"weights": "gone.safetensors"}, "cannot read the weights .*gone"),
        ({"genotype": {}}, "the key 'normal' is missing"),
    ],
)
def test_changed_descriptions(saved: Path, change: dict[str, Any], message: str) -> None:
    saved.write_text(json.dumps(json.loads(saved.read_text()) | change))
    with pytest.raises(UserError, match=message):
        DerivedNetwork.load(saved)


def test_weights_of_another_network(saved: Path) -> None:
    text = saved.read_text()
    network(num_classes=6).save(saved)
    saved.write_text(text)
    with pytest.raises(UserError, match=r"network\.safetensors' are damaged or of another network"):
        DerivedNetwork.load(saved)
    description = json.loads(text)
    del description["sha256"], description["weights_sha256"]  # as earlier versions wrote it
    saved.write_text(json.dumps(description))
    with pytest.raises(UserError, match=r"classifier.weight is \[6, \d+\], expected \[5, \d+\]; keep"):
        DerivedNetwork.load(saved)


def test_any_bit_that_flips_is_noticed(saved: Path, seed: int) -> None:
    draw = random.Random(seed)
    for path in (saved, saved.with_suffix(".safetensors")):
        whole = path.read_bytes()
        for place in [draw.randrange(len(whole)) for _ in range(60)]:
            damaged = bytearray(whole)
            damaged[place] ^= 1 << draw.randrange(8)
            path.write_bytes(damaged)
            try:
                loaded = DerivedNetwork.load(saved)
            except UserError:
                continue
            # Of a description, spaces between words and the names of the digests themselves mean nothing.
            assert path == saved
            assert (loaded.genotype, loaded.about) == (GENOTYPE, {"classes": ["ä", "b"]})
        path.write_bytes(whole)
    assert DerivedNetwork.load(saved).about == {"classes": ["ä", "b"]}


def test_a_pair_is_replaced_as_a_whole(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk is full when the second file is written: the old network is still there."""
    before, calls = DerivedNetwork.load(saved), 0

    def full(descriptor: int) -> None:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match=r"cannot write the network .*: No space left on device; make room"):
        network().save(saved)
    after = DerivedNetwork.load(saved)
    pairs = zip(after.state_dict().values(), before.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    assert len(list(saved.parent.iterdir())) == 2


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot write the network"):
        network().save(tmp_path / "gone" / "network")
