"""The harness itself: order, ratios, floors, peak memory, what is written down, and the work in a network."""

from __future__ import annotations

import csv
import json
import math
from dataclasses import asdict, replace
from io import StringIO
from pathlib import Path

import pytest
import torch
from rich.console import Console

from benchmarks.harness import FASTNAS, PLAIN, Row, ceilings, compare, networks, output, timing
from benchmarks.harness.ceilings import Ceilings, floor_ms
from benchmarks.harness.memory import peak_memory
from benchmarks.harness.networks import SPACES, build, draw_images, with_running_statistics, work
from fastnas import count_macs
from fastnas.nn import Supernet
from fastnas.spaces import CELL_KINDS

CPU = torch.device("cpu")


class Machine:
    """A clock that only contenders move, and what they did."""

    def __init__(self) -> None:
        self.now = 0.0
        self.calls: list[str] = []

    def perf_counter(self) -> float:
        return self.now

    def contender(self, name: str, *milliseconds: float):
        """Takes the given times in turn, the last one for good."""
        times = list(milliseconds)

        def run() -> None:
            self.calls.append(name)
            self.now += 1e-3 * (times.pop(0) if len(times) > 1 else times[0])

        return run

    def milliseconds(self, run, device) -> float:
        begin = self.now
        run()
        return 1e3 * (self.now - begin)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    made = Machine()
    monkeypatch.setattr(timing, "time", made)
    monkeypatch.setattr(timing, "milliseconds", made.milliseconds)
    monkeypatch.setattr(timing, "ceilings", lambda device: Ceilings(gemm_gflops=100.0, copy_gbs=10.0))
    return made


def measured(contenders, **options) -> dict[str, Row]:
    settings = {"baseline": PLAIN, "least_bytes": 0, "device": CPU, "seconds": 0.0, "warm_up": 0} | options
    return {row.contender: row for row in compare("name", "case", "both", contenders, **settings)}


def test_contenders_take_turns_after_the_warm_up(machine):
    rows = measured({PLAIN: machine.contender("a", 1), FASTNAS: machine.contender("b", 1)}, seconds=0.02, warm_up=2)
    assert machine.calls == ["a", "b"] * (2 + 10)
    assert rows[PLAIN].repetitions == 10


def test_at_least_five_repetitions_of_what_is_quick_and_three_of_what_is_slow(machine):
    assert measured({PLAIN: machine.contender("a", 300)}, seconds=1.0)[PLAIN].repetitions == 5
    assert measured({PLAIN: machine.contender("a", 900)}, seconds=1.0)[PLAIN].repetitions == 5
    assert measured({PLAIN: machine.contender("a", 1100)}, seconds=1.0)[PLAIN].repetitions == 3
    machine.calls.clear()
    assert measured({PLAIN: machine.contender("a", 1100)}, seconds=1.0, warm_up=3)[PLAIN].repetitions == 3
    assert len(machine.calls) == 1 + 3


def test_ratios_are_pair_by_pair(machine):
    """On a machine that slows down by 10 half way, the medians are far apart but every pair has the same ratio."""
    drift = [1, 1, 1, 10, 10]
    rows = measured(
        {
            PLAIN: machine.contender("a", *(6 * slow for slow in drift)),
            "other": machine.contender("c", *(4 * slow for slow in drift)),
            FASTNAS: machine.contender("b", *(2 * slow for slow in drift)),
        },
        seconds=0.27,
    )
    assert rows[FASTNAS].p50_ms == pytest.approx(2)
    assert rows[FASTNAS].p80_ms == pytest.approx(20)
    assert [row.speed_up for row in rows.values()] == pytest.approx([1, 1.5, 3])
    assert [row.fastnas_speed_up for row in rows.values()] == pytest.approx([3, 2, 1])


def test_percentiles(machine):
    row = measured({PLAIN: machine.contender("a", 5, 1, 4, 2, 3)}, seconds=0.0145)[PLAIN]
    assert (row.p20_ms, row.p50_ms, row.p80_ms) == pytest.approx((1.8, 3, 4.2))


def test_without_fastnas_there_is_no_ratio_to_it(machine):
    assert measured({PLAIN: machine.contender("a", 1)})[PLAIN].fastnas_speed_up is None


