"""What a strategy may ask of the search that calls it.

Strategies know this protocol, not the engine: anything that has these attributes can run them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from fastnas.data import Pipeline
from fastnas.nn import Supernet
from fastnas.world import World


class EventLog(Protocol):
    """Where a search writes down what happens: `metrics.jsonl` and TensorBoard."""

    def write(self, event: str, **fields: Any) -> None:
        """Appends an event with its fields: numbers, strings, and lists and dicts of them."""


class RecordedCalls(Protocol):
    """Functions of tensors that a GPU records as CUDA graphs; elsewhere they are plain calls."""

    def call(self, name: str, function: Callable[..., Any], *arguments: Tensor) -> Any:
        """`function(*arguments)`. Use the results before the next call of this name, which may overwrite them.

        Args:
            name: of the function; calls of one name do the same with arguments of one shape, dtype and device.
            function: computes from its arguments and from tensors that stay where they are. It neither waits for the
                GPU nor depends on the values of a tensor.
        """


@runtime_checkable
class SearchContext(Protocol):
    """A running search, as its strategy sees it. Attributes are read only; the network's parameters may be changed."""

    # --- what is searched ---

    @property
    def network(self) -> Supernet:
        """The supernet, on its device. `rebuild` replaces it."""

    @property
    def device(self) -> torch.device:
        """The device of the network and of all batches."""

    def rebuild(self, **changes: Any) -> None:
        """Replaces the network by one with fresh weights and fresh α, and with these options of `Supernet` changed; and
        the optimizer by a fresh one."""

    # --- where the search is ---

    @property
    def epochs(self) -> int:
        """Epochs that are planned."""

    @property
    def epoch(self) -> int:
        """The epoch in progress, from 0."""

    @property
    def step(self) -> int:
        """The weight step in progress, from 0 in each epoch; after the last one the number of steps."""

    @property
    def seed(self) -> int:
        """The seed of the run."""

    def seed_for(self, *key: int) -> int:
        """A seed below 2³² that depends on the run's seed and `key` alone, so no generator has to be saved."""

    @property
    def world(self) -> World:
        """The processes that the search runs in, see `fastnas.world`. Every hook is called in all of them, and must
        leave the same state behind. What it computes from `batch` differs between them, so gradients of it are averaged
        (`world.means`; those of a weight step and of `GradientStrategy` are already); what it computes from a pipeline
        is the same for all, unless the work is shared out (`world.spread`, `Pipeline.part`)."""

    # --- images ---

    @property
    def batch(self) -> tuple[Tensor, Tensor]:
        """Images [B, C, H, W] and labels [B] of the weight step, this process's part of them; set from `before_step` to
        `after_step`."""

    @property
    def weight_pipeline(self) -> Pipeline:
        """Augmented batches of the weight half, the images that train the weights."""

    @property
    def alpha_pipeline(self) -> Callable[[int], Pipeline]:
        """batch size → a pipeline of augmented batches of the α half."""

    @property
    def valid_pipeline(self) -> Pipeline:
        """The α half in a fixed order, without augmentation."""

    # --- how the weights are trained ---

    @property
    def weight_parameters(self) -> list[nn.Parameter]:
        """All parameters of the network but α."""

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """SGD for the weights, with the learning rate of the epoch."""

    @property
    def loss_scale(self) -> float:
        """What a loss must be multiplied by before it is differentiated, and its gradients divided by: 1, unless
        activations are float16, whose small gradients would be 0. `gradients` takes it."""

    # --- what happens on the way ---

    @property
    def graphs(self) -> RecordedCalls:
        """Records calls as CUDA graphs. Recordings are dropped before and after `before_epoch`."""

    @property
    def log(self) -> EventLog:
        """The log of the run."""

    def show(self, phase: str, done: int, total: int, /) -> None:
        """Reports progress: `done` of `total` steps of a phase."""

    def check_stop(self) -> None:
        """Ends the run here if the user asked to stop. Call it where the state of the strategy is complete."""
