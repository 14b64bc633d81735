"""The CMA-ES wrapper, against the equations of Hansen 2016 (arXiv 1604.00772)."""

from __future__ import annotations

import io
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cmaes import CMA
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fastnas.strategies.cma_es import CMAES


class Equations:
    """CMA-ES as it is printed, nothing shared with the package."""

    def __init__(self, mean: np.ndarray, sigma: float, population: int, seed: int) -> None:
        n, half = len(mean), population // 2
        raw = np.log((population + 1) / 2) - np.log(np.arange(1, population + 1))
        self.mu_eff = raw[:half].sum() ** 2 / (raw[:half] ** 2).sum()
        negative = raw[half:].sum() ** 2 / (raw[half:] ** 2).sum()
        self.c_1 = 2 / ((n + 1.3) ** 2 + self.mu_eff)
        self.c_mu = min(1 - self.c_1 - 1e-8, 2 * (self.mu_eff - 2 + 1 / self.mu_eff) / ((n + 2) ** 2 + self.mu_eff))
        scale = min(
            1 + self.c_1 / self.c_mu,
            1 + 2 * negative / (self.mu_eff + 2),
            (1 - self.c_1 - self.c_mu) / (n * self.c_mu),
        )
        self.weights = np.where(raw >= 0, raw / raw[raw > 0].sum(), scale * raw / np.abs(raw[raw < 0]).sum())
        self.c_sigma = (self.mu_eff + 2) / (n + self.mu_eff + 5)
        self.d_sigma = 1 + 2 * max(0, math.sqrt((self.mu_eff - 1) / (n + 1)) - 1) + self.c_sigma
        self.c_c = (4 + self.mu_eff / n) / (n + 4 + 2 * self.mu_eff / n)
        self.chi = math.sqrt(n) * (1 - 1 / (4 * n) + 1 / (21 * n**2))
        self.mean, self.sigma, self.half, self.generation = mean.copy(), sigma, half, 0
        self.covariance, self.path_sigma, self.path_c = np.eye(n), np.zeros(n), np.zeros(n)
        self.random = np.random.RandomState(seed)

    def root(self, power: float) -> np.ndarray:
        values, vectors = np.linalg.eigh(self.covariance)
        return vectors @ np.diag(values**power) @ vectors.T

    def ask(self) -> np.ndarray:
        values, vectors = np.linalg.eigh(self.covariance)
        normals = self.random.randn(len(self.weights), len(self.mean))
        return self.mean + self.sigma * normals @ (vectors @ np.diag(np.sqrt(values))).T

    def tell(self, samples: np.ndarray, fitness: list[float]) -> None:
        self.generation += 1
        n = len(self.mean)
        steps = (samples[np.argsort(fitness, kind="stable")] - self.mean) / self.sigma  # [λ, n]
        step = self.weights[: self.half] @ steps[: self.half]
        whitening = self.root(-0.5)
        self.mean = self.mean + self.sigma * step
        decay = 1 - self.c_sigma
        self.path_sigma = (
            decay * self.path_sigma + math.sqrt(self.c_sigma * (1 + decay) * self.mu_eff) * whitening @ step
        )
        length = np.linalg.norm(self.path_sigma)
        self.sigma *= math.exp(self.c_sigma / self.d_sigma * (length / self.chi - 1))
        h = length / math.sqrt(1 - decay ** (2 * (self.generation + 1))) < (1.4 + 2 / (n + 1)) * self.chi
        self.path_c = (1 - self.c_c) * self.path_c + h * math.sqrt(self.c_c * (2 - self.c_c) * self.mu_eff) * step
        lengths = np.linalg.norm(steps @ whitening, axis=1) ** 2
        active = np.where(self.weights >= 0, self.weights, self.weights * n / (lengths + 1e-8))
        kept = 1 + self.c_1 * (1 - h) * self.c_c * (2 - self.c_c) - self.c_1 - self.c_mu * self.weights.sum()
        self.covariance = (
            kept * self.covariance
            + self.c_1 * np.outer(self.path_c, self.path_c)
            + self.c_mu * (steps.T * active) @ steps
        )


def ellipsoid(x: Tensor) -> Tensor:
    """[P, n] → [P], minimal at 1."""
    return ((x - 1) ** 2 * torch.linspace(1, 30, x.shape[1], dtype=x.dtype)).sum(1)


def saved_and_loaded(state: dict[str, Any]) -> dict[str, Any]:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def advance(run: CMAES, generations: int) -> list[Tensor]:
    samples = []
    for _ in range(generations):
        samples.append(run.ask())
        run.tell(ellipsoid(run.ask()))
    return samples


@pytest.mark.parametrize("name", ["dim196_lambda50", "dim224_lambda50", "dim196_lambda25"])
def test_constants(shared_data: Path, name: str) -> None:
    """The package and the equations above have the published constants."""
    published = json.loads((shared_data / "published.json").read_text())["cma_es_constants"][name]
    n, population = (int(part.strip("dimlab")) for part in name.split("_"))
    package, printed = CMA(np.zeros(n), 1.0, population_size=population), Equations(np.zeros(n), 1.0, population, 0)
    for key, ours in {"mu": "half", "mu_eff": "mu_eff", "cc": "c_c", "c1": "c_1", "cmu": "c_mu",
                      "c_sigma": "c_sigma", "d_sigma": "d_sigma", "chi_n": "chi"}.items():  # fmt: skip
        assert getattr(printed, ours) == pytest.approx(published[key], rel=1e-4, abs=5e-7)
        assert getattr(package, f"_{key}") == pytest.approx(getattr(printed, ours), rel=1e-12)


