from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fastnas import spaces
from fastnas.errors import UserError
from fastnas.genotype import CellKind, Genotype
from fastnas.nn.derived import DerivedNetwork
from fastnas.nn.primitives import PRIMITIVES
from fastnas.spaces import SPACES, CellSpace
from fastnas.spaces.encoding import encoding_of
from fastnas.spaces.topology import dag_edges, nodes_of_dag

DARTS, EGNAS = SPACES["darts"], SPACES["egnas"]


def table(space: CellSpace, entries: dict[tuple[int, int], dict[str, float]]) -> dict[str, Tensor]:
    """Weights that are zero but for {(source, node): {candidate: weight}}, the same for both cells."""
    weights = torch.zeros(len(space.edges), len(space.candidates))  # [E, O]
    for edge, row in entries.items():
        for name, weight in row.items():
            weights[space.edges.index(edge), space.candidates.index(name)] = weight
    return {"normal": weights, "reduce": weights}


# The spaces


def test_candidates_in_the_order_of_the_columns() -> None:
    convolutions = ("sep_conv_3x3", "sep_conv_5x5", "dil_conv_3x3", "dil_conv_5x5")
    assert DARTS.candidates == ("none", "max_pool_3x3", "avg_pool_3x3", "skip_connect", *convolutions)
    assert EGNAS.candidates == ("avg_pool_3x3", "max_pool_3x3", "skip_connect", *convolutions)


def test_pools_are_normalised_in_darts_only() -> None:
    assert DARTS.pool_norm
    assert not EGNAS.pool_norm


@pytest.mark.parametrize("name", SPACES)
def test_registered_spaces(name: str) -> None:
    space = SPACES[name]
    assert space.name == name
    assert space.nodes + space.inputs == (4 if name == "nb201" else 6)
    assert set(space.candidates) <= set(PRIMITIVES)
    assert len(set(space.candidates)) == len(space.candidates)


def test_edges_are_numbered_by_node_then_source() -> None:
    assert DARTS.edges == (
        *((0, 2), (1, 2)),
        *((0, 3), (1, 3), (2, 3)),
        *((0, 4), (1, 4), (2, 4), (3, 4)),
        *((0, 5), (1, 5), (2, 5), (3, 5), (4, 5)),
    )
    assert [DARTS.incoming(node) for node in (2, 3, 4, 5)] == [range(2), range(2, 5), range(5, 9), range(9, 14)]


@settings(deadline=None)
@given(st.integers(1, 12))
def test_every_node_reads_every_earlier_node_once(nodes: int) -> None:
    space = dataclasses.replace(DARTS, nodes=nodes)
    assert len(space.edges) == nodes * (nodes + 3) // 2
    for node in range(2, nodes + 2):
        assert [space.edges[edge] for edge in space.incoming(node)] == [(source, node) for source in range(node)]


@settings(deadline=None)
@given(st.integers(1, 12), st.integers(1, 3))
def test_nodes_follow_from_the_number_of_edges(nodes: int, inputs: int) -> None:
    edges = len(dag_edges(nodes, inputs))
    assert nodes_of_dag(edges, inputs) == nodes
    assert nodes_of_dag(edges + 1, inputs) is None or inputs + nodes == 1
    assert nodes_of_dag(0, inputs) is None


def test_nb201_has_six_edges_and_takes_the_best_of_each() -> None:
    space = SPACES["nb201"]
    assert space.edges == ((0, 1), (0, 2), (1, 2), (0, 3), (1, 3), (2, 3))
    assert [space.incoming(node) for node in (1, 2, 3)] == [range(1), range(1, 3), range(3, 6)]
    weights = torch.eye(5)[[0, 3, 2, 4, 1, 1]] + 0.1  # [6, 5]
    weights[5] = 1.0  # a tie goes to the earlier candidate
    expected = "|none~0|+|nor_conv_3x3~0|nor_conv_1x1~1|+|avg_pool_3x3~0|skip_connect~1|none~2|"
    assert str(space.derive({"normal": weights})) == expected


def test_each_level_has_its_cells() -> None:
    space = SPACES["multi-level"]
    tables = {kind: table(DARTS, {(i % 2, 2): {"skip_connect": 1.0}})["normal"] for i, kind in enumerate(space.kinds)}
    genotype = space.derive(tables)
    assert [cell.pairs[0] for cell in genotype.levels] == [("skip_connect", i % 2) for i in range(5)]
    assert (genotype.normal, genotype.reduce) == tuple(cell.pairs for cell in genotype.levels[:2])
    assert encoding_of(space).decode(encoding_of(space).encode(genotype)) == genotype


def test_find() -> None:
    assert spaces.find("egnas") is EGNAS
    own = CellSpace("own", ("skip_connect",), pool_norm=False, nodes=2)
    assert spaces.find(own) is own
    message = (
        r"^unknown search space 'dart': expected one of darts, egnas, multi-level, nb201, a CellSpace, or your own"
    )
    with pytest.raises(UserError, match=message):
        spaces.find("dart")


