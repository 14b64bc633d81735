"""Image files to RGB pixels, and images to another size."""

from __future__ import annotations

import io
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import ExifTags, Image
from torchvision.transforms.v2 import functional as transforms

from fastnas.data.memory import free_memory
from fastnas.errors import UserError

# Formats that Pillow knows by name only, and those that hold pages, drawings or films.
NO_PICTURES = frozenset({"BUFR", "EPS", "FITS", "GRIB", "HDF5", "MPEG", "WMF"})
EXTENSIONS = frozenset(
    extension
    for extension, kind in Image.registered_extensions().items()
    if kind in Image.OPEN and kind not in NO_PICTURES
)
"""The extensions of all files that Pillow reads as images."""

MOST_PIXELS = 100_000_000
"""Of an image file, and of one that is resized. A small file can claim any number of pixels."""
# An image is read or refused: what Pillow warns of besides would be printed between the lines of a run.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")

# What brings an image upright, by EXIF orientation. ImageOps.exif_transpose stumbles over damaged EXIF blocks.
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


# Formats whose files say where they end: what must stand near the end of a complete one.
ENDS = {"JPEG": b"\xff\xd9", "PNG": b"IEND"}
TAIL = 64  # bytes; some programs write a little after the end


def size_of(path: Path, shorter_side: int | None = None) -> tuple[int, int]:
    """Height and width of an image file once it is upright, from its header.

    A file that seems to be cut off, or whose format does not tell, is decoded to find out.

    Args:
        path: the file.
        shorter_side: what its shorter side will be resized to.

    Raises:
        UserError: the file cannot be read, is not an image or is truncated, or has more than `MOST_PIXELS` pixels, as
            it is or resized.
    """
    try:
        with path.open("rb") as file, _open(file) as image:
            if not _seems_complete(image, file):
                image.load()
            width, height = image.size
            # Looking the orientation up takes time, and a square has the same size in all of them.
            on_its_side = width != height and _orientation(image) >= 5
            size = (width, height) if on_its_side else (height, width)
            if shorter_side is not None:
                check_fitted(size, shorter_side)
            return size
    except Exception as error:
        raise _unreadable(path, error) from error


def _open(file: Any) -> Image.Image:
    image = Image.open(file)
    if image.width * image.height > MOST_PIXELS:
        raise Image.DecompressionBombError
    return image


def _seems_complete(image: Image.Image, file: io.BufferedReader) -> bool:
    if image.format not in ENDS:
        return False
    place = file.tell()  # where Pillow goes on
    length = file.seek(0, io.SEEK_END)
    file.seek(max(0, length - TAIL))
    complete = ENDS[image.format] in file.read()
    file.seek(place)
    return complete


def decode(path: Path, image_size: int | None = None, shorter_side: int | None = None) -> np.ndarray:
    """Decodes an image file, upright, to RGB.

    Transparent parts are laid on white, 16-bit grey is scaled to 8 bits, and of an animation the first frame counts.

    Args:
        path: the file.
        image_size: if given, the image is resized (shorter side) and cropped (centre) to this many pixels a side.
        shorter_side: what to resize the shorter side to; None for image_size.

    Returns:
        uint8 array [H, W, 3].

    Raises:
        UserError: the file cannot be read, is not an image, is truncated or has no 8- or 16-bit pixels.
    """
    try:
        return _decode(path, image_size, shorter_side)
    except Exception as error:  # damaged files make Pillow's readers raise nearly anything
        raise _unreadable(path, error) from error


def _decode(file: Path | io.BytesIO, image_size: int | None = None, shorter_side: int | None = None) -> np.ndarray:
    with _open(file) as image:
        rgb = _to_rgb(image)
        orientation = _orientation(image)
        if orientation > 1:
            rgb = rgb.transpose(TURNS[orientation])
        if image_size is None:
            return np.array(rgb)
        check_fitted((rgb.height, rgb.width), shorter_side or image_size)
        return np.array(_fit(rgb, image_size, shorter_side or image_size))


def encoded(path: Path) -> np.ndarray:
    """An image file for decoders other than Pillow: uint8 [n].

    That is its content where all decoders read it alike: a complete JPEG or PNG, upright, opaque, 8-bit grey or RGB.
    Anything else is decoded as `decode` does and written as PPM, which all decoders read alike.

    Raises:
        UserError: as `decode`.
    """
    try:
        content = path.read_bytes()
        if not (_is_plain_jpeg(content) or _is_plain_png(content)):
            pixels = _decode(io.BytesIO(content))  # [H, W, 3]
            content = b"P6 %d %d 255\n" % (pixels.shape[1], pixels.shape[0]) + pixels.tobytes()
        return np.frombuffer(content, dtype=np.uint8)
    except Exception as error:
        raise _unreadable(path, error) from error


def _is_plain_png(content: bytes) -> bool:
    grey_or_rgb = content[24:26] in (b"\x08\x00", b"\x08\x02")  # bits a channel, type of colours
    if content[:8] != b"\x89PNG\r\n\x1a\n" or not grey_or_rgb or b"IEND" not in content[-TAIL:]:
        return False
    return b"tRNS" not in content and b"eXIf" not in content  # a chance match in the pixels only costs time


