"""What becomes of files that are not plain images: converted, named in one line, or skipped on request."""

from __future__ import annotations

import inspect
import os
import struct
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sample_sources import DALI, every_kind, needs_dali, pixels, write_folder

from fastnas import data
from fastnas.data.image import decode, encoded, size_of
from fastnas.errors import UserError


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "animals", {"bee": 4, "cat": 4})


def write_truncated(path: Path) -> None:
    Image.fromarray(pixels(7)).save(path)
    path.write_bytes(path.read_bytes()[:-30])


def write_damaged(path: Path) -> None:
    """A PNG with its end, whose pixels do not decompress."""
    Image.fromarray(pixels(7)).save(path)
    content = bytearray(path.read_bytes())
    place = content.index(b"IDAT") + 4
    length = struct.unpack(">I", content[place - 8 : place - 4])[0]
    content[place : place + length] = b"\x00" * length
    content[place + length : place + length + 4] = struct.pack(">I", zlib.crc32(content[place - 4 : place + length]))
    path.write_bytes(content)


def served(source: data.Source, kind: str, **options) -> tuple[torch.Tensor, torch.Tensor]:
    batches = list(data.pipeline(source, kind, batch_size=3, train=False, **options).epoch(0))
    return tuple(torch.cat(parts) for parts in zip(*batches, strict=True))


def expected(source: data.Source) -> torch.Tensor:
    mean, std = (torch.tensor(numbers).view(1, 3, 1, 1) for numbers in source.statistics())
    images = np.stack([decode(path, None if source.shorter_side is None else 10) for path in source.files])
    return (torch.from_numpy(images).permute(0, 3, 1, 2) / 255 - mean) / std


@needs_dali
def test_unusual_files_are_converted_alike_by_every_kind(root: Path) -> None:
    photo, turned = Image.fromarray(pixels(3)), Image.Exif()
    turned[0x0112] = 6
    Image.fromarray(pixels(4)).convert("CMYK").save(root / "cat" / "cmyk.jpg", quality=95)
    photo.convert("L").save(root / "cat" / "grey.png")
    photo.convert("L").save(root / "cat" / "grey.jpg")
    photo.convert("1").save(root / "cat" / "two.png")
    photo.convert("P").save(root / "cat" / "palette.png")
    photo.save(root / "cat" / "turned.jpg", exif=turned)
    photo.save(root / "cat" / "turned.png", exif=turned)
    photo.save(root / "cat" / "keyed.png", transparency=photo.getpixel((3, 2)))
    photo.save(root / "cat" / "upright.jpg", exif=Image.Exif())
    photo.save(root / "cat" / "progressive.jpg", progressive=True)
    photo.save(root / "cat" / "halved.jpg", subsampling=2)
    for name in ("a.gif", "a.bmp", "a.webp", "a.tiff"):
        photo.save(root / "cat" / name)
    photo.save(root / "cat" / "really_a_png.jpg", format="png")
    wide = (np.arange(100, dtype=np.uint16) * 655).reshape(10, 10)
    Image.fromarray(wide).save(root / "cat" / "deep.png")
    for mode in ("RGBA", "LA"):
        image = photo.convert(mode)
        image.putalpha(Image.fromarray(pixels(5)[..., 0]))
        image.save(root / "cat" / f"{mode}.png")
    source = data.open(f"folder:{root}")
    images, labels = served(source, "torchvision")
    torch.testing.assert_close(images, expected(source), rtol=0, atol=1e-6)
    assert labels.tolist() == [0] * 4 + [1] * 23
    for kind in ("tensor", "dali"):
        others, other_labels = served(source, kind)
        difference = (others - images).abs().amax((1, 2, 3))
        assert {source.files[row].name: value.item() for row, value in enumerate(difference) if value} == {}
        assert torch.equal(other_labels, labels)


@every_kind
def test_one_pixel_is_enlarged(root: Path, kind: str) -> None:
    for suffix in ("jpg", "png"):
        Image.new("RGB", (1, 1), (10, 200, 30)).save(root / "cat" / f"tiny.{suffix}")
    source = data.open(f"folder:{root}", image_size=10)
    images, _ = served(source, kind)
    assert images.shape == (10, 3, 10, 10)
    steps = 1 / 255 / np.array(source.statistics()[1])  # [3], one level
    assert ((images - expected(source)).abs().amax((0, 2, 3)).numpy() < 1.01 * steps).all()
    assert images[-2:].std((2, 3)).max() == 0


