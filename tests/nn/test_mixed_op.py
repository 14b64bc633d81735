from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastnas.errors import UserError
from fastnas.nn import MixedOp
from fastnas.nn.batch_norm import BatchNorm
from fastnas.nn.mixed_op import resolve_backend
from fastnas.spaces import SPACES

DARTS = SPACES["darts"].candidates
BACKENDS = ["fused", "reference"]
close = functools.partial(torch.testing.assert_close, rtol=1e-10, atol=1e-10)


def mixed_op(candidates: Sequence[str] = DARTS, **options: Any) -> MixedOp:
    torch.manual_seed(0)
    defaults: dict[str, Any] = {
        "channels": 4,
        "stride": 1,
        "partial_channels": 1,
        "pool_norm": True,
        "backend": "fused",
    }
    return MixedOp(candidates, norm=functools.partial(BatchNorm, affine=False), **(defaults | options)).double()


def images(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def softmaxed(*shape: int) -> Tensor:
    return torch.softmax(images(*shape, seed=1), dim=-1)


def by_hand(mixed: MixedOp, x: Tensor, weights: Tensor, k: int, stride: int) -> Tensor:
    """PC-DARTS, channel by channel."""
    part = x.shape[1] // k
    joined = sum(weight * candidate(x[:, :part]) for weight, candidate in zip(weights, mixed.candidates, strict=True))
    if k > 1:
        rest = x[:, part:]
        if stride == 2:
            odd = (0, x.shape[3] % 2, 0, x.shape[2] % 2)
            padded = F.pad(rest, odd, value=-torch.inf)
            rest = torch.stack([padded[:, :, i::2, j::2] for i in (0, 1) for j in (0, 1)]).amax(0)
        joined = torch.cat([joined, rest], dim=1)
    shuffled = torch.empty_like(joined)
    for group in range(k):
        for position in range(part):
            shuffled[:, position * k + group] = joined[:, group * part + position]
    return shuffled


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("k", [1, 2, 4])
@pytest.mark.parametrize("size", [(8, 8), (5, 6), (1, 3)])
def test_against_a_slow_formula(backend: str, stride: int, k: int, size: tuple[int, int]) -> None:
    mixed = mixed_op(channels=8, stride=stride, partial_channels=k, backend=backend)
    x, weights = images(3, 8, *size), softmaxed(8)
    for _ in range(2):
        # Batch statistics do not depend on the running ones, which both calls move.
        close(mixed(x, weights), by_hand(mixed, x, weights, k, stride))
    mixed.eval()
    close(mixed(x, weights), by_hand(mixed, x, weights, k, stride))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("k", "expected"), [(2, [0, 4, 10, 5, 20, 6, 30, 7]), (4, [0, 2, 4, 6, 10, 3, 5, 7]), (8, [0, 1, 2, 3, 4, 5, 6, 7])]
)
def test_order_of_partial_channels(backend: str, k: int, expected: list[int]) -> None:
    mixed = mixed_op(["skip_connect"], channels=8, partial_channels=k, backend=backend)
    x = torch.arange(8.0, dtype=torch.float64).view(1, 8, 1, 1).expand(2, 8, 3, 3)  # channel c holds c
    output = mixed(x, torch.tensor([10.0], dtype=torch.float64))  # and 10·c if candidates see it
    assert torch.equal(output, torch.tensor(expected, dtype=torch.float64).view(1, 8, 1, 1).expand(2, 8, 3, 3))


@pytest.mark.parametrize("backend", BACKENDS)
def test_bypass_of_stride_2_keeps_the_largest_of_four(backend: str) -> None:
    mixed = mixed_op(["none"], channels=2, stride=2, partial_channels=2, backend=backend)
    x = torch.arange(50.0, dtype=torch.float64).view(1, 2, 5, 5)
    output = mixed(x, torch.ones(1, dtype=torch.float64))
    assert output[0, 0].tolist() == [[0] * 3] * 3
    assert output[0, 1].tolist() == [[31, 33, 34], [41, 43, 44], [46, 48, 49]]


