"""What a run leaves behind, and what happens when something goes wrong."""

from __future__ import annotations

import json
import math

import pytest
import torch
import yaml
from run_files import SMALL, events

from fastnas import Genotype
from fastnas.cli.configuration import parse_search
from fastnas.engine.evidence import entropy
from fastnas.engine.log import RunLog
from fastnas.engine.loop import DivergedError
from fastnas.engine.options import WeightOptions
from fastnas.errors import UserError
from fastnas.search import prepare


def test_a_run_leaves_everything(small):
    search = small("run")
    outcome = search.run()
    directory = search.directory
    for name in ("config.yaml", "metrics.jsonl", "checkpoint.pt", "genotype.json", "tensorboard"):
        assert (directory / name).exists(), name
    assert Genotype.from_json(directory / "genotype.json") == outcome.genotype == search.network.genotype()
    assert yaml.safe_load((directory / "config.yaml").read_text()) == search.options
    kinds = [event["event"] for event in events(directory)]
    assert kinds.count("epoch") == 4
    assert kinds.count("update") == 3
    assert kinds.count("population") == 3 * 2
    assert kinds[-1] == "end"
    assert list((directory / "tensorboard").iterdir())
    last = events(directory)[-2]
    assert last["epoch"] == 3
    assert 0 <= last["valid_accuracy"] == outcome.valid_accuracy <= 1
    assert last["genotype"] == outcome.genotype.to_dict()
    weights = torch.tensor(last["op_weights"]["normal"])  # [14, 7]
    torch.testing.assert_close(weights.sum(-1), torch.ones(14))


def test_the_weights_learn(small):
    search = small("learn", "--epochs", "8", "--warm-up", "7", "--learning-rate", "0.02")
    search.run()
    epochs = [event for event in events(search.directory) if event["event"] == "epoch"]
    # The first losses of so small a network are far above ln 10, that of guessing.
    assert epochs[-1]["train_loss"] < 0.9 * epochs[0]["train_loss"]


def test_alpha_moves_only_after_the_warm_up(small):
    search = small("alpha")
    before = {kind: alpha.detach().clone() for kind, alpha in search.network.alphas.items()}
    seen = []
    search.log.listeners.append(
        lambda record: (
            record["event"] == "epoch"
            and seen.append(all(torch.equal(search.network.alphas[kind], before[kind]) for kind in before))
        )
    )
    search.run()
    assert seen == [True, False, False, False]


def test_weights_do_not_move_in_an_evolution_step(small):
    search = small("weights", "--stop-after", "1")
    search.run()
    search = small("weights")
    before = {name: value.clone() for name, value in search.network.state_dict().items() if "alphas" not in name}
    search.strategy.before_epoch(search)
    after = search.network.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_validation_can_be_rarer(small):
    search = small("rare", "--validate-every", "3")
    search.run()
    accuracies = [event["valid_accuracy"] for event in events(search.directory) if event["event"] == "epoch"]
    assert [accuracy is None for accuracy in accuracies] == [True, True, False, False]


def test_a_nan_stops_the_run_and_keeps_the_checkpoint(small):
    search = small("nan")
    step = search.strategy.before_step

    def poison(s) -> None:
        step(s)
        if (s.epoch, s.step) == (2, 1):
            with torch.no_grad():
                s.network.classifier.bias.fill_(math.nan)

    search.strategy.before_step = poison
    with pytest.raises(
        DivergedError, match=r"loss became nan at epoch 3, step 2 \(learning rate 0\.025\).*checkpoint\.pt"
    ):
        search.run()
    again = small("nan")
    assert again.epoch == 2
    assert again.run().status == "finished"


def test_a_run_directory_is_not_overwritten(small, tmp_path):
    small("taken", "--stop-after", "1").run()
    before = (tmp_path / "taken" / "metrics.jsonl").read_bytes()
    with pytest.raises(UserError, match="holds a run already: continue it with --resume"):
        prepare(parse_search([*SMALL, "--out", str(tmp_path / "taken")], "test", ""))
    assert (tmp_path / "taken" / "metrics.jsonl").read_bytes() == before


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"learning_rate": 0.025, "learning_rate_min": 0.001}, {0: 0.025, 1: 0.024976, 25: 0.013, 49: 0.001024}),
        ({"learning_rate": 0.1, "legacy_scheduler": True}, {0: 0.099901, 49: 0.0}),
        ({"learning_rate": 0.5, "learning_rate_warm_up": 5}, {0: 0.1, 4: 0.5 * 0.984292}),
    ],
)
def test_learning_rates(options, expected):
    weights = WeightOptions(epochs=50, **options)
    for epoch, rate in expected.items():
        assert weights.rate(epoch) == pytest.approx(rate, abs=1e-6)


def test_entropy():
    assert entropy(torch.full((14, 8), 1 / 8)) == pytest.approx(math.log(8))
    assert 14 * entropy(torch.full((14, 8), 1 / 8)) == pytest.approx(29.112182, abs=1e-6)
    assert entropy(torch.eye(4)) == 0


def test_the_log_writes_json_that_everything_can_read(tmp_path):
    log = RunLog(tmp_path)
    log.write("epoch", epoch=0, loss=math.nan, nested={"worst": math.inf}, fitness=[1.0, math.nan])
    log.close()
    line = json.loads((tmp_path / "metrics.jsonl").read_text(), parse_constant=lambda name: pytest.fail(name))
    assert line == {"event": "epoch", "epoch": 0, "loss": None, "nested": {"worst": None}, "fitness": [1.0, None]}
