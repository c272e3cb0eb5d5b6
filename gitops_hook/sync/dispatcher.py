"""The dispatcher: from pending deliveries to runs, with a bound on runs at the same time.

Rules:

1. A checkout has one worker at most, so two runs of one checkout never overlap.
2. The journal says what is pending. A wake-up only asks to look at it, so one that is lost, doubled or late does no
   harm.
3. A run needs a slot. The checkout that has waited longest gets the next free one; a checkout that wants another run
   goes to the end of the line.
4. Threads are bounded by the slots and a few more (`_SPARE`), however many checkouts wait: a worker has a thread only
   while it runs, and a checkout in backoff has no worker. One scheduler thread holds all due times.
5. A run that settled nothing is retried with backoff. A push or a request cuts the delay short.
6. A run that the daemon's own shutdown ended is repeated at the next start, with increasing delay from the second in a
   row: its deploy may restart the daemon and wait for it.
7. A deploy that pushes to its own repository (`loops`) is delayed too; only a person's request cuts that delay short.

The states of a checkout here: idle (nothing is stored), in line (`_line`), active (`_active`), delayed (`_delays`).
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from gitops_hook.config import Settings
from gitops_hook.errors import HTTPError
from gitops_hook.journal.writer import Journal
from gitops_hook.log import log
from gitops_hook.model import Run
from gitops_hook.sync.checkouts import Checkouts
from gitops_hook.sync.delays import RESTARTS_ADVICE, Delay, delay_after, delay_after_restarts
from gitops_hook.sync.executor import Early, Executor, RunObserver, log_end
from gitops_hook.sync.holds import is_paused
from gitops_hook.sync.runner import GRACE, Runner
from gitops_hook.sync.sweep import feed
from gitops_hook.sync.worker import WakeUp, Worker

__all__ = ["Dispatcher", "RunObserver"]

#: Workers that may go on beyond the slots: their runs are recorded, and their observers still work.
_SPARE = 4


class Dispatcher:
    """Starts the runs that pending deliveries and requests ask for. Any thread may call any method."""

    def __init__(
        self,
        journal: Journal,
        checkouts: Checkouts,
        executor: Executor,
        *,
        max_syncs: int,
        clock: Callable[[], float] = time.monotonic,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        """Create a dispatcher that is not started.

        `max_syncs` bounds the runs at the same time. `clock` returns seconds from any origin, as the executor's.
        `jitter` is that of `Backoff.delay`.
        """
        self._journal = journal
        self._checkouts = checkouts
        self._executor = executor
        self._max_syncs = max_syncs
        self._clock = clock
        self._jitter = jitter
        self._replacements = journal.replacements
        # The next three map a repository in lower case, because forges ignore case. All fields below are guarded by
        # _changed, which every method takes for a few steps; no other lock is taken meanwhile. It is notified when an
        # active worker has gone, when a delay begins, and at the stop.
        self._line: dict[str, Worker] = {}  # in the order in which they get a slot
        self._active: dict[str, Worker] = {}
        self._delays: dict[str, Delay] = {}
        self._fed: set[str] = set()  # those that a sweep has yet to put in line, in lower case
        self._excluded: set[str] = set()  # those that get no run now, in lower case
        self._stopping = False
        self._changed = threading.Condition(threading.Lock())

    @classmethod
    def from_settings(
        cls,
        settings: Settings,
        environ: Mapping[str, str],
        journal: Journal,
        checkouts: Checkouts,
        observers: Sequence[RunObserver] = (),
    ) -> Dispatcher:
        """Return a dispatcher with `settings`, whose scripts inherit the permitted part of `environ`."""
        runner = Runner(settings.sync_script, settings.root, environ)
        executor = Executor(
            journal,
            checkouts,
            runner,
            sync_timeout=settings.sync_timeout,
            clone=settings.clone,
            clone_url=settings.clone_url,
            observers=observers,
        )
        return cls(journal, checkouts, executor, max_syncs=settings.max_syncs)

    # -- what asks for runs -----------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start the scheduler, resume what an earlier daemon left, and sweep."""
        self.start_scheduler()
        self.recover()
        self.sweep()

    def start_scheduler(self) -> None:
        """Start the thread that runs delayed checkouts when they are due."""
        threading.Thread(target=self._schedule, name="scheduler", daemon=True).start()

    def record_killed(self) -> None:
        """Record the end of the runs that an earlier process left unfinished: it was killed."""
        for died in self._journal.end_unfinished():
            log_end(died.run, died)

    def recover(self) -> None:
        """Record which runs an earlier process left unfinished, and run everything that is pending."""
        self.record_killed()
        pending = self._journal.pending()
        if pending:
            log.info("deliveries are pending from before the start", repositories=len(pending))
        for repository in pending:
            if not self._delay_after_restarts(repository):
                self.notify(repository, "recovery")

    def sweep(self) -> None:
        """Sync every checkout once, on at most half of the slots, so that a push never waits for a whole sweep."""
        self._replacements = self._journal.replacements
        feed(self._checkouts, max(1, self._max_syncs // 2), self._sweep_one)

    def notify(self, repository: str, trigger: str = "push", done: Callable[[], None] = lambda: None) -> None:
        """Ask for a run of `repository`. A push asks only for pending deliveries, any other trigger for a run.

        `done` is called when that has been done, or not at all after a stop.
        """
        key = repository.lower()
        with self._changed:
            if self._stopping:
                return
            worker = self._line.get(key) or self._active.get(key)
            delay = self._delays.get(key)
            is_delayed = worker is None and delay is not None and trigger in delay.ignores
            ignored = is_delayed or key in self._excluded
            if not ignored:
                worker = worker or self._enter_line(repository)
                # A wake-up that is still in the queue covers this push.
                if trigger != "push" or worker.queue.empty():
                    worker.queue.put(WakeUp(trigger, done))
                self._fill_slots()
        if ignored:
            done()

    def reconcile(self) -> None:
        """Repair what was lost: a wake-up, a thread that could not start, the slot of a hanging worker, the journal.

        Also run the pushes that waited for the end of a pause. The daemon calls this every minute. Raises
        `JournalError`.
        """
        if self._replacements != self._journal.replacements:
            self.sweep()
        self._release_overdue()
        self.run_due()
        for repository in self._journal.pending():
            if not self._is_known(repository) and not self._is_paused(repository):
                self.notify(repository)

    def request(self, repositories: Sequence[str], trigger: str) -> None:
        """Run the requests of a command, which are in the journal. A sweep leaves half of the slots to pushes."""
        if trigger == "sweep":
            with self._changed:
                self._fed.update(name.lower() for name in repositories)
            feed(repositories, max(1, self._max_syncs // 2), self._sweep_one)
        else:
            for repository in repositories:
                self.notify(repository, trigger)

    def cancel(self, repository: str) -> list[int]:
        """End the current run of `repository`, and give up its claimed deliveries. Return the ids of ended runs.

        Raises `JournalError`.
        """
        key = repository.lower()
        with self._changed:
            worker = self._active.get(key)
            run = worker.run if worker else 0
            self._delays.pop(key, None)
        if run in self._executor.running:
            # The signal misses a script that is just being started, so it is repeated until the run has ended.
            for _ in range(GRACE + 2):
                self._executor.cancel(run)
                with self._changed:
                    if self._changed.wait_for(lambda: run not in self._executor.running, 1.0):
                        break
            return [run]
        self._journal.settle_claimed(repository)
        return []

    @contextmanager
    def excluded(self, repository: str) -> Iterator[None]:
        """Start no run of `repository` during the block. Raises `HTTPError` (409) if one lasts another second.

        Drop the wake-ups of the checkout. After the block, the pending deliveries of the journal get a run.
        """
        key = repository.lower()
        with self._changed:
            if not self._changed.wait_for(lambda: key not in self._active, 1.0):
                raise HTTPError(409, f"a run is in progress; to end it: gitops-hook sync --cancel {repository}")
            self._excluded.add(key)
            self._delays.pop(key, None)
            dropped = self._line.pop(key, None)
        for wake in dropped.peek() if dropped else ():
            wake.done()
        try:
            yield
        finally:
            with self._changed:
                self._excluded.discard(key)
            self.notify(repository)

    # -- the end ----------------------------------------------------------------------------------------------------

    def stop(self) -> None:
        """Start no more runs. Current runs go on; `join` waits for them."""
        self._executor.stop()
        with self._changed:
            self._stopping = True
            self._line.clear()
            self._delays.clear()
            self._changed.notify_all()

    def join(self, timeout: float) -> bool:
        """Wait at most `timeout` seconds for the current runs, and return whether all of them have ended."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._active, timeout)

    def terminate(self) -> None:
        """End the current runs; called after `stop`."""
        self._executor.terminate()

    # -- what others look at ----------------------------------------------------------------------------------------

    @property
    def failure(self) -> Run | None:
        """Return the last run since the start that did not end well."""
        return self._executor.failure

    @property
    def stopping(self) -> bool:
        """Return whether `stop` was called."""
        return self._stopping

    @property
    def workers(self) -> int:
        """Return the number of checkouts that run or wait for a slot."""
        return len(self._line) + len(self._active)

    @property
    def running(self) -> int:
        """Return the number of scripts that are running."""
        return len(self._executor.running)

    def overdue(self) -> list[int]:
        """Return the ids of runs that exceeded their time limit although their scripts were killed."""
        return self._executor.overdue

    # -- inside; the methods from here to run_due are called with the lock --------------------------------------------

    def _enter_line(self, repository: str) -> Worker:
        delay = self._delays.pop(repository.lower(), None)
        worker = Worker(
            repository,
            self._executor,
            failures=delay.failures if delay else 0,
            early=delay.early if delay else Early(),
            released=self._release,
            ended=self._end,
        )
        self._line[repository.lower()] = worker
        return worker

    def _fill_slots(self) -> None:
        """Start the workers that have waited longest, as far as slots are free."""
        while self._line and not self._stopping and self._has_free_slot():
            key, worker = next(iter(self._line.items()))
            worker.has_slot = True
            try:
                worker.start()
            except RuntimeError as error:  # the next notification or `reconcile` tries again
                worker.has_slot = False
                log.error("no worker thread can be started", repository=worker.repository, reason=error)
                return
            self._active[key] = self._line.pop(key)

    def _has_free_slot(self) -> bool:
        slots = sum(worker.has_slot for worker in self._active.values())
        return slots < self._max_syncs and len(self._active) < self._max_syncs + _SPARE

    def _enter_due(self) -> float | None:
        """Put every due checkout in line, and return the seconds until the next is due."""
        now = self._clock()
        for delay in [delay for delay in self._delays.values() if delay.due <= now]:
            self._enter_line(delay.repository).queue.put(WakeUp(delay.trigger))
        self._fill_slots()
        return min((delay.due - now for delay in self._delays.values()), default=None)

    # -- inside; without the lock -----------------------------------------------------------------------------------

    def run_due(self) -> float | None:
        """Run every delayed checkout that is due, and return the seconds until the next; None if there is none."""
        with self._changed:
            return self._enter_due()

    def _schedule(self) -> None:
        with self._changed:
            while not self._stopping:
                self._changed.wait(self._enter_due())

    def _release(self, worker: Worker) -> None:
        """Take the slot from a worker that needs it no longer."""
        with self._changed:
            worker.has_slot = False
            self._fill_slots()

    def _release_overdue(self) -> None:
        """Take the slots from workers that hang in code of ours, so that other checkouts go on."""
        overdue = set(self._executor.overdue)
        with self._changed:
            for worker in self._active.values():
                worker.has_slot = worker.has_slot and worker.run not in overdue
            self._fill_slots()

    def _end(self, worker: Worker) -> None:
        """Remove a worker whose run is over, or put it at the end of the line if more is asked of it."""
        key = worker.repository.lower()
        ignored: list[WakeUp] = []
        with self._changed:
            self._active.pop(key, None)
            worker.has_slot = False
            delay = None if self._stopping else delay_after(worker, self._clock(), self._jitter)
            wakes = worker.peek()
            if delay and all(wake.trigger in delay.ignores for wake in wakes):
                self._delays[key] = delay
                ignored = wakes
            elif not self._stopping and wakes:
                self._line[key] = worker
            self._fill_slots()
            self._changed.notify_all()
        for wake in ignored:
            wake.done()

    def _is_known(self, repository: str) -> bool:
        """Return True if a run of `repository` is under way, in line or scheduled."""
        key = repository.lower()
        return key in self._line or key in self._active or key in self._delays or key in self._fed

    def _is_paused(self, repository: str) -> bool:
        """Return True if `repository` is paused now. Its pushes wait in the journal."""
        try:
            checkout = self._checkouts.find(repository)
        except OSError:  # no process can be started; the run reports it
            return False
        return checkout is not None and is_paused(checkout.settings, self._journal.now())

    def _delay_after_restarts(self, repository: str) -> bool:
        """Delay `repository` if the daemon's shutdown ended at least its last two runs, and return whether it did."""
        delay = delay_after_restarts(self._journal, repository, self._clock(), self._jitter)
        if not delay:
            return False
        with self._changed:
            if not self._stopping and not self._is_known(repository):
                self._delays[repository.lower()] = delay
                self._changed.notify_all()
                log.error(RESTARTS_ADVICE, repository=repository)
        return True

    def _sweep_one(self, repository: str, done: Callable[[], None]) -> bool:
        """Ask for the sweep of a checkout, and return whether `done` will be called after it."""
        with self._changed:
            self._fed.discard(repository.lower())
        if self._delay_after_restarts(repository):
            return False
        self.notify(repository, "sweep", done)
        return True
