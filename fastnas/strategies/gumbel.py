"""The Gumbel-softmax (Jang et al., ICLR 2017; Maddison et al., ICLR 2017): a random choice that can be
differentiated."""

from __future__ import annotations

import torch
from torch import Tensor


def gumbel_softmax(logits: Tensor, temperature: float, generator: torch.Generator) -> Tensor:
    """softmax((logits + G) / temperature) along the last axis, G = -ln(-ln U), U uniform: [..., O] → [..., O].

    The noise is drawn on the CPU in float32, so that it is the same on every device.
    """
    uniform = torch.rand(logits.shape, generator=generator).clamp_(1e-10, 1 - 1e-7)
    noise = -torch.log(-torch.log(uniform)).to(logits)  # [..., O]
    return torch.softmax((logits + noise) / temperature, -1)


def straight_through(soft: Tensor) -> Tensor:
    """One-hot at the largest entry of each row, with the gradient of `soft`: [..., O] → [..., O]."""
    hard = torch.zeros_like(soft).scatter_(-1, soft.argmax(-1, keepdim=True), 1.0)
    return hard + soft - soft.detach()
