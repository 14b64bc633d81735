"""Gradients of stage, and its registrations: autograd, torch.compile, opcheck."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from closeness import assert_close
from stage_cases import (
    CANDIDATES,
    MIXED,
    Arguments,
    Case,
    acc_dtype,
    fused,
    gradients_like,
    layout,
    make,
    run,
    terms_of,
)
from torch import Tensor

from fastnas.ops import stage_reference

OPS = torch.ops.fastnas
pytestmark = pytest.mark.usefixtures("backend")


# --- gradients ---


@pytest.mark.cpu_only  # emulated kernels are compared with these at every call; gradcheck makes thousands
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("batch", [False, True])
@pytest.mark.parametrize("shared", [True, False])
def test_gradcheck(shared, batch, stride):
    """With `batch`, of the composition: the statistics follow the inputs."""
    kinds = ((3, 1), (3, 1), (5, 2))
    a = make(Case(kinds, 2, 2, 3, 4, stride, shared, raw=True, batch=batch, dtype=torch.float64))
    # As many values above the mean as below, none near it, where the ReLU has its corner.
    magnitude = torch.rand(len(a.inputs), 2, 2, 3, 4, dtype=torch.float64) + 0.5
    a.inputs = list(magnitude * torch.tensor([1, -1, -1, 1]))
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
def test_bn_coeffs(dtype, channels, stride, shared):
    """The gradient of a raw output from that of the normalised one: scale · grad + slope · (y - mean) + offset."""
    a = make(Case(MIXED, channels, count=3, stride=stride, shared=shared, raw=True, dtype=dtype))
    y = OPS.stage(*a.raw())[0]
    grads = gradients_like(y)
    bn_coeffs = torch.randn(7, 4, channels, dtype=acc_dtype(dtype))  # scale, slope, mean, offset
    arguments = (a.inputs, a.mean, a.rstd, a.depthwise, a.pointwise, a.dilations, stride)
    for kind in ("channels_last", "offset"):  # others: test_layouts_of_gradients
        strided = [layout(g, kind) for g in grads], [layout(t, kind) for t in y]
        *gradients, bn_sums = OPS.stage_grad(*strided, bn_coeffs, *arguments)
        effective = []
        for j in range(7):
            scale, slope, mean, offset = bn_coeffs[j].double().view(4, -1, 1, 1)  # [C, 1, 1] each
            effective.append(scale * grads[j].double() + slope * (y[j].double() - mean) + offset)
        b = a.double()
        normal = [
            ((x - b.mean[i, 0].view(-1, 1, 1)) * b.rstd[i, 0].view(-1, 1, 1)).requires_grad_()
            for i, x in enumerate(b.inputs)
        ]
        weights = [t.requires_grad_() for t in (*b.depthwise, *b.pointwise)]
        outputs = stage_reference(normal, b.depthwise, b.pointwise, b.dilations, stride)[0]
        wanted = torch.autograd.grad(outputs, [*normal, *weights], effective)
        sizes = [
            scale.abs() * g.double().abs() + slope.abs() * (t.double().abs() + mean.abs()) + offset.abs()
            for g, t, (scale, slope, mean, offset) in zip(
                grads, y, bn_coeffs.double()[..., None, None].unbind(0), strict=True
            )
        ]
        terms = terms_of(replace(a, mean=None, rstd=None, inputs=[x.detach() for x in normal]), sizes)[2]
        assert_close([*gradients[0], *gradients[1], *gradients[2]], wanted, terms, "gradients")
        expected = [
            torch.stack([g.sum((0, 2, 3)), (g * x).sum((0, 2, 3))]) for g, x in zip(wanted, normal, strict=False)
        ]
        assert bn_sums.shape == (len(normal), 2, channels)
        of_sums = [
            torch.stack([g.sum((0, 2, 3)), (g * x.abs()).sum((0, 2, 3))]) for g, x in zip(terms, normal, strict=False)
        ]
        assert_close([bn_sums], [torch.stack(expected)], [torch.stack(of_sums)], "sums")
    plain = OPS.stage_grad([g.to(dtype) for g in effective], [], None, *arguments)
    assert_close(plain[0], gradients[0], terms[: len(normal)])
    assert OPS.stage_grad(grads, [], None, a.inputs, None, None, *arguments[3:])[3].shape == (0,)


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
    grads, bn_coeffs = gradients_like(outputs), torch.randn(len(outputs), 4, case.channels)
    arguments = (a.inputs, a.mean, a.rstd, a.depthwise, a.pointwise, a.dilations, case.stride)
    torch.library.opcheck(OPS.stage_grad.default, (grads, outputs, bn_coeffs, *arguments))
    torch.library.opcheck(OPS.stage_grad.default, (grads, [], None, *arguments))
    for leaf in a.leaves:
        leaf.requires_grad_()
    torch.library.opcheck(OPS.stage.default, a.raw(statistics=case.raw))


@pytest.mark.parametrize("case", [Case(MIXED), Case(MIXED, 16, shared=False, raw=True, batch=True)], ids=str)
def test_compile_has_no_graph_break(case):
    a = make(case)
    grads = gradients_like(fused(a, a.inputs)[0])
    compiled = torch.compile(lambda a, inputs: fused(a, inputs), fullgraph=True, backend="aot_eager")
    for part in zip(run(compiled, a, grads), run(fused, a, grads), terms_of(a, grads), strict=True):
        assert_close(*part)
