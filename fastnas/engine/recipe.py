"""How a derived network is trained: the options of a retraining, and what follows from them at each epoch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from fastnas.data import Augmentation
from fastnas.errors import UserError
from fastnas.process import given


@dataclass(frozen=True)
class DerivedOptions:
    """The network."""

    genotype: str | None = None
    """Name of a published genotype, such as DARTS_V2, or the path of a JSON file."""
    channels: int = 36
    """Channels of a node in the first cell."""
    layers: int = 20
    """Number of cells; those at a third and at two thirds are reduction cells."""
    stem: Literal["cifar", "imagenet"] = "cifar"
    """cifar keeps the image size, imagenet divides it by 8."""
    auxiliary: bool | None = None
    """Train with an auxiliary head; None: where the images have the size that it needs."""
    backend: Literal["auto", "fused", "reference"] = "auto"
    """fused: our operators; reference: plain PyTorch; auto: fused."""


@dataclass(frozen=True)
class RecipeOptions:
    """The training: SGD."""

    epochs: int = 600
    """Passes over the training images."""
    learning_rate: float = 0.025
    """At the first epoch after the warm-up."""
    learning_rate_min: float = 0.0
    """Where the cosine ends."""
    schedule: Literal["cosine", "linear", "exponential"] = "cosine"
    """cosine to the minimum; linear to 0, five times slower in the last five epochs (PC-DARTS); exponential."""
    learning_rate_decay: float = 0.97
    """Factor of an epoch (exponential)."""
    learning_rate_warm_up: int = 0
    """Epochs over which the rate rises linearly to --learning-rate, instead of following the schedule."""
    legacy_scheduler: bool = False
    """Use the rate of the next epoch, as code that calls scheduler.step() first does in today's PyTorch."""
    momentum: float = 0.9
    """Of SGD."""
    weight_decay: float = 3e-4
    """L2 penalty on all weights."""
    clip: float = 5.0
    """Largest gradient norm of a step; 0 for no limit."""
    auxiliary_weight: float = 0.4
    """Of the auxiliary head's loss."""
    label_smoothing: float = 0.0
    """Share of the target that goes to all classes alike."""
    drop_path: float = 0.2
    """Largest probability that the output of an operation is dropped for an image."""
    drop_path_schedule: Literal["linear", "constant", "scheduled"] = "linear"
    """linear: rises from 0 to --drop-path; scheduled: rises, and with the depth of the cell, too (NASNet)."""
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    """Of activations, by autocast; float16 scales the loss."""
    ema: float = 0.0
    """Share that the averaged weights keep in a step, such as 0.9999; 0: no averaging. Averages are what is tested."""
    accumulate: int = 1
    """Batches whose gradients make one step of SGD."""
    compile: bool = False
    """Train through torch.compile, which takes minutes to begin and then replaces the fused operators."""
    channels_last: bool = True
    """Memory format of images and weights; the fused operators need it."""

    def __post_init__(self) -> None:
        for name in ("epochs", "accumulate"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}, expected at least 1.")
        for name in (
            *("learning_rate", "learning_rate_min", "learning_rate_decay", "momentum", "weight_decay", "clip"),
            *("auxiliary_weight", "learning_rate_warm_up"),
        ):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise UserError(f"{name} is {value}, expected a finite number of at least 0.")
        for name in ("label_smoothing", "drop_path", "ema"):
            if not 0 <= getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}, expected at least 0 and less than 1.")

    def rate(self, epoch: int) -> float:
        """The learning rate of an epoch: a pure function, so that a resumed run cannot start from a wrong place."""
        if epoch < self.learning_rate_warm_up:
            return self.learning_rate * (epoch + 1) / self.learning_rate_warm_up
        epoch += self.legacy_scheduler
        left = self.epochs - epoch
        if self.schedule == "exponential":
            return self.learning_rate * self.learning_rate_decay**epoch
        if self.schedule == "linear":
            tail = 5 if self.epochs > 5 else 0
            share = (left - tail) / (self.epochs - tail) if left > tail else left / (5 * (self.epochs - tail))
            return self.learning_rate * share
        cosine = (1 + math.cos(math.pi * epoch / self.epochs)) / 2
        return self.learning_rate_min + (self.learning_rate - self.learning_rate_min) * cosine

    def drop_path_at(self, epoch: int) -> float:
        """The drop path probability of an epoch (of the last cell, where it depends on the depth)."""
        return self.drop_path if self.drop_path_schedule == "constant" else self.drop_path * epoch / self.epochs


