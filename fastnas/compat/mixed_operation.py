"""A mixed operation of foreign code: Σ_o w_o · candidate_o(x), perhaps on a part of the channels."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Iterator, Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastnas.compat.candidate import Candidate, positional, recognise
from fastnas.compat.replacement import ForwardPlan, PatchSpec, Unsupported
from fastnas.compat.signature import original_class, own_hooks
from fastnas.nn.fused.node import can_fuse, fused_sum
from fastnas.nn.fused.patterns import IdentityPattern, ZeroPattern

METHODS = ("apply_weights", "forward_darts", "forward")  # (x, weights): in NASLib, in AutoDL-Projects, elsewhere
_PARTS = (1, 4, 2, 8)


def candidates_of(module: nn.Module) -> list[nn.Module]:
    """The candidates of a mixed operation, in order: the elements of a container, or the children themselves."""
    for child in module.children():
        if isinstance(child, nn.ModuleList | nn.ModuleDict):
            inner = list(child.children())
            return [] if any(isinstance(each, nn.ModuleList | nn.ModuleDict) for each in inner) else inner
    return [child for child in module.children() if not isinstance(child, nn.Softmax)]


def specs(module: nn.Module) -> Iterator[PatchSpec]:
    """The ways in which it might be accelerated; none if it does not look like a mixed operation."""
    methods = _methods(cast(Any, original_class(module)))
    if not methods:
        return
    inside = [recognise(each) for each in candidates_of(module)]
    if not any(map(is_operation, inside)) or recognise(module).pattern is not None:
        return
    own = vars(module).get("k")
    parts = dict.fromkeys([own, *_PARTS] if type(own) is int and own >= 1 else _PARTS)
    for method, takes_weights in methods:
        if takes_weights:
            yield from (PatchSpec(MixedOperation, method, k) for k in parts)
        elif isinstance(getattr(module, "_arch_alpha", None), Tensor):
            yield PatchSpec(LayerChoice, method)


@functools.cache
def _methods(cls: Any) -> list[tuple[str, bool]]:
    """The methods of a class that may compute the sum, and whether they take weights besides x."""
    found = []
    for name in METHODS:
        function = getattr(cls, name, None)
        if function is None or function is nn.Module.forward:
            continue
        parameters = inspect.signature(function).parameters.values()
        if len(positional(function, required=True)) == 3:  # self, x, weights
            found.append((name, True))
        elif name == "forward" and any(each.kind is each.VAR_POSITIONAL for each in parameters):
            found.append((name, False))
    return found


def is_operation(candidate: Candidate) -> bool:
    """Whether the candidate is worth fusing."""
    return candidate.pattern is not None and not isinstance(candidate.pattern, IdentityPattern | ZeroPattern)


class MixedOperation(ForwardPlan):
    level = "mixed operation"

    def __init__(self, module: nn.Module, spec: PatchSpec) -> None:
        self.parts = spec.parts
        self.candidates = [recognise(each) for each in candidates_of(module)]
        known = [each for each in self.candidates if each.pattern is not None]
        if not any(map(is_operation, known)):
            raise Unsupported("none of its candidates is known")
        channels = {each.channels for each in known if each.channels is not None}
        if len(channels) > 1:
            raise Unsupported("its candidates see different numbers of channels")
        self.channels = next(iter(channels), None)  # C/k; unknown where no layer tells
        self.stride = max(each.pattern.stride for each in known if each.pattern is not None)
        inside = {inner for each in self.candidates for inner in each.module.modules()}
        others = [inner for inner in module.modules() if inner is not module and inner not in inside]
        self._other_hooks = [hooks for inner in others for hooks in own_hooks(inner)]

    def arguments(self) -> list[list[Any]]:
        channels = (self.channels or 4) * self.parts
        x = torch.randn(3, channels, 8, 8, dtype=torch.float64)  # [B, C, H, W]
        return [[x, torch.rand(len(self.candidates), dtype=torch.float64) + 0.1]]

    def run(self, module: nn.Module, *arguments: Any) -> Tensor | None:
        """x [B, C, H, W], weights [O], or O numbers → [B, C, H', W']."""
        if len(arguments) != 2:
            return None
        x, weights = arguments
        if not isinstance(x, Tensor) or x.dim() != 4 or not can_fuse(x) or any(self._other_hooks):
            return None
        if x.shape[1] % self.parts or (self.channels is not None and x.shape[1] != self.channels * self.parts):
            return None
        if self.stride == 2 and (x.shape[2] % 2 or x.shape[3] % 2):
            return None  # the outputs of candidates may differ in size
        row = self._row(weights, x)
        return None if row is None else self._sum(x, row)

    def _row(self, weights: Any, x: Tensor) -> Tensor | None:
        """[O], on the device of x."""
        if not isinstance(weights, Tensor):
            if not isinstance(weights, Sequence) or not weights:
                return None
            if all(isinstance(each, Tensor) and each.dim() == 0 for each in weights):
                weights = torch.stack([each.to(x.device) for each in weights])
            elif all(isinstance(each, int | float) for each in weights):
                weights = torch.tensor(list(weights), dtype=torch.float64, device=x.device)
            else:
                return None
        if weights.shape != (len(self.candidates),):
            return None
        if weights.device != x.device and not weights.is_cpu:
            return None  # an error, which the module's own forward raises
        return weights.to(x.device)

    def _sum(self, x: Tensor, row: Tensor) -> Tensor | None:
        seen = x if self.parts == 1 else x[:, : x.shape[1] // self.parts]  # [B, C/k, H, W]
        total = sum_of(self.candidates, [seen] * len(self.candidates), row)
        if total is None or self.parts == 1:
            return total
        rest = x[:, seen.shape[1] :]  # [B, C - C/k, H, W]
        rest = rest if self.stride == 1 else F.max_pool2d(rest, 2, 2)
        return F.channel_shuffle(torch.cat([total, rest], 1), self.parts)  # [B, C, H', W']

    def summary(self) -> str:
        fused = sum(each.pattern is not None and not each.hooked for each in self.candidates)
        parts = "" if self.parts == 1 else f", 1/{self.parts} of the channels"
        return f"{fused} of {len(self.candidates)} candidates{parts}"

    def skipped(self) -> list[str]:
        return skipped(self.candidates)


def sum_of(candidates: Sequence[Candidate], inputs: Sequence[Tensor], weights: Tensor) -> Tensor | None:
    """Σ_k weights_k · candidates_k(inputs_k), fused as far as possible; None if nothing can be fused.

    inputs [B, C, H, W] each, weights [K] → [B, C', H', W'].
    """
    # A dropout draws in memory order: contiguous tensors keep its random numbers the same.
    calls = [each.on_rows if each.dropping else each.call for each in candidates]
    branches = [None if each.hooked or each.dropping else each.branch for each in candidates]
    return fused_sum(calls, inputs, weights=weights, branches=branches)


def skipped(candidates: Sequence[Candidate]) -> list[str]:
    """Which candidates run as they are, and why."""
    left = [
        f"{_class(each)}: {'other code has hooks in it' if each.hooked else each.reason}"
        for each in candidates
        if each.pattern is None or each.hooked
    ]
    left += [f"{_class(each)}: while it drops" for each in candidates if each.pattern and each.dropouts]
    return list(dict.fromkeys(left))


def _class(candidate: Candidate) -> str:
    return original_class(candidate.module).__name__


class LayerChoice(MixedOperation):
    """NNI's choice of layers: the weights are softmax(α) of a tensor that it holds itself."""

    level = "mixed operation"

    def arguments(self) -> list[list[Any]]:
        return [call[:1] for call in super().arguments()]

    def run(self, module: nn.Module, *arguments: Any) -> Tensor | None:
        return super().run(module, *arguments, cast(nn.Module, module._softmax)(module._arch_alpha))