def test_work_is_compared_with_the_ceilings(machine):
    """100 GFLOP/s and 10 GB/s: 1 GFLOP takes 10 ms, 50 MB take 5 ms."""
    contenders = {PLAIN: machine.contender("a", 40)}
    row = measured(contenders, flops=10**9, least_bytes=50 * 10**6)[PLAIN]
    assert (row.flops, row.bytes, row.threads) == (10**9, 50 * 10**6, torch.get_num_threads())
    assert (row.floor_ms, row.floor_fraction) == pytest.approx((10, 0.25))
    assert (row.gigaflops_per_second, row.gigabytes_per_second) == pytest.approx((25, 1.25))
    assert (row.gemm_gflops, row.copy_gbs) == (100, 10)
    row = measured(contenders, flops=10**8, least_bytes=50 * 10**6)[PLAIN]
    assert (row.floor_ms, row.floor_fraction) == pytest.approx((5, 0.125))
    assert measured(contenders, least_bytes=50 * 10**6)[PLAIN].floor_ms == pytest.approx(5)  # flops may be left out


def test_preparation_is_not_timed_and_partial_work_is_scaled(machine):
    contenders = {PLAIN: machine.contender("a", 3), FASTNAS: machine.contender("b", 4)}
    rows = measured(
        contenders,
        before={FASTNAS: machine.contender("prepare", 1000)},
        scale={PLAIN: 8.0},
        notes={PLAIN: "an eighth"},
        memory={FASTNAS: 7, PLAIN: None},
        images=48,
    )
    assert machine.calls[:3] == ["a", "prepare", "b"]
    assert rows[PLAIN].p50_ms == pytest.approx(24)
    assert rows[FASTNAS].p50_ms == pytest.approx(4)
    assert rows[FASTNAS].speed_up == pytest.approx(6)
    assert rows[PLAIN].images_per_second == pytest.approx(2000)
    assert (rows[PLAIN].note, rows[FASTNAS].note) == ("an eighth", "")
    assert (rows[PLAIN].peak_bytes, rows[FASTNAS].peak_bytes) == (None, 7)


@pytest.mark.parametrize("argument", ["memory", "notes", "scale", "before"])
def test_a_name_that_is_no_contender_is_refused(machine, argument):
    with pytest.raises(ValueError, match=rf"{argument} names \['fastnos'\]"):
        measured({PLAIN: machine.contender("a", 1)}, **{argument: {"fastnos": 1}})
    with pytest.raises(ValueError, match="baseline names"):
        measured({PLAIN: machine.contender("a", 1)}, baseline="nobody")


def test_ceilings_are_measured_once_and_take_the_best_repetition(monkeypatch):
    times = iter([9.0, 4.0, 2.0, 8.0, 4.0, *(9.0, 4.0, 1.0, 8.0, 4.0)])
    monkeypatch.setattr(ceilings, "SIDE", {"cpu": 100})
    monkeypatch.setattr(ceilings, "COPIED", {"cpu": 4000})
    monkeypatch.setattr(ceilings, "SECONDS", 0.0)
    monkeypatch.setattr(ceilings, "milliseconds", lambda run, device: (run(), next(times))[1])
    ceilings._measured.cache_clear()
    try:
        limits = ceilings.ceilings(CPU)
        assert limits.gemm_gflops == pytest.approx(2 * 100**3 / 2e-3 / 1e9)  # 2 n³ in 2 ms
        assert limits.copy_gbs == pytest.approx(2 * 4000 / 1e-3 / 1e9)  # read and written in 1 ms
        assert ceilings.ceilings(CPU) is limits
    finally:
        ceilings._measured.cache_clear()


def test_floor_is_the_larger_of_arithmetic_and_traffic():
    limits = Ceilings(gemm_gflops=50.0, copy_gbs=20.0)
    assert floor_ms(10**9, 10**6, limits) == pytest.approx(20)
    assert floor_ms(10**3, 10**9, limits) == pytest.approx(50)


# --- what is written down ---


ROW = Row(
    benchmark="step", case="8×8", mode="both", contender=PLAIN, threads=2, repetitions=7, p20_ms=150.0, p50_ms=200.0,
    p80_ms=1300.0, speed_up=1.0, fastnas_speed_up=4.25, flops=2 * 10**9, bytes=3 * 10**6, gigaflops_per_second=10.0,
    gigabytes_per_second=0.015, gemm_gflops=124.0, copy_gbs=20.0, floor_ms=16.1, floor_fraction=0.0806,
    peak_bytes=300 * 2**20, images=64, images_per_second=320.0, note="one of two",
)  # fmt: skip
OURS = replace(ROW, contender=FASTNAS, p50_ms=47.1, speed_up=4.25, fastnas_speed_up=1.0, peak_bytes=None, note="")


