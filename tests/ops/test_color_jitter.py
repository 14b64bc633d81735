"""color_jitter against torchvision's functions."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fastnas._library import _C
from fastnas.ops import color_jitter, color_jitter_reference

pytestmark = pytest.mark.usefixtures("backend")

OPS = torch.ops.fastnas
SIZES = [(1, 1), (3, 5), (16, 16), (17, 31), (1, 257), (40, 33)]  # cross the CPU's block of 256 pixels


def make(size: tuple[int, int], count: int) -> tuple[Tensor, Tensor]:
    images = torch.randint(0, 256, (count, *size, 3), dtype=torch.uint8)
    factors = torch.rand(count, 4) * torch.tensor([2.0, 2.0, 2.0, 1.0]) - torch.tensor([0.0, 0.0, 0.0, 0.5])
    return images, factors


def every_color() -> Tensor:
    """All colours of 16 levels a channel: [1, 64, 64, 3]."""
    level = torch.arange(16) * 17
    return torch.stack(torch.meshgrid(level, level, level, indexing="ij"), dim=-1).view(1, 64, 64, 3).to(torch.uint8)


def one(**changed: float) -> Tensor:
    factors = {"brightness": 1.0, "contrast": 1.0, "saturation": 1.0, "hue": 0.0} | changed
    return torch.tensor([list(factors.values())])


@pytest.mark.parametrize("factor", [0.0, 0.3, 0.999, 1.0, 1.4, 5.0])
@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation"])
def test_one_factor(name, factor):
    images, factors = every_color(), one(**{name: factor})
    difference = (color_jitter(images, factors).int() - color_jitter_reference(images, factors).int()).abs()
    # torchvision's passes round products and sums together, ours each: a level where they meet a whole number.
    assert difference.max() <= 1
    assert (difference > 0).float().mean() < 0.02


@pytest.mark.parametrize("hue", [-0.5, -0.3, -0.01, 0.0, 0.05, 1 / 6, 0.2, 1 / 3, 0.5])
def test_hue(hue):
    images, factors = every_color(), one(hue=hue)
    difference = (color_jitter(images, factors).int() - color_jitter_reference(images, factors).int()).abs()
    assert difference.max() <= 1
    assert (difference > 0).float().mean() < 0.05


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_all_factors_at_once(size):
    images, factors = make(size, 7)
    difference = (color_jitter(images, factors).int() - color_jitter_reference(images, factors).int()).abs()
    # A level that rounds otherwise before the saturation may grow by its factor, and move the hue of dark pixels.
    assert difference.float().mean() < 0.1


def test_nothing_changes_nothing():
    images, _ = make((9, 11), 3)
    assert torch.equal(color_jitter(images, one().expand(3, 4)), images)


@settings(deadline=None, max_examples=40)
@given(
    height=st.integers(1, 20),
    width=st.integers(1, 20),
    count=st.integers(0, 4),
    seed=st.integers(0, 2**31),
)
def test_an_image_does_not_depend_on_the_others(height, width, count, seed):
    torch.manual_seed(seed)
    images, factors = make((height, width), count)
    together = color_jitter(images, factors)
    assert together.shape == images.shape
    for place in range(count):
        assert torch.equal(color_jitter(images[place : place + 1], factors[place : place + 1])[0], together[place])


def test_greys_stay_grey_and_full_turns_return():
    grey = torch.randint(0, 256, (2, 5, 6, 1), dtype=torch.uint8).expand(-1, -1, -1, 3)
    _, factors = make((1, 1), 2)
    result = color_jitter(grey, factors)
    assert torch.equal(result, result[..., :1].expand_as(result))
    images = every_color()
    half = color_jitter(images, one(hue=0.5))
    assert (color_jitter(half, one(hue=0.5)).int() - images.int()).abs().max() <= 1


@pytest.mark.cpu_only
def test_instruction_sets_and_threads_agree_to_the_bit():
    images, factors = make((33, 47), 9)
    before, threads = _C.cpu_capability(), torch.get_num_threads()
    results = []
    try:
        torch.set_num_threads(2)
        for capability in ("portable", "AVX2", "AVX-512"):
            try:
                _C.set_cpu_capability(capability)
            except ValueError:  # this processor does not have it
                continue
            results.append(color_jitter(images, factors))
    finally:
        _C.set_cpu_capability(before)
        torch.set_num_threads(threads)
    assert all(torch.equal(result, results[0]) for result in results)


def test_strided_inputs():
    images, factors = make((6, 8), 6)
    expected = color_jitter(images[::2, :, ::2].contiguous(), factors[::2].contiguous())
    assert torch.equal(color_jitter(images[::2, :, ::2], factors[::2]), expected)


def test_empty():
    images, factors = make((6, 8), 0)
    assert color_jitter(images, factors).shape == (0, 6, 8, 3)
    assert color_jitter(torch.empty(2, 0, 8, 3, dtype=torch.uint8), one().expand(2, 4)).shape == (2, 0, 8, 3)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, -0.51])
@pytest.mark.parametrize("place", range(4))
def test_factors_that_make_no_sense_are_refused(place, value):
    images, _ = make((3, 4), 2)
    factors = torch.tensor([[1.0, 1.0, 1.0, 0.0]] * 2)
    factors[1, place] = value
    name = ["finite brightness", "finite contrast", "finite saturation", "hue"][place]
    with pytest.raises(RuntimeError, match=rf"factors\[1, {place}\] is .*, expected a {name} (of|from)"):
        color_jitter(images, factors)


def test_huge_factors_saturate():
    images, _ = make((3, 4), 1)
    for name in ("brightness", "contrast", "saturation"):
        assert color_jitter(images, one(**{name: 3e38})).shape == images.shape  # infinity less infinity is no level


def test_opcheck():
    torch.library.opcheck(OPS.color_jitter.default, make((5, 6), 3))


@pytest.mark.parametrize(
    ("images", "factors", "message"),
    [
        (
            torch.zeros(2, 3, 4, 1, dtype=torch.uint8),
            torch.ones(2, 4),
            r"images must be uint8 \[B, H, W, 3\], got shape",
        ),
        (torch.zeros(2, 3, 4, 3), torch.ones(2, 4), r"images must be uint8 .* of another dtype"),
        (torch.zeros(2, 3, 4, 3, dtype=torch.uint8), torch.ones(3, 4), r"factors must be float32 \[B, 4\] with B = 2"),
        (torch.zeros(2, 3, 4, 3, dtype=torch.uint8), torch.ones(2, 4).double(), r"factors .* of another dtype"),
    ],
)
def test_errors(images, factors, message):
    with pytest.raises(RuntimeError, match=message):
        color_jitter(images, factors)
