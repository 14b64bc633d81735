"""CMA-ES (Hansen 2016, arXiv 1604.00772) from the `cmaes` package, with a state that a checkpoint can hold."""

from __future__ import annotations

from typing import Any, Self

import numpy as np
import torch
from torch import Tensor


class CMAES:
    """One run of CMA-ES, minimising.

    The package's optimizer is a deterministic function of its arguments and of the fitness values it was told, so these
    are all that is stored; `from_state` replays them. No private attribute of the package is used.

    Args:
        mean: [n], where the search begins.
        sigma: initial step size, > 0.
        population: λ, samples per generation.
        seed: of the samples.
    """

    def __init__(self, mean: Tensor, sigma: float, population: int, seed: int) -> None:
        self._arguments = (mean.detach().double().cpu().clone(), float(sigma), population, seed)
        self._told: list[list[float]] = []
        from cmaes import CMA  # here: strategies that do not use it run without

        self._cma = CMA(self._arguments[0].numpy().copy(), sigma, seed=seed, population_size=population)
        self._asked: Tensor | None = None

    @property
    def generation(self) -> int:
        """Number of generations told."""
        return len(self._told)

    @property
    def mean(self) -> Tensor:
        """[n], float64."""
        return torch.from_numpy(np.array(self._cma.mean))

    def ask(self) -> Tensor:
        """The samples of the current generation, [λ, n] float64; the same ones until they are told."""
        if self._asked is None:
            samples = [self._cma.ask() for _ in range(self._cma.population_size)]
            self._asked = torch.from_numpy(np.stack(samples))
        return self._asked

    def tell(self, fitness: Tensor) -> None:
        """The fitness [λ] of the samples that `ask` gave, the lower the better. NaN counts as worst."""
        samples = self.ask()
        values = torch.nan_to_num(fitness.detach().double().cpu(), nan=1e30, posinf=1e30, neginf=-1e30).tolist()
        self._cma.tell([(sample.numpy(), value) for sample, value in zip(samples, values, strict=True)])
        self._told.append(values)
        self._asked = None

    def state_dict(self) -> dict[str, Any]:
        mean, sigma, population, seed = self._arguments
        return {"mean": mean, "sigma": sigma, "population": population, "seed": seed, "told": list(self._told)}

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> Self:
        run = cls(state["mean"], state["sigma"], state["population"], state["seed"])
        for values in state["told"]:
            run.tell(torch.tensor(values, dtype=torch.float64))
        return run
