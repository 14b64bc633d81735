"""Images a second of every pipeline, against a torchvision DataLoader with the same augmentation.

Every call serves an epoch, with loaders and threads that live on from one to the next, so that no contender works ahead
while another one is measured. Three sets: an array in memory, the same images as a tree of JPEGs, and JPEGs of
ImageNet's size. A fourth case compares a weight step of the supernet with the batch that it waits for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms
from torchvision.datasets import ImageFolder

from benchmarks.harness import FASTNAS, Row, compare
from benchmarks.harness.networks import CLASSES, Options, build, describe
from fastnas import data
from fastnas.data.augmentation import Augmentation
from fastnas.data.cifar import CIFAR10
from fastnas.data.dali import is_installed
from fastnas.data.imagenet import AUGMENTATION, IMAGENET
from fastnas.data.source import ArraySource

BASELINE = "DataLoader, 2 workers"
SMALL_IMAGES, LARGE_IMAGES = 4096, 128
BATCH = 64
PADDING, CUTOUT = 4, 16
LARGE_SIZE = (375, 500)  # height and width, the most frequent of ImageNet
THREADS = (1, 2)


class Cutout:
    """As in the code of DARTS: a hole around a uniform pixel."""

    def __call__(self, image: torch.Tensor) -> torch.Tensor:
        _, height, width = image.shape
        mask = np.ones((height, width), np.float32)
        row, column = np.random.randint(height), np.random.randint(width)
        top, left = np.clip([row - CUTOUT // 2, column - CUTOUT // 2], 0, None)
        mask[top : row + CUTOUT // 2, left : column + CUTOUT // 2] = 0
        return image * torch.from_numpy(mask)


CIFAR_RECIPE = transforms.Compose(
    [
        transforms.RandomCrop(32, padding=PADDING),
        transforms.RandomHorizontalFlip(),
        transforms.ToTensor(),
        transforms.Normalize(*CIFAR10),
        Cutout(),
    ]
)
IMAGENET_RECIPE = transforms.Compose(
    [
        transforms.RandomResizedCrop(224),
        transforms.RandomHorizontalFlip(),
        transforms.ColorJitter(*AUGMENTATION.color_jitter),
        transforms.ToTensor(),
        transforms.Normalize(*IMAGENET),
    ]
)


class Resident(Dataset[Any]):
    """An array as torchvision's CIFAR10 serves it: image by image, by way of Pillow."""

    def __init__(self, source: ArraySource) -> None:
        self.source = source

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Any:
        return CIFAR_RECIPE(Image.fromarray(self.source.array[index])), self.source.labels[index]


def measure(device: torch.device, seconds: float, options: Options) -> list[Row]:
    batch = options.batch or BATCH
    count = options.images or SMALL_IMAGES
    large = options.images or LARGE_IMAGES
    with TemporaryDirectory() as folder:
        resident = write_small(Path(folder, "small"), count)
        write_large(Path(folder, "large"), large)
        tree = replace(data.open(f"folder:{folder}/small"), augmentation=resident.augmentation, published=CIFAR10)
        imagenet = data.open(f"imagenet:{folder}/large")
        rows: list[Row] = []
        for name, source, dataset, kinds in (
            ("array 32×32", resident, Resident(resident), ("tensor", "dali")),
            ("JPEG tree 32×32", tree, ImageFolder(f"{folder}/small", CIFAR_RECIPE), ("dali",)),
            ("JPEG tree 500×375", imagenet, ImageFolder(f"{folder}/large/train", IMAGENET_RECIPE), ("dali",)),
        ):
            contenders = loaders(dataset, batch, device)
            for kind in kinds:
                if kind == "dali" and not is_installed():
                    continue
                for threads in THREADS:
                    contenders[f"{kind}, {threads} thread{'s' * (threads > 1)}"] = pipeline(
                        source, kind, batch, threads, device
                    )
            rows += compare(
                "data",
                f"{name}, {len(source)} images, batch {batch}",
                "epoch",
                contenders,
                baseline=BASELINE,
                least_bytes=len(source) * int(np.prod(source.image_size)) * 3 * (1 + 4),
                images=len(source) // batch * batch,
                device=device,
                seconds=seconds,
                warm_up=1,
            )
    return rows + weight_step(resident, device, seconds, options)


