"""What fused autograd functions share: they can be differentiated once, and they save nested lists of tensors."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import torch

Backward = Callable[..., tuple[torch.Tensor | None, ...]]

below_autograd = torch._C._AutoDispatchBelowAutograd
"""A context in which operators do not call Python to ask about autograd, a third of their time on small images."""


def first_order(backward: Backward) -> Backward:
    """Makes a backward pass raise if it is to be differentiated itself (`create_graph=True`).

    `once_differentiable` raises only when the second backward pass runs, and not even then if `torch.autograd.grad`
    reaches the requested tensors another way, such as α through a softmax: the result would silently lack a term.
    """

    @functools.wraps(backward)
    def checked(ctx: Any, *grads: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise RuntimeError(
                "the fused operators can be differentiated once, but create_graph=True asks for a second derivative: "
                'build the network with backend="reference", or undo accelerate with fastnas.compat.restore(network).'
            )
        return backward(ctx, *grads)

    return checked


def structure_of(lists: list[Any]) -> Any:
    """How tensors are nested in lists, without the tensors: autograd saves those, as one flat list."""
    if lists and isinstance(lists[0], list):
        return [structure_of(each) for each in lists]
    return len(lists)


def flattened(lists: list[Any]) -> list[Any]:
    """The tensors of nested lists as one flat list."""
    if lists and isinstance(lists[0], list):
        return [tensor for each in lists for tensor in flattened(each)]
    return lists


def nested(structure: Any, tensors: Iterator[Any]) -> list[Any]:
    """The inverse of `flattened`: nested lists of the next tensors."""
    if isinstance(structure, int):
        return list(itertools.islice(tensors, structure))
    return [nested(each, tensors) for each in structure]
