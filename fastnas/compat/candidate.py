"""Recognises candidate operations of foreign code by the layers that they consist of."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fastnas.compat.equivalence import mismatch
from fastnas.compat.signature import hooks_of, is_layer, original_class, signature
from fastnas.nn.fused.branches import Branch, branch_of
from fastnas.nn.fused.node import fused_sum
from fastnas.nn.fused.patterns import (
    IdentityPattern,
    Pattern,
    PointwisePattern,
    SeparablePattern,
    Stage,
    ZeroPattern,
    match_pool,
)

_LETTERS: dict[type[nn.Module], str] = {
    nn.ReLU: "R",
    nn.Conv2d: "C",
    nn.BatchNorm2d: "B",
    nn.AvgPool2d: "P",
    nn.MaxPool2d: "P",
    nn.Identity: "",
    nn.ConstantPad2d: "",
    nn.ZeroPad2d: "",
    nn.Dropout: "",
}


@dataclass(eq=False)
class Candidate:
    """A candidate operation.

    Attributes:
        module: as the foreign code built it.
        pattern: what it computes; None where the operators do not know it.
        reason: why they do not.
        dropouts: the dropout layers in it; while one drops, the candidate runs unchanged.
    """

    module: nn.Module
    pattern: Pattern | None
    reason: str
    dropouts: tuple[nn.Dropout, ...]

    def __post_init__(self) -> None:
        self.branch: Branch | None = branch_of(self.pattern)
        self.call: Callable[[Tensor], Tensor] = _called(self.module)
        self._hooks = list(hooks_of(self.module))

    @property
    def hooked(self) -> bool:
        """Whether other code has registered hooks in it."""
        return any(self._hooks)

    @property
    def dropping(self) -> bool:
        return any(dropout.training and dropout.p > 0 for dropout in self.dropouts)

    def on_rows(self, x: Tensor) -> Tensor:
        return self.call(x.contiguous())

    @property
    def channels(self) -> int | None:
        """C of its input, if a layer tells it."""
        if self.pattern is None:
            return None
        if self.pattern.convolutions:
            return self.pattern.convolutions[0].in_channels
        return self.pattern.norms[0].num_features if self.pattern.norms else None


def recognise(module: nn.Module) -> Candidate:
    """What a module computes, by its layers, confirmed by an equivalence check."""
    dropouts = tuple(layer for layer in module.modules() if isinstance(layer, nn.Dropout))
    found = _match(module)
    if isinstance(found, str):
        return Candidate(module, None, found, dropouts)
    key = type(found), signature(module)
    if key not in _verdicts:
        _verdicts[key] = "" if isinstance(found, IdentityPattern | ZeroPattern) else _try(module, found) or ""
    reason = _verdicts[key]
    return Candidate(module, None if reason else found, reason, dropouts)


_verdicts: dict[Hashable, str] = {}
_probes: dict[Hashable, IdentityPattern | ZeroPattern | None] = {}


def _called(module: nn.Module) -> Callable[[Tensor], Tensor]:
    """The module as a function of x alone. NASLib's candidates also take the data of their edge, which they ignore."""
    missing = positional(original_class(module).forward, required=True)[2:]  # besides self and x
    return (lambda x: module(x, *(None for _ in missing))) if missing else module


def positional(function: Callable[..., Any], required: bool = False) -> list[str]:
    """The positional parameters, or those of them that have no default."""
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    parameters = inspect.signature(function).parameters.values()
    return [each.name for each in parameters if each.kind in kinds and not (required and each.default != each.empty)]


def _try(module: nn.Module, pattern: Pattern) -> str | None:
    channels = Candidate(module, pattern, "", ()).channels or 4

    def ours(twin: nn.Module, arguments: Sequence[Any]) -> Tensor | None:
        found = _match(twin)
        assert not isinstance(found, str)
        return fused_sum([twin], arguments, branches=[branch_of(found)])

    return mismatch(
        module,
        lambda: [[torch.randn(3, channels, 8, 8, dtype=torch.float64)]],
        lambda twin, arguments: _called(twin)(*arguments),
        ours,
    )


def _layers(module: nn.Module) -> list[nn.Module]:
    children = list(module.children())
    if not children:
        return [module]
    return [layer for child in children for layer in _layers(child)]


