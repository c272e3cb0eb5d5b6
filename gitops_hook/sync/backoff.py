"""Retry delays: one function, used for runs, commit statuses and notices.

The delay doubles from the first to the longest, and is spread by a quarter in both directions, so that many retries
that failed at the same moment do not come back at the same moment.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import NamedTuple

#: Doublings after which every delay has reached its longest; this keeps the power finite.
_MAX_DOUBLINGS = 30


class Backoff(NamedTuple):
    """The delays of one kind of retry, in seconds."""

    first: float
    longest: float
    #: The number of retries, or None if there is no bound.
    retries: int | None = None

    def delay(self, failures: int, jitter: Callable[[], float] = random.random) -> float:
        """Return the delay in seconds after `failures` failures in a row, at least 1.

        `jitter` returns a number from 0 to 1, where 0.5 leaves the delay as it is.
        """
        doublings = min(max(failures - 1, 0), _MAX_DOUBLINGS)
        return min(self.longest, self.first * 2.0**doublings) * (0.75 + jitter() / 2)

    def is_exhausted(self, failures: int) -> bool:
        """Return True if no retry is left after `failures` failures in a row."""
        return self.retries is not None and failures > self.retries


#: The retries of runs that settled nothing, by the `retry` of their outcome. The longest delay is that of a polling
#: timer. A commit that a webhook announced too early appears within seconds, or never, if a force push replaced it.
RETRIES = {
    "backoff": Backoff(5.0, 900.0),
    "early": Backoff(2.5, 40.0, retries=5),
    "longest": Backoff(900.0, 900.0),
}
#: Runs that the daemon's own shutdown ended, from the second in a row.
RESTARTS = Backoff(30.0, 900.0)
#: Runs of a checkout whose deploy seems to push to its own repository.
LOOPS = Backoff(30.0, 300.0)
