"""The strategies that evaluate architectures, against examples worked out by hand."""

from __future__ import annotations

import math
from collections import Counter
from random import Random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastnas.errors import UserError
from fastnas.evaluators import NB201, Evaluation, Evaluator
from fastnas.spaces import SPACES, find
from fastnas.spaces.encoding import encoding_of
from fastnas.strategies import DiscreteStrategy, create, parse
from fastnas.strategies.controller import IndependentLogits, RecurrentPolicy, codes_tensor
from fastnas.strategies.discrete import Individual
from fastnas.strategies.enas import ENASPolicy
from fastnas.strategies.genes import cross, mutate_genes, mutate_node
from fastnas.strategies.nasnet_ppo import clipped_objective
from fastnas.strategies.nsga2 import polynomial_mutation, ranks_and_crowding, survivors, winner

CELLS, TABLE = encoding_of(find("egnas")), encoding_of(find("nb201"))


class Counted(Evaluator):
    """The accuracy is the share of genes that are 0; every evaluation takes a second."""

    def __init__(self, encoding=TABLE) -> None:
        self.encoding = encoding
        self.codes = []

    def evaluate(self, codes):
        self.codes += codes
        shares = [sum(gene == 0 for gene in code) / len(code) for code in codes]
        return [Evaluation(share, 1.0, {"macs": float(sum(code))}) for code, share in zip(codes, shares, strict=True)]


def individual(accuracy: float, code=(0, 0, 0, 0, 0, 0)) -> Individual:
    return Individual(code, Evaluation(accuracy, 1.0))


DISCRETE = ["random", "aging-evolution", "genetic", "nsga2", "particle-swarm", "reinforce", "nasnet-ppo"]


@pytest.mark.parametrize("name", DISCRETE)
def test_a_run_spends_its_budget_and_repeats_by_its_seed(name):
    evaluator = Counted()
    found = [i.code for i in create(name).run(evaluator, seed=3, seconds=40)]
    assert len(found) == 40
    assert all(0 <= gene < size for code in found for gene, size in zip(code, TABLE.sizes, strict=True))
    assert found == [i.code for i in create(name).run(Counted(), seed=3, seconds=40)]
    assert found != [i.code for i in create(name).run(Counted(), seed=4, seconds=40)]


@pytest.mark.parametrize("name", ["aging-evolution", "genetic", "particle-swarm", "nsga2"])
def test_a_search_that_learns_beats_chance_on_an_easy_problem(name):
    def best(strategy) -> float:
        return np.mean([max(i.accuracy for i in create(strategy).run(Counted(CELLS), s, 400)) for s in range(3)])

    assert best(name) > best("random") + 0.05


# --- aging evolution ---


def test_the_oldest_leaves_even_if_it_is_the_best():
    strategy = create("aging-evolution", population=3, sample_size=3)
    strategy.begin(TABLE, 0)
    strategy.tell([individual(0.9, (1,) * 6), individual(0.1, (2,) * 6), individual(0.2, (3,) * 6)])
    assert len(strategy.queue) == 3
    strategy.tell([individual(0.3, (4,) * 6)])
    assert [i.code[0] for i in strategy.queue] == [2, 3, 4]
    strategy.tell([individual(0.0, (0,) * 6)])
    assert [i.code[0] for i in strategy.queue] == [3, 4, 0]


def test_the_best_of_all_history_is_the_result():
    strategy = create("aging-evolution", population=2)
    strategy.begin(TABLE, 0)
    for accuracy in (0.9, 0.1, 0.2, 0.3):
        strategy.learn([(0,) * 6], [Evaluation(accuracy, 1.0)])
    assert strategy.best.accuracy == 0.9
    assert strategy.evaluated == 4


def test_the_parent_is_the_best_of_the_sample():
    strategy = create("aging-evolution", population=2, sample_size=60, identity=0.0)
    strategy.begin(TABLE, 0)
    strategy.tell([individual(0.9, (1,) * 6), individual(0.1, (2,) * 6)])
    children = [strategy.ask()[0] for _ in range(40)]  # 60 draws find the better one
    assert all(sum(a != 1 for a in child) == 1 for child in children)
    drift = create("aging-evolution", population=2, sample_size=1, identity=0.0)
    drift.begin(TABLE, 0)
    drift.tell([individual(0.9, (1,) * 6), individual(0.1, (2,) * 6)])
    parents = Counter(Counter(drift.ask()[0]).most_common(1)[0][0] for _ in range(200))
    assert parents[2] > 60  # with one draw, accuracy does not matter