def test_a_space_needs_a_node() -> None:
    with pytest.raises(UserError, match=r"^space 'own' has 0 intermediate nodes, expected at least 1\.$"):
        CellSpace("own", ("skip_connect",), pool_norm=False, nodes=0)


@pytest.mark.parametrize("candidates", [(), ("none",)])
def test_a_space_needs_something_to_choose(candidates: tuple[str, ...]) -> None:
    with pytest.raises(UserError, match=r"^space 'own' has the candidates .* never chooses 'none': add another"):
        CellSpace("own", candidates, pool_norm=False)


def test_initial_alphas() -> None:
    alphas = DARTS.uniform_alphas(generator=torch.Generator().manual_seed(0))
    assert {kind: alpha.shape for kind, alpha in alphas.items()} == {"normal": (14, 8), "reduce": (14, 8)}
    values = torch.cat([alphas["normal"], alphas["reduce"]]).flatten()
    assert 0.8e-3 < values.std() < 1.2e-3
    assert values.mean().abs() < 0.3e-3
    assert not torch.equal(alphas["normal"], alphas["reduce"])
    again = DARTS.uniform_alphas(scale=1.0, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(1e-3 * again["reduce"], alphas["reduce"])


# From α to a genotype


def test_derive_by_hand() -> None:
    weights = table(
        EGNAS,
        {
            (0, 2): {"sep_conv_3x3": 0.4},
            (1, 2): {"avg_pool_3x3": 0.6, "dil_conv_3x3": 0.5},
            (0, 3): {"skip_connect": 0.3},
            (1, 3): {"max_pool_3x3": 0.2},
            (2, 3): {"dil_conv_5x5": 0.9},
            (1, 4): {"sep_conv_5x5": 0.5},
            (3, 4): {"sep_conv_5x5": 0.4},
            (2, 5): {"skip_connect": 0.1},
            (4, 5): {"dil_conv_3x3": 0.2},
        },
    )
    genotype = EGNAS.derive(weights)
    assert genotype.normal == genotype.reduce
    assert genotype.pairs("normal") == (
        (("avg_pool_3x3", 1), ("sep_conv_3x3", 0)),  # the stronger first, not the lower source
        (("dil_conv_5x5", 2), ("skip_connect", 0)),
        (("sep_conv_5x5", 1), ("sep_conv_5x5", 3)),
        (("dil_conv_3x3", 4), ("skip_connect", 2)),
    )
    assert genotype.normal_concat == genotype.reduce_concat == (2, 3, 4, 5)


def test_each_cell_has_its_table() -> None:
    normal = table(EGNAS, {edge: {"sep_conv_3x3": 1.0} for edge in EGNAS.edges})["normal"]
    reduce = table(EGNAS, {edge: {"max_pool_3x3": 1.0} for edge in EGNAS.edges})["reduce"]
    genotype = EGNAS.derive({"normal": normal, "reduce": reduce})
    assert {name for name, _ in genotype.normal} == {"sep_conv_3x3"}
    assert {name for name, _ in genotype.reduce} == {"max_pool_3x3"}


@pytest.mark.parametrize(("space", "first"), [(DARTS, "max_pool_3x3"), (EGNAS, "avg_pool_3x3")])
def test_ties_go_to_the_lower_source_and_the_earlier_candidate(space: CellSpace, first: str) -> None:
    assert space.derive(table(space, {})).normal == ((first, 0), (first, 1)) * 4


def test_tie_for_the_second_place() -> None:
    weights = table(
        DARTS,
        {
            (1, 5): {"skip_connect": 0.2},
            (2, 5): {"sep_conv_5x5": 0.3, "dil_conv_3x3": 0.3},
            (3, 5): {"dil_conv_5x5": 0.2},
        },
    )
    assert DARTS.derive(weights).pairs("normal")[3] == (("sep_conv_5x5", 2), ("skip_connect", 1))


def test_none_is_never_chosen_and_does_not_rank_its_edge() -> None:
    weights = table(
        DARTS,
        {
            (0, 3): {"none": 0.9, "skip_connect": 0.1},
            (1, 3): {"none": 0.0, "sep_conv_3x3": 0.3},
            (2, 3): {"none": 0.5, "dil_conv_3x3": 0.2},
        },
    )
    assert DARTS.derive(weights).pairs("normal")[1] == (("sep_conv_3x3", 1), ("dil_conv_3x3", 2))


def test_the_rules_of_gdas_and_snas_by_hand() -> None:
    """The same tables as above, by the two strongest pairs of a node, and by every edge."""
    weights = table(
        DARTS,
        {
            (0, 2): {"none": 0.9, "sep_conv_3x3": 0.4, "skip_connect": 0.3},
            (1, 2): {"dil_conv_3x3": 0.2},
            (0, 3): {"skip_connect": 0.1},
            (1, 3): {"none": 0.2},
            (2, 3): {"sep_conv_5x5": 0.3, "none": 0.2},
            (0, 4): {"none": 0.1},
            (1, 4): {"none": 0.5},
            (2, 4): {"none": 0.3},
            (3, 4): {"none": 0.4},
            (4, 5): {"avg_pool_3x3": 0.1},
        },
    )
    pairs = DARTS.derive(weights, "pairs")
    assert pairs.pairs("normal")[0] == (("sep_conv_3x3", 0), ("skip_connect", 0))  # both on one edge
    assert pairs.pairs("normal")[1] == (("sep_conv_5x5", 2), ("skip_connect", 0))
    edges = DARTS.derive(weights, "edges")
    assert edges.pairs("normal")[:3] == (
        (("dil_conv_3x3", 1),),  # "none" wins on the other edge, which is left out
        (("sep_conv_5x5", 2), ("skip_connect", 0)),
        (("none", 1),),  # nothing else: one stays
    )
    assert edges.pairs("normal")[3][0] == ("avg_pool_3x3", 4)
    assert len(edges.pairs("normal")[3]) == 1  # where all weigh the same, the first is "none"
    assert edges.normal == edges.reduce
    assert Genotype.from_dict(edges.to_dict()) == edges


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 2**31))
def test_the_strongest_pairs_of_a_node_share_an_edge_or_are_those_of_darts(seed: int) -> None:
    alphas = DARTS.uniform_alphas(1.0, torch.Generator().manual_seed(seed))
    weights = {kind: torch.softmax(alpha, -1) for kind, alpha in alphas.items()}
    pairs, top2 = (DARTS.derive(weights, rule) for rule in ("pairs", "top2"))
    for kind in DARTS.kinds:
        for found, expected in zip(pairs.pairs(kind), top2.pairs(kind), strict=True):
            assert found[0] == expected[0]
            assert found == expected or found[0][1] == found[1][1]


