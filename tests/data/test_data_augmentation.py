from __future__ import annotations

import numpy as np
import pytest

from fastnas.data import Augmentation
from fastnas.data.augmentation import order_generator
from fastnas.errors import UserError


def draws(seed: int = 0, epoch: int = 0, count: int = 4000, **options) -> dict[str, np.ndarray]:
    augmentation = Augmentation(**{"crop_padding": 2, "flip": True, "cutout": 4} | options)
    drawn = augmentation.draw(seed, epoch, np.arange(count), (5, 7))
    return {"crop": drawn.crop, "flip": drawn.flip, "cutout": drawn.cutout}


def boxes(sizes: np.ndarray, seed: int, crop_area: tuple[float, float] = (0.08, 1.0)) -> np.ndarray:
    augmentation = Augmentation(crop_padding=0, flip=True, crop_area=crop_area)
    return augmentation.draw(seed, 0, np.arange(len(sizes)), (8, 8), sizes).boxes


def test_draws_depend_on_seed_and_epoch_only() -> None:
    first, again = draws(seed=3, epoch=4), draws(seed=3, epoch=4)
    for name, values in first.items():
        np.testing.assert_array_equal(values, again[name])
        assert not np.array_equal(values, draws(seed=4, epoch=4)[name])
        assert not np.array_equal(values, draws(seed=3, epoch=5)[name])
        assert not np.array_equal(values, draws(seed=4, epoch=3)[name])


def test_a_position_has_its_draws_whatever_is_drawn_with_it(seed: int) -> None:
    augmentation = Augmentation(crop_padding=0, flip=True, crop_area=(0.2, 0.9), color_jitter=(0.4, 0.4, 0.4, 0.1))
    sizes = np.random.default_rng(seed).integers(1, 300, (50, 2))
    chosen = np.array([40, 3, 17])
    whole = augmentation.draw(seed, 2, np.arange(50), (8, 8), sizes)
    part = augmentation.draw(seed, 2, chosen, (8, 8), sizes[chosen])
    for name in ("moves", "boxes", "colours"):
        np.testing.assert_array_equal(getattr(part, name), getattr(whole, name)[chosen])


@pytest.mark.parametrize("change", [{"crop_padding": 0}, {"flip": False}, {"cutout": 0}])
def test_switching_one_change_off_leaves_the_draws_of_the_others(change: dict[str, int]) -> None:
    changed, before = draws(**change), draws()
    kept = {"crop", "flip", "cutout"} - {name.removesuffix("_padding") for name in change}
    for name in kept:
        np.testing.assert_array_equal(changed[name], before[name])


def test_orders_of_epochs_and_seeds_differ() -> None:
    orders = [order_generator(seed, epoch).permutation(50).tolist() for seed in (0, 1) for epoch in (0, 1)]
    assert all(orders.count(order) == 1 for order in orders)


def test_draws_are_uniform_over_the_documented_ranges(seed: int) -> None:
    sample = draws(seed)
    for axis in range(2):
        check_uniform(sample["crop"][:, axis], 5)
        check_uniform(sample["cutout"][:, axis], (5, 7)[axis])
    check_uniform(sample["flip"].astype(int), 2)
    columns = np.column_stack([sample["crop"], sample["flip"], sample["cutout"]]).T
    assert np.abs(np.corrcoef(columns) - np.eye(5)).max() < 0.1


def test_no_flip_and_no_padding() -> None:
    assert not draws(flip=False)["flip"].any()
    assert not draws(crop_padding=0)["crop"].any()


def test_boxes_cover_uniform_shares_with_the_ratios_of_torchvision(seed: int) -> None:
    sizes = np.tile([900, 1000], (4000, 1))
    top, left, height, width = boxes(sizes, seed, (0.1, 0.5)).T
    share, ratio = height * width / 900_000, width / height
    assert (share > 0.099).all()
    assert (share < 0.501).all()
    assert abs(share.mean() - 0.3) < 5 * 0.4 / np.sqrt(12 * 4000)
    assert (ratio > 0.748).all()
    assert (ratio < 1.337).all()
    assert abs(np.log(ratio).mean()) < 5 * np.log(16 / 9) / np.sqrt(12 * 4000)
    for start, room in ((top, 900 - height), (left, 1000 - width)):
        assert abs((start / room).mean() - 0.5) < 5 / np.sqrt(12 * 4000)


def test_boxes_lie_within_their_images(seed: int) -> None:
    sizes = np.random.default_rng(seed).integers(1, 40, (2000, 2))
    drawn = boxes(sizes, seed)
    assert (drawn[:, :2] >= 0).all()
    assert (drawn[:, 2:] >= 1).all()
    assert (drawn[:, :2] + drawn[:, 2:] <= sizes).all()


def test_an_image_too_narrow_for_any_box_gives_its_middle() -> None:
    drawn = boxes(np.array([[10, 100], [90, 9], [1, 1], [1, 50]]), 0, (0.9, 1.0))
    assert drawn.tolist() == [[0, 43, 10, 13], [39, 0, 12, 9], [0, 0, 1, 1], [0, 24, 1, 1]]


def test_colour_factors(seed: int) -> None:
    augmentation = Augmentation(crop_padding=0, flip=True, color_jitter=(0.4, 0.2, 0.0, 0.1))
    colours = augmentation.draw(seed, 0, np.arange(4000), (8, 8)).colours
    centre, strength = np.array([1, 1, 1, 0]), np.array([0.4, 0.2, 0.0, 0.1])
    assert (np.abs(colours - centre) <= strength + 1e-6).all()
    assert (np.abs(colours.mean(axis=0) - centre) <= 5 * strength / np.sqrt(3 * 4000)).all()
    assert augmentation.draw(seed, 0, np.arange(2), (8, 8)).boxes is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"crop_padding": -1}, "crop_padding is -1"),
        ({"cutout": -1}, "cutout is -1"),
        ({"crop_area": (0.0, 1.0)}, r"crop_area is \(0.0, 1.0\); give two shares"),
        ({"crop_area": (0.5, 0.4)}, "crop_area is"),
        ({"crop_area": (0.5, 1.0), "crop_padding": 4}, "crop_padding is 4, but these images get random resized crops"),
        ({"color_jitter": (0.1, 0.1, 0.1, 0.6)}, "color_jitter is"),
    ],
)
def test_impossible_augmentations_are_refused(options: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Augmentation(**{"crop_padding": 0, "flip": False} | options)


def check_uniform(values: np.ndarray, levels: int) -> None:
    counts = np.bincount(values)
    assert len(counts) == levels
    expected = len(values) / levels
    assert np.abs(counts - expected).max() < 5 * np.sqrt(expected)
