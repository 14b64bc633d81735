from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from fastnas.errors import UserError
from fastnas.genotype import Genotype
from fastnas.nn import DerivedNetwork, Supernet
from fastnas.nn.batch_norm import BatchNorm, check_one_image, individual_statistics


def images(batch: int = 6, channels: int = 3, size: int = 4, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 2 + 3 * torch.randn(batch, channels, size, size, dtype=torch.float64, generator=generator)


def seasoned(affine: bool = True) -> BatchNorm:
    """A layer whose buffers and parameters all differ from their initial values."""
    torch.manual_seed(0)
    layer = BatchNorm(3, affine=affine).double()
    if affine:
        nn.init.normal_(layer.weight)
        nn.init.normal_(layer.bias)
    layer(images(seed=1))
    return layer


def by_hand(x: Tensor, layer: BatchNorm) -> Tensor:
    mean = x.mean((0, 2, 3), keepdim=True)
    variance = ((x - mean) ** 2).mean((0, 2, 3), keepdim=True)
    normalised = (x - mean) / (variance + layer.eps).sqrt()
    return normalised if layer.weight is None else normalised * layer.weight.view(-1, 1, 1) + layer.bias.view(-1, 1, 1)


@pytest.mark.parametrize("options", [{}, {"affine": False}, {"momentum": None}, {"track_running_stats": False}])
def test_is_batch_norm_2d(options: dict[str, Any]) -> None:
    ours, plain = BatchNorm(3, **options).double(), nn.BatchNorm2d(3, **options).double()
    for step in range(3):
        assert torch.equal(ours(images(seed=step)), plain(images(seed=step)))
    plain.load_state_dict(ours.state_dict())  # same keys
    for name, buffer in plain.named_buffers():
        assert torch.equal(ours.get_buffer(name), buffer)
    assert torch.equal(ours.eval()(images()), plain.eval()(images()))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("affine", [True, False])
@settings(deadline=None)
@given(individuals=st.integers(1, 4), count=st.integers(1, 3))
def test_each_individual_is_normalised_by_its_own_images(
    affine: bool, training: bool, individuals: int, count: int
) -> None:
    layer = seasoned(affine).train(training)
    x = images(individuals * count) * torch.arange(1, individuals + 1).repeat_interleave(count).view(-1, 1, 1, 1)
    with individual_statistics(layer, images=count):
        output = layer(x)
    expected = torch.cat([by_hand(x[first : first + count], layer) for first in range(0, len(x), count)])
    torch.testing.assert_close(output, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("training", [True, False])
def test_running_statistics_are_left_alone(training: bool) -> None:
    layer = seasoned().train(training)
    before = {name: buffer.clone() for name, buffer in layer.named_buffers()}
    with individual_statistics(layer, images=2):
        layer(images())
    assert len(before) == 3
    for name, buffer in layer.named_buffers():
        assert torch.equal(buffer, before[name]), name


def test_afterwards_all_is_as_before() -> None:
    layer = seasoned().eval()
    expected = layer(images())
    with individual_statistics(layer, images=2):
        assert not torch.allclose(layer(images()), expected)
    assert torch.equal(layer(images()), expected)


def test_an_exception_leaves_no_trace() -> None:
    network = nn.Sequential(seasoned(), nn.Sequential(seasoned())).eval()
    expected = network(images())
    with pytest.raises(KeyboardInterrupt), individual_statistics(network, images=2):
        raise KeyboardInterrupt
    assert torch.equal(network(images()), expected)


def test_only_this_network_and_only_our_layers() -> None:
    ours, other, plain = seasoned().eval(), seasoned().eval(), nn.BatchNorm2d(3).double().eval()
    expected = other(images()), plain(images())
    with individual_statistics(nn.Sequential(ours, plain), images=2):
        assert torch.equal(other(images()), expected[0])
        assert torch.equal(plain(images()), expected[1])


# --- batches of one image ---


def test_one_image_is_enough_where_it_stays_large() -> None:
    network = Supernet(channels=4, layers=3, backend="fused")
    before, state = torch.random.get_rng_state(), {name: value.clone() for name, value in network.state_dict().items()}
    check_one_image(network, (3, 5, 5), "no")
    with pytest.raises(UserError, match=r"^a batch of one image of 4×2 pixels cannot be normalised here.*: larger\.$"):
        check_one_image(network, (3, 4, 2), "larger")
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(torch.equal(value, state[name]) for name, value in network.state_dict().items())
    assert network.training


def test_the_auxiliary_head_counts_too() -> None:
    genotype = Genotype.published("DARTS_V2")
    check_one_image(DerivedNetwork(genotype, channels=2, layers=3, auxiliary=False), (3, 32, 32), "no")
    with pytest.raises(UserError, match="32×32"):
        check_one_image(DerivedNetwork(genotype, channels=2, layers=3, auxiliary=True), (3, 32, 32), "yes")
