"""Cells on the fused operators against the definition, which is the "reference" backend in float64."""

from __future__ import annotations

import copy
import dataclasses
import io
import random
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastnas.nn import Supernet
from fastnas.nn.batch_norm import BatchNorm, individual_statistics
from fastnas.nn.primitives import ReLUConvNorm, make_primitive
from fastnas.spaces import CELL_KINDS, SPACES, CellSpace

KNOWN = (*SPACES["darts"].candidates, "sep_conv_7x7")
SMALL = {name: dataclasses.replace(space, nodes=2) for name, space in SPACES.items()}
UNUSUAL = [
    CellSpace("seven", ("dil_conv_3x3", "sep_conv_7x7", "none", "sep_conv_3x3"), False, 3),
    CellSpace(
        "twice",
        ("max_pool_3x3", "avg_pool_3x3", "max_pool_3x3", "skip_connect", "dil_conv_5x5", "skip_connect"),
        True,
        2,
    ),
    CellSpace("no pools", ("sep_conv_3x3", "skip_connect", "dil_conv_3x3", "sep_conv_3x3"), True, 3),
    CellSpace("skip", ("none", "skip_connect"), True, 3),
    CellSpace("pools", ("avg_pool_3x3", "max_pool_3x3"), False, 3),
    CellSpace("one", ("dil_conv_5x5",), True, 1),
]
FEW = CellSpace("few", ("none", "max_pool_3x3", "skip_connect", "sep_conv_3x3", "dil_conv_3x3"), True, 2)

Pair = tuple[Supernet, Supernet]


def pair(space: str | CellSpace = SMALL["darts"], *, fallback: bool = False, **options: Any) -> Pair:
    """A fused network, which fails where it computes edge by edge, and the reference, in float64 with the same state.

    α is spread, so that every row matters, and no running statistic has its initial value.
    """
    options = {"channels": 4, "layers": 3, "num_classes": 5} | options
    fused = Supernet(space, backend="fused", **options).double()
    for alpha in fused.alphas.values():
        nn.init.normal_(alpha)
    for norm in norms(fused):
        nn.init.normal_(norm.running_mean, std=0.1)
        nn.init.uniform_(norm.running_var, 0.5, 1.5)
    reference = Supernet(space, backend="reference", **options).double()
    reference.load_state_dict(fused.state_dict(), strict=True)
    if not fallback:
        forbid_fallback(fused)
    return fused, reference


class Fallback(Exception):  # noqa: N818 (not an error of fastnas)
    """An edge of the fused network was computed alone."""


def _fail(*_: Any) -> None:
    raise Fallback


def forbid_fallback(network: Supernet) -> None:
    for cell in network.cells:
        for edge in cell.edges:
            edge.register_forward_pre_hook(_fail)


def norms(network: nn.Module) -> list[BatchNorm]:
    return [module for module in network.modules() if isinstance(module, BatchNorm)]


def images(batch: int = 3, height: int = 16, width: int = 16) -> Tensor:
    return torch.randn(batch, 3, height, width, dtype=torch.float64)


def outcome(network: Supernet, x: Tensor, **options: Any) -> list[Tensor]:
    """The logits, and the gradients of the images and of every parameter: "none" gets one through the softmax.

    Up to two layers there are no normal cells, and none of the gradients of their α.
    """
    x = x.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    network.zero_grad()
    logits = network(x, **options)
    direction = torch.linspace(-1, 1, logits.numel(), dtype=logits.dtype).view_as(logits).sin()
    (logits * direction).sum().backward()
    used = {cell.kind for cell in network.cells}
    tensors = [x, *network.weight_parameters(), *(network.alphas[kind] for kind in sorted(used))]
    assert all(tensor.grad is not None for tensor in tensors)
    return [logits.detach(), *(tensor.grad for tensor in tensors)]


def error(actual: Tensor, expected: Tensor) -> float:
    """The largest difference, relative to the largest value."""
    assert actual.shape == expected.shape
    return ((actual.double() - expected).abs().max() / expected.abs().max().clamp_min(1e-30)).item()


def agree(actual: Sequence[Tensor], expected: Sequence[Tensor], bound: float = 1e-10) -> None:
    """A tensor that is 0 but for rounding, such as the gradient of a lone α, is measured by the largest of all."""
    floor = 1e-3 * max(tensor.abs().max().item() for tensor in expected)
    for index, (a, b) in enumerate(zip(actual, expected, strict=True)):
        assert a.shape == b.shape
        scale = b.abs().max().item()
        assert (a.double() - b).abs().max().item() <= bound * (scale if scale > 1e-12 else floor), f"tensor {index}"


