"""ENAS (Pham et al., "Efficient Neural Architecture Search via Parameter Sharing", ICML 2018), the search for cells
("micro").

An LSTM chooses sources by attention over the earlier nodes, and candidates by a softmax; it and the shared weights
are trained in turns. Details are those of the released TensorFlow program; docs/strategies.md lists what is left out.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastnas.errors import UserError
from fastnas.option_types import Channels, Count, NotNegative, Population, Positive, ShareBelowOne
from fastnas.spaces.encoding import CellEncoding, Encoding
from fastnas.strategies.base import Work
from fastnas.strategies.context import SearchContext
from fastnas.strategies.controller import Policy
from fastnas.strategies.discrete import Individual
from fastnas.strategies.policy_strategy import PolicyStrategy
from fastnas.strategies.registry import register_strategy
from fastnas.strategies.untrained_head import POOL, UntrainedHead

BETA2, EPSILON = 0.999, 1e-3  # of Adam for the controller; β₁ is 0
FAVOURED = ("sep_conv_3x3", "sep_conv_5x5")
AUXILIARY_WEIGHT = 0.4
HEAD_KEY = 2**30  # for the seed of the auxiliary head; no epoch reaches it


@dataclass
class _Memory:
    state: Any = None  # (h, c) of the LSTM, [m, H] each
    keys: list[Tensor] = field(default_factory=list)  # of each node of the cell so far, [m, H]
    anchors: list[Tensor] = field(default_factory=list)  # what is read after a node was chosen, [m, H]


class ENASPolicy(Policy):
    """The controller of ENAS over the codes of a space of cells.

    Sources are drawn without replacement, so that every code is legal; all nodes are concatenated.
    """

    def __init__(
        self, encoding: CellEncoding, seed: int, hidden: int, tanh_constant: float, op_tanh_reduce: float
    ) -> None:
        super().__init__(encoding)
        self.tanh_constant, self.op_tanh_reduce = tanh_constant, op_tanh_reduce
        self.per_cell = encoding.cells[0].stop
        self.lstm = nn.LSTMCell(hidden, hidden, bias=False)
        self.start = nn.Parameter(torch.empty(hidden))
        self.key = nn.Linear(hidden, hidden, bias=False)  # W1
        self.query = nn.Linear(hidden, hidden, bias=False)  # W2
        self.attention = nn.Parameter(torch.empty(hidden))  # v
        candidates = encoding.candidates
        self.embedding = nn.Parameter(torch.empty(len(candidates), hidden))
        self.op_weight = nn.Parameter(torch.empty(len(candidates), hidden))
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.uniform_(-0.1, 0.1, generator=generator)
        favoured = torch.tensor([name in FAVOURED for name in candidates])
        self.op_bias = nn.Parameter(10.0 * favoured)
        self.fixed_bias = torch.where(favoured, 0.25, -0.25)  # [candidates]

    def gene_logits(self, gene: int, codes: Tensor, memory: object) -> tuple[Tensor, object]:
        here = memory if isinstance(memory, _Memory) else _Memory()
        position, count = gene % 4, len(codes)
        first = self.start.expand(count, -1)  # [m, H]
        if position == 0 and gene > 0:
            hidden = self._step(here, self.embedding[codes[:, gene - 1]])
            here.anchors.append(hidden)
            here.keys.append(self.key(hidden))
        if gene % self.per_cell == 0:
            here.keys = [self.key(self._step(here, first)) for _ in range(2)]
            here.anchors = [torch.zeros_like(first)] * 2
        if position == 0:
            x = first
        elif position < 3:
            x = torch.stack(here.anchors, 1)[torch.arange(count), codes[:, gene - 1]]  # [m, H]
        else:
            x = self.embedding[codes[:, gene - 1]]
        hidden = self._step(here, x)
        if position < 2:
            scores = torch.tanh(torch.stack(here.keys, 1) + self.query(hidden)[:, None]) @ self.attention  # [m, nodes]
            logits = self.tanh_constant * torch.tanh(scores)
        else:
            logits = hidden @ self.op_weight.T + self.op_bias  # [m, candidates]
            logits = self.tanh_constant / self.op_tanh_reduce * torch.tanh(logits)
            if gene < self.per_cell:
                logits = logits + self.fixed_bias
        return nn.functional.pad(logits, (0, self.width - logits.shape[1])), here

    def _step(self, memory: _Memory, x: Tensor) -> Tensor:
        memory.state = self.lstm(x, memory.state)
        return memory.state[0]


@register_strategy
@dataclass
class ENAS(PolicyStrategy):
    """ENAS: every epoch trains the shared weights, then the controller; the result is the best of ten samples."""

    name: ClassVar[str] = "enas"
    published_defaults: ClassVar = {
        "weights": {
            "epochs": 150, "learning_rate": 0.05, "learning_rate_min": 0.0005, "nesterov": True,
            # It adds 1e-4·Σω² to the loss, whose gradient is 2e-4·ω, and leaves the gradients that it clips unused.
            "weight_decay": 2e-4, "clip": 0.0,
        },
        "data": {"batch_size": 160, "split": 0.9},
        "network": {"channels": 20, "layers": 8, "partial_channels": 1},
    }  # fmt: skip

    default_fitness_batch_size: ClassVar[int] = 160
    default_fitness_batches: ClassVar[int] = 1
    default_finalists: ClassVar[int] = 0  # it samples its own

    fitness_images: Literal["same", "generation", "architecture"] = "architecture"
    controller_steps: Count = 30
    """Steps of the controller after each epoch."""
    children_per_update: Population = 10
    """Architectures for one step."""
    controller_learning_rate: NotNegative = 0.0035
    """Learning rate of Adam for the controller."""
    hidden: Channels = 64
    """Units of the LSTM."""
    entropy_weight: NotNegative = 1e-4
    """Reward for each nat of the policy's entropy; accuracies are in 0..1."""
    baseline_decay: ShareBelowOne = 0.99
    """Decay of the exponential mean of rewards, which starts at 0."""
    tanh_constant: Positive = 1.1
    """tanh limits the logits to ± this."""
    op_tanh_reduce: Positive = 2.5
    """The logits of candidates are limited to ± tanh_constant divided by this."""
    first_restart: Count = 10
    """Epochs of the first cosine of the learning rate; each one after it is twice as long."""
    derive_samples: Population = 10
    """Architectures that are sampled at the end of an epoch; the best of them is its genotype."""
    auxiliary_weight: NotNegative | None = None
    """Weight in the loss of the auxiliary head behind the cell after the second reduction, which itself stays random;
    None: 0.4 where the maps there have 5 pixels a side, as those of images of 17 pixels, else 0."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_baseline(self.baseline_decay)
        if self.finalists:
            raise UserError(
                f"finalists is {self.finalists}, but enas derives the best of its own samples: leave out --finalists, "
                "and give --derive-samples."
            )

    @property
    def children(self) -> int:
        return self.children_per_update

    def budget(self, epochs: int) -> int:
        return self.evaluations or self.controller_steps * self.children_per_update * epochs

    def start(self, search: SearchContext) -> None:
        super().start(search)
        network = search.network
        self._head_after = 2 * network.layers // 3 + 1
        sides = _sides_after_reductions(search)
        fits = self._head_after < network.layers and min(sides) >= POOL
        weight = self.auxiliary_weight
        if weight and not fits:
            raise UserError(
                f"auxiliary_weight is {weight}, but the auxiliary head needs a cell behind the second reduction, and "
                f"maps of {POOL} pixels a side there; they have {sides[0]}×{sides[1]}, and the network "
                f"{network.layers} cells: give 0, or a larger --image-size or more --layers."
            )
        self._weight_of_head = (AUXILIARY_WEIGHT if fits else 0.0) if weight is None else weight
        self._head: UntrainedHead | None = None
        if self._weight_of_head:
            channels = network.classifier.in_features  # those of every cell behind the second reduction
            seed = search.seed_for(HEAD_KEY)
            self._head = UntrainedHead(channels, sides, network.num_classes, seed, search.device)

    @property
    def resolved(self) -> dict[str, Any]:
        found = super().resolved
        return {**found, "auxiliary_weight": self._weight_of_head} if found else found

    def logits(self, search: SearchContext, images: Tensor) -> Tensor:
        if self._head is None:
            return super().logits(search, images)
        maps: list[Tensor] = []
        cell = search.network.cells[self._head_after]
        handle = cell.register_forward_hook(lambda module, given, output: maps.append(output))
        try:
            logits = super().logits(search, images)
        finally:
            handle.remove()
        self._auxiliary_logits = self._head(maps[0])  # [B, classes]
        return logits

    def penalty(self, search: SearchContext) -> Tensor | float:
        if self._head is None:
            return 0.0
        return self._weight_of_head * F.cross_entropy(self._auxiliary_logits, search.batch[1])

    def make_policy(self, encoding: Encoding, seed: int) -> Policy:
        if not isinstance(encoding, CellEncoding):
            raise UserError("enas chooses the sources of nodes, which this space fixes: use reinforce or nasnet-ppo.")
        return ENASPolicy(encoding, seed, self.hidden, self.tanh_constant, self.op_tanh_reduce)

    def make_optimizer(self, policy: Policy) -> torch.optim.Optimizer:
        return torch.optim.Adam(policy.parameters(), lr=self.controller_learning_rate, betas=(0.0, BETA2))

    def step(self, loss: Tensor) -> None:
        updates = 1 + max((int(state["step"]) for state in self.optimizer.state.values()), default=0)
        for group in self.optimizer.param_groups:
            # TensorFlow's Adam adds ε to the root of v as it is, torch's to the one without bias.
            group["eps"] = EPSILON / math.sqrt(1 - BETA2**updates)
        super().step(loss)

    def update(self, codes: Tensor, rewards: Tensor) -> None:
        log_probability, entropy = self.policy(codes)  # [m] each
        rewards = rewards + self.entropy_weight * entropy.detach()
        advantages = []
        for reward in rewards.tolist():
            # Updated before the advantage is formed, and without bias correction, as in the released program.
            self.baseline[0] -= (1 - self.baseline_decay) * (self.baseline[0] - reward)
            advantages.append(reward - self.baseline[0])
        self.step(-(log_probability * torch.tensor(advantages)).mean())

    def schedule(self, search: SearchContext) -> tuple[int, int]:
        return restarted(search.epoch, self.first_restart)

    def work(self, epoch: int, epochs: int) -> Work | None:
        return super().work(epoch, epochs)  # and `derive_samples` architectures, which are few beside them

    def after_epoch(self, search: SearchContext) -> None:
        super().after_epoch(search)
        if search.epoch >= self._first:
            codes = self.policy.sample(self.derive_samples, self.random.getrandbits(63))
            results = self.score(codes)
            found = [Individual(code, result) for code, result in zip(codes, results, strict=True)]
            self.best = max(found, key=lambda individual: individual.accuracy)


def _sides_after_reductions(search: SearchContext) -> tuple[int, int]:
    """Height and width of the maps behind both reduction cells."""
    shrink = 4 * (8 if search.network.stem_name == "imagenet" else 1)
    height, width = (-(-side // shrink) for side in search.weight_pipeline.source.image_size)
    return height, width


def restarted(epoch: int, first: int) -> tuple[int, int]:
    """(epoch within its period, length of the period) where the first period has `first` epochs and each further one is
    twice as long (Loshchilov, Hutter, "SGDR", ICLR 2017)."""
    number = int(math.log2(epoch / first + 1) + 1e-9)
    return epoch - first * (2**number - 1), first * 2**number
