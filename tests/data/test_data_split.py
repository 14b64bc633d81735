from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fastnas.data.split import balanced, chosen, rank_in_class, stratified
from fastnas.errors import UserError

labellings = st.lists(st.integers(0, 3), min_size=1, max_size=60).map(np.array)


@given(labellings)
def test_rank_counts_the_earlier_images_of_the_class(labels: np.ndarray) -> None:
    expected = [list(labels[:place]).count(label) for place, label in enumerate(labels)]
    assert rank_in_class(labels).tolist() == expected


@given(labellings, st.integers(1, 70))
def test_balanced_takes_as_many_as_allowed_as_evenly_as_possible(labels: np.ndarray, limit: int) -> None:
    chosen = balanced(labels, limit)
    assert len(chosen) == min(limit, len(labels))
    assert (np.diff(chosen) > 0).all()
    available = np.bincount(labels, minlength=4)
    taken = np.bincount(labels[chosen], minlength=4)
    exhausted = taken == available
    if not exhausted.all():
        assert taken.max() - taken[~exhausted].min() <= 1
    for label in range(4):  # the first ones of each class
        assert np.flatnonzero(labels == label)[: taken[label]].tolist() == chosen[labels[chosen] == label].tolist()


@given(labellings, st.floats(0.01, 0.99))
def test_stratified_takes_the_first_share_of_each_class(labels: np.ndarray, portion: float) -> None:
    classes = ("a", "b", "c", "d")
    firsts = [int(np.floor((labels == label).sum() * portion)) for label in range(4)]
    if min(firsts) == 0:
        with pytest.raises(UserError, match="every class"):
            stratified(labels, classes, portion)
        return
    weights, alpha = stratified(labels, classes, portion)
    assert sorted([*weights, *alpha]) == list(range(len(labels)))
    assert (np.diff(weights) > 0).all()
    assert (np.diff(alpha) > 0).all()
    for label, first in enumerate(firsts):
        of_class = np.flatnonzero(labels == label)
        assert weights[labels[weights] == label].tolist() == of_class[:first].tolist()
        assert alpha[labels[alpha] == label].tolist() == of_class[first:].tolist()


@given(st.integers(1, 400), st.one_of(st.floats(0.01, 1, exclude_max=True), st.just(np.nextafter(1, 0))))
def test_stratified_leaves_an_image_for_each_part(count: int, portion: float) -> None:
    if int(count * portion) > 0:
        assert all(len(part) > 0 for part in stratified(np.zeros(count, dtype=int), ("a",), portion))


@pytest.mark.parametrize(
    ("indices", "expected"),
    [
        ([], []),
        ((3, 1), [3, 1]),
        (range(2), [0, 1]),
        ([True, False, False, True, False], [0, 3]),
        (torch.tensor([4]), [4]),
    ],
)
def test_chosen_takes_integers_or_a_mask(indices: object, expected: list[int]) -> None:
    result = chosen(5, indices)
    assert result.tolist() == expected
    assert result.dtype == np.int64


@pytest.mark.parametrize("indices", [[5], [0.5], [True, False]])
def test_chosen_refuses_what_does_not_fit(indices: list) -> None:
    with pytest.raises(IndexError):
        chosen(5, indices)


def test_stratified_by_hand() -> None:
    weights, alpha = stratified(np.array([1, 0, 0, 1, 1, 0, 0, 1, 1]), ("a", "b"), 0.5)
    assert weights.tolist() == [0, 1, 2, 3]
    assert alpha.tolist() == [4, 5, 6, 7, 8]


def test_a_class_with_one_image_cannot_be_split() -> None:
    with pytest.raises(UserError, match=r"class 'b' has 1 images, of which a share of 0\.5 is none; .* raise --split"):
        stratified(np.array([0, 0, 1]), ("a", "b"), 0.5)


def test_a_class_without_images_cannot_be_split() -> None:
    with pytest.raises(UserError, match="class 'c' has 0 images"):
        stratified(np.array([0, 0, 1, 1]), ("a", "b", "c"), 0.5)


@pytest.mark.parametrize("portion", [0, 1, -0.5, 1.5, float("nan")])
def test_portion_must_lie_between_0_and_1(portion: float) -> None:
    with pytest.raises(UserError, match=f"the share of images for the weights is {portion}"):
        stratified(np.array([0, 0]), ("a",), portion)
