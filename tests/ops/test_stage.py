"""stage against its plain-torch reference in float64: values, statistics, layouts, errors."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from closeness import SHARES, assert_close
from hypothesis import given, settings
from hypothesis import strategies as st
from stage_cases import (
    CANDIDATES,
    LAYOUTS,
    MIXED,
    Case,
    check,
    fused,
    gradients_like,
    layout,
    make,
    reference,
    run,
    terms_of,
)

from fastnas._library import _C
from fastnas.ops import stage

OPS = torch.ops.fastnas
pytestmark = pytest.mark.usefixtures("backend")
CHANNELS = [1, 3, 4, 5, 6, 8, 12, 16, 20, 32, 64]


@pytest.fixture(params=["portable", "AVX2", "AVX-512"])
def capability(request: pytest.FixtureRequest) -> Iterator[str]:
    before = _C.cpu_capability()
    try:
        _C.set_cpu_capability(request.param)
    except ValueError:
        pytest.skip(f"this processor has no {request.param}")
    yield request.param
    _C.set_cpu_capability(before)


# --- values ---


@pytest.mark.parametrize("kernel", [3, 7])
def test_odd_borders_at_stride_2(kernel):
    check(make(Case([(kernel, 1)] * 2, 4, stride=2, width=26)))


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("dilation", [1, 2, 3])
@pytest.mark.parametrize("kernel", [1, 3, 5, 7])
def test_geometries(kernel, dilation, stride, capability):
    for channels, dtype in ((3, torch.float32), (4, torch.float64), (16, torch.float32)):
        for shared, raw in ((True, False), (False, True)):
            case = Case([(kernel, dilation)] * 2, channels, stride=stride, width=13 * stride, shared=shared, raw=raw)
            check(make(replace(case, dtype=dtype, batch=dtype == torch.float64)))


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("channels", CHANNELS)
def test_channels(channels, shared, stride, capability):
    """Kinds are mixed in one call: the packing sorts them."""
    case = Case(MIXED, channels, shared=shared, stride=stride, raw=not shared)
    check(make(case))
    check(make(replace(case, dtype=torch.float64)))


@pytest.mark.parametrize("batch", [False, True])
@pytest.mark.parametrize("raw", [False, True])
@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("dtype", SHARES, ids=str)
def test_dtypes(dtype, shared, raw, batch):
    for channels in (4, 5, 16):
        check(make(Case(MIXED, channels, shared=shared, raw=raw, batch=batch, dtype=dtype)))


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("channels", [1, 2, 4])
def test_more_stages_of_a_kind_than_fit_a_vector(channels, shared, capability):
    most = 64 // 4 // channels  # of the widest vector
    kinds = [(3, 1)] * (2 * most + 1) + [(5, 2)] * 2
    check(make(Case(kinds, channels, height=3, width=5, shared=shared)))


@pytest.mark.parametrize("shared", [True, False])
def test_one_stage_and_most_stages(shared):
    for stages in (1, 64):
        for channels in (1, 4, 16):
            check(make(Case([MIXED[j % 7] for j in range(stages)], channels, height=2, width=3, shared=shared)))


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("height", range(1, 10))
def test_sizes(height, stride):
    """Smaller than the reach of the kernels, too."""
    for width in range(1, 10):
        channels = (4, 16, 3)[width % 3]
        check(make(Case(MIXED, channels, 1 + width % 2, height, width, stride, shared=width % 2 == 0)))


@pytest.mark.parametrize(
    "case",
    [
        Case(CANDIDATES * 4, 4, 3, 32, 32),
        Case(CANDIDATES, 16, 4, 32, 32),
        Case(CANDIDATES, 16, 2, 32, 32, stride=2),
        Case(((3, 1), (5, 1)), 32, 2, 16, 16, shared=False, raw=True, batch=True),
        Case(((3, 1), (5, 1)), 64, 2, 8, 8, shared=False, raw=True, batch=True),
        Case(((3, 2),), 64, 2, 5, 70),  # a row fills more than a block
        Case(CANDIDATES, 8, 37, 5, 6),  # images do not divide evenly into parts
    ],
    ids=str,
)
def test_sizes_of_a_supernet(case):
    check(make(case))


@pytest.mark.parametrize("channels", [136, 35])
def test_many_channels_of_a_large_window(channels):
    """More than a warp has lanes for, and more than fits into shared memory."""
    check(make(Case(((3, 1), (7, 3)), channels, 1, 9, 6)))
    check(make(Case(((5, 2),), channels, 1, 5, 9, stride=2, raw=True)))


@settings(deadline=None, max_examples=60)
@given(
    kinds=st.lists(st.tuples(st.sampled_from([1, 3, 5, 7]), st.integers(1, 4)), min_size=1, max_size=9),
    channels=st.integers(1, 20),
    size=st.tuples(st.integers(1, 3), st.integers(1, 12), st.integers(1, 12)),
    stride=st.integers(1, 2),
    shared=st.booleans(),
    statistics=st.sampled_from([(False, False), (True, False), (True, True)]),
    seed=st.integers(0, 2**31),
)
def test_any_case(kinds, channels, size, stride, shared, statistics, seed):
    torch.manual_seed(seed)
    raw, batch = statistics
    check(make(Case(kinds, channels, *size, stride, shared, raw, batch, dtype=torch.float64)))


@pytest.mark.parametrize("size", [(2, 5, 6), (1, 1, 4), (3, 4, 1), (2, 1, 1), (1, 1, 1)], ids=str)
@pytest.mark.parametrize("kind", LAYOUTS)
def test_layouts(kind, size):
    for channels, shared in ((1, True), (4, False), (16, True)):
        a = make(Case(CANDIDATES, channels, *size, shared=shared, raw=True))
        a.inputs = [layout(x, kind) for x in a.inputs]
        check(a)
        dense = replace(a, inputs=[x.contiguous() for x in a.inputs])
        assert all(map(torch.equal, fused(a, a.inputs)[0], fused(dense, dense.inputs)[0]))


@pytest.mark.parametrize("kind", LAYOUTS)
def test_layouts_of_gradients(kind):
    a = make(Case(MIXED, 4))
    grads = [layout(g, kind) for g in gradients_like(fused(a, a.inputs)[0])]
    assert_close(run(fused, a, grads)[2], run(reference, a.double(), grads)[2], terms_of(a, grads)[2])


def test_inputs_of_different_layouts():
    a = make(Case(CANDIDATES, 6, shared=False))
    a.inputs = [layout(x, kind) for x, kind in zip(a.inputs, LAYOUTS, strict=False)]
    a.depthwise[0] = a.depthwise[0].transpose(2, 3)
    a.pointwise[1] = a.pointwise[1].transpose(0, 1)
    check(a)


@pytest.mark.parametrize("statistics", [True, False])
@pytest.mark.parametrize("raw", [True, False])
@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("size", [(0, 4, 4), (2, 0, 4), (2, 4, 0), (0, 0, 0)], ids=str)
def test_empty(size, shared, raw, statistics):
    for channels in (4, 16):
        a = make(Case(CANDIDATES, channels, *size, stride=2, shared=shared, raw=raw))
        function = lambda a, inputs: fused(a, inputs, statistics)  # noqa: E731
        outputs, moments, gradients = run(function, a, gradients_like(fused(a, a.inputs)[0]))
        assert all(y.shape == (size[0], channels, (size[1] + 1) // 2, (size[2] + 1) // 2) for y in outputs)
        assert all(m.shape == ((4, 1, channels) if statistics else (0,)) and m.eq(0).all() for m in moments)
        assert all(g.eq(0).all() for g in gradients)  # weights get one, of zeros


# --- statistics ---


@pytest.mark.parametrize("channels", [3, 4, 16])
def test_statistics_of_a_large_mean(channels, capability):
    """A variance of 1e-2 around 1e3, which drifts from image to image."""
    x = 1e3 + 0.1 * torch.randn(12, channels, 16, 16) + 0.05 * torch.arange(12.0).view(12, 1, 1, 1)
    centre = torch.zeros(channels, 1, 3, 3)
    centre[:, :, 1, 1] = 1
    identity = torch.eye(channels)[..., None, None]
    for individuals in (1, 3):
        outputs, mean, variance = stage([x], [centre] * 3, [identity] * 3, individuals=individuals, statistics=True)
        assert all(torch.equal(y, x) for y in outputs)
        each = x.double().unflatten(0, (individuals, -1))  # [P, B, C, H, W]
        wanted_variance, wanted_mean = torch.var_mean(each, dim=(1, 3, 4), correction=0)  # [P, C]
        for j in range(3):
            torch.testing.assert_close(mean[j].double(), wanted_mean, rtol=1e-7, atol=0)
            torch.testing.assert_close(variance[j].double(), wanted_variance, rtol=1e-5, atol=0)


def test_statistics_of_a_constant_are_exact():
    taps, identity = torch.ones(4, 1, 1, 1), torch.eye(4)[..., None, None]
    _, mean, variance = stage([torch.ones(2, 4, 5, 5)], [taps] * 2, [identity] * 2, statistics=True)
    assert mean.eq(1).all()
    assert variance.eq(0).all()


def test_statistics_only_where_wanted():
    a = make(Case(MIXED))
    outputs, mean, variance = fused(a, a.inputs, statistics=False)
    assert mean.shape == variance.shape == (0,)
    assert all(map(torch.equal, outputs, fused(a, a.inputs)[0]))


@pytest.mark.parametrize("raw", [True, False])
@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("channels", [4, 16])
def test_individuals(channels, shared, raw):
    a = make(Case(MIXED, channels, count=6, shared=shared, raw=raw, individuals=3))
    check(a)
    together = fused(a, a.inputs)
    for p in range(3):
        part = [x[2 * p : 2 * p + 2] for x in a.inputs]
        mean, rstd = (a.mean[:, p : p + 1], a.rstd[:, p : p + 1]) if raw else (None, None)
        alone = fused(replace(a, case=replace(a.case, individuals=1), mean=mean, rstd=rstd), part)
        assert all(torch.equal(y[2 * p : 2 * p + 2], z) for y, z in zip(together[0], alone[0], strict=True))
        assert all(torch.equal(m[:, p : p + 1], n) for m, n in zip(together[1:], alone[1:], strict=True))


# --- what must not change results ---


@pytest.mark.cpu_only
@pytest.mark.parametrize("raw", [True, False])
@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("channels", [4, 16])
def test_threads_do_not_change_a_bit(channels, shared, raw):
    a = make(Case(MIXED, channels, 19, shared=shared, raw=raw, batch=raw))
    grads = gradients_like(fused(a, a.inputs)[0])
    threads = torch.get_num_threads()
    try:
        results = []
        for number in (1, 2, 3):
            torch.set_num_threads(number)
            results.append(run(fused, a, grads))
    finally:
        torch.set_num_threads(threads)
    alone, *others = [[t for part in result for t in part] for result in results]
    for together in others:
        assert all(map(torch.equal, alone, together))


@pytest.mark.parametrize("raw", [True, False])
@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("channels", [3, 4, 16])
def test_nan_and_infinity_spread_as_in_plain_torch(channels, shared, raw, capability):
    """And no further: stages that share a vector do not disturb each other."""
    a = make(Case(MIXED, channels, 2, 9, 9, shared=shared, raw=raw))
    a.inputs[0][0, channels - 1, 4, 4], a.inputs[-1][1, 0, 8, 0] = torch.nan, torch.inf
    a.inputs[-1][1, 1, 0, 8] = -torch.inf  # the ReLU stops it
    grads = gradients_like(fused(a, a.inputs)[0])
    grads[5][1, 0, 0, 1] = torch.nan  # the third of its group, and the next group is smaller
    for ours, wanted in zip(run(fused, a, grads), run(reference, a.double(), grads), strict=True):
        for actual, expected in zip(ours, wanted, strict=True):
            assert torch.equal(actual.isfinite(), expected.isfinite())
            finite = expected.isfinite()
            terms = expected.where(finite, 0).abs().max().item() * 10
            assert_close([actual.where(finite, 0)], [expected.where(finite, 0)], [max(terms, 10.0)])


# --- errors name the operator, the argument and the shape ---


ERRORS = [
    ({"depthwise": []}, r"fastnas::stage: depthwise must hold 1 to 64 tensors, got 0"),
    ({"depthwise": [torch.rand(4, 1, 3, 3)] * 65}, r"depthwise must hold 1 to 64 tensors, got 65"),
    ({"pointwise": [torch.rand(4, 4, 1, 1)]}, r"got 2 depthwise weights, but 1 pointwise weights and 2 dilations"),
    ({"dilations": [1]}, r"but 2 pointwise weights and 1 dilations; each stage has one of each"),
    ({"inputs": [torch.rand(2, 4, 5, 5)] * 3}, r"inputs must be one that all 2 stages read, or one for each; got 3"),
    ({"inputs": []}, r"inputs must be one that all 2 stages read, or one for each; got 0"),
    ({"inputs": [torch.rand(4, 5, 5)]}, r"inputs\[0\] has shape \[4, 5, 5\], expected \[N, C, H, W\]"),
    ({"inputs": [torch.rand(2, 3, 5, 5)]}, r"inputs\[0\] has shape \[2, 3, 5, 5\], expected \[2, 4, 5, 5\]"),
    (
        {"inputs": [torch.rand(2, 4, 5, 5), torch.rand(2, 4, 5, 6)]},
        r"inputs\[1\] has shape \[2, 4, 5, 6\], expected \[2, 4, 5, 5\]",
    ),
    (
        {"inputs": [torch.rand(2, 4, 5, 5), torch.rand(2, 4, 5, 5).half()]},
        r"inputs\[1\] must have the dtype and the device of inputs\[0\]",
    ),
    ({"inputs": [torch.ones(2, 4, 5, 5, dtype=torch.int64)]}, r"inputs must be float16, bfloat16, float32 or float64"),
    ({"depthwise": [torch.rand(4, 3, 3)] * 2}, r"depthwise\[0\] has shape \[4, 3, 3\], expected \[C, 1, K, K\]"),
    ({"depthwise": [torch.rand(4, 1, 3, 3), torch.rand(4, 1, 2, 2)]}, r"depthwise\[1\].*\[4, 1, K, K\] with an odd K"),
    ({"depthwise": [torch.rand(4, 1, 3, 3), torch.rand(4, 1, 3, 5)]}, r"depthwise\[1\] has shape \[4, 1, 3, 5\]"),
    ({"depthwise": [torch.rand(0, 1, 3, 3)] * 2}, r"depthwise\[0\] has shape \[0, 1, 3, 3\].*at least one channel"),
    ({"pointwise": [torch.rand(4, 4, 1, 1), torch.rand(4, 3, 1, 1)]}, r"pointwise\[1\].*expected \[4, 4, 1, 1\]"),
    ({"dilations": [1, 0]}, r"dilations\[1\] is 0, expected 1 to 1024 for images of 5 × 5"),
    ({"stride": 3}, r"stride is 3, expected 1 or 2"),
    ({"mean": torch.rand(1, 1, 4)}, r"give both mean and rstd, or neither"),
    ({"mean": torch.rand(1, 4), "rstd": torch.rand(1, 4)}, r"mean has shape \[1, 4\], expected \[1, 1, 4\]"),
    ({"mean": torch.rand(1, 1, 4), "rstd": torch.rand(2, 1, 4)}, r"rstd has shape \[2, 1, 4\], expected \[1, 1, 4\]"),
    ({"individuals": 3}, r"2 images cannot be those of individuals=3"),
    ({"individuals": 0}, r"2 images cannot be those of individuals=0"),
]


def call(**changes: object) -> object:
    arguments = {
        "inputs": [torch.rand(2, 4, 5, 5)],
        "depthwise": [torch.rand(4, 1, 3, 3)] * 2,
        "pointwise": [torch.rand(4, 4, 1, 1)] * 2,
        "dilations": [1, 2],
    }
    return stage(**(arguments | changes))


@pytest.mark.parametrize(("changes", "message"), ERRORS)
def test_errors(changes, message):
    call()
    with pytest.raises(RuntimeError, match=message):
        call(**changes)


def test_errors_of_the_raw_operators():
    a = make(Case(((3, 1), (5, 1)), 4, 2, 5, 5))
    with pytest.raises(
        RuntimeError, match=r"fastnas::stage: depthwise\[0\] must be float64 and on the device of the inputs"
    ):
        OPS.stage([a.inputs[0].double()], *a.raw()[1:])
    with pytest.raises(RuntimeError, match=r"depthwise\[0\] must be float32 and on the device of the inputs"):
        OPS.stage([a.inputs[0].half()], None, None, [w.half() for w in a.depthwise], *a.raw()[4:])
    y = OPS.stage(*a.raw())[0]
    rest = (a.inputs, None, None, a.depthwise, a.pointwise, a.dilations, 1)
    for arguments, message in (
        ((y[:1], [], None), r"fastnas::stage_grad: grads must hold 2 tensors, one for each stage; got 1"),
        (([y[0], y[1][:1]], [], None), r"grads\[1\] has shape \[1, 4, 5, 5\]"),
        (([y[0], y[1].half()], [], None), r"grads\[1\] must have the dtype and the device of the inputs"),
        ((y, [], torch.rand(2, 4, 4)), r"outputs must hold 2 tensors"),
        ((y, y, torch.rand(2, 3, 4)), r"bn_coeffs has shape \[2, 3, 4\], expected \[2, 4, 4\]"),
    ):
        with pytest.raises(RuntimeError, match=message):
            OPS.stage_grad(*arguments, *rest)
