"""The auxiliary head of ENAS' search, whose loss trains the cells below it and never itself."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from test_every_strategy import final_state, make
from torch import nn

from fastnas.errors import UserError
from fastnas.strategies.untrained_head import UntrainedHead

sys.path.append(str(Path(__file__).parents[1] / "engine"))
from run_files import same_bits

LARGE = ("--image-size", "20", "--layers", "4", "--evaluations", "4", "--epochs", "2", "--limit", "60")


@pytest.mark.parametrize("sides", [(8, 8), (5, 11), (7, 7)])
def test_the_head_is_that_of_the_program(sides: tuple[int, int]):
    head = UntrainedHead(6, sides, 10, seed=1)
    first, second, last = head.weights
    pooled = tuple((side - 5) // 3 + 1 for side in sides)
    assert [tuple(w.shape) for w in head.weights] == [(128, 6, 1, 1), (768, 128, *pooled), (10, 768)]
    x = torch.randn(3, 6, *sides, requires_grad=True)
    convolution = nn.Conv2d(128, 768, pooled, bias=False)
    convolution.weight.data.copy_(second)
    (up, down), (left, right) = (((side - 1) // 2, side - 1 - (side - 1) // 2) for side in pooled)
    maps = nn.BatchNorm2d(128)(F.conv2d(nn.AvgPool2d(5, 3)(x.relu()), first)).relu()
    features = nn.BatchNorm2d(768)(convolution(F.pad(maps, (left, right, up, down)))).relu()
    torch.testing.assert_close(head(x), features.mean((2, 3)) @ last.T, rtol=1e-4, atol=1e-5)
    head(x).square().sum().backward()
    assert x.grad.abs().max() > 0
    for weight in (second, last):
        deviation = math.sqrt(2 / math.prod(weight.shape[1:]))
        assert weight.abs().max() <= 2 * deviation
        assert weight.std().item() == pytest.approx(0.88 * deviation, rel=0.05)  # cut off at two of them


def test_its_loss_enters_the_weight_steps_with_0_4_and_leaves_it_as_it_is(tmp_path: Path):
    search = make(tmp_path / "run", "enas", *LARGE)
    strategy, network = search.strategy, search.network
    assert strategy._head_after == 3  # cells 1 and 2 reduce
    maps = []
    network.cells[3].register_forward_hook(lambda module, given, output: maps.append(output))
    images, labels = search.batch = search.weight_pipeline.batch(0, 0)
    strategy.logits(search, images)
    expected = 0.4 * F.cross_entropy(strategy._head(maps[0]), labels)
    assert strategy.penalty(search).item() == pytest.approx(expected.item())
    (gradient,) = torch.autograd.grad(strategy.penalty(search), [network.stem.conv.weight])
    assert gradient.abs().max() > 0
    before = [weight.clone() for weight in strategy._head.weights]
    search.run()
    assert all(map(torch.equal, before, strategy._head.weights))
    assert "auxiliary_weight: 0.4" in (tmp_path / "run" / "config.yaml").read_text().replace("null  # ", "")


def test_a_resumed_search_has_the_same_head(tmp_path: Path):
    whole, pieces = (make(tmp_path / name, "enas", *LARGE) for name in ("whole", "pieces"))
    pieces.stop_after = 1
    assert [each.run().status for each in (whole, pieces)] == ["finished", "stopped"]
    continued = make(tmp_path / "pieces", "enas")
    assert continued.run().status == "finished"
    assert same_bits(final_state(continued)["network"], final_state(whole)["network"])
    without = make(tmp_path / "without", "enas", *LARGE, "--auxiliary-weight", "0")
    without.run()
    assert without.strategy._head is None
    assert not torch.equal(without.network.stem.conv.weight, whole.network.stem.conv.weight)


@pytest.mark.parametrize("flags", [(), ("--image-size", "20")], ids=["small maps", "no cell behind"])
def test_where_the_head_does_not_fit_there_is_none_unless_it_is_asked_for(flags: tuple[str, ...], tmp_path: Path):
    assert make(tmp_path / "run", "enas", *flags).strategy._head is None
    with pytest.raises(UserError, match=r"auxiliary_weight is 0\.4, but the auxiliary head needs a cell"):
        make(tmp_path / "asked", "enas", *flags, "--auxiliary-weight", "0.4")
