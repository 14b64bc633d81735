"""halve against max_pool2d."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fastnas.ops.halve import halve, halve_reference

pytestmark = pytest.mark.usefixtures("backend")

OPS = torch.ops.fastnas
# (C, seen, H, W)
SHAPES = [(16, 4, 8, 8), (32, 8, 7, 5), (20, 5, 1, 6), (8, 0, 3, 3), (3, 1, 1, 1), (128, 32, 2, 9)]
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


def images(*size: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """Of few different values, so that windows have equal ones."""
    return (torch.randint(-3, 4, size) / 2).to(dtype).contiguous(memory_format=torch.channels_last)


def gradient_reference(grad: Tensor, x: Tensor, seen_grad: Tensor) -> Tensor:
    x = x.detach().clone().requires_grad_()
    (rest,) = torch.autograd.grad(halve_reference(x, seen_grad.shape[1]), x, grad)
    return torch.cat([seen_grad, rest[:, seen_grad.shape[1] :]], 1)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("channels", "seen", "height", "width"), SHAPES)
def test_equals_max_pool(channels, seen, height, width, dtype):
    x = images(3, channels, height, width, dtype=dtype)
    assert torch.equal(halve(x, seen), halve_reference(x, seen))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("channels", "seen", "height", "width"), SHAPES)
def test_gradient_equals_that_of_max_pool(channels, seen, height, width, dtype):
    x = images(3, channels, height, width, dtype=dtype)
    grad = images(3, channels - seen, -(-height // 2), -(-width // 2), dtype=dtype)
    seen_grad = images(3, seen, height, width, dtype=dtype)
    assert torch.equal(OPS.halve_grad(grad, x, seen_grad), gradient_reference(grad, x, seen_grad))


def test_slices_are_read_in_place_and_other_strides_copied():
    wide = images(2, 24, 6, 6)
    for x in (wide[:, :16], wide[:, :16].contiguous(), wide[:, ::2], wide[:, 8:].flip(2)):
        seen_grad, grad = images(2, 30, 6, 6)[:, :3], images(2, 30, 3, 3)[:, 10 : 10 + x.shape[1] - 3]
        assert torch.equal(halve(x, 3), halve_reference(x, 3))
        assert torch.equal(OPS.halve_grad(grad, x, seen_grad), gradient_reference(grad, x, seen_grad))


def test_all_channels_are_seen():
    x = images(2, 6, 4, 4)
    nothing = halve(x, 6)
    assert nothing.shape == (2, 0, 2, 2)
    assert torch.equal(OPS.halve_grad(nothing, x.flip(0), x), x)


@pytest.mark.parametrize("size", [(0, 8, 4, 4), (2, 8, 0, 4), (2, 8, 4, 0)])
def test_empty(size):
    assert halve(images(*size), 2).shape == (size[0], 6, size[2] // 2, size[3] // 2)


def test_nan_stays_and_gets_the_gradient():
    x = images(1, 4, 4, 4)
    x[0, 1, 0, 1] = x[0, 2, 3, 3] = x[0, 3, 0, 0] = x[0, 3, 1, 1] = float("nan")
    torch.testing.assert_close(halve(x), halve_reference(x, 0), rtol=0, atol=0, equal_nan=True)
    grad, none = images(1, 4, 2, 2), x[:, :0]
    assert torch.equal(OPS.halve_grad(grad, x, none), gradient_reference(grad, x, none))


def test_gradcheck():
    x = torch.randperm(2 * 4 * 5 * 6).view(2, 4, 5, 6).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: halve(x, 1), x)


@pytest.mark.cpu_only
def test_opcheck():
    x = torch.randn(2, 8, 5, 4, requires_grad=True)
    torch.library.opcheck(OPS.halve.default, (x, 2))
    torch.library.opcheck(OPS.halve_grad.default, (torch.randn(2, 6, 3, 2), x.detach(), torch.randn(2, 2, 5, 4)))


@pytest.mark.cpu_only
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: OPS.halve(x[0], 0), r"x must be \[N, C, H, W\], got shape \[8, 4, 4\]"),
        (lambda x: OPS.halve(x, 9), "seen is 9, expected 0 to 8"),
        (lambda x: OPS.halve(x.int(), 2), "x must be float16"),
        (lambda x: OPS.halve_grad(x, x, x[:, :2]), r"grad has shape \[2, 8, 4, 4\], expected \[2, 6, 2, 2\]"),
        (lambda x: OPS.halve_grad(x[:, :6, :2, :2], x, x[:, :2, :3]), r"seen_grad has shape \[2, 2, 3, 4\]"),
        (
            lambda x: OPS.halve_grad(x[:, :6, :2, :2].double(), x, x[:, :2]),
            "grad must have the dtype and the device of x",
        ),
    ],
)
def test_errors(call, message):
    with pytest.raises(RuntimeError, match=message):
        call(torch.randn(2, 8, 4, 4))
