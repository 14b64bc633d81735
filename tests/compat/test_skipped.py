"""What `accelerate` does not recognise runs unchanged, with the same result, and the report says so."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from foreign import agree, build, images, outcome
from torch import Tensor, nn

from benchmarks.baselines import darts, p_darts
from benchmarks.baselines.darts_operations import DilConv, SepConv, Zero
from fastnas import compat
from fastnas.compat.mixed_operation import MixedOperation
from fastnas.compat.replacement import holder_of
from fastnas.errors import UserError


class Gated(nn.Module):
    """A candidate that the operators do not know."""

    def __init__(self, C: int) -> None:
        super().__init__()
        self.gate = nn.Parameter(torch.randn(C, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.gate) + x.square().mean()


def accelerated(network: nn.Module) -> tuple[nn.Module, nn.Module]:
    plain = copy.deepcopy(network)
    return compat.accelerate(network), plain


def mixed_op(network: Any, cell: int, edge: int) -> Any:
    return network.cells[cell]._ops[edge]


def test_unknown_candidate_hook_and_frozen_parameter() -> None:
    network: Any = build("darts")
    mixed_op(network, 0, 1)._ops[3] = Gated(4).double()
    seen: list[Tensor] = []
    mixed_op(network, 1, 2)._ops[4].register_forward_hook(lambda module, args, output: seen.append(output))
    frozen = mixed_op(network, 2, 4)._ops[5].op[2].weight
    frozen.requires_grad_(False)
    plain: Any = copy.deepcopy(network)
    for hooked in (mixed_op(plain, 1, 2)._ops[4],):
        hooked._forward_hooks.clear()
    compat.accelerate(network)
    seen.clear()
    x = images()
    for training in (True, False):
        results = []
        for each in (network, plain):
            each.train(training)
            output = each(x)
            output.square().sum().backward()
            results.append([output, *(p.grad for p in each.parameters() if p.requires_grad), *each.buffers()])
        agree([t.double() for t in results[0]], [t.double() for t in results[1]])
        assert frozen.grad is None
    assert len(seen) == 2
    left = {entry.path: " ".join(entry.skipped) for entry in compat.report(network).skipped}
    assert "Gated" in left["cells.0._ops.1"]
    assert "Gated" in left["cells.0"]
    assert "SepConv: other code has hooks in it" in left["cells.1._ops.2"]
    assert "hooks" in left["cells.1"]
    assert set(left) == {"cells.0", "cells.0._ops.1", "cells.1", "cells.1._ops.2"}
    table = str(compat.report(network))
    assert "7 of 8 candidates" in table
    assert "whole reduction cell" in table


def test_hooks_that_come_and_go() -> None:
    network, plain = accelerated(build("darts"))
    x = images()
    outcome(network, x)
    outcome(plain, x)
    seen: list[str] = []
    modules = [mixed_op(network, 1, 0), mixed_op(network, 1, 0)._ops[4].op[1], network.cells[1].preprocess0]
    handles = [
        module.register_forward_hook(lambda *_, name=str(index): seen.append(name))
        for index, module in enumerate(modules)
    ]
    agree(outcome(network, x), outcome(plain, x))
    assert sorted(seen) == ["0", "1", "2"]
    for handle in handles:
        handle.remove()
    agree(outcome(network, x), outcome(plain, x))
    assert len(seen) == 3
    grads: list[Tensor] = []
    handle = (
        mixed_op(network, 0, 0)._ops[6].register_full_backward_hook(lambda module, given, out: grads.append(out[0]))
    )
    agree(outcome(network, x), outcome(plain, x))
    assert len(grads) == 1
    handle.remove()


def test_hook_of_the_cell_itself() -> None:
    """It does not keep the cell from being fused."""
    network, plain = accelerated(build("darts"))
    seen: list[Tensor] = []
    network.cells[0].register_forward_hook(lambda module, args, output: seen.append(output))
    x = images()
    agree(outcome(network, x), outcome(plain, x))
    assert len(seen) == 1


class Scaled(SepConv):
    def forward(self, x: Tensor) -> Tensor:
        return 1.1 * super().forward(x)


class Residual(DilConv):
    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        return y + x if y.shape == x.shape else y


class Softmaxed(darts.MixedOp):
    def forward(self, x: Tensor, weights: Tensor) -> Tensor:
        return super().forward(x, torch.softmax(weights, 0))


class Averaged(darts.Cell):
    def forward(self, s0: Tensor, s1: Tensor, weights: Tensor) -> Tensor:
        return super().forward(s0, s1, weights) / 2


class OnlyTraining(darts.MixedOp):
    def forward(self, x: Tensor, weights: Tensor) -> Tensor:
        output = super().forward(x, weights)
        return output if self.training else output * 1.5


def test_forward_that_differs_from_the_structure() -> None:
    network: Any = build("darts")
    op = mixed_op(network, 0, 0)
    op._ops[4] = Scaled(4, 3, 1, 1, affine=False).double()
    op._ops[6] = Residual(4, 3, 1, 2, 2, affine=False).double()
    network, plain = accelerated(network)
    (entry,) = [each for each in compat.report(network).entries if each.path == "cells.0._ops.0"]
    assert entry.fused == "6 of 8 candidates"
    assert [text.split(":")[0] for text in entry.skipped] == ["Scaled", "Residual"]
    x = images()
    agree(outcome(network, x), outcome(plain, x))


@pytest.mark.parametrize("cls", [Softmaxed, OnlyTraining])
def test_mixed_operation_that_differs_from_its_structure(cls: type[darts.MixedOp]) -> None:
    network: Any = build("darts")
    network.cells[0]._ops[2] = cls(4, 1).double()
    network, plain = accelerated(network)
    report = {entry.path: entry for entry in compat.report(network).entries}
    assert "computes something else" in report["cells.0._ops.2"].skipped[0]
    assert report["cells.0"].level == ""
    assert report["cells.1"].level == "cell"
    x = images()
    for training in (True, False):
        agree(outcome(network.train(training), x), outcome(plain.train(training), x))


def test_cell_that_differs_from_its_structure() -> None:
    network: Any = build("darts")
    network.cells[1].__class__ = Averaged
    network, plain = accelerated(network)
    report = {entry.path: entry for entry in compat.report(network).entries}
    assert "computes something else" in report["cells.1"].skipped[0]
    x = images()
    agree(outcome(network, x), outcome(plain, x))


def test_forward_of_an_instance() -> None:
    network, plain = accelerated(build("darts"))
    x = images()
    outcome(network, x), outcome(plain, x)
    for each in (network, plain):
        candidate = mixed_op(each, 0, 0)._ops[4]
        candidate.forward = lambda x, candidate=candidate: 2 * candidate.op(x)
    agree(outcome(network, x), outcome(plain, x))


def test_strict() -> None:
    network: Any = build("darts")
    compat.accelerate(network, strict=True)
    network = build("darts")
    mixed_op(network, 0, 1)._ops[3] = Gated(4).double()
    with pytest.raises(UserError, match="Gated"):
        compat.accelerate(network, strict=True)
    assert compat.report(network).fused == ()
    with pytest.raises(UserError, match="Nothing"):
        compat.accelerate(nn.Linear(2, 3), strict=True)


def test_replaced_and_changed_modules() -> None:
    """Other code changes the network after `accelerate`: as in P-DARTS, as in progressive shrinking."""
    network, plain = accelerated(build("darts"))
    x = images()
    outcome(network, x), outcome(plain, x)
    torch.manual_seed(0)
    for each in (network, plain):
        torch.manual_seed(1)
        mixed_op(each, 0, 0)._ops[4] = DilConv(4, 5, 1, 4, 2, affine=False).double()
        mixed_op(each, 0, 1)._ops[3] = Zero(1)
        mixed_op(each, 1, 0)._ops[7].op[3].eps = 1e-2
    agree(outcome(network, x), outcome(plain, x))
    for each in (network, plain):
        mixed_op(each, 0, 1)._ops[3] = Gated(4).double()
    network.cells[0]._ops[1]._ops[3].load_state_dict(plain.cells[0]._ops[1]._ops[3].state_dict())
    agree(outcome(network, x), outcome(plain, x))


class Scalable(darts.MixedOp):
    def forward(self, x: Tensor, weights: Tensor) -> Tensor:
        return self.scale * super().forward(x, weights)


def test_attributes_that_change_what_is_computed() -> None:
    network: Any = build("darts")
    mixed_op(network, 0, 0).__class__ = Scalable
    mixed_op(network, 0, 0).scale = 1.0
    network, plain = accelerated(network)
    assert compat.report(network).entries[0].level == "cell"
    x = images()
    agree(outcome(network, x), outcome(plain, x))
    for scale in (2.0, 3.0, 1.0):
        for each in (network, plain):
            mixed_op(each, 0, 0).scale = scale
        agree(outcome(network, x), outcome(plain, x))


def test_dropout_behind_skips() -> None:
    """P-DARTS: while it drops, the random numbers are drawn as they would be."""
    on = [[True, True, True, True, False, False, True, False]] * 5
    network: Any = p_darts.Network(4, 5, 3, 2, on, on, p=0.5).double()
    network, plain = accelerated(network)
    x = images()
    for training in (True, True, False):
        results = []
        for each in (network, plain):
            torch.manual_seed(3)
            results.append(outcome(each.train(training), x))
        agree(*results)
    for each in (network, plain):
        each.p = 0.0
        each.update_p()
    agree(outcome(network.train(), x), outcome(plain.train(), x))
    assert isinstance(holder_of(network.cells[0].cell_ops[0]).plan, MixedOperation)


def changes() -> dict[str, Callable[[Any], None]]:
    def some_evaluate(network: Any) -> None:
        mixed_op(network, 0, 0)._ops[4].eval()

    def momentum(network: Any) -> None:
        mixed_op(network, 0, 0)._ops[5].op[3].momentum = None

    def parametrized(network: Any) -> None:
        torch.nn.utils.parametrizations.weight_norm(mixed_op(network, 0, 0)._ops[5].op[2])

    def without_statistics(network: Any) -> None:
        norm = mixed_op(network, 0, 0)._ops[5].op[3]
        norm.running_mean = norm.running_var = norm.num_batches_tracked = None
        norm.track_running_stats = False

    return {f.__name__: f for f in (some_evaluate, momentum, parametrized, without_statistics)}


@pytest.mark.parametrize("name", changes())
@pytest.mark.parametrize("before", [True, False], ids=["before", "after"])
def test_unusual_layers(name: str, before: bool) -> None:
    network = build("darts")
    if before:
        changes()[name](network)
    network, plain = accelerated(network)
    if not before:
        changes()[name](network)
        changes()[name](plain)
    x = images()
    agree(outcome(network, x), outcome(plain, x))
    agree(outcome(network, x), outcome(plain, x))


@pytest.mark.parametrize("as_given", ["list of tensors", "list of floats", "float64", "wider", "keywords"])
def test_weights_of_other_kinds(as_given: str) -> None:
    torch.manual_seed(0)
    op = darts.MixedOp(4, 1)
    plain = copy.deepcopy(op)
    compat.accelerate(op, strict=True)
    x, row = images(3, 8, 4).float(), torch.rand(8)
    results = []
    for each in (op, plain):
        weights: Any = row.clone().requires_grad_()
        leaf = weights
        if as_given == "list of tensors":
            weights = list(leaf.unbind())
        elif as_given == "list of floats":
            weights = row.tolist()
        elif as_given == "float64":
            weights = leaf.double()
        y = each(weights=weights, x=x) if as_given == "keywords" else each(x, weights)
        sources = [*each.parameters(), *([] if as_given == "list of floats" else [leaf])]
        results.append([y, *torch.autograd.grad(y.square().sum(), sources)])
    assert results[0][0].dtype == torch.float32
    agree(*results, bound=1e-3)


def test_errors_are_those_of_the_network() -> None:
    network, plain = accelerated(build("darts"))
    for x in (images(channels=2), images()[0, 0], images().long()):
        with pytest.raises(Exception) as theirs:  # noqa: PT011
            plain(x)
        with pytest.raises(type(theirs.value)):
            network(x)
    cell = network.cells[0]
    with pytest.raises(TypeError):
        cell(images())


def test_odd_sizes() -> None:
    """DARTS' reductions have no padding and fail; a normal cell takes any size."""
    network, plain = accelerated(build("darts"))
    s0, s1 = images(2, 7, 12), images(2, 7, 12)
    weights = torch.rand(5, 8, dtype=torch.float64)
    agree([network.cells[0](s0, s1, weights)], [plain.cells[0](s0, s1, weights)])
    with pytest.raises(RuntimeError):
        plain(images(2, 7))
    with pytest.raises(RuntimeError):
        network(images(2, 7))
