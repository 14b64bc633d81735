"""Sizes of nothing, and of more than there is: a result or one message, never a crash."""

from __future__ import annotations

import random
import re

import pytest
import torch
from fuzz.operator_cases import EXCUSES, SCHEMAS, Draw
from torch import Tensor
from torch.utils import _pytree as pytree

from fastnas.ops import edge_sum, mixed_sum, node_sum, stage, stage_reference

OPS = torch.ops.fastnas
pytestmark = pytest.mark.usefixtures("backend")


def run(operator: str, dilation: int, size: tuple[int, int] = (8, 8), kernel: int = 3) -> Tensor:
    """One stage on an image of ones."""
    x, taps, matrix = torch.ones(1, 2, *size), torch.ones(2, 1, kernel, kernel), torch.ones(2, 2, 1, 1)
    if operator == "stage":
        return stage([x], [taps], [matrix], [dilation])[0][0]
    if operator == "stage_grad":
        y = torch.ones(1, 2, *size)
        return OPS.stage_grad([y], [], None, [x], None, None, [taps], [matrix], [dilation], 1)[0][0]
    nothing, scales = torch.empty(1, 0, 2), torch.tensor([1.0, 0, 0, 0])[:, None].expand(1, 1, 4, 2)
    return edge_sum(x, [taps], [matrix], [1], [dilation], nothing, nothing, scales, torch.zeros(1, 1, 2))[0]


DILATED = ["stage", "stage_grad", "edge_sum"]
TOO_FAR = [0, -1, -(2**63), 1025, 5000, 50_000, 2**31, 2**59, 2**60 + 1, 2**61 + 2**60, 2**62, 2**63 - 1]


@pytest.mark.parametrize("dilation", TOO_FAR)
@pytest.mark.parametrize("operator", DILATED)
def test_dilations_are_bounded_by_the_image(operator, dilation):
    message = rf"fastnas::{operator}: dilations\[0\] is {dilation}, expected 1 to 1024 for images of 8 × 8 pixels"
    with pytest.raises(RuntimeError, match=message):
        run(operator, dilation)
    assert run(operator, 1).shape == (1, 2, 8, 8)


@pytest.mark.parametrize("dilation", [7, 8, 9, 100, 1024])
@pytest.mark.parametrize("operator", DILATED)
def test_far_taps_read_zeros(operator, dilation):
    """At 7 a corner still sees the opposite one, from 8 on each pixel sees itself only."""
    result = run(operator, dilation)
    assert torch.equal(result[0, 0, 3:5, 3:5], torch.full((2, 2), 2.0))
    corner = 2.0 * (4 if dilation == 7 else 1)
    assert result[0, 0, 0, 0].item() == corner


@pytest.mark.parametrize("size", [(1, 1), (1, 6), (5, 2)])
def test_dilated_candidates_of_small_images(size):
    x = torch.randn(2, 4, *size)
    taps, matrices = [torch.randn(4, 1, 5, 5), torch.randn(4, 1, 3, 3)], [torch.randn(4, 4, 1, 1)] * 2
    ours, expected = (function([x], taps, matrices, [2, 9])[0] for function in (stage, stage_reference))
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("operator", DILATED)
def test_kernels_are_bounded_by_the_image(operator):
    with pytest.raises(
        RuntimeError, match=rf"fastnas::{operator}: depthwise\[0\] has shape .*, too large at dilation 8"
    ):
        run(operator, 8, kernel=1101)


@pytest.mark.parametrize("operator", DILATED)
def test_what_does_not_fit_memory_says_so_and_harms_nobody(operator):
    with pytest.raises(RuntimeError, match=r"not enough memory: \d+ bytes more were asked for|reach too far"):
        run(operator, 2**22, size=(1, 2**22))
    assert run(operator, 1).shape == (1, 2, 8, 8)


def seen_as(*sizes: int) -> Tensor:
    return torch.zeros(1).as_strided(sizes, (0,) * len(sizes))


HUGE = {
    "pool": lambda: OPS.pool(seen_as(2**30, 1, 2**30, 1), 1, 1, True),
    "pool without images": lambda: OPS.pool(seen_as(0, 2**40, 2**40, 1), 1, 1, True),
    "halve": lambda: OPS.halve(seen_as(0, 2**62, 2**62, 2**62), 1),
    "preprocess": lambda: OPS.preprocess([seen_as(0, 2**62, 1, 1)] * 4, [seen_as(1, 0)], [0], 1, 1, False),
    "mixed_sum": lambda: OPS.mixed_sum([seen_as(2**62)], torch.ones(1)),
    "mixed_sum_grad_outputs": lambda: OPS.mixed_sum_grad_outputs(seen_as(2**62), torch.ones(1), [1]),
    "node_sum": lambda: OPS.node_sum(
        [seen_as(0, 1, 2**60, 8)], *[torch.ones(1, 1, 1)] * 2, torch.ones(1, 1), [], None, 1
    ),
    "bypass_grad": lambda: OPS.bypass_grad(None, [seen_as(0, 2**61, 2**61, 4)], torch.ones(1), [], 2**60),
    "augment_batch": lambda: OPS.augment_batch(
        seen_as(0, 2**40, 2**40, 1).byte(), torch.zeros(1, 256), None, None, 0, 0
    ),
}