def test_csv_and_json_hold_every_field_and_the_origin(tmp_path: Path):
    output.write([ROW, OURS], tmp_path / "new" / "cpu-2.5GHz", CPU, "python -m benchmarks step")
    content = json.loads((tmp_path / "new" / "cpu-2.5GHz.json").read_text())
    assert content["rows"] == [asdict(ROW), asdict(OURS)]
    assert content["command"] == "python -m benchmarks step"
    assert content["environment"]["torch"] == torch.__version__
    assert content["environment"]["threads"] == torch.get_num_threads()
    with (tmp_path / "new" / "cpu-2.5GHz.csv").open(newline="", encoding="utf-8") as file:
        first, second = csv.DictReader(file)
    assert set(asdict(ROW)) | {"commit", "torch", "isa", "device"} == set(first)
    assert (first["contender"], second["contender"]) == (PLAIN, FASTNAS)
    assert float(first["p50_ms"]) == 200.0
    assert (first["peak_bytes"], second["peak_bytes"]) == (str(300 * 2**20), "")
    assert first["torch"] == torch.__version__


def shown(rows: list[Row]) -> list[str]:
    console = Console(file=StringIO(), width=40)  # narrower than the table: lines must stay whole
    output.show(rows, console)
    return console.file.getvalue().splitlines()


def test_the_table_has_a_line_for_each_contender():
    lines = shown([ROW, OURS, replace(ROW, mode="forward")])
    assert "step 8×8, both: 2 GFLOP, 3 MB, floor 16.1 ms" in lines
    plain = next(line for line in lines if line.split()[:2] == ["plain", "torch"]).split()
    assert plain[2:] == ["7", "200", "150–1,300", "1.00×", "4.25×", "0.081", "10.0", "0.0", "320", "300", "MiB"]
    assert any(line.split()[:3] == ["fastnas", "7", "47.1"] for line in lines)
    assert "  plain torch: one of two" in lines
    assert "Ceilings, threads 2: 124 GFLOP/s (float32 product), 20.0 GB/s (copy)." in lines
    assert len([line for line in lines if line.startswith("step 8×8")]) == 2


def test_the_table_leaves_out_columns_without_values():
    bare = replace(ROW, flops=0, peak_bytes=None, images=None, images_per_second=None, fastnas_speed_up=None)
    header = next(line for line in shown([bare]) if line.lstrip().startswith("contender")).split()
    assert header == ["contender", "n", "ms", "p20–p80", "speed-up", "floor", "GB/s"]


# --- peak memory ---


