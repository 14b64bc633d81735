"""What the reinforcement strategies share: sampling a policy, rewards, and a baseline that follows them."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from fastnas.errors import UserError
from fastnas.optimizer_state import load_optimizer
from fastnas.spaces.encoding import Code, Encoding
from fastnas.strategies.controller import Policy, codes_tensor
from fastnas.strategies.discrete import DiscreteStrategy, Individual


@dataclass
class PolicyStrategy(DiscreteStrategy):
    """Base of `reinforce`, `nasnet-ppo` and `enas`: they define the policy, its optimizer and its update."""

    published_defaults: ClassVar = {
        **DiscreteStrategy.published_defaults,
        "data": {"batch_size": 64, "split": 0.9},
    }
    default_warm_up: ClassVar[float] = 0.0

    fitness_images: Literal["same", "generation", "architecture"] = "generation"

    @abstractmethod
    def make_policy(self, encoding: Encoding, seed: int) -> Policy: ...

    @abstractmethod
    def make_optimizer(self, policy: Policy) -> torch.optim.Optimizer: ...

    @abstractmethod
    def update(self, codes: Tensor, rewards: Tensor) -> None:
        """One update of the policy from codes [m, genes] and rewards [m]."""

    @property
    @abstractmethod
    def children(self) -> int:
        """m, architectures for one update."""

    def begin(self, encoding: Encoding, seed: int) -> None:
        super().begin(encoding, seed)
        self.policy = self.make_policy(encoding, self.random.getrandbits(63))
        self.optimizer = self.make_optimizer(self.policy)
        self.baseline = [0.0, 0.0]  # exponential sums of rewards and of their weights

    def ask(self) -> list[Code]:
        return self.policy.sample(self.children, self.random.getrandbits(63))

    def training_code(self, rng: Random) -> Code:
        return self.policy.sample(1, rng.getrandbits(63))[0]

    def reward(self, individual: Individual) -> float:
        return individual.accuracy

    def tell(self, individuals: Sequence[Individual]) -> None:
        rewards = torch.tensor([self.reward(individual) for individual in individuals])  # [m]
        self.update(codes_tensor([individual.code for individual in individuals]), rewards)

    def follow(self, reward: float, decay: float) -> float:
        """Moves the baseline towards a reward and returns it: an exponential mean with bias correction."""
        total, weight = self.baseline
        self.baseline = [decay * total + (1 - decay) * reward, decay * weight + (1 - decay)]
        return self.baseline[0] / self.baseline[1]

    def check_baseline(self, decay: float, rewards: int = 1) -> None:
        """UserError where the baseline, moved by this many rewards at a time, is what it is compared with, so that
        nothing would ever be learned."""
        if decay == 0 and rewards == 1:
            raise UserError(
                "baseline_decay is 0, so every reward would be its own baseline and the controller would never learn: "
                "give a baseline_decay above 0"
                + (", or --children-per-update 2 or more." if self.name != "enas" else ".")
            )

    def step(self, loss: Tensor) -> None:
        """One step of the policy's optimizer."""
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()

    def own_state(self) -> dict[str, Any]:
        return {
            "policy": self.policy.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "baseline": list(self.baseline),
        }

    def load_own_state(self, state: dict[str, Any]) -> None:
        self.policy.load_state_dict(state["policy"])
        load_optimizer(self.optimizer, state["optimizer"])
        self.baseline = list(state["baseline"])
