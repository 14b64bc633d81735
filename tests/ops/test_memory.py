"""The caching allocator behind large CPU tensors of the operators: blocks are kept, cut to size and joined again."""

from __future__ import annotations

import gc
import itertools
from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fastnas._library import _C

KIB, MIB = 1 << 10, 1 << 20
REGION = 128 * MIB  # csrc/cpu/caching_allocator.cpp: what is asked of the system at once, at least

reuses_blocks = pytest.mark.skipif(
    _C.build_info()["build_type"] == "Sanitize", reason="a sanitized build reuses no block, to see accesses after free"
)


def empty(size: int) -> Tensor:
    """`size` bytes of the operators' memory."""
    return torch.ops.fastnas.empty_images(torch.empty(0), [1, 1, 1, size // 4])


def held() -> int:
    use = _C.memory_use()
    return use["used"] + use["cached"]


@pytest.fixture(autouse=True)
def nothing_used() -> Iterator[None]:
    gc.collect()
    before = _C.memory_use()["used"]
    yield
    assert _C.memory_use()["used"] == before


@given(
    steps=st.lists(st.tuples(st.integers(64, 3000), st.integers(0, 5)), min_size=1, max_size=40),
    unit=st.sampled_from([KIB, 4 * KIB]),
)
@settings(max_examples=40, deadline=None)
def test_blocks_keep_their_contents(steps: list[tuple[int, int]], unit: int) -> None:
    """Tensors come and go in any order; none may reach into another."""
    alive: list[tuple[Tensor, float]] = []
    for number, (size, leaving) in enumerate(steps):
        tensor = empty(size * unit).fill_(number)
        assert tensor.data_ptr() % 64 == 0
        alive.append((tensor, number))
        if leaving < len(alive):
            del alive[leaving]
        assert all(bool((each == value).all()) for each, value in alive)


def test_the_same_step_needs_no_more_memory() -> None:
    def step() -> None:
        first = [empty(size * MIB) for size in (8, 8, 32, 2, 2)]
        del first[1:3]
        second = [empty(size * MIB) for size in (16, 16, 3)]
        del first, second

    step()
    before = held()
    for _ in range(3):
        step()
    assert held() == before


@reuses_blocks
def test_memory_is_cut_and_joined() -> None:
    whole = empty(60 * MIB)
    start = whole.data_ptr()
    del whole
    before = held()
    parts = [empty(10 * MIB) for _ in range(5)]
    addresses = sorted(part.data_ptr() for part in parts)
    assert held() == before, "five small tensors lie where the large one was"
    assert all(b - a >= 10 * MIB for a, b in itertools.pairwise(addresses))
    del parts[::2], parts
    again = empty(60 * MIB)
    assert held() == before, "and a large one where they were"
    assert abs(again.data_ptr() - start) < REGION


@reuses_blocks
def test_tensors_of_a_power_of_two_begin_in_different_sets_of_a_cache() -> None:
    tensors = [empty(2 * MIB) for _ in range(8)]
    assert len({tensor.data_ptr() % 4096 for tensor in tensors}) == 8


def test_whole_regions_are_given_back() -> None:
    peak = max(_C.memory_use()["peak"], 200 * MIB)
    for size in (200, 300, 400, 500, 600):  # each too large for what the last one left
        del (tensor := [empty(size * MIB)])[:]
        assert tensor == []
    assert held() <= max(peak, 600 * MIB) + 2 * REGION
