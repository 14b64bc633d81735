"""The options of the commands, grouped as the command line and config.yaml group them. A strategy brings its own group.

A base class holds what search and training share. How weights are trained: `fastnas.engine.options` and `recipe`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from fastnas.cli.duration import seconds_of
from fastnas.cli.process import resolve_device
from fastnas.data import Augmentation
from fastnas.data.split import share_of_test
from fastnas.engine.options import listed, ordered
from fastnas.errors import UserError
from fastnas.option_types import (
    Channels,
    Count,
    Layers,
    Options,
    Processes,
    ProcessesOrZero,
    Seconds,
    Seed,
    Share,
    ShareAboveZero,
    ShareBelowOne,
    ShareBetween,
    Side,
    SideOrZero,
    Turn,
)

_Seeds = Annotated[str, tyro.conf.arg(aliases=["--seed"])]
_From = Annotated[Path | None, tyro.conf.arg(name="from")]  # a field cannot have this name

# --- where the options come from ---


@dataclass(frozen=True, kw_only=True)
class CommandOptions(Options):
    """Where the options come from."""

    preset: str | None = None
    """Name of a set of options that fit together."""
    config: Path | None = None
    """YAML file with options, such as config.yaml of a run."""
    resume: Path | None = None
    """Run directory to continue, exactly where its checkpoint stands."""
    dry_run: bool = False
    """Prepare everything, measure, print what would run and the estimate of its time and memory, write nothing, and
    exit."""
    print_config: bool = False
    """Print the resolved options as YAML and exit."""


@ordered
@dataclass(frozen=True, kw_only=True)
class SearchCommandOptions(CommandOptions):
    """Where the options come from."""

    preset: str | None = None
    """demo, images (your own), cifar10 or imagenet: data and sizes that fit together. Without any arguments: demo."""
    strategy: str = listed("egnas", after="config")
    """Search strategy. Its options are listed in a group of their own."""


@ordered
@dataclass(frozen=True, kw_only=True)
class TrainCommandOptions(CommandOptions):
    """Where the options come from."""

    preset: str | None = None
    """demo, darts-cifar10, pc-darts-cifar10, p-darts-cifar10, egnas-cifar10, egnas-cifar100, darts-imagenet,
    pc-darts-imagenet, p-darts-imagenet or egnas-imagenet: the recipe of a paper."""
    search_run: _From = listed(None, after=None)
    """Run directory of a search: its genotype is trained on its images, by the recipe that belongs to its strategy."""
    resume: Path | None = None
    """Run directory to continue, exactly where its checkpoints stand."""


# --- the network ---


@dataclass(frozen=True, kw_only=True)
class NetworkOptions(Options):
    """A network of cells."""

    channels: Channels
    """Channels of a node in the first cell."""
    layers: Layers
    """Number of cells; those at a third and at two thirds are reduction cells."""
    stem: Literal["cifar", "imagenet"] = "cifar"
    """cifar keeps the image size, imagenet divides it by 8."""
    backend: Literal["auto", "fused", "reference"] = "auto"
    """fused: our operators; reference: plain PyTorch; auto: fused."""


@ordered
@dataclass(frozen=True, kw_only=True)
class SupernetOptions(NetworkOptions):
    """The supernet."""

    space: str | None = listed(None, after=None)
    """Search space: darts, egnas, multi-level, nb201, or one of your own as python:MODULE:OBJECT; None for the
    strategy's own."""
    channels: Channels = 16
    layers: Layers = 8
    partial_channels: Channels = listed(4, after="layers")
    """k: candidates see 1/k of the channels (PC-DARTS); 1 for all."""
    initial_weights: Path | None = None
    """File with the state dict of a supernet of DARTS, PC-DARTS or EG-NAS to begin with; α and β may be in it as
    alphas_normal, alphas_reduce, betas_normal, betas_reduce."""


