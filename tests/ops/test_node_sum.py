"""node_sum against plain torch."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from closeness import SHARES, assert_close
from node_sum_cases import (
    EPS,
    OPS,
    SIZES,
    check,
    check_bypass_grad,
    image,
    make,
    run,
    statistics,
    terms_of,
)
from torch import Tensor
from torch.nn import functional as F

from fastnas._library import _C
from fastnas.ops import node_sum, node_sum_reference

pytestmark = pytest.mark.usefixtures("backend")


@pytest.mark.parametrize("dtype", SHARES, ids=str)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_equals_reference(size, dtype):
    check(make(size), dtype)
    if size[-1] > 1:
        for edges, kind in ((0, "sliced"), (1, "channels_last")):
            check(make(size, edges=edges, kinds=(kind,), prev_node=True), dtype)


@pytest.mark.parametrize("groups", [2, 3, 4])
def test_a_node_passes_on_what_bypassed_it(groups):
    """Three nodes of a cell, with lists of all earlier states and with prev_node, forward and backward."""
    channels, double = 4, torch.float64
    of_nodes = [[torch.randn(2, channels, 5, 7, dtype=double) for _ in range(3)] for _ in range(3)]
    statistics = torch.zeros(3, 1, channels, dtype=double), torch.ones(3, 1, channels, dtype=double)
    first = [torch.randn(2, groups * channels, 5, 7, dtype=double) for _ in range(2)]

    def cell(passed_on: bool) -> list[Tensor]:
        leaves = [state.clone().requires_grad_() for state in first]
        states = list(leaves)
        for candidates in of_nodes:
            bypass = [state[:, channels:] for state in states]
            known = {"prev_node": states[-1]} if passed_on and len(states) > 2 else {}
            options = {**known, "normalized": [False] * 3}
            weights = torch.ones(3, dtype=double)
            states.append(node_sum(candidates, *statistics, weights, [] if known else bypass, **options))
        output = torch.cat(states[2:], 1)
        return [output.detach(), *torch.autograd.grad(output.square().sum(), leaves)]

    for ours, expected in zip(cell(True), cell(False), strict=True):
        torch.testing.assert_close(ours, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("size", [(2, 4, 9, 7, 4), (2, 5, 6, 5, 1)], ids=str)
def test_constants_get_no_share_of_the_gradient(size, dtype):
    inputs = replace(make(size), normalized=[True, False, False, True])
    inputs.mean[1:3] += 1
    inputs.rstd[1:3] *= 2
    check(inputs, dtype)
    check(replace(inputs, normalized=[False] * 4), dtype)


@pytest.mark.parametrize("kind", ["contiguous", "channels_last", "sliced", "transposed"])
@pytest.mark.parametrize("size", [(2, 4, 9, 7, 4), (2, 5, 6, 5, 2), (3, 8, 8, 8, 1)], ids=str)
def test_layouts(size, kind):
    inputs = make(size, kinds=(kind,))
    shape = inputs(node_sum).shape
    check(inputs, torch.float32)
    check(inputs, torch.float32, image(*shape, kind="sliced", first=1))


def test_shuffle_by_hand():
    """Two groups of two: the sum's channels are 0 and 2, the others' 1 and 3."""
    y, x = torch.randn(1, 2, 3, 3), torch.randn(1, 2, 3, 3)
    result = node_sum([y], torch.zeros(1, 1, 2), torch.ones(1, 1, 2), torch.tensor([2.0]), [x], torch.tensor([3.0]))
    torch.testing.assert_close(result, torch.stack([2 * y, 3 * x], 2).flatten(1, 2))
    torch.testing.assert_close(result, F.channel_shuffle(torch.cat([2 * y, 3 * x], 1), 2))


@pytest.mark.parametrize("individuals", [2, 3])
@pytest.mark.parametrize("shared", [(False,), (True,), (True, False)], ids=str)
@pytest.mark.parametrize("prev_node", [False, True])
@pytest.mark.parametrize("size", [(2, 4, 9, 7, 4), (1, 5, 6, 5, 2), (3, 8, 40, 20, 1)], ids=str)
def test_population(size, prev_node, shared, individuals):
    inputs = make(size, count=5, individuals=individuals, shared=shared, prev_node=prev_node)
    result = inputs(node_sum)
    assert result.shape[0] == individuals * size[0]
    expected, terms = (case(node_sum_reference) for case in (inputs.to(torch.float64), inputs.absolute()))
    assert_close([result], [expected], [terms])
    if len(set(shared)) == 2 or not any(shared):
        assert torch.equal(result, replace(inputs, images=None)(node_sum))
    # Each individual alone gets the same bits.
    for p, alone in enumerate(result.split(size[0])):

        def own(x: Tensor, p: int = p) -> Tensor:
            return x if len(x) == size[0] else x[p * size[0] : (p + 1) * size[0]]

        single = replace(
            inputs,
            candidates=[own(y) for y in inputs.candidates],
            bypass=[own(x) for x in inputs.bypass],
            mean=inputs.mean[:, p : p + 1],
            rstd=inputs.rstd[:, p : p + 1],
            weights=inputs.weights[p],
            bypass_weights=None if inputs.bypass_weights is None else inputs.bypass_weights[p],
            prev_node=None if inputs.prev_node is None else own(inputs.prev_node),
            individuals=1,
        )
        assert torch.equal(alone, single(node_sum))


@pytest.mark.parametrize("size", [(2, 4, 8, 8, 4), (2, 6, 16, 16, 1)], ids=str)
def test_large_mean(size):
    """Mean 1e3 and variance 1e-2: subtracting must come before scaling. The second image mirrors the first, so that the
    mean is exact in float32, and so is what is left after subtracting it."""
    inputs = make(size).to(torch.float32)
    inputs.candidates = [1e3 + 0.1 * torch.cat([y[:1], -y[:1]]) for y in inputs.candidates]
    inputs.mean, inputs.rstd = statistics(inputs.candidates, 1, size[0])
    inputs = inputs.to(torch.float32)
    assert inputs.mean.eq(1e3).all()
    grad = torch.randn(inputs(node_sum).shape)
    left = replace(inputs, candidates=[y - 1e3 for y in inputs.candidates], mean=torch.zeros_like(inputs.mean))
    ours, expected = run(node_sum, inputs, grad), run(node_sum_reference, inputs, grad.double())
    assert_close(ours, expected, terms_of(left, grad))


def test_bypass_weights_are_ones_by_default():
    inputs = make(weighted=False)
    check(inputs, torch.float32)
    assert torch.equal(inputs(node_sum), replace(inputs, bypass_weights=torch.ones(2))(node_sum))


def test_more_channels_than_a_block_has_threads():
    for groups in (1, 2):
        check(make((1, 262, 2, 3, groups), count=2, edges=1), torch.float32)


def test_one_candidate_and_most_candidates():
    for count in (1, 128):
        check(make((1, 4, 5, 5, 4), count=count, edges=1), torch.float32)


@pytest.mark.filterwarnings("ignore:var_mean")  # of nothing
@pytest.mark.parametrize("size", [(0, 4, 5, 5, 4), (2, 4, 0, 5, 4), (0, 3, 5, 5, 1), (2, 3, 5, 0, 1)], ids=str)
def test_empty(size):
    inputs = make(size)
    inputs.mean, inputs.rstd = torch.zeros(4, 1, size[1]), torch.ones(4, 1, size[1])
    result, *grads = run(node_sum, inputs, inputs(node_sum))
    assert result.shape == (size[0], size[1] * size[4], size[2], size[3])
    assert all(grad.eq(0).all() for grad in grads)
    total = torch.ones_like(result)
    channels = 1 if size[4] == 1 else size[1]
    for prev_node in (False, True):
        whole, own = OPS.bypass_grad(None, [total], torch.ones(1), [], channels, prev_node)
        assert whole.shape == result.shape
        assert own.shape == ((size[0], channels, *size[2:4]) if prev_node else (0,))
    if size[4] > 1:
        inputs.prev_node = total
        assert inputs(node_sum).shape == result.shape


@pytest.mark.cpu_only
@pytest.mark.parametrize("capability", ["portable", "AVX2", "AVX-512"])
@pytest.mark.parametrize("dtype", SHARES, ids=str)
def test_instruction_sets_agree(capability, dtype):
    before = _C.cpu_capability()
    try:
        _C.set_cpu_capability(capability)
    except ValueError:
        pytest.skip(f"this processor has no {capability}")
    try:
        for size in [(2, 4, 19, 17, 4), (2, 7, 12, 13, 1), (1, 3, 5, 7, 3)]:
            check(make(size), dtype)
            check_bypass_grad(size[1], size[4], dtype)
    finally:
        _C.set_cpu_capability(before)


@pytest.mark.cpu_only
def test_threads_do_not_change_a_bit():
    threads = torch.get_num_threads()
    for size in [(8, 4, 32, 32, 4), (5, 5, 40, 33, 1)]:
        inputs = make(size)
        grad = torch.randn(inputs(node_sum).shape)
        try:
            torch.set_num_threads(1)
            alone = run(node_sum, inputs, grad)
            torch.set_num_threads(2)
            together = run(node_sum, inputs, grad)
        finally:
            torch.set_num_threads(threads)
        assert all(torch.equal(a, b) for a, b in zip(alone, together, strict=True))


@pytest.mark.cpu_only  # emulated kernels are compared with these at every call
@pytest.mark.parametrize("prev_node", [False, True])
@pytest.mark.parametrize("size", [(2, 2, 3, 2, 2), (2, 4, 2, 2, 4), (2, 3, 3, 3, 1)], ids=str)
def test_gradcheck(size, prev_node):
    """Numerically, with statistics that follow the batch for the candidates that are normalised."""
    inputs = make(size, count=3, prev_node=prev_node).to(torch.float64, leaves=True)
    inputs.normalized = [True, False, True]
    count, edges = 3, len(inputs.bypass)

    def function(*tensors: Tensor) -> Tensor:
        candidates = list(tensors[:count])
        mean, rstd = inputs.mean.clone(), inputs.rstd.clone()
        for k in (0, 2):
            variance, mean[k, 0] = torch.var_mean(candidates[k].detach(), dim=(0, 2, 3), correction=0)
            rstd[k, 0] = (variance + EPS).rsqrt()
        changed = replace(
            inputs, candidates=candidates, bypass=list(tensors[count : count + edges]), mean=mean, rstd=rstd
        )
        changed.weights = tensors[count + edges]
        changed.bypass_weights = tensors[count + edges + 1] if edges else None
        changed.prev_node = tensors[-1] if inputs.prev_node is not None else None
        return changed(node_sum)

    assert torch.autograd.gradcheck(function, inputs.leaves())


def test_only_what_needs_a_gradient_gets_one():
    inputs = make(prev_node=True).to(torch.float32)
    grad = torch.randn_like(inputs(node_sum))
    full = run(node_sum, inputs, grad)[1:]
    for index in range(len(full)):
        fresh = inputs.to(torch.float32)
        leaf = fresh.leaves()[index].requires_grad_()
        fresh(node_sum).backward(grad)
        assert torch.equal(leaf.grad, full[index])
        assert all(other.grad is None for other in fresh.leaves() if other is not leaf)


def test_mixed_dtypes_are_promoted():
    inputs = make()
    inputs.candidates[1] = inputs.candidates[1].bfloat16()
    inputs.weights = inputs.weights.double()
    result = inputs(node_sum)
    assert result.dtype == torch.float32
    assert_close([result], [inputs(node_sum_reference)], [inputs.absolute()(node_sum_reference)])


@pytest.mark.parametrize("kind", ["contiguous", "sliced"])
@pytest.mark.parametrize("size", [(2, 4, 3, 5, 4), (2, 3, 3, 5, 1)], ids=str)
def test_opcheck(size, kind):
    leaves = make(size, kinds=(kind,)).to(torch.float32, leaves=True)
    arguments = (leaves.candidates, leaves.mean, leaves.rstd, leaves.weights, leaves.bypass, leaves.bypass_weights, 1)
    torch.library.opcheck(OPS.node_sum.default, arguments)
    if size[-1] > 1:
        prev_node = torch.randn(leaves(node_sum).shape).requires_grad_()
        torch.library.opcheck(OPS.node_sum.default, (*arguments, None, None, prev_node))
    inputs = make(size, kinds=(kind,)).to(torch.float32)
    grad = torch.randn(inputs(node_sum).shape)
    arguments = (inputs.candidates, inputs.mean, inputs.rstd)
    torch.library.opcheck(OPS.node_sum_grad.default, (grad, *arguments, inputs.bypass))
    grad_group0, *sums, _ = OPS.node_sum_grad(grad, *arguments, inputs.bypass)
    grad_group0 = grad_group0 if inputs.bypass else grad
    torch.library.opcheck(
        OPS.node_sum_grad_candidates.default, (grad_group0, *arguments, inputs.weights, *sums, [1, 0, 1, 1])
    )
    if inputs.bypass:
        for front in (grad_group0, None):
            arguments = (front, [grad, grad], torch.rand(2), [grad], size[1])
            torch.library.opcheck(OPS.bypass_grad.default, arguments)
            torch.library.opcheck(OPS.bypass_grad.default, (*arguments, True))
    population = make(size, individuals=2, shared=(True,)).to(torch.float32)
    tables = (population.mean, population.rstd, population.weights, population.bypass, population.bypass_weights)
    torch.library.opcheck(OPS.node_sum.default, (population.candidates, *tables, 2, size[0]))


@pytest.mark.parametrize("normalized", [None, [True, False, True, False]], ids=str)
def test_compile_has_no_graph_break(normalized):
    inputs = replace(make(prev_node=normalized is None), normalized=normalized)
    compiled = torch.compile(node_sum, fullgraph=True, backend="aot_eager")
    grad = torch.randn(inputs(node_sum).shape)
    ours, expected = run(compiled, inputs, grad), run(node_sum, inputs, grad)
    assert all(torch.equal(a, b) for a, b in zip(ours, expected, strict=True))


# --- errors name the operator, the argument and the shape ---


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"candidates": []}, r"fastnas::node_sum: candidates must hold 1 to 128 tensors, got 0"),
        ({"candidates": [torch.rand(2, 3)]}, r"candidates\[0\] must be \[N, C, H, W\], got shape \[2, 3\]"),
        (
            {"candidates": [torch.rand(2, 4, 9, 7)] * 3 + [torch.rand(2, 4, 9, 8)]},
            r"candidates\[3\] has shape \[2, 4, 9, 8\], expected \[N, 4, 9, 7\]",
        ),
        (
            {"candidates": [torch.rand(2, 4, 9, 7)] * 3 + [torch.rand(3, 4, 9, 7)], "images": 2},
            r"candidates\[3\] has shape \[3, 4, 9, 7\]; for 1 individuals of 2 images",
        ),
        ({"mean": torch.rand(4, 4)}, r"mean has shape \[4, 4\], expected \[4, 1, 4\]"),
        ({"rstd": torch.rand(3, 1, 4)}, r"rstd has shape \[3, 1, 4\], expected \[4, 1, 4\]"),
        ({"weights": torch.rand(3)}, r"weights has shape \[1, 3\], expected \[1, 4\]"),
        ({"bypass_weights": torch.rand(2, 2)}, r"bypass_weights has shape \[2, 2\], expected \[1, 2\]"),
        ({"bypass": [torch.rand(2, 6, 9, 7)] * 2}, r"6 channels bypass the 4 that are summed"),
        ({"bypass": [torch.rand(2, 0, 9, 7)] * 2}, r"0 channels bypass the 4 that are summed"),
        ({"bypass": [torch.rand(2, 4)] * 2}, r"bypass\[0\] must be \[N, R, H, W\], got shape \[2, 4\]"),
        ({"prev_node": torch.rand(2, 12, 9, 7)}, r"bypass\[0\] has shape \[2, 12, 9, 7\], expected \[N, 8, 9, 7\]"),
        ({"prev_node": torch.rand(3, 16, 9, 7)}, r"prev_node has shape \[3, 16, 9, 7\]; for 1 individuals of 2"),
        ({"prev_node": torch.rand(2, 16)}, r"prev_node must be \[N, C \+ R, H, W\], got shape \[2, 16\]"),
        ({"individuals": 0}, r"individuals is 0"),
        ({"normalized": [True]}, r"normalized has 1 entries, but there are 4 candidates"),
    ],
    ids=lambda value: value if isinstance(value, str) else ",".join(value),  # not the tensors: they are random
)
def test_errors(change, message):
    with pytest.raises(RuntimeError, match=message):
        replace(make(), **change)(node_sum)


def test_the_former_name_of_prev_node_warns():
    inputs = make(prev_node=True).to(torch.float32)
    arguments = (inputs.candidates, inputs.mean, inputs.rstd, inputs.weights, inputs.bypass, inputs.bypass_weights)
    with pytest.warns(DeprecationWarning, match="previous is called prev_node now"):
        ours = node_sum(*arguments, previous=inputs.prev_node)
    assert torch.equal(ours, node_sum(*arguments, prev_node=inputs.prev_node))


def test_double_backward_says_so():
    inputs = make().to(torch.float32, leaves=True)
    result = inputs(node_sum)
    (grad,) = torch.autograd.grad(result.pow(2).sum(), inputs.weights, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


def test_no_gradients_for_a_population():
    inputs = make(individuals=2).to(torch.float32, leaves=True)
    result = inputs(node_sum)
    with pytest.raises(RuntimeError, match="gradients for one individual only"):
        result.sum().backward()
