from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from sample_sources import array_source, write_folder

from fastnas import data
from fastnas.data import source as source_module
from fastnas.data.split import stratified
from fastnas.errors import UserError


@pytest.mark.parametrize("channels", [1, 3])
def test_statistics_are_those_of_the_pixels(channels: int) -> None:
    source = array_source(count=50, channels=channels)
    mean, std = source.statistics()
    pixels = source.images().reshape(-1, channels) / 255
    np.testing.assert_allclose(mean, pixels.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(std, pixels.std(axis=0), rtol=1e-12)


def test_a_constant_channel_has_no_zero_deviation() -> None:
    source = array_source()
    source.images()[..., 1] = 77
    mean, std = source.statistics()
    assert mean[1] == pytest.approx(77 / 255)
    assert std[1] == 1
    images, _ = data.pipeline(source, "tensor", batch_size=5, train=False).batch(0, 0)
    assert images[:, 1].abs().max() < 1e-6


def test_large_sets_are_measured_on_evenly_spaced_images(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source_module, "MEASURED_IMAGES", 5)
    source = array_source(count=23)
    sample = source.images()[[0, 4, 9, 13, 18]] / 255
    np.testing.assert_allclose(source.statistics()[0], sample.mean(axis=(0, 1, 2)), rtol=1e-12)


def test_a_subset_keeps_classes_and_statistics_of_the_whole() -> None:
    source = array_source(count=20)
    part = source.subset([7, 3, 3])
    assert len(part) == 3
    np.testing.assert_array_equal(part.images(), source.images()[[7, 3, 3]])
    np.testing.assert_array_equal(part.labels, source.labels[[7, 3, 3]])
    assert part.classes == source.classes
    assert part.statistics() == source.statistics()
    assert part.subset([0]).statistics() == source.statistics()


def test_a_subset_of_files_keeps_the_statistics_of_all_files(tmp_path: Path) -> None:
    source = data.open(f"folder:{write_folder(tmp_path, {'a': 3, 'b': 2})}")
    part = source.subset([4, 0])
    np.testing.assert_array_equal(part.image(0), source.image(4))
    assert part.labels.tolist() == [1, 0]
    assert part.statistics() == source.statistics()


def test_subset_takes_a_mask_and_refuses_missing_images() -> None:
    source = array_source(count=10)
    np.testing.assert_array_equal(source.subset(source.labels == 1).images(), source.images()[1::3])
    with pytest.raises(IndexError):
        source.subset([10])


def test_search_split_is_stratified() -> None:
    source = array_source(count=23, classes=3)
    for portion in (0.5, 0.3):
        for part, expected in zip(
            source.search_split(portion), stratified(source.labels, source.classes, portion), strict=True
        ):
            np.testing.assert_array_equal(part, expected)
    with pytest.raises(UserError, match="class 'class0' has 1 images"):
        array_source(count=3, classes=3).search_split()


def test_memory_and_description() -> None:
    source = array_source(count=23, size=(8, 6), channels=3)
    assert source.nbytes == source.images().nbytes == 23 * 8 * 6 * 3
    assert repr(source) == "<ArraySource random train: 23 images of 3 classes, 8x6x3>"


def test_sources_can_be_sent_to_other_processes(tmp_path: Path) -> None:
    write_folder(tmp_path / "train", {"a": 2, "b": 2})
    write_folder(tmp_path / "test", {"a": 2, "b": 2})
    for source in (
        data.open("digits", "test"),
        data.open("digits", limit=20),
        data.open(f"folder:{tmp_path}", "test", limit=2),
    ):
        copy = pickle.loads(pickle.dumps(source))
        np.testing.assert_array_equal(copy.images(), source.images())
        assert copy.statistics() == source.statistics()


def test_same_classes() -> None:
    train = array_source(classes=3)
    data.check_same_classes(train, array_source(count=5, classes=3))
    fewer, more = replace(array_source(classes=2), split="test"), array_source(classes=4)
    with pytest.raises(UserError, match="the test split lacks 'class2'; give both the same classes"):
        data.check_same_classes(train, fewer)
    with pytest.raises(UserError, match="adds 'class3'"):
        data.check_same_classes(train, more)
    with pytest.raises(UserError, match="lacks 'class1' and adds 'x'"):
        data.check_same_classes(train, replace(train, classes=("class0", "x", "class2")))
    with pytest.raises(UserError, match="has them in another order"):
        data.check_same_classes(train, replace(train, classes=train.classes[::-1]))
    with pytest.raises(UserError, match="'class7' and 4 more"):
        data.check_same_classes(train, array_source(classes=12))
