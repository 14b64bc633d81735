"""running_statistics against BatchNorm and against plain torch."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from fastnas.ops.running_statistics import running_statistics, running_statistics_reference

OPS = torch.ops.fastnas
Arguments = list[list[Tensor]]


def make(batches: list[tuple[int, int]], dtype: torch.dtype = torch.float32) -> Arguments:
    """Buffers and statistics of batches (normalisations, channels)."""
    sizes = [channels for norms, channels in batches for _ in range(norms)]
    return [
        [torch.randn(c, dtype=dtype) for c in sizes],
        [torch.rand(c, dtype=dtype) for c in sizes],
        [torch.randint(0, 9, ()) for _ in sizes],
        [torch.randn(batch, dtype=dtype) for batch in batches],
        [torch.rand(batch, dtype=dtype) for batch in batches],
    ]


def both(arguments: Arguments, counts: list[int], momentum: float) -> tuple[Arguments, Arguments]:
    """What the operator and plain torch make of them."""
    results = []
    for function in (running_statistics, running_statistics_reference):
        copies = [[tensor.clone() for tensor in group] for group in arguments]
        function(*copies, counts, momentum)
        results.append(copies)
    return results[0], results[1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("momentum", [0.0, 0.1, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("batches", [[(1, 1)], [(3, 4), (1, 17)], [(88, 16), (0, 5), (2, 3)]])
def test_matches_plain_torch(batches, momentum, dtype):
    counts = [50, 2, 1][: len(batches)]  # of one value the variance stays as it is
    ours, plain = both(make(batches, dtype), counts, momentum)
    tolerance = 1e-14 if dtype == torch.float64 else 1e-6
    torch.testing.assert_close(ours, plain, rtol=tolerance, atol=tolerance)


def test_matches_batch_norm():
    norm, y = nn.BatchNorm2d(5), torch.randn(7, 5, 3, 2) * 3 + 1
    variance, mean = torch.var_mean(y, (0, 2, 3), correction=0)
    buffers = [[norm.running_mean.clone()], [norm.running_var.clone()], [norm.num_batches_tracked.clone()]]
    norm(y)
    running_statistics(*buffers, [mean[None]], [variance[None]], [7 * 3 * 2], norm.momentum)
    expected = [norm.running_mean, norm.running_var, norm.num_batches_tracked]
    torch.testing.assert_close([each[0] for each in buffers], expected)


def test_buffers_and_statistics_of_any_stride():
    arguments = make([(2, 6)])
    arguments[0] = [torch.randn(6, 3)[:, 1] for _ in range(2)]
    arguments[4] = [torch.rand(6, 2).t()]
    expected = [[tensor.clone() for tensor in group] for group in arguments]
    running_statistics_reference(*expected, [10], 0.3)
    running_statistics(*arguments, [10], 0.3)
    torch.testing.assert_close(arguments, expected)


def test_statistics_in_half_precision_follow_too():
    arguments = make([(2, 4)])
    arguments[:2] = [[tensor.half() for tensor in group] for group in arguments[:2]]
    ours, plain = both(arguments, [10], 0.3)
    torch.testing.assert_close(ours, plain)


def test_nothing_to_follow():
    running_statistics([], [], [], [], [], [], 0.1)
    OPS.running_statistics([], [], [], [torch.empty(0, 4)], [torch.empty(0, 4)], [9], 0.1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: a[3].pop(), "1 batch_mean, 2 batch_variance and 2 counts"),
        (lambda a: a[2].pop(), "3 mean, 3 variance and 2 tracked for statistics of 3"),
        (lambda a: a[3].__setitem__(0, torch.randn(8)), r"batch_mean has shape \[8\], expected \[norms, C\]"),
        (lambda a: a[1].__setitem__(1, torch.rand(5)), r"variance\[1\] has shape \[5\], expected \[4\]"),
        (lambda a: a[0].__setitem__(2, torch.randn(3).double()), r"mean\[2\] has shape"),
        (lambda a: a[2].__setitem__(0, torch.tensor(1.0)), r"tracked\[0\] must be one int64"),
        (lambda a: a[4].__setitem__(1, torch.rand(1, 4)), r"batch_variance\[1\] has shape \[1, 4\]"),
    ],
)
def test_errors(change, message):
    arguments = make([(2, 4), (1, 3)])
    change(arguments)
    with pytest.raises(RuntimeError, match=message):
        OPS.running_statistics(*arguments, [9, 9], 0.1)


def test_schema():
    arguments = make([(2, 4), (1, 3)])
    torch.library.opcheck(OPS.running_statistics.default, (*arguments, [9, 9], 0.1), test_utils=("test_schema",))
