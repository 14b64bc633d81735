"""The images of a run: sources and pipelines made from its options."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from fastnas import data
from fastnas.cli.configuration import TrainOptions
from fastnas.cli.options import DataOptions, SearchDataOptions
from fastnas.data.split import stratified
from fastnas.errors import UserError


def open_search_source(options: SearchDataOptions) -> data.Source:
    """Opens the images of a search. UserError if they or the options cannot be used."""
    if options.data is None:
        raise UserError("no images: give --data, for example --data folder:./images, or --preset demo.")
    source = data.open(
        options.data,
        image_size=options.image_size,
        download=options.download,
        limit=options.limit,
        skip_unreadable=options.skip_unreadable,
        test_share=options.test_share,
        normalise=options.normalise,
    )
    _check_share(source, options)
    return source


def open_alpha_source(options: SearchDataOptions, weights: data.Source) -> data.Source | None:
    """Opens the images for α where they are not a part of those of the weights. UserError if they cannot be used."""
    if options.alpha_images == "split":
        return None
    assert options.data is not None
    try:
        source = data.open(
            options.data,
            "val",
            image_size=options.image_size,
            limit=options.limit,
            skip_unreadable=options.skip_unreadable,
            test_share=options.test_share,
            normalise=options.normalise,
        )
    except UserError as error:
        raise UserError(f"{error}. Or take them from the training images: --alpha-images split.") from error
    data.check_same_classes(weights, source)
    if source.image_size != weights.image_size:
        raise UserError(
            f"the images for α are {source.image_size}, those for the weights {weights.image_size} (height, width): "
            "give --image-size to bring both to one size."
        )
    return source


def _check_share(source: data.Source, options: DataOptions) -> None:
    if options.test != "same" and options.test_share is not None and source.test_share is None:
        raise UserError(f"--test {options.test} would divide {source.spec}, which has a test split: leave --test out.")


@dataclass(frozen=True)
class TrainSources:
    """The images of a training."""

    train: data.Source
    test: data.Source | None
    train_indices: np.ndarray  # [N]
    valid_indices: np.ndarray  # [M], of held-out images


def open_train_sources(options: TrainOptions) -> TrainSources:
    """Opens the images for training and test. UserError if they or the options cannot be used."""
    wanted = options.data
    if wanted.data is None:
        raise UserError("no images: give --data, for example --data folder:./images or --data digits.")
    if options.run.select == "best_valid" and wanted.validation == 0:
        raise UserError("--select best_valid needs held-out images: give --validation, for example 0.1.")
    if options.run.select == "best_test" and wanted.test == "none":
        raise UserError("--select best_test needs test images: leave out --test none.")
    names = ("image_size", "download", "evaluated_share", "skip_unreadable", "test_share", "normalise")
    how: dict[str, Any] = {name: getattr(wanted, name) for name in names}
    source = data.open(wanted.data, limit=wanted.limit, **how)
    _check_share(source, wanted)
    test = None
    if wanted.test != "none":
        try:
            test = data.open(wanted.test if wanted.test_share is None else wanted.data, "test", **how)
        except UserError as error:
            raise UserError(f"{error}. Or train without a test: --test none, perhaps with --validation 0.1.") from error
        data.check_same_classes(source, test)
        if test.training is None:  # images in memory, which know no others
            test.training = lambda: source
        if test.image_size != source.image_size:
            raise UserError(
                f"the test images are {test.image_size}, the training images {source.image_size} (height, width): "
                "give --image-size to bring both to one size."
            )
    everything = np.arange(len(source))  # [N]
    train, valid = everything, everything[:0]
    if wanted.validation > 0:
        train, valid = stratified(source.labels, source.classes, 1 - wanted.validation)
    return TrainSources(source, test, train, valid)


def open_pipeline(
    source: data.Source,
    options: DataOptions,
    device: torch.device,
    augmentation: data.Augmentation,
    indices: np.ndarray | None,
    *,
    batch_size: int,
    train: bool,
    seed: int,
    shuffle: bool | None = None,
    augment: bool | None = None,
) -> data.Pipeline:
    """`fastnas.data.pipeline` of these options."""
    return data.pipeline(
        source,
        options.pipeline,
        batch_size=batch_size,
        indices=indices,
        train=train,
        shuffle=shuffle,
        augment=augment,
        seed=seed,
        augmentation=augmentation,
        device=device,
        workers=options.workers,
        prefetch=options.prefetch,
    )