@dataclass(frozen=True)
class TrainDataOptions:
    """The images."""

    data: str | None = None
    """digits, cifar10:ROOT, cifar100:ROOT, folder:ROOT, imagenet:ROOT or npz:FILE; its training split is trained on."""
    test: str = "same"
    """What is tested once, at the end: the test split of the same, that of another source, or none."""
    validation: float = 0.0
    """Share of each class's training images that are held out, to be evaluated after every epoch."""
    pipeline: Literal["auto", "dali", "tensor", "torchvision"] = "auto"
    """tensor: the whole set in memory; dali: NVIDIA DALI; torchvision: a DataLoader; auto: the first that can, of
    tensor, dali, torchvision."""
    batch_size: int = 96
    """Images in a batch."""
    image_size: int | None = None
    """Pixels a side to resize and crop to; None keeps the size."""
    evaluated_share: float | None = None
    """Side of the centre crop that is tested, as share of the resized shorter side, such as 0.875 (224 of 256 pixels);
    None for what suits the data."""
    limit: int | None = None
    """At most this many training images, evenly from all classes; None for all."""
    crop_padding: int | None = None
    """Pixels of padding before a random crop; None for what suits the data."""
    crop_scale: float | None = None
    """Smallest share of an image that a random resized crop covers, such as 0.08; the largest is all of it. 0 for no
    such crops; None for what suits the data."""
    flip: bool | None = None
    """Random horizontal flips; None for what suits the data."""
    cutout: int = 16
    """Side of the square that is cut out, in pixels; 0 for none."""
    brightness: float | None = None
    """Colour jitter: a factor from 1 - brightness to 1 + brightness; 0 for none, None for what suits the data."""
    contrast: float | None = None
    """As --brightness, of the contrast."""
    saturation: float | None = None
    """As --brightness, of the saturation."""
    hue: float | None = None
    """Colour jitter: turned by up to this share of the colour circle, 0 to 0.5; None for what suits the data."""
    workers: int | None = None
    """Threads that read and decode images (dali; None for one each core, at most 8) or processes (torchvision; None
    for none)."""
    prefetch: int = 2
    """Batches that dali, or each torchvision process, prepares ahead."""
    skip_unreadable: bool = False
    """Decode every image file once before the training, and leave out those that cannot be read."""
    download: bool = False
    """Download cifar10 or cifar100 if missing."""

    def __post_init__(self) -> None:
        if not 0 <= self.validation < 1:
            raise UserError(f"validation is {self.validation}, expected a share from 0 (none) to less than 1.")

    def augmentation(self, own: Augmentation) -> Augmentation:
        """What training images go through: a source's `own` augmentation, but for what these options say."""
        crop_area = own.crop_area
        if self.crop_scale is not None:
            crop_area = (self.crop_scale, 1.0) if self.crop_scale else None
        jitter = zip((self.brightness, self.contrast, self.saturation, self.hue), own.color_jitter, strict=True)
        brightness, contrast, saturation, hue = (given(wanted, default) for wanted, default in jitter)
        return Augmentation(
            crop_padding=given(self.crop_padding, 0 if crop_area else own.crop_padding),
            flip=given(self.flip, own.flip),
            cutout=self.cutout,
            crop_area=crop_area,
            color_jitter=(brightness, contrast, saturation, hue),
        )


@dataclass(frozen=True)
class TrainRunOptions:
    """The run."""

    out: str | None = None
    """Run directory; None for runs/<time>-train-<genotype>-<data>."""
    device: str = "auto"
    """cpu, cuda, cuda:1, …; auto takes CUDA where there is a GPU."""
    seeds: str = "0"
    """Of every random decision; several, such as 1,2,3,4, train as many networks, one after the other."""
    select: Literal["last", "best_valid", "best_test"] = "last"
    """Which epoch's weights are kept and tested. best_test reads the test images after every epoch, as some published
    code does: its accuracy is no estimate for new images, and the report says so."""
    deterministic: bool = False
    """Only algorithms that give the same bits every time, even where they are slower. On a CPU they do anyway."""
    threads: int | None = None
    """CPU threads; None for PyTorch's choice."""
    validate_every: int = 1
    """Epochs between evaluations of held-out images; the last epoch is always evaluated."""
    stop_after: int | None = None
    """Stop after so many epochs of this process, ready to be resumed."""

    def __post_init__(self) -> None:
        for name in ("validate_every", "stop_after", "threads"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"{name} is {value}, expected at least 1.")
        self.seed_list()

    def seed_list(self) -> list[int]:
        try:
            seeds = [int(word) for word in str(self.seeds).split(",")]
        except ValueError as error:
            raise UserError(f"seeds is {self.seeds!r}, expected whole numbers with commas, such as 1,2,3,4.") from error
        if len(set(seeds)) < len(seeds) or not all(0 <= seed < 2**32 for seed in seeds):
            raise UserError(f"seeds is {self.seeds!r}, expected different whole numbers from 0 to {2**32 - 1}.")
        return seeds
