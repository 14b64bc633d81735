"""`npz:FILE`: images and labels as arrays in one NumPy file."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import torch

from fastnas.data.augmentation import Augmentation
from fastnas.data.image import resize, resized_side
from fastnas.data.memory import free_memory
from fastnas.data.source import ArraySource
from fastnas.data.split import in_test_split
from fastnas.errors import UserError
from fastnas.input_file import check_file, path_of

# (training images, training labels, test images, test labels): ours, then Keras's
LAYOUTS = (("images", "labels", "test_images", "test_labels"), ("x_train", "y_train", "x_test", "y_test"))
MOST_CHANNELS = 4  # of what is surely a picture; more only where the other dimensions leave no doubt
EXPECTED = "images and labels (with test_images and test_labels for a test split) or x_train, y_train, x_test, y_test"


def open_npz(
    location: str,
    split: str,
    image_size: int | None = None,
    download: bool = False,
    evaluated_share: float | None = None,
    test_share: float | None = None,
) -> ArraySource:
    """Opens a file written by `numpy.savez` or `numpy.savez_compressed`.

    The arrays are `images` uint8 [N, H, W] or [N, H, W, C] and `labels` integers [N], for the test split
    `test_images` and `test_labels`, and optionally `classes` (names). Keras's names `x_train`, `y_train`, `x_test`,
    `y_test` work too. Without `classes` the names are "0" to the largest training label. Pickled objects are never
    loaded. Only colour images are flipped by default: grey ones are often digits or letters.

    Args:
        location: the file.
        split: "train" or "test".
        image_size: if given, images are resized (shorter side) and cropped (centre) to this many pixels a side.
        download: not needed.
        evaluated_share, test_share: see `fastnas.data.open`.

    Raises:
        UserError: the file or an array is missing, damaged, or not as described above.
    """
    file = path_of(location)
    with _load(file) as arrays:
        names = next((names for names in LAYOUTS if names[0] in arrays), LAYOUTS[0])
        share = None if names[2] in arrays else test_share
        images_name, labels_name = names[:2] if split == "train" or share is not None else names[2:]
        images = _images(file, arrays, images_name)  # [N, H, W, C]
        labels = _labels(file, arrays, labels_name)  # [N]
        classes = _classes(file, arrays, names[1])
    if len(images) != len(labels):
        raise UserError(f"{file}: '{images_name}' holds {len(images)} images but '{labels_name}' {len(labels)} labels")
    if labels.max() >= len(classes):
        raise UserError(
            f"{file}: '{labels_name}' holds the label {labels.max()}, but there are {len(classes)} classes; "
            f"labels must lie in 0..{len(classes) - 1}"
        )
    kept = 0
    if share is not None:
        in_test = in_test_split(images, labels, classes, share)  # [N]
        kept = int(in_test.sum())
        images, labels = (array[in_test == (split == "test")] for array in (images, labels))
    originals = None
    if image_size is not None:
        originals = images  # [N, H', W', C]
        images = resize(originals, image_size, resized_side(image_size, evaluated_share))  # [N, S, S, C]
    _, height, width, channels = images.shape
    return ArraySource(
        spec=f"npz:{location}",
        name=file.stem,
        split=split,
        classes=classes,
        labels=labels,
        array=images,
        originals=originals,
        channels=channels,
        image_size=(height, width),
        augmentation=Augmentation(crop_padding=min(height, width) // 8, flip=channels == 3),
        evaluated_share=evaluated_share,
        test_share=share,
        kept_for_test=kept if split == "train" else 0,
    )


def _load(file: Path) -> np.lib.npyio.NpzFile:
    check_file(file, str(file), "give a file written by numpy.savez")
    try:
        arrays = np.load(file, allow_pickle=False)
    except OSError as error:
        raise UserError(f"cannot read {file}: {error.strerror or error}; give a file written by numpy.savez") from error
    except Exception as error:  # damaged bytes make the reader of archives raise nearly anything
        raise UserError(f"{file} is no complete .npz file; give a file written by numpy.savez") from error
    if not isinstance(arrays, np.lib.npyio.NpzFile):
        raise UserError(f"{file} holds a single array; give a .npz file with {EXPECTED}")
    return arrays


def _array(file: Path, arrays: np.lib.npyio.NpzFile, name: str) -> np.ndarray:
    if name not in arrays:
        found = ", ".join(arrays.files) or "nothing"
        raise UserError(f"{file} has no array '{name}'; found: {found}; expected: {EXPECTED}")
    _check_memory(file, arrays, name)
    try:
        array = arrays[name]
    except MemoryError as error:
        raise UserError(f"{file}: '{name}' does not fit the memory; store fewer or smaller images") from error
    except (RuntimeError, NotImplementedError) as error:  # encryption, and compression that Python does not know
        raise UserError(f"{file}: '{name}' cannot be read ({error}); write the file with numpy.savez") from error
    except Exception as error:  # damaged bytes make NumPy's reader raise nearly anything
        if "allow_pickle" in str(error):
            raise UserError(f"{file}: '{name}' holds Python objects, not numbers; save it as a plain array") from error
        raise UserError(f"{file}: '{name}' cannot be read ({error}); the file is damaged, write it again") from error
    if not isinstance(array, np.ndarray):  # some other file in the archive
        raise UserError(f"{file}: '{name}' is no array; write the file with numpy.savez")
    return array


def _check_memory(file: Path, arrays: np.lib.npyio.NpzFile, name: str) -> None:
    """An array that was compressed can be far larger than its file."""
    members = arrays.zip.NameToInfo if arrays.zip is not None else {}
    member = members.get(f"{name}.npy") or members.get(name)
    if member is not None and member.file_size > (free := free_memory(torch.device("cpu"))):
        raise UserError(
            f"{file}: '{name}' does not fit the memory: it takes {member.file_size / 2**30:.1f} GiB, but "
            f"{free / 2**30:.1f} GiB are free; store fewer or smaller images"
        )


def _images(file: Path, arrays: np.lib.npyio.NpzFile, name: str) -> np.ndarray:
    images = _array(file, arrays, name)
    if images.dtype != np.uint8:
        raise UserError(f"{file}: '{name}' is {images.dtype}; images must be uint8 with values 0..255")
    if images.ndim not in (3, 4) or 0 in images.shape:
        raise UserError(f"{file}: '{name}' has the shape {images.shape}; images must be [N, H, W] or [N, H, W, C]")
    if images.ndim == 3:
        images = images[..., None]  # [N, H, W, 1]
    elif images.shape[1] <= MOST_CHANNELS < images.shape[3]:
        raise UserError(f"{file}: '{name}' {images.shape} has its channels first; store it as [N, H, W, C]")
    return np.ascontiguousarray(images)


def _labels(file: Path, arrays: np.lib.npyio.NpzFile, name: str) -> np.ndarray:
    labels = _array(file, arrays, name)
    if labels.ndim == 2 and labels.shape[1] == 1:  # Keras keeps CIFAR's labels as a column
        labels = labels[:, 0]
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer) or len(labels) == 0:
        raise UserError(f"{file}: '{name}' is {labels.dtype} {labels.shape}; labels must be integers [N], N at least 1")
    labels = labels.astype(np.int64)  # [N]
    if labels.min() < 0:
        raise UserError(f"{file}: '{name}' holds the label {labels.min()}; labels must be class numbers from 0 upwards")
    return labels


def _classes(file: Path, arrays: np.lib.npyio.NpzFile, labels_name: str) -> tuple[str, ...]:
    if "classes" in arrays:
        names = _array(file, arrays, "classes")
        if names.ndim != 1 or names.dtype.kind not in "US":
            raise UserError(f"{file}: 'classes' is {names.dtype} {names.shape}; it must be an array of strings [K]")
        classes = tuple(
            name.decode("utf-8", "backslashreplace") if isinstance(name, bytes) else name for name in names.tolist()
        )
        if twice := [name for name, count in Counter(classes).items() if count > 1]:
            raise UserError(f"{file}: 'classes' names {twice[0]!r} twice; give every class a name of its own")
        return classes
    used = np.unique(_labels(file, arrays, labels_name))  # [K]
    gaps = np.flatnonzero(used != np.arange(len(used)))
    if len(gaps):
        raise UserError(
            f"{file}: '{labels_name}' goes up to {used[-1]}, which makes {used[-1] + 1} classes, but only {len(used)} "
            f"occur: no image has the label {gaps[0]}; number the classes without gaps or add 'classes'"
        )
    return tuple(str(label) for label in range(len(used)))
