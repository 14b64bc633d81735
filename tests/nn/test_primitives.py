from __future__ import annotations

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from fastnas.errors import UserError
from fastnas.nn.primitives import (
    PRIMITIVES,
    Conv7x1And1x7,
    DepthwiseStage,
    DilatedConv,
    FactorizedReduce,
    ReLUConvNorm,
    SeparableConv,
    Zero,
    make_primitive,
    register_primitive,
)

plain_norm = partial(nn.BatchNorm2d, affine=False)


def images(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def batch_norm(x: Tensor) -> Tensor:
    """What a BatchNorm without affine parameters gives in training: zero mean, unit biased variance per channel."""
    variance, mean = torch.var_mean(x, dim=(0, 2, 3), correction=0, keepdim=True)
    return (x - mean) / (variance + 1e-5).sqrt()


def reaches(module: nn.Module, size: int = 15) -> set[tuple[int, int]]:
    """Offsets of the input pixels on which the central output pixel depends."""
    x = images(1, 2, size, size).requires_grad_()
    y = module.double().eval()(x)
    y[..., y.shape[-2] // 2, y.shape[-1] // 2].sum().backward()
    assert x.grad is not None
    rows, columns = x.grad.abs().sum((0, 1)).nonzero(as_tuple=True)
    return {(int(r) - size // 2, int(c) - size // 2) for r, c in zip(rows, columns, strict=True)}


# The table


def test_names_are_those_of_the_field() -> None:
    assert list(PRIMITIVES) == [
        *("none", "max_pool_3x3", "avg_pool_3x3", "skip_connect", "sep_conv_3x3", "sep_conv_5x5", "sep_conv_7x7"),
        *("dil_conv_3x3", "dil_conv_5x5", "conv_7x1_1x7", "nor_conv_1x1", "nor_conv_3x3"),
    ]


@pytest.mark.parametrize("name", PRIMITIVES)
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", [(8, 8), (7, 7), (1, 1), (2, 5), (9, 4)])
def test_output_size_is_that_of_a_padded_convolution(name: str, stride: int, size: tuple[int, int]) -> None:
    x = images(2, 4, *size)
    y = make_primitive(name, 4, stride, norm=nn.BatchNorm2d).double().eval()(x)
    assert y.shape == (2, 4, -(-size[0] // stride), -(-size[1] // stride))
    assert y.dtype == x.dtype


@pytest.mark.parametrize("name", PRIMITIVES)
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("pool_norm", [False, True])
def test_input_is_not_changed_and_convolutions_have_no_bias(name: str, stride: int, pool_norm: bool) -> None:
    primitive = make_primitive(name, 4, stride, norm=plain_norm, pool_norm=pool_norm).double()
    x = images(3, 4, 6, 6)
    before = x.clone()
    primitive(x)
    assert torch.equal(x, before)
    convolutions = [module for module in primitive.modules() if isinstance(module, nn.Conv2d)]
    assert all(conv.bias is None for conv in convolutions)
    assert sum(p.numel() for p in primitive.parameters()) == sum(conv.weight.numel() for conv in convolutions)


@pytest.mark.parametrize("name", PRIMITIVES)
@pytest.mark.parametrize("stride", [1, 2])
def test_norm_builds_every_normalisation(name: str, stride: int) -> None:
    primitive = make_primitive(name, 6, stride, norm=lambda channels: nn.GroupNorm(2, channels), pool_norm=True)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in primitive.modules())
    norms = sum(isinstance(module, nn.GroupNorm) for module in primitive.modules())
    expected = {"none": 0, "skip_connect": stride - 1}.get(name, 2 if name.startswith("sep_conv") else 1)
    assert norms == expected


@pytest.mark.parametrize("pool", ["max_pool_3x3", "avg_pool_3x3"])
def test_pool_norm_normalises_after_the_pool(pool: str) -> None:
    x = images(3, 4, 6, 6)
    bare = make_primitive(pool, 4, 2, norm=plain_norm)
    normed = make_primitive(pool, 4, 2, norm=plain_norm, pool_norm=True).double()
    torch.testing.assert_close(normed(x), batch_norm(bare(x)))
    assert not list(bare.children())


def test_pool_norm_leaves_the_others_alone() -> None:
    for name in PRIMITIVES:
        if "pool" not in name:
            with_flag = make_primitive(name, 4, 1, norm=plain_norm, pool_norm=True)
            assert str(with_flag) == str(make_primitive(name, 4, 1, norm=plain_norm))


def test_errors() -> None:
    with pytest.raises(UserError, match=r"unknown primitive 'sep_conv_3': did you mean 'sep_conv_3x3'\?"):
        make_primitive("sep_conv_3", 4, 1, norm=plain_norm)
    with pytest.raises(UserError, match="unknown primitive 'fft': known are none, max_pool_3x3"):
        make_primitive("fft", 4, 1, norm=plain_norm)
    with pytest.raises(UserError, match=r"'sep_conv_3x3' got stride 3, expected 1 \(normal\) or 2 \(reduction\)"):
        make_primitive("sep_conv_3x3", 4, 3, norm=plain_norm)
    with pytest.raises(UserError, match="channels_out=3, expected an even number"):
        FactorizedReduce(4, 3, plain_norm)


def test_a_registered_primitive_is_built_by_name() -> None:
    register_primitive("conv_1x1", lambda c, s, norm: ReLUConvNorm(c, c, 1, s, 0, norm))
    assert make_primitive("conv_1x1", 4, 2, norm=plain_norm)(torch.zeros(2, 4, 5, 5)).shape == (2, 4, 3, 3)


# What each candidate computes, against plain functions


@pytest.mark.parametrize("stride", [1, 2])
def test_none_is_zero_without_gradient_and_without_nan(stride: int) -> None:
    x = images(2, 4, 5, 6).requires_grad_()
    with torch.no_grad():
        x[0, 0, 0, 0] = float("inf")
    y = make_primitive("none", 4, stride, norm=plain_norm)(x)
    assert torch.equal(y, torch.zeros_like(x[:, :, ::stride, ::stride]))
    assert not y.requires_grad


def test_none_keeps_the_memory_format() -> None:
    x = images(2, 4, 6, 6).to(memory_format=torch.channels_last)
    assert Zero(1)(x).is_contiguous(memory_format=torch.channels_last)


def test_skip_connect_at_stride_1_is_the_input_itself() -> None:
    x = images(2, 4, 5, 5)
    skip = make_primitive("skip_connect", 4, 1, norm=plain_norm)
    assert isinstance(skip, nn.Identity)
    assert skip(x) is x


def test_skip_connect_at_stride_2_is_a_factorized_reduction() -> None:
    skip = make_primitive("skip_connect", 4, 2, norm=plain_norm)
    assert isinstance(skip, FactorizedReduce)
    assert skip(torch.zeros(2, 4, 6, 6)).shape == (2, 4, 3, 3)


def reduce_by_definition(x: Tensor, module: FactorizedReduce) -> Tensor:
    x = F.relu(x)
    odd = F.conv2d(x[:, :, 1:, 1:], module.conv_odd.weight, stride=2)
    return batch_norm(torch.cat([F.conv2d(x, module.conv_even.weight, stride=2), odd], 1))


@pytest.mark.parametrize("size", [(8, 8), (2, 6), (4, 10)])
def test_factorized_reduce_is_the_papers_for_even_sizes(size: tuple[int, int]) -> None:
    module = FactorizedReduce(4, 6, plain_norm).double()
    x = images(3, 4, *size)
    torch.testing.assert_close(module(x), reduce_by_definition(x, module))


@given(height=st.integers(1, 9), width=st.integers(1, 9))
def test_factorized_reduce_of_odd_sizes_is_that_of_the_zero_padded_map(height: int, width: int) -> None:
    module = FactorizedReduce(2, 4, nn.Identity).double()
    x = images(1, 2, height, width)
    padded = F.pad(x, (0, width % 2, 0, height % 2))
    y = module(x)
    assert y.shape[-2:] == ((height + 1) // 2, (width + 1) // 2)
    even = F.conv2d(padded.relu(), module.conv_even.weight, stride=2)
    odd = F.conv2d(padded.relu()[:, :, 1:, 1:], module.conv_odd.weight, stride=2)
    torch.testing.assert_close(y, torch.cat([even, odd], 1))


def test_relu_conv_norm() -> None:
    module = ReLUConvNorm(4, 6, 3, 2, 1, plain_norm).double()
    x = images(3, 4, 7, 8)
    torch.testing.assert_close(module(x), batch_norm(F.conv2d(x.relu(), module.conv.weight, stride=2, padding=1)))


def stage_by_definition(x: Tensor, stage: DepthwiseStage, stride: int, padding: int, dilation: int = 1) -> Tensor:
    depthwise = F.conv2d(x.relu(), stage.depthwise.weight, None, stride, padding, dilation, groups=x.shape[1])
    return batch_norm(F.conv2d(depthwise, stage.pointwise.weight))


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("kernel", [3, 5, 7])
def test_separable_convolution(kernel: int, stride: int) -> None:
    module = make_primitive(f"sep_conv_{kernel}x{kernel}", 4, stride, norm=plain_norm).double()
    assert isinstance(module, SeparableConv)
    first, second = module
    assert isinstance(first, DepthwiseStage)
    assert isinstance(second, DepthwiseStage)
    x = images(3, 4, 9, 8)
    between = stage_by_definition(x, first, stride, kernel // 2)
    torch.testing.assert_close(module(x), stage_by_definition(between, second, 1, kernel // 2))
    assert first.depthwise.weight.shape == second.depthwise.weight.shape == (4, 1, kernel, kernel)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(("kernel", "padding"), [(3, 2), (5, 4)])
def test_dilated_convolution(kernel: int, padding: int, stride: int) -> None:
    module = make_primitive(f"dil_conv_{kernel}x{kernel}", 4, stride, norm=plain_norm).double()
    assert isinstance(module, DilatedConv)
    x = images(3, 4, 9, 8)
    torch.testing.assert_close(module(x), stage_by_definition(x, module, stride, padding, dilation=2))
    assert module.depthwise.weight.shape == (4, 1, kernel, kernel)


@pytest.mark.parametrize("stride", [1, 2])
def test_conv_7x1_1x7(stride: int) -> None:
    module = make_primitive("conv_7x1_1x7", 4, stride, norm=plain_norm).double()
    assert isinstance(module, Conv7x1And1x7)
    x = images(3, 4, 9, 8)
    _, across, down, _ = module
    assert isinstance(across, nn.Conv2d)
    assert isinstance(down, nn.Conv2d)
    assert (across.weight.shape, down.weight.shape) == ((4, 4, 1, 7), (4, 4, 7, 1))
    y = F.conv2d(x.relu(), across.weight, stride=(1, stride), padding=(0, 3))
    torch.testing.assert_close(module(x), batch_norm(F.conv2d(y, down.weight, stride=(stride, 1), padding=(3, 0))))


@pytest.mark.parametrize("stride", [1, 2])
def test_pools_do_not_see_their_padding(stride: int) -> None:
    x = -1 - images(2, 4, 7, 6).abs()  # negative: a zero of the padding would win the maximum and shift the mean
    windows = F.unfold(F.pad(x, (1, 1, 1, 1), value=float("nan")), 3, stride=stride).view(2, 4, 9, -1)
    shape = (2, 4, -(-7 // stride), -(-6 // stride))
    average = make_primitive("avg_pool_3x3", 4, stride, norm=plain_norm)(x)
    torch.testing.assert_close(average, windows.nanmean(2).view(shape))
    maximum = make_primitive("max_pool_3x3", 4, stride, norm=plain_norm)(x)
    assert torch.equal(maximum, windows.nan_to_num(-torch.inf).amax(2).view(shape))


@pytest.mark.parametrize(
    ("name", "offsets"),
    [
        ("sep_conv_3x3", range(-2, 3)),  # 3×3 twice
        ("sep_conv_5x5", range(-4, 5)),
        ("sep_conv_7x7", range(-6, 7)),
        ("dil_conv_3x3", range(-2, 3, 2)),  # every other pixel
        ("dil_conv_5x5", range(-4, 5, 2)),
        ("conv_7x1_1x7", range(-3, 4)),
        ("avg_pool_3x3", range(-1, 2)),
        ("skip_connect", range(1)),
    ],
)
def test_receptive_field(name: str, offsets: range) -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Softplus(), make_primitive(name, 2, 1, norm=nn.Identity))
    with torch.no_grad():  # positive inputs and weights: no ReLU hides a pixel, no two paths cancel
        for parameter in module.parameters():
            parameter.abs_()
    assert reaches(module) == {(row, column) for row in offsets for column in offsets}
