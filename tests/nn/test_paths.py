"""Edge weights, and candidates that are not computed: what is left out counts as if its weight were 0."""

from __future__ import annotations

import copy
from random import Random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fastnas.errors import UserError
from fastnas.nn import Supernet
from fastnas.nn.batch_norm import individual_statistics
from fastnas.nn.fused import cell as fused_cell
from fastnas.spaces.darts import SPACE as DARTS
from fastnas.spaces.encoding import encoding_of

TOLERANCE = {"rtol": 1e-9, "atol": 1e-10}


def network(space: str, partial: int, backend: str = "fused", layers: int = 3) -> Supernet:
    torch.manual_seed(0)
    return Supernet(space, channels=4, layers=layers, partial_channels=partial, backend=backend).double()


def images() -> Tensor:
    return torch.randn(3, 3, 8, 8, dtype=torch.float64)


def tables(net: Supernet, edges: bool = False) -> dict[str, Tensor]:
    shape = net.alphas[net.space.kinds[0]].shape[: 1 if edges else 2]
    return {kind: torch.rand(shape, dtype=torch.float64, requires_grad=True) for kind in net.space.kinds}


def random_mask(net: Supernet, share: float) -> dict[str, Tensor]:
    return {kind: torch.rand(alpha.shape) < share for kind, alpha in net.alphas.items()}


@pytest.mark.parametrize("space", ["darts", "multi-level", "nb201"])
@pytest.mark.parametrize("partial", [1, 2])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("share", [0.1])
def test_inactive_candidates_count_as_weight_zero(space, partial, training, share):
    plain, sparse = network(space, partial, "reference"), network(space, partial)
    x, weights, edges = images(), tables(plain), tables(plain, edges=True)
    active = random_mask(plain, share)
    masked = {kind: (weights[kind] * active[kind]) for kind in weights}
    results = []
    for net, given_weights, chosen in ((plain, masked, None), (sparse, weights, active)):
        net.train(training)
        out = net(x, given_weights, edges, chosen)
        both = [*weights.values(), *edges.values()]
        results.append((out, torch.autograd.grad(out.square().sum(), both, allow_unused=True)))
    (expected, expected_grads), (got, got_grads) = results
    torch.testing.assert_close(got, expected, **TOLERANCE)
    for (kind, mask), g, e in zip(active.items(), got_grads, expected_grads, strict=False):
        zero = torch.zeros_like(weights[kind])
        torch.testing.assert_close(zero if g is None else g * mask, zero if e is None else e * mask, **TOLERANCE)
    for g, e in zip(got_grads[len(active) :], expected_grads[len(active) :], strict=True):
        zero = torch.zeros(len(plain.space.edges), dtype=torch.float64)
        torch.testing.assert_close(zero if g is None else g, zero if e is None else e, **TOLERANCE)


@pytest.mark.usefixtures("backend")
@pytest.mark.emulated_cases(2)
@pytest.mark.parametrize("partial", [1, 4])
def test_edge_weights_scale_whole_edges_and_get_their_gradient(partial):
    nets = network("darts", partial, "reference"), network("darts", partial)
    x, weights, edges = images(), tables(nets[0]), tables(nets[0], edges=True)
    results = []
    for net in nets:
        out = net(x, weights, edges)
        wanted = [*edges.values(), *weights.values(), *net.weight_parameters()]
        results.append([out, *torch.autograd.grad(out.square().sum(), wanted)])
    for got, expected in zip(*results, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-8, atol=1e-9)
    ones = {kind: torch.ones_like(table) for kind, table in edges.items()}
    torch.testing.assert_close(nets[1](x, weights, ones), nets[1](x, weights), **TOLERANCE)


SHRUNKEN = {
    "all": DARTS.candidates,
    "P-DARTS": ("max_pool_3x3", "skip_connect", "sep_conv_3x3", "dil_conv_5x5"),
    "dilated": ("none", "skip_connect", "dil_conv_3x3"),
    "others": ("none", "max_pool_3x3", "avg_pool_3x3", "skip_connect"),
}


def trained_pair(partial: int) -> tuple[Supernet, Supernet]:
    """A reference and a fused network in evaluation mode, with running statistics of their own."""
    plain, fused = network("darts", partial, "reference"), network("darts", partial)
    for _ in range(2):
        plain(2 * images() + 1)
    fused.load_state_dict(plain.state_dict())
    return plain.eval(), fused.eval()


