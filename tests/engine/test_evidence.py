"""What a search says about its own worth."""

from __future__ import annotations

from random import Random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from run_files import SMALL, events, same_bits

from fastnas.cli.configuration import parse_search
from fastnas.counting import count_parameters
from fastnas.engine import search as search_module
from fastnas.engine.checkpoint import load_checkpoint
from fastnas.engine.decided import decided
from fastnas.engine.search import Search
from fastnas.engine.sizes import operation_parameters
from fastnas.errors import UserError
from fastnas.evaluators import derived_network
from fastnas.evaluators.shared import joined
from fastnas.genotype import Genotype
from fastnas.nn import Supernet
from fastnas.nn.batch_norm import individual_statistics
from fastnas.search import prepare
from fastnas.spaces import find
from fastnas.spaces.encoding import encoding_of, op_weights_of

SPACES = ["egnas", "darts", "nb201", "multi-level"]
ANY_STRATEGY = [*SMALL[: SMALL.index("--warm-up")], "--device", "cpu", "--epochs", "1"]
EVIDENCE = "--evidence"


def without_evidence(directory) -> list[dict]:
    kept = [event for event in events(directory) if event["event"] != "evidence"]
    return [{key: value for key, value in event.items() if key != "derivation"} for event in kept]


def evidence_of(directory) -> list[dict]:
    return [event for event in events(directory) if event["event"] == "evidence"]


def state_of(search: Search) -> dict:
    state = load_checkpoint(search.checkpoint_path)
    return {key: value for key, value in state.items() if key not in ("seconds", "log_position", "options", "evidence")}


@pytest.fixture
def few(monkeypatch):
    """Few random cells: what is tested does not depend on how many they are."""
    monkeypatch.setattr("fastnas.engine.evidence.RANDOM_CELLS", 12)


def test_it_changes_nothing_else(small, few):
    on, off = small("on", EVIDENCE, "--epochs", "3"), small("off", "--epochs", "3")
    outcomes = on.run(), off.run()
    assert outcomes[0].genotype == outcomes[1].genotype
    assert outcomes[0].evidence is not None
    assert outcomes[1].evidence is None
    assert without_evidence(on.directory) == events(off.directory)
    assert same_bits(state_of(on), state_of(off))
    (event,) = evidence_of(on.directory)
    assert len(event["comparison"]["random"]) == 12
    assert event["alpha"]["choices"] == 28
    assert [set(e["derivation"]) for e in events(on.directory) if e["event"] == "epoch"] == [{"supernet", "cell"}] * 3


def test_interrupted_within_it(small, few):
    whole = small("whole", EVIDENCE, "--epochs", "2")
    whole.run()
    first = small("cut", EVIDENCE, "--epochs", "2", "--stop-after", "1")
    first.run()
    first = small("cut")
    show = first.show

    def interrupt(phase: str, done: int, total: int) -> None:
        if phase == "evidence":
            first._guard.requested = "SIGTERM"
        show(phase, done, total)

    first.show = interrupt
    assert first.run().status == "interrupted"
    assert evidence_of(first.directory) == []
    second = small("cut")
    outcome = second.run()
    assert outcome.status == "finished"
    assert events(second.directory) == events(whole.directory)
    again = small("cut")  # a finished run says the same once more, as a killed one does
    again.run()
    assert events(again.directory) == events(whole.directory)


@pytest.mark.parametrize("space", SPACES)
def test_every_space(tmp_path, few, space):
    arguments = [*ANY_STRATEGY, "--strategy", "darts", "--space", space, "--out", str(tmp_path / "run")]
    arguments += ["--partial-channels", "2"]
    search = prepare(parse_search(arguments, "test", ""))
    found = search.run().evidence
    assert found is not None
    comparison, alpha = found["comparison"], found["alpha"]
    assert comparison["better_than"] == sum(each < comparison["accuracy"] for each in comparison["random"])
    low, high = comparison["random_parameters"]
    assert low <= high
    kinds = search.network.space.kinds
    assert list(found["cells"]) == list(alpha["kinds"]) == list(kinds)
    assert alpha["choices"] == len(search.network.space.edges) * len(kinds)
    assert alpha["decided"] == 0  # after one epoch
    assert set(found["derivation"]) == {"supernet", "cell"}


