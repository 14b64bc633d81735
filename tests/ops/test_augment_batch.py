"""augment_batch against its plain-torch reference and torchvision, to the bit."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchvision.transforms.v2 import functional as transforms

from fastnas._library import _C
from fastnas.ops import augment_batch, augment_batch_reference, normalization_table

pytestmark = pytest.mark.usefixtures("backend")

OPS = torch.ops.fastnas
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
# H, W, C: loops of one and three channels are unrolled; one pixel; odd everything; wider than high
SIZES = [(1, 1, 1), (1, 1, 3), (5, 7, 3), (7, 5, 1), (4, 9, 2), (3, 3, 5), (16, 16, 3)]


def make(
    size: tuple[int, int, int], count: int, padding: int, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Images, table, index and draws, all random."""
    height, width, channels = size
    images = torch.randint(0, 256, (11, *size), dtype=torch.uint8)
    mean, std = torch.rand(channels).tolist(), (torch.rand(channels) + 0.1).tolist()
    limits = (2 * padding + 1, 2 * padding + 1, 2, height, width)
    draws = torch.stack([torch.randint(0, limit, (count,)) for limit in limits], dim=1).int()
    return (
        images,
        normalization_table(mean, std, dtype=dtype, device=images.device),
        torch.randint(0, 11, (count,)),
        draws,
    )


def assert_same(ours: Tensor, expected: Tensor) -> None:
    assert ours.shape == expected.shape
    assert ours.dtype == expected.dtype
    assert torch.equal(ours, expected)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("options", [(0, 0), (2, 0), (0, 3), (4, 16), (9, 2)], ids=str)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_equals_reference(size, options, dtype):
    padding, cutout = options
    images, table, index, draws = make(size, 23, padding, dtype)
    given = {"padding": padding, "cutout": cutout}
    result = augment_batch(images, table, index, draws, **given)
    assert_same(result, augment_batch_reference(images, table, index, draws, **given))
    assert result.is_contiguous(memory_format=torch.channels_last)
    assert_same(augment_batch(images, table, index), augment_batch_reference(images, table, index))
    assert_same(augment_batch(images, table), augment_batch_reference(images, table))


@settings(deadline=None, max_examples=60)
@given(
    size=st.tuples(st.integers(1, 9), st.integers(1, 9), st.integers(1, 4)),
    count=st.integers(0, 6),
    padding=st.integers(0, 12),
    cutout=st.integers(0, 20),
    seed=st.integers(0, 2**31),
)
def test_equals_reference_for_all_sizes(size, count, padding, cutout, seed):
    torch.manual_seed(seed)
    images, table, index, draws = make(size, count, padding)
    ours = augment_batch(images, table, index, draws, padding=padding, cutout=cutout)
    assert_same(ours, augment_batch_reference(images, table, index, draws, padding=padding, cutout=cutout))


def test_the_chain_of_torchvision_gives_the_same_bits():
    """Image by image with torchvision's transforms, as recipes for CIFAR do it."""
    mean, std = [0.4914, 0.4822, 0.4465], [0.2470, 0.2435, 0.2616]
    images, _, index, draws = make((12, 10, 3), 9, 4)
    expected = []
    for place, (top, left, flip, row, column) in zip(index.tolist(), draws.tolist(), strict=True):
        image = transforms.crop(transforms.pad(images[place].permute(2, 0, 1), [4]), top, left, 12, 10)
        image = transforms.horizontal_flip(image) if flip else image
        image = transforms.normalize(transforms.to_dtype(image, torch.float32, scale=True), mean, std)
        image[:, max(0, row - 2) : row + 3, max(0, column - 2) : column + 3] = 0
        expected.append(image)
    table = normalization_table(mean, std, device=images.device)
    assert_same(augment_batch(images, table, index, draws, padding=4, cutout=5), torch.stack(expected))


@pytest.mark.cpu_only
def test_the_table_holds_every_value_of_every_channel():
    mean, std = [0.1, 0.2], [0.3, 0.4]
    values = torch.arange(256, dtype=torch.uint8).expand(2, 1, 256)
    expected = transforms.normalize(transforms.to_dtype(values, torch.float32, scale=True), mean, std)
    assert torch.equal(normalization_table(mean, std), expected[:, 0])
    assert torch.equal(normalization_table(mean, std, dtype=torch.float16), expected[:, 0].half())


def test_draws_far_outside_show_black():
    images, table, index, draws = make((5, 6, 3), 4, 2)
    black = table[:, 0].view(1, 3, 1, 1).expand(4, 3, 5, 6)
    for top, left in ((2**31 - 1, 0), (-(2**31), 0), (0, 2**31 - 1), (0, -(2**31))):
        draws[:, 0], draws[:, 1] = top, left
        assert_same(augment_batch(images, table, index, draws, padding=2), black)


def test_a_hole_far_outside_cuts_nothing():
    images, table, index, draws = make((5, 6, 3), 4, 2)
    uncut = augment_batch(images, table, index, draws, padding=2)
    for row, column in ((100, 2), (-100, 2), (2, 100), (2, -100), (2**31 - 1, -(2**31))):
        draws[:, 3], draws[:, 4] = row, column
        assert_same(augment_batch(images, table, index, draws, padding=2, cutout=7), uncut)


