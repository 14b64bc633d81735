"""Evaluators: what they report, and that they leave everything as it was."""

from __future__ import annotations

import copy
import gzip
import itertools
import math
import sys
from pathlib import Path
from random import Random
from types import SimpleNamespace

import pytest
import torch

from fastnas import data, strategies
from fastnas.errors import UserError
from fastnas.evaluators import NB201, Costs, Function, SharedWeights, ShortTraining, derived_network
from fastnas.evaluators.function import load
from fastnas.genotype import Genotype
from fastnas.nn import Supernet
from fastnas.spaces import find
from fastnas.spaces.encoding import encoding_of
from fastnas.spaces.nb201 import CANDIDATES, NB201Genotype
from fastnas.strategies.scoring import for_search

CELLS, TABLE = encoding_of(find("egnas")), encoding_of(find("nb201"))
HEADER = "arch,valid_acc_12_epochs,test_acc_200_epochs_mean,train_s_per_epoch,params_m,mflops,latency_ms_edge_gpu\n"


# --- the table ---


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All cells; the accuracy counts 3×3 convolutions."""
    path = tmp_path_factory.mktemp("table") / "table.csv.gz"
    with gzip.open(path, "wt") as file:
        file.write(HEADER)
        for operations in itertools.product(CANDIDATES, repeat=6):
            count = operations.count("nor_conv_3x3")
            file.write(f"{NB201Genotype(operations)},{50 + count},{60 + count},{10 + count},0.5,{20 + count},3\n")
    return path


def test_an_evaluation_is_a_row_of_the_table(table):
    evaluator = NB201(table)
    genotype = NB201Genotype(("nor_conv_3x3", "none", "nor_conv_3x3", "skip_connect", "none", "avg_pool_3x3"))
    code = TABLE.encode(genotype)
    (found,) = evaluator.evaluate([code])
    assert (found.accuracy, found.seconds) == (0.52, 12 * 0.5 * 12)
    assert found.costs == {"parameters": 0.5, "macs": 22.0, "latency": 3.0}
    assert evaluator.judge(code) == 0.62
    assert evaluator.best == 0.66
    assert TABLE.decode(code) == genotype


def test_the_real_table_gives_its_numbers(shared_data):
    evaluator = NB201(shared_data / "nb201_cifar10.csv.gz")
    text = "|avg_pool_3x3~0|+|nor_conv_1x1~0|skip_connect~1|+|nor_conv_1x1~0|skip_connect~1|skip_connect~2|"
    code = TABLE.encode(NB201Genotype.from_string(text))
    assert evaluator.evaluate([code])[0].accuracy == pytest.approx(0.63364)
    assert evaluator.judge(code) == pytest.approx(0.858633)
    assert evaluator.best == pytest.approx(0.9437, abs=1e-4)


def test_tables_that_cannot_be_used_are_explained(table, tmp_path):
    with pytest.raises(UserError, match="cannot read the table"):
        NB201(tmp_path / "nowhere.csv")
    text = gzip.decompress(table.read_bytes()).decode()
    cases = {
        "short": (text.rsplit("\n", 2)[0], "lacks 1 of the 15625 cells"),
        "column": (text.replace("mflops", "flops", 1), "has no column 'mflops'"),
        "empty": ("", "has no column 'arch'"),
        "word": (text.replace(",50,", ",many,", 1), "line 2: valid_acc_12_epochs is 'many'"),
        "twice": (text + text.split("\n")[1] + "\n", "line 15627 has the cell of line 2 for the second time"),
        "ends": (text.rsplit(",", 3)[0], "line 15626 has 4 values for 7 columns"),
        "cell": (text.replace("|none~0|", "|nothing~0|", 1), "line 2: .* is no cell of NAS-Bench-201"),
        "above": (text.replace(",50,", ",150,", 1), "line 2: valid_acc_12_epochs is 150, expected 0 to 100"),
        "nan": (text.replace(",60,", ",nan,", 1), "line 2: test_acc_200_epochs_mean is nan"),
        "time": (text.replace(",10,", ",0,", 1), "line 2: train_s_per_epoch is 0, expected a finite number above 0"),
        "cost": (text.replace(",20,", ",-1,", 1), "line 2: mflops is -1, expected a finite number above 0"),
        "field": (text + '"' + "x" * 200_000, "line 15627 is no CSV"),
        "zero": (text.replace(",50,", ",\0,", 1), "line 2.* is '.x00'|line 2.* NUL"),
    }
    for name, (content, message) in cases.items():
        (tmp_path / f"{name}.csv").write_text(content)
        with pytest.raises(UserError, match=message):
            NB201(tmp_path / f"{name}.csv")
    (tmp_path / "mark.csv").write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert NB201(tmp_path / "mark.csv").best == 0.66


def test_a_damaged_gzip_table_is_named(table, tmp_path):
    content = table.read_bytes()
    for name, damaged in {"cut": content[:-1000], "hole": content[:5000] + bytes(500) + content[5500:]}.items():
        (tmp_path / f"{name}.csv.gz").write_bytes(damaged)
        with pytest.raises(UserError, match=rf"cannot read the table .*{name}\.csv\.gz: .*give the CSV") as caught:
            NB201(tmp_path / f"{name}.csv.gz")
        assert "\n" not in str(caught.value)


def test_cells_of_the_table_as_text_and_as_json(tmp_path):
    genotype = NB201Genotype(("none",) * 5 + ("skip_connect",))
    assert NB201Genotype.from_string(str(genotype)) == genotype
    genotype.to_json(tmp_path / "cell.json")
    assert NB201Genotype.from_json(tmp_path / "cell.json") == genotype
    assert genotype.skip_count("normal") == 1
    for text in ("|none~0|", str(genotype).replace("~2", "~1"), ""):
        with pytest.raises(UserError, match="is not a cell of NAS-Bench-201"):
            NB201Genotype.from_string(text)
    with pytest.raises(UserError, match="'nb201' is missing"):
        NB201Genotype.from_dict({})
    with pytest.raises(UserError, match="cannot read the cell"):
        NB201Genotype.from_json(tmp_path / "nowhere.json")


# --- shared weights ---


def supernet(space: str = "egnas") -> Supernet:
    torch.manual_seed(0)
    layers = 3 if space == "nb201" else 2
    network = Supernet(space, channels=4, layers=layers, num_classes=3, backend="reference")
    network.train()
    for _ in range(3):
        network(2 * torch.randn(16, 3, 8, 8) + 1)
    return network


def batches(count: int = 2):
    generator = torch.Generator().manual_seed(5)
    return [
        (torch.randn(12, 3, 8, 8, generator=generator), torch.randint(3, (12,), generator=generator))
        for _ in range(count)
    ]


@pytest.mark.parametrize("space", ["egnas", "nb201"])
@pytest.mark.parametrize("mode", ["batch", "running", "recalibrate"])
def test_shared_weights_score_each_path_and_stay_as_they_are(space, mode):
    network = supernet(space)
    encoding = encoding_of(network.space)
    before = copy.deepcopy(network.state_dict())
    momenta = [module.momentum for module in network.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    codes = [encoding.sample(Random(seed)) for seed in range(2)]
    training = [(torch.randn(16, 3, 8, 8), torch.zeros(16))] * 2
    evaluator = SharedWeights(network, batches, mode, lambda: training)
    found = [evaluation.accuracy for evaluation in evaluator.evaluate(codes)]
    assert all(torch.equal(network.state_dict()[name], value) for name, value in before.items())
    assert momenta == [m.momentum for m in network.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert network.training

    expected = []
    for code in codes:
        twin = copy.deepcopy(network)
        path = encoding.op_weights(code)
        if mode == "recalibrate":
            for module in twin.modules():
                if isinstance(module, torch.nn.BatchNorm2d):
                    module.reset_running_stats()
                    module.momentum = None
            with torch.no_grad():
                for images, _ in training:
                    twin(images, path)
        twin.train(mode == "batch")
        with torch.no_grad():
            hits = sum((twin(images, path).argmax(-1) == labels).sum().item() for images, labels in batches())
        expected.append(hits / 24)
    assert found == pytest.approx(expected)


# --- short training, functions, costs ---


def test_short_training_repeats_and_leaves_random_numbers_alone():
    source = data.open("digits", limit=60, image_size=8)
    first, second = source.search_split(0.5)

    def pipeline(indices, train):
        return data.pipeline(source, "tensor", batch_size=15, indices=indices, train=train)

    def build(genotype):
        return derived_network(genotype, channels=4, layers=3, num_classes=10, in_channels=1)

    evaluator = ShortTraining(CELLS, build, pipeline(first, True), pipeline(second, False), epochs=2)
    codes = [CELLS.sample(Random(seed)) for seed in (0, 1)]
    state = torch.get_rng_state()
    found = evaluator.evaluate(codes)
    assert torch.equal(state, torch.get_rng_state())
    assert [e.accuracy for e in evaluator.evaluate(codes)] == [e.accuracy for e in found]
    assert all(0 <= e.accuracy <= 1 and e.seconds > 0 for e in found)
    with pytest.raises(UserError, match="epochs of short training is 0"):
        ShortTraining(CELLS, build, pipeline(first, True), pipeline(second, False), epochs=0)


def test_short_training_refuses_batches_that_cannot_be_normalised():
    source = data.open("digits", limit=20, image_size=4)

    def pipeline(batch_size):
        return data.pipeline(source, "tensor", batch_size=batch_size)

    def build(genotype):
        return derived_network(genotype, channels=4, layers=3, num_classes=10, in_channels=1)

    ShortTraining(CELLS, build, pipeline(2), pipeline(2))
    state = torch.get_rng_state()
    with pytest.raises(UserError, match=r"a batch of one image of 4×4 pixels .*: give --batch-size 2 or more"):
        ShortTraining(CELLS, build, pipeline(1), pipeline(2))
    assert torch.equal(state, torch.get_rng_state())


def test_short_training_learns():
    source = data.open("digits", limit=400, image_size=8)
    first, second = source.search_split(0.5)
    pipelines = [
        data.pipeline(source, "tensor", batch_size=20, indices=i, train=t) for i, t in ((first, True), (second, False))
    ]

    def build(genotype):
        return derived_network(genotype, channels=8, layers=3, num_classes=10, in_channels=1)

    code = TABLE.encode(NB201Genotype(("nor_conv_3x3", "skip_connect", "nor_conv_1x1") * 2))
    (found,) = ShortTraining(TABLE, build, *pipelines, epochs=4).evaluate([code])
    assert found.accuracy > 0.3


def test_any_callable_evaluates():
    def skips(genotype: Genotype) -> float:
        return genotype.skip_count("normal") / 8

    code = CELLS.sample(Random(2))
    (found,) = Function(skips, CELLS).evaluate([code])
    assert found.accuracy == CELLS.decode(code).skip_count("normal") / 8
    assert found.seconds >= 0
    (found,) = Function(lambda g: {"accuracy": 0.5, "seconds": 7, "macs": 3}, CELLS).evaluate([code])
    assert (found.accuracy, found.seconds, found.costs) == (0.5, 7.0, {"macs": 3.0})
    for answer in ({"error": 1}, "good", None):
        with pytest.raises(UserError, match="expected the accuracy, or a mapping"):
            Function(lambda g, answer=answer: answer, CELLS).evaluate([code])


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        *((value, "the accuracy .*, expected a share from 0 to 1") for value in (math.nan, math.inf, -0.1, 1.01, 93.2)),
        *(({"accuracy": 0.5, "seconds": value}, "seconds, expected a finite number of at least 1e-09")
          for value in (0, -1, 1e-300, math.nan, math.inf)),
        ({"accuracy": 0.5, "macs": math.nan}, "the cost macs as nan"),
        (10**400, "expected the accuracy, or a mapping"),
    ],
)  # fmt: skip
def test_numbers_that_no_search_can_use_are_refused(answer: object, message: str):
    """With 0 seconds, or NaN, no budget would ever be spent."""
    strategy = strategies.create("random", batch=2)
    with pytest.raises(UserError, match=message):
        list(strategy.run(Function(lambda genotype: answer, CELLS), seed=0, seconds=10.0))


def test_what_the_function_raises_is_one_line_and_says_where():
    code = CELLS.sample(Random(0))
    for error in (ValueError("a\nb"), SystemExit(1), MemoryError(), RecursionError("deep")):

        def fail(genotype, error=error):
            raise error

        with pytest.raises(UserError, match=rf"raised {type(error).__name__}.*test_evaluators\.py, line \d+") as caught:
            Function(fail, CELLS).evaluate([code])
        assert "\n" not in str(caught.value)


def test_callables_are_found_by_name(tmp_path, monkeypatch):
    (tmp_path / "my_scores.py").write_text("def score(genotype):\n    return 0.25\n\nlimit = 3\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert load("my_scores:score")(None) == 0.25
    modules = {
        "broken_syntax": "def score(:\n",
        "needs_other": "import no_such_module\n",
        "leaves": "import sys\nsys.exit(3)\n",
        "attribute": "None.x\n",
        "zeros": "a = 1\0\n",
    }
    for name, text in modules.items():
        (tmp_path / f"{name}.py").write_text(text)
    for name, message in [
        ("my_scores", "expected python:MODULE:OBJECT"),
        ("my_scores:limit", "is not callable"),
        ("my_scores:other", "cannot be imported: .* no attribute 'other'; give the name"),
        ("no_such_module:f", "cannot be imported: No module named 'no_such_module'; is its folder"),
        ("broken_syntax:f", r"its code raised SyntaxError: .*broken_syntax\.py, line 1"),
        ("needs_other:f", r"No module named 'no_such_module'; is its folder"),
        ("leaves:f", r"its code raised SystemExit: 3 \(.*leaves\.py, line 2\)"),
        ("attribute:f", r"its code raised AttributeError: .*attribute\.py, line 1\)"),
        ("..my_scores:f", "its code raised TypeError"),
        ("zeros:f", "its code raised (ValueError|SyntaxError): .*null bytes"),
    ]:
        with pytest.raises(UserError, match=message) as caught:
            load(name)
        assert "\n" not in str(caught.value)
    sys.modules.pop("my_scores")


@pytest.mark.parametrize("encoding", [CELLS, TABLE], ids=["cells", "nb201"])
def test_costs_are_those_of_the_derived_network(encoding):
    from fastnas import count_macs, count_parameters

    def build(genotype):
        return derived_network(genotype, channels=4, layers=3, num_classes=10)

    code = encoding.sample(Random(0))
    costs = Costs(("parameters", "macs", "latency"), encoding, build, (3, 16, 16)).of(code)
    network = build(encoding.decode(code))
    assert costs["parameters"] == count_parameters(network) / 1e6
    assert costs["macs"] == count_macs(network, (3, 16, 16)) / 1e6
    assert costs["latency"] > 0
    with pytest.raises(UserError, match="unknown cost 'joules'"):
        Costs(("joules",), encoding, build, (3, 16, 16))


def test_the_network_of_the_benchmark_has_its_parameters():
    """The cell of 3×3 convolutions in the table: 1.531546 M."""
    network = derived_network(NB201Genotype(("nor_conv_3x3",) * 6), channels=16, layers=15)
    assert sum(p.numel() for p in network.parameters()) == 1_531_546
    assert network(torch.randn(2, 3, 32, 32)).shape == (2, 10)


# --- in a search ---


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("weights", "unknown evaluator 'weights'"),
        ("training:fast", "expected training, or training:EPOCHS"),
        ("python:none", "expected python:MODULE:OBJECT"),
        ("nb201:nowhere.csv", "cannot read the table"),
    ],
)
def test_unknown_evaluators_are_explained(spec, message):
    source = data.open("digits", limit=40, image_size=8)
    pipeline = data.pipeline(source, "tensor", batch_size=10)
    search = SimpleNamespace(network=supernet(), weight_pipeline=pipeline, valid_pipeline=pipeline, seed=0)
    with pytest.raises(UserError, match=message):
        for_search(search, SimpleNamespace(evaluator=spec))


@pytest.mark.parametrize("evaluator", ["training:1", "python:scores:convolutions"])
def test_a_search_takes_other_evaluators(evaluator, tmp_path, monkeypatch):
    from fastnas.cli.configuration import parse_search
    from fastnas.search import prepare

    (tmp_path / "scores.py").write_text(
        "def convolutions(genotype):\n    return sum('conv' in name for name, _ in genotype.normal) / 8\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    flags = "--data digits --limit 60 --batch-size 10 --image-size 8 --channels 4 --layers 3 --epochs 1 --evaluations 4"
    arguments = [
        *flags.split(),
        "--strategy",
        "aging-evolution",
        "--evaluator",
        evaluator,
        "--out",
        str(tmp_path / "run"),
    ]
    search = prepare(parse_search(arguments, "test", ""), arguments)
    outcome = search.run()
    assert search.strategy.evaluated == 4
    if evaluator.startswith("python"):
        count = sum("conv" in name for name, _ in outcome.genotype.normal)
        assert count / 8 == search.strategy.best.accuracy
