"""mixed_sum against its plain-torch reference; the pattern for the tests of every operator."""

from __future__ import annotations

import pytest
import torch
from closeness import SHARES, assert_close
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fastnas._library import _C
from fastnas.ops import mixed_sum, mixed_sum_reference
from fastnas.ops.layout import acc_dtype

pytestmark = pytest.mark.usefixtures("backend")

OPS = torch.ops.fastnas

# Cross the CPU tile of 2048 elements, vector widths and 16 lanes; one element; odd everything.
SHAPES = [(1,), (3, 5), (2, 3, 7, 5), (1, 16, 8, 16), (2, 5, 17, 13), (2049,), (4, 1025)]


def make(
    shape: tuple[int, ...], count: int, individuals: int | None, dtype: torch.dtype
) -> tuple[list[Tensor], Tensor]:
    """Random outputs and weights; with individuals, every other output is shared."""
    if individuals is None:
        outputs = [torch.randn(shape, dtype=dtype) for _ in range(count)]
        return outputs, torch.softmax(torch.randn(count, dtype=acc_dtype(dtype)), -1)
    outputs = [torch.randn(individuals if k % 2 else 1, *shape, dtype=dtype) for k in range(count)]
    return outputs, torch.softmax(torch.randn(individuals, count, dtype=acc_dtype(dtype)), -1)


def run(function, outputs: list[Tensor], weights: Tensor, grad: Tensor | None = None) -> list[Tensor]:
    """The result and the gradients of weights and outputs."""
    outputs = [output.detach().clone(memory_format=torch.preserve_format).requires_grad_() for output in outputs]
    weights = weights.detach().clone().requires_grad_()
    result = function(outputs, weights)
    result.backward(torch.ones_like(result) if grad is None else grad)
    return [result.detach(), weights.grad, *(output.grad for output in outputs)]


def check(outputs: list[Tensor], weights: Tensor, grad: Tensor | None = None, function=mixed_sum) -> list[Tensor]:
    """Result and gradients are those of the reference in float64; they are returned."""
    ours = run(function, outputs, weights, grad)
    assert [each.dtype for each in ours] == [outputs[0].dtype, weights.dtype, *[o.dtype for o in outputs]]
    o, w = [each.double() for each in outputs], weights.double()
    g = torch.ones_like(ours[0]).double() if grad is None else grad.double()
    expected = run(mixed_sum_reference, o, w, g)
    assert_close(ours, expected, run(mixed_sum_reference, [each.abs() for each in o], w.abs(), g.abs()))
    return ours


@pytest.mark.parametrize("dtype", SHARES, ids=str)
@pytest.mark.parametrize("individuals", [None, 1, 3])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_equals_reference(shape, individuals, dtype):
    outputs, weights = make(shape, 4, individuals, dtype)
    grad = torch.randn(mixed_sum(outputs, weights).shape, dtype=dtype)
    check(outputs, weights, grad)


@pytest.mark.cpu_only
@pytest.mark.parametrize("capability", ["portable", "AVX2", "AVX-512"])
def test_instruction_sets_agree(capability):
    before = _C.cpu_capability()
    try:
        _C.set_cpu_capability(capability)
    except ValueError:
        pytest.skip(f"this processor has no {capability}")
    try:
        outputs, weights = make((2, 5, 17, 13), 7, 3, torch.float32)
        check(outputs, weights)
    finally:
        _C.set_cpu_capability(before)


@pytest.mark.parametrize("individuals", [None, 2])
def test_gradcheck(individuals):
    outputs, weights = make((2, 3, 4, 5), 3, individuals, torch.float64)
    inputs = [tensor.requires_grad_() for tensor in (weights, *outputs)]
    assert torch.autograd.gradcheck(lambda w, *o: mixed_sum(o, w), inputs)


def layouts(outputs: list[Tensor], kind: str) -> list[Tensor]:
    if kind == "channels_last":
        return [o.flatten(0, -4).contiguous(memory_format=torch.channels_last).view_as(o) for o in outputs]
    if kind == "mixed":
        return [o if k % 2 else layouts([o], "channels_last")[0] for k, o in enumerate(outputs)]
    if kind == "transposed":
        return [o.transpose(-1, -2).contiguous().transpose(-1, -2) for o in outputs]
    if kind == "sliced":
        return [torch.cat([o, o], dim=-3)[..., : o.shape[-3], :, :] for o in outputs]
    if kind == "expanded":
        return [o[..., :1].expand(o.shape) for o in outputs]
    return outputs


