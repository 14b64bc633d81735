"""norm_rows and norm_rows_grad against plain torch."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fastnas.ops import norm_rows as module
from fastnas.ops.norm_rows import norm_rows_grad_reference, norm_rows_reference

pytestmark = pytest.mark.usefixtures("backend")

OPS = torch.ops.fastnas
DTYPES = [torch.float64, torch.float32]
TOLERANCE = {torch.float64: 1e-14, torch.float32: 1e-6}


def close(ours: object, plain: object, dtype: torch.dtype) -> None:
    torch.testing.assert_close(ours, plain, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


def statistics(norms: list[int], individuals: int, channels: int, dtype: torch.dtype) -> list[list[Tensor]]:
    sizes = [(count, individuals, channels) for count in norms]
    return [[draw(*size, dtype=dtype) for size in sizes] for draw in (torch.randn, torch.rand)]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("norms", "places", "rows"),
    [
        ([3], None, None),
        ([2, 0, 5], [6, 0, 3], [1, 8, 4]),
        ([4], None, [7, 2, 0, 5]),
        ([150], list(range(149, -1, -1)), None),  # more than one launch takes
        ([], None, None),
    ],
)
@pytest.mark.parametrize(("individuals", "channels"), [(1, 16), (3, 5), (1, 200), (2, 0)])
def test_rows(norms, places, rows, individuals, channels, dtype):
    mean, variance = statistics(norms, individuals, channels, dtype)
    tables = [torch.full((3, 160, individuals, channels), 7.0, dtype=dtype) for _ in range(2)]
    OPS.norm_rows(mean, variance, places, rows, 1e-5, tables[0])
    norm_rows_reference(mean, variance, places, rows, 1e-5, tables[1])
    close(*tables, dtype)


def test_individuals_share_statistics():
    mean, variance = statistics([2, 1], 1, 5, torch.float64)
    mean[1], variance[1] = mean[1].expand(-1, 3, -1) + torch.randn(3, 1), variance[1].expand(-1, 3, -1)
    tables = [torch.zeros(3, 4, 3, 5, dtype=torch.float64) for _ in range(2)]
    OPS.norm_rows(mean, variance, None, [3, 0, 1], 1e-5, tables[0])
    norm_rows_reference(mean, variance, None, [3, 0, 1], 1e-5, tables[1])
    close(*tables, torch.float64)


def test_statistics_of_any_stride():
    mean, variance = torch.randn(4, 6, 2).permute(2, 1, 0), torch.rand(2, 12, 4)[:, ::2]  # [2, 6, 4]
    tables = [torch.zeros(3, 2, 6, 4) for _ in range(2)]
    OPS.norm_rows([mean], [variance], None, None, 1e-5, tables[0])
    norm_rows_reference([mean], [variance], None, None, 1e-5, tables[1])
    close(*tables, torch.float32)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("count", [0, 1, 100])
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize(("rows", "channels"), [(1, 1), (7, 16), (3, 100), (0, 4), (2, 0)])
def test_rows_of_coefficients(rows, channels, shared, count, dtype):
    table = torch.randn(4, rows, channels, dtype=dtype)
    sum_dy = torch.randn(channels, dtype=dtype) if shared else torch.randn(channels, rows, dtype=dtype).t()
    coeffs = [torch.full((rows, 4, channels), 7.0, dtype=dtype) for _ in range(2)]
    OPS.norm_rows_grad(sum_dy, *table, count, coeffs[0])
    norm_rows_grad_reference(sum_dy, *table, count, coeffs[1])
    close(*coeffs, dtype)


@pytest.mark.parametrize("batch", [True, False])
def test_rows_of_coefficients_are_the_gradient_of_batch_norm(batch):
    y = torch.randn(3, 4, 5, 6, dtype=torch.float64, requires_grad=True)
    dy = torch.randn_like(y)
    gamma, beta, running_mean = torch.randn(3, 4, dtype=torch.float64)
    running_var = torch.rand(4, dtype=torch.float64) + 0.5
    variance, mean = torch.var_mean(y.detach(), (0, 2, 3), correction=0) if batch else (running_var, running_mean)
    normalised = F.batch_norm(y, running_mean.clone(), running_var.clone(), gamma, beta, training=batch)
    (expected,) = torch.autograd.grad(normalised, y, dy)
    table = torch.zeros(3, 1, 1, 4, dtype=torch.float64)
    OPS.norm_rows([mean[None, None]], [variance[None, None]], None, None, 1e-5, table)
    mean, rstd = table[0, 0], table[2, 0]  # [1, C]
    xhat = (y.detach() - mean[0].view(-1, 1, 1)) * rstd[0].view(-1, 1, 1)
    coeffs = torch.zeros(1, 4, 4, dtype=torch.float64)
    sums = dy.sum((0, 2, 3)), (dy * xhat).sum((0, 2, 3))[None]
    OPS.norm_rows_grad(*sums, mean, rstd, gamma * rstd, 90 if batch else 0, coeffs)
    scale, slope, of_mean, offset = coeffs[0].view(4, 4, 1, 1)
    close(scale * dy + slope * (y.detach() - of_mean) + offset, expected, torch.float64)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"table": torch.zeros(2, 4, 1, 3)}, r"table must be \[3, K, P, C\], got shape \[2, 4, 1, 3\]"),
        ({"table": torch.zeros(3, 4, 1, 6)[..., ::2]}, "table is written, and must be contiguous"),
        ({"table": torch.zeros(3, 4, 1, 3, dtype=torch.int32)}, "table must be float32 or float64"),
        ({"variance": []}, "got 1 mean and 0 variance"),
        ({"mean": [torch.zeros(2, 3)]}, r"mean\[0\] must be \[norms, P, C\]"),
        ({"variance": [torch.ones(2, 1, 4)]}, r"variance\[0\] has shape \[2, 1, 4\], expected \[2, 1, 3\]"),
        ({"mean": [torch.zeros(2, 1, 3).double()]}, r"mean\[0\] must have the dtype"),
        ({"places": [0, 2]}, r"places\[1\] is 2, expected 0 to 1"),
        ({"rows": [0, -1]}, r"rows\[1\] is -1, expected 0 to 3"),
        ({"eps": -1.0}, "eps is -1, expected a finite number from 0 on"),
        ({"eps": float("nan")}, "eps is nan, expected"),
        ({"rows": [0]}, "got 2 statistics for 1 rows"),
        ({"places": [0] * 5}, "got 5 statistics for 4 rows"),
    ],
)
def test_errors_of_rows(change, message):
    given = {
        "mean": [torch.zeros(2, 1, 3)],
        "variance": [torch.ones(2, 1, 3)],
        "places": None,
        "rows": None,
        "eps": 1e-5,
        "table": torch.zeros(3, 4, 1, 3),
    }
    with pytest.raises(RuntimeError, match=message):
        OPS.norm_rows(*(given | change).values())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"coeffs": torch.zeros(2, 3, 5)}, r"coeffs must be \[K, 4, C\], got shape \[2, 3, 5\]"),
        ({"coeffs": torch.zeros(2, 4, 6)[..., ::2]}, r"coeffs is written, and must be contiguous"),
        ({"count": -1}, "count is -1, expected 0 or more"),
        ({"mean": torch.zeros(1, 5)}, r"mean has shape \[1, 5\], expected \[2, 5\]"),
        ({"sum_dy": torch.zeros(4)}, r"sum_dy has shape \[4\], expected \[5\]"),
        ({"scale": torch.zeros(2, 5).double()}, "scale must have the dtype"),
    ],
)
def test_errors_of_coefficients(change, message):
    given = {"sum_dy": torch.zeros(5)}
    given |= {name: torch.zeros(2, 5) for name in ("sum_dy_xhat", "mean", "rstd", "scale")}
    given |= {"count": 3, "coeffs": torch.zeros(2, 4, 5)}
    with pytest.raises(RuntimeError, match=message):
        OPS.norm_rows_grad(*(given | change).values())


@pytest.mark.cpu_only
def test_public_functions():
    table, coeffs = torch.zeros(3, 2, 1, 3), torch.zeros(1, 4, 3)
    module.norm_rows([torch.zeros(1, 1, 3)], [torch.ones(1, 1, 3)], None, [1], 0.0, table)
    assert table[2].flatten().tolist() == [0, 0, 0, 1, 1, 1]
    module.norm_rows_grad(torch.ones(3), *torch.ones(4, 1, 3), 2, coeffs)
    assert coeffs[0, :, 0].tolist() == [1, -0.5, 1, -0.5]


@pytest.mark.cpu_only
def test_opcheck():
    mean, variance = statistics([2, 3], 1, 4, torch.float64)
    rows = mean, variance, [4, 0], [1, 2], 1e-5, torch.zeros(3, 6, 1, 4, dtype=torch.float64)
    torch.library.opcheck(OPS.norm_rows.default, rows, test_utils=("test_schema",))
    of_coeffs = torch.randn(4), *torch.randn(4, 2, 4), 9, torch.zeros(2, 4, 4)
    torch.library.opcheck(OPS.norm_rows_grad.default, of_coeffs, test_utils=("test_schema",))