def test_a_child_may_be_its_parent():
    strategy = create("aging-evolution", population=1, sample_size=1, identity=0.5)
    strategy.begin(TABLE, 0)
    strategy.tell([individual(0.9, (1,) * 6)])
    same = sum(strategy.ask()[0] == (1,) * 6 for _ in range(400))
    assert 140 < same < 260


def test_amoebanet_repeats_a_twentieth_of_its_parents_and_nas_bench_201_none():
    for space, mutation, expected in ((CELLS, None, 0.05), (TABLE, None, 0), (TABLE, "amoebanet", 0.05)):
        strategy = create("aging-evolution", population=1, sample_size=1, mutation=mutation)
        strategy.begin(space, 0)
        parent = space.sample(Random(0))
        strategy.tell([individual(0.9, parent)])
        same = sum(strategy.ask()[0] == parent for _ in range(2000))
        assert same / 2000 == pytest.approx(expected, abs=0.02 if expected else 0)


def test_nas_bench_201_mutates_a_node_first_and_amoebanet_an_edge():
    """Its nodes have one, two and three edges; each node is as likely as the others, and so are the edges of a node."""
    parent = (1,) * 6
    for mutation, expected in (
        ("nas-bench-201", [1 / 3, 1 / 6, 1 / 6, 1 / 9, 1 / 9, 1 / 9]),
        ("amoebanet", [1 / 6] * 6),
    ):
        strategy = create("aging-evolution", population=1, sample_size=1, mutation=mutation, identity=0.0)
        strategy.begin(TABLE, 0)
        strategy.tell([individual(0.9, parent)])
        children = [strategy.ask()[0] for _ in range(3000)]
        shares = [np.mean([child[gene] != 1 for child in children]) for gene in range(6)]
        assert shares == pytest.approx(expected, abs=0.03)
        assert Counter(child[0] for child in children if child[0] != 1).keys() == {0, 2, 3, 4}


# --- codes ---


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(sorted(SPACES)), st.integers(0, 2**31))
def test_codes_stay_legal_whatever_happens_to_them(space, seed):
    encoding, random = encoding_of(find(space)), Random(seed)
    a, b = encoding.sample(random), encoding.sample(random)
    assert encoding.encode(encoding.decode(a)) == a
    assert encoding.canonical(encoding.canonical(a)) == encoding.canonical(a)
    wild = tuple(random.randrange(size) for size in encoding.sizes)
    children = [
        encoding.mutate(a, random),
        mutate_node(a, encoding, random),
        encoding.repair(wild, random),
        mutate_genes(a, 0.3, encoding, random, at_least_one=True),
        *(cross(a, b, kind, encoding, random) for kind in ("uniform_node", "two_point", "cell_swap")),
    ]
    for code in children:
        assert len(code) == len(encoding.sizes)
        for gene, value in enumerate(code):
            assert value in encoding.legal(code[:gene])
            assert all(
                other != value
                and encoding.repair((*code[:gene], other, *code[gene + 1 :]), Random(0))[: gene + 1]
                == (*code[:gene], other)
                for other in encoding.alternatives(code, gene)
            )
    assert sum(x != y for x, y in zip(a, encoding.mutate(a, random), strict=True)) == 1
    tables = encoding.op_weights(a)
    assert {kind: table.sum().item() for kind, table in tables.items()} == dict.fromkeys(
        find(space).kinds, 6 if space == "nb201" else 8
    )
    assert encoding.encode(find(space).derive(tables)) is not None


def test_one_architecture_has_one_canonical_code():
    code = list(CELLS.sample(Random(0)))
    code[0:4] = [0, 1, 3, 5]
    swapped = [*code]
    swapped[0:4] = [1, 0, 5, 3]
    assert CELLS.canonical(tuple(code)) == CELLS.canonical(tuple(swapped))
    swapped[2:4] = [3, 5]
    assert CELLS.canonical(tuple(code)) != CELLS.canonical(tuple(swapped))


def test_the_space_of_cells_has_as_many_codes_as_published():
    """180 choices of sources and 7^8 of candidates in a cell, where the order within a node does not count."""
    sources = math.prod(math.comb(node, 2) for node in range(2, 6))
    assert sources == 180
    assert sources * 7**8 == pytest.approx(1.04e9, rel=0.01)
    assert CELLS.sizes == tuple(size for _ in range(2) for node in range(2, 6) for size in (node, node, 7, 7))


