"""Detect a deploy that pushes to its own repository.

Such a deploy starts an endless loop: a run deploys a commit, the deploy pushes another, and that push starts the next
run. In a loop, every run brings a commit whose push arrived during the previous run.

Rules:

1. `LOOP_RUNS` such runs in a row, within `LOOP_WINDOW` seconds, are a loop. It lasts until a run is different.
2. A loop is delayed, not stopped: it may be a repository that many people push to.
"""

from __future__ import annotations

from typing import NamedTuple

from gitops_hook.model import Claim, Run

#: The number of runs in a row from which they are a loop, and the time in seconds within which they must have started.
LOOP_RUNS = 5
LOOP_WINDOW = 600.0


class _Chain(NamedTuple):
    """Runs in a row of which each was triggered during the previous one."""

    runs: int
    since: float
    #: The time of the last run.
    started: float
    ended: float
    is_loop: bool


class LoopDetector:
    """Follows the runs of all checkouts. Each checkout has one run at a time, so no lock is needed."""

    def __init__(self) -> None:
        # By repository in lower case. An entry is set and removed in one step, by the thread of the checkout's run.
        self._chains: dict[str, _Chain] = {}

    def count(self, run: Run, claim: Claim) -> int:
        """Return the number of runs in a row if `run`, which has ended, continues a loop; else 0."""
        assert run.ended
        key = run.repository.lower()
        previous = self._chains.pop(key, None)
        if not claim.newest or not run.after or run.before == run.after:
            return 0
        if previous and previous.started <= claim.newest.received <= previous.ended:
            runs, since = previous.runs + 1, previous.since
            is_loop = previous.is_loop or (runs >= LOOP_RUNS and run.started - since <= LOOP_WINDOW)
        else:
            runs, since, is_loop = 1, run.started, False
        self._chains[key] = _Chain(runs, since, run.started, run.ended, is_loop)
        return runs if is_loop else 0