@pytest.mark.parametrize("what", HUGE)
def test_sizes_that_overflow_are_refused(what):
    with pytest.raises(RuntimeError, match=r"more values than memory holds|has shape"):
        HUGE[what]()


@pytest.mark.cpu_only
def test_images_of_any_size_are_asked_for():
    like = torch.zeros(1)
    for size, message in (([2**20] * 4, "more values than memory"), ([1, 1, 1, -1], r"size is \[1, 1, 1, -1\]")):
        with pytest.raises(RuntimeError, match=message):
            OPS.empty_images(like, size)
    with pytest.raises(RuntimeError, match=r"not enough memory: \d+ bytes more were asked for"):
        OPS.empty_images(like, [2**12, 2**12, 2**12, 2**10])


@pytest.mark.cpu_only
def test_counts_that_overflow_are_refused():
    with pytest.raises(RuntimeError, match=r"got 0 mean, .* for statistics of"):
        OPS.running_statistics([], [], [], [seen_as(2**48, 0)] * 2, [seen_as(2**48, 0)] * 2, [1, 1], 0.1)
    images = [torch.ones(0, 1, 2, 2)], *[torch.ones(1, 1, 1)] * 2, torch.ones(1, 1), [], None
    with pytest.raises(RuntimeError, match="expected as many as each of"):
        OPS.node_sum(*images, 2**32, 2**32)


# --- nothing ---


@pytest.mark.emulated_cases(120)
@pytest.mark.parametrize("what", ["images", "channels", "height", "width", "nothing"])
@pytest.mark.parametrize("name", SCHEMAS)
def test_every_schema_takes_nothing(name, what, seed):
    """Empty results and zero gradients, or a message; whatever is not written would be NaN."""
    draw = Draw(random.Random(seed))
    if what == "nothing":
        draw.count = lambda least=0, most=4: least  # the shortest lists
    else:
        setattr(draw, what, 0)
    arguments = SCHEMAS[name](draw)
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        results = getattr(OPS, name)(*arguments)
    except RuntimeError as error:
        if not any(excuse in str(error) for excuse in EXCUSES):
            raise
        return
    finally:
        torch.use_deterministic_algorithms(False)
    leaves = [leaf for leaf in pytree.tree_leaves(results) if isinstance(leaf, Tensor)]
    assert name == "empty_images" or all(bool(leaf.isfinite().all()) for leaf in leaves)


MANY = 2**31  # images without pixels or without channels: who went over them one by one would need minutes


@pytest.mark.cpu_only
def test_nothing_takes_no_time():
    some, table = seen_as(MANY, 0, 2, 3), torch.ones(1, 1, 4)
    assert OPS.halve(some, 0).shape == (MANY, 0, 1, 2)
    (nothing,) = OPS.mixed_sum_grad_outputs(seen_as(0, 2**48), torch.ones(0, 1), [0])
    assert nothing.shape == (0, 2**48)
    assert OPS.halve_grad(some[..., :1, :2], some, some).shape == some.shape
    none = seen_as(MANY, 4, 0, 3)
    assert all(OPS.pool(none, 1, 1, True)[i].eq(0).all() for i in (2, 3))
    output, mean, _ = OPS.preprocess([none], [torch.ones(2, 4)], [0], 1, 1, True)
    assert (output.shape, mean.tolist()) == ((MANY, 2, 0, 3), [[0, 0]])
    grads = OPS.preprocess_grad([output], None, None, [none], [torch.ones(2, 4)], [0], 1)
    assert grads[1][0].eq(0).all()
    assert all(each.eq(0).all() for each in OPS.node_sum_grad(none, [none], table, table, [])[1:])
    weights = [torch.ones(4, 1, 3, 3)], [torch.ones(4, 4, 1, 1)], [1], 1
    outputs, mean, _ = OPS.stage([none], table, table, *weights, 1, True, True)
    assert (outputs[0].shape, mean.eq(0).all()) == (none.shape, True)
    _, *grads = OPS.stage_grad(outputs, [], None, [none], table, table, *weights)
    assert all(each.eq(0).all() for each in pytree.tree_leaves(grads))


def test_node_sum_without_channels_has_gradients_without_channels():
    candidates = [torch.randn(2, 0, 3, 3, requires_grad=True) for _ in range(2)]
    weights = torch.ones(2, requires_grad=True)
    node_sum(candidates, *[torch.zeros(2, 1, 0)] * 2, weights).sum().backward()
    assert torch.equal(weights.grad, torch.zeros(2))
    assert candidates[0].grad.shape == (2, 0, 3, 3)


def test_gradients_of_no_outputs_are_refused():
    with pytest.raises(RuntimeError, match="leading_sizes has 0 entries, expected 1 to 64"):
        OPS.mixed_sum_grad_outputs(torch.randn(3), torch.ones(0), [])


@pytest.mark.parametrize("needs_grad", [False, True])
def test_a_scalar_has_no_individuals(needs_grad):
    outputs = [torch.tensor(1.0, requires_grad=needs_grad)] * 2
    message = re.escape("outputs[0] is a scalar, but weights [3, 2] ask for a leading dimension of individuals")
    with pytest.raises(RuntimeError, match=message):
        mixed_sum(outputs, torch.rand(3, 2))
