"""Image files to RGB pixels, and images to another size."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import ExifTags, Image
from torchvision.transforms.v2 import functional as transforms

from fastnas.errors import UserError

EXTENSIONS = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"})

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


def size_of(path: Path) -> tuple[int, int]:
    """Height and width of an image file once it is upright, from its header.

    Raises:
        UserError: the file cannot be read or is no image.
    """
    try:
        with Image.open(path) as image:
            if image.format == "TIFF":
                image.load()  # Pillow turns these upright itself, but not before
            width, height = image.size
            # Looking the orientation up takes time, and a square has the same size in all of them.
            on_its_side = width != height and _orientation(image) >= 5
            return (width, height) if on_its_side else (height, width)
    except Exception as error:
        raise _unreadable(path, error) from error


def decode(path: Path, image_size: int | None = None) -> np.ndarray:
    """Decodes an image file, upright, to RGB.

    Transparent parts are laid on white, 16-bit grey is scaled to 8 bits, and of an animation the first frame counts.

    Args:
        path: the file.
        image_size: if given, the image is resized (shorter side) and cropped (centre) to this many pixels a side.

    Returns:
        uint8 array [H, W, 3].

    Raises:
        UserError: the file cannot be read, is no image, is truncated or has pixels that are no 8- or 16-bit colours.
    """
    try:
        with Image.open(path) as image:
            rgb = _to_rgb(image)
            orientation = _orientation(image)
            if orientation > 1:
                rgb = rgb.transpose(TURNS[orientation])
            return np.array(rgb if image_size is None else _fit(rgb, image_size))
    except Exception as error:  # damaged files make Pillow's readers raise nearly anything
        raise _unreadable(path, error) from error


def resize(images: np.ndarray, image_size: int) -> np.ndarray:
    """Resizes (shorter side, bilinear, antialiased) and centre-crops: [N, H, W, C] → [N, image_size, image_size, C]."""
    count, _, _, channels = images.shape
    result = np.empty((count, image_size, image_size, channels), dtype=np.uint8)  # [N, S, S, C]
    for start in range(0, count, 1000):  # in blocks: the float copy needs four times the memory
        block = torch.from_numpy(images[start : start + 1000]).permute(0, 3, 1, 2)  # [n, C, H, W]
        # Float, because the integer kernel rounds differently from one processor to the next.
        resized = _fit(block.float(), image_size).round_().clamp_(0, 255)  # [n, C, S, S]
        result[start : start + 1000] = resized.to(torch.uint8).permute(0, 2, 3, 1).numpy()
    return result


def _fit(image: Any, size: int) -> Any:
    resized = transforms.resize(image, [size], transforms.InterpolationMode.BILINEAR, antialias=True)
    return transforms.center_crop(resized, [size, size])


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 (upright) to 8; from 5 on, width and height are swapped."""
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # a damaged EXIF block says nothing about the pixels: upright, as viewers show it
        return 1
    return orientation if orientation in TURNS else 1


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
        reason = "it is no image in a known format"
    else:
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
    return UserError(f"cannot read the image {path}: {reason}; replace or remove the file")
