"""Times as text, including those beyond every calendar."""

from __future__ import annotations

import re

import pytest

from gitops_hook.text import local, rfc3339, utc

FAR = [999_999_999_999.0, 1e300, float("inf"), -1.0, -1e300, float("nan")]


def test_a_timestamp_is_in_utc():
    assert rfc3339(1_700_000_000.1239) == "2023-11-14T22:13:20.123Z"
    assert rfc3339(1_700_000_000.9, "seconds") == "2023-11-14T22:13:20Z"
    assert utc(0.0).isoformat(" ") == "1970-01-01 00:00:00+00:00"


@pytest.mark.parametrize("moment", FAR)
def test_a_timestamp_after_the_year_9999_is_clamped(moment: float):
    assert rfc3339(moment) == ("9999-12-31T23:59:59.000Z" if moment > 0 else "1970-01-01T00:00:00.000Z")
    assert re.fullmatch(r"\d{4,5}-\d\d-\d\d \d\d:\d\d:\d\d", local(moment))