# "none"


@pytest.mark.parametrize("candidates", [["none", "skip_connect"], ["skip_connect", "none"], ["none"] * 2, ["none"]])
@pytest.mark.parametrize("backend", BACKENDS)
def test_none_adds_nothing_wherever_it_stands(backend: str, candidates: list[str]) -> None:
    mixed = mixed_op(candidates, backend=backend)
    x = images(2, 4, 3, 3)
    weights = torch.tensor([0.25, 0.75], dtype=torch.float64)[: len(candidates)]
    factor = sum(weight for weight, name in zip(weights.tolist(), candidates, strict=True) if name == "skip_connect")
    close(mixed(x, weights), factor * x)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("position", [0, 1, 2])
def test_none_gets_its_gradient_through_the_softmax(backend: str, position: int) -> None:
    candidates = ["skip_connect", "avg_pool_3x3"]
    candidates.insert(position, "none")
    mixed = mixed_op(candidates, pool_norm=False, backend=backend)
    alpha = images(3, seed=2).requires_grad_()
    x = images(2, 4, 5, 5)
    mixed(x, torch.softmax(alpha, dim=-1)).sum().backward()
    weights = torch.softmax(alpha, dim=-1).detach()
    gains = torch.stack([candidate(x).sum() for candidate in mixed.candidates])
    assert gains[position] == 0
    assert alpha.grad is not None
    close(alpha.grad, weights * (gains - (weights * gains).sum()))
    assert alpha.grad[position] != 0


# Backends, populations, memory formats


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("k", [1, 2])
def test_backends_have_the_same_gradients(training: bool, stride: int, k: int) -> None:
    results = []
    for backend in BACKENDS:
        mixed = mixed_op(stride=stride, partial_channels=k, backend=backend).train(training)
        x, weights = images(2, 4, 6, 6).requires_grad_(), softmaxed(8).requires_grad_()
        output = mixed(x, weights)
        output.backward(images(*output.shape, seed=3))
        assert all(parameter.grad is not None for parameter in mixed.parameters())
        gradients = [parameter.grad for parameter in (x, weights, *mixed.parameters())]
        results.append([output, *gradients, *mixed.buffers()])
    for fused, reference in zip(*results, strict=True):
        close(fused, reference)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("k", [1, 2])
@pytest.mark.parametrize("shared", [True, False])
def test_a_population_is_its_individuals(backend: str, stride: int, k: int, shared: bool) -> None:
    mixed = mixed_op(stride=stride, partial_channels=k, backend=backend).eval()
    weights = softmaxed(3, 8)
    x = images(1 if shared else 3, 2, 4, 5, 6)
    output = mixed(x, weights)
    assert output.shape == (3, 2, 4, 5, 6) if stride == 1 else (3, 2, 4, 3, 3)
    for individual in range(3):
        close(output[individual], mixed(x[0 if shared else individual], weights[individual]))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("k", [1, 2])
def test_channels_last_stays_channels_last(backend: str, stride: int, k: int) -> None:
    mixed = mixed_op(stride=stride, partial_channels=k, backend=backend).eval()
    x, weights = images(2, 4, 6, 6), softmaxed(8)
    output = mixed(x.to(memory_format=torch.channels_last), weights)
    assert output.is_contiguous(memory_format=torch.channels_last)
    close(output, mixed(x, weights).contiguous(memory_format=torch.channels_last))


# Construction


@pytest.mark.parametrize("pool_norm", [True, False])
def test_pools_are_normalised_on_request(pool_norm: bool) -> None:
    mixed = mixed_op(["max_pool_3x3", "avg_pool_3x3"], pool_norm=pool_norm)
    assert [type(candidate) is nn.Sequential for candidate in mixed.candidates] == [pool_norm] * 2


