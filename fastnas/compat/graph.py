"""Cells whose edges are bare lists of candidates: NAS-Bench-201 as AutoDL-Projects searches it, and NNI's.

Each node is one fused sum over all candidates of all edges that enter it.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from fastnas.compat.candidate import positional, recognise
from fastnas.compat.mixed_operation import skipped, sum_of
from fastnas.compat.replacement import ForwardPlan, PatchSpec, Unsupported
from fastnas.compat.signature import original_class, own_hooks
from fastnas.nn.fused.node import can_fuse
from fastnas.nn.fused.plan import MOST_CANDIDATES
from fastnas.spaces.topology import incoming_edges, nodes_of_dag

_Container = nn.ModuleList | nn.ModuleDict


def edges_of(module: nn.Module) -> list[list[nn.Module]]:
    """The candidates of each edge, in the order in which the edges are registered."""
    found: list[list[nn.Module]] = []
    for child in module.children():
        if not isinstance(child, _Container):
            continue
        inner = list(child.children())
        if inner and not any(isinstance(each, _Container) for each in inner):
            if isinstance(module, _Container):
                found.append(inner)
        else:
            found += edges_of(child)
    return found


def specs(module: nn.Module) -> Iterator[PatchSpec]:
    """The ways in which it might be accelerated; none if it does not look like such a cell."""
    forward = original_class(module).forward
    if forward is nn.Module.forward or not edges_of(module):
        return
    if len(positional(forward, required=True)) == 3:  # self, x, weights
        yield PatchSpec(Graph, "forward")
    elif all(hasattr(module, name) for name in ("preprocessor", "postprocessor", "_arch_alpha", "_softmax")):
        yield PatchSpec(OwnWeightsGraph, "forward")


class Graph(ForwardPlan):
    """One input state; every node sums all earlier ones; the last node is the output. Weights [E, O] are given."""

    level = "cell, node by node"
    inputs = 1

    def __init__(self, module: nn.Module, spec: PatchSpec) -> None:
        self.edges = [[recognise(each) for each in edge] for edge in edges_of(module)]
        nodes = nodes_of_dag(len(self.edges), self.inputs)
        if nodes is None:
            raise Unsupported(f"{len(self.edges)} edges are not those of nodes that read all earlier states")
        self.nodes = nodes
        if len({len(edge) for edge in self.edges}) > 1:
            raise Unsupported("its edges differ in the number of their candidates")
        self.candidates = [each for edge in self.edges for each in edge]
        if max(len(self.edges[0]) * (self.inputs + self.nodes), 1) > MOST_CANDIDATES:
            raise Unsupported("a node has more candidates than the operators take")
        if not any(each.pattern is not None and each.pattern.norms for each in self.candidates):
            raise Unsupported("none of its candidates is known")
        channels = {each.channels for each in self.candidates if each.channels is not None}
        if len(channels) > 1:
            raise Unsupported("its candidates see different numbers of channels")
        self.channels = next(iter(channels), 4)
        self.stride = max(each.pattern.stride for each in self.candidates if each.pattern is not None)
        inside = {inner for each in self.candidates for inner in each.module.modules()}
        containers = [inner for inner in module.modules() if isinstance(inner, _Container)]
        self._hooks = [hooks for inner in containers if inner not in inside for hooks in own_hooks(inner)]

    def arguments(self) -> list[list[Any]]:
        x = torch.randn(3, self.channels, 8, 8, dtype=torch.float64)  # [B, C, H, W]
        return [[x, torch.rand(len(self.edges), len(self.edges[0]), dtype=torch.float64) + 0.1]]

    def run(self, module: nn.Module, *arguments: Any) -> Tensor | None:
        """x [B, C, H, W], weights [E, O] → [B, C, H', W']."""
        x, weights = arguments if len(arguments) == 2 else (None, None)
        if not isinstance(x, Tensor) or not isinstance(weights, Tensor) or not self._fits(x):
            return None
        if weights.shape != (len(self.edges), len(self.edges[0])) or weights.device != x.device:
            return None
        states = self._states([x], weights.unbind())
        return None if states is None else states[-1]

    def _fits(self, x: Tensor) -> bool:
        if x.dim() != 4 or not can_fuse(x) or x.shape[1] != self.channels or any(self._hooks):
            return False
        return self.stride == 1 or not (x.shape[2] % 2 or x.shape[3] % 2)

    def _states(self, states: list[Tensor], rows: Sequence[Tensor], must: bool = False) -> list[Tensor] | None:
        """The states and the nodes, from rows [O] of weights. None if the first sum cannot be fused, unless `must`."""
        for index in range(self.nodes):
            incoming = incoming_edges(self.inputs + index, self.inputs)
            edges = slice(incoming.start, incoming.stop)
            candidates = [each for of_edge in self.edges[edges] for each in of_edge]
            inputs = [state for state, of_edge in zip(states, self.edges[edges], strict=True) for _ in of_edge]
            weights = torch.cat(list(rows[edges]))  # [K]
            total = sum_of(candidates, inputs, weights)
            if total is None and (must or index > 0):
                outputs = [w * each.call(x) for w, each, x in zip(weights, candidates, inputs, strict=True)]
                total = functools.reduce(torch.add, outputs)
            if total is None:
                return None
            states.append(total)
        return states

    def summary(self) -> str:
        fused = sum(each.pattern is not None and not each.hooked for each in self.candidates)
        return f"{self.nodes} nodes, {fused} of {len(self.candidates)} candidates"

    def skipped(self) -> list[str]:
        return skipped(self.candidates)


class OwnWeightsGraph(Graph):
    """NNI's cells, which hold pre- and postprocessing and α of every edge, with one more α for adding nothing."""

    inputs = 2

    def arguments(self) -> list[list[Any]]:
        states = [torch.randn(3, channels, 8, 8, dtype=torch.float64) for channels in self.channels_in]
        return [states]  # [B, C_i, H, W] each

    def __init__(self, module: nn.Module, spec: PatchSpec) -> None:
        super().__init__(module, spec)
        preprocess = [recognise(each) for each in cast(nn.Module, module.preprocessor).children()]
        self.channels_in = [each.channels for each in preprocess if each.channels is not None]
        if len(self.channels_in) != self.inputs or len(cast(Any, module)._arch_alpha) != len(self.edges):
            raise Unsupported("it does not have two inputs with a preprocessing each, and α for each edge")

    def run(self, module: nn.Module, *arguments: Any) -> Any:
        """The input states [B, C_i, H_i, W_i] → what the postprocessing makes of [B, nodes·C, H', W']."""
        if len(arguments) != self.inputs or not all(isinstance(x, Tensor) and can_fuse(x) for x in arguments):
            return None
        if any(self._hooks):
            return None
        own = cast(Any, module)
        processed = own.preprocessor(arguments)
        rows = [own._softmax(alpha)[:-1] for alpha in own._arch_alpha.values()]
        # From here on the module's own forward cannot take over: running statistics have been updated.
        states = cast(list[Tensor], self._states(list(processed), rows, must=True))
        return own.postprocessor(torch.cat(states[self.inputs :], 1), processed)
