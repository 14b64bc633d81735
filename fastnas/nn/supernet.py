"""The supernet: one network that holds every architecture of a space, its weights ω shared, its architecture in α."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn

from fastnas.errors import UserError
from fastnas.genotype import AnyGenotype
from fastnas.limits import check_operations, check_sizes
from fastnas.nn.batch_norm import BatchNorm, individual_statistics
from fastnas.nn.cell import SearchCell
from fastnas.nn.mixed_op import resolve_backend
from fastnas.nn.nb201 import nb201_body
from fastnas.nn.primitives import Norm
from fastnas.nn.stem import CIFARStem, ImageNetStem, make_channels_last, make_stem
from fastnas.spaces import CellSpace, find

OpWeights = Mapping[str, Tensor]
Precision: TypeAlias = Literal["float32", "bfloat16", "float16"]

# Bytes of live activations that a chunk of a population may take on a CPU. In much larger chunks each individual takes
# longer.
MEMORY_BUDGET = 5 * 2**28


def drop_path_masks(edges: int, x: Tensor, probability: float) -> Tensor:
    """[E, B]: 0 with this probability, else 1 / (1 - probability), for the images of x [B, C, H, W]."""
    return torch.empty(edges, len(x), device=x.device).bernoulli_(1 - probability) / (1 - probability)


class Supernet(nn.Module):
    """Stem, `layers` search cells, global average pooling, linear classifier (DARTS, Liu et al. 2019, section 3).

    Cells `layers // 3` and `2 * layers // 3` are reduction cells: they halve the maps and double the channels. All
    normal cells share α "normal", all reduction cells α "reduce"; in the space "multi-level" those of each level do.
    The stem gives 3·C channels. Normalisations inside the cells have no affine parameters. In the space "nb201" the
    network is that of the benchmark, see `nb201_body`.

    Args:
        space: "darts", "egnas", "multi-level", "nb201" or a `CellSpace`.
        channels: C, channels of a node in the first cell.
        layers: number of cells.
        num_classes: length of the logits.
        in_channels: channels of the images.
        partial_channels: k; candidates see the first C/k channels of a state (PC-DARTS), 1 for all.
        backend: "fused" (our operators), "reference" (plain torch) or "auto" (fused).
        stem: "cifar" keeps the size of the images, "imagenet" divides it by 8.
        precision: of activations and their gradients, by autocast of every forward pass; weights, statistics and
            logits keep float32. The gradients of "float16" are small: scale the loss.

    Attributes:
        alphas: `nn.ParameterDict` {"normal": [E, O], "reduce": [E, O]}, a table for each of `space.kinds`, initialised
            to 1e-3·N(0, 1). Part of the `state_dict`, and of `parameters()`: give `weight_parameters()` to the
            optimizer of ω.
        drop_path_prob: probability in [0, 1) that the output of an edge is dropped for an image by `forward` in
            training mode; the others are divided by the share that is kept. Masks come from torch's random state.
        drop_path_by_depth: cell i of L drops with `(i + 1) / L` of that probability (ScheduledDropPath, Zoph et al.,
            CVPR 2018).

    Raises:
        UserError: an unknown space, backend or stem, a number below 1 or beyond any network (1,000,000; 20,000
            candidates in all cells), channels that `partial_channels` does not divide, or odd channels with the
            ImageNet stem.
    """

    drop_path_prob: float = 0.0
    drop_path_by_depth: bool = False

    def __init__(
        self,
        space: str | CellSpace = "darts",
        channels: int = 16,
        layers: int = 8,
        num_classes: int = 10,
        in_channels: int = 3,
        partial_channels: int = 1,
        backend: str = "auto",
        stem: Literal["cifar", "imagenet"] = "cifar",
        precision: Precision = "float32",
    ) -> None:
        super().__init__()
        self._options: dict[str, Any] = {
            "space": space,
            "channels": channels,
            "layers": layers,
            "num_classes": num_classes,
            "in_channels": in_channels,
            "partial_channels": partial_channels,
            "backend": backend,
            "stem": stem,
            "precision": precision,
        }
        numbers = {"channels": channels, "layers": layers, "num_classes": num_classes, "in_channels": in_channels}
        check_sizes({**numbers, "partial_channels": partial_channels})
        self.space = find(space)
        check_operations(layers, layers * len(self.space.edges) * len(self.space.candidates))
        self.backend = resolve_backend(backend)
        self.precision: Precision = precision
        self.channels = channels
        self.stem_name = stem
        self.partial_channels = partial_channels
        self.num_classes = num_classes
        self.in_channels = in_channels
        self.layers = layers
        norm = functools.partial(BatchNorm, affine=False)
        self.stem: CIFARStem | ImageNetStem
        self.last: nn.Module = nn.Identity()
        if self.space.inputs == 1:
            self.stem = make_stem(stem, in_channels, channels, BatchNorm)
            self.cells, self.last, channels = nb201_body(
                self.space, channels, layers, partial_channels, norm, self.backend
            )
        else:
            self.stem = make_stem(stem, in_channels, 3 * channels, BatchNorm)
            self.cells, channels = self._body(channels, layers, norm)
        if self.backend == "fused":  # the operators' layout from the first convolution on, whatever the images have
            make_channels_last(self.stem)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(channels, num_classes)
        initial = self.space.uniform_alphas()
        self.alphas = nn.ParameterDict({kind: nn.Parameter(initial[kind]) for kind in self.space.kinds})

    def _body(self, channels: int, layers: int, norm: Norm) -> tuple[nn.ModuleList, int]:
        """The cells, and the channels of the last one."""
        cells = nn.ModuleList()
        channels_in = (self.stem.out_channels, self.stem.out_channels)
        reduction_before, level = self.stem.reduces, 0
        for index in range(layers):
            reduction = index in (layers // 3, 2 * layers // 3)
            channels = 2 * channels if reduction else channels
            cells.append(
                SearchCell(
                    self.space,
                    channels_in,
                    channels,
                    reduction=reduction,
                    reduction_before=reduction_before,
                    partial_channels=self.partial_channels,
                    norm=norm,
                    backend=self.backend,
                    kind=self.space.kind_of(level, reduction),
                )
            )
            channels_in = (channels_in[1], self.space.nodes * channels)
            reduction_before = reduction
            level += reduction
        return cells, channels_in[1]

    def rebuilt(self, **changes: Any) -> Supernet:
        """A new network with the same options except `changes`, on the same device, channels-last, in the same mode."""
        network = type(self)(**{**self._options, **changes}).train(self.training)
        return network.to(self.classifier.weight).to(memory_format=torch.channels_last)

    def weight_parameters(self) -> list[nn.Parameter]:
        """ω: every parameter but α."""
        alphas = {id(alpha) for alpha in self.alphas.values()}
        return [parameter for parameter in self.parameters() if id(parameter) not in alphas]

    def op_weights(self) -> dict[str, Tensor]:
        """softmax(α) along the candidates: {"normal": [E, O], "reduce": [E, O]}."""
        return {kind: torch.softmax(self.alphas[kind], dim=-1) for kind in self.space.kinds}

    def genotype(self) -> AnyGenotype:
        """The discrete architecture that α stands for; see `CellSpace.derive`."""
        return self.space.derive(self.op_weights())

    def forward(
        self,
        x: Tensor,
        op_weights: OpWeights | None = None,
        edge_weights: OpWeights | None = None,
        active: OpWeights | None = None,
    ) -> Tensor:
        """Logits [B, num_classes] of images [B, in_channels, H, W].

        Args:
            op_weights: {"normal": [E, O], "reduce": [E, O]}, used as they are; by default softmax(α).
            edge_weights: {"normal": [E], "reduce": [E]}, factors of whole edges (β of PC-DARTS); ones by default.
            active: {"normal": [E, O], "reduce": [E, O]}, booleans on the CPU: the other candidates are not computed, as
                if their weights were 0. All by default.

        Raises:
            UserError: a table is missing or has another shape.
        """
        weights = self.op_weights() if op_weights is None else op_weights
        shape = tuple(self.alphas[self.space.kinds[0]].shape)  # (E, O)
        for what, tables, expected in (
            ("op_weights", weights, shape),
            ("edge_weights", edge_weights, shape[:1]),
            ("active", active, shape),
        ):
            if tables is not None and any(found != expected for found in self._shapes(what, tables).values()):
                kinds = "both kinds" if len(self.space.kinds) == 2 else f"all of {', '.join(self.space.kinds)}"
                raise UserError(
                    f"{what} have shapes {self._shapes(what, tables)}, expected {expected} for {kinds} of cells."
                )
        drop_path = self.drop_path_prob if self.training else 0.0
        with self._autocast(x):
            s0, s1 = self.stem(x)
            return self._classify(s0, s1, weights, edge_weights, active, drop_path)  # [B, num_classes]

    def path_logits(self, x: Tensor, path: OpWeights) -> Tensor:
        """`forward` of a sampled architecture: `path` holds operation weights on the CPU, and only the candidates whose
        weight is not 0 are computed. An edge without any, or with "none" alone, is not in the cell: it adds nothing,
        neither do the channels that would bypass its candidates."""
        return self.forward(x, self._to(x, path), self._edges_of(x, path), self._active(path))

    def _active(self, path: OpWeights) -> dict[str, Tensor]:
        """Which candidates a path has, [E, O] booleans for each kind of cell."""
        return {kind: path[kind] != 0 for kind in self.space.kinds}

    def _edges_of(self, x: Tensor, path: OpWeights) -> dict[str, Tensor] | None:
        """1 for the edges that a path has, 0 for the others, [E] for each kind of cell on the device of x; None where
        no channels bypass the candidates, so that it makes no difference."""
        if self.partial_channels == 1:
            return None
        counts = torch.tensor([name != "none" for name in self.space.candidates])  # [O]
        edges = {kind: (table & counts).any(-1).to(path[kind].dtype) for kind, table in self._active(path).items()}
        return self._to(x, edges)

    def _to(self, x: Tensor, tables: OpWeights) -> dict[str, Tensor]:
        return {kind: tables[kind].to(x.device, non_blocking=True) for kind in self.space.kinds}

    def _classify(
        self,
        s0: Tensor,
        s1: Tensor,
        weights: OpWeights,
        edge_weights: OpWeights | None = None,
        active: OpWeights | None = None,
        drop_path: float = 0.0,
    ) -> Tensor:
        for index, cell in enumerate(self.cells):
            kind: Any = cell.kind
            tables = [None if each is None else each[kind] for each in (edge_weights, active)]
            depth = (index + 1) / len(self.cells) if self.drop_path_by_depth else 1.0
            masks = drop_path_masks(len(self.space.edges), s1, drop_path * depth) if drop_path > 0 else None
            s0, s1 = s1, cell(s0, s1, weights[kind], *tables, masks)  # [..., B, nodes·C, H', W']
        pooled = self.pool(self.last(s1.flatten(0, -4))).flatten(1)  # [P·B, nodes·C]
        logits = self.classifier(pooled).unflatten(0, s1.shape[:-3])  # [..., B, num_classes]
        return logits if self.precision == "float32" else logits.float()

    def _autocast(self, x: Tensor) -> AbstractContextManager[Any]:
        if self.precision == "float32":
            return nullcontext()
        return torch.autocast(x.device.type, dtype=getattr(torch, self.precision))

    @torch.no_grad()
    def population_logits(
        self,
        x: Tensor,
        alphas: Mapping[str, Tensor],
        chunk: int | Literal["auto"] = "auto",
        bn_mode: Literal["running", "batch"] = "running",
    ) -> Tensor:
        """Logits [P, B, num_classes] of the same images under P architectures that share ω; no gradient.

        What does not depend on α is computed once (the stem) or once per chunk (the candidates that read the inputs of
        the first cell); the "reference" backend runs the individuals one by one. Running statistics and training flags
        stay as they are.

        Args:
            x: images [B, in_channels, H, W].
            alphas: {"normal": [P, E, O], "reduce": [P, E, O]}, logits: softmax is applied here.
            chunk: individuals per forward; "auto" fits the free memory of the device. It changes the results by
                rounding at most.
            bn_mode: "running" normalises by running statistics, "batch" each individual by its own batch.

        Raises:
            UserError: α of another shape, a chunk below 1, or an unknown mode.
        """
        individuals = self._check_population(alphas, chunk, bn_mode)
        weights = {kind: torch.softmax(alphas[kind], dim=-1) for kind in self.space.kinds}  # [P, E, O]
        if self.backend == "reference":
            chunk = 1
        elif chunk == "auto":
            chunk = self.fitting_chunk(x)
        statistics = _evaluation(self) if bn_mode == "running" else individual_statistics(self, images=len(x))
        with statistics, self._autocast(x):
            return self._chunked(x, weights, individuals, chunk)

    def _chunked(self, x: Tensor, weights: OpWeights, individuals: int, chunk: int) -> Tensor:
        logits = []
        s0, s1 = self.stem(x) if individuals else (x, x)
        for first in range(0, individuals, chunk):
            part = {kind: weights[kind][first : first + chunk] for kind in self.space.kinds}  # [chunk, E, O]
            if self.backend == "reference":
                one = {kind: part[kind][0] for kind in self.space.kinds}  # [E, O]
                logits.append(self._classify(s0, s1, one)[None])
            else:
                logits.append(self._classify(s0[None], s1[None], part))  # [chunk, B, num_classes]
        return torch.cat(logits) if logits else x.new_empty(0, len(x), self.num_classes)

    @torch.no_grad()
    def path_population_logits(
        self, x: Tensor, paths: Sequence[OpWeights], bn_mode: Literal["running", "batch"] = "running"
    ) -> Tensor:
        """`population_logits` of sampled architectures, [P, B, classes]: the stem is computed once, and for each
        individual only the chosen candidates.

        Args:
            x: images [B, in_channels, H, W].
            paths: one for each individual, see `path_logits`.
            bn_mode: see `population_logits`.
        """
        if bn_mode not in ("running", "batch"):
            raise UserError(f"unknown bn_mode {bn_mode!r}: expected 'running' or 'batch'.")
        logits = []
        statistics = _evaluation(self) if bn_mode == "running" else individual_statistics(self, images=len(x))
        with statistics, self._autocast(x):
            s0, s1 = self.stem(x)
            for path in paths:
                tables = self._to(x, path), self._edges_of(x, path), self._active(path)
                logits.append(self._classify(s0, s1, *tables))  # [B, classes]
        return torch.stack(logits) if logits else x.new_empty(0, len(x), self.num_classes)

    def _check_population(self, alphas: Mapping[str, Tensor], chunk: int | str, bn_mode: str) -> int:
        if bn_mode not in ("running", "batch"):
            raise UserError(f"unknown bn_mode {bn_mode!r}: expected 'running' or 'batch'.")
        if chunk != "auto" and (not isinstance(chunk, int) or chunk < 1):
            raise UserError(f"chunk is {chunk!r}: expected a positive number of individuals, or 'auto'.")
        first = self.space.kinds[0]
        edges, candidates = self.alphas[first].shape
        shapes = self._shapes("population α", alphas)
        individuals = shapes[first][0] if shapes[first] else 0
        if any(shape != (individuals, edges, candidates) for shape in shapes.values()):
            raise UserError(f"population α have shapes {shapes}, expected (P, {edges}, {candidates}) for each kind.")
        return individuals

    def fitting_chunk(self, x: Tensor) -> int:
        """How many individuals `population_logits` computes at once by default for images x [B, in_channels, H, W]."""
        budget = torch.cuda.mem_get_info(x.device)[0] // 4 if x.is_cuda else MEMORY_BUDGET
        # Memory peaks in the first cell, with its states, its output and the candidates of all edges, separable ones
        # with both stages.
        candidates = (len(self.space.candidates) + 2) / self.partial_channels
        tensors = 2 * (self.space.nodes + 2) + len(self.space.edges) * candidates
        images, _, height, width = x.shape
        pixels = images * height * width // (64 if self.stem.reduces else 1)
        bytes_per_individual = int(tensors * pixels * self.channels * x.element_size())
        return max(1, budget // max(1, bytes_per_individual))

    def _shapes(self, what: str, tables: OpWeights) -> dict[str, tuple[int, ...]]:
        kinds = self.space.kinds
        if missing := [kind for kind in kinds if kind not in tables]:
            raise UserError(f"{what} lack {missing[0]!r}: expected a table for each of {' and '.join(kinds)}.")
        return {kind: tuple(tables[kind].shape) for kind in kinds}

    def extra_repr(self) -> str:
        return f"space={self.space.name!r}, backend={self.backend!r}"


@contextmanager
def in_precision(network: Supernet, precision: Precision) -> Iterator[None]:
    """Within the context the network computes in another precision."""
    before = network.precision
    try:
        network.precision = precision
        yield
    finally:
        network.precision = before


@contextmanager
def _evaluation(network: nn.Module) -> Iterator[None]:
    """Evaluation mode within the context; afterwards every module is back in the mode that it had."""
    training = [module for module in network.modules() if module.training]
    try:
        network.eval()
        yield
    finally:
        for module in training:
            module.training = True