@pytest.mark.usefixtures("backend")
@pytest.mark.emulated_cases(2)
@torch.no_grad()
@pytest.mark.parametrize("partial", [1, 2])
@pytest.mark.parametrize("names", [*SHRUNKEN, "each edge its own"])
def test_evaluation_with_edge_weights_and_shrunken_sets(partial, names, monkeypatch):
    """Where all edges have the same candidates, they are summed on the way."""
    plain, fused = trained_pair(partial)
    x, weights, edges = images(), tables(plain), tables(plain, edges=True)
    if own := names not in SHRUNKEN:
        active = random_mask(plain, 0.5)
    else:
        row = torch.tensor([name in SHRUNKEN[names] for name in DARTS.candidates])
        active = {kind: row.expand(alpha.shape) for kind, alpha in plain.alphas.items()}
    summed = []
    spy = fused_cell.evaluate
    monkeypatch.setattr(fused_cell, "evaluate", lambda *arguments: summed.append(1) or spy(*arguments))
    got, expected = fused(x, weights, edges, active), plain(x, weights, edges, active)
    torch.testing.assert_close(got, expected, **TOLERANCE)
    assert len(summed) == (0 if own else len(fused.cells))
    without = fused(x, weights, None, active)
    assert (without - got).abs().max() > 1e-3
    torch.testing.assert_close(without, plain(x, weights, None, active), **TOLERANCE)


@pytest.mark.usefixtures("backend")
@pytest.mark.emulated_cases(2)
@torch.no_grad()
@pytest.mark.parametrize("partial", [1, 2])
@pytest.mark.parametrize("names", SHRUNKEN)
def test_a_population_of_cells_with_edge_weights(partial, names):
    plain, fused = trained_pair(partial)
    individuals = 3
    row = torch.tensor([name in SHRUNKEN[names] for name in DARTS.candidates])
    for mine, other in zip(fused.cells, plain.cells, strict=True):
        x = [
            torch.randn(
                1, 3, module.conv.in_channels if hasattr(module, "conv") else module.conv_even.in_channels, 8, 8
            )
            for module in (other.preprocess0, other.preprocess1)
        ]
        s0, s1 = (part.double() for part in x)
        if type(other.preprocess0) is not type(other.preprocess1):
            s1 = s1[..., ::2, ::2]
        weights = torch.rand(individuals, 14, 8, dtype=torch.float64)
        edges = torch.rand(individuals, 14, dtype=torch.float64)
        active = row.expand(14, 8)
        got = mine(s0, s1, weights, edges, active)
        for i in range(individuals):
            expected = other(s0[0], s1[0], weights[i], edges[i], active)
            torch.testing.assert_close(got[i], expected, **TOLERANCE)
        torch.testing.assert_close(got, other(s0, s1, weights, edges, active).expand_as(got), **TOLERANCE)


def test_only_the_weights_of_active_candidates_get_gradients():
    net = network("egnas", 1)
    path = encoding_of(net.space).op_weights(encoding_of(net.space).sample(Random(1)))
    net.path_logits(images(), {kind: table.double() for kind, table in path.items()}).sum().backward()
    for cell in net.cells:
        for edge, row in zip(cell.edges, path[cell.kind], strict=True):
            for candidate, weight in zip(edge.candidates, row, strict=True):
                for parameter in candidate.parameters():
                    assert (parameter.grad is not None) == bool(weight)


