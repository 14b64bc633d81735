"""What is counted: bytes, FLOPs and launches of the roofline, and the rules for compiled kernels."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode

from benchmarks.analysis import instructions, profile, resources, roofline
from benchmarks.analysis.counting import GPUS, SECTOR, Count, Counting, moved_bytes, total
from benchmarks.analysis.resources import Instance
from benchmarks.analysis.roofline import Sizes
from benchmarks.harness import FASTNAS, PLAIN
from benchmarks.harness.ceilings import Ceilings
from fastnas.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
SMALL = Sizes(layers=1, batch=4, individuals=10)


@given(
    shape=st.lists(st.integers(1, 5), min_size=1, max_size=4),
    channels=st.integers(1, 40),
    part=st.integers(1, 40),
    double=st.booleans(),
)
def test_dense_tensors_move_once_and_parts_in_sectors(shape, channels, part, double):
    dtype = torch.float64 if double else torch.float32
    whole = torch.empty(*shape, channels, dtype=dtype)
    assert moved_bytes(whole) == whole.nbytes
    assert moved_bytes(whole.transpose(0, -1)) == whole.nbytes
    piece = whole[..., : min(part, channels)]
    assert piece.nbytes <= moved_bytes(piece)
    if min(part, channels) < channels and piece[..., 0].numel() > 1:
        sectors = -(-piece.shape[-1] * piece.element_size() // SECTOR)
        assert moved_bytes(piece) == piece[..., 0].numel() * sectors * SECTOR


def test_expanded_and_empty_tensors_cost_what_they_store():
    assert moved_bytes(torch.empty(8).expand(100, 8)) == 32
    assert moved_bytes(torch.empty(0, 3)) == 0


def test_a_convolution_is_counted_as_on_paper():
    with FakeTensorMode():
        images, taps = torch.empty(2, 3, 8, 8, requires_grad=True), torch.empty(5, 3, 3, 3, requires_grad=True)
        with Counting() as counting:
            F.relu(F.conv2d(images, taps, padding=1)).sum().backward()
    counts = counting.counts
    y = 4 * 2 * 5 * 8 * 8
    forward = counts["aten.convolution"]
    assert (forward.launches, forward.bytes) == (1, images.nbytes + taps.nbytes + y)
    assert forward.flops == 2 * 2 * 5 * 8 * 8 * 27
    backward = counts["aten.convolution_backward"]
    assert (backward.launches, backward.flops) == (2, 2 * forward.flops)
    assert counts["aten.relu"].bytes == 2 * y
    assert not any("view" in name or "detach" in name or "empty" in name for name in counts)


def test_the_floor_takes_the_slower_of_memory_and_arithmetic():
    count = Count()
    count.add(1, 2 * 10**12, 1)
    count.add(1, 1, 3 * 10**12)
    gpu = replace(GPUS[0], teraflops=3.0, terabytes_per_second=2.0)
    assert count.floor_ms(gpu) == pytest.approx(2000)
    assert count.times(5).floor_ms(gpu) == pytest.approx(10000)


FEWER_LAUNCHES = {"weight step": 5, "population": 10}


@pytest.mark.parametrize("workload", roofline.WORKLOADS)
def test_fused_operators_need_a_third_of_the_bytes_and_few_launches(workload):
    plain, ours = (total(roofline.WORKLOADS[workload](name, SMALL)) for name in (PLAIN, FASTNAS))
    assert 3 * ours.bytes <= plain.bytes
    assert FEWER_LAUNCHES[workload] * ours.launches <= plain.launches


@pytest.mark.parametrize("workload", roofline.WORKLOADS)
def test_so_says_the_committed_table_of_the_papers_setting(workload):
    with roofline.TABLE.open() as file:
        rows = [row for row in csv.DictReader(file) if row["workload"] == workload and row["operator"] == "all"]
    plain, ours = ({row["contender"]: row for row in rows}[name] for name in (PLAIN, FASTNAS))
    assert str(Sizes()) in plain["case"]
    assert 3 * int(ours["bytes"]) <= int(plain["bytes"])
    assert FEWER_LAUNCHES[workload] * int(ours["launches"]) <= int(plain["launches"])


def test_the_report_says_what_it_is_and_writes_a_table(tmp_path, capsys):
    out = tmp_path / "roofline.csv"
    roofline.main(["--layers=1", "--channels=8", "--batch=1", "--size=8", "--individuals=2", f"--out={out}"])
    printed = capsys.readouterr().out
    assert "bounds, not measurements" in printed
    assert all(gpu.name in printed for gpu in GPUS)
    with out.open() as file:
        rows = list(csv.DictReader(file))
    assert {row["workload"] for row in rows} == set(roofline.WORKLOADS)
    sums = [row for row in rows if row["operator"] == "all"]
    for row in sums:
        parts = [r for r in rows if r["operator"] != "all" and all(r[k] == row[k] for k in ("workload", "contender"))]
        assert int(row["bytes"]) == sum(int(part["bytes"]) for part in parts)


# --- resources of compiled kernels -----------------------------------------------------------------------------------

KERNEL = Instance("pool", "sum_kernel", "float, 4", 80, 256, 32, 0, 0, 0, 2, 2, 1, 1)


@pytest.mark.parametrize(
    ("changes", "occupancy"),
    [
        ({}, 1.0),
        ({"registers": 40}, 0.75),  # 65536 / (40 · 256) = 6 blocks of 8 warps
        ({"registers": 128}, 0.25),
        ({"registers": 255}, 0.125),
        ({"shared_bytes": 40 << 10}, 0.5),  # 164 / 41 = 4 blocks
        ({"shared_bytes": 40 << 10, "architecture": 90}, 0.625),  # 228 / 41 = 5
        ({"threads": 32}, 0.5),  # 32 blocks of one warp
    ],
)
def test_occupancy(changes, occupancy):
    assert replace(KERNEL, **changes).occupancy == occupancy


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stack_bytes": 128}, "128 bytes of stack"),
        ({"local": 3}, "3 accesses to local memory"),
        ({"registers": 255}, "leaves 12% of the warps"),
        ({"wide_loads": 0}, "no instance loads 16 bytes"),
        ({"wide_stores": 0}, "no instance stores 16 bytes"),
    ],
)
def test_every_rule_is_kept_by_somebody_and_broken_by_somebody(changes, message):
    assert resources.violations([KERNEL]) == []
    (sentence,) = resources.violations([replace(KERNEL, **changes)])
    assert message in sentence
    assert sentence.startswith("pool.cu: sum_kernel")


def test_narrow_instances_beside_a_wide_one_and_narrow_kernels_are_fine():
    narrow = replace(KERNEL, arguments="float, 1", wide_loads=0, wide_stores=0)
    assert resources.violations([KERNEL, narrow]) == []
    assert resources.violations([KERNEL, replace(narrow, arguments="c10::Half, 1")])
    merge = replace(narrow, file="mixed_sum", kernel="merge_kernel")
    assert resources.violations([merge]) == []
    of_a_header = replace(narrow, kernel="prepare_kernel")
    assert resources.violations([of_a_header]) == []
    of_half = replace(narrow, kernel="forward_kernel", arguments="c10::Half, 4")
    assert resources.violations([of_half]) == []
    assert resources.violations([replace(of_half, arguments="float, 4")])


def test_double_has_to_fit_once_and_may_be_narrow():
    double = replace(KERNEL, arguments="double, 1", registers=255, wide_loads=0, wide_stores=0)
    assert resources.violations([double]) == []
    assert "leaves 0% of the warps" in resources.violations([replace(double, shared_bytes=300 << 10)])[0]
    assert resources.violations([replace(double, stack_bytes=8)])


def test_reasons_name_kernels_that_exist():
    sources = {path.name: path.read_text() for path in (ROOT / "csrc" / "cuda").iterdir()}
    for file, kernel in resources.NARROW:
        of_file = [sources[f"{file}.cu"]] if file else [text for name, text in sources.items() if name.endswith(".h")]
        assert any(f" {kernel}(" in text for text in of_file), f"{file} {kernel}"


ASSEMBLY = """
		Function : _ZN4kern
        /*0040*/               @P0 EXIT ;                       /* 0x000000000000794d */
        /*0050*/                   LDG.E.128 R4, [R2.64] ;      /* 0x0 */
        /*0060*/              @!P0 LDG.E R4, [R2.64] ;          /* 0x0 */
        /*0070*/                   STG.E.128 [R8.64], R4 ;      /* 0x0 */
        /*0080*/              @!P0 BRA 0x60 ;                   /* 0x0 */
        /*0090*/                   STL [R1], R4 ;               /* 0x0 */
        /*00a0*/                   BRA 0xa0;                    /* 0x0 */
