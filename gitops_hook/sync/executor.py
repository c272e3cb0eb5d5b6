"""One run from start to end: claim deliveries, execute the script, record the outcome, inform the observers.

Rules:

1. A run claims all pending deliveries of its checkout in the transaction that starts it. Pushes that arrive earlier
   therefore share the run; pushes that arrive later get another.
2. A run that the journal cannot record is recorded as soon as it can. Until then nothing else of this checkout runs.
3. A run that the daemon's shutdown ended has the outcome ``interrupted``, regardless of the script's status.
4. A fault of an observer is logged. It affects neither the run nor another observer.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import NamedTuple, Protocol

from gitops_hook.errors import JournalError
from gitops_hook.journal.writer import Journal
from gitops_hook.log import log
from gitops_hook.model import Claim, Run
from gitops_hook.names import may_clone, repository_of
from gitops_hook.outcomes import CAUSES, GOOD, REST, outcome_of, settles, severity_of
from gitops_hook.sync.backoff import RETRIES
from gitops_hook.sync.checkouts import Checkout, Checkouts
from gitops_hook.sync.loops import LoopDetector
from gitops_hook.sync.run_log import last_lines
from gitops_hook.sync.runner import GRACE, Result, Runner, Task
from gitops_hook.sync.settings import time_limit

#: Seconds between attempts to write to a journal that cannot be written.
JOURNAL_WAIT = 1.0
#: Seconds after the time limit and the grace period within which a run is recorded, unless code of ours hangs.
OVERDUE = 30.0


class RunObserver(Protocol):
    """An object that is informed of each run, in the thread of that run."""

    def began(self, claim: Claim, task: Task) -> None:
        """Handle a run that is in the journal and whose script is about to start. It must return quickly."""

    def ended(self, run: Run, claim: Claim, task: Task) -> None:
        """Handle a run whose end is in the journal. The run has released its slot by then."""


class Early(NamedTuple):
    """The runs in a row that ended ``early`` for the same newest delivery, by its id."""

    delivery: int = 0
    runs: int = 0


class Ended(NamedTuple):
    """A run that has ended."""

    run: Run
    claim: Claim
    settled: bool
    early: Early
    #: The number of runs in a row if they are a loop (`loops`), else 0.
    loop: int = 0


class Executor:
    """Executes runs in the caller's thread. Threads may share it."""

    def __init__(
        self,
        journal: Journal,
        checkouts: Checkouts,
        runner: Runner,
        *,
        sync_timeout: int,
        clone: Sequence[str] = (),
        clone_url: str = "",
        observers: Sequence[RunObserver] = (),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Create an executor.

        `sync_timeout` is the default time limit in seconds. `clock` returns seconds from any origin.
        """
        self._journal = journal
        self._checkouts = checkouts
        self._runner = runner
        self._sync_timeout = sync_timeout
        self._clone = clone
        self._clone_url = clone_url
        self._observers = observers
        self._clock = clock
        self._loops = LoopDetector()
        self._stopping = threading.Event()
        self._terminated = False
        #: The last run since the start that did not end well.
        self.failure: Run | None = None
        # The time on the clock at which each running script must have ended, by run. Each worker writes its own entry
        # in one step, and readers copy the dictionary, so no lock is needed.
        self._deadlines: dict[int, float] = {}
        # The runs to cancel. Any thread adds in one step, and the thread of the run removes its own.
        self._cancelled: set[int] = set()

    def stop(self) -> None:
        """Start no more runs."""
        self._stopping.set()

    def cancel(self, run: int) -> None:
        """End the script of a run and settle its deliveries. The run gets the cause ``cancelled``."""
        self._cancelled.add(run)
        self._runner.terminate(run)

    def terminate(self) -> None:
        """End the running scripts; called after `stop`."""
        self._terminated = True
        self._runner.terminate()

    @property
    def running(self) -> list[int]:
        """Return the ids of the runs whose scripts are running."""
        return list(self._deadlines.copy())

    @property
    def overdue(self) -> list[int]:
        """Return the ids of the runs that exceeded their time limit, although their scripts were killed."""
        now = self._clock()
        return [run for run, deadline in self._deadlines.copy().items() if deadline < now]

    def execute(
        self,
        repository: str,
        trigger: str,
        *,
        early: Early = Early(),  # noqa: B008 - immutable
        released: Callable[[], None] = lambda: None,
        started: Callable[[Claim], None] = lambda claim: None,
    ) -> Ended | None:
        """Do one run of `repository`, or none if nothing asks for it. A push asks only for pending deliveries.

        `early` is that of the checkout's previous run. `started` is called when the run is in the journal, `released`
        when its end is in the journal, before the observers are informed.
        """
        if self._stopping.is_set():
            return None
        claim = self._start(repository, trigger)
        if not claim:
            return None
        started(claim)
        return self._run(claim, early, released)

    def _start(self, repository: str, trigger: str) -> Claim | None:
        """Start a run as soon as the journal can be written; None if none is due, or at the shutdown."""
        while True:
            try:
                return self._journal.start(repository, trigger, if_pending=trigger == "push")
            except JournalError:
                if self._stopping.wait(JOURNAL_WAIT):
                    return None

    def _run(self, claim: Claim, early: Early, released: Callable[[], None]) -> Ended:
        task = _task(claim)
        _log_start(claim)
        self._inform_observers(lambda observer: observer.began(claim, task))
        result = self._execute(task, claim.run)
        # A script may answer SIGTERM with a status of its own choice.
        if self._stopping.is_set() and (result.outcome == "interrupted" or (self._terminated and result.exit)):
            result = result._replace(outcome="interrupted", message=CAUSES["shutdown"], cause="shutdown")
        cancelled = claim.run.id in self._cancelled
        if cancelled and result.exit != 0:
            result = result._replace(outcome="interrupted", message=CAUSES["cancelled"], cause="cancelled")
        self._cancelled.discard(claim.run.id)
        early = _count_early(claim, result, early)
        if result.outcome == "early" and RETRIES[outcome_of("early").retry].is_exhausted(early.runs):
            outcome = "held" if self._is_held(claim.run.repository) else "unchanged"
            result = result._replace(outcome=outcome, exit=0, message=_never_shown(claim))
        run = claim.run._replace(ended=self._journal.now(), **result._asdict())
        loop = self._loops.count(run, claim)
        if loop:
            run = run._replace(message=_describe_loop(run, loop), cause=run.cause or "loop")
        ended = Ended(run, claim, cancelled or settles(run.outcome), early, loop)
        well = severity_of(run.outcome) in (GOOD, REST)
        if not well:
            self.failure = run
        self._record(ended)
        released()
        log_end(run, claim, "" if well else last_lines(self._journal.log_path(run.id)))
        if ended.settled and not outcome_of(run.outcome).keeps_pushes:
            _log_shared_deliveries(claim, run)
        self._inform_observers(lambda observer: observer.ended(run, claim, task))
        return ended

    def _execute(self, task: Task, run: Run) -> Result:
        """Execute the script under the checkout's time limit, with permission to clone if there is no checkout."""
        try:
            checkout = self._checkouts.find(run.repository)
            limit = self._time_limit(checkout)
            if not checkout and may_clone(run.repository, self._clone):
                task = task._replace(clone_url=self._clone_url.format(repository=repository_of(task.repository)))
            self._deadlines[run.id] = self._clock() + limit + GRACE + OVERDUE
            return self._runner.run(task, self._journal.log_path(run.id), limit)
        except OSError as error:
            return Result("interrupted", None, message=f"The script could not be started: {error}")
        except Exception:
            log.exception("internal error in a run", repository=run.repository, run=run.id)
            return Result("interrupted", None, message=CAUSES["internal"], cause="internal")
        finally:
            self._deadlines.pop(run.id, None)

    def _time_limit(self, checkout: Checkout | None) -> int:
        return time_limit(checkout.settings if checkout else {}, self._sync_timeout)

    def _is_held(self, repository: str) -> bool:
        """Return True if a pin or a roll-out keeps the checkout from following its branch."""
        with suppress(OSError):
            checkout = self._checkouts.find(repository)
            return checkout is not None and bool(checkout.settings.get("pin") or checkout.settings.get("approved"))
        return False

    def _record(self, ended: Ended) -> None:
        """Record the end of a run as soon as the journal can be written."""
        while True:
            try:
                return self._journal.finish(ended.run, settled=ended.settled)
            except JournalError:
                if self._stopping.wait(JOURNAL_WAIT):
                    return None  # without a recorded end the next start takes it as interrupted, and repeats it

    def _inform_observers(self, call: Callable[[RunObserver], None]) -> None:
        for observer in self._observers:
            try:
                call(observer)
            except Exception:
                log.exception("internal error in a run observer", observer=type(observer).__name__)


def _count_early(claim: Claim, result: Result, early: Early) -> Early:
    if result.outcome != "early":
        return Early()
    delivery = claim.newest.id if claim.newest else 0
    return Early(delivery, early.runs + 1 if delivery == early.delivery else 1)


def _never_shown(claim: Claim) -> str:
    commit = claim.newest.after if claim.newest else ""
    return (
        f"The remote does not show commit {commit[:12]}, which a webhook announced. A force push may have replaced it."
    )


def _describe_loop(run: Run, loop: int) -> str:
    description = (
        f"Run {loop} in a row that brought a commit which was pushed during the previous run. {CAUSES['loop']}"
    )
    return f"{run.message} {description}" if run.message else description


def _task(claim: Claim) -> Task:
    run, newest = claim.run, claim.newest
    if not newest:
        return Task(run.repository, run.id, event=run.trigger, renamed=claim.renamed)
    return Task(
        newest.repository,
        run.id,
        newest.ref,
        newest.after,
        newest.event,
        newest.guid,
        deliveries=claim.deliveries,
        again=any(delivery.event == "deploy" for delivery in claim.served),
        force=any(delivery.force for delivery in claim.served),
        renamed=claim.renamed,
    )


def _log_start(claim: Claim) -> None:
    run, newest = claim.run, claim.newest
    log.info(
        "run started",
        repository=run.repository,
        run=run.id,
        trigger=run.trigger,
        delivery=newest.guid if newest else None,
        deliveries=claim.deliveries or None,
    )
    _log_shared_deliveries(claim)


def log_end(run: Run, claim: Claim, output: str = "") -> None:
    """Log the end of a run: a warning if it is retried, an error if a person must act."""
    write = log.info if severity_of(run.outcome) in (GOOD, REST) else log.error if settles(run.outcome) else log.warning
    newest = claim.newest
    assert run.ended
    write(
        f"run {run.outcome}",
        repository=run.repository,
        run=run.id,
        outcome=run.outcome,
        trigger=run.trigger,
        delivery=newest.guid if newest else None,
        deliveries=claim.deliveries or None,
        commit=run.after or None,
        exit=run.exit or None,
        ms=round((run.ended - run.started) * 1000),
        reason=run.message or None,
        output=output or None,
    )


def _log_shared_deliveries(claim: Claim, ended: Run | None = None) -> None:
    """Log each delivery that shares the run with the newest, which the run's own lines name.

    Every GUID can thus be found in the log: when the first run claims it, and when a run settles it. Retries log
    nothing, so a thousand deliveries that wait for a remote do not flood the log.
    """
    for delivery in claim.served[:-1]:
        if ended and ended.ended:
            log.info(
                "delivery settled",
                repository=ended.repository,
                run=ended.id,
                outcome=ended.outcome,
                delivery=delivery.guid,
                commit=ended.after or None,
                ms=round((ended.ended - delivery.received) * 1000),
            )
        elif not delivery.run:
            log.info("delivery claimed", repository=claim.run.repository, run=claim.run.id, delivery=delivery.guid)