# --- genetic ---


def test_crossover_copies_nodes_and_cells_as_a_whole():
    a, b = CELLS.sample(Random(1)), CELLS.sample(Random(2))
    for kind, parts in (("uniform_node", CELLS.nodes), ("cell_swap", CELLS.cells)):
        child = cross(a, b, kind, CELLS, Random(3))
        assert all(child[part] in (a[part], b[part]) for part in parts)
        assert child not in (a, b) or kind == "cell_swap"


def test_no_architecture_is_evaluated_twice():
    evaluator = Counted(CELLS)
    list(create("genetic", population=10).run(evaluator, 0, 200))
    assert len({CELLS.canonical(code) for code in evaluator.codes}) == len(evaluator.codes)


@pytest.mark.parametrize(("survival", "expected"), [("plus", [0.9, 0.8, 0.5]), ("generational", [0.9, 0.5, 0.4])])
def test_survival(survival, expected):
    strategy = create("genetic", population=3, elitism=1, survival=survival)
    strategy.begin(TABLE, 0)
    strategy.tell([individual(accuracy) for accuracy in (0.8, 0.9, 0.1)])
    strategy.tell([individual(accuracy) for accuracy in (0.5, 0.3, 0.4)])
    assert [i.accuracy for i in strategy.parents] == expected


def test_without_crossover_a_child_differs_from_its_parent():
    strategy = create("genetic", population=2, crossover_probability=0.0, mutation_probability=0.0)
    strategy.begin(TABLE, 0)
    strategy.tell([individual(0.5, (1,) * 6), individual(0.4, (1,) * 6)])
    assert all(sum(gene != 1 for gene in code) == 1 for code in strategy.ask())


# --- NSGA-II ---

HAND = np.array([[1.0, 9.0], [2.0, 6.0], [5.0, 4.0], [9.0, 1.0], [3.0, 7.0], [6.0, 5.0], [9.0, 9.0]])


def test_fronts_and_crowding_equal_a_hand_example():
    ranks, crowding = ranks_and_crowding(HAND)
    assert ranks.tolist() == [0, 0, 0, 0, 1, 1, 2]
    # Of the first front, 8 wide in both objectives: (2, 6) has neighbours (1, 9) and (5, 4), (5, 4) has (2, 6), (9, 1).
    assert crowding[1] == pytest.approx(((5 - 1) / 8 + (9 - 4) / 8) / 2)
    assert crowding[2] == pytest.approx(((9 - 2) / 8 + (6 - 1) / 8) / 2)
    assert np.isinf(crowding[[0, 3, 4, 5, 6]]).all()


def test_survivors_are_taken_front_by_front_then_by_crowding():
    assert set(survivors(HAND, 3, Random(0))) == {0, 3, 2}  # (2, 6) is the most crowded
    assert set(survivors(HAND, 6, Random(0))) == {0, 1, 2, 3, 4, 5}
    kept = Counter(survivors(HAND, 5, Random(seed))[-1] for seed in range(200))
    assert set(kept) == {4, 5}  # both ends of the second front, at random
    assert 60 < kept[4] < 140


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=12))
def test_nobody_in_the_first_front_is_dominated(points):
    objectives = np.array(points, dtype=float)
    ranks, _ = ranks_and_crowding(objectives)
    for point, rank in zip(objectives, ranks, strict=True):
        dominated = any((other <= point).all() and (other < point).any() for other in objectives)
        assert dominated == (rank > 0)


def test_a_tournament_goes_to_whoever_dominates_then_to_the_less_crowded():
    """Point 4, (3, 7), is of the second front, but of the first one only point 1, (2, 6), dominates it."""
    _, crowding = ranks_and_crowding(HAND)
    assert [winner(a, b, HAND, crowding, Random(0)) for a, b in ((1, 4), (4, 1), (6, 5))] == [1, 1, 5]
    # Neither (5, 4) nor (3, 7) dominates the other, and (3, 7) is at an end of its front.
    assert winner(2, 4, HAND, crowding, Random(0)) == winner(4, 2, HAND, crowding, Random(0)) == 4
    ends = Counter(winner(0, 3, HAND, crowding, Random(seed)) for seed in range(200))
    assert 60 < ends[0] < 140


