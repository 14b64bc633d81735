"""The options of a search, grouped as the command line and config.yaml group them. A strategy brings its own group."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from fastnas.errors import UserError


@dataclass(frozen=True)
class NetworkOptions:
    """The supernet."""

    space: str | None = None
    """Search space: darts, egnas, multi-level or nb201; None for the strategy's own."""
    channels: int = 16
    """Channels of a node in the first cell."""
    layers: int = 8
    """Number of cells; those at a third and at two thirds are reduction cells."""
    partial_channels: int = 4
    """k: candidates see 1/k of the channels (PC-DARTS); 1 for all."""
    stem: Literal["cifar", "imagenet"] = "cifar"
    """cifar keeps the image size, imagenet divides it by 8."""
    backend: Literal["auto", "fused", "reference"] = "auto"
    """fused: our operators; reference: plain PyTorch; auto: fused."""
    initial_weights: Path | None = None
    """File with the state dict of a supernet of DARTS, PC-DARTS or EG-NAS to begin with; α and β may be in it as
    alphas_normal, alphas_reduce, betas_normal, betas_reduce."""


@dataclass(frozen=True)
class DataOptions:
    """The images."""

    data: str | None = None
    """digits, cifar10:ROOT, cifar100:ROOT, folder:ROOT, imagenet:ROOT or npz:FILE; always the training split."""
    pipeline: Literal["auto", "dali", "tensor", "torchvision"] = "auto"
    """tensor: the whole set in memory; dali: NVIDIA DALI; torchvision: a DataLoader; auto: the first that can, of
    tensor, dali, torchvision."""
    batch_size: int = 256
    """Images per weight step."""
    split: float = 0.5
    """Share of the images that train the weights; the rest is for α and for validation."""
    image_size: int | None = None
    """Pixels a side to resize and crop to; None keeps the size."""
    limit: int | None = None
    """At most this many images, evenly from all classes; None for all."""
    crop_padding: int | None = None
    """Pixels of padding before a random crop; None for what suits the data."""
    flip: bool | None = None
    """Random horizontal flips; None for what suits the data."""
    cutout: int = 0
    """Side of the square that is cut out, in pixels; 0 for none."""
    workers: int | None = None
    """Threads that read and decode images (dali; None for one each core, at most 8) or processes (torchvision; None
    for none)."""
    prefetch: int = 2
    """Batches that dali, or each torchvision process, prepares ahead."""
    skip_unreadable: bool = False
    """Decode every image file once before the search, and leave out those that cannot be read."""
    download: bool = False
    """Download cifar10 or cifar100 if missing."""


@dataclass(frozen=True)
class WeightOptions:
    """The weights: SGD with a cosine schedule."""

    epochs: int = 50
    """Passes over the weight half of the images."""
    learning_rate: float = 0.1
    """At the first epoch."""
    learning_rate_min: float = 0.0
    """Where the cosine ends."""
    learning_rate_warm_up: int = 0
    """Epochs over which the rate rises linearly to the cosine's."""
    legacy_scheduler: bool = False
    """Use the rate of the next epoch, as code that calls scheduler.step() first does in today's PyTorch."""
    momentum: float = 0.9
    """Of SGD."""
    nesterov: bool = False
    """Nesterov's momentum."""
    weight_decay: float = 3e-4
    """L2 penalty on the weights, never on α."""
    clip: float = 5.0
    """Largest gradient norm of a step; 0 for no limit."""

    def __post_init__(self) -> None:
        if self.epochs < 1:
            raise UserError(f"epochs is {self.epochs}, expected at least 1.")
        for name in ("learning_rate", "learning_rate_min", "momentum", "weight_decay", "clip"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise UserError(f"{name} is {value}, expected a finite number of at least 0.")

    def rate(self, epoch: int, epochs: int | None = None) -> float:
        """The learning rate of an epoch: a pure function, so that a resumed run cannot start from a wrong place.

        epochs: over which it falls; by default all."""
        position = epoch + 1 if self.legacy_scheduler else epoch
        cosine = (1 + math.cos(math.pi * position / (epochs or self.epochs))) / 2
        rate = self.learning_rate_min + (self.learning_rate - self.learning_rate_min) * cosine
        if epoch < self.learning_rate_warm_up:
            rate *= (epoch + 1) / self.learning_rate_warm_up
        return rate


@dataclass(frozen=True)
class RunOptions:
    """The run."""

    out: str | None = None
    """Run directory; None for runs/<time>-<strategy>-<data>."""
    device: str = "auto"
    """cpu, cuda, cuda:1, …; auto takes CUDA where there is a GPU."""
    seed: int = 2
    """Of every random decision."""
    deterministic: bool = False
    """Only algorithms that give the same bits every time, even where they are slower. On a CPU they do anyway."""
    cuda_graphs: bool = True
    """On CUDA, record the kernels of a weight step and of a population and launch them together."""
    threads: int | None = None
    """CPU threads; None for PyTorch's choice."""
    validate_every: int = 1
    """Epochs between validations on the α half; the last epoch is always validated."""
    stop_after: int | None = None
    """Stop after so many epochs of this process, ready to be resumed."""

    def __post_init__(self) -> None:
        for name in ("validate_every", "stop_after", "threads"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"{name} is {value}, expected at least 1.")
        if not 0 <= self.seed < 2**32:
            raise UserError(f"seed is {self.seed}, expected a whole number from 0 to {2**32 - 1}.")