# Numbers


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize(
    ("space", "options", "size"),
    [
        (SPACES["darts"], {}, (2, 12, 12)),
        (SPACES["egnas"], {"channels": 16, "partial_channels": 4}, (2, 16, 16)),
        (SMALL["darts"], {"channels": 24, "partial_channels": 2, "layers": 4}, (1, 15, 13)),
        (SMALL["egnas"], {"channels": 6, "layers": 2}, (5, 9, 9)),
        (SMALL["darts"], {"stem": "imagenet", "partial_channels": 2, "layers": 2}, (3, 65, 72)),
        (SMALL["egnas"], {"stem": "imagenet", "layers": 1}, (3, 64, 57)),
        *((space, {"partial_channels": k}, (3, 15, 13)) for space in UNUSUAL for k in (1, 2)),
    ],
    ids=lambda value: value.name if isinstance(value, CellSpace) else str(value),
)
def test_float64(space: CellSpace, options: dict[str, Any], size: tuple[int, int, int], training: bool) -> None:
    fused, reference = (network.train(training) for network in pair(space, **options))
    x = images(*size)
    expected = outcome(reference, x)
    agree(outcome(fused, x), expected)
    agree(list(fused.buffers()), list(reference.buffers()))
    agree(outcome(fused, x.contiguous(memory_format=torch.channels_last)), expected)


@pytest.mark.parametrize("draw", range(12))
def test_float64_at_random(draw: int, seed: int) -> None:
    rng = random.Random(seed + draw)
    candidates = tuple(rng.choices(KNOWN, k=rng.randint(1, 7))) + (rng.choice(KNOWN[1:]),)
    space = CellSpace("random", candidates, rng.random() < 0.5, rng.randint(1, 4))
    parts = rng.choice([1, 2, 4])
    options = {"channels": 2 * parts * rng.randint(1, 3), "layers": rng.randint(1, 4), "partial_channels": parts}
    # After two reductions at least 4×4 values of an image: over fewer, BatchNorm can amplify rounding a thousandfold.
    x = images(rng.randint(1, 5), rng.randint(13, 20), rng.randint(13, 20))
    print(space, options, x.shape)
    fused, reference = (network.train(draw % 3 > 0) for network in pair(space, **options))
    agree(outcome(fused, x), outcome(reference, x), 1e-9)


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize(
    ("space", "options"),
    [
        (SPACES["darts"], {}),
        (SMALL["darts"], {"channels": 8, "partial_channels": 2, "layers": 4}),
        (SPACES["egnas"], {"channels": 16, "partial_channels": 4}),
        (UNUSUAL[0], {"layers": 2}),
    ],
    ids=["darts", "darts-2", "egnas-4", "seven"],
)
def test_float32(space: CellSpace, options: dict[str, Any], training: bool) -> None:
    """Forward within 1e-5 and gradients within 1e-4 of float64, relative to the largest value of each tensor.

    The last cell still has 4×4 values of each of 4 images. Over fewer, 1/σ of a channel that happens to be nearly
    constant amplifies rounding beyond any such bound, in plain torch as well. Also a value may lie so near to 0 that
    ReLU decides otherwise than in float64, or two so near to each other that a pool does: a draw with such a value may
    miss the bound, but rarely; three in a row do not.
    """
    for _ in range(3):
        fused, reference = (network.train(training) for network in pair(space, **options))
        x = images(4)
        expected = outcome(reference, x)
        logits, *gradients = outcome(fused.float(), x.float())
        forward = error(logits, expected[0])
        backward = max(map(error, gradients, expected[1:]))
        if forward <= 1e-5 and backward <= 1e-4:
            return
    pytest.fail(f"forward {forward:.1e}, gradients {backward:.1e}")


def test_given_weights_and_their_gradient() -> None:
    fused, reference = pair(partial_channels=2)
    x, tables = images(), {kind: torch.randn(5, 8, dtype=torch.float64) for kind in CELL_KINDS}
    results = []
    for network in (fused, reference):
        given = {kind: table.clone().requires_grad_() for kind, table in tables.items()}
        network(x, given).square().sum().backward()
        results.append([given[kind].grad for kind in CELL_KINDS])
    agree(*results)


# Statistics


def train(network: Supernet, steps: Sequence[tuple[Tensor, Tensor]], rate: float = 0.1) -> list[Tensor]:
    """Steps of SGD on all parameters; the losses."""
    optimizer = torch.optim.SGD(network.parameters(), lr=rate, momentum=0.9)
    losses = []
    for x, labels in steps:
        optimizer.zero_grad()
        loss = F.cross_entropy(network(x), labels)
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return losses


