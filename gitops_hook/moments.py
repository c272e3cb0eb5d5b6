"""How a moment, in seconds since the epoch, is told: to people, to programs, in UTC and by this host's clock.

Not every moment is of our own clock. Who commits says when, and git keeps dates far beyond every calendar: such a one
is told as the nearest that a calendar with years of four digits has, so that it spoils no answer.
"""

from __future__ import annotations

import time
from datetime import datetime, timezone

#: 9999-12-31T23:59:59Z.
_LAST = 253_402_300_799.0


def utc(moment: float) -> datetime:
    """A moment in UTC."""
    return datetime.fromtimestamp(_within(moment), timezone.utc)


def rfc3339(moment: float, timespec: str = "milliseconds") -> str:
    """A moment as RFC 3339 has it, in UTC, to the `timespec` of `datetime.isoformat`."""
    return utc(moment).isoformat(timespec=timespec).replace("+00:00", "Z")


def local(moment: float, form: str = "%Y-%m-%d %H:%M:%S") -> str:
    """A moment by this host's clock, for people."""
    return time.strftime(form, time.localtime(_within(moment)))


def _within(moment: float) -> float:
    return min(max(0.0, moment), _LAST)
