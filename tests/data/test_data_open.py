from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from sample_sources import write_folder
from sklearn.datasets import load_digits

from fastnas import data
from fastnas.errors import UserError


def test_digits() -> None:
    train, test = data.open("digits"), data.open("digits", "test")
    assert (len(train), len(test)) == (1442, 355)
    assert train.classes == test.classes == tuple("0123456789")
    assert (train.name, train.channels, train.image_size) == ("digits", 1, (16, 16))
    assert train.images().shape == (1442, 16, 16, 1)
    assert train.images().dtype == np.uint8
    assert train.labels.dtype == np.int64
    assert train.augmentation == data.Augmentation(crop_padding=2, flip=False)
    assert test.statistics() == train.statistics()
    share = np.bincount(train.labels) / (np.bincount(train.labels) + np.bincount(test.labels))
    assert np.abs(share - 0.8).max() < 0.01


def test_digits_hold_every_scan_once() -> None:
    scans, labels = load_digits(return_X_y=True)
    expected = sorted(zip(labels, (tuple(scan) for scan in np.round(scans * 255 / 16)), strict=True))
    found = []
    for split in ("train", "test"):
        source = data.open("digits", split, image_size=8)
        found += zip(source.labels, (tuple(image) for image in source.images().reshape(-1, 64)), strict=True)
    assert sorted(found) == expected


def test_digits_are_enlarged_bilinearly() -> None:
    small, large = data.open("digits", image_size=8).image(0)[..., 0], data.open("digits").image(0)[..., 0]
    corners = np.array([[9, 3], [3, 1]]) / 16
    middle = (small[2:4, 2:4] * corners).sum()  # the output pixel a quarter of the way from input pixel (2, 2)
    assert abs(int(large[5, 5]) - middle) <= 0.5


def test_digits_take_no_path() -> None:
    with pytest.raises(UserError, match="'digits' takes no path, but got 'x'"):
        data.open("digits:x")


def test_unknown_kind_lists_the_known_ones() -> None:
    with pytest.raises(
        UserError,
        match=r"'cfar10:x'; did you mean cifar10\?; known are digits, cifar10:ROOT, .*npz:FILE, imagenet:ROOT$",
    ):
        data.open("cfar10:x")
    with pytest.raises(UserError, match=r"^unknown data source 'zzz'; known are digits,"):
        data.open("zzz")


def test_a_bare_path_suggests_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"did you mean folder:{tmp_path}"):
        data.open(str(tmp_path))


@pytest.mark.parametrize("kind", ["cifar10", "cifar100", "folder", "npz", "imagenet"])
def test_missing_path(kind: str) -> None:
    for spec in (kind, f"{kind}:"):
        with pytest.raises(UserError, match=f"'{spec}' lacks its path; write {kind}:"):
            data.open(spec)


def test_unknown_split() -> None:
    with pytest.raises(UserError, match="unknown split 'val'; give train or test"):
        data.open("digits", "val")


def test_image_size_must_be_positive() -> None:
    with pytest.raises(UserError, match="image_size is 0"):
        data.open("digits", image_size=0)


def test_limit_is_balanced_and_repeatable() -> None:
    source, again = data.open("digits", limit=105), data.open("digits", limit=105)
    assert np.bincount(source.labels).tolist() == [11] * 5 + [10] * 5
    np.testing.assert_array_equal(source.images(), again.images())
    assert len(data.open("digits", limit=10)) == 10
    assert len(data.open("digits", limit=5000)) == 1442
    assert source.statistics() == data.open("digits").statistics()


def test_limit_below_the_number_of_classes() -> None:
    with pytest.raises(UserError, match="limit is 9, but digits has 10 classes"):
        data.open("digits", limit=9)


def test_a_test_split_uses_the_open_training_split(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("train", "test"):
        write_folder(tmp_path / name, {"a": 2, "b": 2})
    train = data.open(f"folder:{tmp_path}", limit=2)
    test = data.open(f"folder:{tmp_path}", "test")
    opened = []
    original = data.open
    monkeypatch.setattr(data, "open", lambda *given, **options: opened.append(given) or original(*given, **options))
    statistics = test.statistics()
    assert opened == []
    assert statistics == train.statistics()
    other_size = original(f"folder:{tmp_path}", "test", image_size=5)
    assert other_size.statistics() != statistics
    assert len(opened) == 1