@pytest.mark.parametrize("name", ["cut.jpg", "cut.png"])
def test_truncated_files_are_named_when_the_folder_is_opened(root: Path, name: str) -> None:
    write_truncated(root / "cat" / name)
    with pytest.raises(UserError, match=rf"^cannot read the image {root}/cat/{name}: .*truncated") as caught:
        data.open(f"folder:{root}")
    assert "\n" not in str(caught.value)


@every_kind
def test_a_complete_file_with_something_behind_its_end_is_fine(root: Path, kind: str) -> None:
    for name, size in (("a.jpg", 5), ("b.jpg", 5000), ("c.png", 5000)):
        Image.fromarray(pixels(7)).save(root / "cat" / name)
        with (root / "cat" / name).open("ab") as file:
            file.write(b"x" * size)
    source = data.open(f"folder:{root}")
    torch.testing.assert_close(served(source, kind)[0], expected(source), rtol=0, atol=1e-6)


def test_damage_in_the_pixels_stops_before_any_batch_where_all_are_loaded(root: Path) -> None:
    write_damaged(root / "cat" / "damaged.png")
    source = data.open(f"folder:{root}")
    for kind in ("tensor", "auto"):
        with pytest.raises(UserError, match=f"^cannot read the image {root}/cat/damaged.png"):
            data.pipeline(source, kind, batch_size=3)
    with pytest.raises(UserError, match=f"^cannot read the image {root}/cat/damaged.png"):
        source.statistics()


@pytest.mark.parametrize("kind", [DALI, "torchvision"])
@pytest.mark.parametrize("damage", ["vanished", "truncated", "text", "damaged"])
def test_a_file_that_becomes_unreadable_is_named_in_its_turn(root: Path, kind: str, damage: str) -> None:
    source = data.open(f"folder:{root}")
    pipeline = data.pipeline(source, kind, batch_size=3, train=False)
    before = list(pipeline.epoch(0))
    path, content = root / "cat" / "2.png", (root / "cat" / "2.png").read_bytes()
    if damage == "vanished":
        path.unlink()
    else:
        {"truncated": write_truncated, "damaged": write_damaged, "text": lambda p: p.write_text("hello")}[damage](path)
    batches = pipeline.epoch(0)
    for expected_batch in before[:2]:
        assert torch.equal(next(batches)[0], expected_batch[0])
    with pytest.raises(UserError, match=f"^cannot read the image {path}: ") as caught:
        next(batches)
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match=f"^cannot read the image {path}: "):
        pipeline.batch(0, 2)
    path.write_bytes(content)  # and the pipeline goes on where it was
    for (images, labels), (other_images, other_labels) in zip(pipeline.epoch(0, 1), before[1:], strict=True):
        assert torch.equal(images, other_images)
        assert torch.equal(labels, other_labels)


@pytest.mark.parametrize("kind", [DALI, "torchvision"])
def test_a_file_that_changes_its_size_is_named(root: Path, kind: str) -> None:
    source = data.open(f"folder:{root}")
    pipeline = data.pipeline(source, kind, batch_size=3, train=False)
    Image.fromarray(pixels(0, (10, 11))).save(root / "bee" / "1.png")
    with pytest.raises(UserError, match=f"^images differ in size: {root}/bee/1.png is 10x11"):
        next(pipeline.epoch(0))


def test_skip_unreadable_leaves_out_and_lists(root: Path) -> None:
    whole = data.open(f"folder:{root}")
    write_truncated(root / "bee" / "0a.jpg")
    write_damaged(root / "cat" / "0a.png")
    (root / "cat" / "text.jpg").write_text("hello")
    with pytest.raises(UserError, match=r"0a\.jpg"):
        data.open(f"folder:{root}")
    source = data.open(f"folder:{root}", skip_unreadable=True)
    assert source.files == whole.files
    assert source.labels.tolist() == whole.labels.tolist()
    assert [line.split()[4].rstrip(":") for line in source.left_out] == [
        str(root / name) for name in ("bee/0a.jpg", "cat/0a.png", "cat/text.jpg")
    ]
    assert source.left_out[2].endswith("it is not an image in a known format; replace or remove the file")
    assert source.subset([1, 2]).left_out == source.left_out
    assert whole.left_out == ()


