"""NASNet's controller: an LSTM trained by proximal policy optimisation (Zoph et al., "Learning Transferable
Architectures for Scalable Image Recognition", CVPR 2018; Schulman et al., "Proximal Policy Optimization Algorithms",
2017)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fastnas.option_types import Count, NotNegative, Population, ShareAboveZero, ShareBelowOne
from fastnas.spaces.encoding import Encoding
from fastnas.strategies.controller import Policy, RecurrentPolicy
from fastnas.strategies.policy_strategy import PolicyStrategy
from fastnas.strategies.registry import register_strategy


def clipped_objective(ratio: Tensor, advantage: Tensor, clip: float) -> Tensor:
    """min(ρ·A, clip(ρ, 1 - ε, 1 + ε)·A) of each sample, [m] (Schulman et al. 2017, equation 7)."""
    return torch.minimum(ratio * advantage, ratio.clamp(1 - clip, 1 + clip) * advantage)


@register_strategy
@dataclass
class NASNetPPO(PolicyStrategy):
    """PPO with an exponential mean of rewards as the baseline."""

    name: ClassVar[str] = "nasnet-ppo"
    default_evaluations: ClassVar[int] = 1000

    children_per_update: Population = 20
    """Architectures for one update."""
    controller_learning_rate: NotNegative = 3.5e-4
    """Learning rate of Adam for the controller."""
    entropy_weight: NotNegative = 1e-5
    """Weight of the policy's entropy, in nats, in the objective."""
    baseline_decay: ShareBelowOne = 0.95
    """Decay of the exponential mean of rewards."""
    ppo_clip: ShareAboveZero = 0.2
    """ε: the ratio of new to old probability is clipped to 1 ± ε."""
    ppo_epochs: Count = 4
    """Steps of the optimizer on the same architectures."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_baseline(self.baseline_decay, self.children)

    @property
    def children(self) -> int:
        return self.children_per_update

    def make_policy(self, encoding: Encoding, seed: int) -> Policy:
        return RecurrentPolicy(encoding, seed, hidden=100, layers=1, scale=0.1)

    def make_optimizer(self, policy: Policy) -> torch.optim.Optimizer:
        return torch.optim.Adam(policy.parameters(), lr=self.controller_learning_rate)

    def update(self, codes: Tensor, rewards: Tensor) -> None:
        advantage = rewards - self.follow(rewards.mean().item(), self.baseline_decay)  # [m]
        with torch.no_grad():
            before, _ = self.policy(codes)  # [m]
        for _ in range(self.ppo_epochs):
            log_probability, entropy = self.policy(codes)  # [m]
            gain = clipped_objective(torch.exp(log_probability - before), advantage, self.ppo_clip)
            self.step(-(gain + self.entropy_weight * entropy).mean())