def test_running_statistics_follow() -> None:
    fused, reference = pair(partial_channels=2)
    for norm in [*norms(fused), *norms(reference)]:
        norm.momentum = 0.3
    steps = [(images(2), torch.tensor([step % 5, 0])) for step in range(4)]
    agree(train(fused, steps), train(reference, steps))
    before = [buffer.clone() for buffer in fused.buffers()]
    agree(before, list(reference.buffers()))
    assert {norm.num_batches_tracked.item() for norm in norms(fused)} == {4}
    with torch.no_grad():
        agree([fused(steps[0][0])], [reference(steps[0][0])])
    agree(list(fused.buffers()), list(reference.buffers()))
    assert {norm.num_batches_tracked.item() for norm in norms(fused)} == {5}


@pytest.mark.parametrize("each", [2, 4])
def test_individual_statistics_leave_them_alone(each: int) -> None:
    """Several individuals in a batch of four dimensions are computed edge by edge."""
    fused, reference = pair(fallback=each < 4)
    x, before = images(4), [buffer.clone() for buffer in fused.buffers()]
    with individual_statistics(fused, each), individual_statistics(reference, each):
        agree(outcome(fused, x), outcome(reference, x))
    assert all(map(torch.equal, fused.buffers(), before))


def test_evaluation_leaves_them_alone() -> None:
    fused, _ = pair()
    before = [buffer.clone() for buffer in fused.buffers()]
    outcome(fused.eval(), images())
    assert all(map(torch.equal, fused.buffers(), before))


# What the modules may be made to do


def test_state_dicts_are_interchangeable() -> None:
    fused, reference = pair()
    x = images()
    train(fused, [(x, torch.tensor([0, 1, 2]))])
    reference.load_state_dict(fused.state_dict(), strict=True)
    agree(outcome(fused, x), outcome(reference, x))
    train(reference, [(x, torch.tensor([2, 1, 0]))])
    fused.load_state_dict(reference.state_dict(), strict=True)
    agree(outcome(fused, x), outcome(reference, x))


