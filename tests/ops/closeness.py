"""How close results must be to those of the reference in float64: one rule for all operators.

Rounding errors of a sum are those of its terms, however little of them is left: so Σ|terms| is the scale, not the
result, which may cancel to nothing. It is what the reference gives where nothing cancels, that is for the absolute
values of all arguments, with a minus before what it subtracts (`absolute` of the cases).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

# dtype of a result → the most that it may be off, in shares of the largest Σ|terms| of the tensor. Sums are kept in
# float64 or float32, of thousands of terms; of half precision it is the rounding of what is stored.
SHARES = {torch.float64: 1e-14, torch.float32: 4e-6, torch.bfloat16: 8e-3, torch.float16: 1e-3}


def assert_close(
    ours: Sequence[Tensor], expected: Sequence[Tensor], terms: Sequence[Tensor | float], what: str = "results"
) -> None:
    """Each of `ours` has the values of the one `expected`, whose Σ|terms| are `terms`."""
    for index, (actual, wanted, scale) in enumerate(zip(ours, expected, terms, strict=True)):
        assert actual.shape == wanted.shape, f"{what}[{index}]: {actual.shape} is not {wanted.shape}"
        torch.testing.assert_close(
            actual.detach().double(),
            wanted.detach().double(),
            rtol=0,
            atol=SHARES[actual.dtype] * largest(scale),
            msg=lambda text, index=index: f"{what}[{index}]: {text}",
        )


def largest(terms: Tensor | float) -> float:
    """The largest Σ|terms| of a tensor; 0 of an empty one."""
    if isinstance(terms, float):
        return terms
    return terms.detach().abs().max().item() if terms.numel() else 0.0


def of_moments(outputs: Sequence[Tensor] | Tensor) -> list[Tensor | float]:
    """Σ|terms| of the mean and of the variance of outputs whose own are given: a variance is a sum of squares."""
    most = max((largest(output) for output in outputs), default=0.0)
    return [most, 4 * most**2]