def test_a_network_of_every_edge_computes_its_argmax() -> None:
    """The derived network of "edges" has the operations of the table, and "none" adds nothing."""
    weights = table(DARTS, {edge: {"none" if edge[0] % 2 else "sep_conv_3x3": 1.0} for edge in DARTS.edges})
    genotype = DARTS.derive(weights, "edges")
    network = DerivedNetwork(genotype, channels=4, layers=3, auxiliary=False)
    assert [len(node) for node in genotype.pairs("normal")] == [1, 2, 2, 3]
    assert network(torch.rand(2, 3, 8, 8)).isfinite().all()


def test_none_takes_its_share_in_the_softmax() -> None:
    alphas = torch.zeros(14, 8)
    edge = DARTS.edges.index((0, 3))
    alphas[edge, DARTS.candidates.index("sep_conv_3x3")] = 5.0  # without "none" the strongest edge of all
    alphas[edge, DARTS.candidates.index("none")] = 10.0
    weights = torch.softmax(alphas, dim=-1)
    genotype = DARTS.derive({"normal": weights, "reduce": weights})
    assert genotype.pairs("normal")[1] == (("max_pool_3x3", 1), ("max_pool_3x3", 2))


def test_derive_takes_weights_that_need_a_gradient() -> None:
    weights = {kind: weight.requires_grad_() for kind, weight in table(DARTS, {(1, 2): {"sep_conv_3x3": 1.0}}).items()}
    assert DARTS.derive(weights).normal[0] == ("sep_conv_3x3", 1)


# Few distinct values, so ties are common.
@settings(deadline=None)
@given(st.data(), st.sampled_from([DARTS, EGNAS]), st.integers(1, 5))
def test_derive_against_a_full_sort(data: st.DataObject, space: CellSpace, nodes: int) -> None:
    space = dataclasses.replace(space, nodes=nodes)
    size = len(space.edges) * len(space.candidates)
    values = data.draw(st.lists(st.integers(-2, 3), min_size=size, max_size=size))
    weights = torch.tensor(values, dtype=torch.float32).view(len(space.edges), -1)  # [E, O]
    genotype = space.derive({"normal": weights, "reduce": weights.flip(0)})
    kinds: tuple[CellKind, ...] = ("normal", "reduce")
    for kind, rows in zip(kinds, (weights.tolist(), weights.flip(0).tolist()), strict=True):
        for node, pairs in enumerate(genotype.pairs(kind), start=2):
            ranking = sorted(
                (-rows[edge][column], source, column)
                for edge, (source, target) in enumerate(space.edges)
                for column, name in enumerate(space.candidates)
                if target == node and name != "none"
            )
            first = ranking[0]
            second = next(entry for entry in ranking if entry[1] != first[1])
            assert pairs == tuple((space.candidates[column], source) for _, source, column in (first, second))
            assert pairs[0][1] != pairs[1][1]
        assert genotype.concat(kind) == tuple(range(2, nodes + 2))