def saved_and_loaded(network: Supernet) -> Supernet:
    file = io.BytesIO()
    torch.save(network, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("copied", [copy.deepcopy, saved_and_loaded])
def test_copies_are_independent(copied: Callable[[Supernet], Supernet]) -> None:
    fused, _ = pair()
    x = images()
    outcome(fused, x)
    twin = copied(fused)
    expected = outcome(twin, x)
    agree(outcome(fused, x), expected, 0)
    assert all(map(torch.equal, fused.buffers(), twin.buffers())), "each has followed the same batches"
    with torch.no_grad():
        for tensor in [*fused.parameters(), *fused.buffers()]:
            tensor.zero_()
    agree(outcome(twin, x), expected, 0)


def _norm(channels: int) -> BatchNorm:
    return BatchNorm(channels, affine=False).double()


def _replace_candidate(network: Supernet) -> None:
    edge = network.cells[1].edges[0]
    edge.candidates[3] = make_primitive("dil_conv_5x5", edge.processed, 2, norm=_norm).double()


def _replace_preprocessing(network: Supernet) -> None:
    cell = network.cells[1]
    conv = cell.preprocess1.conv
    cell.preprocess1 = ReLUConvNorm(conv.in_channels, conv.out_channels, 1, 1, 0, _norm).double()


def _replace_inner_convolution(network: Supernet) -> None:
    stage = network.cells[0].edges[0].candidates[5][1]
    stage.pointwise = nn.Conv2d(4, 4, 1, bias=False).double()


def _replace_inner_norm(network: Supernet) -> None:
    network.cells[0].edges[1].candidates[4][0].norm = nn.InstanceNorm2d(4).double()


def _replace_by_an_unknown(network: Supernet) -> None:
    network.cells[1].edges[1].candidates[0] = nn.Conv2d(8, 8, 3, stride=2, padding=1).double()


def _other_epsilon(network: Supernet) -> None:
    network.cells[0].edges[0].candidates[4][1].norm.eps = 1.0


def _cumulative_average(network: Supernet) -> None:
    for norm in norms(network):
        norm.momentum = None


def _norm_in_evaluation(network: Supernet) -> None:
    network.cells[0].edges[0].candidates[4][1].norm.eval()


def _cell_in_evaluation(network: Supernet) -> None:
    network.cells[1].eval()


def _frozen(network: Supernet) -> None:
    for parameter in [*network.cells[0].parameters(), *network.alphas.parameters()]:
        parameter.requires_grad_(False)


@pytest.mark.parametrize(
    ("change", "fallback"),
    [
        (_replace_candidate, False),
        (_replace_preprocessing, False),
        (_replace_inner_convolution, False),
        (_replace_inner_norm, True),
        (_replace_by_an_unknown, True),
        (_other_epsilon, True),
        (_cumulative_average, True),
        (_norm_in_evaluation, True),
        (_cell_in_evaluation, False),
        (_frozen, False),
    ],
)
def test_a_change_after_the_first_step_is_honoured(
    change: Callable[[Supernet], None], fallback: bool, seed: int
) -> None:
    networks = pair(fallback=fallback)
    x, histories = images(), []
    for network in networks:
        outcome(network, x)
        network.zero_grad()
        torch.manual_seed(seed)
        change(network)
        logits = network(x)
        logits.square().sum().backward()
        gradients = [torch.zeros(1) if p.grad is None else p.grad for p in network.parameters()]
        histories.append([logits, *gradients, *network.buffers(), network.eval()(x)])
    agree(*histories)


def test_unknown_candidates_are_computed_edge_by_edge() -> None:
    space = CellSpace("unknown", ("sep_conv_3x3", "conv_7x1_1x7", "none"), True, 2)
    with pytest.raises(Fallback):
        pair(space)[0](images())
    fused, reference = pair(space, fallback=True)
    x = images()
    agree(outcome(fused, x), outcome(reference, x))


def test_parameters_given_from_outside() -> None:
    networks = pair()
    x, results = images(), []
    for network in networks:
        given = {name: (1.5 * p).detach().requires_grad_() for name, p in network.named_parameters()}
        logits = torch.func.functional_call(network, given, (x,))
        results.append([logits.detach(), *torch.autograd.grad(logits.square().sum(), [*given.values()])])
    agree(*results)


@pytest.mark.parametrize("training", [True, False])
def test_without_gradients(training: bool) -> None:
    """Also: what the first, gradient-free step leaves behind does not hinder those that follow."""
    fused, reference = (network.train(training) for network in pair(partial_channels=2))
    x = images()
    with torch.inference_mode():
        agree([fused(x)], [reference(x)])
    with torch.no_grad():
        agree([fused(x)], [reference(x)])
    agree(outcome(fused, x), outcome(reference, x))


def test_no_images() -> None:
    fused, _ = pair()
    assert fused.eval()(images(0)).shape == (0, 5)


# Precision, compilation, threads


def cosine(a: Sequence[Tensor], b: Sequence[Tensor]) -> float:
    first, second = (torch.cat([t.double().flatten() for t in tensors]) for tensors in (a, b))
    return F.cosine_similarity(first, second, dim=0).item()


@pytest.mark.parametrize("how", ["autocast", "bfloat16"])
@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize(("layers", "bound"), [(1, 0.98), (3, 0.95)])
def test_bfloat16(how: str, parts: int, layers: int, bound: float) -> None:
    """Cell by cell the gradients turn away from those of float32, in plain torch as much as here."""
    fused, reference = (network.float() for network in pair(partial_channels=parts, channels=8, layers=layers))
    x = images(8).float()
    logits, *gradients = outcome(fused, x)
    if how == "bfloat16":
        fused, reference, x = fused.bfloat16(), reference.bfloat16(), x.bfloat16()
    results = []
    for network in (fused, reference):
        with torch.autocast("cpu", torch.bfloat16, enabled=how == "autocast"):
            results.append(outcome(network, x))
    ours, theirs = results
    assert [tensor.dtype for tensor in ours] == [tensor.dtype for tensor in theirs]
    assert ours[0].dtype == torch.bfloat16
    assert all(tensor.isfinite().all() for tensor in ours)
    assert (ours[0] - logits).norm() < 0.05 * logits.norm()
    same = cosine(ours[1:], gradients)
    assert same > (0.99 if layers == 1 and how == "autocast" else bound)
    assert 1 - same < 2 * (1 - cosine(theirs[1:], gradients)) + 0.005


def test_autocast_leaves_float64_alone() -> None:
    fused, reference = pair()
    x = images()
    with torch.autocast("cpu", torch.bfloat16):
        agree(outcome(fused, x), outcome(reference, x))


def test_compiled_network() -> None:
    """One graph, forward and backward; running statistics follow."""
    fused, _ = pair(FEW)
    twin = copy.deepcopy(fused)
    torch.compiler.reset()
    compiled = torch.compile(twin.forward, backend="aot_eager", fullgraph=True)
    x = images(2, 12, 12)
    steps = []
    for network, call in ((fused, fused), (twin, compiled)):
        logits = call(x)
        logits.square().sum().backward()
        steps.append([logits, *(p.grad for p in network.parameters()), *network.buffers()])
    agree(*steps)


@pytest.mark.parametrize("training", [True, False])
def test_compiled_cell(training: bool) -> None:
    fused, _ = pair(FEW, partial_channels=2)
    cell = fused.cells[1].train(training)
    torch.compiler.reset()
    compiled = torch.compile(copy.deepcopy(cell), backend="aot_eager", fullgraph=True)
    states = [torch.randn(2, channels, 6, 6, dtype=torch.float64, requires_grad=True) for channels in (12, 8)]
    table = fused.op_weights()["reduce"].detach()
    results = []
    for call in (cell, compiled):
        output = call(*states, table)
        results.append([output, *torch.autograd.grad(output.square().sum(), states)])
    with torch.no_grad():
        results[0].append(cell(*states, table))
        results[1].append(compiled(*states, table))
    agree(*results)


@pytest.mark.parametrize(("space", "parts"), [("darts", 1), ("egnas", 2)])
def test_threads_do_not_change_a_bit(space: str, parts: int) -> None:
    """Of the cells: plain torch computes the stem and the classifier."""
    fused, _ = pair(SMALL[space], partial_channels=parts)
    cells = fused.float().cells
    state = torch.randn(5, 12, 16, 16)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            twin = copy.deepcopy(cells)
            s0 = s1 = first = state.clone().requires_grad_()
            tables = {kind: table.detach().requires_grad_() for kind, table in fused.op_weights().items()}
            for cell in twin:
                s0, s1 = s1, cell(s0, s1, tables[cell.kind])
            s1.square().sum().backward()
            gradients = [t.grad for t in (first, *tables.values(), *twin.parameters())]
            results.append([s1, *gradients, *twin.buffers()])
    finally:
        torch.set_num_threads(before)
    for others in results[1:]:
        assert all(map(torch.equal, results[0], others))


# Training


def test_loss_curves_differ_less_than_those_of_two_seeds() -> None:
    """50 steps in float32: rounding grows, but the curve of the reference with another seed is farther away."""
    generator = torch.Generator().manual_seed(0)
    prototypes = torch.randn(5, 3, 8, 8, generator=generator)
    labels = torch.randint(5, (50, 16), generator=generator)
    steps = [(prototypes[row] + torch.randn(16, 3, 8, 8, generator=generator), row) for row in labels]
    curves = []
    for seed, backend in ((0, "fused"), (0, "reference"), (1, "reference")):
        torch.manual_seed(seed)
        network = Supernet(FEW, channels=4, layers=2, num_classes=5, backend=backend)
        curves.append(torch.stack(train(network, steps, rate=0.02)))
    fused, same, other = curves
    assert fused[-10:].mean() < 0.7 * fused[:10].mean(), "it learns"
    assert (fused - same).abs().mean() < 0.5 * (other - same).abs().mean()


# Populations


@pytest.mark.parametrize("mode", ["running", "batch"])
@pytest.mark.parametrize(
    ("space", "options"),
    [
        (SMALL["darts"], {"layers": 1}),
        (SPACES["egnas"], {"layers": 2, "partial_channels": 4, "channels": 8}),
        (UNUSUAL[1], {"partial_channels": 2}),
        (UNUSUAL[3], {}),
    ],
    ids=["darts-1", "egnas-4", "twice-2", "skip"],
)
def test_population(space: CellSpace, options: dict[str, Any], mode: Any) -> None:
    fused, reference = pair(space, **options)
    x, individuals = images(), 5
    shape = (individuals, *fused.alphas["normal"].shape)
    alphas = {kind: torch.randn(shape, dtype=torch.float64) for kind in CELL_KINDS}
    expected = reference.population_logits(x, alphas, bn_mode=mode)
    for chunk in (1, 2, 3, individuals, "auto"):
        agree([fused.population_logits(x, alphas, chunk, mode)], [expected])
    one = {kind: table[:1] for kind, table in alphas.items()}
    agree([fused.population_logits(x, one, bn_mode=mode)], [expected[:1]])
    fused.float()
    alphas = {kind: table.float() for kind, table in alphas.items()}
    single = fused.population_logits(x.float(), alphas, 1, mode)
    for chunk in (2, 3, individuals):
        assert error(fused.population_logits(x.float(), alphas, chunk, mode), single.double()) <= 1e-6
