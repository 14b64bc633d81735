"""edge_sum against plain torch."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import pytest
import torch
from closeness import SHARES, assert_close
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fastnas._library import _C
from fastnas.ops import edge_sum, edge_sum_reference

pytestmark = pytest.mark.usefixtures("backend")

# (depth, [(kernel, dilation) of each stage]): the convolutional candidates of DARTS, and others.
DARTS = [(2, [(3, 1), (3, 1)]), (2, [(5, 1), (5, 1)]), (1, [(3, 2)]), (1, [(5, 2)])]
OTHERS = [(1, [(7, 1)]), (2, [(1, 1), (3, 3)])]


@dataclass
class Case:
    """The arguments of a call, by name."""

    x: Tensor
    depthwise: list[Tensor]
    pointwise: list[Tensor]
    depths: list[int]
    dilations: list[int]
    inner_scales: Tensor
    inner_offsets: Tensor
    scales: Tensor
    offsets: Tensor
    stride: int
    shared: bool

    def arguments(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def double(self, absolute: bool = False) -> dict[str, Any]:
        """In float64; absolute: for Σ|terms|, where nothing cancels."""

        def widened(value: Any) -> Any:
            if isinstance(value, Tensor):
                return value.double().abs() if absolute else value.double()
            return [widened(v) for v in value] if isinstance(value, list) and isinstance(value[0], Tensor) else value

        return {name: widened(value) if value != [] else value for name, value in self.arguments().items()}


def case(
    individuals: int = 2,
    images: int = 3,
    edges: int = 4,
    channels: int = 4,
    size: tuple[int, int] = (6, 7),
    stride: int = 1,
    shared: bool = False,
    dtype: torch.dtype = torch.float64,
    candidates: list[tuple[int, list[tuple[int, int]]]] = DARTS,
    wide: int = 0,
) -> Case:
    number = torch.float64 if dtype == torch.float64 else torch.float32
    count = images if shared else individuals * images
    x = torch.randn(count, channels + wide, *size).to(dtype).contiguous(memory_format=torch.channels_last)
    geometries = [geometry for _, stages in candidates for geometry in stages]
    terms = len(candidates) + 2 + (stride == 1)
    inner = len(geometries) - len(candidates)
    return Case(
        x[:, :channels],
        [torch.randn(channels, 1, k, k, dtype=number) / k for _ in range(edges) for k, _ in geometries],
        [torch.randn(channels, channels, 1, 1, dtype=number) for _ in range(edges) for _ in geometries],
        [depth for depth, _ in candidates],
        [dilation for _, dilation in geometries],
        torch.rand(edges, inner, channels, dtype=number) + 0.5,
        torch.randn(edges, inner, channels, dtype=number),
        torch.randn(individuals, edges, terms, channels, dtype=number),
        torch.randn(individuals, edges, channels, dtype=number),
        stride,
        shared,
    )


def check(a: Case) -> None:
    results, expected = edge_sum(**a.arguments()), edge_sum_reference(**a.double())
    assert len(results) == len(expected)
    for result in results:
        assert result.dtype == a.x.dtype
        assert result.is_contiguous(memory_format=torch.channels_last)
    assert_close(results, expected, edge_sum_reference(**a.double(absolute=True)))


@pytest.fixture(params=["portable", "AVX2", "AVX-512"])
def isa(request: pytest.FixtureRequest):
    before = _C.cpu_capability()
    try:
        _C.set_cpu_capability(request.param)
    except ValueError:
        pytest.skip(f"this processor has no {request.param}")
    yield request.param
    _C.set_cpu_capability(before)


@pytest.mark.parametrize("dtype", SHARES, ids=str)
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(
    ("channels", "edges"), [(4, 4), (4, 3), (4, 5), (4, 1), (8, 2), (16, 2), (3, 4), (20, 2), (1, 1)]
)
def test_matches_the_reference(isa: str, dtype: torch.dtype, stride: int, channels: int, edges: int) -> None:
    check(case(channels=channels, edges=edges, stride=stride, dtype=dtype))


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", [(1, 1), (1, 5), (5, 1), (2, 2), (9, 8), (33, 5)], ids=str)
def test_sizes(size: tuple[int, int], stride: int) -> None:
    check(case(size=size, stride=stride))
    check(case(size=size, stride=stride, channels=16, edges=2, dtype=torch.float32))


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("edges", [1, 2, 4, 5])
@pytest.mark.parametrize(("individuals", "images"), [(1, 1), (3, 5), (5, 1), (2, 7)])
def test_individuals(isa: str, individuals: int, images: int, edges: int, shared: bool) -> None:
    """Images of several individuals lie side by side in a vector where edges are few."""
    check(case(individuals, images, edges, shared=shared, dtype=torch.float32))


def test_shared_images_are_those_of_every_individual() -> None:
    shared = case(shared=True)
    own = case(shared=True)
    own.__dict__ |= shared.arguments() | {"shared": False, "x": shared.x.repeat(2, 1, 1, 1)}
    for a, b in zip(edge_sum(**shared.arguments()), edge_sum(**own.arguments()), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("candidates", [[], OTHERS, DARTS[:1], DARTS[2:]], ids=["none", "others", "one", "dilated"])
@pytest.mark.parametrize("stride", [1, 2])
def test_candidates(candidates: list[Any], stride: int) -> None:
    check(case(candidates=candidates, stride=stride))


@pytest.mark.parametrize("channels", [136, 135])
@pytest.mark.parametrize("stride", [1, 2])
def test_many_channels(channels: int, stride: int) -> None:
    """More than a warp has lanes for, and more than fits into shared memory."""
    check(case(1, 2, 1, channels, (9, 6), stride, candidates=OTHERS, dtype=torch.float32))


@pytest.mark.parametrize("wide", [0, 12, 13])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_first_channels_of_a_wider_state(dtype: torch.dtype, wide: int) -> None:
    check(case(wide=wide, dtype=dtype))


def test_other_orders_are_copied() -> None:
    a = case()
    expected = edge_sum(**a.arguments())
    for x in (a.x.contiguous(), a.x.transpose(-1, -2).contiguous().transpose(-1, -2)):
        for result, wanted in zip(edge_sum(**(a.arguments() | {"x": x})), expected, strict=True):
            assert torch.equal(result, wanted)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(("images", "size"), [(0, (6, 7)), (3, (0, 5)), (3, (5, 0))])
def test_empty(images: int, size: tuple[int, int], stride: int) -> None:
    a = case(images=images, size=size, stride=stride)
    for result in edge_sum(**a.arguments()):
        assert result.shape == (2 * images, 4, -(-size[0] // stride), -(-size[1] // stride))


def test_a_term_of_scale_zero_is_not_computed() -> None:
    """One-hot choices cost what they choose; what is not chosen may even be NaN."""
    a = case(individuals=1, edges=2)
    a.scales.zero_()
    a.scales[:, 0, 0] = 1
    a.scales[:, 1, 6] = 1
    for weight in a.depthwise[2:6] + a.depthwise[8:]:
        weight.fill_(float("nan"))
    for result in edge_sum(**a.arguments()):
        assert result.isfinite().all()
    check(case(individuals=1, edges=2))


@pytest.mark.parametrize("channels", [4, 16])
def test_one_term_at_a_time(channels: int) -> None:
    for term in range(7):
        a = case(channels=channels, dtype=torch.float32)
        a.scales[:, :, torch.arange(7) != term] = 0
        check(a)


def test_nan_reaches_every_sum_that_reads_it() -> None:
    a = case(individuals=1, images=1, edges=4, size=(15, 15))
    a.x[0, 1, 7, 7] = float("nan")
    for result, wanted in zip(edge_sum(**a.arguments()), edge_sum_reference(**a.double()), strict=True):
        assert torch.equal(result.isnan(), wanted.isnan())
        assert result.isnan().any()
        assert not result.isnan().all()


@pytest.mark.cpu_only
@pytest.mark.parametrize(("channels", "edges"), [(4, 4), (4, 1), (16, 2)])
def test_threads_do_not_change_the_bits(channels: int, edges: int) -> None:
    a = case(images=20, channels=channels, edges=edges, size=(12, 12), dtype=torch.float32)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = edge_sum(**a.arguments())
        torch.set_num_threads(3)
        several = edge_sum(**a.arguments())
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(x, y) for x, y in zip(one, several, strict=True))


@settings(max_examples=25, deadline=None)
@given(
    individuals=st.integers(1, 3),
    images=st.integers(1, 5),
    edges=st.integers(1, 6),
    channels=st.integers(1, 18),
    height=st.integers(1, 9),
    width=st.integers(1, 9),
    stride=st.sampled_from([1, 2]),
    shared=st.booleans(),
)
def test_any_shape(individuals, images, edges, channels, height, width, stride, shared) -> None:
    check(case(individuals, images, edges, channels, (height, width), stride, shared))


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("stride", [1, 2])
def test_opcheck(stride: int, shared: bool) -> None:
    a = case(stride=stride, shared=shared, dtype=torch.float32)
    torch.library.opcheck(torch.ops.fastnas.edge_sum.default, tuple(a.arguments().values()))


def test_weights_are_used_as_float32() -> None:
    a = case(dtype=torch.float32)
    half = {name: [w.bfloat16() for w in a.arguments()[name]] for name in ("depthwise", "pointwise")}
    half |= {name: a.arguments()[name].bfloat16() for name in ("inner_scales", "inner_offsets", "scales", "offsets")}
    full = {name: [w.float() for w in v] if isinstance(v, list) else v.float() for name, v in half.items()}
    for low, high in zip(edge_sum(**(a.arguments() | half)), edge_sum(**(a.arguments() | full)), strict=True):
        assert torch.equal(low, high)
    arguments = a.arguments() | {"offsets": half["offsets"]}
    with pytest.raises(RuntimeError, match="offsets must be float32"):
        torch.ops.fastnas.edge_sum(*arguments.values())


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "stride": ({"stride": 3}, "stride is 3, expected 1 or 2"),
    "x": ({"x": torch.randn(4, 6, 6, dtype=torch.float64)}, r"x has shape \[4, 6, 6\]"),
    "channels": ({"x": torch.randn(6, 5, 6, 7, dtype=torch.float64)}, r"scales has shape .* expected \[2, 4, 7, 5\]"),
    "images": ({"x": torch.randn(5, 4, 6, 7, dtype=torch.float64)}, "5 images cannot be those of 2 individuals"),
    "depths": ({"depths": [2, 2, 1, 3]}, "a candidate of depth 3"),
    "dilations": ({"dilations": [1, 1]}, "dilations has 2 entries, expected one for each of 6 stages"),
    "dilation": ({"dilations": [1, 1, 1, 1, 0, 2]}, r"dilations\[4\] is 0"),
    "weights": ({"depthwise": []}, "got 0 depthwise and 24 pointwise weights, expected 6 of each for each of 4 edges"),
    "scales": ({"scales": torch.randn(2, 4, 6, 4, dtype=torch.float64)}, r"scales has shape \[2, 4, 6, 4\]"),
    "inner": ({"inner_scales": torch.randn(4, 3, 4, dtype=torch.float64)}, r"expected \[4, 2, 4\]"),
    "integers": ({"x": torch.ones(6, 4, 6, 7, dtype=torch.int64)}, "x must be float16"),
}


@pytest.mark.parametrize("what", WRONG)
def test_errors_name_the_argument(what: str) -> None:
    changed, message = WRONG[what]
    with pytest.raises(RuntimeError, match=message):
        edge_sum(**(case().arguments() | changed))


def test_weights_must_agree_over_edges() -> None:
    a = case()
    a.depthwise[6] = torch.randn(4, 1, 5, 5, dtype=torch.float64)
    with pytest.raises(
        RuntimeError, match=r"depthwise\[6\] has shape \[4, 1, 5, 5\], depthwise\[0\] .* has the same on all edges"
    ):
        edge_sum(**a.arguments())