def test_candidates_see_their_share_of_the_channels() -> None:
    mixed = mixed_op(["sep_conv_3x3"], channels=8, partial_channels=4)
    assert {module.num_features for module in mixed.modules() if isinstance(module, BatchNorm)} == {2}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("count", [7, 9])
def test_one_weight_for_each_candidate(backend: str, count: int) -> None:
    with pytest.raises(
        UserError, match=rf"^MixedOp got weights of shape \[{count}\] for 8 candidates: expected one for"
    ):
        mixed_op(backend=backend)(images(2, 4, 3, 3), softmaxed(count))


def test_a_scalar_is_no_table_of_weights() -> None:
    with pytest.raises(UserError, match=r"^MixedOp got weights of shape \[\] for 1 candidates"):
        mixed_op(["skip_connect"])(images(2, 4, 3, 3), torch.tensor(1.0))


def test_defaults_are_those_of_darts() -> None:
    mixed = MixedOp(DARTS, 4)
    assert (mixed.stride, mixed.partial_channels, mixed.backend) == (1, 1, "fused")
    norms = [module for module in mixed.modules() if isinstance(module, nn.BatchNorm2d)]
    assert len(norms) == 2 + 2 * 2 + 2
    assert not any(norm.affine for norm in norms)
    assert not list(MixedOp(["max_pool_3x3"], 4, pool_norm=False).buffers())
    assert MixedOp(["skip_connect"], 4, norm=nn.InstanceNorm2d, stride=2).candidates[0].norm.num_features == 4


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("k", [1, 2])
def test_ready_modules_among_names(backend: str, stride: int, k: int) -> None:
    own = nn.Conv2d(8 // k, 8 // k, 3, stride, 1)
    mixed = MixedOp(["sep_conv_3x3", own, "none"], 8, stride, k, backend=backend).double()
    assert mixed.candidates[1] is own
    x, weights = images(2, 8, 6, 6).requires_grad_(), softmaxed(3).requires_grad_()
    y = mixed(x, weights)
    close(y, by_hand(mixed, x, weights, k, stride))
    y.square().sum().backward()
    assert all(tensor.grad is not None and tensor.grad.any() for tensor in (x, weights, *own.parameters()))


def test_ready_modules_need_no_channels() -> None:
    mixed = MixedOp([nn.Identity(), nn.AvgPool2d(3, 1, 1)])
    x = images(2, 3, 5, 5)
    close(mixed(x, softmaxed(2)), softmaxed(2)[0] * x + softmaxed(2)[1] * nn.AvgPool2d(3, 1, 1)(x))


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ([[]], {}, "MixedOp got no candidates: name at least one primitive, or give a module."),
        ([["skip_connect"]], {}, "MixedOp needs channels, to build candidates by name and to split off partial"),
        ([[nn.Identity()]], {"partial_channels": 2}, "MixedOp needs channels"),
        ([["skip_connect"], 4, 3], {}, r"MixedOp got stride 3, expected 1 \(normal\) or 2 \(reduction\)"),
        ([["skip_conect"], 4], {}, "unknown primitive 'skip_conect': did you mean 'skip_connect'"),
        ([["skip_connect"], 4], {"backend": "cuda"}, "unknown backend 'cuda'"),
    ],
)
def test_errors_of_construction(arguments: list[Any], options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=f"^{message}"):
        MixedOp(*arguments, **options)


def test_channels_must_be_divisible() -> None:
    message = (
        r"^6 channels cannot be cut into partial_channels=4 equal parts: choose a number of channels that is divisible"
    )
    with pytest.raises(UserError, match=message):
        mixed_op(channels=6, partial_channels=4)


def test_resolve_backend() -> None:
    assert [resolve_backend(name) for name in ("auto", "fused", "reference")] == ["fused", "fused", "reference"]
    with pytest.raises(UserError, match=r"^unknown backend 'cuda': expected auto, fused or reference\.$"):
        resolve_backend("cuda")
