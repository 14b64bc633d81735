"""Costs of architectures as standalone networks: parameters, operations, measured latency."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from typing import Literal, get_args

import torch
from torch import nn

from fastnas.counting import count_macs, count_parameters
from fastnas.errors import UserError
from fastnas.evaluators.clock import stopwatch
from fastnas.spaces.encoding import Code, Encoding

Cost = Literal["parameters", "macs", "latency"]
WARM_UP_RUNS, TIMED_RUNS = 5, 20


class Costs:
    """Measures the costs of codes, of each architecture once.

    Args:
        names: "parameters" and "macs" in millions, "latency" in milliseconds: the median of 20 forward passes of one
            image in evaluation mode.
        encoding: of the codes.
        build: makes the network of a genotype.
        input_size: (channels, height, width) of an image.
        device: on which latency is measured.
    """

    def __init__(
        self,
        names: Sequence[str],
        encoding: Encoding,
        build: Callable[[object], nn.Module],
        input_size: tuple[int, int, int],
        device: torch.device | str = "cpu",
    ) -> None:
        for name in names:
            if name not in get_args(Cost):
                raise UserError(f"unknown cost {name!r}: expected one of {', '.join(get_args(Cost))}.")
        self.names, self.encoding, self.build = tuple(names), encoding, build
        self.input_size, self.device = input_size, torch.device(device)
        self._known: dict[Code, dict[str, float]] = {}

    def of(self, code: Code) -> dict[str, float]:
        """The costs of one code, by name."""
        key = self.encoding.canonical(code)
        if key not in self._known:
            with torch.random.fork_rng(devices=[]):  # initial weights must not move the search's generator
                network = self.build(self.encoding.decode(code)).eval()
            self._known[key] = {name: self._measure(name, network) for name in self.names}
        return self._known[key]

    def _measure(self, name: str, network: nn.Module) -> float:
        if name == "parameters":
            return count_parameters(network) / 1e6
        if name == "macs":
            return count_macs(network, self.input_size) / 1e6
        return self._latency(network.to(self.device))

    @torch.no_grad()
    def _latency(self, network: nn.Module) -> float:
        image = torch.zeros(1, *self.input_size, device=self.device)  # [1, C, H, W]
        times = []
        for _ in range(WARM_UP_RUNS + TIMED_RUNS):
            with stopwatch() as clock:
                network(image)
                if self.device.type == "cuda":
                    torch.cuda.synchronize(self.device)
            times.append(1000 * clock.seconds)
        return statistics.median(times[WARM_UP_RUNS:])