@ordered
@dataclass(frozen=True, kw_only=True)
class DerivedOptions(NetworkOptions):
    """The network."""

    genotype: str | None = listed(None, after=None)
    """Name of a published genotype, such as DARTS_V2, or the path of a JSON file."""
    space: str | None = listed(None, after="genotype")
    """python:MODULE:OBJECT: a space of your own whose candidates the genotype names."""
    channels: Channels = 36
    layers: Layers = 20
    auxiliary: bool | None = listed(None, after="stem")
    """Train with an auxiliary head; None: where the images have the size that it needs."""
    auxiliary_norm: bool | None = listed(None, after="auxiliary")
    """BatchNorm after the head's second convolution; None: with the CIFAR stem only (DARTS)."""


# --- the images ---


@dataclass(frozen=True, kw_only=True)
class DataOptions(Options):
    """The images."""

    data: str | None = None
    """digits, cifar10:ROOT, cifar100:ROOT, folder:ROOT, imagenet:ROOT or npz:FILE."""
    test: str = "same"
    """Images for the test: same (the test split of --data; where it has none, 0.2), a share such as 0.2 of each class
    of --data, another source such as folder:ROOT, or none."""
    pipeline: Literal["auto", "dali", "tensor", "torchvision"] = "auto"
    """tensor: the whole set in memory; dali: NVIDIA DALI; torchvision: a DataLoader; auto: the first possible one."""
    batch_size: Count
    """Images in a batch."""
    image_size: Side | None = None
    """Pixels a side to resize and crop to; None: as they are."""
    limit: Count | None = None
    """At most this many images, evenly from all classes; None for all."""
    normalise: Literal["own", "cifar10", "cifar100", "imagenet"] = "own"
    """Whose mean and standard deviation normalise the images; programs for CIFAR-100 often take those of CIFAR-10."""
    crop_padding: SideOrZero | None = None
    """Pixels of padding before a random crop; None for what suits the data."""
    flip: bool | None = None
    """Random horizontal flips; None for what suits the data."""
    cutout: SideOrZero = 0
    """Cutout: side of the erased square, in pixels; 0 for none."""
    workers: ProcessesOrZero | None = None
    """Threads (dali) or processes (torchvision) that decode images; None: one per core for dali, at most 8, or none."""
    prefetch: Processes = 2
    """Batches that dali, or each torchvision process, prepares ahead."""
    skip_unreadable: bool = False
    """Decode every image file once before the run, and leave out those that cannot be read."""
    check_images: Literal["sizes", "bytes"] = "sizes"
    """How a resumed run makes sure of its images: by names, sizes and ends of their files, or by every byte, which
    reads them all at each start. Of npz, cifar10 and cifar100 every pixel is compared anyway."""
    download: bool = False
    """Download cifar10 or cifar100 if missing."""

    @property
    def test_share(self) -> float | None:
        """What is kept for the test of images without a test split; None for nothing. UserError for no share."""
        return share_of_test(self.test)

    def augmentation(self, own: Augmentation) -> Augmentation:
        """The augmentation of training images: that of the source (`own`), except for what these options say."""
        asked: dict[str, Any] = {"crop_padding": self.crop_padding, "flip": self.flip, "cutout": self.cutout}
        return replace(own, **{name: value for name, value in asked.items() if value is not None})


@ordered
@dataclass(frozen=True, kw_only=True)
class SearchDataOptions(DataOptions):
    """The images."""

    data: str | None = None
    """digits, cifar10:ROOT, cifar100:ROOT, folder:ROOT, imagenet:ROOT or npz:FILE; always the training split."""
    test: str = "same"
    """Images that the search leaves for the test of the trained network: same (the test split of --data; where it has
    none, 0.2), a share such as 0.2 of each class of --data, or none."""
    batch_size: Count = 256
    """Images per weight step."""
    split: ShareBetween = listed(0.5, after="batch_size")
    """Share of the images that train the weights (weight half); the rest (α half) is for α and for validation."""
    alpha_images: Literal["split", "val"] = listed("split", after="split")
    """Images for α: what --split leaves, or all of the folder val beside train."""
    color_jitter: bool = listed(False, after="cutout")
    """Jitter colours as a training does where that suits the data (imagenet); published searches crop and flip only."""
    validation_augment: bool | None = listed(None, after="color_jitter")
    """Validate on augmented images, as some published code does; None for what the strategy's source does."""
    skip_unreadable: bool = False
    """Decode every image file once before the search, and leave out those that cannot be read."""

    def augmentation(self, own: Augmentation) -> Augmentation:
        asked = super().augmentation(own)
        return asked if self.color_jitter else replace(asked, color_jitter=(0.0, 0.0, 0.0, 0.0))