def test_strategies_without_alpha_leave_it_out(tmp_path, few):
    arguments = [*ANY_STRATEGY, "--strategy", "random", "--evaluations", "2", "--fitness-batch-size", "20"]
    arguments += ["--out", str(tmp_path / "run")]
    found = prepare(parse_search(arguments, "test", "")).run().evidence
    assert found is not None
    assert set(found) == {"cells", "comparison", "seconds"}
    assert [e["derivation"] for e in events(tmp_path / "run") if e["event"] == "epoch"] == [None]


def test_a_supernet_that_is_its_cell_has_no_gap(small, few):
    search = small("paths", EVIDENCE, "--variant", "decided", "--epochs", "2")
    found = search.run().evidence
    assert found is not None
    assert "derivation" not in found
    assert found["alpha"]["choices"] == 28
    assert [e["derivation"] for e in events(search.directory) if e["event"] == "epoch"] == [None, None]


def test_a_cell_that_is_not_in_the_space_is_not_compared(small):
    search = small("foreign", EVIDENCE)
    search.strategy.genotype = lambda _: Genotype.published("AmoebaNet")
    found = search.evidence.sum_up(search)
    assert set(found) == {"cells", "seconds"}


def test_rigged_weights(small, tmp_path):
    """A path that was trained on the validation images beats all others; one that gives the rare class loses to
    them."""
    images = np.random.default_rng(0).integers(0, 255, (120, 8, 8), dtype=np.uint8)
    np.savez(tmp_path / "images.npz", images=images, labels=(np.arange(120) % 10 == 0).astype(np.int64))
    data = ["--data", f"npz:{tmp_path / 'images.npz'}", "--test", "none"]
    search = small("rigged", EVIDENCE, "--partial-channels", "1", *data)
    space, network = search.network.space, search.network
    trained = space.assemble(((("sep_conv_3x3", 0), ("sep_conv_3x3", 1)) * 4,) * 2)
    empty = space.assemble(((("dil_conv_5x5", 0), ("dil_conv_5x5", 1)) * 4,) * 2)
    optimizer = torch.optim.SGD(network.weight_parameters(), lr=0.1, momentum=0.9)
    path = op_weights_of(space, trained)
    (images, labels), *_ = joined(search.valid_pipeline.epoch(0), 60)
    for _ in range(40):
        optimizer.zero_grad()
        F.cross_entropy(network.path_logits(images, path), labels).backward()
        optimizer.step()
    for cell in network.cells:
        for edge in cell.edges:
            for weight in edge.candidates[space.candidates.index("dil_conv_5x5")].parameters():
                torch.nn.init.zeros_(weight)
    with torch.no_grad():  # what a cell of zeros answers
        network.classifier.bias.copy_(torch.tensor([0.0, 1e-3]))
    found = {}
    for name, genotype in (("trained", trained), ("empty", empty)):
        search.strategy.genotype = lambda _, genotype=genotype: genotype
        found[name] = search.evidence.sum_up(search)["comparison"]
    assert found["trained"]["better_than"] == len(found["trained"]["random"]) == 100
    assert found["trained"]["percentile"] == 100
    assert found["empty"]["accuracy"] == 0.1
    assert found["empty"]["percentile"] < 10


# --- its parts ---


def walk(seed: int, edges: int, epochs: int, drift: float) -> np.ndarray:
    """Operation weights [T, E, 7] of an α whose steps have a direction of their own, and noise."""
    random = np.random.default_rng(seed)
    direction = random.standard_normal((edges, 7))
    alpha = np.cumsum(drift * direction + random.standard_normal((epochs, edges, 7)), axis=0) * 0.02
    weights = np.exp(alpha)
    return weights / weights.sum(-1, keepdims=True)


def test_alpha_without_direction_decides_one_choice_in_twenty():
    for epochs in (6, 35):
        assert 0.02 < decided(walk(0, 1000, epochs, drift=0.0), range(7)).mean() < 0.09


def test_alpha_with_a_direction_decides():
    assert decided(walk(0, 200, 35, drift=2.0), range(7)).mean() > 0.7


def test_little_movement_and_few_epochs_decide_nothing():
    assert not decided(walk(0, 50, 4, drift=100.0), range(7)).any()
    assert not decided(np.full((20, 5, 7), 1 / 7), range(7)).any()
    once = walk(0, 50, 20, drift=2.0)
    once[:] = once[-1]  # a single step, however long
    assert not decided(once, range(7)).any()


