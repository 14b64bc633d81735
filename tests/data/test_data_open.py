from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from sample_sources import DALI, write_folder
from sklearn.datasets import load_digits
from torchvision.transforms import v2

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


def test_the_evaluated_share_of_arrays(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (4, 20, 30, 3), dtype=np.uint8)  # [N, H, W, C]
    labels = np.array([0, 1, 0, 1])
    np.savez(tmp_path / "a.npz", images=images, labels=labels, test_images=images[::-1], test_labels=labels)
    spec = f"npz:{tmp_path / 'a.npz'}"
    source = data.open(spec, image_size=16, evaluated_share=0.8)
    # The shorter side has 20 pixels already, so the middle is cut out as it is.
    np.testing.assert_array_equal(source.images(), images[:, 2:18, 7:23])
    assert (source.image_size, source.evaluated_share) == ((16, 16), 0.8)
    test = data.open(spec, "test", image_size=16, evaluated_share=0.8)
    assert test.statistics() == source.statistics() != data.open(spec, image_size=16).statistics()


def test_resized_arrays_keep_what_random_crops_are_cut_from(tmp_path: Path) -> None:
    images = np.random.default_rng(1).integers(0, 256, (5, 20, 30, 3), dtype=np.uint8)  # [N, H, W, C]
    np.savez(tmp_path / "a.npz", images=images, labels=np.array([0, 1, 0, 1, 0]))
    source = data.open(f"npz:{tmp_path / 'a.npz'}", image_size=16, evaluated_share=0.8).subset([4, 1])
    np.testing.assert_array_equal(source.original(0), images[4])
    np.testing.assert_array_equal(source.original_sizes(), [[20, 30]] * 2)


def test_a_path_with_a_zero_byte() -> None:
    for kind in ("folder", "npz", "cifar10", "imagenet"):
        with pytest.raises(UserError, match="has a zero byte, which no path has"):
            data.open(f"{kind}:a\0b")


@pytest.mark.parametrize("kind", [DALI, "torchvision"])
def test_arrays_get_random_resized_crops(tmp_path: Path, kind: str) -> None:
    images = np.random.default_rng(1).integers(0, 256, (6, 20, 30, 3), dtype=np.uint8)  # [N, H, W, C]
    np.savez(tmp_path / "a.npz", images=images, labels=np.array([0, 1] * 3))
    source = data.open(f"npz:{tmp_path / 'a.npz'}", image_size=16)
    pipeline = data.pipeline(
        source, kind, batch_size=6, augmentation=data.Augmentation(0, False, crop_area=(0.5, 0.9)), shuffle=False
    )
    batch, _ = pipeline.batch(0, 0)  # [6, 3, 16, 16]
    mean, std = (torch.tensor(numbers).view(3, 1, 1) for numbers in source.statistics())
    for image, original, box in zip(batch, images, pipeline.plan(0).draws.boxes, strict=True):
        cut = v2.functional.resized_crop(v2.functional.to_image(original), *box.tolist(), [16, 16], antialias=True)
        # Pure noise: DALI and torchvision round the two passes differently.
        assert ((image * std + mean) * 255 - cut).abs().mean() < (1.5 if kind == "dali" else 1e-3)


def test_an_evaluated_share_that_cannot_be() -> None:
    with pytest.raises(UserError, match=r"evaluated_share is 1\.5; give a share of the shorter side"):
        data.open("digits", evaluated_share=1.5)
    with pytest.raises(UserError, match=r"but cifar10:x keeps its size; give image_size \(--image-size\), too"):
        data.open("cifar10:x", evaluated_share=0.9)


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
    with pytest.raises(UserError, match="unknown split 'dev'; give train"):
        data.open("digits", "dev")
    with pytest.raises(UserError, match="digits has no folder val; only folder:ROOT and imagenet:ROOT may have one"):
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


def test_without_dali_the_error_names_the_command_and_auto_takes_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastnas.data.dali.is_installed", lambda: False)
    monkeypatch.setattr(data, "is_installed", lambda: False)
    source = data.open("digits")
    with pytest.raises(UserError, match=r'pip install "fastnas\[dali\]", or pip install nvidia-dali-cuda130'):
        data.pipeline(source, "dali", batch_size=4)
    monkeypatch.setattr(data, "fits", lambda source, device: False)
    assert data.pipeline(source, batch_size=4).kind == "torchvision"


@pytest.mark.parametrize("split", ["train", "test"])
def test_images_are_normalised_as_asked(tmp_path: Path, split: str) -> None:
    images = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3), dtype=np.uint8)  # [N, H, W, C]
    labels = np.array([0, 1, 0, 1])
    np.savez(tmp_path / "a.npz", images=images, labels=labels, test_images=images, test_labels=labels)
    spec = f"npz:{tmp_path / 'a.npz'}"
    training = data.open(spec, normalise="cifar10")  # which others must not take
    own, asked = data.open(spec, split), data.open(spec, split, normalise="cifar10", limit=2)
    assert asked.statistics() == training.statistics() == ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))
    assert own.statistics() != asked.statistics()
    batch, _ = data.pipeline(asked, "tensor", batch_size=2, train=False).batch(0, 0)  # [2, C, H, W]
    mean, std = (torch.tensor(values)[:, None, None] for values in asked.statistics())
    expected = (torch.from_numpy(asked.images()).permute(0, 3, 1, 2) / 255 - mean) / std
    torch.testing.assert_close(batch, expected, atol=1e-5, rtol=1e-5)


def test_statistics_that_do_not_fit_are_refused() -> None:
    with pytest.raises(UserError, match="normalise is 'cifar10', whose images have 3 channels; digits has 1"):
        data.open("digits", normalise="cifar10")
    with pytest.raises(UserError, match="normalise is 'mnist'; give own, cifar10, cifar100, imagenet"):
        data.open("digits", normalise="mnist")
