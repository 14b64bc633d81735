"""Networks on a GPU that is not there: shapes, dtypes and devices are followed, nothing is computed.

FakeTensorMode refuses operators whose tensors lie on several devices, and values that a program asks for.
`OnDevice` also refuses every tensor of the CPU, and with it every copy between the two: what is left, a CUDA graph can
record.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.function import BackwardCFunction
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from fastnas.ops import layout


class HostTraffic(Exception):  # noqa: N818 (not an error of fastnas)
    """An operator read or returned a CPU tensor."""


class OnDevice(TorchDispatchMode):
    """Counts the operators that run within it, by name, and refuses what would keep a GPU waiting."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: dict[str, int] = {}

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        leaves = pytree.tree_leaves((args, kwargs, result))
        if any(isinstance(leaf, Tensor) and leaf.device.type != "cuda" for leaf in leaves):
            raise HostTraffic(str(function))
        name = function._schema.name
        self.calls[name] = self.calls.get(name, 0) + 1
        return result


@contextmanager
def fake_cuda() -> Iterator[None]:
    """Within it tensors are made on the GPU, and the operators count as built for one."""
    missing = {"cuda"} - layout.DEVICE_TYPES
    layout.DEVICE_TYPES |= missing
    try:
        with FakeTensorMode(), torch.device("cuda"):
            yield
    finally:
        layout.DEVICE_TYPES -= missing


@torch.no_grad()
def backward(output: Tensor) -> None:
    """`output.backward()` without the autograd engine, which asks the driver for the stream of every tensor."""
    waiting: dict[Any, dict[int, Tensor]] = {output.grad_fn: {0: torch.ones_like(output)}}
    while waiting:
        node = max(waiting, key=lambda node: node._sequence_nr())  # the last one that was made: no other leads to it
        given = waiting.pop(node)
        grads = [given.get(index) for index in range(len(node._input_metadata))]
        followers = node.next_functions
        if isinstance(node, BackwardCFunction):
            # It also returns entries for arguments that are not tensors.
            results = tuple(itertools.compress(node.apply(*grads), node.needs_input_grad))
            followers = tuple(pair for pair in followers if pair[0] is not None)
        else:
            results = node(*grads)
        results = results if isinstance(results, tuple) else (results,)
        for (follower, index), grad in zip(followers, results, strict=True):
            if follower is None or grad is None:
                continue
            grad = grad.sum_to_size(follower._input_metadata[index].shape)
            if (leaf := getattr(follower, "variable", None)) is not None:
                assert (grad.device, grad.dtype) == (leaf.device, leaf.dtype)
                leaf.grad = grad if leaf.grad is None else leaf.grad + grad
            else:
                sums = waiting.setdefault(follower, {})
                sums[index] = sums[index] + grad if index in sums else grad
