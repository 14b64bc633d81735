"""The gradient strategies, against numbers worked out by hand."""

from __future__ import annotations

import json
import math
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fastnas.cli.configuration import parse_search
from fastnas.errors import UserError
from fastnas.nn.primitives import make_primitive
from fastnas.search import prepare
from fastnas.spaces import find
from fastnas.strategies import create
from fastnas.strategies.darts import second_order_gradients
from fastnas.strategies.darts_plus import DARTSPlus
from fastnas.strategies.enas import restarted
from fastnas.strategies.gdas import GDAS
from fastnas.strategies.gradient import GradientStrategy, gradients
from fastnas.strategies.gumbel import gumbel_softmax, straight_through
from fastnas.strategies.multi_level import architecture_entropy, begin_equal
from fastnas.strategies.p_darts import limit_skips, prune, skip_dropout, strongest_pairs
from fastnas.strategies.pc_darts import edge_softmax
from fastnas.strategies.snas import SNAS, candidate_costs, resource
from fastnas.world import ALONE

DARTS_SPACE = find("darts")
SKIP = DARTS_SPACE.candidates.index("skip_connect")
SEP = DARTS_SPACE.candidates.index("sep_conv_3x3")


# --- what all share ---


def test_the_loss_of_alpha_is_logged_as_the_mean_of_an_epoch_term_by_term_and_survives_a_checkpoint():
    logged = []
    alphas = {kind: torch.zeros(14, 8) for kind in find("multi-level").kinds}
    log = SimpleNamespace(write=lambda event, **fields: logged.append({"event": event, **fields}))
    network = SimpleNamespace(alphas=alphas)
    search = SimpleNamespace(network=network, log=log, epoch=3, device=torch.device("cpu"), world=ALONE)
    labels = torch.tensor([0])

    def begun() -> GradientStrategy:
        strategy = create("multi-level", gamma=0.5)
        strategy._search, strategy._losses, strategy._losses_steps = search, {}, 0
        strategy._optimize(search)
        return strategy

    strategy = begun()
    strategy.after_epoch(search)
    assert logged == []  # α has not moved
    entropy = 0.5 * 70 * math.log(8)
    loss = strategy.logged_alpha_loss(search, torch.tensor([[0.0, 0.0]]), labels)
    assert loss.item() == pytest.approx(math.log(2) + entropy)
    continued = begun()
    continued.load_state_dict(strategy.state_dict())
    continued.logged_alpha_loss(search, torch.tensor([[math.log(3), 0.0]]), labels)
    continued.after_epoch(search)
    (event,) = logged
    mean = (math.log(2) + math.log(4 / 3)) / 2
    assert event["terms"] == {"L_val": pytest.approx(mean, abs=1e-6), "γ·L_ent": pytest.approx(entropy, rel=1e-6)}
    assert (event["event"], event["epoch"], event["loss"]) == ("alpha", 3, pytest.approx(mean + entropy))
    continued.after_epoch(search)
    assert len(logged) == 1


@pytest.mark.parametrize("flags", ["--strategy darts --order 2", "--strategy pc-darts --warm-up 1"])
def test_every_epoch_in_which_alpha_moves_logs_its_loss(flags: str, tmp_path: Path):
    images = "--data digits --limit 40 --batch-size 10 --image-size 8 --channels 4 --layers 3 --epochs 2 --device cpu"
    arguments = [*flags.split(), *images.split(), "--out", str(tmp_path / "run")]
    search = prepare(parse_search(arguments, "test", ""))
    search.run()
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    losses = [event for event in map(json.loads, lines) if event["event"] == "alpha"]
    assert [event["epoch"] for event in losses] == ([1] if "warm-up" in flags else [0, 1])
    assert all(0 < event["loss"] < 30 for event in losses)


# --- DARTS ---

numbers = st.floats(-3, 3).map(lambda x: round(x, 3))


def quadratic(a: float, w: float) -> tuple[Tensor, Tensor]:
    alpha, weight = (torch.tensor([x], dtype=torch.float64, requires_grad=True) for x in (a, w))
    return alpha, weight


