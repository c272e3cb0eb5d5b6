"""The worker of one checkout: a queue of wake-ups, and the thread that does the run that they ask for.

Rules:

1. A worker exists while its checkout runs or waits for a slot. It has a thread only while it runs.
2. A wake-up carries no work: the journal has the deliveries. All wake-ups in the queue ask for one run.
3. A worker outlives every exception: its checkout would be blocked until the next start.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import NamedTuple

from gitops_hook.log import log
from gitops_hook.model import Claim
from gitops_hook.outcomes import outcome_of
from gitops_hook.sync.backoff import RETRIES
from gitops_hook.sync.executor import Early, Ended, Executor


class WakeUp(NamedTuple):
    """The reason to look at a checkout, and a function to call when that has been done."""

    trigger: str
    done: Callable[[], None] = lambda: None


class Worker:
    """Does the runs of one checkout, one after another."""

    def __init__(
        self,
        repository: str,
        executor: Executor,
        *,
        failures: int = 0,
        early: Early = Early(),  # noqa: B008 - immutable
        released: Callable[[Worker], None],
        ended: Callable[[Worker], None],
    ) -> None:
        """Create a worker without a thread.

        `released` is called when a run gives back its slot, `ended` when the worker has finished with it.
        """
        self.repository = repository
        self.queue: queue.Queue[WakeUp] = queue.Queue()
        self.thread: threading.Thread | None = None
        self._executor = executor
        self._released = released
        self._ended = ended
        #: The number of runs in a row that settled nothing.
        self.failures = failures
        self.early = early
        #: The last run, or None if nothing was to be done or an internal error ended it.
        self.last: Ended | None = None
        #: Whether this worker occupies a slot. Guarded by the dispatcher's lock.
        self.has_slot = False
        #: The id of the current run; 0 before its start.
        self.run = 0

    def start(self) -> None:
        """Start a thread for one run. Raises RuntimeError if no thread can be started."""
        self.thread = threading.Thread(target=self.run_once, name=f"worker {self.repository}", daemon=True)
        self.thread.start()

    def run_once(self) -> None:
        """Do the run that the wake-ups in the queue ask for."""
        wakes = self._take_wakes()
        # A push asks for a run only if deliveries are pending. Any other trigger asks for a run in any case.
        trigger = next((wake.trigger for wake in wakes if wake.trigger != "push"), "push")
        self.last = None
        try:
            try:
                self.last = self._executor.execute(
                    self.repository,
                    trigger,
                    early=self.early,
                    started=self._note_start,
                    released=lambda: self._released(self),
                )
            finally:
                for wake in wakes:
                    wake.done()
            self.early = self.last.early if self.last else Early()
            self.failures = self.failures + 1 if self.last and not self.last.settled else 0
        except Exception:
            log.exception("internal error in a worker", repository=self.repository)
            self.failures += 1
        finally:
            self._ended(self)

    def retry_delay(self, jitter: Callable[[], float]) -> float:
        """Return the seconds until the next try of a run that settled nothing. `jitter` is that of `Backoff.delay`."""
        retry = outcome_of(self.last.run.outcome).retry if self.last else "backoff"
        return RETRIES[retry or "backoff"].delay(self.early.runs or self.failures, jitter)

    def _note_start(self, claim: Claim) -> None:
        self.run = claim.run.id

    def peek(self) -> list[WakeUp]:
        """Return the wake-ups in the queue, without removing them."""
        with self.queue.mutex:
            return list(self.queue.queue)

    def _take_wakes(self) -> list[WakeUp]:
        wakes = []
        with suppress(queue.Empty):
            while True:
                wakes.append(self.queue.get_nowait())
        return wakes
