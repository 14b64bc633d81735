"""A foreign cell of the usual form, computed as a whole like the cells of our own supernet."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from fastnas.compat.candidate import Candidate, positional, recognise
from fastnas.compat.mixed_operation import MixedOperation
from fastnas.compat.replacement import ForwardPlan, PatchSpec, Unsupported, holder_of, is_accelerated, spec_of
from fastnas.compat.signature import hooks_of, original_class
from fastnas.nn.fused.cell import fused_cell
from fastnas.nn.fused.node import can_fuse
from fastnas.nn.fused.patterns import CellPattern, PointwisePattern
from fastnas.nn.fused.plan import CellLayout
from fastnas.spaces.topology import dag_edges, nodes_of_dag

METHODS = ("forward_darts", "forward")


def edges_of(module: nn.Module) -> list[nn.Module]:
    """The mixed operations in the containers of a cell, in order."""
    found: list[nn.Module] = []
    for child in module.children():
        if isinstance(child, nn.ModuleList | nn.ModuleDict):
            found += edges_of(child)
        elif isinstance(module, nn.ModuleList | nn.ModuleDict):
            found.append(child)
    return found


def specs(module: nn.Module) -> Iterator[PatchSpec]:
    """The ways in which it might be accelerated; none if it does not look like a cell."""
    if not any(map(_is_mixed, edges_of(module))):
        return
    for method in METHODS:
        function = getattr(original_class(module), method, None)
        if function is None or function is nn.Module.forward:
            continue
        # self, s0, s1, weights, and perhaps β
        needed, taken = len(positional(function, required=True)), len(positional(function))
        kinds = [(True,) if needed == 5 else (False, True)] if needed <= 5 <= taken else []
        kinds += [(False,)] if needed == 4 else []
        for nested, edge_weights in itertools.product((False, True), kinds):
            yield PatchSpec(Cell, method, nested=nested, edge_weights=edge_weights)


def _is_mixed(module: nn.Module) -> bool:
    return is_accelerated(module) and spec_of(module).plan is MixedOperation


class Cell(ForwardPlan):
    level = "cell"

    def __init__(self, module: nn.Module, spec: PatchSpec) -> None:
        self.nested, self.edge_weights = spec.nested, spec.edge_weights
        edges = edges_of(module)
        inputs = [child for child in module.children() if not isinstance(child, nn.ModuleList | nn.ModuleDict)]
        preprocess = [recognise(child) for child in inputs]
        if len(inputs) != 2 or not all(isinstance(each.pattern, PointwisePattern) for each in preprocess):
            raise Unsupported("it does not have two inputs with a preprocessing each")
        nodes = nodes_of_dag(len(edges))
        if nodes is None:
            raise Unsupported(f"{len(edges)} edges are not those of nodes that read all earlier states")
        self.nodes = nodes
        plans = [holder_of(edge).plan for edge in edges if is_accelerated(edge)]
        mixed = [plan for plan in plans if isinstance(plan, MixedOperation)]
        if len(mixed) < len(edges):
            raise Unsupported("one of its edges is not a known mixed operation")
        self.candidates = [*preprocess, *(each for edge in mixed for each in edge.candidates)]
        for each in self.candidates:
            if each.pattern is None:
                raise Unsupported(
                    f"{original_class(each.module).__name__} among its candidates is not known: {each.reason}"
                )
        if len({edge.parts for edge in mixed}) > 1:
            raise Unsupported("its edges see different parts of the channels")
        strides = [(edge.stride, source) for edge, (source, _) in zip(mixed, dag_edges(nodes), strict=True)]
        from_inputs = {stride for stride, source in strides if source < 2}
        between = {stride for stride, source in strides if source >= 2}
        if len(from_inputs) > 1 or between - {1}:
            raise Unsupported("the strides of its edges are those of neither a normal nor a reduction cell")
        self.stride = from_inputs.pop()
        if any(layer.bias is not None for each in self.candidates for layer in _convolutions(each)):
            raise Unsupported("its convolutions have biases")
        patterns = tuple(tuple(each.pattern for each in edge.candidates) for edge in mixed)
        self.pattern = CellPattern(
            cast(Any, tuple(each.pattern for each in preprocess)), patterns, self.stride, mixed[0].parts
        )
        self.plan = CellLayout(self.pattern)
        if not self.plan.known:
            raise Unsupported(
                "its normalisations are affine or without running statistics, or its edges differ in size"
            )
        self.channels = [pattern.convolutions[0].in_channels for pattern in self.pattern.preprocess]
        self.table = len(edges), len(patterns[0])
        self._hooks = [hooks for child in module.children() for hooks in hooks_of(child)]

    def arguments(self) -> list[list[Any]]:
        sizes = [
            8 * pattern.stride // min(each.stride for each in self.pattern.preprocess)
            for pattern in self.pattern.preprocess
        ]
        states = [
            torch.randn(2, channels, size, size, dtype=torch.float64)  # [B, C_i, H_i, W_i]
            for channels, size in zip(self.channels, sizes, strict=True)
        ]
        table = torch.rand(self.table, dtype=torch.float64) + 0.1  # [E, O]
        weights: Any = list(table.split([2 + node for node in range(self.nodes)])) if self.nested else table
        betas = torch.rand(self.table[0], dtype=torch.float64) + 0.1  # [E]
        return [[*states, weights, *([betas] * given)] for given in self.edge_weights]

    def run(self, module: nn.Module, *arguments: Any) -> Tensor | None:
        """s0, s1 [B, C_i, H_i, W_i], weights [E, O] or a table for each node, β [E] → [B, nodes·C, H', W']."""
        if len(arguments) not in (3, 4) or any(self._hooks):
            return None
        s0, s1, weights, edge_weights = (*arguments, None)[:4]
        if (edge_weights is not None) not in self.edge_weights:
            return None
        if not self._fits(s0, s1) or any(each.dropping for each in self.candidates):
            return None
        if self.nested:
            known = isinstance(weights, Sequence) and all(isinstance(each, Tensor) for each in weights)
            weights = torch.cat(list(weights)) if known and len(weights) == self.nodes else None
        tables = [(weights, self.table)] + ([] if edge_weights is None else [(edge_weights, self.table[:1])])
        for table, shape in tables:
            if not isinstance(table, Tensor) or table.shape != shape:
                return None
            if table.device != s0.device and not table.is_cpu:
                return None  # an error, which the module's own forward raises
        if self.plan.device != s0.device:
            self.plan.to(s0.device)
        beta = None if edge_weights is None else edge_weights.to(s0.device)
        return fused_cell(self.plan, s0, s1, weights.to(s0.device), beta)

    def _fits(self, s0: Any, s1: Any) -> bool:
        states = (s0, s1)
        if not all(isinstance(state, Tensor) and state.dim() == 4 and can_fuse(state) for state in states):
            return False
        if (s0.dtype, s0.device, len(s0)) != (s1.dtype, s1.device, len(s1)):
            return False
        weight = self.pattern.preprocess[0].convolutions[0].weight
        if weight.device != s0.device or not len(s0):
            return False
        sizes = []
        for state, pattern, channels in zip(states, self.pattern.preprocess, self.channels, strict=True):
            height, width = state.shape[2:]
            # At odd sizes modules without padding raise, which is left to them.
            if state.shape[1] != channels or height % pattern.stride or width % pattern.stride:
                return False
            sizes.append((height // pattern.stride, width // pattern.stride))
        return sizes[0] == sizes[1] and all(size and size % self.stride == 0 for size in sizes[0])

    def summary(self) -> str:
        parts = "" if self.pattern.parts == 1 else f", 1/{self.pattern.parts} of the channels"
        beta = ", edge weights" if True in self.edge_weights else ""
        kind = "reduction" if self.stride == 2 else "normal"
        return f"whole {kind} cell of {self.table[0]} edges with {self.table[1]} candidates{parts}{beta}"

    def skipped(self) -> list[str]:
        left = ["other code has hooks in it: edge by edge"] if any(self._hooks) else []
        dropouts = any(each.dropouts for each in self.candidates)
        return left + (["while something drops: edge by edge"] if dropouts else [])


def _convolutions(candidate: Candidate) -> tuple[nn.Conv2d, ...]:
    return () if candidate.pattern is None else candidate.pattern.convolutions
