"""What fused autograd functions share: their limit, and the way in which tensors reach their backward pass."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator
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


def structure_of(lists: list[Any]) -> Any:
    """How tensors are nested in lists, without the tensors: autograd keeps those, and wants them side by side."""
    if lists and isinstance(lists[0], list):
        return [structure_of(each) for each in lists]
    return len(lists)


def flattened(lists: list[Any]) -> list[Any]:
    """The tensors of nested lists, side by side."""
    if lists and isinstance(lists[0], list):
        return [tensor for each in lists for tensor in flattened(each)]
    return lists


def nested(structure: Any, tensors: Iterator[Any]) -> list[Any]:
    """Nested lists of the next tensors, in the order of `flattened`."""
    if isinstance(structure, int):
        return list(itertools.islice(tensors, structure))
    return [nested(each, tensors) for each in structure]
