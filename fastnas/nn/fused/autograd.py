"""The limit of fused backward passes: they are not differentiable themselves."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch

Backward = Callable[..., tuple[torch.Tensor | None, ...]]


def first_order(backward: Backward) -> Backward:
    """Raises where a graph of the backward pass is wanted.

    `once_differentiable` raises only when such a graph is run, and not even then where `torch.autograd.grad` is asked
    for tensors that it reaches another way, as α through a softmax: the result would lack a part.
    """

    @functools.wraps(backward)
    def checked(ctx: Any, *grads: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise RuntimeError(
                "the fused operators can be differentiated once, but create_graph=True asks for a second derivative: "
                'build the network with backend="reference", or undo accelerate by fastnas.compat.restore(network).'
            )
        return backward(ctx, *grads)

    return checked
