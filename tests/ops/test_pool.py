"""pool and pool_grad against plain torch."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from closeness import SHARES, assert_close, of_moments
from torch import Tensor

from fastnas._library import _C
from fastnas.ops import pool, pool_reference
from fastnas.ops.layout import acc_dtype

pytestmark = pytest.mark.usefixtures("backend")

OPS = torch.ops.fastnas

# Channels that fill vectors, share them and straddle them; heights and widths of one; more rows than a block holds.
SHAPES = [
    (1, 1, 1, 1),
    (2, 3, 1, 5),
    (2, 5, 7, 1),
    (3, 4, 8, 8),
    (2, 6, 33, 5),
    (2, 12, 5, 7),
    (1, 16, 9, 2),
    (2, 20, 6, 7),
    (1, 64, 8, 8),
]


def images(shape: tuple[int, ...], dtype: torch.dtype = torch.float64, kind: str = "channels_last") -> Tensor:
    """Random, half of them zero as after a ReLU, so that windows have ties."""
    return layout(torch.randn(shape).relu().to(dtype), kind)


def layout(x: Tensor, kind: str) -> Tensor:
    """The same values, stored otherwise."""
    channels = x.shape[1]
    if kind == "channels_last":
        return x.contiguous(memory_format=torch.channels_last)
    if kind == "first_channels":
        return layout(torch.cat([x, torch.full_like(x, float("nan"))], 1), "channels_last")[:, :channels]
    if kind == "last_channels":
        return layout(torch.cat([torch.full_like(x, float("nan")), x, x], 1)[:, : 2 * channels], "channels_last")[
            :, channels:
        ]
    if kind == "transposed":
        return x.transpose(-1, -2).contiguous().transpose(-1, -2)
    if kind == "rows":  # a dense image, cut out of a higher one
        return layout(torch.cat([x, x], 2), "channels_last")[:, :, : x.shape[2]]
    return x.contiguous()


LAYOUTS = ["contiguous", "channels_last", "first_channels", "last_channels", "transposed", "rows"]


def run(function, x: Tensor, stride: int, grads: list[Tensor], **options) -> list[Tensor]:
    """All four results, and the gradient of x."""
    x = x.detach().requires_grad_()
    results = function(x, stride, **options)
    (grad,) = torch.autograd.grad(results[:2], x, grads)
    return [*(result.detach() for result in results), grad]


def check(x: Tensor, stride: int, individuals: int = 1, kind: str = "channels_last") -> None:
    """Forward, statistics and gradient against the reference in float64."""
    shape = pool_reference(x, stride)[0].shape
    grads = [layout(torch.randn(shape).to(x.dtype), kind) for _ in range(2)]
    options = {"individuals": individuals, "statistics": True}
    ours = run(pool, x, stride, grads, **options)
    expected = run(pool_reference, x.double(), stride, [grad.double() for grad in grads], **options)
    # x is not negative.
    terms = run(pool_reference, x.double(), stride, [grad.double().abs() for grad in grads], **options)
    terms[2:4] = of_moments(terms[:2])
    assert ours[0].is_contiguous(memory_format=torch.channels_last)
    assert [result.dtype for result in ours] == [x.dtype] * 2 + [acc_dtype(x.dtype)] * 2 + [x.dtype]
    assert torch.equal(ours[1].double(), expected[1])  # a maximum is one of the values
    assert_close(ours, expected, terms)


@pytest.mark.parametrize("dtype", SHARES, ids=str)
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_equals_reference(shape, stride, dtype):
    check(images(shape, dtype), stride)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("channels", [1, 3, 4, 8, 16, 20])
@pytest.mark.parametrize("kind", LAYOUTS)
def test_layouts(kind, channels, stride):
    check(images((2, channels, 5, 7), torch.float32, kind), stride, kind=kind)


@pytest.mark.cpu_only
@pytest.mark.parametrize("capability", ["portable", "AVX2", "AVX-512"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_instruction_sets(capability, dtype):
    before = _C.cpu_capability()
    try:
        _C.set_cpu_capability(capability)
    except ValueError:
        pytest.skip(f"this processor has no {capability}")
    try:
        for shape in [(2, 5, 7, 6), (2, 16, 6, 5), (2, 4, 9, 9)]:
            for stride in (1, 2):
                check(images(shape, dtype), stride)
                check_grad(shape, dtype, stride, count=3, corrected=True, skip=stride == 1, addends=1)
    finally:
        _C.set_cpu_capability(before)


@pytest.mark.parametrize("stride", [1, 2])
def test_statistics_of_individuals(stride):
    check(images((6, 5, 6, 7), torch.float32), stride, individuals=3)


@pytest.mark.parametrize("channels", [3, 4, 16])
def test_statistics_of_large_means(channels):
    # Multiples of 2⁻¹⁰: the sum of a window is exact in float32, whatever the order.
    x = 1e3 + torch.randint(-256, 256, (4, channels, 16, 16)) / 1024
    x = x.contiguous(memory_format=torch.channels_last)
    average, maximum, mean, variance = pool(x, statistics=True)
    both = torch.stack([average, maximum]).double().transpose(1, 2).flatten(2)  # [2, C, N·H·W]
    torch.testing.assert_close(mean[:, 0].double(), both.mean(-1), rtol=1e-7, atol=0)
    torch.testing.assert_close(variance[:, 0].double(), both.var(-1, correction=0), rtol=1e-3, atol=0)


@pytest.mark.parametrize("stride", [1, 2])
def test_more_channels_than_a_block_has_threads(stride):
    check(images((2, 262, 3, 5), torch.float32), stride, individuals=2)


def test_statistics_of_more_blocks_than_are_merged_at_once():
    check(images((1, 4, 96, 100), torch.float32), stride=1)


def test_no_statistics_unless_asked():
    mean, variance = pool(images((2, 3, 4, 4)))[2:]
    assert mean.shape == variance.shape == (0,)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("channels", [3, 16])
def test_ties_nan_and_infinity_as_torch(channels, stride):
    """Few distinct values, among them NaN and infinities: every order of them in a window occurs."""
    values = torch.tensor([0.0, -0.0, 1.0, 1.0, float("nan"), float("inf"), -float("inf"), -float("inf")])
    for choices in (values[:4], values[:5], values[5:], values[6:], values):
        x = choices[torch.randint(len(choices), (4, channels, 11, 12))].contiguous(memory_format=torch.channels_last)
        shape = pool_reference(x, stride)[0].shape
        zero, grad = torch.zeros(shape), torch.randn(shape)
        ours = run(pool, x, stride, [zero, grad])
        # Rounding differs, so that each gradient must arrive where torch's does, not bit for bit.
        expected = run(pool_reference, x.contiguous(), stride, [zero, grad])
        for actual, wanted in zip(ours, expected, strict=True):
            torch.testing.assert_close(actual, wanted, rtol=1e-5, atol=1e-5, equal_nan=True)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("shape", [(0, 3, 4, 4), (2, 3, 0, 4), (2, 0, 4, 4), (2, 3, 4, 0)], ids=str)
def test_empty(shape, stride):
    x = torch.randn(shape, requires_grad=True)
    average, maximum, mean, variance = pool(x, stride, statistics=True)
    assert average.shape == maximum.shape == (*shape[:2], *(-(-size // stride) for size in shape[2:]))
    assert mean.shape == variance.shape == (2, 1, shape[1])
    assert mean.eq(0).all()
    assert variance.eq(0).all()
    (average.sum() + maximum.sum()).backward()
    assert x.grad is not None
    assert x.grad.shape == shape


@pytest.mark.cpu_only  # emulated kernels are compared with these at every call
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (1, 4, 5, 1)], ids=str)
def test_gradcheck(shape, stride):
    x = torch.randperm(torch.Size(shape).numel()).double().view(shape).requires_grad_()  # no ties, far apart
    assert torch.autograd.gradcheck(lambda x: pool(x, stride)[:2], x)


def test_one_output_may_go_unused():
    x = images((2, 4, 5, 5), torch.float32)
    for index in (0, 1):
        ours, wanted = (x.clone().requires_grad_() for _ in range(2))
        pool(ours)[index].sum().backward()
        pool_reference(wanted)[index].sum().backward()
        torch.testing.assert_close(ours.grad, wanted.grad)


def test_statistics_carry_no_gradient():
    results = pool(images((2, 4, 5, 5)).requires_grad_(), statistics=True)
    assert [result.requires_grad for result in results] == [True, True, False, False]


# --- pool_grad: everything that reaches a state without a convolution ---


def check_grad(
    shape: tuple[int, int, int, int],
    dtype: torch.dtype,
    stride: int,
    count: int,
    corrected: bool = False,
    skip: bool = False,
    addends: int = 0,
    kind: str = "channels_last",
) -> None:
    channels = shape[1]
    x = images(shape, dtype, kind)
    average, maximum, _, _ = pool_reference(wide := x.double().requires_grad_(), stride)
    outputs = [layout(output.detach().to(dtype), kind) for output in (average, maximum)]
    # One wider tensor holds the gradients of all nodes, as that of a concatenation does.
    joined = layout(torch.randn(shape[0], max(count, 1) * channels, *average.shape[2:]).to(dtype), "channels_last")
    grads = list(joined.split(channels, 1))[:count]
    scales = torch.randn(2, count, channels, dtype=acc_dtype(dtype))
    bn_coeffs = torch.randn(2, 3, channels, dtype=acc_dtype(dtype)) if corrected else None
    skips = torch.randn(count, channels, dtype=acc_dtype(dtype)) if skip else None
    added = [layout(torch.randn(shape).to(dtype), kind) for _ in range(addends)]
    result = OPS.pool_grad.default(x, grads, scales, outputs if corrected else [], bn_coeffs, skips, added, stride)

    def total(of: Callable[[Tensor], Tensor], less: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        """The gradient, from `of` each factor and from `less` for each difference."""

        def column(table: Tensor) -> Tensor:
            return of(table.double()).view(1, -1, 1, 1)

        of_outputs = [torch.zeros_like(average) for _ in range(2)]
        result = torch.zeros_like(wide)
        for n, grad in enumerate(grads):
            of_outputs = [total + column(scales[k, n]) * of(grad.double()) for k, total in enumerate(of_outputs)]
            if skips is not None:
                result = result + column(skips[n]) * of(grad.double())
        if bn_coeffs is not None:
            for k, output in enumerate(outputs):
                slope, mean, offset = (column(table) for table in bn_coeffs[k])
                of_outputs[k] = of_outputs[k] + slope * less(output.double(), mean) + offset
        (pooled,) = torch.autograd.grad((average, maximum), wide, of_outputs, retain_graph=True)
        return sum((of(addend.double()) for addend in added), (result + pooled).detach())

    assert result.dtype == dtype
    assert result.is_contiguous(memory_format=torch.channels_last)
    assert_close([result], [total(torch.positive, torch.sub)], [total(torch.abs, torch.add)])


@pytest.mark.parametrize("dtype", SHARES, ids=str)
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("corrected", [False, True])
@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (2, 4, 8, 6), (2, 5, 1, 7), (2, 16, 7, 3), (2, 20, 4, 5)], ids=str)
def test_grad(shape, corrected, stride, dtype):
    check_grad(shape, dtype, stride, 3, corrected)
    check_grad(shape, dtype, stride, 1, corrected, skip=stride == 1)
    check_grad(shape, dtype, stride, 4, corrected, skip=stride == 1, addends=2)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("kind", LAYOUTS)
def test_grad_of_layouts(kind, stride):
    for channels in (3, 4, 16):
        shape = (2, channels, 6, 5)
        check_grad(shape, torch.float32, stride, 2, True, skip=stride == 1, addends=2, kind=kind)


@pytest.mark.parametrize("stride", [1, 2])
def test_grad_without_nodes(stride):
    """Only addends, only bn_coeffs, nothing at all."""
    for skip in {False, stride == 1}:
        check_grad((2, 4, 5, 6), torch.float32, stride, 0, skip=skip, addends=2)
        check_grad((2, 4, 5, 6), torch.float32, stride, 0, corrected=True, skip=skip)
        check_grad((2, 4, 5, 6), torch.float32, stride, 0, skip=skip)


def test_grad_with_most_nodes():
    check_grad((1, 4, 3, 3), torch.float64, 1, 64, skip=True, addends=64)


@pytest.mark.cpu_only
def test_threads_do_not_change_a_bit():
    x = images((9, 16, 33, 33), torch.float32)
    threads = torch.get_num_threads()
    results = []
    grads = [torch.randn(x.shape) for _ in range(2)]
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            results.append(run(pool, x, 1, grads, statistics=True))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


# --- registration ---


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("kind", ["contiguous", "channels_last", "first_channels"])
@pytest.mark.parametrize("statistics", [False, True])
def test_opcheck(statistics, kind, stride):
    x = images((2, 4, 5, 6), torch.float32, kind)
    torch.library.opcheck(OPS.pool.default, (x.requires_grad_(), stride, 2, statistics))
    x = x.detach()
    average, maximum, _, _ = pool(x, stride)
    scales, bn_coeffs, skip = torch.randn(2, 2, 4), torch.randn(2, 3, 4), torch.randn(2, 4)
    identity = (skip, [x]) if stride == 1 else (None, [])
    arguments = (x, [average, maximum], scales, [average, maximum], bn_coeffs, *identity, stride)
    torch.library.opcheck(OPS.pool_grad.default, arguments)


@pytest.mark.parametrize("shape", [(0, 3, 4, 4), (2, 1, 1, 5)], ids=str)
def test_opcheck_of_degenerate_images(shape):
    torch.library.opcheck(OPS.pool.default, (torch.randn(shape, requires_grad=True), 2, 1, True))


def test_compile_has_no_graph_break():
    x = images((2, 4, 6, 6), torch.float32)
    compiled = torch.compile(lambda x: pool(x, 2, statistics=True), fullgraph=True, backend="aot_eager")
    for function in (compiled, pool_reference):
        inputs = x.clone().requires_grad_()
        average, maximum, mean, _ = function(inputs) if function is compiled else function(inputs, 2, statistics=True)
        assert not mean.requires_grad
        (average + maximum).sum().backward()
        if function is compiled:
            grad = inputs.grad
    torch.testing.assert_close(grad, inputs.grad)


def test_double_backward_says_so():
    x = torch.rand(1, 2, 3, 3, requires_grad=True)
    (grad,) = torch.autograd.grad(pool(x)[0].pow(2).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


# --- errors name the operator, the argument and the shape ---


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.rand(2, 3, 4), 1, 1, False), r"fastnas::pool: x must be \[N, C, H, W\], got shape \[2, 3, 4\]"),
        ((torch.rand(2, 3, 4, 4), 3, 1, False), r"fastnas::pool: stride is 3, expected 1 or 2"),
        ((torch.rand(3, 3, 4, 4), 1, 2, True), r"individuals is 2, which does not divide the 3 images of x \[3, 3"),
        ((torch.rand(3, 3, 4, 4), 1, 0, True), r"individuals is 0"),
        ((torch.ones(1, 1, 1, 1, dtype=torch.int64), 1, 1, False), r"pool\" not implemented for 'Long'"),
    ],
)
def test_errors(arguments, message):
    with pytest.raises(RuntimeError, match=message):
        OPS.pool.default(*arguments)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"grads": [torch.rand(1, 2, 4, 5)]}, r"pool_grad: grads\[0\] has shape \[1, 2, 4, 5\], expected \[1, 2, 4, 4"),
        ({"grads": [torch.rand(1, 2, 4, 4).double()]}, r"grads\[0\] must have the dtype and the device of x"),
        ({"grads": [torch.rand(1, 2, 4, 4)] * 65}, r"grads must hold 0 to 64 tensors, got 65"),
        ({"scales": torch.rand(2, 2, 2)}, r"scales has shape \[2, 2, 2\], expected \[2, 1, 2\]"),
        ({"scales": torch.rand(2, 1, 2).double()}, r"scales must be float32 and on the device of x"),
        ({"outputs": [torch.rand(1, 2, 4, 4)] * 2}, r"outputs must hold average and maximum where .* got 2"),
        ({"bn_coeffs": torch.rand(2, 3, 2)}, r"outputs must hold average and maximum where .* got 0"),
        (
            {"bn_coeffs": torch.rand(2, 2), "outputs": [torch.rand(1, 2, 4, 4)] * 2},
            r"bn_coeffs has shape \[2, 2\], expected \[2, 3, 2\]",
        ),
        ({"skip": torch.rand(2)}, r"skip has shape \[2\], expected \[1, 2\]"),
        (
            {"skip": torch.rand(1, 2), "stride": 2, "grads": [torch.rand(1, 2, 2, 2)]},
            r"skip needs stride 1, got 2",
        ),
        ({"addends": [torch.rand(1, 2, 2, 2)]}, r"addends\[0\] has shape \[1, 2, 2, 2\], expected \[1, 2, 4, 4\]"),
    ],
)
def test_errors_of_pool_grad(change, message):
    arguments = {
        "x": torch.rand(1, 2, 4, 4),
        "grads": [torch.rand(1, 2, 4, 4)],
        "scales": torch.rand(2, 1, 2),
        "outputs": [],
        "bn_coeffs": None,
        "skip": None,
        "addends": [],
        "stride": 1,
    }
    with pytest.raises(RuntimeError, match=message):
        OPS.pool_grad.default(*(arguments | change).values())
