from __future__ import annotations

import numpy as np
import pytest

from fastnas.data import Augmentation
from fastnas.data.augmentation import CROP, CUTOUT, FLIP, ORDER, generator
from fastnas.errors import UserError


def draws(seed: int = 0, epoch: int = 0, count: int = 4000, **options) -> dict[str, np.ndarray]:
    augmentation = Augmentation(**{"crop_padding": 2, "flip": True, "cutout": 4} | options)
    return vars(augmentation.draw(seed, epoch, count, (5, 7)))


def test_draws_depend_on_seed_and_epoch_only() -> None:
    first, again = draws(seed=3, epoch=4), draws(seed=3, epoch=4)
    for name, values in first.items():
        np.testing.assert_array_equal(values, again[name])
        assert not np.array_equal(values, draws(seed=4, epoch=4)[name])
        assert not np.array_equal(values, draws(seed=3, epoch=5)[name])
        assert not np.array_equal(values, draws(seed=4, epoch=3)[name])


@pytest.mark.parametrize("change", [{"crop_padding": 0}, {"flip": False}, {"cutout": 0}])
def test_switching_one_change_off_leaves_the_draws_of_the_others(change: dict[str, int]) -> None:
    changed, before = draws(**change), draws()
    kept = {"crop", "flip", "cutout"} - {name.removesuffix("_padding") for name in change}
    for name in kept:
        np.testing.assert_array_equal(changed[name], before[name])


def test_decisions_are_independent() -> None:
    firsts = {generator(0, 0, stream).integers(2**60) for stream in (ORDER, CROP, FLIP, CUTOUT)}
    assert len(firsts) == 4


def test_draws_are_uniform_over_the_documented_ranges() -> None:
    sample = draws()
    for axis in range(2):
        _check_uniform(sample["crop"][:, axis], 5)
        _check_uniform(sample["cutout"][:, axis], (5, 7)[axis])
    _check_uniform(sample["flip"].astype(int), 2)
    assert abs(np.corrcoef(sample["crop"].T)[0, 1]) < 0.05


def test_no_flip_and_no_padding() -> None:
    assert not draws(flip=False)["flip"].any()
    assert not draws(crop_padding=0)["crop"].any()


@pytest.mark.parametrize("name", ["crop_padding", "cutout"])
def test_negative_pixels_are_refused(name: str) -> None:
    with pytest.raises(UserError, match=f"{name} is -1"):
        Augmentation(**{"crop_padding": 0, "flip": False} | {name: -1})


def _check_uniform(values: np.ndarray, levels: int) -> None:
    counts = np.bincount(values)
    assert len(counts) == levels
    expected = len(values) / levels
    assert np.abs(counts - expected).max() < 5 * np.sqrt(expected)