@pytest.mark.cpu_only
@pytest.mark.parametrize("capability", ["portable", "AVX2", "AVX-512"])
def test_instruction_sets_agree(capability):
    images, table, index, draws = make((9, 7, 3), 30, 4)
    before = _C.cpu_capability()
    try:
        _C.set_cpu_capability(capability)
    except ValueError:
        pytest.skip(f"this processor has no {capability}")
    try:
        ours = augment_batch(images, table, index, draws, padding=4, cutout=3)
    finally:
        _C.set_cpu_capability(before)
    assert_same(ours, augment_batch_reference(images, table, index, draws, padding=4, cutout=3))


@pytest.mark.cpu_only
def test_threads_do_not_change_a_bit():
    images, table, index, draws = make((32, 32, 3), 200, 4)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        together = augment_batch(images, table, index, draws, padding=4, cutout=16)
    finally:
        torch.set_num_threads(threads)
    assert_same(together, augment_batch_reference(images, table, index, draws, padding=4, cutout=16))


def test_strided_index_draws_and_table():
    images, table, index, draws = make((5, 6, 3), 8, 2)
    expected = augment_batch(images, table, index[::2].contiguous(), draws[::2].contiguous(), padding=2, cutout=3)
    strided = table.T.contiguous().T
    assert_same(augment_batch(images, strided, index[::2], draws[::2], padding=2, cutout=3), expected)


def test_empty_batches_and_sets():
    images, table, index, draws = make((5, 6, 3), 0, 2)
    assert augment_batch(images, table, index, draws, padding=2).shape == (0, 3, 5, 6)
    assert augment_batch(images[:0], table).shape == (0, 3, 5, 6)
    assert augment_batch(images[:, :0], table).shape == (11, 3, 0, 6)


# --- registration ---


@pytest.mark.parametrize("with_index", [True, False])
@pytest.mark.parametrize("with_draws", [True, False])
def test_opcheck(with_index, with_draws):
    images, table, index, draws = make((5, 6, 3), 11, 2)
    arguments = (images, table, index if with_index else None, draws if with_draws else None, 2, 3)
    torch.library.opcheck(OPS.augment_batch.default, arguments)


@pytest.mark.cpu_only
def test_compile_has_no_graph_break():
    images, table, index, draws = make((5, 6, 3), 8, 2)

    def call(index: Tensor, draws: Tensor) -> Tensor:
        return augment_batch(images, table, index, draws, padding=2, cutout=3) * 2

    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    assert_same(compiled(index, draws), call(index, draws))


# --- errors name the operator, the argument and the shape ---

IMAGES, TABLE, INDEX, DRAWS = make((5, 6, 3), 4, 2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": IMAGES[0]}, r"images must be uint8 \[N, H, W, C\], got shape \[5, 6, 3\]$"),
        ({"images": IMAGES.float()}, r"images must be uint8 .* of another dtype"),
        ({"images": IMAGES[:, :, :4]}, r"images \[11, 5, 4, 3\] must be contiguous"),
        ({"table": TABLE[:2]}, r"table must be \[C, 256\] with C = 3 as in images, got shape \[2, 256\]"),
        ({"table": TABLE.int()}, r"not implemented for 'Int'"),
        ({"index": INDEX.int()}, r"index must be int64 \[B\], got shape \[4\] of another dtype"),
        ({"index": INDEX[:, None]}, r"index must be int64 \[B\], got shape \[4, 1\]"),
        ({"draws": DRAWS[:3]}, r"draws must be int32 \[B, 5\] with B = 4, got shape \[3, 5\]"),
        ({"draws": DRAWS.long()}, r"draws must be int32 .* of another dtype"),
        ({"padding": -1}, r"padding is -1, expected a number of pixels"),
        ({"cutout": -1}, r"cutout is -1, expected a number of pixels"),
    ],
)
def test_errors(change, message):
    given = {"images": IMAGES, "table": TABLE, "index": INDEX, "draws": DRAWS, "padding": 2, "cutout": 1} | change
    with pytest.raises(RuntimeError, match=message):
        augment_batch(**given)


@pytest.mark.parametrize("missing", [-1, 11, 2**40])
def test_images_that_do_not_exist(missing, backend):
    images, table, index, draws = make((5, 6, 3), 4, 2)
    expected = augment_batch(images, table, index, draws, padding=2, cutout=3)
    index[1] = missing
    if backend == "cpu":
        with pytest.raises(RuntimeError, match=rf"index\[1\] is {missing}, but there are 11 images"):
            augment_batch(images, table, index, draws, padding=2, cutout=3)
        return
    kernels = torch.ops.fastnas_emulated if backend == "emulated" else OPS  # not compared with the CPU, which raises
    result = kernels.augment_batch(images, table, index, draws, 2, 3)
    assert result[1].isnan().all()
    result[1] = expected[1]
    assert_same(result, expected)
