"""How long completions may take."""

from __future__ import annotations

import pytest

from batchgen.patience import request_seconds, stall_seconds


@pytest.mark.parametrize(
    ("tokens", "request_takes", "stalls_after"),
    [(16, 600, 900), (9_000, 600, 900), (15_000, 1000, 1500), (30_000, 2000, 3000), (None, 32_768 / 15, 32_768 / 10)],
)
def test_what_may_be_long_has_its_time_and_a_request_is_given_up_before_its_engine(
    tokens: int | None, request_takes: float, stalls_after: float
):
    assert request_seconds(tokens) == request_takes
    assert stall_seconds(tokens) == stalls_after
    assert request_takes < stalls_after
