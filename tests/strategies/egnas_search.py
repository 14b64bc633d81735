"""As much of a search as a strategy sees, without engine and data, and networks that give any logits a test wants."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable, Iterator
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

import fastnas.data
from fastnas.data import Pipeline
from fastnas.engine.cuda_graph import Graphs
from fastnas.engine.interrupt import Interrupted
from fastnas.engine.search import Search
from fastnas.nn import Supernet
from fastnas.spaces import CELL_KINDS
from fastnas.strategies import Strategy
from fastnas.strategies.cma_es import CMAES
from fastnas.strategies.egnas import EGNAS
from fastnas.world import ALONE

IMAGES = 8  # in a batch
Answer = Callable[[int, int], tuple[int, float]]


class Batches:
    """Three different batches of random images in every epoch; `served` says which ones were asked for."""

    batch_size = IMAGES

    def __init__(self) -> None:
        self.served: list[tuple[int, int]] = []
        self.source = fastnas.data.open("digits")  # what a checkpoint notes of the images; none of them is served

    def __len__(self) -> int:
        return 3

    def batch(self, epoch: int, step: int) -> tuple[Tensor, Tensor]:
        self.served.append((epoch, step))
        return batch(epoch, step)

    def part(self, rank: int, size: int) -> Batches:
        assert (rank, size) == (0, 1)
        return self

    def epoch(self, epoch: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        return (batch(epoch, step) for step in range(start, len(self)))


def batch(epoch: int, step: int) -> tuple[Tensor, Tensor]:
    """Images [8, 3, 8, 8] and labels [8] of four classes."""
    generator = torch.Generator().manual_seed(100 * epoch + step)
    images = torch.randn(IMAGES, 3, 8, 8, generator=generator)
    return images, torch.randint(4, (IMAGES,), generator=generator)


class Events:
    """Stands for the log of a run."""

    def __init__(self) -> None:
        self.all: list[dict[str, Any]] = []

    def write(self, event: str, **fields: Any) -> None:
        self.all.append(copy.deepcopy({"event": event, **fields}))

    def named(self, event: str) -> list[dict[str, Any]]:
        return [record for record in self.all if record["event"] == event]


class FakeSearch:
    """Calls the hooks of epochs as the engine does, and stops where it is told to.

    Args:
        stop_at: raise `Interrupted` at this call of `check_stop`, counted from 1.
    """

    world = ALONE
    loss_scale = 1.0

    def __init__(
        self, network: nn.Module, strategy: Strategy, epochs: int = 50, seed: int = 2, stop_at: int | None = None
    ) -> None:
        self.graphs = Graphs(None)
        self.network = network
        self.strategy = strategy
        self.epochs = epochs
        self.epoch = 0
        self.step = 0
        self.seed = seed
        self.weight_parameters = [p for name, p in network.named_parameters() if not name.startswith("alphas.")]
        self.log = Events()
        self.batches = Batches()
        self.batch_sizes: list[int] = []
        self.stop_at = stop_at
        self.stops = 0
        strategy.start(self.search)

    @property
    def search(self) -> Search:
        return cast(Search, self)

    def seed_for(self, *key: int) -> int:
        return Search.seed_for(self.search, *key)

    def alpha_pipeline(self, batch_size: int) -> Pipeline:
        self.batch_sizes.append(batch_size)
        return cast(Pipeline, self.batches)

    def show(self, phase: str, done: int, total: int) -> None:
        assert 0 < done <= total or phase == "evolution"

    def check_stop(self) -> None:
        self.stops += 1
        if self.stops == self.stop_at:
            raise Interrupted

    def run(self, first: int, last: int) -> FakeSearch:
        """The hooks of the epochs `first` to `last`, both included."""
        for self.epoch in range(first, last + 1):
            self.network.train()
            self.strategy.before_epoch(self.search)
            self.strategy.after_epoch(self.search)
        return self


def alpha_of(network: nn.Module) -> Tensor:
    """A copy of α, [2, E, O]."""
    alphas = cast(nn.ParameterDict, network.alphas)
    return torch.stack([alphas[kind].detach().clone() for kind in CELL_KINDS])


def by_kind(stacked: Tensor) -> dict[str, Tensor]:
    """[..., 2, E, O] as the tables [..., E, O] of the two kinds of cells."""
    return {kind: stacked[..., index, :, :] for index, kind in enumerate(CELL_KINDS)}


class Toy(nn.Module):
    """Logits by a linear function of images and operation weights, in no time and for any shape of α.

    `scored` holds the operation weights [P, 2, E, O] of every call, `modes` how it was to normalise.
    """

    def __init__(self, edges: int = 2, candidates: int = 7, classes: int = 4) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(11)
        draw = [torch.randn(edges, candidates, generator=generator) * 0.3 for _ in CELL_KINDS]
        self.alphas = nn.ParameterDict(
            {kind: nn.Parameter(alpha) for kind, alpha in zip(CELL_KINDS, draw, strict=True)}
        )
        self.from_images = nn.Parameter(torch.randn(3, classes, generator=generator) * 4)
        self.from_weights = nn.Parameter(torch.randn(2 * edges * candidates, classes, generator=generator) * 4)
        self.scored: list[Tensor] = []
        self.modes: list[str] = []

    @property
    def individuals(self) -> int:
        return sum(len(weights) for weights in self.scored)

    def fitting_chunk(self, x: Tensor) -> int:
        return 17

    def population_logits(self, x: Tensor, alphas: dict[str, Tensor], chunk: int, bn_mode: str) -> Tensor:
        assert chunk == 17
        assert not torch.is_grad_enabled()
        weights = torch.stack([torch.softmax(alphas[kind], -1) for kind in CELL_KINDS], dim=1)  # [P, 2, E, O]
        return self.score(x, weights, bn_mode)

    def forward(self, x: Tensor, op_weights: dict[str, Tensor]) -> Tensor:
        assert not torch.is_grad_enabled()
        weights = torch.stack([op_weights[kind] for kind in CELL_KINDS])  # [2, E, O]
        return self.score(x, weights[None], "train" if self.training else "running")[0]

    def score(self, x: Tensor, weights: Tensor, mode: str) -> Tensor:
        self.scored.append(weights)
        self.modes.append(mode)
        return self.answer(x, weights)

    def answer(self, x: Tensor, weights: Tensor) -> Tensor:
        """[P, B, classes]."""
        return (x.mean((2, 3)) * 8 @ self.from_images)[None] + (weights.flatten(1) @ self.from_weights)[:, None]


class Scripted(Toy):
    """Classifies as a script says.

    Args:
        script: from the number of the call and of the individual in it to (images of 8 that are classified correctly,
            margin of the logits). The loss is `loss_of` these.
    """

    def __init__(self, script: Answer) -> None:
        super().__init__()
        self.script = script

    def answer(self, x: Tensor, weights: Tensor) -> Tensor:
        labels = next(labels for images, labels in every_batch() if torch.equal(images, x))  # [8]
        call = len(self.scored) - 1
        logits = torch.zeros(len(weights), IMAGES, 4, dtype=torch.float64)
        for individual in range(len(weights)):
            correct, margin = self.script(call, individual)
            for image in range(IMAGES):
                shown = labels[image] if image < correct else (labels[image] + 1) % 4
                logits[individual, image, shown] = margin
        return logits


def every_batch() -> list[tuple[Tensor, Tensor]]:
    return [batch(epoch, step) for epoch in range(4) for step in range(3)]


def loss_of(correct: int, margin: float) -> float:
    """Mean cross-entropy of what `Scripted` answers."""
    losses = torch.log(3 + torch.tensor(margin, dtype=torch.float64).exp()) - torch.tensor([margin, 0.0]).double()
    return ((losses[0] * correct + losses[1] * (IMAGES - correct)) / IMAGES).item()


class Recorder(CMAES):
    """Keeps every run that a strategy begins."""

    runs: list[Recorder]

    def __init__(self, mean: Tensor, sigma: float, population: int, seed: int) -> None:
        super().__init__(mean, sigma, population, seed)
        self.first_mean, self.sigma, self.seed = mean.clone(), sigma, seed
        self.samples: list[Tensor] = []
        self.runs.append(self)

    def tell(self, fitness: Tensor) -> None:
        self.samples.append(self.ask())
        super().tell(fitness)


def tiny_supernet(seed: int = 0) -> Supernet:
    torch.manual_seed(seed)
    return Supernet("egnas", channels=4, layers=3, num_classes=4, partial_channels=4)


def calibrated(seed: int = 0) -> Supernet:
    """With running statistics that are not those of a fresh network."""
    network = tiny_supernet(seed)
    with torch.no_grad():
        network(3 * batch(9, 0)[0] + 1)
    return network


def assert_interruptible(make_network: Callable[[], nn.Module], epochs: int = 2, **options: Any) -> None:
    """Interrupts at every place where it is possible, continues in new objects from a checkpoint, and compares α, the
    network and the events with those of a run that was left alone."""
    whole = FakeSearch(make_network(), EGNAS(warm_up=0, **options)).run(0, epochs - 1)
    places, rules = whole.stops, cast(EGNAS, whole.strategy).rules
    assert places == epochs * rules.samples * rules.generations
    for place in range(1, places + 1):
        first = FakeSearch(make_network(), EGNAS(warm_up=0, **options), stop_at=place)
        with pytest.raises(Interrupted):
            first.run(0, epochs - 1)
        file = io.BytesIO()
        torch.save({"strategy": first.strategy.state_dict(), "network": first.network.state_dict()}, file)
        file.seek(0)
        state = torch.load(file, weights_only=True)
        second = FakeSearch(make_network(), EGNAS(warm_up=0, **options))
        second.network.load_state_dict(state["network"])
        second.strategy.load_state_dict(state["strategy"])
        second.run(first.epoch, epochs - 1)
        assert first.log.all + second.log.all == whole.log.all, f"interrupted at place {place}"
        outcome = second.network.state_dict()
        for name, tensor in whole.network.state_dict().items():
            assert torch.equal(outcome[name], tensor), f"{name}, interrupted at place {place}"