@pytest.mark.parametrize("individuals", [None, 3])
@pytest.mark.parametrize("kind", ["contiguous", "channels_last", "mixed", "transposed", "sliced", "expanded"])
def test_layouts(kind, individuals):
    outputs, weights = make((2, 5, 7, 3), 4, individuals, torch.float32)
    strided = layouts(outputs, kind)
    grad = torch.randn(mixed_sum(strided, weights).shape)
    for g in (grad, layouts([grad], "sliced")[0]):
        check(strided, weights, g)


@pytest.mark.parametrize("individuals", [None, 3])
def test_channels_last_stays(individuals):
    outputs, weights = make((2, 5, 7, 3), 4, individuals, torch.float32)
    result = mixed_sum(layouts(outputs, "channels_last"), weights)
    assert result.flatten(0, -4).is_contiguous(memory_format=torch.channels_last)
    assert mixed_sum(outputs, weights).is_contiguous()


@pytest.mark.parametrize(
    ("shape", "individuals"), [((0,), None), ((2, 0, 3, 3), None), ((2, 0, 3, 3), 3), ((2, 3), 0)], ids=str
)
def test_empty(shape, individuals):
    outputs, weights = make(shape, 2, individuals, torch.float32)
    results = check(outputs, weights)
    assert results[1].eq(0).all()  # the weights get a gradient, of zeros


def test_one_candidate_and_most_candidates():
    for count in (1, 64):
        outputs, weights = make((3, 5), count, None, torch.float32)
        check(outputs, weights)


def test_scalars():
    outputs = [torch.tensor(2.0), torch.tensor(3.0)]
    assert mixed_sum(outputs, torch.tensor([0.5, 0.25])).item() == 1.75


@pytest.mark.cpu_only
def test_threads_do_not_change_a_bit():
    outputs, weights = make((8, 16, 33, 33), 5, None, torch.float32)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = run(mixed_sum, outputs, weights)
        torch.set_num_threads(2)
        together = run(mixed_sum, outputs, weights)
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for a, b in zip(alone, together, strict=True))