def _match(module: nn.Module) -> Pattern | str:
    """The pattern that the structure suggests, or why there is none."""
    if any("forward" in vars(inner) for inner in module.modules()):
        return "its forward is overridden on the instance"
    if any(inner._parameters and not is_layer(inner) for inner in module.modules()):
        return "it has parameters of its own"
    layers = _layers(module)
    kinds = [_letter(layer) for layer in layers]
    unknown = [layer for layer, kind in zip(layers, kinds, strict=True) if kind == "?"]
    core = [layer for layer, kind in zip(layers, kinds, strict=True) if kind not in ("", "?")]
    if not core and len(unknown) <= 1:
        probe = _probe(module)
        return probe or f"{_name(module)} is not known"
    if unknown:
        return f"{_name(unknown[0])} is not known"
    pattern = _by_kinds("".join(kinds), core)
    return pattern or f"the operators do not compute {_name(module)}"


def _name(module: nn.Module) -> str:
    return original_class(module).__name__


def _letter(layer: nn.Module) -> str:
    """The letter of a layer, or of a parametrised one, whose class derives from the layer's and keeps its forward."""
    for kind, letter in _LETTERS.items():
        if isinstance(layer, kind):
            return letter if type(layer).forward is kind.forward else "?"
    return "?"


def _by_kinds(kinds: str, layers: Sequence[Any]) -> Pattern | None:
    match kinds:
        case "RCCB" | "RCCBRCCB":
            if kinds == "RCCB" and (reduction := _reduction(*layers)):
                return reduction
            stages = tuple(Stage(*layers[i + 1 : i + 4]) for i in range(0, len(layers), 4))
            later = all(stage.depthwise.stride == (1, 1) for stage in stages[1:])
            return SeparablePattern(stages) if later and all(map(_is_stage, stages)) else None
        case "RCB":
            plain = _is_pointwise(layers[1], (1, 1))
            return PointwisePattern((layers[1],), layers[2]) if plain else None
        case "P":
            return match_pool(layers[0])
        case "PB":
            return match_pool(layers[0], layers[1])
    return None


def _reduction(relu: nn.ReLU, first: nn.Conv2d, second: nn.Conv2d, norm: nn.BatchNorm2d) -> PointwisePattern | None:
    halves = (first, second)
    alike = first.in_channels == second.in_channels and sum(half.out_channels for half in halves) == norm.num_features
    return PointwisePattern(halves, norm) if alike and all(_is_pointwise(half, (2, 2)) for half in halves) else None


def _is_pointwise(layer: nn.Conv2d, stride: tuple[int, int]) -> bool:
    return (layer.kernel_size, layer.stride, layer.padding, layer.groups) == ((1, 1), stride, (0, 0), 1)


def _is_stage(stage: Stage) -> bool:
    depthwise, pointwise, _ = stage
    channels = depthwise.in_channels
    kernel, dilation = depthwise.kernel_size[0], depthwise.dilation[0]
    padding = dilation * (kernel - 1) // 2
    return (
        depthwise.groups == depthwise.out_channels == channels
        and pointwise.in_channels == pointwise.out_channels == channels
        and _is_pointwise(pointwise, (1, 1))
        and kernel % 2 == 1
        and depthwise.padding_mode == "zeros"
        and depthwise.kernel_size == (kernel, kernel)
        and depthwise.dilation == (dilation, dilation)
        and depthwise.padding == (padding, padding)
        and depthwise.stride in ((1, 1), (2, 2))
    )


def _probe(module: nn.Module) -> IdentityPattern | ZeroPattern | None:
    """Whether a module without parameters returns its input, or zeros."""
    if any(True for _ in module.parameters()) or any(True for _ in module.buffers()):
        return None
    key = signature(module)
    if key not in _probes:
        _probes[key] = _probed(module)
    return _probes[key]


def _probed(module: nn.Module) -> IdentityPattern | ZeroPattern | None:
    twin = copy.deepcopy(module)
    for layer in twin.modules():
        if isinstance(layer, nn.Dropout):
            layer.p = 0.0
    for hooks in hooks_of(twin):
        hooks.clear()
    found: list[tuple[type, int]] = []
    with torch.random.fork_rng([]), torch.no_grad():
        x = torch.randn(2, 4, 6, 6, dtype=torch.float64, device="cpu")
        for training in (True, False):
            try:
                y = _called(twin.train(training))(x.clone())
            except Exception:  # whatever a foreign forward raises
                return None
            if not isinstance(y, Tensor) or y.dtype != x.dtype:
                return None
            if y.equal(x):
                found.append((IdentityPattern, 1))
            elif y.count_nonzero() == 0 and y.shape[2:] in ((6, 6), (3, 3)) and y.shape[:2] == x.shape[:2]:
                found.append((ZeroPattern, 6 // y.shape[2]))
    if len(found) < 2 or found[0] != found[1]:
        return None
    kind, stride = found[0]
    return ZeroPattern(stride) if kind is ZeroPattern else IdentityPattern()