def _is_plain_jpeg(content: bytes) -> bool:
    if content[:2] != b"\xff\xd8" or ENDS["JPEG"] not in content[-TAIL:]:
        return False
    place, has_exif = 2, False
    while place + 10 <= len(content) and content[place] == 0xFF:
        marker = content[place + 1]
        if marker in (0xC0, 0xC1, 0xC2):  # start of a baseline, extended or progressive frame
            bits, channels = content[place + 4], content[place + 9]
            return bits == 8 and channels in (1, 3) and not (has_exif and _is_turned(content))
        has_exif |= marker == 0xE1
        place += 1 if marker == 0xFF else 2 + int.from_bytes(content[place + 2 : place + 4], "big")
    return False


def _is_turned(content: bytes) -> bool:
    with Image.open(io.BytesIO(content)) as image:
        return _orientation(image) > 1


def fitted_size(size: tuple[int, int], shorter_side: int) -> tuple[int, int]:
    """Height and width of an image whose shorter side is resized to `shorter_side`, as torchvision rounds them."""
    height, width = size
    if height <= width:
        return shorter_side, int(shorter_side * width / height)
    return int(shorter_side * height / width), shorter_side


def check_fitted(size: tuple[int, int], shorter_side: int) -> None:
    """UserError where an image of this height and width, resized so, has too many pixels: 1×60000 does."""
    height, width = fitted_size(size, shorter_side)
    if height * width > MOST_PIXELS:
        raise UserError(
            f"it has {size[0]}×{size[1]} pixels (height × width), and with a shorter side of {shorter_side} it would "
            f"have {height * width:,}, more than {MOST_PIXELS:,}; crop it first"
        )


def centre(size: tuple[int, int], image_size: int) -> tuple[int, int]:
    """Top and left of the middle square of `image_size` pixels, as torchvision rounds them."""
    height, width = size
    return round((height - image_size) / 2), round((width - image_size) / 2)


def resized_side(image_size: int, evaluated_share: float | None) -> int:
    """What to resize the shorter side to, for a centre crop of `image_size` pixels to cover `evaluated_share` of it."""
    return image_size if evaluated_share is None else round(image_size / evaluated_share)


def resize(images: np.ndarray, image_size: int, shorter_side: int | None = None) -> np.ndarray:
    """Resizes and centre-crops: [N, H, W, C] → [N, image_size, image_size, C].

    Args:
        images: uint8 [N, H, W, C].
        image_size: pixels a side of the crop.
        shorter_side: what to resize the shorter side to, bilinear and antialiased; None for image_size.

    Raises:
        UserError: the resized images have more than `MOST_PIXELS` pixels, or all together more than the memory.
    """
    count, height, width, channels = images.shape
    check_fitted((height, width), shorter_side or image_size)
    if (wanted := count * image_size**2 * channels) > (free := free_memory(torch.device("cpu"))):
        raise UserError(
            f"{count:,} images of {image_size}×{image_size}×{channels} take {wanted / 2**30:.1f} GiB, but "
            f"{free / 2**30:.1f} GiB are free; give a smaller image_size (--image-size) or fewer images"
        )
    result = np.empty((count, image_size, image_size, channels), dtype=np.uint8)  # [N, S, S, C]
    for start in range(0, count, 1000):  # in blocks: the float copy needs four times the memory
        block = torch.from_numpy(images[start : start + 1000]).permute(0, 3, 1, 2)  # [n, C, H, W]
        # Float, because the integer kernel rounds differently from one processor to the next.
        resized = _fit(block.float(), image_size, shorter_side or image_size).round_().clamp_(0, 255)  # [n, C, S, S]
        result[start : start + 1000] = resized.to(torch.uint8).permute(0, 2, 3, 1).numpy()
    return result


def _fit(image: Any, size: int, shorter_side: int) -> Any:
    resized = transforms.resize(image, [shorter_side], transforms.InterpolationMode.BILINEAR, antialias=True)
    return transforms.center_crop(resized, [size, size])


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 (upright) to 8; from 5 on, width and height are swapped."""
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # a damaged EXIF block says nothing about the pixels: upright, as viewers show it
        return 1
    return orientation if orientation in TURNS else 1


def pixels_of(image: Image.Image) -> np.ndarray:
    """An opened image as uint8 [H, W, C]: grey as one channel, anything else as RGB. ValueError for float pixels."""
    if image.mode in ("1", "L") and "transparency" not in image.info:
        return np.array(image.convert("L"))[..., None]
    return np.array(_to_rgb(image))


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "F":
        raise ValueError("its pixels are floating-point numbers; save it with 8 or 16 bits a channel")
    if image.mode.startswith("I"):  # 16-bit grey, for which convert("RGB") would clip everything above 255 to white
        pixels = np.asarray(image).astype(np.int64)  # [H, W]
        if pixels.min() < 0 or pixels.max() > 65535:
            raise ValueError("its pixels exceed 16 bits; save it with 8 or 16 bits a channel")
        return Image.fromarray(((pixels + 128) // 257).astype(np.uint8)).convert("RGB")
    if image.mode in ("RGBA", "RGBa", "LA", "La", "PA") or "transparency" in image.info:
        background = Image.new("RGBA", image.size, "white")
        background.alpha_composite(image.convert("RGBA"))
        return background.convert("RGB")
    return image.convert("RGB")


def _unreadable(path: Path, error: Exception) -> UserError:
    if isinstance(error, Image.UnidentifiedImageError):
        reason = "it is not an image in a known format"
    elif isinstance(error, Image.DecompressionBombError):
        reason = f"it has more than {MOST_PIXELS:,} pixels"
    else:
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
    return UserError(f"cannot read the image {path}: {reason}; replace or remove the file")