@pytest.mark.cpu_only
def test_outputs_are_kept_only_for_gradients_of_weights():
    outputs, weights = make((4, 4), 3, None, torch.float32)
    outputs = [output.requires_grad_() for output in outputs]
    kept: list[Tensor] = []

    def remember(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(remember, lambda tensor: tensor):
        mixed_sum(outputs, weights)
        assert len(kept) == 1
        mixed_sum(outputs, weights.requires_grad_())
        assert len(kept) == 1 + 4


def test_only_what_needs_a_gradient_gets_one():
    outputs, weights = make((4, 4), 3, None, torch.float32)
    mixed_sum(outputs, weights.requires_grad_()).sum().backward()
    assert weights.grad is not None
    assert all(output.grad is None for output in outputs)
    outputs[1].requires_grad_()
    mixed_sum(outputs, weights.detach()).sum().backward()
    torch.testing.assert_close(outputs[1].grad, weights[1].detach().expand(4, 4))


def test_mixed_dtypes_are_promoted():
    outputs = [torch.randn(3, 4, dtype=torch.bfloat16), torch.randn(3, 4)]
    weights = torch.rand(2, dtype=torch.float64)
    assert mixed_sum(outputs, weights).dtype == torch.float32
    torch.testing.assert_close(mixed_sum(outputs, weights), mixed_sum_reference(outputs, weights))


def test_large_and_tiny_values_do_not_mix():
    """NaN and infinity stay where they are, as in plain torch."""
    outputs, weights = make((2, 3, 5, 5), 3, None, torch.float32)
    outputs[1][0, 0, 0, 0], outputs[2][1, 2, 4, 4] = torch.nan, torch.inf
    result = mixed_sum(outputs, weights)
    assert torch.equal(result.isfinite(), mixed_sum_reference(outputs, weights).isfinite())


@settings(deadline=None, max_examples=40)
@given(
    shape=st.lists(st.integers(1, 6), min_size=1, max_size=5),
    count=st.integers(1, 9),
    individuals=st.none() | st.integers(1, 4),
    seed=st.integers(0, 2**31),
)
def test_linear_in_outputs_and_in_weights(shape, count, individuals, seed):
    torch.manual_seed(seed)
    outputs, weights = make(tuple(shape), count, individuals, torch.float64)
    others, other_weights = make(tuple(shape), count, individuals, torch.float64)
    summed = mixed_sum([a + 2 * b for a, b in zip(outputs, others, strict=True)], weights)
    torch.testing.assert_close(summed, mixed_sum(outputs, weights) + 2 * mixed_sum(others, weights))
    combined = mixed_sum(outputs, weights + 2 * other_weights)
    torch.testing.assert_close(combined, mixed_sum(outputs, weights) + 2 * mixed_sum(outputs, other_weights))


# --- registration ---


@pytest.mark.parametrize("kind", ["contiguous", "channels_last", "sliced"])
@pytest.mark.parametrize("individuals", [None, 3])
def test_opcheck(individuals, kind):
    outputs, weights = make((2, 3, 4, 5), 3, individuals, torch.float32)
    outputs = layouts(outputs, kind)
    grad = torch.randn_like(mixed_sum(outputs, weights))
    torch.library.opcheck(OPS.mixed_sum.default, ([o.requires_grad_() for o in outputs], weights.requires_grad_()))
    outputs, weights = [o.detach() for o in outputs], weights.detach()
    sizes = [len(o) for o in outputs]
    torch.library.opcheck(OPS.mixed_sum_grad_outputs.default, (grad, weights, sizes))
    torch.library.opcheck(OPS.mixed_sum_grad_weights.default, (grad, outputs, weights))


@pytest.mark.cpu_only
def test_compile_has_no_graph_break():
    outputs, weights = make((2, 3, 4, 5), 3, None, torch.float32)
    compiled = torch.compile(lambda o, w: mixed_sum(o, w), fullgraph=True, backend="aot_eager")
    check(outputs, weights, function=compiled)


@pytest.mark.cpu_only
def test_export_keeps_the_operator():
    class Sum(torch.nn.Module):
        def forward(self, a: Tensor, b: Tensor, weights: Tensor) -> Tensor:
            return mixed_sum([a, b], weights)

    outputs, weights = make((2, 3), 2, None, torch.float32)
    program = torch.export.export(Sum(), (*outputs, weights))
    assert "fastnas.mixed_sum.default" in program.graph_module.code
    torch.testing.assert_close(program.module()(*outputs, weights), mixed_sum_reference(outputs, weights))


# --- errors name the operator, the argument and the shape ---


@pytest.mark.parametrize(
    ("outputs", "weights", "message"),
    [
        ([], torch.rand(0), r"fastnas::mixed_sum: outputs must hold 1 to 64 tensors, got 0"),
        ([torch.rand(2)] * 65, torch.rand(65), r"fastnas::mixed_sum: outputs must hold 1 to 64 tensors, got 65"),
        (
            [torch.rand(2, 3), torch.rand(3, 2)],
            torch.rand(2),
            r"outputs\[1\] has shape \[3, 2\], outputs\[0\] \[2, 3\]",
        ),
        ([torch.rand(2)], torch.rand(3), r"weights has shape \[3\] but there are 1 outputs"),
        ([torch.rand(2)], torch.rand(1, 1, 1), r"weights must be \[K\] or \[P, K\], got shape \[1, 1, 1\]"),
        ([torch.rand(4, 2)], torch.rand(3, 1), r"outputs\[0\] has shape \[4, 2\].*leading dimension of P or 1"),
        ([torch.tensor(1.0)], torch.rand(3, 1), r"outputs\[0\] is a scalar, but weights \[3, 1\]"),
        ([torch.ones(2, dtype=torch.int64)], torch.rand(1), r"mixed_sum\" not implemented for 'Long'"),
    ],
)
def test_errors(outputs, weights, message):
    with pytest.raises(RuntimeError, match=message):
        mixed_sum(outputs, weights)


def test_errors_of_the_raw_operators():
    with pytest.raises(RuntimeError, match=r"outputs\[1\] has another dtype than outputs\[0\]"):
        OPS.mixed_sum([torch.rand(2), torch.rand(2).double()], torch.rand(2))
    with pytest.raises(RuntimeError, match=r"weights must be float64 for float64 outputs"):
        OPS.mixed_sum([torch.rand(2).double()], torch.rand(1))
    with pytest.raises(RuntimeError, match=r"mixed_sum_grad_weights: grad has shape \[3\]"):
        OPS.mixed_sum_grad_weights(torch.rand(3), [torch.rand(2)], torch.rand(1))
    with pytest.raises(RuntimeError, match=r"leading_sizes\[0\] is 2, expected 1 or 3"):
        OPS.mixed_sum_grad_outputs(torch.rand(3, 2), torch.rand(3, 1), [2])


def test_double_backward_says_so():
    output = torch.rand(3, requires_grad=True)
    weights = torch.rand(1, requires_grad=True)
    (grad,) = torch.autograd.grad(mixed_sum([output], weights).pow(2).sum(), output, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()