def loaders(dataset: Dataset[Any], batch: int, device: torch.device) -> dict[str, Callable[[], None]]:
    """The usual recipe with 0 and 2 workers."""
    result: dict[str, Callable[[], None]] = {}
    for workers in (0, 2):
        loader = DataLoader(
            dataset,
            batch_size=batch,
            shuffle=True,
            drop_last=True,
            num_workers=workers,
            persistent_workers=workers > 0,
            pin_memory=device.type == "cuda",
        )
        result[f"DataLoader, {workers} workers"] = partial(serve, loader, device, 1)
    return result


def pipeline(source: data.Source, kind: str, batch: int, threads: int, device: torch.device) -> Callable[[], None]:
    made = data.pipeline(source, kind, batch_size=batch, workers=threads, device=device)
    epochs = iter(range(10**9))

    def run() -> None:
        serve(made.epoch(next(epochs)), device, threads if kind == "tensor" else 1)

    return run


def serve(batches: Iterable[Any], device: torch.device, threads: int) -> None:
    """Takes all batches to the device, with `threads` threads for torch's operators."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for images, labels in batches:
            images.to(device, non_blocking=True)
            labels.to(device, non_blocking=True)
    finally:
        torch.set_num_threads(before)


def weight_step(source: ArraySource, device: torch.device, seconds: float, options: Options) -> list[Row]:
    """The batch of the tensor pipeline beside the step that uses it: 1 / speed-up is the share spent waiting."""
    space, batch = options.space or "egnas", options.batch or BATCH
    network = build(space, FASTNAS, device, options.channels, options.layers)
    optimizer = torch.optim.SGD(network.weight_parameters(), lr=1e-6, momentum=0.9)
    made = data.pipeline(source, "tensor", batch_size=batch, device=device)
    images, labels = made.batch(0, 0)
    step = iter(range(10**9))

    def train() -> None:
        optimizer.zero_grad(set_to_none=True)
        F.cross_entropy(network(images), labels).backward()
        optimizer.step()

    return compare(
        "data",
        describe(space, batch, replace(options, size=32)),
        "weight step and its batch",
        {"weight step": train, "tensor": lambda: made.batch(0, next(step))},
        baseline="weight step",
        least_bytes=batch * 32 * 32 * 3 * (1 + 4),
        images=batch,
        device=device,
        seconds=seconds,
        notes={"tensor": "its share of a step is 1 / (1 + speed-up)"},
    )


def write_small(folder: Path, count: int) -> ArraySource:
    """Smooth images of 32×32 as an array, and as JPEGs folder/<class>/<number>.jpg."""
    generator = np.random.default_rng(0)
    array = np.stack([smooth(generator, (32, 32), 4, 8) for _ in range(count)])  # [N, 32, 32, 3]
    labels = np.arange(count) % CLASSES  # [N]
    for label in range(CLASSES):
        (folder / str(label)).mkdir(parents=True)
    for number, (image, label) in enumerate(zip(array, labels.tolist(), strict=True)):
        Image.fromarray(image).save(folder / str(label) / f"{number}.jpg", quality=95)
    return ArraySource(
        spec="synthetic",
        name="synthetic",
        split="train",
        classes=tuple(map(str, range(CLASSES))),
        labels=labels,
        array=array,
        channels=3,
        image_size=(32, 32),
        augmentation=Augmentation(PADDING, True, CUTOUT),
        published=CIFAR10,
    )


def write_large(folder: Path, count: int) -> None:
    """JPEGs of ImageNet's usual size, about 110 kB as there, in its layout."""
    generator = np.random.default_rng(1)
    for label in range(CLASSES):
        (folder / "train" / str(label)).mkdir(parents=True)
        (folder / "val" / str(label)).mkdir(parents=True)
    for number in range(count):
        image = Image.fromarray(smooth(generator, LARGE_SIZE, 16, 10))
        image.save(folder / "train" / str(number % CLASSES) / f"{number}.JPEG", quality=92)


def smooth(generator: np.random.Generator, size: tuple[int, int], scale: int, noise: float) -> np.ndarray:
    """Colours that change over `scale` pixels, and noise, so that a JPEG is about as large as one of a photograph."""
    height, width = size
    small = generator.integers(0, 256, (height // scale + 1, width // scale + 1, 3), dtype=np.uint8)
    image = np.asarray(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC), np.float32)
    return (image + generator.normal(0, noise, image.shape)).clip(0, 255).astype(np.uint8)  # [H, W, 3]
