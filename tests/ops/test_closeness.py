"""The rule of tolerance: sums that cancel may be off by what their terms are, and no more."""

from __future__ import annotations

import pytest
import torch
from closeness import SHARES, assert_close, of_moments


def test_sums_that_cancel_are_as_close_as_their_terms_allow():
    x = torch.randn(500)
    terms = torch.cat([x, torch.tensor([1e-3]), -x[torch.randperm(500)]])
    total = terms.cumsum(0)[-1:]  # one after the other, in float32
    assert_close([total], [terms.double().sum(0, keepdim=True)], [terms.double().abs().sum()])


def test_a_share_of_the_largest_sum_of_terms_is_allowed():
    right, terms = torch.tensor([1.0, 3.0], dtype=torch.float64), torch.tensor([10.0, 20.0])
    allowed = SHARES[torch.float64] * 20
    assert_close([right + 0.5 * allowed], [right], [terms])
    with pytest.raises(AssertionError, match=r"results\[0\]: "):
        assert_close([right + 2 * allowed], [right], [terms])


def test_shapes_and_empty_results():
    nothing = torch.zeros(0, 3)
    assert_close([nothing], [nothing], [nothing])
    with pytest.raises(AssertionError, match="is not"):
        assert_close([nothing], [torch.zeros(3, 0)], [nothing])
    assert of_moments([torch.tensor([-2.0, 1.0])]) == [2.0, 16.0]
    assert of_moments([]) == [0.0, 0.0]


def test_nothing_is_allowed_where_there_are_no_terms():
    with pytest.raises(AssertionError):
        assert_close([torch.tensor([1e-30])], [torch.zeros(1)], [0.0])