@settings(max_examples=4, deadline=None)
@given(st.sampled_from(["darts", "egnas", "nb201"]), st.sampled_from(["running", "batch"]), st.integers(0, 2**31))
def test_a_population_of_paths_equals_one_by_one(space, mode, seed):
    net = network(space, 2)
    torch.manual_seed(seed)
    net.train()
    net(images())
    before = copy.deepcopy(net.state_dict())
    paths = [encoding_of(net.space).op_weights(encoding_of(net.space).sample(Random(seed + i))) for i in range(3)]
    paths = [{kind: table.double() for kind, table in path.items()} for path in paths]
    x = images()
    got = net.path_population_logits(x, paths, bn_mode=mode)
    assert all(torch.equal(net.state_dict()[name], value) for name, value in before.items())
    assert net.training
    plain = network(space, 2, "reference")
    plain.load_state_dict(before)
    for path, logits in zip(paths, got, strict=True):
        if mode == "running":
            expected = plain.eval().path_logits(x, path)
        else:
            with individual_statistics(plain.train(), images=len(x)):
                expected = plain.path_logits(x, path)
        torch.testing.assert_close(logits, expected.detach(), rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize(("space", "backend"), [("darts", "fused"), ("nb201", "reference"), ("nb201", "fused")])
@torch.no_grad()
def test_edges_that_a_path_lacks_do_not_add_the_channels_that_bypass_their_candidates(space, backend):
    net, x = network(space, 2, backend), images()
    encoding = encoding_of(net.space)
    columns = [column for column, name in enumerate(net.space.candidates) if name != "none"]
    for seed in range(2):
        path = {kind: table.double() for kind, table in encoding.op_weights(encoding.sample(Random(seed))).items()}
        lacking = {kind: table[:, columns].sum(-1) == 0 for kind, table in path.items()}
        assert any(edges.any() for edges in lacking.values())
        logits = net.path_logits(x, path)
        (of_population,) = net.path_population_logits(x, [path], bn_mode="batch")
        plain = network(space, 2, "reference")
        plain.load_state_dict(net.state_dict())
        for cell in plain.cells:
            for edge, mixed in enumerate(getattr(cell, "edges", ())):
                if lacking[cell.kind][edge]:
                    mixed.register_forward_hook(lambda module, given, output: torch.zeros_like(output))
        expected = plain(x, path)
        torch.testing.assert_close(logits, expected, **TOLERANCE)
        torch.testing.assert_close(of_population, expected, **TOLERANCE)


def test_multi_level_cells_take_the_table_of_their_level():
    net = network("multi-level", 1, layers=8)
    kinds = [cell.kind for cell in net.cells]
    assert kinds == [
        "low_normal", "low_normal", "low_reduce", "mid_normal", "mid_normal", "mid_reduce",
        "high_normal", "high_normal",
    ]  # fmt: skip
    assert [cell.reduction for cell in net.cells] == [kind.endswith("reduce") for kind in kinds]


def test_nb201_is_the_network_of_the_benchmark():
    """Parameters of a cell of 3×3 convolutions only, as the table has it: 1.531546 M."""
    net = Supernet("nb201", channels=16, layers=15, backend="reference")
    stem = sum(p.numel() for p in net.stem.parameters())
    outside = stem + sum(p.numel() for p in [*net.last.parameters(), *net.classifier.parameters()])
    residual = sum(p.numel() for cell in net.cells for name, p in cell.named_parameters() if "edges" not in name)
    convolutions = sum(
        p.numel() + p.shape[0] * 2  # the table counts the affine parameters of the normalisation
        for cell in net.cells
        for name, p in cell.named_parameters()
        if "edges" in name and p.shape[-1] == 3
    )
    assert outside + residual + convolutions == 1_531_546
    assert net(torch.randn(2, 3, 32, 32)).shape == (2, 10)


def test_nb201_has_three_equal_stages():
    with pytest.raises(UserError, match="layers is 8, but the network of NAS-Bench-201 has three equal stages"):
        Supernet("nb201", layers=8)


@pytest.mark.parametrize(("argument", "shape"), [("edge_weights", (3,)), ("active", (14, 2))])
def test_tables_of_another_shape_are_refused(argument, shape):
    net = network("darts", 1)
    with pytest.raises(UserError, match=f"{argument} have shapes"):
        net(images(), **{argument: dict.fromkeys(net.space.kinds, torch.ones(shape))})


def test_another_path_through_a_cell_does_not_look_at_its_modules_again(monkeypatch):
    net, x, random = network("egnas", 1), images(), Random(0)
    paths = [encoding_of(net.space).op_weights(encoding_of(net.space).sample(random)) for _ in range(3)]
    first = [net.path_logits(x, path) for path in paths]
    monkeypatch.setattr("fastnas.nn.cell.match_op", lambda module: pytest.fail("looked at the modules"))
    for path, expected in zip(paths, first, strict=True):
        torch.testing.assert_close(net.path_logits(x, path), expected)