def test_skip_unreadable_holds_for_the_training_split_behind_a_test_split(tmp_path: Path) -> None:
    for name in ("train", "test"):
        write_folder(tmp_path / name, {"a": 2, "b": 2})
    write_truncated(tmp_path / "train" / "a" / "cut.png")
    data.open(f"folder:{tmp_path}", "test", skip_unreadable=True).statistics()
    with pytest.raises(UserError, match=r"cut\.png"):
        data.open(f"folder:{tmp_path}", "test").statistics()


def test_a_class_of_which_nothing_is_left(root: Path) -> None:
    (root / "ant").mkdir()
    write_truncated(root / "ant" / "cut.jpg")
    with pytest.raises(UserError, match=f"no image of the class folder {root}/ant can be read.*cut.jpg"):
        data.open(f"folder:{root}", skip_unreadable=True)


def test_an_unreadable_folder_within_a_class_can_be_skipped(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (root / "cat" / "kittens").mkdir()
    scandir = os.scandir

    def guarded(path):  # not by access rights, which do not bind a superuser
        if Path(path) == root / "cat" / "kittens":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", guarded)
    with pytest.raises(UserError, match=f"cannot read the folder {root}/cat/kittens: Permission denied"):
        data.open(f"folder:{root}")
    source = data.open(f"folder:{root}", skip_unreadable=True)
    assert len(source) == 8
    assert source.left_out[0].startswith(f"cannot read the folder {root}/cat/kittens: Permission denied")


@pytest.mark.filterwarnings("ignore:Image size")
def test_images_with_too_many_pixels_are_named(root: Path) -> None:
    path = root / "cat" / "large.png"
    Image.new("1", (12_000, 9_000)).save(path)
    for read in (size_of, decode, encoded):
        with pytest.raises(UserError, match=rf"{path}: it has more than 100,000,000 pixels; replace or remove"):
            read(path)
    with pytest.raises(UserError, match=r"large\.png: it has more than 100,000,000 pixels"):
        data.open(f"folder:{root}", image_size=8)
    Image.new("1", (10_000, 9_500)).save(path)  # more than Pillow likes, fewer than are too many
    assert size_of(path) == (9_500, 10_000)


def test_a_strip_of_pixels_is_not_enlarged_endlessly(root: Path) -> None:
    Image.new("RGB", (60_000, 1)).save(root / "cat" / "strip.png")
    for folder in (root / "bee", root / "cat"):
        for number in range(4):
            Image.new("RGB", (12, 12)).save(folder / f"{number}.png")
    with pytest.raises(UserError, match=r"strip\.png: it has 1×60000 pixels .* would have 245,760,000, more than"):
        data.open(f"folder:{root}", image_size=64)
    with pytest.raises(UserError, match=r"strip\.png: it has 1×60000"):
        decode(root / "cat" / "strip.png", 64)
    source = data.open(f"folder:{root}", image_size=64, skip_unreadable=True)
    assert len(source) == 8
    assert "strip.png: it has 1×60000 pixels" in source.left_out[0]
    assert data.open(f"folder:{root}", image_size=8).image(8).shape == (8, 8, 3)


def test_a_tree_deeper_than_calls_go(root: Path) -> None:
    deep = root / "cat" / "/".join("d" * 300)
    deep.mkdir(parents=True)
    Image.fromarray(pixels(1)).save(deep / "z.png")
    before = sys.getrecursionlimit()
    try:
        sys.setrecursionlimit(len(inspect.stack(0)) + 200)
        assert data.open(f"folder:{root}").files[-1] == deep / "z.png"
    finally:
        sys.setrecursionlimit(before)


def test_a_link_to_its_own_folder(root: Path) -> None:
    (root / "self").symlink_to(".")
    with pytest.raises(UserError, match=r"the link .*self leads to .*, whose images would count twice"):
        data.open(f"folder:{root}")
    (root / "self").unlink()
    (root / "self").symlink_to("self")
    assert len(data.open(f"folder:{root}")) == 8
