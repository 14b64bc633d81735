"""What a search strategy may decide. The engine calls these hooks and knows no strategy by name."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from torch import nn

from fastnas.genotype import Genotype
from fastnas.nn.supernet import OpWeights

if TYPE_CHECKING:
    from fastnas.engine.search import Search


class Strategy:
    """Base of all strategies.

    A strategy is a dataclass in a file of its own: documented hyper-parameters as fields, state as fields that are not
    part of `__init__`, and those of the following hooks that it needs. `search` is the running `engine.Search`: its
    network, its batches of the α half (`search.alpha_pipeline`), its clock (`epoch`, `step`), its log (`search.log`).

    Everything that a hook changes must be part of the network, of `state_dict()` or of torch's global random state, for
    these are what a checkpoint holds. A hook that runs long calls `search.check_stop()` where its state is complete.
    """

    name: ClassVar[str]
    default_space: ClassVar[str] = "darts"

    def start(self, search: Search) -> None:
        """Once, before the first epoch or before `load_state_dict`: build what needs the network or the data."""

    def op_weights(self, search: Search) -> OpWeights | None:
        """Operation weights of the coming weight step; None for softmax(α)."""
        return None

    def before_epoch(self, search: Search) -> None:
        """Before the weight steps of an epoch. Called again on resume if it was interrupted."""

    def before_step(self, search: Search) -> None:
        """Before each weight step: where gradient strategies move α."""

    def after_epoch(self, search: Search) -> None:
        """After the weight steps of an epoch, before validation."""

    def clipped_parameters(self, search: Search) -> list[nn.Parameter]:
        """Whose gradient norm is clipped together at each weight step."""
        return search.weight_parameters

    def genotype(self, search: Search) -> Genotype:
        """The architecture that the search has arrived at."""
        return search.network.genotype()

    def state_dict(self) -> dict[str, Any]:
        """Tensors, numbers, strings, lists and dicts only: checkpoints are read without unpickling anything else."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`, after `start`."""
