from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps
from sample_sources import pixels
from torchvision.transforms.v2 import functional as transforms

from fastnas.data.image import decode, encoded, resize, size_of
from fastnas.errors import UserError

GREY = np.arange(0, 96, 2, dtype=np.uint8).reshape(6, 8)  # [H, W]


def saved(path: Path, image: Image.Image, **options) -> Path:
    image.save(path, **options)
    return path


def test_colour_is_kept(tmp_path: Path) -> None:
    image = pixels(0, (6, 8))
    path = saved(tmp_path / "a.png", Image.fromarray(image))
    np.testing.assert_array_equal(decode(path), image)
    assert size_of(path) == (6, 8)


def test_grey_becomes_three_equal_channels(tmp_path: Path) -> None:
    image = decode(saved(tmp_path / "a.png", Image.fromarray(GREY)))
    np.testing.assert_array_equal(image, np.repeat(GREY[..., None], 3, axis=2))


def test_black_and_white_becomes_0_and_255(tmp_path: Path) -> None:
    image = decode(saved(tmp_path / "a.png", Image.fromarray(GREY > 40)))
    np.testing.assert_array_equal(image[..., 0], np.where(GREY > 40, 255, 0))


def test_palette_becomes_its_colours(tmp_path: Path) -> None:
    image = Image.fromarray(GREY // 32).convert("P")
    image.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
    colours = np.array([[10, 20, 30], [40, 50, 60], [70, 80, 90]])
    np.testing.assert_array_equal(decode(saved(tmp_path / "a.png", image)), colours[GREY // 32])


def test_cmyk_becomes_rgb(tmp_path: Path) -> None:
    ink = Image.new("CMYK", (16, 16), (0, 255, 255, 0))  # magenta and yellow: red
    red = decode(saved(tmp_path / "a.jpg", ink, quality=95))
    assert red.shape == (16, 16, 3)
    assert red[..., 0].min() > 200
    assert red[..., 1:].max() < 60


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparent_parts_are_laid_on_white(tmp_path: Path, mode: str) -> None:
    alpha = np.zeros((6, 8), dtype=np.uint8)
    alpha[:, 4:] = 255
    image = Image.new(mode, (8, 6))  # black
    image.putalpha(Image.fromarray(alpha))
    result = decode(saved(tmp_path / "a.png", image))
    assert (result[:, :4] == 255).all()
    assert (result[:, 4:] == 0).all()


def test_transparent_palette_colour_is_white(tmp_path: Path) -> None:
    image = Image.fromarray(GREY // 32).convert("P")
    image.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
    result = decode(saved(tmp_path / "a.png", image, transparency=1))
    colours = np.array([[10, 20, 30], [255, 255, 255], [70, 80, 90]])
    np.testing.assert_array_equal(result, colours[GREY // 32])


def test_16_bit_grey_is_scaled_not_clipped(tmp_path: Path) -> None:
    levels = np.array([[0, 128, 129, 257, 25700, 65406, 65407, 65535]], dtype=np.uint16)
    result = decode(saved(tmp_path / "a.png", Image.fromarray(levels)))
    assert result[0, :, 0].tolist() == [0, 0, 1, 1, 100, 254, 255, 255]
    assert result.shape == (1, 8, 3)


def test_floating_point_pixels_are_refused(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.tiff", Image.fromarray(GREY.astype(np.float32)))
    with pytest.raises(UserError, match=r"a\.tiff: its pixels are floating-point"):
        decode(path)


def test_32_bit_pixels_are_refused(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.tiff", Image.fromarray(GREY.astype(np.int32) + 65536))
    with pytest.raises(UserError, match=r"a\.tiff: its pixels exceed 16 bits"):
        decode(path)


@pytest.mark.parametrize("kind", ["png", "jpg"])
def test_exif_rotation_is_applied(tmp_path: Path, kind: str) -> None:
    image = np.zeros((16, 32, 3), dtype=np.uint8)
    image[:8, :8] = 255  # white corner at the top left
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise: the corner belongs at the top right
    path = saved(tmp_path / f"a.{kind}", Image.fromarray(image), exif=exif)
    upright = decode(path)
    assert size_of(path) == upright.shape[:2] == (32, 16)
    assert upright[:8, 8:].min() > 200
    assert upright[8:].max() < 60


@pytest.mark.parametrize("kind", ["png", "jpg"])
def test_damaged_exif_is_ignored(tmp_path: Path, kind: str) -> None:
    image = Image.fromarray(pixels(0, (16, 32)))
    path = saved(tmp_path / f"nonsense.{kind}", image, exif=b"Exif\0\0nonsense")
    assert size_of(path) == decode(path).shape[:2] == (16, 32)
    exif = Image.Exif()
    exif[0x010F], exif[0x0112] = "maker", 6
    bad_maker = exif.tobytes().replace(b"\x01\x0f", b'\x01"')  # text where this tag must have a number
    path = saved(tmp_path / f"maker.{kind}", image, exif=bad_maker)
    assert size_of(path) == decode(path).shape[:2] == (32, 16)


@pytest.mark.parametrize("kind", ["png", "tif", "webp", "jpg"])
@pytest.mark.parametrize("orientation", [0, 1, 2, 3, 4, 5, 6, 7, 8, 9])
def test_every_exif_orientation(tmp_path: Path, orientation: int, kind: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = saved(tmp_path / f"a.{kind}", Image.fromarray(pixels(0, (16, 32))), exif=exif)
    with Image.open(path) as image:
        upright = np.array(ImageOps.exif_transpose(image))
    np.testing.assert_array_equal(decode(path), upright)
    assert size_of(path) == upright.shape[:2]


def test_image_size_resizes_the_shorter_side_and_crops_the_centre(tmp_path: Path) -> None:
    stripes = np.zeros((20, 60, 3), dtype=np.uint8)
    stripes[:, 20:40] = 255
    path = saved(tmp_path / "a.png", Image.fromarray(stripes))
    result = decode(path, 10)
    assert result.shape == (10, 10, 3)
    assert result[:, 1:-1].min() == 255
    assert decode(path, 40).shape == (40, 40, 3)


@pytest.mark.parametrize("channels", [1, 3, 5])
@pytest.mark.parametrize("size", [5, 12, 30])
def test_resize_follows_torchvision(channels: int, size: int) -> None:
    images = np.stack([pixels(seed, (12, 20), channels) for seed in range(3)])  # [N, H, W, C]
    result = resize(images, size)
    assert result.shape == (3, size, size, channels)
    for image, resized in zip(images, result, strict=True):
        wanted = transforms.center_crop(transforms.resize(transforms.to_image(image), [size]), [size, size])
        assert np.abs(wanted.permute(1, 2, 0).numpy().astype(int) - resized).max() <= 1


def test_resize_works_in_blocks() -> None:
    images = np.random.default_rng(0).integers(0, 256, (1003, 4, 4, 1), dtype=np.uint8)
    np.testing.assert_array_equal(resize(images, 4), images)


def test_missing_file_is_named(tmp_path: Path) -> None:
    for read in (decode, size_of):
        with pytest.raises(UserError, match=r"cannot read the image .*gone\.jpg: No such file"):
            read(tmp_path / "gone.jpg")


def test_text_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "text.jpg"
    path.write_text("hello")
    for read in (decode, size_of):
        with pytest.raises(UserError, match=r"text\.jpg: it is not an image in a known format; replace or remove"):
            read(path)


@pytest.mark.parametrize("kind", ["jpg", "png", "webp", "bmp"])
def test_truncated_file_is_named(tmp_path: Path, kind: str) -> None:
    path = saved(tmp_path / f"cut.{kind}", Image.fromarray(pixels(0, (40, 40))))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(UserError, match=rf"cannot read the image .*cut\.{kind}: .*; replace or remove") as caught:
        decode(path)
    assert "\n" not in str(caught.value)


def moved_behind_the_pixels(content: bytes, name: bytes) -> bytes:
    """A PNG whose chunk of this name comes right before its end."""
    place = content.index(name) - 4
    length = 12 + int.from_bytes(content[place : place + 4], "big")
    chunk, rest = content[place : place + length], content[:place] + content[place + length :]
    end = rest.index(b"IEND") - 4
    return rest[:end] + chunk + rest[end:]


def test_other_decoders_get_plain_files_as_they_are_and_others_as_ppm(tmp_path: Path) -> None:
    photo, turned, upright = Image.fromarray(pixels(0, (6, 8))), Image.Exif(), Image.Exif()
    turned[0x0112], upright[0x0112] = 6, 1
    grey = photo.convert("L")
    plain = [
        saved(tmp_path / "rgb.jpg", photo),
        saved(tmp_path / "grey.jpg", grey),
        saved(tmp_path / "progressive.jpg", photo, progressive=True),
        saved(tmp_path / "upright.jpg", photo, exif=upright),
        saved(tmp_path / "rgb.png", photo),
        saved(tmp_path / "grey.png", grey),
    ]
    for path in plain:
        assert encoded(path).tobytes() == path.read_bytes()
    behind = saved(tmp_path / "behind.png", photo, exif=turned)
    behind.write_bytes(moved_behind_the_pixels(behind.read_bytes(), b"eXIf"))
    unusual = [
        saved(tmp_path / "cmyk.jpg", photo.convert("CMYK")),
        saved(tmp_path / "turned.jpg", photo, exif=turned),
        saved(tmp_path / "turned.png", photo, exif=turned),
        behind,
        saved(tmp_path / "keyed.png", photo, transparency=photo.getpixel((3, 2))),
        saved(tmp_path / "keyed_grey.png", grey, transparency=grey.getpixel((3, 2))),
        saved(tmp_path / "rgba.png", photo.convert("RGBA")),
        saved(tmp_path / "palette.png", photo.convert("P")),
        saved(tmp_path / "deep.png", Image.fromarray(np.arange(48, dtype=np.uint16).reshape(6, 8) * 1300)),
        saved(tmp_path / "a.gif", photo),
        saved(tmp_path / "a.bmp", photo),
        saved(tmp_path / "a.webp", photo),
        saved(tmp_path / "a.tiff", photo),
    ]
    for path in unusual:
        expected = decode(path)
        header = f"P6 {expected.shape[1]} {expected.shape[0]} 255\n".encode()
        assert encoded(path).tobytes() == header + expected.tobytes(), path.name


@pytest.mark.parametrize("kind", ["jpg", "png", "webp", "bmp"])
def test_truncated_files_are_not_handed_to_other_decoders(tmp_path: Path, kind: str) -> None:
    path = saved(tmp_path / f"cut.{kind}", Image.fromarray(pixels(0, (40, 40))))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    for read in (encoded, size_of):
        with pytest.raises(UserError, match=rf"cannot read the image .*cut\.{kind}: .*; replace or remove"):
            read(path)
