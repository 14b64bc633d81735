"""`./flowers` as users have it: three classes of 60 images of three sizes, with odd ones and other files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

SIZES = ((40, 56), (48, 48), (64, 36))  # height, width


def make_flowers(root: Path, seed: int) -> None:
    """Stripes of another width for every class, so that there is something to learn."""
    generator = np.random.default_rng(seed)
    for label, name in enumerate(("daisy", "rose", "water lily")):
        folder = root / name
        folder.mkdir(parents=True)
        for number in range(60):
            height, width = SIZES[number % 3]
            waves = 128 + 90 * np.sin((label + 1) * np.arange(width) / 4)  # [W]
            grey = (waves + generator.normal(0, 25, (height, width))).clip(0, 255).astype(np.uint8)  # [H, W]
            color = np.dstack([grey, np.roll(grey, 5, 0), 255 - grey])  # [H, W, 3]
            save(folder, number, grey, color)
        (folder / "Thumbs.db").write_bytes(b"no image")
        (folder / ".hidden.png").write_bytes(b"no image")
    (root / "README.txt").write_text("Pictures of flowers.")
    (root / ".DS_Store").write_bytes(b"\0")


def save(folder: Path, number: int, grey: np.ndarray, color: np.ndarray) -> None:  # [H, W], [H, W, 3]
    image = Image.fromarray(color)
    match number % 12:
        case 0:
            Image.fromarray(grey).save(folder / f"{number:02}.png")
        case 1:
            Image.fromarray(np.dstack([color, grey])).save(folder / f"{number:02}.png")  # transparent
        case 2:
            Image.fromarray(grey.astype(np.uint16) * 257).save(folder / f"{number:02}.png")  # 16 bits
        case 3:
            image.convert("CMYK").save(folder / f"{number:02}.jpg")
        case 4:
            image.convert("P").save(folder / f"{number:02}.gif")
        case 5:
            exif = Image.Exif()
            exif[0x0112] = 6  # turned by a quarter
            image.save(folder / f"{number:02}.JPG", exif=exif)
        case 6:
            (folder / "from my phone").mkdir(exist_ok=True)
            image.save(folder / "from my phone" / f"{number:02} é.webp")
        case _:
            image.save(folder / f"{number:02}.jpg")