@settings(deadline=None)
@given(numbers, numbers, st.floats(0.01, 1))
def test_second_order_equals_the_closed_form_of_the_quadratic_toy(a, w, rate):
    """L_val = ½(w-α)², L_train = ½(w-2α)²: w' = w - ξ(w-2α), dα = -(w'-α) + 2ξ(w'-α)."""
    alpha, weight = quadratic(a, w)
    moved = w - rate * (w - 2 * a)
    if abs(moved - a) < 1e-3:
        return  # the direction of the finite difference vanishes
    (found,) = second_order_gradients(
        [alpha],
        [weight],
        [None],
        lambda ws: 0.5 * (ws[0] - 2 * alpha).square().sum(),
        lambda ws: 0.5 * (ws[0] - alpha).square().sum(),
        rate=rate,
        momentum=0.9,
        weight_decay=0.0,
    )
    assert found.item() == pytest.approx(-(moved - a) + 2 * rate * (moved - a), abs=1e-9)
    assert weight.item() == w


def test_second_order_looks_ahead_with_momentum_and_weight_decay():
    alpha, weight = quadratic(0.3, 1.2)
    (found,) = second_order_gradients(
        [alpha],
        [weight],
        [torch.tensor([0.5], dtype=torch.float64)],
        lambda ws: 0.5 * (ws[0] - 2 * alpha).square().sum(),
        lambda ws: 0.5 * (ws[0] - alpha).square().sum(),
        rate=0.1,
        momentum=0.9,
        weight_decay=0.01,
    )
    moved = 1.2 - 0.1 * (0.9 * 0.5 + (1.2 - 0.6) + 0.01 * 1.2)
    assert found.item() == pytest.approx(-(moved - 0.3) + 2 * 0.1 * (moved - 0.3), abs=1e-9)


def test_first_order_is_the_gradient_at_the_weights_as_they_are():
    alpha, weight = quadratic(0.3, 1.2)
    loss = 0.5 * (weight - alpha).square().sum()
    assert gradients(loss, [alpha])[0].item() == pytest.approx(-(1.2 - 0.3))
    assert gradients(0 * loss, [torch.nn.Parameter(torch.ones(2))])[0].tolist() == [0.0, 0.0]


# --- PC-DARTS ---


def test_edge_weights_sum_to_one_over_the_edges_of_each_node():
    weights = edge_softmax(torch.randn(14), DARTS_SPACE)
    sums = [weights[DARTS_SPACE.incoming(node)].sum().item() for node in range(2, 6)]
    assert [len(DARTS_SPACE.incoming(node)) for node in range(2, 6)] == [2, 3, 4, 5]
    assert sums == pytest.approx([1.0] * 4)


def test_pc_darts_derives_by_the_product_of_both_softmaxes():
    from fastnas.nn import Supernet

    network = Supernet("darts", channels=4, layers=1)
    strategy = create("pc-darts")
    search = SimpleNamespace(network=network, seed_for=lambda *key: 0, device=torch.device("cpu"))
    strategy.extra_parameters(search)
    with torch.no_grad():
        for alpha in network.alphas.values():
            alpha.zero_()
            alpha[2:5, SEP] = torch.tensor([3.0, 2.0, 1.0])  # α prefers sources 0 and 1 of node 3
        plain = network.genotype()
        strategy.betas["normal"][2:5] = torch.tensor([-4.0, 0.0, 4.0])  # β sources 2 and 1
        for kind in network.alphas:
            product = strategy.mean_op_weights(search)[kind]
            alone = torch.softmax(network.alphas[kind], -1) * edge_softmax(strategy.betas[kind], network.space)[:, None]
            torch.testing.assert_close(product, alone)
    assert {source for _, source in plain.pairs("normal")[1]} == {0, 1}
    assert {source for _, source in strategy.genotype(search).pairs("normal")[1]} == {1, 2}


# --- P-DARTS ---


def test_dropout_of_skips_follows_the_published_numbers():
    values = [skip_dropout(0.4, epoch, epochs=25, warm_up=10) for epoch in (0, 9, 10, 24)]
    assert values == pytest.approx([0.384, 0.24, 0.4, 0.02432], abs=1e-5)


def test_pruning_takes_the_least_probable_of_those_that_are_left():
    probabilities = torch.tensor([[0.4, 0.1, 0.3, 0.2], [0.0, 0.5, 0.2, 0.3]])
    active = torch.tensor([[True, True, True, True], [False, True, True, True]])
    assert prune(probabilities, active, 1).tolist() == [[True, False, True, True], [False, True, False, True]]
    assert prune(probabilities, active, 2).tolist() == [[True, False, True, False], [False, True, False, False]]


