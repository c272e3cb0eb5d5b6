"""The delays before the next run of a checkout: after a run that settled nothing, in a loop, after restarts.

A delay names the triggers that do not cut it short. A person's request cuts every delay short.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import takewhile
from typing import NamedTuple

from gitops_hook.errors import JournalError
from gitops_hook.journal.reader import JournalReader
from gitops_hook.sync import backoff
from gitops_hook.sync.executor import Early
from gitops_hook.sync.loops import LOOP_RUNS
from gitops_hook.sync.worker import Worker

#: The log line of a run that is delayed after restarts.
RESTARTS_ADVICE = (
    "the daemon's shutdown ended the last runs, so the next is delayed; a deploy that restarts the daemon must not wait"
    " for it: systemctl --no-block restart gitops-hook"
)
#: The number of runs to look back for those that the daemon's shutdown ended.
_RESTARTS_COUNTED = 10
_RESTART_IGNORES = frozenset({"sweep", "recovery"})
_LOOP_IGNORES = frozenset({"push", "sweep", "recovery"})


class Delay(NamedTuple):
    """A checkout that waits for its next run."""

    repository: str
    #: When to run it, on the dispatcher's clock.
    due: float
    #: The trigger of that run. A push runs only if something is pending.
    trigger: str = "retry"
    #: The number of runs in a row that settled nothing, and those of them that ended early.
    failures: int = 0
    early: Early = Early()
    #: The triggers that do not cut the delay short.
    ignores: frozenset[str] = frozenset()


def delay_after(worker: Worker, now: float, jitter: Callable[[], float]) -> Delay | None:
    """Return the delay after the run that `worker` has just done, or None. `jitter` is that of `Backoff.delay`."""
    if worker.failures:
        due = now + worker.retry_delay(jitter)
        return Delay(worker.repository, due, failures=worker.failures, early=worker.early)
    if worker.last and worker.last.loop:
        due = now + backoff.LOOPS.delay(worker.last.loop - LOOP_RUNS + 1, jitter)
        return Delay(worker.repository, due, "push", ignores=_LOOP_IGNORES)
    return None


def delay_after_restarts(
    journal: JournalReader, repository: str, now: float, jitter: Callable[[], float]
) -> Delay | None:
    """Return the delay of `repository` at the start of a daemon, or None.

    The first run that the daemon's shutdown ended is repeated at once, every further one later than the one before.
    """
    try:
        runs = journal.runs(repository, _RESTARTS_COUNTED)
    except JournalError:
        return None  # then no run can start either
    count = sum(1 for _ in takewhile(lambda run: run.cause == "shutdown", runs))
    if count < 2:
        return None
    return Delay(repository, now + backoff.RESTARTS.delay(count - 1, jitter), ignores=_RESTART_IGNORES)
