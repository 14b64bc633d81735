"""philox against the known answers of its authors and against its plain-torch reference."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastnas._library import _C
from fastnas.ops import philox, philox_reference

pytestmark = pytest.mark.usefixtures("backend")

OPS = torch.ops.fastnas
int64s = st.integers(-(2**63), 2**63 - 1)


def signed(low: int, high: int) -> int:
    """Two 32-bit words as one int64."""
    value = high << 32 | low
    return value - 2**64 if value >= 2**63 else value


# philox4x32-10 in kat_vectors of Random123: counter, key, words
KNOWN = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


@pytest.mark.parametrize("function", [philox, philox_reference])
@pytest.mark.parametrize(("counter", "key", "words"), KNOWN)
def test_known_answers(counter, key, words, function):
    positions = torch.tensor([signed(*counter[:2])])
    assert tuple(function(positions, signed(*key), signed(*counter[2:]))[0].tolist()) == words


@settings(deadline=None, max_examples=50)
@given(positions=st.lists(int64s, max_size=40), key=int64s, stream=int64s)
def test_equals_reference(positions, key, stream):
    tensor = torch.tensor(positions, dtype=torch.int64)
    assert torch.equal(philox(tensor, key, stream), philox_reference(tensor, key, stream))


@pytest.mark.cpu_only
@pytest.mark.parametrize("capability", ["portable", "AVX2", "AVX-512"])
def test_instruction_sets_agree(capability):
    positions = torch.randint(-(2**62), 2**62, (1003,))
    before = _C.cpu_capability()
    try:
        _C.set_cpu_capability(capability)
    except ValueError:
        pytest.skip(f"this processor has no {capability}")
    try:
        assert torch.equal(philox(positions, 5, -7), philox_reference(positions, 5, -7))
    finally:
        _C.set_cpu_capability(before)


@pytest.mark.cpu_only
def test_threads_do_not_change_a_bit():
    positions = torch.arange(50_000)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        together = philox(positions, 1, 2)
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(together, philox_reference(positions, 1, 2))


def test_strided_positions():
    positions = torch.arange(20)[::2]
    assert torch.equal(philox(positions, 3, 4), philox(positions.contiguous(), 3, 4))


def test_words_are_uniform_and_unrelated(seed):
    """Means of the words, and correlations with neighbours in position, stream and key, within five deviations."""
    count = 20_000
    words = [philox(torch.arange(count) + shift, seed + key, stream) for shift, key, stream in
             ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1))]  # fmt: skip
    assert all(word.min() >= 0 and word.max() < 2**32 for word in words)
    columns = torch.cat(words, dim=1).double() / 2**32  # [n, 16]
    assert (columns.mean(0) - 0.5).abs().max() < 5 / (12 * count) ** 0.5
    correlations = torch.corrcoef(columns.T) - torch.eye(16)
    assert correlations.abs().max() < 5 / count**0.5


def test_opcheck():
    torch.library.opcheck(OPS.philox.default, (torch.arange(5), 1, 2))
    torch.library.opcheck(OPS.philox.default, (torch.arange(0), -1, 2))


@pytest.mark.parametrize(
    ("positions", "message"),
    [
        (torch.zeros(2, 3, dtype=torch.int64), r"positions must be int64 \[n\], got shape \[2, 3\]"),
        (torch.zeros(2), r"positions must be int64 \[n\], got shape \[2\] of another dtype"),
    ],
)
def test_errors(positions, message):
    with pytest.raises(RuntimeError, match=message):
        philox(positions, 0, 0)