def test_recombination_weights(shared_data: Path) -> None:
    """One generation moves the mean by w_1…w_25 times the best 25 steps, best first."""
    published = json.loads((shared_data / "published.json").read_text())["numeric_oracles"]["cma_w_lambda50"]
    run = CMAES(torch.zeros(196), 1.0, 50, seed=3)
    samples, fitness = run.ask(), torch.randperm(50).double()
    run.tell(fitness)
    best = samples[fitness.argsort()]  # [50, 196]
    weights = torch.linalg.lstsq(best.T, run.mean[:, None]).solution.squeeze(1)  # [50]
    assert weights[0].item() == pytest.approx(published["first"], abs=1e-6)
    assert weights[24].item() == pytest.approx(published["last_positive_25th"], abs=1e-6)
    assert weights[25:].abs().max() < 1e-9
    assert weights.sum().item() == pytest.approx(1)


@given(n=st.integers(2, 12), population=st.integers(4, 14), sigma=st.floats(0.05, 3), seed=st.integers(0, 2**32 - 1))
@settings(max_examples=25, deadline=None)
def test_follows_the_equations(n: int, population: int, sigma: float, seed: int) -> None:
    mean = torch.linspace(-1, 2, n, dtype=torch.float64)
    run, printed = CMAES(mean, sigma, population, seed), Equations(mean.numpy(), sigma, population, seed)
    for _ in range(4):
        samples = run.ask()
        # Eigenvectors are only defined up to their sign, so the samples are shared from the second generation on.
        expected = printed.ask() if printed.generation == 0 else samples.numpy()
        assert np.allclose(samples.numpy(), expected, rtol=1e-9, atol=1e-9)
        fitness = ellipsoid(samples)
        run.tell(fitness)
        printed.tell(expected, fitness.tolist())
        assert np.allclose(run.mean.numpy(), printed.mean, rtol=1e-8, atol=1e-9)
    normals = torch.from_numpy(printed.root(-0.5)) @ (run.ask() - run.mean).T / printed.sigma  # [n, λ]
    expected_norms = np.linalg.norm(skipped(seed, 4 * population * n).randn(population, n), axis=1)
    assert np.allclose(normals.norm(dim=0).numpy(), expected_norms, rtol=1e-6)  # so σ and C are right as well


def skipped(seed: int, count: int) -> np.random.RandomState:
    random = np.random.RandomState(seed)
    random.randn(count)
    return random


def test_converges_on_the_sphere() -> None:
    run = CMAES(torch.full((10,), 3.0), 1.0, 10, seed=5)
    for _ in range(150):
        run.tell((run.ask() ** 2).sum(1))
    assert run.generation == 150
    assert (run.mean**2).sum() < 1e-7  # from 90


def test_ask_repeats_itself_until_told() -> None:
    run = CMAES(torch.zeros(5), 0.5, 6, seed=1)
    first = run.ask()
    assert first.shape == (6, 5)
    assert first.dtype == torch.float64
    assert torch.equal(run.ask(), first)
    run.tell(ellipsoid(first))
    assert not torch.equal(run.ask(), first)


def test_leaves_its_arguments_alone() -> None:
    mean = torch.zeros(4, dtype=torch.float64)
    run = CMAES(mean, 1.0, 6, seed=1)
    told = run.mean
    advance(run, 2)
    assert torch.equal(mean, torch.zeros(4, dtype=torch.float64))
    assert torch.equal(told, mean)


@given(before=st.integers(0, 5), asked=st.booleans())
@settings(max_examples=12, deadline=None)
def test_continues_bit_for_bit(before: int, asked: bool) -> None:
    run = CMAES(torch.linspace(0, 2, 7), 0.7, 8, seed=9)
    advance(run, before)
    if asked:
        run.ask()
    state = saved_and_loaded(run.state_dict())
    again = CMAES.from_state(state)
    assert again.generation == before
    assert torch.equal(again.mean, run.mean)
    for one, other in zip(advance(run, 4), advance(again, 4), strict=True):
        assert torch.equal(one, other)
    assert torch.equal(again.mean, run.mean)
    assert len(state["told"]) == before  # a loaded state does not change as the run continues


def test_a_state_is_a_snapshot() -> None:
    run = CMAES(torch.zeros(3), 1.0, 4, seed=2)
    state = run.state_dict()
    advance(run, 1)
    assert CMAES.from_state(state).generation == 0


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_cannot_be_compared_is_worst(bad: float) -> None:
    """NaN and infinity get no more weight than a very bad sample, and survive a checkpoint."""
    run, reference = (CMAES(torch.zeros(6), 1.0, 8, seed=4) for _ in range(2))
    for _ in range(2):
        fitness = ellipsoid(run.ask())
        run.tell(torch.where(torch.arange(8) == 3, bad, fitness))
        reference.tell(torch.where(torch.arange(8) == 3, 1e9, fitness))
        assert torch.equal(run.mean, reference.mean)
    assert run.mean.isfinite().all()
    assert torch.equal(CMAES.from_state(saved_and_loaded(run.state_dict())).ask(), run.ask())


def test_all_nan_is_survived() -> None:
    run = CMAES(torch.zeros(6), 1.0, 8, seed=4)
    run.tell(torch.full((8,), math.nan))
    assert run.mean.isfinite().all()
    assert run.ask().isfinite().all()


def test_rejects_fitness_of_another_population() -> None:
    with pytest.raises(ValueError, match="shorter"):
        CMAES(torch.zeros(3), 1.0, 6, seed=0).tell(torch.zeros(5))