"""


def test_accesses_count_wide_ones_within_loops():
    (lines,) = resources._assembly(ASSEMBLY).values()
    counts = resources._accesses(lines)
    assert counts == {"local": 1, "loads": 2, "wide_loads": 0, "stores": 1, "wide_stores": 1}


def test_a_binary_without_kernels_is_named(tmp_path):
    empty = tmp_path / "empty.o"
    empty.write_bytes(b"")
    with pytest.raises(UserError, match=r"empty\.o|no cuobjdump"):
        resources.read(empty)


HOT_LOOP = """
0000000000001000 <_ZN7fastnas4avx23sumEv>:
    1000:	vmovups (%rdi),%ymm0
    1004:	vfmadd231ps (%rsi),%ymm0,%ymm1
    1008:	{}
    100c:	cmp    %rax,%rcx
    1010:	jne    1000 <_ZN7fastnas4avx23sumEv>
    1014:	ret
"""


@pytest.mark.parametrize(
    ("instruction", "broken"),
    [
        ("vmaxps (%rdx),%ymm2,%ymm2", ""),
        ("vucomiss %xmm3,%xmm4", "1 scalar comparisons"),
        ("call   2000 <memset@plt>", "calls 1 functions"),
        ("\n".join(["vmovaps %ymm5,0x40(%rsp)", *["    1008:	vmovaps 0x40(%rsp),%ymm5"] * 2]), "moves 3 vectors"),
    ],
)
def test_a_hot_loop_of_a_cpu_kernel_breaks_a_rule(instruction, broken):
    (loop,) = instructions.hot_loops(HOT_LOOP.format(instruction))
    assert (loop.isa, loop.function) == ("avx2", "sum")
    found = instructions.violations([loop])
    assert broken in found[0] if broken else not found


def test_the_compiled_cpu_kernels_keep_the_rules():
    loops = instructions.read(instructions.built_extension())
    functions = {loop.function.partition("<")[0] for loop in loops}
    assert {"halve_grad", "node_sum_forward", "pool_grad", "preprocess_backward", "stage_forward"} <= functions
    assert not instructions.violations(loops)


def test_a_profile_puts_first_what_loses_most():
    bound_by_memory, bound_by_arithmetic = Count(), Count()
    bound_by_memory.add(1, 2 * 10**9, 1)
    bound_by_arithmetic.add(1, 1, 3 * 10**10)
    bound_by_arithmetic.add(1, 1, 3 * 10**10)
    counts = {"memory": bound_by_memory, "arithmetic": bound_by_arithmetic}
    limits = Ceilings(gemm_gflops=100.0, copy_gbs=20.0)
    rows = profile.rows_of("step", {"memory": 150.0, "arithmetic": 1000.0}, 1200.0, counts, limits)
    assert [row.operator for row in rows] == ["arithmetic", "memory", profile.REST]
    assert [(row.calls, row.ms) for row in rows] == [(2, 1000.0), (1, 150.0), (0, pytest.approx(50.0))]
    assert [row.floor_ms for row in rows] == pytest.approx([600.0, 100.0, 0.0])
    assert rows[0].gflops_per_second == pytest.approx(60.0)
    assert rows[1].gigabytes_per_second == pytest.approx(2 / 0.15)


@pytest.mark.parametrize("workload", profile.WORKLOADS)
def test_a_workload_is_profiled(workload, tmp_path, capsys):
    small = ["--batch=2", "--layers=3", "--channels=4", "--individuals=2", "--repetitions=1", "--threads=1"]
    profile.main([workload, *small, f"--out={tmp_path / 'profile'}"])
    printed = capsys.readouterr().out
    with (tmp_path / "profile.csv").open() as file:
        rows = list(csv.DictReader(file))
    fused = {row["operator"]: float(row["ms"]) for row in rows if row["operator"].startswith("fastnas::")}
    assert len(fused) >= 4
    assert all(ms > 0 for ms in fused.values())
    assert rows[0]["operator"] in printed
    assert (tmp_path / "profile.png").stat().st_size > 10_000
