"""stage against its plain-torch reference in float64."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fastnas._library import _C
from fastnas.ops import stage, stage_reference

OPS = torch.ops.fastnas

# dtype → (tolerance of the forward pass, of the gradients), relative to the largest value
TOLERANCE = {
    torch.float64: (1e-13, 1e-12),
    torch.float32: (1e-5, 1e-4),
    torch.bfloat16: (8e-3, 2e-2),
    torch.float16: (1e-3, 3e-3),
}
CHANNELS = [1, 3, 4, 5, 6, 8, 12, 16, 20, 32, 64]
CANDIDATES = ((3, 1), (5, 1), (3, 2), (5, 2))  # (kernel, dilation) of the first stages of an edge
# Groups of one, two and three stages, out of order, and a kernel without code of its own.
MIXED = ((3, 1), (5, 2), (3, 1), (7, 1), (5, 2), (3, 1), (1, 1))


@dataclass(frozen=True)
class Case:
    """Arguments of one call. Inputs that come `raw` have mean and rstd; `batch`: those of this very batch."""

    kinds: Sequence[tuple[int, int]] = CANDIDATES  # (kernel, dilation) of each stage
    channels: int = 4
    count: int = 2
    height: int = 6
    width: int = 13  # rows of 13 take blocks of 8, 4 and 1
    stride: int = 1
    shared: bool = True
    raw: bool = False
    batch: bool = False
    individuals: int = 1
    dtype: torch.dtype = torch.float32


@dataclass
class Arguments:
    case: Case
    inputs: list[Tensor]  # I × [N, C, H, W]
    depthwise: list[Tensor]  # J × [C, 1, K, K]
    pointwise: list[Tensor]  # J × [C, C, 1, 1]
    mean: Tensor | None  # [I, P, C]
    rstd: Tensor | None

    @property
    def dilations(self) -> list[int]:
        return [dilation for _, dilation in self.case.kinds]

    @property
    def leaves(self) -> list[Tensor]:
        return [*self.inputs, *self.depthwise, *self.pointwise]

    def statistics(self, inputs: Sequence[Tensor]) -> tuple[Tensor | None, Tensor | None]:
        """Differentiable in the inputs where they are those of the batch."""
        if not self.case.batch or self.mean is None:
            return self.mean, self.rstd
        each = torch.stack(list(inputs)).unflatten(1, (self.case.individuals, -1))  # [I, P, B, C, H, W]
        variance, mean = torch.var_mean(each, dim=(2, 4, 5), correction=0)
        return mean, torch.rsqrt(variance + 1e-5)  # [I, P, C]

    def raw(self, statistics: bool = False) -> tuple[object, ...]:
        """For torch.ops.fastnas.stage."""
        options = (self.dilations, self.case.stride, self.case.individuals, statistics, self.case.batch)
        return self.inputs, self.mean, self.rstd, self.depthwise, self.pointwise, *options

    def double(self) -> Arguments:
        lists = [[t.detach().double() for t in tensors] for tensors in (self.inputs, self.depthwise, self.pointwise)]
        mean, rstd = (None if t is None else t.double() for t in (self.mean, self.rstd))
        return Arguments(replace(self.case, dtype=torch.float64), *lists, mean, rstd)


def weight_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def make(case: Case) -> Arguments:
    dtype, channels = weight_dtype(case.dtype), case.channels
    shape = (case.count, channels, case.height, case.width)
    inputs = [torch.randn(shape).to(case.dtype) for _ in range(1 if case.shared else len(case.kinds))]
    depthwise = [torch.randn(channels, 1, kernel, kernel, dtype=dtype) for kernel, _ in case.kinds]
    pointwise = [torch.randn(channels, channels, 1, 1, dtype=dtype) for _ in case.kinds]
    result = Arguments(case, inputs, depthwise, pointwise, None, None)
    if case.raw:
        result.mean = torch.randn(len(inputs), case.individuals, channels, dtype=dtype)
        result.rstd = torch.rand(len(inputs), case.individuals, channels, dtype=dtype) + 0.5
        with torch.no_grad():
            mean, rstd = result.statistics([x.double() for x in inputs])
            result.mean, result.rstd = mean.to(dtype), rstd.to(dtype)
    return result


def fused(a: Arguments, inputs: Sequence[Tensor], statistics: bool = True) -> tuple[list[Tensor], Tensor, Tensor]:
    return stage(
        inputs,
        a.depthwise,
        a.pointwise,
        a.dilations,
        a.case.stride,
        a.mean,
        a.rstd,
        normalized=a.case.batch,
        individuals=a.case.individuals,
        statistics=statistics,
    )


def reference(a: Arguments, inputs: Sequence[Tensor]) -> tuple[list[Tensor], Tensor, Tensor]:
    mean, rstd = a.statistics(inputs)
    return stage_reference(
        inputs, a.depthwise, a.pointwise, a.dilations, a.case.stride, mean, rstd, individuals=a.case.individuals
    )


def run(function: Callable, a: Arguments, grads: Sequence[Tensor] | None) -> tuple[list[Tensor], ...]:
    """Outputs, [mean, variance], and the gradients of inputs, depthwise and pointwise weights."""
    leaves = [t.detach().requires_grad_(grads is not None) for t in a.leaves]
    i, j = len(a.inputs), len(a.depthwise)
    a = replace(a, inputs=leaves[:i], depthwise=leaves[i : i + j], pointwise=leaves[i + j :])
    outputs, average, variance = function(a, a.inputs)
    if grads is None:
        return outputs, [average, variance], []
    gradients = torch.autograd.grad(outputs, leaves, [g.to(y.dtype) for g, y in zip(grads, outputs, strict=True)])
    return [y.detach() for y in outputs], [average, variance], list(gradients)


def gradients_like(outputs: Sequence[Tensor]) -> list[Tensor]:
    return [torch.randn_like(y) for y in outputs]


def assert_close(ours: Sequence[Tensor], expected: Sequence[Tensor], tolerance: float, what: str = "") -> None:
    for index, (actual, wanted) in enumerate(zip(ours, expected, strict=True)):
        assert actual.shape == wanted.shape
        scale = wanted.abs().max().item() if wanted.numel() else 0.0
        torch.testing.assert_close(
            actual.double(),
            wanted.double(),
            rtol=0,
            atol=tolerance * max(scale, 1e-30),
            msg=lambda text, index=index: f"{what}[{index}]: {text}",
        )


def check(a: Arguments) -> None:
    """Outputs, statistics and gradients are those of the reference in float64."""
    forward, backward = TOLERANCE[a.case.dtype]
    grads = gradients_like(fused(a, a.inputs)[0]) if a.case.individuals == 1 else None
    outputs, moments, gradients = run(fused, a, grads)
    wanted, wanted_moments, wanted_gradients = run(reference, a.double(), grads)
    for y in outputs:
        assert y.dtype == a.case.dtype
        assert y.is_contiguous(memory_format=torch.channels_last)
    assert all(g.dtype == t.dtype for g, t in zip(gradients, a.leaves[: len(gradients)], strict=True))
    assert_close(outputs, wanted, forward, "outputs")
    scale = max(y.abs().max().item() for y in wanted)
    forward = min(forward, 1e-5)  # statistics are those of the values before they are stored
    torch.testing.assert_close(moments[0].double(), wanted_moments[0], rtol=0, atol=forward * scale)
    torch.testing.assert_close(moments[1].double(), wanted_moments[1], rtol=0, atol=4 * forward * scale**2)
    i = len(a.inputs)
    assert_close(gradients[:i], wanted_gradients[:i], backward, "inputs")
    # Those of weights are never rounded to the storage type, and each value is held to the largest of its stage.
    assert_close(gradients[i:], wanted_gradients[i:], min(backward, 1e-4), "weights")


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
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
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
    if batch and size[0] * size[1] * size[2] < 4:  # of one value nothing is left but rounding errors
        return
    check(make(Case(kinds, channels, *size, stride, shared, raw, batch, dtype=torch.float64)))


def layout(x: Tensor, kind: str) -> Tensor:
    """The same values in other memory."""
    channels = x.shape[1]
    if kind == "channels_last":
        return x.contiguous(memory_format=torch.channels_last)
    if kind in ("sliced", "offset"):  # the first channels of a wider tensor, or others, at an odd address
        begin = 3 if kind == "offset" else 0
        wide = torch.full((len(x), channels + 7, *x.shape[2:]), torch.nan, dtype=x.dtype)
        wide = wide.contiguous(memory_format=torch.channels_last)
        wide[:, begin : begin + channels] = x
        return wide[:, begin : begin + channels]
    if kind == "transposed":
        return x.transpose(-1, -2).contiguous().transpose(-1, -2)
    if kind == "cropped":
        return torch.nn.functional.pad(x, (1, 1, 1, 1)).contiguous(memory_format=torch.channels_last)[..., 1:-1, 1:-1]
    if kind == "expanded":
        return x[..., :1].expand(x.shape)
    return x


LAYOUTS = ["contiguous", "channels_last", "sliced", "offset", "transposed", "cropped", "expanded"]


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
    assert_close(run(fused, a, grads)[2], run(reference, a.double(), grads)[2], 1e-4)


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
    ones = torch.ones(2, 4, 5, 5)
    _, mean, variance = stage([ones], [torch.ones(4, 1, 1, 1)] * 2, [torch.eye(4)[..., None, None]] * 2, statistics=True)
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


# --- gradients ---


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("batch", [False, True])
@pytest.mark.parametrize("shared", [True, False])
def test_gradcheck(shared, batch, stride):
    """With `batch`, of the composition: the statistics follow the inputs."""
    kinds = ((3, 1), (3, 1), (5, 2))
    a = make(Case(kinds, 2, 2, 3, 4, stride, shared, raw=True, batch=batch, dtype=torch.float64))
    # As many values above the mean as below, none near it, where the ReLU has its corner.
    magnitude, sign = torch.rand(len(a.inputs), 2, 2, 3, 4).double() + 0.5, torch.tensor([1.0, -1.0, -1.0, 1.0]).double()
    a.inputs = list(magnitude * sign)
    if not batch:
        a.mean = a.mean.clamp(-0.2, 0.2)

    def function(*leaves: Tensor) -> list[Tensor]:
        i = len(a.inputs)
        mean, rstd = a.statistics(leaves[:i])
        b = replace(a, inputs=leaves[:i], depthwise=leaves[i : i + 3], pointwise=leaves[i + 3 :], mean=mean, rstd=rstd)
        return fused(b, b.inputs)[0]

    assert torch.autograd.gradcheck(function, [leaf.requires_grad_() for leaf in a.leaves])


def test_outputs_that_nobody_uses():
    a = make(Case(MIXED))
    leaves = [leaf.requires_grad_() for leaf in a.leaves]
    outputs, mean, variance = fused(a, a.inputs)
    assert not mean.requires_grad
    assert not variance.requires_grad
    gradients = torch.autograd.grad(outputs[2].sum(), leaves)
    for j, g in enumerate(gradients[1:]):
        assert g.eq(0).all() == (j % 7 != 2)


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("channels", [3, 4, 16])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_coefficients(dtype, channels, stride, shared):
    """The gradient of an output as the one who normalises it has it: a · grad + b · (y - mean) + c."""
    a = make(Case(MIXED, channels, count=3, stride=stride, shared=shared, raw=True, dtype=dtype))
    y = OPS.stage(*a.raw())[0]
    grads = gradients_like(y)
    coefficients = torch.randn(7, 4, channels, dtype=weight_dtype(dtype))  # a, b, mean, c
    arguments = (a.inputs, a.mean, a.rstd, a.depthwise, a.pointwise, a.dilations, stride)
    for kind in ("channels_last", "sliced", "offset", "contiguous"):
        strided = [layout(g, kind) for g in grads], [layout(t, kind) for t in y]
        *gradients, sums = OPS.stage_grad(*strided, coefficients, *arguments)
        effective = []
        for j in range(7):
            scale, slope, mean, offset = coefficients[j].double().view(4, -1, 1, 1)  # [C, 1, 1] each
            effective.append(scale * grads[j].double() + slope * (y[j].double() - mean) + offset)
        b = a.double()
        normal = [
            ((x - b.mean[i, 0].view(-1, 1, 1)) * b.rstd[i, 0].view(-1, 1, 1)).requires_grad_()
            for i, x in enumerate(b.inputs)
        ]
        weights = [t.requires_grad_() for t in (*b.depthwise, *b.pointwise)]
        outputs = stage_reference(normal, b.depthwise, b.pointwise, b.dilations, stride)[0]
        wanted = torch.autograd.grad(outputs, [*normal, *weights], effective)
        assert_close(gradients[0], wanted[: len(normal)], TOLERANCE[dtype][1], "inputs")
        assert_close([*gradients[1], *gradients[2]], wanted[len(normal) :], 1e-4, "weights")
        dots = [torch.stack([g.sum((0, 2, 3)), (g * x).sum((0, 2, 3))]) for g, x in zip(wanted, normal, strict=False)]
        assert sums.shape == (len(normal), 2, channels)
        scale = max(g.abs().sum((0, 2, 3)).max().item() for g in wanted[: len(normal)])
        torch.testing.assert_close(sums.double(), torch.stack(dots).detach(), rtol=0, atol=1e-5 * scale)
    plain = OPS.stage_grad(effective_as(dtype, effective), [], None, *arguments)
    assert_close(plain[0], gradients[0], TOLERANCE[dtype][1])
    assert OPS.stage_grad(grads, [], None, a.inputs, None, None, *arguments[3:])[3].shape == (0,)


def effective_as(dtype: torch.dtype, grads: Sequence[Tensor]) -> list[Tensor]:
    return [g.detach().to(dtype) for g in grads]


def test_double_backward_says_so():
    a = make(Case(MIXED))
    x = a.inputs[0].requires_grad_()
    (grad,) = torch.autograd.grad(fused(a, [x])[0][0].pow(2).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


def test_individuals_have_no_gradient():
    a = make(Case(MIXED, individuals=2))
    a.inputs[0].requires_grad_()
    with pytest.raises(RuntimeError, match=r"fastnas::stage: no gradient for individuals=2"):
        fused(a, a.inputs)[0][0].sum().backward()


def test_weights_of_other_dtypes_are_converted():
    a = make(Case(CANDIDATES, dtype=torch.bfloat16, raw=True))
    half = [w.bfloat16().requires_grad_() for w in a.depthwise]
    b = replace(a, depthwise=half, mean=a.mean.double())
    outputs = fused(b, b.inputs)[0]
    outputs[0].sum().backward()
    assert half[0].grad.dtype == torch.bfloat16
    a.depthwise = [w.detach().float() for w in half]
    assert all(map(torch.equal, outputs, fused(a, a.inputs)[0]))


# --- what must not change results ---


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
    for together in results[1:]:
        assert all(torch.equal(s, t) for one, many in zip(results[0], together) for s, t in zip(one, many, strict=True))


@pytest.mark.parametrize("raw", [True, False])
@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("channels", [3, 4, 16])
def test_nan_and_infinity_spread_as_in_plain_torch(channels, shared, raw, capability):
    """And no further: stages that share a vector do not disturb each other."""
    a = make(Case(MIXED, channels, 2, 9, 9, shared=shared, raw=raw))
    a.inputs[0][0, channels - 1, 4, 4], a.inputs[-1][1, 0, 8, 0] = torch.nan, torch.inf
    a.inputs[-1][1, 1, 0, 8] = -torch.inf  # the ReLU stops it
    grads = gradients_like(fused(a, a.inputs)[0])
    grads[1][1, 0, 0, 1] = torch.nan
    for ours, wanted in zip(run(fused, a, grads), run(reference, a.double(), grads), strict=True):
        for actual, expected in zip(ours, wanted, strict=True):
            assert torch.equal(actual.isfinite(), expected.isfinite())


# --- registration ---


def sliced(a: Arguments) -> Arguments:
    a.inputs = [layout(x, "sliced") for x in a.inputs]
    return a


@pytest.mark.parametrize(
    "case",
    [
        Case(((3, 1), (5, 2)), 4, 2, 4, 5),
        Case(((3, 1), (3, 1)), 3, 2, 4, 5, stride=2, shared=False, raw=True, batch=True),
        Case(((3, 1), (5, 2)), 4, 0, 4, 5, raw=True),
        Case(((3, 1),), 1, 2, 0, 5),
    ],
    ids=str,
)
def test_opcheck(case):
    a = sliced(make(case))
    outputs = OPS.stage(*a.raw())[0]
    grads, coefficients = gradients_like(outputs), torch.randn(len(outputs), 4, case.channels)
    arguments = (a.inputs, a.mean, a.rstd, a.depthwise, a.pointwise, a.dilations, case.stride)
    torch.library.opcheck(OPS.stage_grad.default, (grads, outputs, coefficients, *arguments))
    torch.library.opcheck(OPS.stage_grad.default, (grads, [], None, *arguments))
    for leaf in a.leaves:
        leaf.requires_grad_()
    torch.library.opcheck(OPS.stage.default, a.raw(statistics=case.raw))


@pytest.mark.parametrize("case", [Case(MIXED), Case(MIXED, 16, shared=False, raw=True, batch=True)], ids=str)
def test_compile_has_no_graph_break(case):
    a = make(case)
    grads = gradients_like(fused(a, a.inputs)[0])
    compiled = torch.compile(lambda a, inputs: fused(a, inputs), fullgraph=True, backend="aot_eager")
    for ours, wanted in zip(run(compiled, a, grads), run(fused, a, grads), strict=True):
        assert_close(ours, wanted, 1e-6)


# --- errors name the operator, the argument and the shape ---


ERRORS = [
    ({"depthwise": []}, r"fastnas::stage: depthwise must hold 1 to 64 weights, got 0"),
    ({"depthwise": [torch.rand(4, 1, 3, 3)] * 65}, r"depthwise must hold 1 to 64 weights, got 65"),
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
    ({"inputs": [torch.rand(2, 4, 5, 5), torch.rand(2, 4, 5, 5).half()]}, r"inputs\[1\] has another dtype"),
    ({"inputs": [torch.ones(2, 4, 5, 5, dtype=torch.int64)]}, r"inputs must be float16, bfloat16, float32 or float64"),
    ({"depthwise": [torch.rand(4, 3, 3)] * 2}, r"depthwise\[0\] has shape \[4, 3, 3\], expected \[C, 1, K, K\]"),
    ({"depthwise": [torch.rand(4, 1, 3, 3), torch.rand(4, 1, 2, 2)]}, r"depthwise\[1\].*\[4, 1, K, K\] with an odd K"),
    ({"depthwise": [torch.rand(4, 1, 3, 3), torch.rand(4, 1, 3, 5)]}, r"depthwise\[1\] has shape \[4, 1, 3, 5\]"),
    ({"depthwise": [torch.rand(0, 1, 3, 3)] * 2}, r"depthwise\[0\] has shape \[0, 1, 3, 3\].*at least one channel"),
    ({"pointwise": [torch.rand(4, 4, 1, 1), torch.rand(4, 3, 1, 1)]}, r"pointwise\[1\].*expected \[4, 4, 1, 1\]"),
    ({"dilations": [1, 0]}, r"dilations\[1\] is 0, expected at least 1"),
    ({"stride": 3}, r"stride is 3, expected 1 or 2"),
    ({"mean": torch.rand(1, 1, 4)}, r"give both mean and rstd, or neither"),
    ({"mean": torch.rand(1, 4), "rstd": torch.rand(1, 4)}, r"mean has shape \[1, 4\], expected \[1, 1, 4\] in float32"),
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
    with pytest.raises(RuntimeError, match=r"fastnas::stage: weights of stage 0 must be float64 for these inputs"):
        OPS.stage([a.inputs[0].double()], *a.raw()[1:])
    with pytest.raises(RuntimeError, match=r"weights of stage 0 must be float32 for these inputs"):
        OPS.stage([a.inputs[0].half()], None, None, [w.half() for w in a.depthwise], *a.raw()[4:])
    y = OPS.stage(*a.raw())[0]
    rest = (a.inputs, None, None, a.depthwise, a.pointwise, a.dilations, 1)
    for arguments, message in (
        ((y[:1], [], None), r"fastnas::stage_grad: grads must hold 2 tensors, one for each stage; got 1"),
        (([y[0], y[1][:1]], [], None), r"grads\[1\] has shape \[1, 4, 5, 5\]"),
        (([y[0], y[1].half()], [], None), r"grads\[1\] has shape .* not shape and dtype of an output"),
        ((y, [], torch.rand(2, 4, 4)), r"outputs must hold 2 tensors"),
        ((y, y, torch.rand(2, 3, 4)), r"coefficients has shape \[2, 3, 4\], expected \[2, 4, 4\]"),
    ):
        with pytest.raises(RuntimeError, match=message):
            OPS.stage_grad(*arguments, *rest)