def test_ties_of_edges_go_to_the_higher_one_and_pairs_stand_in_the_order_of_sources():
    pairs = strongest_pairs(torch.full((14, 8), 1 / 8), DARTS_SPACE)
    assert [source for _, source in pairs] == [0, 1, 1, 2, 2, 3, 3, 4]
    assert {name for name, _ in pairs} == {"max_pool_3x3"}  # the first but none


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**31), st.integers(0, 4))
def test_a_normal_cell_ends_with_at_most_so_many_skips(seed, most):
    generator = torch.Generator().manual_seed(seed)
    active = torch.ones(14, 8, dtype=torch.bool)
    logits = torch.randn(14, 8, generator=generator)
    logits[:, SKIP] += 2  # as when skip connections take over
    for count in (3, 2):
        active = prune(torch.softmax(logits.masked_fill(~active, -torch.inf), -1), active, count)
    table = torch.softmax(logits.masked_fill(~active, -torch.inf), -1).double()
    pairs = limit_skips(table, DARTS_SPACE, most)
    assert sum(name == "skip_connect" for name, _ in pairs) <= most
    for (name, source), place in zip(pairs, range(8), strict=True):
        edge = DARTS_SPACE.incoming(place // 2 + 2).start + source
        assert active[edge, DARTS_SPACE.candidates.index(name)]


def test_the_least_probable_skip_goes_first():
    table = torch.full((14, 8), 0.01, dtype=torch.float64)
    table[:, SEP] = 0.1
    table[[0, 1, 2], SKIP] = torch.tensor([0.9, 0.5, 0.7], dtype=torch.float64)
    assert [pair for pair in limit_skips(table, DARTS_SPACE, 2) if pair[0] == "skip_connect"] == [
        ("skip_connect", 0),
        ("skip_connect", 0),
    ]
    assert limit_skips(table, DARTS_SPACE, 2)[1] == ("sep_conv_3x3", 1)
    assert limit_skips(table, DARTS_SPACE, 8) == strongest_pairs(table, DARTS_SPACE)


def test_stages_shrink_the_candidates_and_grow_the_network(tmp_path):
    from test_every_strategy import make

    search = make(tmp_path / "run", "p-darts")
    sizes = []
    before = search.strategy.before_epoch

    def watch(s) -> None:
        before(s)
        table = search.strategy.mean_op_weights(s)["normal"]
        sizes.append((len(search.network.cells), (table > 0).sum(1).unique().tolist(), search.strategy._dropouts != []))
        rate, full = search.weights.rate(*search.strategy.schedule(s)), search.weights.learning_rate
        assert rate == full  # one epoch a stage: every stage begins anew

    search.strategy.before_epoch = watch
    search.run()
    assert sizes == [(3, [8], True), (4, [5], True), (5, [3], True)]


# --- SNAS, GDAS ---


def test_the_temperature_of_snas_is_one_step_down_in_the_first_epoch():
    """The released scheduler steps when it is made, and again before the first epoch."""
    strategy = SNAS()
    taus = [strategy.temperature_at(epoch, 150) for epoch in (0, 74, 149)]
    assert taus == pytest.approx([0.99353, 0.515, 0.03], abs=5e-6)


def test_the_temperature_of_gdas_is_that_of_the_last_epoch_in_the_last_epoch():
    strategy = GDAS()
    taus = [strategy.temperature_at(epoch, 250) for epoch in (0, 1, 249)]
    assert taus == pytest.approx([10.0, 10 - 9.9 / 249, 0.1])
    assert strategy.temperature_at(0, 1) == 10


def test_the_recipe_of_gdas_is_that_of_its_search_in_the_space_of_darts():
    options = parse_search(["--strategy", "gdas", "--data", "digits"], "test", "")
    assert (options.weights.weight_decay, options.weights.epochs, options.weights.nesterov) == (5e-4, 250, True)
    assert (options.data.batch_size, options.network.layers, options.network.channels) == (256, 6, 16)


def test_the_weights_of_gdas_move_before_alpha(tmp_path):
    from test_every_strategy import make

    search = make(tmp_path / "run", "gdas", "--epochs", "1", "--limit", "32", "--batch-size", "8")
    moved = []

    def watch(name: str, step) -> None:
        def moving(*arguments, **keywords):
            moved.append(name)
            return step(*arguments, **keywords)

        return moving

    search.optimizer.step = watch("weights", search.optimizer.step)
    search.strategy.alpha_optimizer.step = watch("alpha", search.strategy.alpha_optimizer.step)
    search.run()
    assert moved == ["weights", "alpha"]  # of the one step


@pytest.mark.parametrize(("name", "rule"), [("gdas", "pairs"), ("snas", "edges"), ("darts", "top2")])
def test_cells_are_derived_by_the_rule_of_the_strategy(name, rule):
    alphas = {kind: torch.nn.Parameter(torch.randn(14, 8)) for kind in ("normal", "reduce")}
    tables = {kind: torch.softmax(alpha, -1) for kind, alpha in alphas.items()}
    network = SimpleNamespace(space=DARTS_SPACE, alphas=alphas, op_weights=lambda: tables)
    strategy = create(name)
    search = SimpleNamespace(network=network)
    assert strategy.derive == rule
    assert strategy.genotype(search) == DARTS_SPACE.derive(tables, rule)
    others = {DARTS_SPACE.derive(tables, other) for other in ("top2", "pairs", "edges")} - {strategy.genotype(search)}
    assert others
    with pytest.raises(UserError, match="derive is 'edge', expected top2, pairs or edges"):
        create(name, derive="edge")


def snas_table(stride: int, channels: int = 16, side: int = 32) -> dict[str, list[float]]:
    """Size, operations, memory access of every candidate, by the formulas of the released program; y is the height of
    the output."""
    c, y = channels, side // stride
    area = y * y
    halved = stride == 2
    sep, dil = ({k: copies * c * (k * k + c) for k in (3, 5)} for copies in (2, 1))
    skip = [c * c, c * c * area, 2 * area * (4 * c + c // 2) + c * c] if halved else [0, 0, 2 * c * area]
    pool = [0, 9 * c * area, (5 if halved else 2) * c * area]
    table = {"none": [0, 0, 0], "max_pool_3x3": pool, "avg_pool_3x3": pool, "skip_connect": skip}
    for k in (3, 5):
        table[f"sep_conv_{k}x{k}"] = [sep[k], sep[k] * area, (11 if halved else 8) * c * area + sep[k]]
        table[f"dil_conv_{k}x{k}"] = [dil[k], dil[k] * area, (7 if halved else 4) * c * area + dil[k]]
    return table


@pytest.mark.parametrize("stride", [1, 2])
def test_the_cost_table_of_snas_is_that_of_the_released_program(stride):
    norm = partial(torch.nn.BatchNorm2d, affine=False)
    for name, expected in snas_table(stride).items():
        candidate = make_primitive(name, 16, stride, norm=norm, pool_norm=True)
        assert candidate_costs(candidate, 16, (32, 32)) == expected, name
    assert snas_table(1)["sep_conv_3x3"] == [800, 819_200, 8 * 16 * 1024 + 800]  # worked out by hand
    assert SNAS().resource_weight == 1.5e-3  # of the released commands


def test_snas_knows_the_size_of_the_maps_of_every_cell(tmp_path):
    from test_every_strategy import make

    search = make(tmp_path / "run", "snas")  # 4 channels at 8×8, reductions in cells 1 and 2
    columns = {name: column for column, name in enumerate(DARTS_SPACE.candidates)}
    (normal,), (first, second) = search.strategy._costs["normal"], search.strategy._costs["reduce"]
    for costs, edge, stride, channels, side in (
        (normal, 0, 1, 4, 8),
        (first, 0, 2, 8, 8),
        (first, 4, 1, 8, 4),  # from node 2
        (second, 0, 2, 16, 4),
    ):
        for name, expected in snas_table(stride, channels, side).items():
            assert costs[:, edge, columns[name]].tolist() == expected, (edge, name)


def test_a_relaxed_choice_chooses_by_the_softmax_of_its_logits():
    logits = torch.log(torch.tensor([0.1, 0.2, 0.7]))
    draws = gumbel_softmax(logits.expand(20000, 3), 0.5, torch.Generator().manual_seed(0))
    torch.testing.assert_close(draws.sum(-1), torch.ones(20000))
    frequency = torch.bincount(draws.argmax(-1), minlength=3) / 20000
    torch.testing.assert_close(frequency, torch.tensor([0.1, 0.2, 0.7]), atol=0.02, rtol=0)
    cold = gumbel_softmax(logits.expand(200, 3), 1e-3, torch.Generator().manual_seed(0))
    assert cold.isfinite().all()
    assert (cold.max(-1).values > 0.99).float().mean() > 0.95


def test_a_hard_choice_has_the_gradient_of_the_soft_one():
    logits = torch.randn(4, 5, requires_grad=True, dtype=torch.float64)
    factor = torch.randn(4, 5, dtype=torch.float64)
    soft = torch.softmax(logits, -1)
    hard = straight_through(soft)
    assert hard.detach().round().sum(-1).tolist() == [1.0] * 4
    got, expected = (torch.autograd.grad((t * factor).sum(), logits, retain_graph=True)[0] for t in (hard, soft))
    torch.testing.assert_close(got, expected)


def test_expected_resources_of_a_hand_made_cell():
    costs = torch.tensor([[[0.0, 10.0], [0.0, 20.0]], [[0.0, 1000.0], [0.0, 4000.0]], [[0.0, 50.0], [0.0, 100.0]]])
    choice = torch.tensor([[0.0, 1.0], [0.5, 0.5]])
    expected = sum(math.log(v) for v in (10, 10, 1000, 2000, 50, 50)) / 3
    assert resource(choice, costs, log=True).item() == pytest.approx(expected)
    assert resource(choice, costs, log=False).item() == pytest.approx(0.43 * (2 * 20 + 3000 / 4000 + 100 / 100))
    nothing = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    assert resource(nothing, costs, log=True).item() == 0  # each cost counts as 1 at least


def test_snas_logs_both_terms_of_the_loss_that_alpha_minimises(tmp_path):
    from test_every_strategy import make

    def events(name: str, *flags: str) -> dict[str, dict]:
        one_step = ("--limit", "20", "--batch-size", "10", "--epochs", "1")
        search = make(tmp_path / name, "snas", *one_step, *flags)
        choice = search.strategy.arch_weights(search, 0)["op_weights"]
        costs = search.strategy._costs
        of_kinds = [
            sum(resource(choice[kind], cell, log=True).item() for cell in cells) / len(cells)
            for kind, cells in costs.items()
        ]
        search.run()
        lines = (tmp_path / name / "metrics.jsonl").read_text().splitlines()
        return {"R": sum(of_kinds)} | {event["event"]: event for event in map(json.loads, lines)}

    found = events("log")
    assert found["alpha"]["terms"] == {
        "L_train": pytest.approx(found["epoch"]["train_loss"], rel=1e-6),
        "λ·R": pytest.approx(1.5e-3 * found["R"], rel=1e-5),
    }
    assert found["alpha"]["loss"] == pytest.approx(sum(found["alpha"]["terms"].values()))
    assert found["R"] > 1
    without = events("none", "--resource", "none")["alpha"]
    assert without["loss"] == pytest.approx(found["epoch"]["train_loss"], rel=1e-6)
    assert "terms" not in without


def test_expensive_candidates_lose_weight_by_the_resource_term(tmp_path):
    from test_every_strategy import make

    search = make(tmp_path / "run", "snas", "--resource-weight", "100", "--alpha-learning-rate", "0.1")
    search.run()
    tables = search.network.op_weights()
    names = search.network.space.candidates
    mean = dict(zip(names, torch.cat(list(tables.values())).mean(0).tolist(), strict=True))
    assert mean["none"] > 1.1 * mean["sep_conv_5x5"]


# --- multi-level ---


def test_levels_begin_equal_where_that_is_asked_for_as_a_search_that_shares_alpha(tmp_path: Path):
    from test_every_strategy import make

    def begun(space: str, *more: str) -> dict[str, Tensor]:
        arguments = ("--space", space, "--gamma", "0", *more)
        return make(tmp_path / f"{space}{len(more)}", "multi-level", *arguments).network.state_dict()

    shared, levels, own = begun("darts"), begun("multi-level", "--equal-start"), begun("multi-level")
    for kind in find("multi-level").kinds:
        torch.testing.assert_close(levels[f"alphas.{kind}"], shared[f"alphas.{kind[-6:].strip('_')}"], rtol=0, atol=0)
    assert not torch.equal(own["alphas.low_normal"], own["alphas.high_normal"])
    weights = [name for name in shared if not name.startswith("alphas")]
    assert all(torch.equal(shared[name], levels[name]) for name in weights)


def test_equal_tables_are_copies_that_part_ways():
    alphas = {kind: torch.full((2, 3), float(i)) for i, kind in enumerate(find("multi-level").kinds)}
    begin_equal(alphas)
    assert [table[0, 0].item() for table in alphas.values()] == [0, 1, 0, 1, 0]
    alphas["low_normal"] += 1
    assert alphas["high_normal"][0, 0] == 0


def test_the_entropy_of_five_uniform_tables_is_70_ln_8():
    uniform = {kind: torch.zeros(14, 8) for kind in find("multi-level").kinds}
    assert architecture_entropy(uniform, "sum").item() == pytest.approx(145.56, abs=5e-3)
    assert architecture_entropy({"normal": torch.zeros(14, 8)}, "sum").item() == pytest.approx(29.11, abs=5e-3)
    assert architecture_entropy(uniform, "mean_edge").item() == pytest.approx(math.log(8))


def test_the_gradient_of_the_entropy_is_that_of_the_formula():
    alpha = torch.randn(3, 8, dtype=torch.float64, requires_grad=True)
    entropy = architecture_entropy({"normal": alpha}, "sum")
    p = torch.softmax(alpha, -1)
    h = -(p * p.log()).sum(-1, keepdim=True)
    torch.testing.assert_close(torch.autograd.grad(entropy, alpha)[0], (-p * (p.log() + h)).detach())
    decided = torch.tensor([[200.0, 0.0, 0.0]], requires_grad=True)
    assert torch.autograd.grad(architecture_entropy({"normal": decided}, "sum"), decided)[0].isfinite().all()


def test_the_entropy_alone_ends_in_one_hot_rows():
    alpha = (1e-3 * torch.randn(14, 8)).requires_grad_()
    optimizer = torch.optim.Adam([alpha], lr=0.1)
    for _ in range(300):
        optimizer.zero_grad()
        architecture_entropy({"normal": alpha}, "sum").backward()
        optimizer.step()
    assert torch.softmax(alpha, -1).max(-1).values.min() > 0.99


def test_a_large_gamma_lowers_the_entropy_of_five_tables(tmp_path):
    from test_every_strategy import make

    entropies = {}
    for gamma in ("0", "100"):
        search = make(tmp_path / gamma, "multi-level", "--gamma", gamma, "--alpha-learning-rate", "0.5")
        outcome = search.run()
        entropies[gamma] = architecture_entropy(dict(search.network.alphas), "mean_edge").item()
    assert entropies["100"] < entropies["0"] - 0.2
    assert len(outcome.genotype.levels) == 5
    assert outcome.genotype.kinds == find("multi-level").kinds


# --- DARTS+ ---


class Scripted(GradientStrategy):
    """Gives one genotype after the other."""

    name = "scripted"

    def __init__(self, skips: list[int]) -> None:
        super().__init__()
        self.skips = iter(skips)

    def genotype(self, search):
        return SimpleNamespace(skip_count=lambda kind, n=self.now: n if kind == "normal" else 9, skips=self.now)

    def after_epoch(self, search):
        self.now = next(self.skips)

    def mean_op_weights(self, search):
        return {"normal": search.tables[search.epoch]}


def scripted(strategy: DARTSPlus, **fields) -> SimpleNamespace:
    log = SimpleNamespace(write=lambda *a, **k: None)
    return SimpleNamespace(log=log, network=SimpleNamespace(space=DARTS_SPACE), **fields)


@pytest.mark.parametrize(("rollback", "expected"), [(True, 1), (False, 2)])
def test_early_stopping_at_two_skips_rolls_back(rollback, expected):
    strategy = DARTSPlus(rollback=rollback)
    strategy.inner = Scripted([0, 1, 2, 5])
    for epoch in range(3):
        search = scripted(strategy, epoch=epoch)
        strategy.after_epoch(search)
        assert strategy.finished(search) == (epoch == 2)
    assert strategy.genotype(search).skips == expected


def test_early_stopping_by_a_ranking_that_stays():
    strategy = DARTSPlus(rule="ranking", patience=2)
    strategy.inner = Scripted([0] * 9)
    convolutions = [i for i, name in enumerate(DARTS_SPACE.candidates) if "conv" in name]
    first, second = torch.rand(14, 8), torch.rand(14, 8)
    second[0, convolutions] = first[0, convolutions].flip(0)  # another order of one edge
    third = second.clone()
    third[:, 0] = 5.0  # none is not learnable
    tables = [first, second, third, third]
    for epoch, stops in enumerate([False, False, False, True]):
        search = scripted(strategy, epoch=epoch, tables=tables)
        strategy.after_epoch(search)
        assert strategy.finished(search) == stops


def test_early_stopping_ends_a_search_and_stays_ended(tmp_path):
    from test_every_strategy import events, make

    flags = ("--base", "darts:order=1", "--skips", "1", "--epochs", "6")
    search = make(tmp_path / "run", "darts-plus", *flags)
    with torch.no_grad():
        search.network.alphas["normal"][:, SKIP] = 1.0
    outcome = search.run()
    assert (outcome.status, outcome.epoch) == ("finished", 1)
    assert "stopped" in [event["event"] for event in events(search.directory)]
    assert make(tmp_path / "run", "darts-plus").run().epoch == 1


def test_early_stopping_resumes_in_the_space_of_nas_bench_201(tmp_path):
    from test_every_strategy import make

    flags = ("--base", "darts:order=1", "--space", "nb201", "--skips", "20", "--stop-after", "1")
    first = make(tmp_path / "run", "darts-plus", *flags).run()
    search = make(tmp_path / "run", "darts-plus")
    assert search.strategy.last == first.genotype
    assert search.run().status == "finished"


def test_only_gradient_strategies_can_be_stopped_early():
    with pytest.raises(UserError, match="'random' is not one of them"):
        DARTSPlus(base="random")


# --- options ---


def test_enas_restarts_its_cosine():
    assert [restarted(epoch, 10) for epoch in (0, 9, 10, 29, 30, 69, 70)] == [
        (0, 10), (9, 10), (0, 20), (19, 20), (0, 40), (39, 40), (0, 80),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("darts", {"order": 3}, "order is 3, expected 1 or 2"),
        ("darts", {"alpha_beta1": 1.0}, "alpha_beta1 is 1.0"),
        ("pc-darts", {"warm_up": -1}, "warm_up is -1"),
        ("p-darts", {"dropout_2": 1.0}, "dropout_2 is 1.0"),
        ("gdas", {"temperature": 0.01}, "expected temperature_min"),
        ("snas", {"resource": "some"}, "resource is 'some'"),
        ("multi-level", {"gamma": -1.0}, "gamma is -1.0"),
        ("multi-level", {"reduction": "mean"}, "reduction is 'mean'"),
        ("darts-plus", {"rule": "none"}, "rule is 'none'"),
    ],
)
def test_options_that_cannot_work_are_refused(name, options, message):
    with pytest.raises(UserError, match=message):
        create(name, **options)


@pytest.mark.parametrize(
    ("name", "flags", "message"),
    [
        ("pc-darts", ["--warm-up", "2"], "warm_up is 2 epochs, but the search has 2"),
        ("p-darts", ["--epochs", "4"], "epochs is 4, but p-darts has 3 equal stages"),
        ("p-darts", ["--warm-up", "1"], "warm_up is 1 epochs, but a stage has 1"),
        ("p-darts", ["--drop-1", "4"], "fewer than 3 are left for the last stage"),
        ("p-darts", ["--space", "nb201"], "p-darts needs cells with two inputs"),
        ("p-darts", ["--derive", "edges"], "p-darts has a rule of its own"),
        ("snas", ["--space", "nb201"], "give --resource none"),
    ],
)
def test_searches_that_cannot_work_are_refused_before_they_begin(tmp_path, name, flags, message):
    from test_every_strategy import make

    with pytest.raises(UserError, match=message):
        make(tmp_path / "run", name, *flags)
    assert not (tmp_path / "run" / "checkpoint.pt").exists()