@ordered
@dataclass(frozen=True, kw_only=True)
class TrainDataOptions(DataOptions):
    """The images."""

    data: str | None = None
    """digits, cifar10:ROOT, cifar100:ROOT, folder:ROOT, imagenet:ROOT or npz:FILE; its training split is trained on."""
    test: str = "same"
    """Images for the test at the end: same (the test split of --data; where it has none, 0.2), a share such as 0.2 of
    each class of --data, another source such as folder:ROOT, or none."""
    validation: ShareBelowOne = listed(0.0, after="test")
    """Share of each class's training images that are held out, to be evaluated after every epoch."""
    batch_size: Count = 96
    evaluated_share: ShareAboveZero | None = listed(None, after="image_size")
    """Side of the tested centre crop as a share of the resized shorter side, as 0.875; None for what suits the data."""
    limit: Count | None = None
    """At most this many training images, evenly from all classes; None for all."""
    crop_scale: Share | None = listed(None, after="crop_padding")
    """Smallest share of an image in a random resized crop, as 0.08; 0 for no such crop; None: what suits the data."""
    cutout: SideOrZero = 16
    brightness: Share | None = listed(None, after="cutout")
    """Colour jitter: a factor from 1 - brightness to 1 + brightness; 0 for none, None for what suits the data."""
    contrast: Share | None = listed(None, after="brightness")
    """As --brightness, for the contrast."""
    saturation: Share | None = listed(None, after="contrast")
    """As --brightness, for the saturation."""
    hue: Turn | None = listed(None, after="saturation")
    """Colour jitter: the hue turns by up to this share of the colour circle, 0 to 0.5; None for what suits the data."""
    skip_unreadable: bool = False
    """Decode every image file once before the training, and leave out those that cannot be read."""

    def augmentation(self, own: Augmentation) -> Augmentation:
        """As for a search, with resized crops and colour jitter. With resized crops, the default padding is 0."""
        crop_area = own.crop_area
        if self.crop_scale is not None:
            crop_area = (self.crop_scale, 1.0) if self.crop_scale else None
        jitter = zip((self.brightness, self.contrast, self.saturation, self.hue), own.color_jitter, strict=True)
        brightness, contrast, saturation, hue = (default if asked is None else asked for asked, default in jitter)
        return super().augmentation(
            replace(
                own,
                crop_padding=0 if crop_area else own.crop_padding,
                crop_area=crop_area,
                color_jitter=(brightness, contrast, saturation, hue),
            )
        )


# --- the run ---


