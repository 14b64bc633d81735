"""Every end-to-end benchmark at a tiny size: that it runs, that its contenders compute the same, and the command."""

from __future__ import annotations

import csv
import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

from benchmarks import __main__ as command
from benchmarks import cell, data, derived_step, drop_in, mixed_op, population, search_epoch, supernet_step
from benchmarks.harness import CHANNELS_LAST, COMPILED, FASTNAS, FASTNAS_GRAPHED, GRAPHED, PLAIN, timing
from benchmarks.harness.ceilings import Ceilings
from benchmarks.harness.memory import peak_memory
from benchmarks.harness.networks import Options, contenders, unrecorded, work
from fastnas.errors import UserError

CPU = torch.device("cpu")
TINY = Options(batch=4, channels=4, layers=2, size=8, space="egnas", individuals=4, timed=2, images=20, memory=False)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "ceilings", lambda device: Ceilings(100.0, 10.0))
    for module in (cell, data, derived_step, drop_in, mixed_op, population, search_epoch, supernet_step):
        monkeypatch.setattr(
            module, "compare", lambda *given, **options: timing.compare(*given, **options | {"warm_up": 0})
        )


def test_supernet_step():
    rows = supernet_step.measure(CPU, 0.0, replace(TINY, space=None, layers=1))
    assert [(row.case.split()[0], row.mode, row.contender) for row in rows] == [
        (space, mode, contender)
        for space in ("egnas", "darts")
        for mode in ("forward", "both")
        for contender in (PLAIN, CHANNELS_LAST, FASTNAS)
    ]
    assert rows[0].case == "egnas k=4 C=4 1 cells, 4×8×8"
    needed = work("darts", 4, 1, 4, 8)
    assert (rows[-1].flops, rows[-1].bytes, rows[-1].images) == (needed.flops("both"), needed.bytes("both"), 4)
    assert all(row.peak_bytes is None for row in rows)


