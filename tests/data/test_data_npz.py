from __future__ import annotations

import io
import os
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from fastnas import data
from fastnas.data import npz
from fastnas.errors import UserError

IMAGES = np.random.default_rng(0).integers(0, 256, (6, 8, 8, 3), dtype=np.uint8)
LABELS = np.array([0, 1, 2, 0, 1, 2])


def saved(tmp_path: Path, **arrays) -> str:
    np.savez(tmp_path / "set.npz", **arrays)
    return f"npz:{tmp_path / 'set.npz'}"


def test_training_and_test_images(tmp_path: Path) -> None:
    spec = saved(tmp_path, images=IMAGES, labels=LABELS, test_images=IMAGES[:2], test_labels=np.array([2, 0]))
    train, test = data.open(spec), data.open(spec, "test")
    np.testing.assert_array_equal(train.images(), IMAGES)
    np.testing.assert_array_equal(train.labels, LABELS)
    np.testing.assert_array_equal(test.images(), IMAGES[:2])
    assert test.labels.tolist() == [2, 0]
    assert train.labels.dtype == test.labels.dtype == np.int64
    assert train.classes == test.classes == ("0", "1", "2")
    assert (train.channels, train.image_size, train.name) == (3, (8, 8), "set")
    assert train.augmentation == data.Augmentation(crop_padding=1, flip=True)
    assert test.statistics() == train.statistics()


def test_keras_names_and_label_columns(tmp_path: Path) -> None:
    spec = saved(tmp_path, x_train=IMAGES, y_train=LABELS[:, None], x_test=IMAGES[:3], y_test=LABELS[:3, None])
    np.testing.assert_array_equal(data.open(spec).labels, LABELS)
    assert len(data.open(spec, "test")) == 3


def test_grey_images_without_channel_axis_are_not_flipped(tmp_path: Path) -> None:
    source = data.open(saved(tmp_path, images=IMAGES[..., 0], labels=LABELS))
    assert source.channels == 1
    assert source.images().shape == (6, 8, 8, 1)
    assert source.image(2).shape == (8, 8, 1)
    assert not source.augmentation.flip


def test_class_names(tmp_path: Path) -> None:
    names = data.open(saved(tmp_path, images=IMAGES, labels=LABELS, classes=np.array(["a", "bc", "ü", "d"]))).classes
    assert names == ("a", "bc", "ü", "d")
    names = data.open(saved(tmp_path, images=IMAGES, labels=LABELS, classes=np.array([b"a", b"b", b"c"]))).classes
    assert names == ("a", "b", "c")


def test_compressed_and_fortran_ordered(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "set.npz", images=np.asfortranarray(IMAGES), labels=LABELS.astype(np.uint8))
    source = data.open(f"npz:{tmp_path / 'set.npz'}")
    np.testing.assert_array_equal(source.images(), IMAGES)
    images, _ = data.pipeline(source, "tensor", batch_size=6).batch(0, 0)
    assert images.shape == (6, 3, 8, 8)


def test_image_size(tmp_path: Path) -> None:
    source = data.open(saved(tmp_path, images=IMAGES[:, :, :6], labels=LABELS), image_size=16)
    assert source.image_size == (16, 16)
    assert source.images().shape == (6, 16, 16, 3)
    assert source.augmentation.crop_padding == 2


def test_non_square_images(tmp_path: Path) -> None:
    source = data.open(saved(tmp_path, images=IMAGES[:, :, :6], labels=LABELS))
    assert source.image_size == (8, 6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": None}, "has no array 'images'; found: labels; expected: images and labels"),
        ({"labels": None}, "has no array 'labels'; found: images; expected: images and labels"),
        ({"images": IMAGES / 255}, "'images' is float64; images must be uint8"),
        ({"images": IMAGES.astype(object)}, "'images' holds Python objects"),
        ({"labels": LABELS.astype(object)}, "'labels' holds Python objects"),
        ({"images": IMAGES[0, 0]}, r"'images' has the shape \(8, 3\)"),
        ({"images": IMAGES[:0]}, r"'images' has the shape \(0, 8, 8, 3\)"),
        ({"images": IMAGES.transpose(0, 3, 1, 2)}, r"\(6, 3, 8, 8\) has its channels first"),
        ({"images": np.zeros((6, 4, 8, 32), np.uint8)}, r"\(6, 4, 8, 32\) has its channels first"),
        ({"classes": np.array(["ant", "bee", "ant"])}, "'classes' names 'ant' twice"),
        ({"labels": LABELS[:5]}, "'images' holds 6 images but 'labels' 5 labels"),
        ({"labels": LABELS.astype(np.float32)}, "'labels' is float32"),
        ({"labels": np.eye(6, dtype=int)}, r"'labels' is int64 \(6, 6\); labels must be integers"),
        ({"labels": LABELS - 1}, "'labels' holds the label -1"),
        ({"labels": LABELS * 2}, "goes up to 4, which makes 5 classes, but only 3 occur: no image has the label 1"),
        ({"classes": np.array(["a", "b"])}, r"label 2, but there are 2 classes; labels must lie in 0\.\.1"),
        ({"classes": np.array([1, 2, 3])}, "'classes' is int64"),
        ({"classes": np.array(["a", None, "b"])}, "'classes' holds Python objects"),
    ],
)
def test_wrong_arrays_are_explained(tmp_path: Path, changes: dict[str, np.ndarray | None], message: str) -> None:
    arrays = {"images": IMAGES, "labels": LABELS} | changes
    spec = saved(tmp_path, **{name: array for name, array in arrays.items() if array is not None})
    with pytest.raises(UserError, match=message) as caught:
        data.open(spec)
    assert "set.npz" in str(caught.value)


