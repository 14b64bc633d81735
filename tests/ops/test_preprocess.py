"""preprocess against its plain-torch reference."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import pytest
import torch
from closeness import SHARES, assert_close, of_moments
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fastnas._library import _C
from fastnas.nn.primitives import FactorizedReduce
from fastnas.ops import preprocess, preprocess_reference
from fastnas.ops.layout import acc_dtype

pytestmark = pytest.mark.usefixtures("backend")

OPS = torch.ops.fastnas


@dataclass(frozen=True)
class Case:
    channels: tuple[int, ...]  # of each input
    rows: tuple[int, ...]  # of each matrix
    offsets: tuple[int, ...] = (0,)
    stride: int = 1
    images: int = 2
    height: int = 6
    width: int = 7

    def make(self, dtype: torch.dtype) -> tuple[list[Tensor], list[Tensor], Tensor]:
        """Inputs, channels-last, weights, and a gradient of the output."""
        inputs = [channels_last(torch.randn(self.images, c, self.height, self.width)).to(dtype) for c in self.channels]
        weights = [torch.randn(rows, sum(self.channels), dtype=acc_dtype(dtype)) for rows in self.rows]
        height, width = -(-self.height // self.stride), -(-self.width // self.stride)
        grad = channels_last(torch.randn(self.images, sum(self.rows), height, width).to(dtype))
        return inputs, weights, grad


CASES = [
    Case((16,), (16,)),
    Case((3,), (5,), height=1),
    Case((1, 1), (1,), images=1, width=1),
    Case((5, 12, 20, 3), (6,)),
    Case((48,), (16,), images=1, height=19, width=17),  # several blocks, the last one odd
    Case((64, 64, 64, 64), (64,), height=4, width=4),
    Case((6,), (3, 20), (0, 0)),  # two matrices of one offset
    Case((16, 16), (16, 16), (0, 1), 2, height=8, width=8),
    Case((5, 12), (3, 4), (0, 1), 2, height=7, width=5),
    Case((4,), (8, 8), (0, 1), 2, height=1, width=1),  # nothing at odd pixels
    Case((4,), (3,), (1,), 2, height=1, width=6),
    Case((7,), (4,), (1,), 2, height=6, width=5),
    Case((7,), (4,), (0,), 2, height=5, width=6),
    Case((12, 3), (2, 17, 5, 1), (1, 0, 1, 0), 2, images=3, height=9, width=6),
    Case((32, 32), (32, 32), (0, 1), 2, images=18, height=16, width=15),  # more images than chunks
]


def channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


def run(function, case: Case, inputs: Sequence[Tensor], weights: Sequence[Tensor], grad: Tensor) -> list[Tensor]:
    """Output, mean, variance and the gradients of inputs and weights."""
    inputs, weights = [x.detach().requires_grad_() for x in inputs], [w.detach().requires_grad_() for w in weights]
    results = function(inputs, weights, case.offsets, case.stride, statistics=True)
    return [t.detach() for t in results] + list(torch.autograd.grad(results[0], [*inputs, *weights], grad))


def exact(case: Case, inputs: Sequence[Tensor], weights: Sequence[Tensor], grad: Tensor) -> list[Tensor]:
    """The reference in float64."""
    doubles = [x.double() for x in inputs], [w.double() for w in weights]
    return run(preprocess_reference, case, *doubles, grad.double())


def terms_of(case: Case, inputs: Sequence[Tensor], weights: Sequence[Tensor], grad: Tensor) -> list[Tensor]:
    """Σ|terms| of what `run` gives."""
    result = exact(case, [x.abs() for x in inputs], [w.abs() for w in weights], grad.abs())
    result[1:3] = of_moments(result[:1])
    return result


def check(case: Case, dtype: torch.dtype) -> None:
    inputs, weights, grad = case.make(dtype)
    ours = run(preprocess, case, inputs, weights, grad)
    assert_close(ours, exact(case, inputs, weights, grad), terms_of(case, inputs, weights, grad))
    assert ours[0].is_contiguous(memory_format=torch.channels_last)
    assert [t.dtype for t in ours] == (
        [dtype, *[acc_dtype(dtype)] * 2, *[dtype] * len(inputs), *[acc_dtype(dtype)] * len(weights)]
    )


@contextmanager
def capability(name: str) -> Iterator[None]:
    before = _C.cpu_capability()
    try:
        _C.set_cpu_capability(name)
    except ValueError:
        pytest.skip(f"this processor has no {name}")
    try:
        yield
    finally:
        _C.set_cpu_capability(before)


@contextmanager
def threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("dtype", SHARES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_equals_reference(case, dtype):
    check(case, dtype)


@pytest.mark.cpu_only
@pytest.mark.parametrize("name", ["portable", "AVX2", "AVX-512"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_instruction_sets(case, dtype, name):
    with capability(name):
        check(case, dtype)


@settings(deadline=None, max_examples=60)
@given(
    channels=st.lists(st.integers(0, 40), min_size=1, max_size=4),
    matrices=st.lists(st.tuples(st.integers(0, 35), st.integers(0, 1)), min_size=1, max_size=4),
    stride=st.integers(1, 2),
    images=st.integers(0, 3),
    height=st.integers(0, 9),
    width=st.integers(0, 9),
    seed=st.integers(0, 2**31),
)
def test_any_size(channels, matrices, stride, images, height, width, seed):
    torch.manual_seed(seed)
    # torch's own convolution takes no empty tensors of every kind: compare with an einsum instead.
    rows, offsets = [m[0] for m in matrices], [m[1] if stride == 2 else 0 for m in matrices]
    inputs = [torch.randn(images, c, height, width, dtype=torch.float64).requires_grad_() for c in channels]
    weights = [torch.randn(r, sum(channels), dtype=torch.float64).requires_grad_() for r in rows]
    output, _, _ = preprocess(inputs, weights, offsets, stride)
    x = torch.nn.functional.pad(torch.cat(inputs, 1).relu(), (0, 2, 0, 2))  # zeros beyond the edge
    out_height, out_width = -(-height // stride), -(-width // stride)
    parts = []
    for w, o in zip(weights, offsets, strict=True):
        read = x[:, :, o::stride, o::stride][:, :, :out_height, :out_width]
        parts.append(torch.einsum("oc,nchw->nohw", w, read))
    expected = torch.cat(parts, 1)
    torch.testing.assert_close(output, expected)
    grad = torch.randn_like(expected)
    ours = torch.autograd.grad(output, [*inputs, *weights], grad)
    torch.testing.assert_close(ours, torch.autograd.grad(expected, [*inputs, *weights], grad))


@pytest.mark.parametrize("size", [(8, 8), (7, 9), (1, 5)], ids=str)
def test_is_the_factorized_reduction(size):
    module = FactorizedReduce(6, 10, lambda channels: torch.nn.Identity()).double()
    x = torch.randn(3, 6, *size, dtype=torch.float64)
    weights = [module.conv_even.weight.flatten(1), module.conv_odd.weight.flatten(1)]
    torch.testing.assert_close(preprocess(x, weights, (0, 1), 2)[0], module(x))


# --- layouts ---


def slice_of_wider(x: Tensor) -> Tensor:
    return channels_last(torch.cat([x, torch.full_like(x, torch.nan)], 1))[:, : x.shape[1]]


LAYOUTS = {
    "row-major": torch.Tensor.contiguous,
    "sliced": slice_of_wider,
    "last channels": lambda x: channels_last(torch.cat([torch.full_like(x, torch.nan), x], 1))[:, x.shape[1] :],
    "cropped": lambda x: channels_last(torch.nn.functional.pad(x, (1, 1, 1, 1)))[:, :, 1:-1, 1:-1],
    "expanded": lambda x: x[:, :1].expand(x.shape),
}


@pytest.mark.parametrize("kind", LAYOUTS)
@pytest.mark.parametrize("case", [CASES[0], CASES[3], CASES[8], CASES[13]], ids=str)
def test_layouts(case, kind):
    inputs, weights, grad = case.make(torch.float32)
    inputs, grad = [LAYOUTS[kind](x) for x in inputs], LAYOUTS[kind](grad)
    weights = [w.t().contiguous().t() for w in weights]
    ours = run(preprocess, case, inputs, weights, grad)
    assert_close(ours, exact(case, inputs, weights, grad), terms_of(case, inputs, weights, grad))


# --- the gradient as the raw operator gives it ---


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", [c for c in CASES if sum(c.rows) > 2], ids=str)
def test_grads_in_parts_and_bn_coeffs(case, dtype):
    inputs, weights, grad = case.make(dtype)
    output = preprocess(inputs, weights, case.offsets, case.stride)[0]
    cut = torch.randint(1, grad.shape[1], ()).item()
    parts = [slice_of_wider(grad[:, :cut]), slice_of_wider(grad[:, cut:])]
    bn_coeffs = torch.randn(4, grad.shape[1], dtype=acc_dtype(dtype))
    scale, slope, mean, offset = (t.double()[None, :, None, None] for t in bn_coeffs)
    folded = scale * grad.double() + slope * (output.double() - mean) + offset
    of_folded = (scale * grad.double()).abs() + slope.abs() * (output.double().abs() + mean.abs()) + offset.abs()
    plain = OPS.preprocess_grad(parts, None, None, inputs, weights, case.offsets, case.stride)
    with_bn_coeffs = OPS.preprocess_grad(parts, output, bn_coeffs, inputs, weights, case.offsets, case.stride)
    for (grad_inputs, grad_weights), g, of_g in ((plain, grad, grad), (with_bn_coeffs, folded, of_folded)):
        expected, terms = exact(case, inputs, weights, g), terms_of(case, inputs, weights, of_g)
        assert_close([*grad_inputs, *grad_weights], expected[3:], terms[3:])


def test_bn_coeffs_are_the_backward_of_batch_normalisation():
    case = Case((5, 12), (6, 4), (0, 1), 2, images=4)
    inputs, weights, grad = case.make(torch.float64)
    for tensor in (*inputs, *weights):
        tensor.requires_grad_()
    output = preprocess_reference(inputs, weights, case.offsets, case.stride)[0]
    normalised = torch.nn.functional.batch_norm(output, None, None, training=True, eps=1e-5)
    expected = torch.autograd.grad(normalised, [*inputs, *weights], grad)
    output, mean, variance = preprocess(inputs, weights, case.offsets, case.stride, statistics=True)
    mean, variance = mean[0], variance[0]
    rstd = (variance + 1e-5).rsqrt()
    centred = output.detach() - mean[:, None, None]
    slope = -(rstd**3) * (grad * centred).mean((0, 2, 3))
    bn_coeffs = torch.stack([rstd, slope, mean, -rstd * grad.mean((0, 2, 3))])
    ours = OPS.preprocess_grad([grad], output, bn_coeffs, inputs, weights, case.offsets, case.stride)
    torch.testing.assert_close([*ours[0], *ours[1]], list(expected))


@pytest.mark.cpu_only  # emulated kernels are compared with these at every call
@pytest.mark.parametrize("case", [Case((3, 2), (4,), height=3, width=2), CASES[8]], ids=str)
def test_gradcheck(case):
    inputs, weights, _ = case.make(torch.float64)
    # The kink of relu is nowhere near.
    inputs = [(x + 0.1 * x.sign()).requires_grad_() for x in inputs]
    count = len(inputs)
    assert torch.autograd.gradcheck(
        lambda *t: preprocess(t[:count], t[count:], case.offsets, case.stride)[0],
        [*inputs, *(w.requires_grad_() for w in weights)],
    )


def test_relu_at_zero_and_nan():
    x = torch.tensor([0.0, -0.0, torch.nan, 2.0, -2.0]).view(1, 1, 1, 5).requires_grad_()
    weight = torch.tensor([[3.0]])
    for function in (preprocess, preprocess_reference):
        output = function(x, weight)[0]
        assert torch.equal(output.isnan().flatten(), torch.tensor([False, False, True, False, False]))
        (grad,) = torch.autograd.grad(output, x, torch.ones_like(output))
        assert grad.flatten().tolist() == [0, 0, 3, 3, 0]


# --- statistics ---


@pytest.mark.parametrize("individuals", [1, 2, 6])
@pytest.mark.parametrize("stride", [1, 2])
def test_statistics_of_individuals(individuals, stride):
    inputs = [torch.randn(6, c, 5, 7, dtype=torch.float64) for c in (3, 6)]
    weights, offsets = [torch.randn(o, 9, dtype=torch.float64) for o in (5, 2)], (0, stride - 1)
    ours = preprocess(inputs, weights, offsets, stride, individuals=individuals, statistics=True)
    expected = preprocess_reference(inputs, weights, offsets, stride, individuals=individuals, statistics=True)
    assert ours[1].shape == ours[2].shape == (individuals, 7)
    torch.testing.assert_close(ours, expected)


def test_statistics_do_not_cancel():
    """A mean of 1e3 with a variance of 1e-2."""
    x = 1e3 + 0.1 * torch.randn(8, 4, 20, 20)
    output, mean, variance = preprocess(x, torch.eye(4), statistics=True)
    expected = output.double()
    torch.testing.assert_close(mean[0].double(), expected.mean((0, 2, 3)), rtol=1e-6, atol=0)
    torch.testing.assert_close(variance[0].double(), expected.var((0, 2, 3), correction=0), rtol=1e-4, atol=0)


def test_statistics_are_optional():
    _, mean, variance = preprocess(torch.randn(2, 3, 4, 4), torch.randn(5, 3))
    assert mean.shape == variance.shape == (0,)


def test_statistics_are_not_differentiable():
    x, weight = torch.randn(2, 3, 4, 4, requires_grad=True), torch.randn(5, 3, requires_grad=True)
    output, mean, variance = preprocess(x, weight, statistics=True)
    assert output.requires_grad
    assert not mean.requires_grad
    assert not variance.requires_grad


@pytest.mark.parametrize("shape", [(0, 3, 4, 4), (2, 3, 0, 4), (2, 3, 4, 0)], ids=str)
def test_empty(shape):
    x, weight = torch.randn(shape, requires_grad=True), torch.randn(5, 3, requires_grad=True)
    output, mean, variance = preprocess(x, weight, stride=2, statistics=True)
    assert output.shape == (shape[0], 5, -(-shape[2] // 2), -(-shape[3] // 2))
    assert mean.eq(0).all()
    assert variance.eq(0).all()
    output.sum().backward()
    assert x.grad.shape == shape
    assert weight.grad.eq(0).all()


@pytest.mark.cpu_only
@pytest.mark.parametrize("case", [Case((16, 5), (20,), images=19, height=16, width=16), CASES[14]], ids=str)
def test_threads_do_not_change_a_bit(case):
    inputs, weights, grad = case.make(torch.float32)
    results = []
    for count in (1, 2, 3):
        with threads(count):
            results.append(run(preprocess, case, inputs, weights, grad))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_dtypes_are_promoted():
    inputs = [torch.randn(2, 3, 4, 4, dtype=torch.bfloat16), torch.randn(2, 2, 4, 4)]
    weight = torch.randn(4, 5, dtype=torch.float64)
    ours = preprocess(inputs, weight, statistics=True)
    assert all(t.dtype == torch.float32 for t in ours)
    torch.testing.assert_close(ours, preprocess_reference(inputs, weight, statistics=True))


def test_double_backward_says_so():
    x, weight = torch.rand(1, 2, 3, 3, requires_grad=True), torch.rand(2, 2, requires_grad=True)
    (grad,) = torch.autograd.grad(preprocess(x, weight)[0].pow(2).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


# --- registration ---


@pytest.mark.parametrize("statistics", [False, True])
@pytest.mark.parametrize("case", [Case((3, 5), (4,)), CASES[8]], ids=str)
def test_opcheck(case, statistics):
    inputs, weights, grad = case.make(torch.float32)
    for tensor in (*inputs, *weights):
        tensor.requires_grad_()
    options = (list(case.offsets), case.stride)
    torch.library.opcheck(OPS.preprocess.default, (inputs, weights, *options, 2, statistics))
    inputs, weights = [x.detach() for x in inputs], [w.detach() for w in weights]
    output = preprocess(inputs, weights, *options)[0]
    bn_coeffs = torch.randn(4, grad.shape[1])
    torch.library.opcheck(OPS.preprocess_grad.default, ([grad], None, None, inputs, weights, *options))
    torch.library.opcheck(OPS.preprocess_grad.default, ([grad], output, bn_coeffs, inputs, weights, *options))


def test_compile_has_no_graph_break():
    case = CASES[8]
    compiled = torch.compile(preprocess, fullgraph=True, backend="aot_eager")
    inputs, weights, grad = case.make(torch.float32)
    ours = run(compiled, case, inputs, weights, grad)
    assert_close(ours, exact(case, inputs, weights, grad), terms_of(case, inputs, weights, grad))


# --- errors name the operator, the argument and the shape ---

X, W = torch.rand(2, 3, 4, 4), torch.rand(5, 3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([], [W]), r"fastnas::preprocess: inputs must hold 1 to 64 tensors, got 0"),
        (([X], [], ()), r"fastnas::preprocess: weights must hold 1 to 64 tensors, got 0"),
        (([X[0]], [W]), r"inputs\[0\] has shape \[3, 4, 4\], expected \[N, C, H, W\]"),
        (([X, X[:, :, 1:]], [W]), r"inputs\[1\] has shape \[2, 3, 3, 4\], inputs\[0\] \[2, 3, 4, 4\]"),
        (([X, X], [W]), r"weights\[0\] has shape \[5, 3\], expected \[O, 6\]"),
        ((X, W[0]), r"weights\[0\] has shape \[3\], expected \[O, 3\]"),
        ((X, W, (0, 0)), r"there are 2 offsets for 1 weights"),
        ((X, W, (1,)), r"offsets\[0\] is 1, expected 0 for stride 1"),
        ((X, W, (2,), 2), r"offsets\[0\] is 2, expected 0 or 1"),
        ((X, W, (-1,), 2), r"offsets\[0\] is -1, expected 0 or 1"),
        ((X, W, (0,), 3), r"stride is 3, expected 1 or 2"),
        ((X.long(), W), r"preprocess\" not implemented for 'Long'"),
    ],
)
def test_errors(arguments, message):
    with pytest.raises(RuntimeError, match=message):
        preprocess(*arguments)


@pytest.mark.parametrize("individuals", [3, 0, -1])
def test_individuals_must_divide_the_images(individuals):
    with pytest.raises(RuntimeError, match=rf"individuals is {individuals}, expected a divisor of the 2 images"):
        preprocess(X, W, individuals=individuals)


G, C = torch.rand(2, 5, 4, 4), torch.rand(4, 5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([], None, None, [X], [W]), r"fastnas::preprocess_grad: grads must hold 1 to 64 tensors, got 0"),
        (([G[:1]], None, None, [X], [W]), r"grads\[0\] has shape \[1, 5, 4, 4\], expected \[2, C, 4, 4\]"),
        (([G, G], None, None, [X], [W]), r"grads have 10 channels together, expected the 5 rows"),
        (([G.double()], None, None, [X], [W]), r"grads\[0\] must have the dtype and the device of the inputs"),
        (([G], G, None, [X], [W]), r"output and bn_coeffs must be given together, or neither"),
        (([G], G, C[:3], [X], [W]), r"bn_coeffs has shape \[3, 5\], expected \[4, 5\]"),
        (([G], G, C.double(), [X], [W]), r"bn_coeffs must be float32"),
        (([G], G[:, :4], C, [X], [W]), r"output has shape \[2, 4, 4, 4\], expected \[2, 5, 4, 4\]"),
        (([G], None, None, [X, X.double()], [W]), r"inputs\[1\] must have the dtype and the device of inputs\[0\]"),
        (([G], None, None, [X], [W.double()]), r"weights\[0\] must be float32 and on the device of the inputs"),
    ],
)
def test_errors_of_the_raw_gradient(arguments, message):
    with pytest.raises(RuntimeError, match=message):
        OPS.preprocess_grad(*arguments, [0], 1)
