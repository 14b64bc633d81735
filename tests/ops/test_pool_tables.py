"""pool_tables against plain torch."""

from __future__ import annotations

import pytest
import torch

from fastnas.ops.pool_tables import pool_tables, pool_tables_reference

pytestmark = pytest.mark.usefixtures("backend")

OPS = torch.ops.fastnas
DTYPES = [torch.float64, torch.float32]
TOLERANCE = {torch.float64: 1e-14, torch.float32: 1e-6}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("entries", [0, 9, 300])  # the last are more than one launch takes
@pytest.mark.parametrize(("nodes", "channels"), [(1, 4), (4, 16), (3, 130), (0, 5), (2, 0)])
def test_pool_tables(nodes, channels, entries, dtype):
    coeffs = torch.randn(11, 4, channels, dtype=dtype)
    coeffs[:, 2] = coeffs[0, 2]  # one mean of a pool
    rows, places = torch.randint(0, 11, (entries,)).tolist(), torch.randint(0, 3 * nodes + 2, (entries,)).tolist()
    ours, plain = (function(coeffs, rows, places, nodes) for function in (OPS.pool_tables, pool_tables_reference))
    torch.testing.assert_close(ours, plain, rtol=TOLERANCE[dtype], atol=30 * TOLERANCE[dtype])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.zeros(2, 4), [], [], 1), r"coeffs must be \[K, 4, C\]"),
        ((torch.zeros(2, 4, 3).half(), [], [], 1), "coeffs must be float32 or float64"),
        ((torch.zeros(2, 4, 3), [2], [0], 1), r"rows\[0\] is 2, expected 0 to 1"),
        ((torch.zeros(2, 4, 3), [0], [5], 1), r"places\[0\] is 5, expected 0 to 4"),
        ((torch.zeros(2, 4, 3), [0, 1], [0], 1), "got 2 rows and 1 places"),
        ((torch.zeros(2, 4, 3), [], [], 65), "nodes is 65, expected 0 to 64"),
    ],
)
def test_errors_of_tables(arguments, message):
    with pytest.raises(RuntimeError, match=message):
        OPS.pool_tables(*arguments)


@pytest.mark.cpu_only
def test_public_function():
    coeffs = torch.arange(8.0).view(2, 4, 1)
    scales, bn_coeffs, skip = pool_tables(coeffs, [0, 1, 1], [1, 2, 4], 1)
    assert (scales.flatten().tolist(), skip.flatten().tolist()) == ([0, 0], [4])
    assert bn_coeffs.flatten().tolist() == [5, 6, 7, 0, 0, 0]


@pytest.mark.cpu_only
def test_opcheck():
    tables = torch.randn(5, 4, 8), [1, 2], [0, 4], 2
    torch.library.opcheck(OPS.pool_tables.default, tables, test_utils=("test_schema", "test_faketensor"))