def test_test_split_needs_its_arrays(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has no array 'test_images'; found: images, labels"):
        data.open(saved(tmp_path, images=IMAGES, labels=LABELS), "test")


def test_test_labels_beyond_the_training_classes(tmp_path: Path) -> None:
    spec = saved(tmp_path, images=IMAGES, labels=LABELS, test_images=IMAGES[:1], test_labels=np.array([3]))
    with pytest.raises(UserError, match="'test_labels' holds the label 3, but there are 3 classes"):
        data.open(spec, "test")


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot read .*gone\.npz: No such file"):
        data.open(f"npz:{tmp_path / 'gone.npz'}")


def test_folder_instead_of_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="it is a folder"):
        data.open(f"npz:{tmp_path}")


def of_version(version: int) -> bytes:
    """An empty archive with a member that says it needs this version of the format."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("images.npy", b"")
    content = bytearray(file.getvalue())
    content[content.index(b"PK\x01\x02") + 6] = version
    return bytes(content)


@pytest.mark.parametrize("content", [b"", b"hello, world", b"PK\x03\x04 cut", of_version(99)])
def test_other_files(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "set.npz").write_bytes(content)
    with pytest.raises(UserError, match=r"set\.npz is no complete \.npz file"):
        data.open(f"npz:{tmp_path / 'set.npz'}")


def test_single_array_file(tmp_path: Path) -> None:
    np.save(tmp_path / "set.npy", IMAGES)
    with pytest.raises(UserError, match=r"set\.npy holds a single array"):
        data.open(f"npz:{tmp_path / 'set.npy'}")


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_damaged_array(tmp_path: Path, save: Callable[..., None]) -> None:
    save(tmp_path / "set.npz", images=IMAGES // 128, labels=LABELS)  # compressible, so that decompression fails
    content = bytearray((tmp_path / "set.npz").read_bytes())
    content[200:250] = bytes(range(200, 250))  # within the pixels of 'images'
    (tmp_path / "set.npz").write_bytes(content)
    with pytest.raises(UserError, match=r"set\.npz: 'images' cannot be read .*damaged"):
        data.open(f"npz:{tmp_path / 'set.npz'}")


def test_an_array_larger_than_the_memory(tmp_path: Path) -> None:
    file = tmp_path / "large.npz"
    header = b"{'descr': '|u1', 'fortran_order': False, 'shape': (100000, 100000, 1000, 3), }"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("images.npy", b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header)
    with pytest.raises(UserError, match=r"'images' (does not fit the memory|cannot be read)"):
        data.open(f"npz:{file}")


def test_members_that_are_no_arrays_or_cannot_be_unpacked(tmp_path: Path) -> None:
    file = tmp_path / "other.npz"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("images", b"some text")
    with pytest.raises(UserError, match="'images' is no array"):
        data.open(f"npz:{file}")
    np.savez(file, images=np.zeros((4, 8, 8, 3), np.uint8), labels=np.arange(4))
    content = bytearray(file.read_bytes())
    for flags in (content.index(b"PK\x03\x04") + 6, content.index(b"PK\x01\x02") + 8):
        content[flags] |= 1  # says that it is encrypted
    file.write_bytes(content)
    with pytest.raises(UserError, match=r"'images' cannot be read \(.*encrypted"):
        data.open(f"npz:{file}")


def test_a_pipe_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.npz")
    with pytest.raises(UserError, match="not a regular file"):
        data.open(f"npz:{tmp_path / 'pipe.npz'}")


def test_an_array_that_was_compressed_and_exceeds_the_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.savez_compressed(tmp_path / "set.npz", images=np.zeros((1000, 8, 8, 3), np.uint8), labels=np.zeros(1000, int))
    monkeypatch.setattr(npz, "free_memory", lambda device: 100_000)
    with pytest.raises(UserError, match=r"'images' does not fit the memory: it takes 0.0 GiB, but 0.0 GiB are free"):
        data.open(f"npz:{tmp_path / 'set.npz'}")


def test_images_that_cannot_be_resized(tmp_path: Path) -> None:
    spec = saved(tmp_path, images=np.zeros((2, 1, 60_000, 3), np.uint8), labels=np.arange(2))
    with pytest.raises(UserError, match=r"it has 1×60000 pixels .* shorter side of 64 it would have 245,760,000"):
        data.open(spec, image_size=64)
    for side in (0, 10_001):
        with pytest.raises(UserError, match=f"image_size is {side}; give a number of pixels, 1 to 10,000"):
            data.open(spec, image_size=side)
    spec = saved(tmp_path, images=np.zeros((100_000, 1, 1, 1), np.uint8), labels=np.zeros(100_000, int))
    with pytest.raises(UserError, match=r"100,000 images of 10000×10000×1 take 9313\.2 GiB, but .* GiB are free"):
        data.open(spec, image_size=10_000)
