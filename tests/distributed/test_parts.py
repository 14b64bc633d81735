"""How several processes share out the batches of a pipeline, and things that are counted."""

from __future__ import annotations

from itertools import chain

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastnas import data
from fastnas.data import Augmentation, Pipeline
from fastnas.data.source import ArraySource
from fastnas.errors import UserError
from fastnas.world import World


def pipeline(images: int, batch_size: int, train: bool) -> Pipeline:
    """Image i has the label i."""
    source = ArraySource(
        spec="numbers",
        name="numbers",
        split="train",
        classes=tuple(str(number) for number in range(images)),
        labels=np.arange(images),
        channels=1,
        image_size=(1, 1),
        augmentation=Augmentation(crop_padding=0, flip=False, cutout=0),
        published=((0.0,), (1.0,)),
        array=np.zeros((images, 1, 1, 1), np.uint8),
    )
    return data.pipeline(source, "tensor", batch_size=batch_size, train=train)


def labels(part: Pipeline) -> list[list[int]]:
    return [found.tolist() for _, found in part.epoch(1)]


@settings(max_examples=150, deadline=None)
@given(st.integers(1, 60), st.integers(1, 24), st.integers(1, 7))
def test_every_process_trains_as_many_steps(images: int, batch_size: int, size: int) -> None:
    """So that nobody waits for a batch that another one does not have, whatever the numbers."""
    if images < batch_size:
        return
    whole = pipeline(images, batch_size, train=True)
    if batch_size % size:
        for rank in range(size):
            with pytest.raises(UserError, match=f"{size} processes cannot share a batch of {batch_size} images"):
                whole.part(rank, size)
        return
    parts = [whole.part(rank, size) for rank in range(size)]
    assert {len(part) for part in parts} == {len(whole)}
    steps = zip(*(labels(part) for part in parts), strict=True)
    for together, batch in zip(steps, labels(whole), strict=True):
        assert {len(own) for own in together} == {batch_size // size}
        assert sorted(chain(*together)) == sorted(batch)


@settings(max_examples=150, deadline=None)
@given(st.integers(1, 60), st.integers(1, 24), st.integers(1, 7))
def test_every_image_is_evaluated_once(images: int, batch_size: int, size: int) -> None:
    whole = pipeline(images, batch_size, train=False)
    if images < size:
        for rank in range(size):
            with pytest.raises(UserError, match=f"{images} images are too few for {size} processes"):
                whole.part(rank, size)
        return
    parts = [labels(whole.part(rank, size)) for rank in range(size)]
    assert sorted(number for part in parts for batch in part for number in batch) == list(range(images))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
    assert max(map(len, parts)) <= max(1, len(whole))


@given(st.integers(0, 100), st.integers(1, 9))
def test_things_are_shared_out_evenly(count: int, size: int) -> None:
    parts = [list(range(count)[World(rank, size).part(count)]) for rank in range(size)]
    assert list(chain(*parts)) == list(range(count))
    assert len(parts[0]) - len(parts[-1]) <= 1