def test_of_equally_accurate_architectures_the_cheapest_is_the_result():
    strategy = create("nsga2", population=2)
    strategy.begin(TABLE, 0)
    codes = [TABLE.sample(Random(seed)) for seed in range(4)]
    accuracies, costs = (0.9, 0.9, 0.9, 0.1), (3.0, 2.0, 4.0, 1.0)
    found = [Evaluation(a, 1.0, {"macs": c}) for a, c in zip(accuracies, costs, strict=True)]
    strategy.learn(codes, found)
    assert strategy.best.code == codes[1]
    assert strategy.best in strategy.front


def test_polynomial_mutation_stays_within_the_gene():
    assert polynomial_mutation(3, 7, 3.0, 0.5) == 3
    assert polynomial_mutation(3, 7, 3.0, 0.0) == 0
    assert polynomial_mutation(3, 7, 3.0, 1 - 1e-12) == 6
    delta = 1 - (2 * (1 - 0.9)) ** 0.25
    assert polynomial_mutation(0, 7, 3.0, 0.9) == round(6 * delta)


def test_the_front_trades_error_against_cost():
    strategy = create("nsga2", population=8)
    list(strategy.run(Counted(CELLS), 0, 80))
    front = strategy.front
    costs = [i.evaluation.costs["macs"] for i in front]
    assert costs == sorted(costs)
    assert [i.accuracy for i in front] == sorted(i.accuracy for i in front) or len(front) == 1
    with pytest.raises(UserError, match="nsga2 minimises latency, which the evaluator does not give"):
        list(create("nsga2", cost="latency", population=2).run(Counted(), 0, 9))


# --- particle swarm ---


def test_without_pulls_a_particle_travels_v0_w_over_1_minus_w():
    strategy = create("particle-swarm", particles=2, cognitive=0.0, social=0.0)
    strategy.begin(CELLS, 0)
    strategy.x = np.zeros_like(strategy.x)
    strategy.v = np.full_like(strategy.v, 0.5)
    for _ in range(80):
        strategy.ask()
        strategy.tell([individual(0.5), individual(0.5)])
    assert strategy.x == pytest.approx(np.full_like(strategy.x, 0.5 * 0.7298 / (1 - 0.7298)))


def test_a_wall_stops_a_particle():
    strategy = create("particle-swarm", particles=1, cognitive=0.0, social=0.0)
    strategy.begin(CELLS, 0)
    strategy.v = np.full_like(strategy.v, 100.0)
    strategy.tell([individual(0.5)])
    strategy.ask()
    assert (strategy.x == 3).all()
    assert (strategy.v == 0).all()


def test_the_swarm_is_pulled_to_the_best_places():
    strategy = create("particle-swarm", particles=2)
    strategy.begin(CELLS, 0)
    strategy.tell([individual(0.9), individual(0.1)])
    best, other = strategy.x.copy()
    strategy._move()
    assert (strategy.x[0] == best).all()  # it is where both pulls lead
    assert ((strategy.x[1] - other) * (best - other) >= 0).all()


def test_discrete_particles_are_rounded_and_repaired():
    evaluator = Counted(CELLS)
    list(create("particle-swarm", discrete=True, particles=5).run(evaluator, 0, 60))
    assert all(CELLS.repair(code, Random(0)) == code for code in evaluator.codes)


# --- policies ---


def policies():
    yield IndependentLogits(CELLS, 0)
    yield IndependentLogits(TABLE, 0)
    yield RecurrentPolicy(CELLS, 0, hidden=35, layers=2, scale=0.08)
    yield ENASPolicy(CELLS, 0, hidden=16, tanh_constant=1.1, op_tanh_reduce=2.5)


@pytest.mark.parametrize("policy", list(policies()), ids=lambda p: f"{type(p).__name__}-{len(p.encoding.sizes)}")
def test_a_policy_gives_legal_codes_their_probability(policy):
    encoding = policy.encoding
    codes = policy.sample(50, seed=1)
    assert codes == policy.sample(50, seed=1) != policy.sample(50, seed=2)
    assert all(encoding.repair(code, Random(0)) == code for code in codes)
    log_probability, entropy = policy(codes_tensor(codes))
    assert (log_probability < 0).all()
    assert entropy.isfinite().all()
    assert (entropy <= sum(math.log(size) for size in encoding.sizes) + 1e-4).all()
    log_probability.sum().backward()
    assert all(parameter.grad is not None for parameter in policy.parameters())