@pytest.fixture
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    """The fresh process must find `allocating_task`."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent), prepend=":")


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc")
def test_peak_memory_is_what_a_call_allocates(importable):
    peak = peak_memory("allocating_task", CPU, mebibytes=300)
    assert 295 <= peak / 2**20 <= 310


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc")
def test_a_failure_in_the_fresh_process_is_reported(importable):
    with pytest.raises(
        RuntimeError, match=r"allocating_task .* status 1(?s:.*)unexpected keyword argument 'gibibytes'"
    ):
        peak_memory("allocating_task", CPU, gibibytes=1)


# --- the networks ---


@pytest.mark.parametrize("space", SPACES)
def test_flops_are_those_of_all_convolutions(space):
    network = Supernet(space, channels=8, layers=2, partial_channels=SPACES[space])
    counted = count_macs(network, (2, 3, 16, 16))
    needed = work(space, 8, 2, 2, 16)
    assert needed.flops("forward") == 2 * counted
    stem = 2 * 16 * 16 * 24 * 27  # images × pixels × channels × 3·3·3
    assert needed.flops("both") == 2 * (3 * counted - stem)


def test_flops_of_the_networks_that_papers_search_with():
    assert work("darts", 16, 8, 64, 32).flops("forward") / 1e9 == pytest.approx(38.4, abs=0.05)
    assert work("egnas", 16, 8, 64, 32).flops("forward") / 1e9 == pytest.approx(7.2, abs=0.05)


def test_bytes_are_those_of_states_parameters_and_images():
    network = Supernet("egnas", channels=4, layers=3, partial_channels=4)
    # Cells 1 and 2 reduce. Channels of a state: stem 12, cells 4, 8, 16 (4 nodes each), sizes 16, 8, 4.
    states = 12 * 16**2 + (2 * 4 + 4 * 4) * 16**2 + (2 * 8 * 16**2 + 4 * 8 * 8**2)
    states += (16 * 8**2 + 16 * 8**2) + 4 * 16 * 4**2
    states *= 4 * 2  # bytes, images
    parameters = 4 * sum(parameter.numel() for parameter in network.parameters())
    images = 4 * 2 * 3 * 16**2
    needed = work("egnas", 4, 3, 2, 16)
    assert needed.bytes("forward") == images + parameters + 2 * states
    assert needed.bytes("both") == 2 * images + 3 * parameters + 5 * states
    assert needed.population_bytes(7, "running") == images + parameters


def test_the_part_within_a_cell():
    whole = work("egnas", 4, 3, 2, 16)
    part = whole.within("cells.1", inputs=100)
    assert part.inputs == 100
    assert set(part.states) == {"cells.1", "cells.1.preprocess0", "cells.1.preprocess1"}
    assert all(name.startswith("cells.1.") for name in [*part.macs, *part.parameters])
    parts = [whole.within(name, 0) for name in ("stem", "cells.0", "cells.1", "cells.2", "classifier")]
    assert sum(part.flops("forward") for part in parts) == whole.flops("forward")


@pytest.mark.parametrize("space", SPACES)
def test_what_a_population_shares_is_what_alpha_cannot_reach(space):
    """Convolutions whose outputs stay the same, to the bit, under another α."""
    network = Supernet(space, channels=4, layers=3, partial_channels=SPACES[space], backend="reference")
    outputs: dict[str, list[torch.Tensor]] = {}
    for name, module in network.named_modules():
        if isinstance(module, torch.nn.Conv2d | torch.nn.Linear):
            module.register_forward_hook(lambda _, args, y, name=name: outputs.setdefault(name, []).append(y))
    images = torch.randn(2, 3, 8, 8)
    for _ in range(2):
        with torch.no_grad():
            network(images, {kind: torch.rand_like(network.alphas[kind]) for kind in CELL_KINDS})
    shared = {name for name, (first, second) in outputs.items() if torch.equal(first, second)}
    needed = work(space, 4, 3, 2, 8)
    assert set(needed.macs) == set(outputs)
    alone = sum(macs for name, macs in needed.macs.items() if name not in shared)
    assert needed.population_flops(1) == needed.flops("forward")
    assert needed.population_flops(5) - needed.population_flops(4) == 2 * alone
    assert needed.population_bytes(5, "batch") - needed.population_bytes(4, "batch") == 2 * sum(
        size for name, size in needed.states.items() if not name.startswith(("stem", "cells.0.", "cells.1.preprocess0"))
    )


def test_contenders_hold_the_same_network():
    plain, last, ours = (build("egnas", name, CPU, 4, 3).eval() for name in (PLAIN, networks.CHANNELS_LAST, FASTNAS))
    assert (plain.backend, last.backend, ours.backend) == ("reference", "reference", "fused")
    images = draw_images(2, 8, PLAIN, CPU)
    assert images.is_contiguous()
    assert draw_images(2, 8, FASTNAS, CPU).is_contiguous(memory_format=torch.channels_last)
    expected = plain(images)
    for name, network in ((networks.CHANNELS_LAST, last), (FASTNAS, ours)):
        torch.testing.assert_close(network(draw_images(2, 8, name, CPU)), expected, rtol=1e-4, atol=1e-5)


def test_running_statistics_are_those_of_the_batch():
    images = draw_images(16, 8, PLAIN, CPU)
    network = with_running_statistics(build("egnas", PLAIN, CPU, 4, 3), images)
    stem = network.stem.conv(images)
    torch.testing.assert_close(network.stem.norm.running_mean, stem.mean((0, 2, 3)), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(network.stem.norm.running_var, stem.var((0, 2, 3)), rtol=1e-4, atol=1e-5)
    assert network.stem.norm.momentum == 0.1
    assert all(math.isfinite(value) for value in network.eval()(images).flatten().tolist())
