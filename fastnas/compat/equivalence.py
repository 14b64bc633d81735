"""Confirms numerically that a module computes what its structure suggests.

Names and structure do not tell what a forward pass does with them: somebody may have added a residual, a scale or a
softmax. So the module's own forward and the fused one run on copies of the module, on the same random numbers in
float64, in training and in evaluation mode; outputs, all gradients and all buffers must agree. The module itself, its
buffers and the random state are untouched.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fastnas.compat.signature import hooks_of, original_class

Call = Callable[[nn.Module, Sequence[Any]], Any]
"""The output for a copy of the module and the arguments."""

TOLERANCE = 1e-7  # of float64 sums in another order, with room for ill-conditioned normalisations


def mismatch(
    module: nn.Module, arguments: Callable[[], Sequence[Sequence[Any]]], theirs: Call, ours: Call
) -> str | None:
    """Why the fused forward is not equivalent to the module's own; None if it is.

    Args:
        arguments: draws the arguments of each kind of call from torch's generator: float64 tensors, or lists of these.
        theirs: the module's own forward.
        ours: the fused one; None where it does not apply.
    """
    devices = {tensor.device for tensor in (*module.parameters(), *module.buffers())}
    if len(devices) > 1 or any(device.type == "meta" for device in devices):
        return f"its tensors are on {' and '.join(sorted(map(str, devices)))}"
    device = devices.pop() if devices else torch.device("cpu")
    cuda = [device] if device.type == "cuda" else []
    with (
        torch.random.fork_rng(cuda),
        torch.enable_grad(),
        torch.autocast(device.type, enabled=False),
        torch.inference_mode(False),
    ):
        torch.manual_seed(0)
        try:
            plain = _copy_of(module)
            calls = _moved(arguments(), device)
        except Exception as error:  # whatever a foreign class raises when it is copied
            return f"it cannot be copied: {_words(error)}"
        # Evaluation comes first: training changes the buffers, in both networks alike.
        networks = _restored(copy.deepcopy(plain)), plain
        for given, training in itertools.product(calls, (False, True)):
            pair = []
            for call, network in zip((theirs, ours), networks, strict=True):
                torch.manual_seed(1)
                try:
                    pair.append(_outcome(network.train(training), call, given))
                except Exception as error:  # whatever a foreign forward raises for arguments that it does not know
                    return f"the equivalence check failed: {_words(error)}"
            expected, actual = pair
            mode = "training" if training else "evaluation"
            if expected is None or actual is None:
                return f"it is of another form in {mode} mode"
            if not _agree(expected, actual):
                return f"it computes something else in {mode} mode"
    return None


def _words(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"[:160]


def _copy_of(module: nn.Module) -> nn.Module:
    """A copy in float64, without hooks, with random values so that every number matters."""
    twin = copy.deepcopy(module).double()
    for inner in twin.modules():
        if isinstance(inner, nn.Dropout):
            inner.p = 0.0
        if isinstance(inner, nn.BatchNorm2d):
            if inner.affine:
                nn.init.uniform_(inner.weight, 0.5, 1.5)
                nn.init.normal_(inner.bias)
            if inner.running_mean is not None and inner.running_var is not None:
                nn.init.normal_(inner.running_mean, std=0.2)
                nn.init.uniform_(inner.running_var, 0.5, 1.5)
    for hooks in hooks_of(twin):
        hooks.clear()
    for parameter in twin.parameters():
        parameter.requires_grad_(parameter.is_floating_point())
    return twin


def _restored(network: nn.Module) -> nn.Module:
    for inner in network.modules():
        inner.__class__ = original_class(inner)
    return network


def _moved(value: Any, device: torch.device) -> Any:
    if isinstance(value, Tensor):
        return value.to(device)
    return [_moved(each, device) for each in value]


def _tensors(value: Any) -> list[Tensor]:
    return [value] if isinstance(value, Tensor) else [tensor for each in value for tensor in _tensors(each)]


def _leaves(value: Any) -> Any:
    return value.clone().requires_grad_() if isinstance(value, Tensor) else [_leaves(each) for each in value]


def _outcome(network: nn.Module, call: Call, arguments: Sequence[Any]) -> list[Tensor] | None:
    given = _leaves(arguments)
    output = call(network, given)
    if output is None:
        return None
    outputs = _tensors(output)
    output = torch.cat([each.flatten() for each in outputs])
    direction = torch.linspace(-3, 3, output.numel(), dtype=output.dtype, device=output.device).sin().view_as(output)
    sources = [*_tensors(given), *network.parameters()]
    grads = torch.autograd.grad((output * direction).sum(), sources, allow_unused=True, materialize_grads=True)
    return [*(each.detach() for each in outputs), *grads, *(buffer.double() for buffer in network.buffers())]


def _agree(expected: Sequence[Tensor], actual: Sequence[Tensor]) -> bool:
    # Differences are relative to the largest value of a tensor or, where that is 0 up to rounding, of all tensors.
    floor = 1e-3 * max(_largest(tensor) for tensor in expected)
    return all(
        a.shape == b.shape and _largest(a - b) <= TOLERANCE * max(_largest(a), floor)
        for a, b in zip(expected, actual, strict=True)
    )


def _largest(tensor: Tensor) -> float:
    return float(tensor.abs().max()) if tensor.numel() else 0.0
