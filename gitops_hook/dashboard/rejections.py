"""Count the requests that the receiver rejected in the last day, by reason and peer.

Rules:

1. The counters are in memory and start at zero with the daemon. A request without a valid signature writes no row.
2. The memory is bounded: at most `MOST_PEERS` pairs of reason and peer, each with one counter per hour. Every other
   peer counts as `OTHERS`.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import NamedTuple

#: The maximum number of pairs of a reason and a peer. There is one more for the other peers of each reason.
MOST_PEERS = 50
#: The peer of the requests that have no counter of their own.
OTHERS = "others"
_HOURS = 24
_HOUR = 3600


class Rejected(NamedTuple):
    """The rejected requests of one peer for one reason. `since` is the first of the day, `last` the newest."""

    reason: str
    peer: str
    requests: int
    since: float
    last: float


class Rejections:
    """Counts rejected requests by reason and peer. Any thread may call any method."""

    def __init__(self, now: Callable[[], float] = time.time) -> None:
        """Create the counters. `now` returns the time in seconds since the epoch."""
        self._now = now
        # Guards _hours. The threads of the receiver and of the dashboard take it for one update or one copy.
        self._lock = threading.Lock()
        #: For each pair of a reason and a peer, by the number of the hour: the count, the first and the last time.
        self._hours: dict[tuple[str, str], dict[int, tuple[int, float, float]]] = {}

    def add(self, reason: str, peer: str) -> None:
        """Count one rejected request."""
        moment = self._now()
        hour = int(moment // _HOUR)
        with self._lock:
            self._forget(hour)
            key = (reason, peer)
            if key not in self._hours and len(self._hours) >= MOST_PEERS:
                key = (reason, OTHERS)
            hours = self._hours.setdefault(key, {})
            count, first, _ = hours.get(hour, (0, moment, moment))
            hours[hour] = (count + 1, first, moment)

    def last_day(self) -> list[Rejected]:
        """Return the counters of the last day, the largest first."""
        with self._lock:
            self._forget(int(self._now() // _HOUR))
            found = [
                Rejected(
                    reason,
                    peer,
                    sum(count for count, _, _ in hours.values()),
                    min(first for _, first, _ in hours.values()),
                    max(last for _, _, last in hours.values()),
                )
                for (reason, peer), hours in self._hours.items()
            ]
        return sorted(found, key=lambda rejected: (-rejected.requests, rejected.reason, rejected.peer))

    def _forget(self, hour: int) -> None:
        """Remove what is older than a day. The lock is held."""
        for key, hours in list(self._hours.items()):
            for old in [each for each in hours if each <= hour - _HOURS]:
                del hours[old]
            if not hours:
                del self._hours[key]
