"""Drop path in supernets: the same masks give the same numbers on the fused operators as in plain torch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from fused_pair import FEW, SMALL, UNUSUAL, agree, images, outcome, pair
from torch import Tensor, nn

from fastnas.nn import Supernet
from fastnas.nn.supernet import drop_path_masks
from fastnas.spaces import SPACES, CellSpace

pytestmark = [pytest.mark.usefixtures("backend"), pytest.mark.emulated_cases(3)]


def dropped(network: Supernet, x: Tensor, probability: float = 0.4, **options: Any) -> list[Tensor]:
    """`outcome` with masks that are the same for every network of these sizes."""
    network.drop_path_prob = probability
    torch.manual_seed(7)
    return outcome(network, x, **options)


@pytest.mark.parametrize("training", [True, False], ids=["train", "constant statistics"])
@pytest.mark.parametrize(
    ("space", "options", "size"),
    [
        (SPACES["darts"], {}, (3, 12, 12)),
        (SPACES["egnas"], {"channels": 16, "partial_channels": 4}, (2, 16, 16)),
        (SMALL["darts"], {"channels": 12, "partial_channels": 2, "layers": 4}, (3, 15, 13)),
        (UNUSUAL[1], {"partial_channels": 2}, (3, 15, 13)),
        (UNUSUAL[3], {}, (3, 15, 13)),
    ],
    ids=["darts", "egnas-4", "darts-2", "twice-2", "skip"],
)
def test_fused_cells_drop_what_plain_ones_drop(
    space: CellSpace, options: dict[str, Any], size: tuple[int, int, int], training: bool
) -> None:
    fused, reference = (network.train() for network in pair(space, **options))
    if not training:  # statistics are constants, and images are dropped all the same
        for module in [*fused.modules(), *reference.modules()]:
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
    x = images(*size)
    expected = dropped(reference, x)
    agree(dropped(fused, x), expected)
    agree(list(fused.buffers())[:2], list(reference.buffers())[:2])
    with torch.no_grad():
        torch.manual_seed(7)
        agree([fused(x)], expected[:1])
    assert (outcome(reference.eval(), x)[0] - expected[0]).abs().max() > 1e-3  # something was dropped


def test_edge_weights_and_candidates_that_are_left_out() -> None:
    fused, reference = pair(FEW, partial_channels=2, channels=8)
    active = torch.ones(5, 5, dtype=torch.bool)
    active[0] = False  # an edge without any candidate, which still passes channels on
    active[3, 1:3] = False
    tables = {kind: torch.rand(5, dtype=torch.float64) for kind in FEW.kinds}
    gradients = []
    for network in (fused, reference):
        edges = {kind: table.clone().requires_grad_() for kind, table in tables.items()}
        options = {"edge_weights": edges, "active": dict.fromkeys(FEW.kinds, active)}
        network.drop_path_prob = 0.4
        torch.manual_seed(7)
        logits = network(images(3, 12, 12), **options)
        logits.sin().sum().backward()
        gradients.append([logits.detach(), *(edges[kind].grad for kind in FEW.kinds), network.alphas["normal"].grad])
    agree(*gradients)


@pytest.mark.cpu_only
def test_masks_drop_a_share_and_keep_the_mean() -> None:
    masks = drop_path_masks(14, torch.zeros(2000, 1, 1, 1), 0.25)  # [E, B]
    assert masks.shape == (14, 2000)
    assert masks.unique().tolist() == pytest.approx([0, 4 / 3])
    assert masks.mean().item() == pytest.approx(1, abs=0.02)


@pytest.mark.cpu_only
def test_scheduled_drop_path_grows_with_depth(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep 0.6 in the last of 20 cells: 0.98 in the first and 0.8 in the tenth (Zoph et al., CVPR 2018)."""
    asked: list[float] = []

    def masks(edges: int, x: Tensor, probability: float) -> Tensor:
        asked.append(probability)
        return torch.ones(edges, len(x))

    monkeypatch.setattr("fastnas.nn.supernet.drop_path_masks", masks)
    network = Supernet(UNUSUAL[5], channels=2, layers=20)
    network.drop_path_prob, network.drop_path_by_depth = 0.4, True
    network(torch.rand(2, 3, 8, 8))
    assert [1 - asked[cell] for cell in (0, 9, 19)] == pytest.approx([0.98, 0.8, 0.6])
    network.eval()(torch.rand(2, 3, 8, 8))
    assert len(asked) == 20  # in training only


@pytest.mark.cpu_only
@pytest.mark.parametrize("backend", ["fused", "reference"])
@pytest.mark.parametrize("mode", ["running", "batch"])
def test_populations_drop_nothing(backend: str, mode: Any) -> None:
    network = Supernet(FEW, channels=4, layers=2, backend=backend)
    x, alphas = torch.rand(4, 3, 8, 8), {kind: torch.randn(2, 5, 5) for kind in FEW.kinds}
    expected = network.population_logits(x, alphas, bn_mode=mode)
    network.drop_path_prob = 0.9
    torch.testing.assert_close(network.population_logits(x, alphas, bn_mode=mode), expected)
