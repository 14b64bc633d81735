"""--precision of a search: activations by autocast, statistics and logits in float32, scaled losses for float16."""

from __future__ import annotations

import shlex
from collections.abc import Callable

import pytest
import torch
from run_files import same_bits
from torch import Tensor, nn

from fastnas.cli.configuration import parse_search
from fastnas.engine.checkpoint import load_checkpoint
from fastnas.engine.search import Search
from fastnas.nn import Supernet
from fastnas.search import prepare
from fastnas.strategies.gradient import gradients

LOW = ("bfloat16", "float16")
SMALL = shlex.split(
    "--data digits --limit 64 --batch-size 16 --image-size 8 --channels 4 --layers 3 --epochs 2 --device cpu "
    "--no-evidence"
)


def networks(precision: str, backend: str = "fused") -> tuple[Supernet, Supernet]:
    """The same weights in float32 and in a lower precision."""
    torch.manual_seed(0)
    options = {"channels": 4, "layers": 3, "partial_channels": 2, "backend": backend}
    full, low = (Supernet("egnas", precision=name, **options) for name in ("float32", precision))  # type: ignore[arg-type]
    low.load_state_dict(full.state_dict())
    return full, low


@pytest.mark.parametrize("backend", ["fused", "reference"])
@pytest.mark.parametrize("precision", LOW)
def test_every_forward_pass_is_near_float32_and_gives_float32(precision, backend):
    full, low = networks(precision, backend)
    images = torch.randn(4, 3, 12, 12)  # [B, C, H, W]
    alphas = {kind: torch.randn(2, *alpha.shape) for kind, alpha in full.alphas.items()}  # [P, E, O]
    paths = [
        {kind: (table[p] == table[p].amax(-1, keepdim=True)).float() for kind, table in alphas.items()}
        for p in range(2)
    ]
    seen: list[torch.dtype] = []
    low.cells[0].register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    calls = {
        "training": lambda network: network.train()(images),
        "path": lambda network: network.eval().path_logits(images, paths[0]),
        "population": lambda network: network.population_logits(images, alphas),
        "by batch": lambda network: network.population_logits(images, alphas, bn_mode="batch"),
        "paths": lambda network: network.path_population_logits(images, paths),
    }
    for name, call in calls.items():
        expected, logits = call(full), call(low)
        assert logits.dtype == torch.float32, name
        assert not torch.equal(logits, expected), name
        assert (logits - expected).norm() < 0.1 * expected.norm(), name
        if backend == "fused":
            assert set(seen) == {getattr(torch, precision)}, name
        seen.clear()
    statistics = [norm.running_var for norm in low.modules() if isinstance(norm, nn.BatchNorm2d)]
    assert {None if variance is None else variance.dtype for variance in statistics} == {torch.float32}
    assert low.rebuilt(layers=2).precision == precision


def test_a_scaled_loss_has_the_same_gradients():
    x = torch.randn(5, dtype=torch.float64, requires_grad=True)
    other = torch.ones(2, dtype=torch.float64, requires_grad=True)
    plain, scaled = (gradients(x.square().sum(), [x, other], scale) for scale in (1.0, 2.0**16))
    assert all(map(torch.equal, plain, scaled))
    assert torch.equal(scaled[0], 2 * x)


@pytest.fixture
def small(tmp_path) -> Callable[..., Search]:
    """Prepares a small search by any strategy: small("name", "--flag", …); an existing run of that name is resumed."""

    def make(name: str, *flags: str) -> Search:
        directory = tmp_path / name
        arguments = ["--out", str(directory), *SMALL, *flags]
        if (directory / "checkpoint.pt").exists():
            arguments = ["--resume", str(directory), *flags]
        return prepare(parse_search(arguments, "test", ""), arguments)

    return make


def alpha_gradients(small, name: str, *flags: str) -> tuple[list[Tensor], float]:
    search = small(name, *flags)
    search.network.train()
    search._set_rate()
    search.batch = search.weight_pipeline.batch(0, 0)
    return search.strategy.alpha_gradients(search), search.loss_scale


@pytest.mark.parametrize(
    ("flags", "error"),
    [("--strategy darts --order 2", 0.8), ("--strategy pc-darts", 0.3)],
)
def test_alpha_has_the_gradients_of_float32(small, flags, error):
    """As nearly as sixteen images of 8×8 pixels allow; the second order rests on a difference."""
    flags = [*flags.split(), "--warm-up", "0"]
    expected, scale = alpha_gradients(small, "float32", *flags)
    assert scale == 1
    for precision in LOW:
        found, scale = alpha_gradients(small, precision, *flags, "--precision", precision)
        assert scale == (2.0**16 if precision == "float16" else 1)
        for gradient, exact in zip(found, expected, strict=True):
            assert gradient.dtype == torch.float32
            assert (gradient - exact).norm() < error * exact.norm()


def test_alpha_in_the_loss_of_the_weights_has_gradients_without_the_scale(small):
    found = []
    for precision in ("float32", "float16"):
        search = small(precision, "--strategy", "snas", "--warm-up", "0", "--precision", precision)
        search.network.train()
        search.batch = search.weight_pipeline.batch(0, 0)
        torch.manual_seed(0)  # of the paths that are dropped
        search._update_weights(*search.batch)
        found.append([alpha.grad for alpha in search.network.alphas.values()])
    for exact, gradient in zip(*found, strict=True):
        assert (gradient - exact).norm() < 0.5 * exact.norm()


def test_the_difference_of_the_second_order_is_taken_in_float32(small):
    search = small("run", "--strategy", "darts", "--order", "2", "--warm-up", "0", "--precision", "bfloat16")
    search.network.train()
    search._set_rate()
    search.batch = search.weight_pipeline.batch(0, 0)
    seen: list[str] = []
    search.network.stem.register_forward_hook(lambda *_: seen.append(search.network.precision))
    search.strategy.alpha_gradients(search)
    assert seen == ["bfloat16", "bfloat16", "float32", "float32"]
    assert search.network.precision == "bfloat16"


@pytest.mark.parametrize("strategy", ["egnas", "snas"])
def test_a_search_in_float16_resumes_exactly(small, strategy):
    flags = ["--strategy", strategy, "--precision", "float16", "--warm-up", "0"]
    flags += ["--population", "4", "--fitness-batch-size", "20"] if strategy == "egnas" else []
    whole = small("whole", *flags)
    outcome = whole.run()
    small("part", *flags, "--stop-after", "1").run()
    parts = small("part")
    assert parts.run() == outcome
    states = [load_checkpoint(search.checkpoint_path) for search in (whole, parts)]
    for part in ("network", "optimizer", "strategy", "scaler"):
        assert same_bits(states[0][part], states[1][part]), part
    assert all(value.isfinite().all() for value in states[0]["network"].values())


def test_an_overflow_leaves_weights_and_alpha_where_they_are_and_lowers_the_scale(small):
    search = small(
        "run", "--strategy", "darts", "--order", "1", "--warm-up", "0", "--precision", "float16", "--epochs", "2"
    )
    search.network.train()
    search.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**40)
    before = [parameter.detach().clone() for parameter in search.network.parameters()]
    search._set_rate()
    search._train_on(*search.weight_pipeline.batch(0, 0))
    assert all(map(torch.equal, before, search.network.parameters()))
    assert search.loss_scale == 2.0**39
