"""Retraining: what it computes, what it leaves behind, and that an interruption changes no bit."""

from __future__ import annotations

import copy
import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from run_files import events, same_bits

from fastnas import Genotype
from fastnas.cli.configuration import parse_train
from fastnas.cli.images import open_train_sources
from fastnas.engine.checkpoint import load_checkpoint
from fastnas.engine.evaluation import evaluate
from fastnas.engine.loop import DivergedError
from fastnas.engine.retrain import Retrain
from fastnas.engine.trained import load_trained
from fastnas.errors import UserError
from fastnas.nn import DerivedNetwork
from fastnas.train import prepare

SMALL = shlex.split(
    "--data digits --limit 120 --image-size 8 --genotype PDARTS --channels 2 --layers 3 --batch-size 16 --epochs 3 "
    "--learning-rate 0.1 --cutout 2 --device cpu --validation 0.2"
)
EVERYTHING = shlex.split("--ema 0.9 --accumulate 2 --select best_valid --drop-path 0.3 --label-smoothing 0.1")


@pytest.fixture
def small(tmp_path: Path) -> Callable[..., Retrain]:
    """A training in the folder `name` below the temporary one; it continues where a checkpoint is there."""

    def make(name: str, *flags: str) -> Retrain:
        options = parse_train([*SMALL, *flags], "test", "")
        return prepare(options, open_train_sources(options), tmp_path / name, options.run.seed_list()[0])

    return make


def final_state(retrain: Retrain) -> dict[str, Any]:
    state = load_checkpoint(retrain.checkpoint_path)
    return {key: value for key, value in state.items() if key not in ("log_position", "seconds", "options")}


def stop_at(retrain: Retrain, call: int) -> None:
    """As if a signal arrived before the `call`-th time that the run looks for one."""
    look, calls = retrain.check_stop, 0

    def check_stop() -> None:
        nonlocal calls
        calls += 1
        if calls == call:
            retrain._guard.requested = "SIGTERM"
        look()

    retrain.check_stop = check_stop  # type: ignore[method-assign]


@pytest.mark.parametrize("flags", [[], EVERYTHING], ids=["plain", "everything"])
def test_interrupted_at_every_place_in_turn(small: Callable[..., Retrain], flags: list[str]) -> None:
    whole = small("whole", *flags)
    expected = whole.run()
    assert expected.status == "finished"
    for _ in range(50):
        part = small("parts", *flags)
        stop_at(part, 2)  # one step further each time
        outcome = part.run()
        if outcome.status == "finished":
            break
    assert outcome.status == "finished"
    assert outcome.test == expected.test
    assert outcome.selected_epoch == expected.selected_epoch
    assert [e for e in events(part.directory) if e["event"] != "interrupted"] == events(whole.directory)
    assert same_bits(final_state(part), final_state(whole))
    for name in ("network.json", "network.safetensors", "genotype.json"):
        assert (part.directory / name).read_bytes() == (whole.directory / name).read_bytes()


def test_one_step_is_that_of_plain_sgd(small: Callable[..., Retrain]) -> None:
    retrain = small(
        "run", "--backend", "reference", "--accumulate", "2", "--label-smoothing", "0.1", "--drop-path", "0"
    )
    network = copy.deepcopy(retrain.network).train()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9, weight_decay=3e-4)
    batches = [retrain.train_pipeline.batch(0, step) for step in (0, 1)]
    for images, labels in batches:
        (F.cross_entropy(network(images), labels, label_smoothing=0.1) / 2).backward()
    torch.nn.utils.clip_grad_norm_(network.parameters(), 5.0)
    optimizer.step()
    retrain.network.train()
    assert [retrain._step(*batches[0]), setattr(retrain, "step", 1), retrain._step(*batches[1])] == [False, None, True]
    for name, value in network.state_dict().items():
        torch.testing.assert_close(retrain.network.state_dict()[name], value, msg=lambda m, n=name: f"{n}: {m}")