def test_drop_in():
    options = replace(TINY, space=None, channels=8)
    rows = drop_in.measure(CPU, 0.0, options)
    contenders_of = [(row.case.split()[0], row.contender) for row in rows]
    assert contenders_of == [(n, c) for n in ("darts", "pc-darts") for c in (PLAIN, CHANNELS_LAST, FASTNAS)]
    assert rows[0].flops == work("darts", 8, 2, 4, 8).flops("both") > rows[-1].flops
    images = torch.randn(4, 3, 8, 8)
    networks = [drop_in.build("pc-darts", each, CPU, 8, 2) for each in (PLAIN, CHANNELS_LAST, FASTNAS)]
    outputs = [network(images) for network in networks]
    torch.testing.assert_close(outputs[1], outputs[0], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(outputs[2], outputs[0], atol=1e-4, rtol=1e-4)
    with pytest.raises(UserError, match="darts or pc-darts"):
        drop_in.measure(CPU, 0.0, replace(options, space="egnas"))


def test_peak_memory_is_asked_for_the_whole_step_of_each_contender(monkeypatch):
    asked = []
    monkeypatch.setattr(supernet_step, "peak_memory", lambda *given, **arguments: asked.append((given, arguments)) or 9)
    options = replace(TINY, layers=1, memory=True)
    rows = supernet_step.measure(CPU, 0.0, options)
    assert [row.peak_bytes for row in rows] == [None] * 3 + [9] * 3
    common = {"space": "egnas", "mode": "both", "sizes": asdict(options)}
    assert asked == [
        (("benchmarks.supernet_step", CPU), {"contender": name, **common}) for name in (PLAIN, CHANNELS_LAST, FASTNAS)
    ]


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc")
def test_peak_memory_holds_what_plain_torch_keeps_for_backward():
    options = replace(TINY, batch=32, size=16, layers=2, channels=8)
    arguments = {"contender": PLAIN, "space": "egnas", "mode": "both", "sizes": asdict(options)}
    kept = bytes_kept(supernet_step.task(CPU, **arguments).run)
    assert kept > 30 * 2**20
    assert 0.8 * kept < peak_memory("benchmarks.supernet_step", CPU, **arguments) < 2.5 * kept


def bytes_kept(step) -> int:
    """What autograd saves in a step."""
    saved: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        step()
    return sum(saved.values())


def test_cell(monkeypatch):
    compiled = []
    monkeypatch.setattr(torch, "compile", lambda module, dynamic: compiled.append(module) or module)
    rows = cell.measure(CPU, 0.0, TINY)
    assert compiled == []
    assert [(row.mode, row.contender) for row in rows] == [
        (mode, name) for mode in ("forward", "both") for name in (PLAIN, CHANNELS_LAST, FASTNAS)
    ]
    inputs = 2 * 4 * 4 * 12 * 8 * 8  # states × bytes × images × channels × pixels
    part = work("egnas", 4, 3, 4, 8).within("cells.0", inputs)
    assert (rows[0].flops, rows[0].bytes) == (part.flops("forward"), part.bytes("forward"))
    assert rows[-1].bytes == part.bytes("both") + inputs

    rows = cell.measure(CPU, 0.0, replace(TINY, compile=True))
    assert len(compiled) == 1
    assert [row.contender for row in rows[:4]] == [PLAIN, CHANNELS_LAST, FASTNAS, COMPILED]
    assert "compiled in 0 s" in rows[3].note


def test_mixed_op(monkeypatch):
    asked = []
    monkeypatch.setattr(mixed_op, "peak_memory", lambda *given, **arguments: asked.append(arguments["contender"]) or 9)
    rows = mixed_op.measure(CPU, 0.0, replace(TINY, memory=True))
    assert [(row.mode, row.contender) for row in rows] == [
        (mode, contender) for mode in ("forward", "both") for contender in (PLAIN, CHANNELS_LAST, FASTNAS)
    ]
    assert asked == [PLAIN, CHANNELS_LAST, FASTNAS]
    inputs = 4 * 4 * 4 * 8**2
    part = work("egnas", 4, 3, 4, 8).within("cells.0.edges.0", inputs)
    assert (rows[0].flops, rows[0].bytes) == (part.flops("forward"), part.bytes("forward"))
    assert (rows[-1].bytes, rows[-1].peak_bytes) == (part.bytes("both") + inputs, 9)
    assert part.flops("forward") > 0


@pytest.mark.parametrize("space", ["darts", "egnas"])
def test_contenders_of_a_mixed_op_compute_the_same(space):
    sizes = asdict(replace(TINY, channels=8))
    expected = mixed_op.runs(CPU, PLAIN, space, sizes, batch=4)["both"]()
    for contender in (CHANNELS_LAST, FASTNAS):
        for ours, theirs in zip(mixed_op.runs(CPU, contender, space, sizes, batch=4)["both"](), expected, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4 * max(1.0, float(theirs.abs().max())))


def test_contenders_of_a_cell_compute_the_same():
    sizes = asdict(TINY)
    expected = cell.runs(CPU, PLAIN, "darts", sizes, batch=4)["both"]()
    assert len(expected) > 100  # two states, α, and every weight
    for contender in (CHANNELS_LAST, FASTNAS):
        actual = cell.runs(CPU, contender, "darts", sizes, batch=4)["both"]()
        for one, other in zip(actual, expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3)


def test_population():
    rows = population.measure(CPU, 0.0, TINY)
    assert [(row.mode, row.contender) for row in rows] == [
        (f"{mode} statistics", name) for mode in ("running", "batch") for name in (PLAIN, CHANNELS_LAST, FASTNAS)
    ]
    assert rows[0].note == "2 of 4 individuals, one by one; their time × 2."
    assert rows[2].note == ""
    assert rows[0].images == 4 * 4
    assert rows[0].flops == work("egnas", 4, 2, 4, 8).population_flops(4)


@pytest.mark.parametrize("bn_mode", ["running", "batch"])
def test_contenders_score_the_same_individuals(bn_mode):
    sizes = asdict(TINY)
    plain, ours = (population.task(CPU, name, "egnas", bn_mode, sizes).run() for name in (PLAIN, FASTNAS))
    assert plain.shape == (2, 4, 10)
    assert ours.shape == (4, 4, 10)
    torch.testing.assert_close(ours[:2], plain, rtol=1e-3, atol=1e-4)


def test_search_epoch(monkeypatch):
    finished = []
    run = search_epoch.Search.run
    monkeypatch.setattr(search_epoch.Search, "run", lambda self: finished.append((self, run(self))) or finished[-1][1])
    rows = search_epoch.measure(CPU, 0.0, replace(TINY, layers=1))
    assert [row.contender for row in rows] == [CHANNELS_LAST, FASTNAS]
    assert rows[0].mode == "2 steps + evolution"
    assert rows[0].images == 2 * 4
    step, scored = work("egnas", 4, 1, 4, 8), work("egnas", 4, 1, 10, 8)
    assert rows[0].flops == 2 * step.flops("both") + sum(scored.population_flops(count) for count in (1, 4, 1))
    # The first epoch of both, in which α is fixed, then the second again and again, with one evolution step each.
    assert [outcome.epoch for _, outcome in finished[:2]] == [1, 1]
    assert {outcome.epoch for _, outcome in finished[2:]} == {2}
    assert {search.strategy.evolution_step for search, _ in finished[2:]} == {1}
    assert {search.network.backend for search, _ in finished} == {"reference", "fused"}
    assert all(outcome.valid_accuracy is None for _, outcome in finished)


def test_data():
    rows = data.measure(CPU, 0.0, TINY)
    cases = dict.fromkeys(row.case for row in rows)
    assert [case.split(",")[0] for case in cases] == [
        "array 32×32", "JPEG tree 32×32", "JPEG tree 500×375", "egnas k=4 C=4 2 cells"
    ]  # fmt: skip
    contenders = [row.contender for row in rows if row.case.startswith("array")]
    assert contenders[:4] == ["DataLoader, 0 workers", "DataLoader, 2 workers", "tensor, 1 thread", "tensor, 2 threads"]
    assert {row.images for row in rows} == {20, 4}


def test_the_recipe_of_the_data_benchmark_does_what_the_pipeline_does(tmp_path):
    source = data.write_small(tmp_path, 40)
    loader = next(iter(data.DataLoader(data.Resident(source), batch_size=40)))[0]
    ours = data.data.pipeline(source, "tensor", batch_size=40).batch(0, 0)[0]
    assert loader.shape == ours.shape
    assert loader.dtype == ours.dtype
    assert abs(loader.mean() - ours.mean()) < 0.2
    assert abs(loader.std() - ours.std()) < 0.1
    holes = [(images == 0).all(1).float().mean((1, 2)) for images in (loader, ours)]
    assert all(hole.min() >= 1 / 16 and hole.max() <= 1 / 4 for hole in holes)


def test_the_command_writes_every_row(tmp_path, capsys):
    sizes = "--space egnas --batch 2 --channels 4 --size 4 --seconds 0 --no-memory"
    command.main(["cell", "mixed_sum", "cell", *sizes.split(), "--out", str(tmp_path / "table")])
    text = capsys.readouterr().out
    assert "cell egnas k=4 C=4, 2×4×4, both" in text
    with (tmp_path / "table.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["benchmark"] for row in rows[:6]] == ["cell"] * 6
    assert {row["benchmark"] for row in rows[6:]} == {"mixed_sum"}  # a name given twice is measured once
    content = json.loads((tmp_path / "table.json").read_text())
    assert len(content["rows"]) == len(rows)
    assert content["command"].startswith("python -m benchmarks cell mixed_sum cell --space egnas")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["sell"], "unknown benchmark sell: choose from ops, "),
        (["cell", "--device", "tpu"], "unknown device 'tpu'"),
        (["cell", "--batch", "0"], "--batch: it is '0', expected a whole number"),
        (["cell", "--channels", "6", "--space", "egnas"], "6 channels cannot be cut"),
    ],
)
def test_the_command_explains_what_it_cannot_do(arguments, message, capsys):
    with pytest.raises(SystemExit) as exit_info:
        command.main([*arguments, "--seconds", "0", "--no-memory"] if "--batch" not in arguments else arguments)
    assert exit_info.value.code == 2
    assert message in capsys.readouterr().err


def test_every_file_is_found_by_its_name():
    assert "mixed_sum" in command.operators()
    assert command.end_to_end() == [
        "cell",
        "data",
        "derived_step",
        "drop_in",
        "mixed_op",
        "population",
        "search_epoch",
        "supernet_step",
    ]


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("benchmark", [supernet_step, population])
def test_on_a_gpu_recorded_contenders_take_part(benchmark):
    rows = benchmark.measure(torch.device("cuda"), 0.0, replace(TINY, layers=1))
    assert {row.contender for row in rows} == {PLAIN, CHANNELS_LAST, FASTNAS, GRAPHED, FASTNAS_GRAPHED}


def test_only_a_gpu_has_recorded_contenders():
    assert contenders(CPU) == (PLAIN, CHANNELS_LAST, FASTNAS) == unrecorded(torch.device("cuda"))
    assert contenders(torch.device("cuda")) == (PLAIN, CHANNELS_LAST, FASTNAS, GRAPHED, FASTNAS_GRAPHED)