def test_scales_of_rows_and_dropped_candidates_do_not_matter():
    history = walk(3, 200, 20, drift=1.0)
    scales = np.linspace(0.5, 2, 20)[:, None, None]
    assert (decided(history * scales, range(7)) == decided(history, range(7))).all()
    padded = np.concatenate([history, np.zeros((20, 200, 1))], -1)
    assert (decided(padded, range(8)) == decided(history, range(7))).all()
    strong = np.concatenate([history, np.full((20, 200, 1), 5.0)], -1)  # "none", which is never chosen
    assert decided(strong, range(7)).sum() > 0
    assert not decided(history, [2]).any()


@pytest.mark.parametrize("space", SPACES)
def test_genotypes_become_the_paths_of_their_codes(space):
    encoding, random = encoding_of(find(space)), Random(0)
    for _ in range(20):
        code = encoding.sample(random)
        assert same_bits(op_weights_of(encoding.space, encoding.decode(code)), encoding.op_weights(code))


def test_other_numbers_of_operations_become_paths_too():
    one = ((("skip_connect", 0),), (("sep_conv_3x3", 0), ("sep_conv_3x3", 1), ("max_pool_3x3", 2)))
    genotype = Genotype(normal=one, normal_concat=(2, 3), reduce=one, reduce_concat=(2, 3))
    space = find("darts")
    table = op_weights_of(space, genotype)["normal"]
    assert table.sum() == 4
    assert table[0, space.candidates.index("skip_connect")] == 1
    assert table[4, space.candidates.index("max_pool_3x3")] == 1
    with pytest.raises(UserError, match="'none' from node 0 to 2 of a normal cell is not in 'egnas'"):
        op_weights_of(find("egnas"), Genotype([("none", 0), ("none", 1)], [2], [("none", 0), ("none", 1)], [2]))


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("partial", [1, 2])
def test_parameters_of_operations_are_those_of_the_derived_network(space, partial):
    network = Supernet(space, channels=4, layers=3, partial_channels=partial)
    counts, encoding, random = operation_parameters(network), encoding_of(network.space), Random(1)
    rest = set()
    for _ in range(5):
        code = encoding.sample(random)
        derived = derived_network(encoding.decode(code), channels=4, layers=3, num_classes=10, in_channels=3)
        rest.add(count_parameters(derived) - sum(counts[kind][e][o] for kind, e, o in encoding.operations(code)))
    assert len(rest) == 1


def test_batches_are_joined():
    def sizes(batches: list[int], images: int) -> list[int]:
        given = [(torch.zeros(n, 1, 2, 2), torch.zeros(n)) for n in batches]
        return [len(labels) for images_, labels in joined(given, images) if len(images_) == len(labels)]

    assert sizes([4, 4, 4, 4, 1], 8) == [8, 9]
    assert sizes([4, 4, 4], 4) == [4, 4, 4]
    assert sizes([3], 8) == [3]
    assert sizes([], 8) == []


# --- validation where an epoch is short ---


def test_short_epochs_are_validated_by_the_statistics_of_the_images(small, monkeypatch):
    search = small("short", "--epochs", "1", "--warm-up", "0")
    search.run()
    network, loss, count = search.network.eval(), 0.0, 0
    with torch.no_grad():
        for images, labels in joined(search.valid_pipeline.epoch(0), 128):
            with individual_statistics(network, images=len(images)):
                loss += F.cross_entropy(network(images), labels, reduction="sum").item()
            count += len(labels)
    (epoch,) = [event for event in events(search.directory) if event["event"] == "epoch"]
    assert epoch["valid_statistics"] == "batch"
    assert epoch["valid_loss"] == pytest.approx(loss / count, rel=1e-5)
    monkeypatch.setattr(search_module, "SHORT_EPOCH", 1)
    search = small("long", "--epochs", "1", "--warm-up", "0")
    search.run()
    (other,) = [event for event in events(search.directory) if event["event"] == "epoch"]
    assert other["valid_statistics"] == "running"
    assert abs(other["valid_loss"] - epoch["valid_loss"]) > 0.01
    assert {key: value for key, value in other.items() if key.startswith("train")}.items() <= epoch.items()


def test_validation_mixes_the_classes(tmp_path):
    images = np.random.default_rng(0).integers(0, 255, (80, 8, 8), dtype=np.uint8)
    np.savez(tmp_path / "images.npz", images=images, labels=np.repeat(np.arange(2), 40))
    flags = [*SMALL, "--test", "none", "--data", f"npz:{tmp_path / 'images.npz'}", "--out", str(tmp_path / "run")]
    search = prepare(parse_search(flags, "test", ""))
    assert 0 < search.valid_pipeline.batch(0, 0)[1].double().mean() < 1