def test_probabilities_of_all_codes_sum_to_one():
    """Of the first node of a cell: 2 sources in either order and 7 × 7 candidates."""

    class First(type(CELLS)):
        pass

    small = First(find("egnas"))
    small.sizes = small.sizes[:4]
    codes = [(s, 1 - s, a, b) for s in range(2) for a in range(7) for b in range(7)]
    for policy in (
        RecurrentPolicy(small, 0, hidden=8, layers=1, scale=1.0),
        ENASPolicy(small, 0, hidden=8, tanh_constant=1.1, op_tanh_reduce=2.5),
    ):
        log_probability, entropy = policy(codes_tensor(codes))
        assert log_probability.exp().sum().item() == pytest.approx(1, abs=1e-5)
        # The chain rule: the expected sum of the genes' entropies is the entropy of the whole.
        whole = -(log_probability.exp() * log_probability).sum()
        assert (log_probability.exp() * entropy).sum().item() == pytest.approx(whole.item(), rel=1e-4)


def test_enas_begins_in_favour_of_separable_convolutions():
    policy = ENASPolicy(CELLS, 0, hidden=64, tanh_constant=1.1, op_tanh_reduce=2.5)
    counts = Counter(name for code in policy.sample(200, 0) for name, _ in CELLS.decode(code).normal)
    favoured = counts["sep_conv_3x3"] + counts["sep_conv_5x5"]
    # Logits are 0.44·tanh(10) + 0.25 against about 0 - 0.25.
    expected = 2 * math.exp(0.69) / (2 * math.exp(0.69) + 5 * math.exp(-0.25))
    assert favoured / counts.total() == pytest.approx(expected, abs=0.05)
    with pytest.raises(UserError, match="enas chooses the sources of nodes"):
        create("enas").begin(TABLE, 0)


def test_the_baseline_is_an_unbiased_mean_but_for_enas():
    strategy = create("reinforce")
    strategy.begin(TABLE, 0)
    assert [strategy.follow(r, 0.9) for r in (1.0, 1.0)] == pytest.approx([1.0, 1.0])
    assert strategy.follow(0.0, 0.9) == pytest.approx((0.9 * 0.19) / 0.271)
    enas = create("enas", children_per_update=1, entropy_weight=0.0)
    enas.begin(CELLS, 0)
    enas.update(codes_tensor([CELLS.sample(Random(0))]), torch.tensor([0.5]))
    assert enas.baseline[0] == pytest.approx(0.005)


def test_the_controller_of_enas_moves_as_with_the_adam_of_tensorflow():
    """v and the step by hand: no momentum, and ε = 1e-3 is added to the root of v before its bias is corrected."""
    enas = create("enas", controller_learning_rate=0.5)
    enas.begin(CELLS, 0)
    bias = enas.policy.op_bias
    enas.optimizer = torch.optim.Adam([bias], 0.5, betas=enas.optimizer.defaults["betas"])
    begin = bias[3].item()
    v, expected = 0.0, begin
    for update, gradient in enumerate((2e-3, -1e-3, 0.0), start=1):
        v = 0.999 * v + 0.001 * gradient**2
        expected -= 0.5 * math.sqrt(1 - 0.999**update) * gradient / (math.sqrt(v) + 1e-3)
        enas.step((bias * gradient).sum())
        assert bias[3].item() == pytest.approx(expected, abs=1e-6)
    assert abs(begin - expected) < 0.1  # against 0.5 and more with torch's own β₁ and ε


def test_enas_trains_its_weights_as_the_released_program():
    """1e-4·Σω² has the gradient 2e-4·ω; what the program clips it does not use."""
    weights = create("enas").published_defaults["weights"]
    assert (weights["weight_decay"], weights["clip"]) == (2e-4, 0.0)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("reinforce", {"controller": "independent", "baseline_decay": 0.0}),
        ("reinforce", {"children_per_update": 1, "baseline_decay": 0.0}),
        ("nasnet-ppo", {"children_per_update": 1, "baseline_decay": 0.0}),
        ("enas", {"baseline_decay": 0.0}),
    ],
)
def test_a_reward_is_not_its_own_baseline(name, options):
    with pytest.raises(UserError, match="every reward would be its own baseline"):
        create(name, **options)


