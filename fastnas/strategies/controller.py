"""Policies over architectures: what the reinforcement strategies train. A policy gives every gene a distribution over
its legal values."""

from __future__ import annotations

import functools
from abc import abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fastnas.spaces.encoding import Code, Encoding


class Policy(nn.Module):
    """A distribution over the codes of an encoding, gene by gene.

    Args:
        encoding: of the codes.
    """

    def __init__(self, encoding: Encoding) -> None:
        super().__init__()
        self.encoding = encoding
        self.width = max(encoding.sizes)

    @abstractmethod
    def gene_logits(self, gene: int, codes: Tensor, memory: object) -> tuple[Tensor, object]:
        """Logits [m, width] of a gene, given the genes before it in `codes` [m, genes], and what to pass to the
        next."""

    def forward(self, codes: Tensor) -> tuple[Tensor, Tensor]:
        """log π of codes [m, genes] and the summed entropies of their genes' distributions: [m] each, in nats."""
        log_probability, entropy = torch.zeros(len(codes)), torch.zeros(len(codes))  # [m]
        memory: object = None
        for gene in range(codes.shape[1]):
            logits, memory = self.gene_logits(gene, codes, memory)
            logs = torch.log_softmax(self._masked(gene, codes, logits), -1)  # [m, width]
            log_probability = log_probability + logs.gather(1, codes[:, gene, None])[:, 0]
            entropy = entropy - (logs.exp() * logs.clamp(min=-1e30)).sum(-1)
        return log_probability, entropy

    @torch.no_grad()
    def sample(self, count: int, seed: int) -> list[Code]:
        """`count` codes, drawn from a generator of this seed."""
        generator = torch.Generator().manual_seed(seed)
        codes = torch.zeros(count, len(self.encoding.sizes), dtype=torch.int64)  # [count, genes]
        memory: object = None
        for gene in range(codes.shape[1]):
            logits, memory = self.gene_logits(gene, codes, memory)
            probabilities = torch.softmax(self._masked(gene, codes, logits), -1)  # [count, width]
            codes[:, gene] = torch.multinomial(probabilities, 1, generator=generator)[:, 0]
        return [tuple(code) for code in codes.tolist()]

    def _masked(self, gene: int, codes: Tensor, logits: Tensor) -> Tensor:
        if self._free[gene]:
            return logits
        legal = torch.zeros_like(logits, dtype=torch.bool)  # [m, width]
        for row, prefix in enumerate(codes[:, :gene].tolist()):
            legal[row, list(self.encoding.legal(prefix))] = True
        return logits.masked_fill(~legal, -torch.inf)

    @functools.cached_property
    def _free(self) -> list[bool]:
        """Of each gene: whether every value is legal, whatever came before."""
        free = []
        code: list[int] = []
        for size in self.encoding.sizes:
            legal = self.encoding.legal(code)
            free.append(size == self.width and len(legal) == size)
            code.append(legal[0])
        return free


class IndependentLogits(Policy):
    """One row of logits for every gene, initialised to 1e-3·N(0, 1)."""

    def __init__(self, encoding: Encoding, seed: int) -> None:
        super().__init__(encoding)
        generator = torch.Generator().manual_seed(seed)
        self.logits = nn.Parameter(1e-3 * torch.randn(len(encoding.sizes), self.width, generator=generator))

    def gene_logits(self, gene: int, codes: Tensor, memory: object) -> tuple[Tensor, object]:
        return self.logits[gene].expand(len(codes), -1), None

    # Where every value is always legal, as in NAS-Bench-201, all genes are computed at once, for speed.

    def forward(self, codes: Tensor) -> tuple[Tensor, Tensor]:
        if not all(self._free):
            return super().forward(codes)
        logs = torch.log_softmax(self.logits, -1)  # [genes, width]
        entropy = -(logs.exp() * logs).sum()
        return logs[torch.arange(codes.shape[1]), codes].sum(1), entropy.expand(len(codes))

    @torch.no_grad()
    def sample(self, count: int, seed: int) -> list[Code]:
        if not all(self._free):
            return super().sample(count, seed)
        generator = torch.Generator().manual_seed(seed)
        probabilities = torch.softmax(self.logits, -1)  # [genes, width]
        drawn = torch.multinomial(probabilities, count, replacement=True, generator=generator)  # [genes, count]
        return [tuple(code) for code in drawn.T.tolist()]


class RecurrentPolicy(Policy):
    """An LSTM that reads the genes chosen so far: each is embedded as the next input; the first input is learned.

    Args:
        hidden: units of each layer.
        layers: of the LSTM.
        scale: all weights are initialised uniformly in ±scale.
    """

    def __init__(self, encoding: Encoding, seed: int, hidden: int, layers: int, scale: float) -> None:
        super().__init__(encoding)
        self.layers = layers
        genes = len(encoding.sizes)
        self.cells = nn.ModuleList(nn.LSTMCell(hidden, hidden) for _ in range(layers))
        self.embedding = nn.Parameter(torch.empty(genes, self.width, hidden))  # of a value of a gene
        self.first = nn.Parameter(torch.empty(hidden))
        self.weight = nn.Parameter(torch.empty(genes, self.width, hidden))
        self.bias = nn.Parameter(torch.empty(genes, self.width))
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.uniform_(-scale, scale, generator=generator)

    def gene_logits(self, gene: int, codes: Tensor, memory: object) -> tuple[Tensor, object]:
        x = self.embedding[gene - 1, codes[:, gene - 1]] if gene else self.first.expand(len(codes), -1)  # [m, hidden]
        states = memory if isinstance(memory, list) else [None] * self.layers
        following = []
        for cell, state in zip(self.cells, states, strict=True):
            state = cell(x, state)  # (h, c), [m, hidden] each
            following.append(state)
            x = state[0]
        return x @ self.weight[gene].T + self.bias[gene], following  # [m, width]


def codes_tensor(codes: Sequence[Code]) -> Tensor:
    """[m, genes] int64."""
    return torch.tensor(codes, dtype=torch.int64)