def test_the_rest_of_an_epoch_counts_as_much_as_a_full_step(small: Callable[..., Retrain]) -> None:
    """Six batches, four to a step: the gradients of the last two are divided by two."""
    retrain = small("run", "--accumulate", "4", "--batch-size", "15")
    assert len(retrain.train_pipeline) == 6
    scales: list[float] = []
    scale = retrain.scaler.scale
    retrain.scaler.scale = lambda loss: scales.append(float(loss.detach())) or scale(loss)  # type: ignore[method-assign]
    done = []
    for retrain.step in range(6):
        images, labels = retrain.train_pipeline.batch(0, retrain.step)
        before = retrain._meter.loss.item()
        done.append(retrain._step(images, labels))
        loss = (retrain._meter.loss.item() - before) / len(labels)
        assert scales[-1] == pytest.approx(loss / (4 if retrain.step < 4 else 2), rel=1e-5)
    assert done == [False, False, False, True, False, True]


def test_the_auxiliary_head_adds_its_weighted_loss(small: Callable[..., Retrain]) -> None:
    retrain = small(
        "run", "--image-size", "32", "--auxiliary", "True", "--auxiliary-weight", "0.25", "--batch-size", "8"
    )
    retrain.network.train()
    gradients = []
    for share in (0.25, 0.0):
        twin = copy.deepcopy(retrain.network)
        images, labels = retrain.train_pipeline.batch(0, 0)
        logits, auxiliary = twin(images)
        (F.cross_entropy(logits, labels) + share * F.cross_entropy(auxiliary, labels)).backward()
        gradients.append(twin.stem.conv.weight.grad.norm())
    retrain.recipe = type(retrain.recipe)(**(vars(retrain.recipe) | {"clip": 0.0}))
    retrain._step(images, labels)
    assert retrain.network.stem.conv.weight.grad.norm() == pytest.approx(gradients[0].item(), rel=1e-4)
    assert gradients[0] != gradients[1]


def test_test_images_are_read_once_unless_they_select(small: Callable[..., Retrain]) -> None:
    for name, flags, times in (("last", [], 1), ("best_test", ["--select", "best_test"], 4)):
        retrain = small(name, *flags)
        assert retrain.test_pipeline is not None
        read, epoch = [], retrain.test_pipeline.epoch
        retrain.test_pipeline.epoch = lambda e, start=0, r=read, f=epoch: r.append(e) or f(e, start)  # type: ignore
        retrain.run()
        assert len(read) == times, name


def test_best_valid_keeps_the_weights_of_its_epoch(small: Callable[..., Retrain], monkeypatch: Any) -> None:
    retrain = small("run", "--select", "best_valid")
    states: list[dict[str, torch.Tensor]] = []
    accuracies = iter([0.2, 0.6, 0.4])
    measure = Retrain._evaluate

    def evaluated(self: Retrain, phase: str, network: Any) -> Any:
        found = measure(self, phase, network)
        if phase != "validation":
            return found
        states.append({name: value.clone() for name, value in network.state_dict().items()})
        return found and type(found)(**(found.to_dict() | {"top1": next(accuracies)}))

    monkeypatch.setattr(Retrain, "_evaluate", evaluated)
    outcome = retrain.run()
    assert outcome.selected_epoch == 1
    kept = DerivedNetwork.load(retrain.directory).state_dict()
    assert all(torch.equal(kept[name], value) for name, value in states[1].items())
    assert outcome.test == evaluate(DerivedNetwork.load(retrain.directory), retrain.test_pipeline)
    assert events(retrain.directory)[-1]["selected"] == "best_valid"


def test_averaged_weights_are_what_is_tested(small: Callable[..., Retrain]) -> None:
    retrain = small("run", "--ema", "0.5", "--epochs", "1")
    expected = {name: value.clone().float() for name, value in retrain.network.state_dict().items()}
    step = retrain._step

    def averaging(images: Any, labels: Any) -> bool:
        done = step(images, labels)
        first = retrain.step == 0  # the average begins with the weights of the first step
        for name, value in retrain.network.state_dict().items():
            expected[name] = value.float().clone() if first else (expected[name] + value.float()) / 2
        return done

    retrain._step = averaging  # type: ignore[method-assign]
    retrain.run()
    saved = load_trained(retrain.directory).state_dict()
    for name, value in saved.items():
        if value.is_floating_point():
            torch.testing.assert_close(value, expected[name], msg=lambda m, n=name: f"{n}: {m}")
    assert events(retrain.directory)[-1]["averaged"] is True