def test_several_rewards_may_have_their_mean_as_the_baseline():
    strategy = create("reinforce", controller="independent", children_per_update=2, baseline_decay=0.0)
    strategy.begin(TABLE, 0)
    good, bad = (1,) * 6, (2,) * 6
    before = strategy.policy.logits.clone()
    strategy.learn([good, bad], [Evaluation(0.9, 1.0), Evaluation(0.1, 1.0)])
    assert (strategy.policy.logits[:, 1] > before[:, 1]).all()


def test_reinforce_raises_what_was_rewarded():
    strategy = create("reinforce", controller="independent", children_per_update=2, controller_learning_rate=0.1)
    strategy.begin(TABLE, 0)
    good, bad = (1,) * 6, (2,) * 6
    before, _ = strategy.policy(codes_tensor([good, bad]))
    strategy.learn([good, bad], [Evaluation(0.9, 1.0), Evaluation(0.1, 1.0)])
    after, _ = strategy.policy(codes_tensor([good, bad]))
    assert after[0] > before[0]
    assert after[1] < before[1]


def test_the_gain_of_ppo_is_clipped_on_one_side():
    ratio, advantage = torch.tensor([0.5, 1.1, 1.5, 0.5, 1.5]), torch.tensor([1.0, 1.0, 1.0, -1.0, -1.0])
    expected = [0.5, 1.1, 1.2, -0.8, -1.5]
    assert clipped_objective(ratio, advantage, 0.2).tolist() == pytest.approx(expected)


# --- published rows of NAS-Bench-201 ---


@pytest.mark.parametrize(
    ("name", "runs", "mean", "std", "margin", "spread"),
    [
        ("random", 300, 93.70, 0.36, 0.1, 0.15),
        # 900 further runs have a spread of 0.45: see docs/results/nb201.md.
        ("aging-evolution", 300, 93.92, 0.30, 0.1, 0.2),
        ("aging-evolution:mutation=amoebanet", 300, 93.92, 0.30, 0.1, 0.15),
        # 300 runs give 93.79 ± 0.30; what fewer runs may miss is the standard error of their mean.
        ("reinforce:controller=independent", 40, 93.85, 0.37, 0.15 + 0.06, 0.15),
    ],
)
def test_published_rows_of_nas_bench_201(shared_data, name, runs, mean, std, margin, spread):
    table = NB201(shared_data / "nb201_cifar10.csv.gz")
    accuracies = []
    for seed in range(runs):
        best = None
        for found in parse(name).run(table, seed, seconds=12000):
            best = found if best is None or found.accuracy > best.accuracy else best
        accuracies.append(100 * table.judge(best.code))
    assert np.mean(accuracies) == pytest.approx(mean, abs=margin)
    assert np.std(accuracies) == pytest.approx(std, abs=spread)


# --- options ---


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("random", {"evaluations": 0}, "evaluations is 0"),
        ("random", {"bn_mode": "none"}, "bn_mode is 'none'"),
        ("aging-evolution", {"population": 0}, "population is 0"),
        ("aging-evolution", {"identity": 1.0}, "identity is 1.0"),
        ("genetic", {"elitism": 20}, "elitism is 20, expected less than the population"),
        ("genetic", {"crossover": "one"}, "crossover is 'one'"),
        ("genetic", {"mutation_probability": 2.0}, "mutation_probability is 2.0"),
        ("nsga2", {"cost": "flops"}, "cost is 'flops'"),
        ("particle-swarm", {"particles": 0}, "particles is 0"),
        ("reinforce", {"controller": "gru"}, "controller is 'gru'"),
        ("reinforce", {"baseline_decay": 1.0}, "baseline_decay is 1.0"),
        ("nasnet-ppo", {"ppo_epochs": 0}, "ppo_epochs is 0"),
        ("enas", {"hidden": 0}, "hidden is 0"),
        ("enas", {"finalists": 2}, "enas derives the best of its own samples"),
        ("aging-evolution", {"mutation": "random"}, "mutation is 'random'"),
    ],
)
def test_options_that_cannot_work_are_refused(name, options, message):
    with pytest.raises(UserError, match=message):
        create(name, **options)


def test_every_discrete_strategy_is_known_to_this_file():
    from fastnas.strategies import STRATEGIES

    known = {name for name, strategy in STRATEGIES.items() if issubclass(strategy, DiscreteStrategy)}
    assert known == {*DISCRETE, "enas"}
