"""What a training takes over from the search that found its genotype: `fastnas.train --from RUN`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastnas import strategies
from fastnas.data import Source
from fastnas.data.folder import FolderSource
from fastnas.errors import UserError
from fastnas.genotype import Genotype
from fastnas.python_object import PREFIX
from fastnas.report.run import Run, mapping, read_run

# What the search was told about its images, and the training has to know as well. How many of them it took (limit) and
# how it loaded them is its own affair.
TAKEN = ("data", "image_size", "skip_unreadable", "normalise", "crop_padding", "flip")

Groups = dict[str, dict[str, Any]]


@dataclass(frozen=True)
class SearchRun:
    """A search that has written a genotype."""

    run: Run

    @property
    def path(self) -> Path:
        return self.run.path

    @property
    def test(self) -> str:
        """--test of the search: what it left for the test. Searches of before left nothing, which `check` tells."""
        return str(mapping(self.run.config["data"]).get("test", "same"))

    @property
    def preset(self) -> str:
        """The recipe that belongs to the strategy and the images: a preset of fastnas.train."""
        if self.run.option("data", "data") == "digits":
            return "demo"
        try:
            recipe = strategies.find(self.run.strategy or "").retraining
        except UserError:  # a strategy of a Python program that is not this one
            recipe = strategies.Strategy.retraining
        return f"{recipe}-imagenet" if self.run.option("network", "stem") == "imagenet" else f"{recipe}-cifar10"

    def options(self) -> Groups:
        """Options of a training on the images of the search."""
        images = mapping(self.run.config["data"])
        taken = {name: images[name] for name in TAKEN if images.get(name) is not None}
        network = {"genotype": str(self.path / "genotype.json")}
        space = str(self.run.option("network", "space"))
        if space.startswith(PREFIX):
            network["space"] = space
        return {"network": network, "data": {**taken, "test": self.test}}

    def without_images(self, recipe: Groups) -> Groups:
        """A recipe without the images that it names: those of the search are trained on."""
        data = {name: value for name, value in recipe.get("data", {}).items() if name != "data"}
        return {**recipe, "data": data}

    def fitted(self, recipe: Mapping[str, Mapping[str, Any]]) -> Groups:
        """What a recipe for images of another size becomes for these: no cutout of more than half a side, and an
        auxiliary head only where the images have the size that it needs."""
        asked = mapping(recipe.get("data"))
        size = asked.get("image_size") or self.run.option("data", "image_size") or min(self._recorded_size(), default=0)
        cutout = asked.get("cutout", 0)
        fitted: Groups = {"network": {"auxiliary": None}}
        if isinstance(size, int) and 0 < size < 2 * cutout:
            fitted["data"] = {"cutout": size // 2}
        return fitted

    def _recorded_size(self) -> list[int]:
        size = self.run.data.get("image_size")
        return [int(side) for side in size] if isinstance(size, list) else []

    def check(self, train: Source, test: Source | None) -> str | None:
        """Compares the images of a training with those of the search.

        Returns:
            A sentence for the user if images that the search has seen are tested on; else None.

        Raises:
            UserError: the images are those of the search, but their classes have changed since.
        """
        if train.spec != self.run.data.get("spec", self.run.option("data", "data")):
            return None
        classes = self.run.data.get("classes")
        if isinstance(classes, list) and classes != list(train.classes):
            raise UserError(
                f"{train.spec} has {len(train.classes)} classes, of other names or another number than the "
                f"{len(classes)} that the search in {self.path} found there: give --data, or search again."
            )
        if test is None or test.spec != train.spec:
            return None
        folder = self.run.data.get("alpha_folder")
        if folder is not None and isinstance(test, FolderSource) and test.base.name == folder:
            return f"the search in {self.path} took α from {folder}: it has seen the images that are tested here"
        if test.test_share is None:
            return None
        left = self.run.data.get("test_share")
        if left is not None and left >= test.test_share:
            return None
        kept = "none" if left is None else f"{left:.0%} of them"
        return f"the search in {self.path} kept {kept} for the test: it has seen images that are tested here"


def read_search(path: Path) -> SearchRun:
    """Reads the run directory of a search.

    Raises:
        UserError: it is none, or it has no genotype yet that `fastnas.train` can train.
    """
    run = read_run(path)
    if run.is_training or run.strategy is None or "data" not in run.config:
        what = "is the run of a training" if run.is_training else "has no config.yaml of a search"
        raise UserError(f"{path} {what}: give --from the run directory of fastnas.search.")
    if run.genotype is None or run.genotype_origin != "genotype.json":
        raise UserError(f"the search in {path} has found no genotype yet: it is written after the first epoch.")
    if not isinstance(run.genotype, Genotype):
        raise UserError(
            f"{path} holds a cell of NAS-Bench-201, whose network fastnas.train does not build: train "
            "fastnas.nn.NB201Network(NB201Genotype.from_json(PATH)) in a loop of your own, as the report of the search "
            "shows, or search in --space darts or egnas."
        )
    return SearchRun(run)
