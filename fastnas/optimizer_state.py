"""The state of an optimizer, out of a checkpoint."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor
from torch.optim import Adam, Optimizer

ADAM = frozenset({"step", "exp_avg", "exp_avg_sq"})


def load_optimizer(optimizer: Optimizer, state: dict[str, Any]) -> None:
    """`load_state_dict` that refuses what torch would take, and stumble over at the first step.

    Raises:
        ValueError: options of other types, or what is kept for parameters of other shapes.
    """
    fresh = [{name: value for name, value in group.items() if name != "params"} for group in optimizer.param_groups]
    optimizer.load_state_dict(state)
    for before, group in zip(fresh, optimizer.param_groups, strict=True):
        for name, value in before.items():
            if not _alike(value, group.get(name)):
                raise ValueError(f"{name} of the optimizer is {group.get(name)!r}, expected one such as {value!r}")
    for parameter, kept in optimizer.state.items():
        if isinstance(optimizer, Adam) and not set(kept) >= ADAM:
            raise ValueError("the optimizer lacks its averages of a gradient")
        for name, value in kept.items():
            shape = value.shape if isinstance(value, Tensor) else None
            fits = _is_number(value) or shape == () if name == "step" else value is None or shape == parameter.shape
            if not fits:
                found = type(value).__name__ if shape is None else list(shape)
                raise ValueError(f"{name} of the optimizer is {found}, expected {list(parameter.shape)}")


def _alike(fresh: Any, value: Any) -> bool:
    if isinstance(fresh, tuple | list):
        return isinstance(value, tuple | list) and len(fresh) == len(value) and all(map(_alike, fresh, value))
    if _is_number(fresh):
        return _is_number(value)
    return value is None or isinstance(value, bool) if fresh is None or isinstance(fresh, bool) else True


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
