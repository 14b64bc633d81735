"""npz files: damaged, of other arrays, of headers that promise something else."""

from __future__ import annotations

import io
import zipfile
from typing import Any

import numpy as np
from fuzz.cases import Case, outcome, run_kind
from fuzz.mutations import change_bytes

from fastnas import data
from fastnas.data.source import Source

DTYPES = ["u1", "u1", "u1", "i1", "i8", "f4", "f8", "?", "c8", "U3", "S2", "O", "M8[s]", ">i4", "V4", "u8"]
SHAPES = [(), (0,), (6,), (6, 1), (6, 8), (6, 8, 8), (6, 8, 8, 1), (6, 8, 8, 3), (6, 3, 8, 8), (6, 8, 8, 3, 1)]
NAMES = ["images", "labels", "classes", "test_images", "test_labels", "x_train", "y_train", "x_test", "y_test", "other"]
HEADERS = ["(6, 8, 8, 3)", "(100000, 100000, 1000, 3)", "(-1,)", "(2**70,)", "(6, 8", "()", "'x'", "(6.0,)", "(1,)*99"]


def _array(case: Case) -> np.ndarray:
    rng = case.rng
    shape, dtype = rng.choice(SHAPES), np.dtype(rng.choice(DTYPES))
    raw = np.frombuffer(rng.randbytes(int(np.prod(shape)) * 8), dtype=np.uint8)  # [8·n]
    if dtype.kind == "O":
        return np.array(raw[: int(np.prod(shape))].tolist(), dtype=object).reshape(shape)
    values = raw[::8] % rng.choice([1, 3, 255])
    if dtype.kind in "US":
        return values.astype(dtype).reshape(shape)
    if dtype.kind == "V":
        return np.frombuffer(raw[: 4 * values.size].tobytes(), dtype=dtype).reshape(shape)
    return values.astype(dtype).reshape(shape)


def _fitting(case: Case) -> dict[str, Any]:
    rng = case.rng
    count, size, channels = rng.randint(4, 12), rng.choice([1, 4, 8]), rng.choice([1, 3])
    pixels = np.frombuffer(rng.randbytes(2 * count * size * size * channels), dtype=np.uint8)
    images = pixels.reshape(2, count, size, size, channels)
    labels = np.arange(count) % rng.choice([2, 3])
    arrays: dict[str, Any] = {"images": images[0], "labels": labels, "test_images": images[1], "test_labels": labels}
    if channels == 1 and case.chance(0.5):
        arrays |= {"images": images[0, ..., 0], "test_images": images[1, ..., 0]}
    if case.chance(0.3):
        arrays["classes"] = np.array(["a", "[red]", "ü"])
    if case.chance(0.3):
        arrays = dict(zip(("x_train", "y_train", "x_test", "y_test"), list(arrays.values())[:4], strict=True))
    for name in arrays:
        if arrays[name].dtype == np.int64 and case.chance(0.5):
            arrays[name] = arrays[name].astype(rng.choice(["u1", "i2", ">i4", "u8"]))
    return arrays


def _with_header(content: bytes, header: str) -> bytes:
    """The array images.npy of an archive with another shape in its header."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as archive, zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as changed:
        for name in archive.namelist():
            member = archive.read(name)
            if name in ("images.npy", "x_train.npy"):
                text = f"{{'descr': '|u1', 'fortran_order': False, 'shape': {header}, }}\n".encode()
                member = b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + member[128:]
            changed.writestr(name, member)
    return out.getvalue()


def one(case: Case) -> str:
    rng = case.rng
    arrays, same = _fitting(case), False
    way = rng.randrange(5)
    if way == 0:
        arrays[rng.choice([*arrays, *NAMES])] = _array(case)
    elif way == 1:
        arrays.pop(rng.choice(list(arrays)))
    file = io.BytesIO()
    rng.choice([np.savez, np.savez_compressed])(file, **arrays)
    content = file.getvalue()
    if way == 2:
        content = change_bytes(rng, content)
    elif way == 3:
        content = _with_header(content, rng.choice(HEADERS))
    else:
        same = way == 4
    path = case.folder / "set.npz"
    path.write_bytes(content)
    split, size = rng.choice(["train", "test"]), rng.choice([None, None, 4, 9])
    case.given = f"{split}, image_size {size}: {content!r}"

    def check(source: Source) -> None:
        images = source.images()
        assert images.dtype == np.uint8
        assert images.shape == (len(source.labels), *source.image_size, source.channels)
        assert 0 <= source.labels.min() <= source.labels.max() < len(source.classes)
        if split == "train":
            canonical = case.folder / "canonical.npz"
            np.savez(canonical, images=images, labels=source.labels, classes=np.array(source.classes))
            again = data.open(f"npz:{canonical}")
            assert np.array_equal(again.images(), images)
            assert again.labels.tolist() == source.labels.tolist()
            assert again.classes == source.classes
            assert again.statistics() == source.statistics()
        if same and size is None:
            wanted = [array for name, array in arrays.items() if name.endswith(("images", "train", "test"))]
            names = [name for name in arrays if ("test" in name) == (split == "test") and name[0] != "c"]
            assert len(wanted) >= 2
            assert np.array_equal(images.reshape(arrays[names[0]].shape), arrays[names[0]])
            assert source.labels.tolist() == arrays[names[1]].tolist()

    if same:
        check(data.open(f"npz:{path}", split, image_size=size))
        return "result"
    return outcome(lambda: data.open(f"npz:{path}", split, image_size=size), check)


def run(deadline: float, seed: int) -> dict[str, int]:
    """See `fuzz.cases.run_kind`."""
    return run_kind(one, deadline, seed)
