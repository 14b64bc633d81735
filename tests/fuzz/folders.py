"""Folders of images: damaged files, odd names, links, pipes, formats, splits."""

from __future__ import annotations

import os
from functools import cache
from io import BytesIO
from pathlib import Path
from random import Random

import numpy as np
from fuzz.cases import Case, outcome, run_kind
from fuzz.mutations import change_bytes
from hypothesis import strategies as st
from PIL import Image

from fastnas import data
from fastnas.data.source import Source

FORMATS = {"png": "png", "jpg": "jpeg", "bmp": "bmp", "gif": "gif", "tif": "tiff", "webp": "webp", "ppm": "ppm"}
MODES = ["RGB", "RGB", "RGB", "L", "1", "P", "RGBA", "LA", "CMYK", "I;16", "F", "I"]
NAMES = ["cat", "[red]", ":car:", "train", "test", "val", "Training", ".hidden", "__x", "ä", "a\u0308", "~"]
ODD = [b"\xff\xfe", b"\x1b[1m", b"x" * 255, b"new\nline", b"-", b"*"]
file_names = st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=30)


@cache
def _picture(seed: int, mode: str, size: tuple[int, int], extension: str) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    file = BytesIO()
    image = Image.fromarray(pixels)
    try:
        (image.convert("I").convert(mode) if ";" in mode else image.convert(mode)).save(file, FORMATS[extension])
    except (OSError, ValueError, KeyError):  # no such mode in this format
        return _picture(seed, "RGB", size, extension)
    return file.getvalue()


def _file(rng: Random, folder: Path, number: int, usual: bool) -> None:
    extension = rng.choice(list(FORMATS))
    size = (8, 8) if usual or rng.random() < 0.9 else (rng.choice([1, 7, 500]), rng.choice([1, 8, 3000]))
    content = _picture(rng.randrange(20), "RGB" if usual else rng.choice(MODES), size, extension)
    if not usual and rng.random() < 0.15:
        content = change_bytes(rng, content)
    (folder / f"{number}.{extension if usual or rng.random() < 0.9 else 'png'}").write_bytes(content)


def _oddity(case: Case, folder: Path) -> None:
    """Something that should not be there, or that is unusual."""
    rng = case.rng
    match rng.randrange(9):
        case 0:
            os.mkfifo(folder / rng.choice(["pipe.png", "pipe"]))
        case 1:
            target = rng.choice([".", "..", "/dev/zero", "/dev/null", "gone", "link.png", "0.png", "/"])
            (folder / rng.choice(["link.png", "link"])).symlink_to(target)
        case 2:
            (folder / rng.choice(["empty.png", "empty.jpg"])).write_bytes(b"")
        case 3:
            (folder / "notes.txt").write_text("hello")
        case 4:
            name = os.fsdecode(rng.choice(ODD)) if case.chance(0.5) else case.draw(file_names)
            (folder / name).mkdir(exist_ok=True)
            _file(rng, folder / name, 0, True)
        case 5:
            deep = folder / "/".join("d" * rng.choice([3, 300]))
            deep.mkdir(parents=True, exist_ok=True)
            _file(rng, deep, 0, True)
        case 6:
            (folder / "bomb.png").write_bytes(_bomb())
        case 7:
            Image.new("1", (rng.choice([60_000, 3]), 1)).save(folder / "strip.png")
        case 8:
            os.link(_a_file(folder), folder / "again.png")


def _a_file(folder: Path) -> Path:
    return next(path for path in sorted(folder.rglob("*")) if path.is_file())


@cache
def _bomb() -> bytes:
    """20,000 × 20,000 pixels in 48 KiB."""
    file = BytesIO()
    Image.new("1", (20_000, 20_000)).save(file, "png", compress_level=9)
    return file.getvalue()


def one(case: Case) -> str:
    rng = case.rng
    root = case.folder / "images"
    usual = case.chance(0.3)
    names = ["train/ant", "train/bee", "test/ant", "test/bee"] if case.chance(0.3) else ["ant", "bee"]
    if not usual:
        names += rng.sample(NAMES, rng.choice([0, 0, 1, 2]))
    for name in names:
        (root / name).mkdir(parents=True, exist_ok=True)
        for number in range(rng.randint(1, 3)):
            _file(rng, root / name, number, usual)
    if not usual and case.chance(0.7):
        where = root / rng.choice([*names, "."])
        if where == root or any(where.iterdir()):
            _oddity(case, root / names[0] if where == root and case.chance(0.5) else where)
    kind, split = rng.choice(["folder", "folder", "imagenet"]), rng.choice(["train", "train", "test"])
    size, skip = (8 if kind == "imagenet" else rng.choice([None, 8, 8, 20])), case.chance(0.3)
    case.given = f"{kind} {split} {size} {skip}: {sorted(map(str, root.rglob('*')))[:60]}"

    def read() -> tuple[Source, np.ndarray]:
        source = data.open(f"{kind}:{root}", split, image_size=size, skip_unreadable=skip)
        return source, source.images()

    def check(found: tuple[Source, np.ndarray]) -> None:
        source, images = found
        assert images.shape == (len(source.labels), *source.image_size, 3)
        assert sorted(set(source.labels.tolist())) == list(range(len(source.classes)))
        if kind == "imagenet":
            return
        canonical = case.folder / "canonical"
        for number, (label, image) in enumerate(zip(source.labels, images, strict=True)):
            folder = canonical / "train" / f"{label:04d}"
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(folder / f"{number:06d}.png")
        (canonical / "test").mkdir()
        again = data.open(f"folder:{canonical}")
        assert np.array_equal(again.images(), images)
        assert again.labels.tolist() == source.labels.tolist()

    if usual and (split == "train" or len(names) == 4):
        check(read())
        return "result"
    return outcome(read, check)


def run(deadline: float, seed: int) -> dict[str, int]:
    """See `fuzz.cases.run_kind`."""
    return run_kind(one, deadline, seed)
