"""The supernet: one network that holds every architecture of a space, its weights ω shared, its architecture in α."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor, nn

from fastnas.errors import UserError
from fastnas.genotype import Genotype
from fastnas.nn.batch_norm import BatchNorm, individual_statistics
from fastnas.nn.cell import SearchCell
from fastnas.nn.mixed_op import resolve_backend
from fastnas.nn.stem import make_stem
from fastnas.spaces import CELL_KINDS, CellSpace, find

OpWeights = Mapping[str, Tensor]

# Live activations that a chunk of a population may take where the device does not say what is free.
MEMORY_BUDGET = 512 * 2**20


class Supernet(nn.Module):
    """Stem, `layers` search cells, global average pooling, linear classifier (DARTS, Liu et al. 2019, section 3).

    Cells `layers // 3` and `2 * layers // 3` are reduction cells: they halve the maps and double the channels. All normal
    cells share α "normal", all reduction cells α "reduce". Normalisations inside the cells have no affine parameters.

    Args:
        space: "darts", "egnas" or a `CellSpace`.
        channels: C, channels of a node in the first cell.
        layers: number of cells.
        num_classes: length of the logits.
        in_channels: channels of the images.
        partial_channels: k; candidates see the first C/k channels of a state (PC-DARTS), 1 for all.
        backend: "fused" (our operators), "reference" (plain torch) or "auto" (fused).
        stem: "cifar" keeps the size of the images, "imagenet" divides it by 8.

    Attributes:
        alphas: `nn.ParameterDict` {"normal": [E, O], "reduce": [E, O]}, initialised to 1e-3·N(0, 1). Part of the
            `state_dict`, and of `parameters()`: give `weight_parameters()` to the optimizer of ω.

    Raises:
        UserError: an unknown space, backend or stem, or channels that `partial_channels` does not divide.
    """

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
    ) -> None:
        super().__init__()
        numbers = {"channels": channels, "layers": layers, "num_classes": num_classes, "in_channels": in_channels}
        for name, value in {**numbers, "partial_channels": partial_channels}.items():
            if value < 1:
                raise UserError(f"{name} is {value}, expected at least 1.")
        self.space = find(space)
        self.backend = resolve_backend(backend)
        self.num_classes = num_classes
        norm = functools.partial(BatchNorm, affine=False)
        self.stem = make_stem(stem, in_channels, channels, BatchNorm)
        self.cells = nn.ModuleList()
        channels_in = (self.stem.out_channels, self.stem.out_channels)
        reduction_before = self.stem.reduces
        for index in range(layers):
            reduction = index in (layers // 3, 2 * layers // 3)
            channels = 2 * channels if reduction else channels
            self.cells.append(
                SearchCell(
                    self.space,
                    channels_in,
                    channels,
                    reduction=reduction,
                    reduction_before=reduction_before,
                    partial_channels=partial_channels,
                    norm=norm,
                    backend=self.backend,
                )
            )
            channels_in = (channels_in[1], self.space.nodes * channels)
            reduction_before = reduction
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(channels_in[1], num_classes)
        initial = self.space.uniform_alphas()
        self.alphas = nn.ParameterDict({kind: nn.Parameter(initial[kind]) for kind in CELL_KINDS})

    def weight_parameters(self) -> list[nn.Parameter]:
        """ω: every parameter but α."""
        alphas = {id(alpha) for alpha in self.alphas.values()}
        return [parameter for parameter in self.parameters() if id(parameter) not in alphas]

    def op_weights(self) -> dict[str, Tensor]:
        """softmax(α) along the candidates: {"normal": [E, O], "reduce": [E, O]}."""
        return {kind: torch.softmax(self.alphas[kind], dim=-1) for kind in CELL_KINDS}

    def genotype(self) -> Genotype:
        """The discrete architecture that α stands for; see `CellSpace.derive`."""
        return self.space.derive(self.op_weights())

    def forward(self, x: Tensor, op_weights: OpWeights | None = None) -> Tensor:
        """Logits [B, num_classes] of images [B, in_channels, H, W].

        Args:
            op_weights: {"normal": [E, O], "reduce": [E, O]}, used as they are; by default softmax(α).
        """
        weights = self.op_weights() if op_weights is None else op_weights
        return self._classify(*self.stem(x), weights)  # [B, num_classes]

    def _classify(self, s0: Tensor, s1: Tensor, weights: OpWeights) -> Tensor:
        for cell in self.cells:
            s0, s1 = s1, cell(s0, s1, weights[cell.kind])  # [..., B, nodes·C, H', W']
        return self.classifier(self.pool(s1.flatten(0, -4)).flatten(1)).unflatten(0, s1.shape[:-3])

    @torch.no_grad()
    def population_logits(
        self,
        x: Tensor,
        alphas: Mapping[str, Tensor],
        chunk: int | Literal["auto"] = "auto",
        bn_mode: Literal["running", "batch"] = "running",
    ) -> Tensor:
        """Logits [P, B, num_classes] of the same images under P architectures that share ω; no gradient.

        What does not depend on α (stem, candidates that read the inputs of the first cell) is computed once per chunk;
        the "reference" backend runs the individuals one by one. Running statistics and the training flag stay as they are.

        Args:
            x: images [B, in_channels, H, W].
            alphas: {"normal": [P, E, O], "reduce": [P, E, O]}, logits: softmax is applied here.
            chunk: individuals per forward; "auto" fits the free memory of the device. It does not change the results.
            bn_mode: "running" normalises by running statistics, "batch" each individual by its own batch.

        Raises:
            UserError: α of another shape, or an unknown mode.
        """
        individuals = self._check_population(alphas, chunk, bn_mode)
        weights = {kind: torch.softmax(alphas[kind], dim=-1) for kind in CELL_KINDS}  # [P, E, O]
        if self.backend == "reference":
            chunk = 1
        elif chunk == "auto":
            chunk = self._fitting_chunk(x)
        was_training = self.training
        try:
            if bn_mode == "running":
                self.eval()
                return self._chunked(x, weights, individuals, chunk)
            with individual_statistics(self, images=len(x)):
                return self._chunked(x, weights, individuals, chunk)
        finally:
            self.train(was_training)

    def _chunked(self, x: Tensor, weights: OpWeights, individuals: int, chunk: int) -> Tensor:
        logits = []
        for first in range(0, individuals, chunk):
            part = {kind: weights[kind][first : first + chunk] for kind in CELL_KINDS}  # [chunk, E, O]
            if self.backend == "reference":
                logits.append(self.forward(x, {kind: part[kind][0] for kind in CELL_KINDS})[None])
            else:
                s0, s1 = self.stem(x)
                logits.append(self._classify(s0[None], s1[None], part))  # [chunk, B, num_classes]
        return torch.cat(logits) if logits else x.new_empty(0, len(x), self.num_classes)

    def _check_population(self, alphas: Mapping[str, Tensor], chunk: int | str, bn_mode: str) -> int:
        if bn_mode not in ("running", "batch"):
            raise UserError(f"unknown bn_mode {bn_mode!r}: expected 'running' or 'batch'.")
        if chunk != "auto" and (not isinstance(chunk, int) or chunk < 1):
            raise UserError(f"chunk is {chunk!r}: expected a positive number of individuals, or 'auto'.")
        expected = tuple(self.alphas["normal"].shape)  # (E, O)
        shapes = {kind: tuple(alphas[kind].shape) for kind in CELL_KINDS}
        if any(len(shape) != 3 or shape[1:] != expected for shape in shapes.values()) or len(set(shapes.values())) > 1:
            raise UserError(f"population α have shapes {shapes}, expected [P, {expected[0]}, {expected[1]}] for both.")
        return shapes["normal"][0]

    def _fitting_chunk(self, x: Tensor) -> int:
        budget = torch.cuda.mem_get_info(x.device)[0] // 4 if x.is_cuda else MEMORY_BUDGET
        # The widest moment is the first cell: its states, and the candidates of one edge, at full size.
        first = self.cells[0]
        states = self.space.nodes + 2 + len(self.space.candidates) // first.edges[0].partial_channels + 1
        scale = 64 if self.stem.reduces else 1
        bytes_per_individual = x.element_size() * x.shape[0] * x.shape[2] * x.shape[3] // scale
        bytes_per_individual *= first.preprocess1.conv.out_channels * 2 * states
        return max(1, budget // max(1, bytes_per_individual))

    def extra_repr(self) -> str:
        return f"space={self.space.name!r}, backend={self.backend!r}"
