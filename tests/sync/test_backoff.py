"""The delays between retries."""

from __future__ import annotations

import pytest

from gitops_hook.sync.backoff import RETRIES, Backoff

RUNS = RETRIES["backoff"]


def test_a_delay_doubles_up_to_the_longest():
    assert [RUNS.delay(failures, lambda: 0.5) for failures in (1, 2, 3, 8, 9, 5000)] == [5, 10, 20, 640, 900, 900]


def test_an_early_webhook_is_retried_after_seconds_and_five_times():
    early = RETRIES["early"]
    assert [early.delay(failures, lambda: 0.5) for failures in range(1, 6)] == [2.5, 5, 10, 20, 40]
    assert [early.is_exhausted(failures) for failures in (5, 6)] == [False, True]


@pytest.mark.parametrize(("jitter", "factor"), [(0.0, 0.75), (0.5, 1.0), (1.0, 1.25)])
def test_a_delay_is_spread_by_a_quarter(jitter: float, factor: float):
    assert [RUNS.delay(failures, lambda: jitter) for failures in (1, 5000)] == [5 * factor, 900 * factor]


def test_retries_can_be_bounded():
    bounded = Backoff(1.0, 4.0, retries=2)
    assert [bounded.is_exhausted(failures) for failures in (1, 2, 3)] == [False, False, True]
    assert not RUNS.is_exhausted(10**6)