def test_a_checkpoint_can_be_read_before_the_end(small: Callable[..., Retrain]) -> None:
    retrain = small("run", "--stop-after", "1", "--ema", "0.5")
    assert retrain.run().status == "stopped"
    network = load_trained(retrain.directory)
    assert network.genotype == Genotype.published("PDARTS")
    for name, value in retrain.tested_network.state_dict().items():
        assert torch.equal(network.state_dict()[name], value)


def test_what_a_run_leaves_behind(small: Callable[..., Retrain]) -> None:
    retrain = small("run")
    outcome = retrain.run()
    files = {path.name for path in retrain.directory.iterdir()}
    assert files >= {"config.yaml", "checkpoint.pt", "metrics.jsonl", "genotype.json", "network.json", "tensorboard"}
    written = events(retrain.directory)
    assert [event["event"] for event in written] == ["epoch"] * 3 + ["end"]
    assert [event["drop_path"] for event in written[:3]] == pytest.approx([0, 0.2 / 3, 0.4 / 3])
    assert outcome.test is not None
    assert written[-1]["test"] == json.loads(json.dumps(outcome.test.to_dict()))
    assert written[-1]["selected_epoch"] == 2
    about = DerivedNetwork.load(retrain.directory).about
    assert about["images"]["classes"] == [str(i) for i in range(10)]


@pytest.mark.parametrize("flags", [["--precision", "bfloat16"], ["--no-channels-last"], ["--test", "none"]])
def test_further_options_train(small: Callable[..., Retrain], flags: list[str]) -> None:
    retrain = small("run", *flags, "--epochs", "1")
    outcome = retrain.run()
    assert outcome.status == "finished"
    assert (outcome.test is None) == ("none" in flags)


def test_float16_scales_the_loss_and_its_state_is_resumed(small: Callable[..., Retrain]) -> None:
    retrain = small("run", "--precision", "float16", "--epochs", "2", "--stop-after", "1")
    assert retrain.scaler.is_enabled()
    retrain.run()
    again = small("run", "--precision", "float16", "--epochs", "2")
    assert again.scaler.state_dict() == retrain.scaler.state_dict()


def test_a_loss_that_is_no_number_names_the_checkpoint(small: Callable[..., Retrain]) -> None:
    with pytest.raises(
        DivergedError, match=r"the loss became nan at epoch 1.*checkpoint\.pt; start again with a lower"
    ):
        small("run", "--learning-rate", "1e6", "--clip", "0").run()


def test_other_options_cannot_go_on(small: Callable[..., Retrain]) -> None:
    small("run", "--stop-after", "1").run()
    with pytest.raises(UserError, match=r"cannot go on with other options: recipe\.momentum is 0\.5 but was 0\.9"):
        small("run", "--momentum", "0.5")


def test_evaluation_counts_by_hand(small: Callable[..., Retrain]) -> None:
    retrain = small("run")
    network, pipeline = retrain.network, retrain.valid_pipeline
    assert pipeline is not None
    found = evaluate(network, pipeline)
    images, labels = (torch.cat(parts) for parts in zip(*pipeline.epoch(0), strict=True))
    with torch.no_grad():
        logits = network.eval()(images)
    predicted = logits.argmax(1)
    assert found.images == len(labels) == sum(map(sum, found.confusion))
    assert found.loss == pytest.approx(F.cross_entropy(logits, labels).item(), rel=1e-5)
    assert found.top1 == pytest.approx((predicted == labels).float().mean().item())
    five = (logits.argsort(1, descending=True)[:, :5] == labels[:, None]).any(1)
    assert found.top5 == pytest.approx(five.float().mean().item())
    for k in range(10):
        assert found.per_class[k] == pytest.approx((predicted[labels == k] == k).float().mean().item())
        for j in range(10):
            assert found.confusion[k][j] == ((labels == k) & (predicted == j)).sum()
