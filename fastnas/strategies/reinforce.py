"""REINFORCE (Zoph, Le, "Neural Architecture Search with Reinforcement Learning", ICLR 2017), also in the form of
NAS-Bench-201 (Dong, Yang, ICLR 2020), whose policy is a table of logits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from fastnas.option_types import NotNegative, Population, ShareBelowOne
from fastnas.spaces.encoding import Encoding
from fastnas.strategies.controller import IndependentLogits, Policy, RecurrentPolicy
from fastnas.strategies.policy_strategy import PolicyStrategy
from fastnas.strategies.registry import register_strategy


@dataclass(frozen=True)
class Defaults:
    learning_rate: float
    children: int
    baseline_decay: float


CONTROLLERS = {
    "autoregressive": Defaults(learning_rate=6e-4, children=8, baseline_decay=0.95),
    "independent": Defaults(learning_rate=0.01, children=1, baseline_decay=0.9),
}


@register_strategy
@dataclass
class Reinforce(PolicyStrategy):
    """REINFORCE. Where no default is given, the controller decides."""

    name: ClassVar[str] = "reinforce"
    default_evaluations: ClassVar[int] = 400

    controller: Literal["autoregressive", "independent"] = "autoregressive"
    """autoregressive: a 2-layer LSTM of 35 units that reads its own choices; independent: a row of logits per gene."""
    controller_learning_rate: NotNegative | None = None
    """Learning rate of Adam; None for 6e-4 (autoregressive) or 0.01 (independent)."""
    children_per_update: Population | None = None
    """m, architectures for one update; None for 8 (autoregressive) or 1 (independent)."""
    baseline_decay: ShareBelowOne | None = None
    """Decay of the exponential mean of rewards; None for 0.95 (autoregressive) or 0.9 (independent)."""
    reward_power: NotNegative = 1.0
    """The reward is accuracy to this power; the paper cubed it."""

    def __post_init__(self) -> None:
        super().__post_init__()
        own = CONTROLLERS[self.controller]
        self._decay = own.baseline_decay if self.baseline_decay is None else self.baseline_decay
        self._rate = own.learning_rate if self.controller_learning_rate is None else self.controller_learning_rate
        self.check_baseline(self._decay, self.children)

    @property
    def children(self) -> int:
        return self.children_per_update or CONTROLLERS[self.controller].children

    def make_policy(self, encoding: Encoding, seed: int) -> Policy:
        if self.controller == "independent":
            return IndependentLogits(encoding, seed)
        return RecurrentPolicy(encoding, seed, hidden=35, layers=2, scale=0.08)

    def make_optimizer(self, policy: Policy) -> torch.optim.Optimizer:
        return torch.optim.Adam(policy.parameters(), lr=self._rate)

    def update(self, codes: Tensor, rewards: Tensor) -> None:
        rewards = rewards**self.reward_power
        baseline = self.follow(rewards.mean().item(), self._decay)
        log_probability, _ = self.policy(codes)  # [m]
        self.step(-(log_probability * (rewards - baseline)).mean())
