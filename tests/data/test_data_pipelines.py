from __future__ import annotations

import gc
import pickle
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sample_sources import array_source, every_kind, needs_dali, write_folder

from fastnas import data
from fastnas.data import torchvision
from fastnas.data.dali import is_installed
from fastnas.data.pipeline import Batch, Pipeline
from fastnas.errors import UserError


def served(batches) -> Batch:
    """All images and labels of some batches."""
    images, labels = zip(*batches, strict=True)
    return torch.cat(images), torch.cat(labels)


def assert_equal(batches, expected) -> None:
    batches, expected = list(batches), list(expected)
    assert len(batches) == len(expected)
    for (images, labels), (expected_images, expected_labels) in zip(batches, expected, strict=True):
        assert torch.equal(images, expected_images)
        assert torch.equal(labels, expected_labels)


def numbers(source: data.Source, images: torch.Tensor) -> list[int]:
    """Recognises the images of `array_source` by their first pixel; valid without augmentation."""
    mean, std = source.statistics()
    return (images[:, 0, 0, 0] * std[0] + mean[0]).mul(255).round().int().tolist()


def reference(source: data.Source, pipeline: Pipeline, epoch: int) -> np.ndarray:
    """The augmented images of an epoch, one by one and pixel by pixel."""
    plan, padding, side = pipeline.plan(epoch), pipeline.augmentation.crop_padding, pipeline.augmentation.cutout
    (height, width), (mean, std) = source.image_size, source.statistics()
    result = []
    for position, index in enumerate(plan.order):
        padded = np.zeros((height + 2 * padding, width + 2 * padding, source.channels), dtype=np.uint8)
        padded[padding : padding + height, padding : padding + width] = source.image(index)
        top, left = plan.draws.crop[position]
        image = padded[top : top + height, left : left + width]
        if plan.draws.flip[position]:
            image = image[:, ::-1]
        image = (image / 255 - mean) / std
        centre_row, centre_column = plan.draws.cutout[position]
        for row in range(centre_row - side // 2, centre_row - side // 2 + side):
            for column in range(centre_column - side // 2, centre_column - side // 2 + side):
                if 0 <= row < height and 0 <= column < width:
                    image[row, column] = 0
        result.append(image.transpose(2, 0, 1))
    return np.stack(result)


@every_kind
@pytest.mark.parametrize("channels", [1, 2, 3])
@pytest.mark.parametrize(
    "options", [(2, True, 3), (0, True, 0), (3, False, 4), (0, False, 5), (9, True, 1), (0, False, 0)]
)
def test_augmentation_follows_the_reference(kind: str, channels: int, options: tuple[int, bool, int]) -> None:
    source = array_source(channels=channels)
    pipeline = data.pipeline(source, kind, batch_size=7, drop_last=False, augmentation=data.Augmentation(*options))
    images, labels = served(pipeline.epoch(3))
    np.testing.assert_allclose(images.numpy(), reference(source, pipeline, 3), atol=2e-6)
    np.testing.assert_array_equal(labels.numpy(), source.labels[pipeline.plan(3).order])


@settings(max_examples=40, deadline=None)
@given(
    size=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    padding=st.integers(0, 5),
    cutout=st.integers(0, 12),
    seed=st.integers(0, 2**63 - 1),
    epoch=st.integers(0, 2**40),
)
def test_tensor_and_torchvision_give_the_same_bits(size, padding: int, cutout: int, seed: int, epoch: int) -> None:
    source = array_source(count=6, size=size)
    tensor, torchvision = (
        data.pipeline(source, kind, batch_size=4, seed=seed, augmentation=data.Augmentation(padding, True, cutout))
        for kind in ("tensor", "torchvision")
    )
    batches = list(tensor.epoch(epoch))
    assert_equal(batches, torchvision.epoch(epoch))
    np.testing.assert_allclose(batches[-1][0].numpy(), reference(source, tensor, epoch)[:4], atol=2e-6)


@needs_dali
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_all_kinds_give_the_same_bits(channels: int, dtype: torch.dtype, seed: int) -> None:
    source = array_source(size=(7, 5), channels=channels)
    batches = {
        kind: list(data.pipeline(source, kind, batch_size=5, seed=seed, dtype=dtype, drop_last=False).epoch(seed))
        for kind in ("tensor", "dali", "torchvision")
    }
    assert batches["dali"][0][0].dtype == dtype
    assert_equal(batches["dali"], batches["tensor"])
    assert_equal(batches["torchvision"], batches["tensor"])


def test_without_augmentation_all_kinds_give_the_normalised_images(tmp_path: Path) -> None:
    source = data.open(f"folder:{write_folder(tmp_path, {'a': 4, 'b': 3})}")
    (mean, std), expected = source.statistics(), np.stack([source.image(index) for index in range(7)]) / 255
    expected = ((expected - mean) / std).transpose(0, 3, 1, 2)  # [N, C, H, W]
    for kind in ("torchvision", "tensor", *(["dali"] if is_installed() else [])):
        images, labels = served(data.pipeline(source, kind, batch_size=3, train=False).epoch(0))
        np.testing.assert_allclose(images.numpy(), expected, atol=1e-6)
        assert labels.tolist() == [0, 0, 0, 0, 1, 1, 1]


@every_kind
@pytest.mark.parametrize("channels", [1, 3])
def test_shape_type_and_memory_format(kind: str, channels: int) -> None:
    source = array_source(size=(8, 6), channels=channels)
    images, labels = data.pipeline(source, kind, batch_size=5).batch(0, 0)
    assert (images.shape, images.dtype, labels.shape, labels.dtype) == (
        (5, channels, 8, 6),
        torch.float32,
        (5,),
        torch.int64,
    )
    assert images.is_contiguous(memory_format=torch.channels_last)


@every_kind
def test_same_seed_same_batches(kind: str) -> None:
    source = array_source()
    first, second, other = (data.pipeline(source, kind, batch_size=4, seed=seed) for seed in (5, 5, 6))
    list(second.epoch(1))  # what was served before does not matter
    assert_equal(first.epoch(2), second.epoch(2))
    assert not torch.equal(served(first.epoch(2))[0], served(other.epoch(2))[0])
    assert not torch.equal(served(first.epoch(2))[0], served(first.epoch(3))[0])


@every_kind
def test_an_epoch_can_be_entered_anywhere(kind: str) -> None:
    pipeline = data.pipeline(array_source(), kind, batch_size=4)
    whole = list(pipeline.epoch(1))
    assert len(whole) == len(pipeline) == 5
    for start in range(6):
        assert_equal(pipeline.epoch(1, start), whole[start:])
    for start in (-1, 6):
        with pytest.raises(ValueError, match=f"start is {start}; an epoch of 5 batches"):
            pipeline.epoch(1, start)
    with pytest.raises(ValueError, match="epoch is -1"):
        pipeline.epoch(-1)


@every_kind
def test_any_batch_can_be_had_at_any_time(kind: str) -> None:
    pipeline = data.pipeline(array_source(), kind, batch_size=4, drop_last=False)
    epochs = [list(pipeline.epoch(epoch)) for epoch in range(2)]
    for epoch, step in [(1, 5), (0, 0), (1, 2), (0, 5), (0, 3)]:
        assert_equal([pipeline.batch(epoch, step)], [epochs[epoch][step]])
        assert_equal([pipeline.batch(epoch, step + 6)], [epochs[epoch][step]])
    interleaved = zip(pipeline.epoch(0), pipeline.epoch(1), strict=True)
    for step, (first, second) in enumerate(interleaved):
        assert_equal([first, second], [epochs[0][step], epochs[1][step]])


@every_kind
def test_batch_size_changes_no_image(kind: str) -> None:
    small, large = (data.pipeline(array_source(), kind, batch_size=size, drop_last=False) for size in (3, 23))
    assert_equal([served(small.epoch(0))], large.epoch(0))


@every_kind
def test_training_serves_every_image_once_in_a_new_order_each_epoch(kind: str) -> None:
    source = array_source()
    pipeline = data.pipeline(source, kind, batch_size=23, augment=False)
    orders = []
    for epoch in range(3):
        images, labels = pipeline.batch(epoch, 0)
        orders.append(numbers(source, images))
        assert labels.tolist() == [number % 3 for number in orders[-1]]
        assert sorted(orders[-1]) == list(range(23))
    assert orders[0] != orders[1] != orders[2] != sorted(orders[0])


@every_kind
def test_shuffle_and_augment_override_train_one_by_one(kind: str) -> None:
    source = array_source()

    def epoch(**options) -> Batch:
        return served(data.pipeline(source, kind, batch_size=4, drop_last=False, **options).epoch(1))

    plain, shuffled = epoch(train=False), epoch(train=False, shuffle=True)
    assert numbers(source, plain[0]) == list(range(23))
    assert sorted(numbers(source, shuffled[0])) == list(range(23)) != numbers(source, shuffled[0])
    augmented = epoch(train=False, augment=True)
    assert torch.equal(augmented[1], plain[1])
    assert not torch.equal(augmented[0], plain[0])
    assert_equal([epoch(train=True, augment=False)], [shuffled])
    assert_equal([epoch(train=True, shuffle=False)], [augmented])
    assert_equal([epoch(train=True)], [epoch(train=False, shuffle=True, augment=True)])


@every_kind
def test_the_last_incomplete_batch(kind: str) -> None:
    source = array_source()

    def sizes(**options) -> list[int]:
        pipeline = data.pipeline(source, kind, batch_size=5, **options)
        result = [len(labels) for _, labels in pipeline.epoch(0)]
        assert len(result) == len(pipeline)
        return result

    assert sizes(train=True) == sizes(train=False, drop_last=True) == [5, 5, 5, 5]
    assert sizes(train=False) == sizes(train=True, drop_last=False) == [5, 5, 5, 5, 3]
    assert sizes(train=False, indices=range(10)) == [5, 5]


@every_kind
def test_indices_choose_the_images(kind: str) -> None:
    source = array_source()
    weights, alpha = source.search_split()
    for part in (weights, alpha):
        images, labels = data.pipeline(source, kind, batch_size=len(part), indices=part, augment=False).batch(0, 0)
        assert sorted(numbers(source, images)) == part.tolist()
        assert labels.tolist() == [number % 3 for number in numbers(source, images)]
    mask = source.labels == 2
    _, labels = data.pipeline(source, kind, batch_size=7, indices=mask, train=False).batch(0, 0)
    assert labels.tolist() == [2] * 7
    with pytest.raises(IndexError):
        data.pipeline(source, kind, batch_size=1, indices=[23])


@every_kind
@pytest.mark.parametrize("shards", [1, 2, 3])
def test_shards_are_disjoint_and_cover_the_set(kind: str, shards: int) -> None:
    source = array_source()
    parts = [
        data.pipeline(source, kind, batch_size=4, drop_last=False, augment=False, shard=shard, shards=shards)
        for shard in range(shards)
    ]
    found = [numbers(source, served(part.epoch(2))[0]) for part in parts]
    assert sorted(number for part in found for number in part) == list(range(23))
    assert max(map(len, found)) - min(map(len, found)) <= 1
    assert found != [numbers(source, served(part.epoch(3))[0]) for part in parts]  # dealt out anew
    equal = [data.pipeline(source, kind, batch_size=4, shard=shard, shards=shards) for shard in range(shards)]
    assert {len(list(part.epoch(0))) for part in equal} == {23 // shards // 4}


@every_kind
def test_shards_together_do_what_one_process_does(kind: str) -> None:
    source = array_source()
    alone = data.pipeline(source, kind, batch_size=6)
    parts = [data.pipeline(source, kind, batch_size=3, shard=shard, shards=2) for shard in (0, 1)]
    for (images, labels), *both in zip(alone.epoch(1), *(part.epoch(1) for part in parts), strict=True):
        assert torch.equal(torch.stack([part[0] for part in both], dim=1).flatten(0, 1), images)
        assert torch.equal(torch.stack([part[1] for part in both], dim=1).flatten(), labels)


@every_kind
def test_halves_of_the_search_split_are_shuffled_and_drawn_apart(kind: str) -> None:
    source = array_source(count=60)
    weights, alpha = source.search_split()
    pipelines = [
        data.pipeline(source, kind, batch_size=10, indices=part, seed=seed, augment=False)
        for seed, part in enumerate((weights, alpha))
    ]
    seen = [set(numbers(source, served(pipeline.epoch(0))[0])) for pipeline in pipelines]
    assert [seen[0], seen[1]] == [set(weights.tolist()), set(alpha.tolist())]


@every_kind
def test_one_image_of_each_class(kind: str) -> None:
    source = array_source(count=3, classes=3)
    _, labels = data.pipeline(source, kind, batch_size=3).batch(0, 0)
    assert sorted(labels.tolist()) == [0, 1, 2]
    assert len(data.pipeline(source, kind, batch_size=8, train=False)) == 1


@every_kind
def test_global_generators_are_left_alone(kind: str) -> None:
    pipeline = data.pipeline(array_source(), kind, batch_size=4)
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    list(pipeline.epoch(0))
    pipeline.batch(1, 1)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before[1:]
    first = list(pipeline.epoch(0))
    torch.manual_seed(1)
    np.random.seed(1)
    assert_equal(pipeline.epoch(0), first)


def test_the_number_of_workers_changes_nothing(tmp_path: Path) -> None:
    source = data.open(f"folder:{write_folder(tmp_path, {'a': 5, 'b': 4})}")
    alone, helped = (data.pipeline(source, "torchvision", batch_size=2, workers=workers) for workers in (0, 2))
    state = torch.get_rng_state()
    assert_equal(helped.epoch(1, 1), alone.epoch(1, 1))
    assert torch.equal(torch.get_rng_state(), state)
    assert next(iter(helped.epoch(0)))[0].is_contiguous(memory_format=torch.channels_last)


def test_what_workers_need_can_be_pickled() -> None:
    pipeline = data.pipeline(data.open("digits"), "torchvision", batch_size=2)
    images = pickle.loads(pickle.dumps(pipeline._images(0)))
    assert_equal([images[pipeline.positions(3)]], [pipeline.batch(0, 3)])


@pytest.mark.parametrize("workers", [0, 1])
def test_an_image_that_becomes_unreadable_is_named(tmp_path: Path, workers: int) -> None:
    source = data.open(f"folder:{write_folder(tmp_path, {'a': 2, 'b': 2})}")
    pipeline = data.pipeline(source, "torchvision", batch_size=2, train=False, workers=workers)
    (tmp_path / "b" / "1.png").write_text("no longer an image")
    batches = pipeline.epoch(0)
    next(batches)
    with pytest.raises(UserError, match=f"^cannot read the image {tmp_path}/b/1.png: it is not an image") as caught:
        next(batches)
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match=r"1\.png"):
        pipeline.batch(0, 1)


@every_kind
def test_attributes(kind: str) -> None:
    source = array_source()
    pipeline = data.pipeline(source, kind, batch_size=4, seed=9)
    assert (pipeline.kind, pipeline.source, pipeline.batch_size, pipeline.seed) == (kind, source, 4, 9)
    assert (pipeline.shuffle, pipeline.augment, pipeline.drop_last) == (True, True, True)
    assert pipeline.augmentation == source.augmentation
    assert pipeline.device == torch.device("cpu")
    assert isinstance(pipeline, data.Pipeline)


@every_kind
def test_impossible_options(kind: str) -> None:
    source = array_source()
    with pytest.raises(UserError, match="random: 23 images do not fill a batch of 24"):
        data.pipeline(source, kind, batch_size=24)
    with pytest.raises(UserError, match="random: 0 images do not fill a batch of 4"):
        data.pipeline(source, kind, batch_size=4, train=False, indices=[])
    with pytest.raises(UserError, match="batch_size is 0"):
        data.pipeline(source, kind, batch_size=0)
    for seed in (-1, 2**63):
        with pytest.raises(UserError, match=f"seed is {seed}; give a number from 0 to 9223372036854775807"):
            data.pipeline(source, kind, batch_size=4, seed=seed)
    with pytest.raises(UserError, match="workers is -1"):
        data.pipeline(source, kind, batch_size=4, workers=-1)
    with pytest.raises(UserError, match="prefetch is 0"):
        data.pipeline(source, kind, batch_size=4, prefetch=0)
    for shard, shards in ((2, 2), (-1, 2), (0, 0)):
        with pytest.raises(UserError, match=f"shard is {shard} of {shards}; give a number from 0"):
            data.pipeline(source, kind, batch_size=4, shard=shard, shards=shards)


def test_unknown_kind() -> None:
    with pytest.raises(UserError, match=r"'tensr'; did you mean tensor\?; known are auto, dali, tensor, torchvision"):
        data.pipeline(array_source(), "tensr", batch_size=4)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@every_kind
def test_cuda_batches_equal_those_of_the_host(kind: str) -> None:
    source = array_source()
    host, device = (data.pipeline(source, kind, batch_size=4, device=name) for name in ("cpu", "cuda"))
    for (images, labels), (expected_images, expected_labels) in zip(device.epoch(0), host.epoch(0), strict=True):
        assert images.device.type == labels.device.type == "cuda"
        assert images.is_contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(images.cpu(), expected_images, rtol=0, atol=1e-6)
        assert torch.equal(labels.cpu(), expected_labels)


@needs_dali
def test_workers_leave_the_threads_of_other_pipelines_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """A garbage collection in a forked worker must not take apart what DALI left behind in its parent."""
    source = array_source()
    kept = [data.pipeline(source, "dali", batch_size=4)]
    kept[0].batch(0, 0)
    kept.append(kept)  # what only a garbage collection can free
    gc.disable()
    try:
        del kept
        read = torchvision._Images.__getitem__

        def collect_and_read(images, positions):
            gc.collect()
            return read(images, positions)

        monkeypatch.setattr(torchvision._Images, "__getitem__", collect_and_read)
        assert len(list(data.pipeline(source, "torchvision", batch_size=4, workers=2).epoch(0))) == 5
    finally:
        gc.enable()
