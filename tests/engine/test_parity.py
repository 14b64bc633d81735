"""Searches with the fused and with the reference supernet agree."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F

from fastnas import data
from fastnas.engine.options import WeightOptions
from fastnas.engine.search import Search
from fastnas.nn import Supernet
from fastnas.strategies import create


@pytest.mark.parametrize(
    ("space", "partial_channels", "in_channels"), [("egnas", 4, 1), ("darts", 1, 1)], ids=["egnas-4", "darts-1"]
)
def test_gradient_search(space, partial_channels, in_channels):
    """20 steps of DARTS, first order, in float64: the same losses and genotype.

    The loss of the first step agrees to 1e-14; from step to step the difference grows about threefold, as training is
    chaotic: 4e-9 were seen with one thread, 1.4e-8 with two.
    """
    torch.manual_seed(0)
    fused = Supernet(space, channels=4, layers=3, in_channels=1, partial_channels=partial_channels, backend="fused")
    reference = Supernet(
        space, channels=4, layers=3, in_channels=1, partial_channels=partial_channels, backend="reference"
    )
    reference.load_state_dict(fused.state_dict())
    batches = data.pipeline(data.open("digits", limit=160, image_size=8), "tensor", batch_size=8)
    losses = {}
    for network in (fused, reference):
        network.double()
        weights = torch.optim.SGD(network.weight_parameters(), lr=0.05, momentum=0.9)
        alphas = torch.optim.Adam(network.alphas.parameters(), lr=0.1)
        losses[network.backend] = []
        for step in range(20):
            for optimizer, offset in ((alphas, 10), (weights, 0)):
                images, labels = batches.batch(0, step // 2 + offset)
                optimizer.zero_grad()
                loss = F.cross_entropy(network(images.double()), labels)
                loss.backward()
                optimizer.step()
            losses[network.backend].append(loss.item())
    ours, theirs = (torch.tensor(losses[backend], dtype=torch.float64) for backend in ("fused", "reference"))
    torch.testing.assert_close(ours[:2], theirs[:2], rtol=1e-13, atol=0)
    torch.testing.assert_close(ours, theirs, rtol=1e-7, atol=0)
    assert len(set(losses["fused"])) == 20
    assert fused.genotype() == reference.genotype()


def test_evolution_search(tmp_path):
    """The engine with EG-NAS in float64, 20 weight steps and 2 evolution steps: the same numbers to 1e-8."""
    source = data.open("digits", limit=160, image_size=8)
    weight_half, alpha_half = source.search_split()
    torch.manual_seed(0)
    network = Supernet("egnas", channels=4, layers=3, in_channels=1, partial_channels=4, backend="fused")
    outcomes, records = {}, {}
    for backend in ("fused", "reference"):
        copied = Supernet("egnas", channels=4, layers=3, in_channels=1, partial_channels=4, backend=backend)
        copied.load_state_dict(copy.deepcopy(network.state_dict()))
        directory = tmp_path / backend
        directory.mkdir()

        def pipeline(indices, batch_size, train):
            made = data.pipeline(source, "tensor", batch_size=batch_size, indices=indices, train=train)
            single = made.batch
            made.batch = lambda epoch, step: (single(epoch, step)[0].double(), single(epoch, step)[1])
            return made

        search = Search(
            network=copied.double(),
            strategy=create("egnas", population=6, samples=2, warm_up=2, fitness_batch_size=20, generations=2),
            weights=WeightOptions(epochs=4, learning_rate=0.05),
            weight_pipeline=pipeline(weight_half, 16, True),
            alpha_pipeline=lambda batch_size: pipeline(alpha_half, batch_size, True),
            valid_pipeline=pipeline(alpha_half, 80, False),
            directory=directory,
            seed=0,
            options={},
        )
        records[backend] = []
        search.log.listeners.append(records[backend].append)
        outcomes[backend] = search.run()
        assert search.step == 0
        assert len(search.weight_pipeline) == 5

    def numbers(record, names):
        return torch.tensor([record[name] for name in names if name in record], dtype=torch.float64).flatten()

    assert [record["event"] for record in records["fused"]] == [record["event"] for record in records["reference"]]
    for ours, theirs in zip(records["fused"], records["reference"], strict=True):
        names = ("train_loss", "valid_loss") if ours["event"] == "epoch" else ("fitness", "loss", "best_fitness")
        torch.testing.assert_close(numbers(ours, names), numbers(theirs, names), rtol=1e-8, atol=0)
    assert outcomes["fused"].genotype == outcomes["reference"].genotype
