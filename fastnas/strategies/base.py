"""The hooks through which a search strategy takes part in a search. The engine knows no strategy by name."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any, ClassVar, Literal, NamedTuple

from torch import Tensor, nn

from fastnas.errors import UserError
from fastnas.genotype import AnyGenotype
from fastnas.nn.supernet import OpWeights
from fastnas.option_types import Options
from fastnas.strategies.context import SearchContext


class Work(NamedTuple):
    """What an epoch costs, see `Strategy.work`."""

    steps: Hashable = 0
    """Weight steps take the same time in all epochs in which this is the same, and so does the validation."""
    own: float = 0.0
    """Pieces of work that `before_epoch` and `after_epoch` do, as they count them when they call `search.show`. Their
    time is in proportion to it, and nearly none where it is 0."""


class Strategy(Options):
    """Base of all strategies.

    A strategy is a dataclass in a file of its own, with `@register_strategy` above: documented hyper-parameters as
    fields, state as attributes that `__init__` does not take, and those of the following hooks that it needs. `search`
    is the running search; `SearchContext` documents what it offers.

    Everything that a hook changes must be part of the network, of `state_dict()` or of torch's global random state, for
    these are what a checkpoint holds. A hook that runs long calls `search.check_stop()` at points where its state is
    complete, and `search.show` to say how far it is. Before a search begins, its time may be estimated on a copy that
    is thrown away: `work` says which epochs are alike.
    """

    name: ClassVar[str]
    """What `--strategy` calls it."""
    default_space: ClassVar[str] = "darts"
    """Name of the space that is searched where the user names none."""
    plain_step: ClassVar[bool] = False
    """A promise: a weight step minimises the cross-entropy of `network(images, op_weights)` and nothing else. Then the
    search may record it as a CUDA graph, which is faster. A strategy that overrides `logits` or `penalty` cannot
    promise that; `op_weights` is called outside of the recording and may do anything."""
    published_defaults: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    """Published options outside the strategy, by group: {"weights": {"epochs": 50}}. Files and flags override them, and
    the data and sizes of a preset."""

    @property
    def resolved(self) -> Mapping[str, Any]:
        """What takes the place of options that are None, by name, as far as it is known before a search."""
        return {}

    retraining: ClassVar[str] = "darts"
    """Whose recipe trains what was found: the presets of `fastnas.train` that begin with darts, pc-darts, p-darts or
    egnas."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if cls.plain_step and not (cls.logits is Strategy.logits and cls.penalty is Strategy.penalty):
            raise TypeError(
                f"{cls.__qualname__} overrides logits or penalty, so its weight step is not plain: set plain_step = "
                "False."
            )

    def check_epochs(self, epochs: int) -> None:
        """UserError where a search of so many epochs makes no sense. Called before `start`."""

    def work(self, epoch: int, epochs: int) -> Work | None:
        """What an epoch costs, counted from 0 in a search of so many: the estimate of a run's time rests on it. None
        where that cannot be known. Called after `start`, also for other numbers of epochs than the search has.

        It speaks for the class that defines it: of a subclass that overrides one of `TIMED_HOOKS` and not `work`, the
        costs are unknown (`known_work`)."""
        return Work()

    def start(self, search: SearchContext) -> None:
        """Called once, before the first epoch or `load_state_dict`: build what needs the network or the images."""

    def load_betas(self, search: SearchContext, betas: Mapping[str, Tensor]) -> None:
        """After `start`: take over edge weights β of a search that began elsewhere, {"normal": [E], "reduce": [E]}."""
        raise UserError(
            f"the initial weights hold β, but the strategy {self.name!r} has no edge weights: use --strategy pc-darts, "
            "or leave betas_normal and betas_reduce out of the file."
        )

    # --- what the network computes ---

    def op_weights(self, search: SearchContext) -> OpWeights | None:
        """Operation weights of the coming weight step; None for softmax(α)."""
        return None

    def logits(self, search: SearchContext, images: Tensor) -> Tensor:
        """Logits of a weight step: images [B, C, H, W] → [B, classes]."""
        return search.network(images, self.op_weights(search))

    def penalty(self, search: SearchContext) -> Tensor | float:
        """What is added to the cross-entropy of a weight step. Called after `logits`; 0 by default."""
        return 0.0

    def mean_op_weights(self, search: SearchContext) -> OpWeights:
        """Deterministic operation weights, {"normal": [E, O], …}: for the log, the validation and the genotype."""
        return search.network.op_weights()

    def validation_logits(self, search: SearchContext, images: Tensor) -> Tensor:
        """Logits in validation, with the network in evaluation mode: images [B, C, H, W] → [B, classes]."""
        return search.network(images, self.mean_op_weights(search))

    @property
    def validates(self) -> Literal["supernet", "cell"]:
        """Whose logits `validation_logits` gives: the supernet's with all candidates, or those of one architecture in
        it, by shared weights."""
        return "supernet"

    @property
    def validates_augmented(self) -> bool:
        """Whether the strategy's source validates on augmented images, which --validation-augment overrides."""
        return False

    @property
    def derives_from_alpha(self) -> bool:
        """Whether the cell is read off α; False for strategies that choose among architectures which they evaluate."""
        return True

    @property
    def chosen(self) -> dict[str, Any] | None:
        """Of a strategy that evaluates architectures: the "accuracy" in 0..1 of the one it has chosen, "by" whom and on
        what it was measured, and how many were "evaluated". None for strategies that derive it from α."""
        return None

    def genotype(self, search: SearchContext) -> AnyGenotype:
        """The architecture that the search has arrived at."""
        return search.network.space.derive(self.mean_op_weights(search))

    @property
    def ends_early(self) -> bool:
        """Whether `finished` may end a search before its last epoch."""
        return type(self).finished is not Strategy.finished

    # --- when something happens ---

    def before_epoch(self, search: SearchContext) -> None:
        """Before the weight steps of an epoch. If interrupted, the resumed run calls it again."""

    def before_step(self, search: SearchContext) -> None:
        """Before each weight step: where gradient strategies move α."""

    def after_step(self, search: SearchContext) -> None:
        """After each weight step, while its gradients are still in `.grad`."""

    def after_epoch(self, search: SearchContext) -> None:
        """After the weight steps of an epoch, before validation. If interrupted, the resumed run calls it again."""

    def finished(self, search: SearchContext) -> bool:
        """After an epoch: whether the search ends before its last one."""
        return False

    # --- how the weights are trained ---

    def schedule(self, search: SearchContext) -> tuple[int, int]:
        """(epoch, epochs) for the learning-rate schedule; a strategy with several stages restarts it in each."""
        return search.epoch, search.epochs

    def clipped_parameters(self, search: SearchContext) -> list[nn.Parameter]:
        """Parameters whose joint gradient norm is clipped in each weight step."""
        return search.weight_parameters

    # --- what a checkpoint holds ---

    def state_dict(self) -> dict[str, Any]:
        """Tensors, numbers, strings, lists and dicts only: checkpoints are read without unpickling anything else."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`, after `start` and before the network and the optimizer are restored."""


TIMED_HOOKS = ("before_epoch", "before_step", "after_step", "after_epoch")
"""The hooks in which a strategy does work of its own."""


def known_work(strategy: Strategy, epoch: int, epochs: int) -> Work | None:
    """`strategy.work(epoch, epochs)`, or None where a subclass has changed what an epoch does without a word."""
    line = type(strategy).__mro__
    place = {name: next(i for i, kind in enumerate(line) if name in vars(kind)) for name in ("work", *TIMED_HOOKS)}
    if any(place[hook] < place["work"] for hook in TIMED_HOOKS):
        return None
    return strategy.work(epoch, epochs)
