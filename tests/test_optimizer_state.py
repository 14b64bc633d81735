from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from fastnas.optimizer_state import load_optimizer


def stepped(kind: str) -> torch.optim.Optimizer:
    """An optimizer that has made a step."""
    weight = nn.Parameter(torch.ones(2, 3))
    optimizer: torch.optim.Optimizer = (
        torch.optim.Adam([weight], betas=(0.5, 0.999))
        if kind == "adam"
        else torch.optim.SGD([weight], 0.1, momentum=0.9)
    )
    weight.sum().backward()
    optimizer.step()
    return optimizer


@pytest.mark.parametrize("kind", ["adam", "sgd"])
def test_a_state_of_its_own_is_taken(kind: str) -> None:
    optimizer, other = stepped(kind), stepped(kind)
    other.step()
    load_optimizer(optimizer, copy.deepcopy(other.state_dict()))
    for kept, expected in zip(optimizer.state.values(), other.state.values(), strict=True):
        assert kept.keys() == expected.keys()
        assert all(torch.equal(kept[name], expected[name]) for name in kept)
    load_optimizer(optimizer, type(optimizer)(optimizer.param_groups[0]["params"], lr=0.1).state_dict())  # no step yet


@pytest.mark.parametrize(
    ("kind", "place", "value", "message"),
    [
        ("adam", ("state", 0, "exp_avg"), 7.0, r"exp_avg of the optimizer is float, expected \[2, 3\]"),
        ("adam", ("state", 0, "exp_avg"), torch.ones(3), r"exp_avg of the optimizer is \[3\], expected \[2, 3\]"),
        ("adam", ("state", 0, "step"), torch.ones(2), r"step of the optimizer is \[2\]"),
        ("adam", ("state", 0), {"step": 3}, "lacks its averages"),
        ("adam", ("param_groups", 0, "betas"), 0.5, "betas of the optimizer is 0.5"),
        ("adam", ("param_groups", 0, "lr"), "fast", "lr of the optimizer is 'fast'"),
        ("sgd", ("state", 0, "momentum_buffer"), torch.tensor(1.0), r"momentum_buffer of the optimizer is \[\]"),
        ("sgd", ("param_groups", 0, "momentum"), float("nan"), "momentum of the optimizer is nan"),
        ("sgd", ("param_groups", 0, "nesterov"), "no", "nesterov of the optimizer is 'no'"),
    ],
)
def test_other_states_are_refused(kind: str, place: tuple[Any, ...], value: Any, message: str) -> None:
    optimizer = stepped(kind)
    state: Any = copy.deepcopy(optimizer.state_dict())
    node = state
    for key in place[:-1]:
        node = node[key]
    node[place[-1]] = value
    with pytest.raises(ValueError, match=message):
        load_optimizer(optimizer, state)