@dataclass(frozen=True, kw_only=True)
class RunOptions(Options):
    """The run."""

    out: str | None = None
    """Run directory; None for a new one below runs/, named after time and data."""
    device: str = "auto"
    """cpu, cuda, cuda:1, …; auto takes CUDA if there is a GPU."""
    deterministic: bool = False
    """Use only algorithms that give the same bits every time, even if slower. On a CPU all of them do."""
    threads: Processes | None = None
    """CPU threads; None for PyTorch's choice."""
    validate_every: Count = 1
    """Epochs between validations; the last epoch is always validated."""
    stop_after: Count | None = None
    """Stop after so many epochs in this process; --resume continues."""
    elastic: bool = False
    """Continue also with another number of processes than the run had before; the bits of its results will differ."""
    budget: str | None = None
    """Time for the whole run, such as 90s, 45m, 2h or 1d: as many epochs as fit into it, instead of --epochs. They are
    measured, so that the same command gives other numbers of epochs on other machines; config.yaml holds the number."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.budget is not None:
            seconds_of(self.budget)


@ordered
@dataclass(frozen=True, kw_only=True)
class SearchRunOptions(RunOptions):
    """The run."""

    out: str | None = None
    """Run directory; None for runs/<time>-<strategy>-<data>."""
    seed: Seed = listed(0, after="device")
    """Seed of every random decision."""
    cuda_graphs: bool = listed(True, after="deterministic")
    """On CUDA, record the kernels of a weight step and of a population and launch them together."""
    validate_every: Count = 1
    """Epochs between validations (on the α half); the last epoch is always validated."""
    evidence: bool = listed(True, after="validate_every")
    """At the end, say what the search is worth: its cell beside 100 random ones, how decided α is, and more."""


@ordered
@dataclass(frozen=True, kw_only=True)
class TrainRunOptions(RunOptions):
    """The run."""

    out: str | None = None
    """Run directory; None for runs/<time>-train-<genotype>-<data>."""
    seeds: _Seeds = listed("0", after="device")
    """Seed of every random decision; several, such as 1,2,3,4, train as many networks, one after the other."""
    select: Literal["last", "best_valid", "best_test"] = listed("last", after="seeds")
    """Which epoch's weights are kept and tested. best_test reads the test images after every epoch, as some published
    code does: its accuracy is too high as an estimate for new images, and the report says so."""
    validate_every: Count = 1
    """Epochs between evaluations of held-out images; the last epoch is always evaluated."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.seed_list()

    def seed_list(self) -> list[int]:
        try:
            seeds = [int(word) for word in str(self.seeds).split(",")]
        except ValueError as error:
            raise UserError(f"seeds is {self.seeds!r}, expected whole numbers with commas, such as 1,2,3,4.") from error
        if len(set(seeds)) < len(seeds) or not all(0 <= seed < 2**32 for seed in seeds):
            raise UserError(f"seeds is {self.seeds!r}, expected different whole numbers from 0 to {2**32 - 1}.")
        return seeds


# --- a comparison ---


@dataclass(frozen=True)
class CompareOptions(Options):
    """Options of a comparison."""

    strategies: str
    """Names, separated by commas: random, aging-evolution, genetic, nsga2, particle-swarm, reinforce, nasnet-ppo, enas,
    or python:MODULE:CLASS; each may have options, for example random,reinforce:controller=independent."""
    evaluator: str
    """nb201:PATH (the table of NAS-Bench-201), python:MODULE:FUNCTION, or training:DATA such as training:digits."""
    out: Path
    """Directory of the comparison; an existing one is continued."""
    runs: Count = 100
    """Runs of each strategy, each with another seed."""
    budget: Seconds = 12000.0
    """Seconds of a run, on the clock of the evaluator: simulated for a table, real otherwise."""
    seed: Seed = 0
    """Seed of the first run; the next run has the next number, and so on."""
    processes: Processes | None = None
    """Runs at a time; None for one per CPU core."""
    device: str = "auto"
    """training: cpu, cuda, cuda:1, …; auto takes CUDA if there is a GPU."""
    threads: Processes | None = None
    """CPU threads of each of these processes; None for one."""
    space: str = "egnas"
    """Search space for the evaluators python: and training:; one of your own is python:MODULE:OBJECT."""
    epochs: Count = 1
    """training: epochs of each architecture."""
    channels: Channels = 8
    """training: channels of a node in the first cell."""
    layers: Layers = 5
    """training: number of cells."""
    batch_size: Count = 64
    """training: images in a batch."""
    limit: Count | None = None
    """training: at most this many images."""

    def fixed(self, clock: str) -> dict[str, Any]:
        """What all runs of a directory have in common. UserError for a device that is not there."""
        names = ["evaluator", "budget"]
        if not self.evaluator.startswith("nb201:"):
            names.append("space")
        if self.evaluator.startswith("training:"):
            names += ["epochs", "channels", "layers", "batch_size", "limit"]
        fixed = {"clock": clock, **{name: getattr(self, name) for name in names}}
        if self.evaluator.startswith("training:"):
            fixed["device"] = str(resolve_device(self.device))  # whose seconds are compared
        return fixed
