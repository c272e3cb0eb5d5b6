"""From what is owed to runs: a queue and a worker thread per repository, and a cap over all of them.

Rules:

1. A worker alone runs its repository, so two runs of one repository never overlap. It starts when it is first needed
   and goes when nothing has been asked of it for a while.
2. A queue only wakes; the journal says what is owed. A wake-up that is lost, doubled or late changes nothing.
3. A run starts after it has its place under the cap, and claims what is owed as it starts: the pushes that came while
   it waited collapse into one run.
4. FairSemaphore go to whoever has waited longest, so that no busy repository keeps the others out.
5. A run that settled nothing (the remote out of reach, the script killed, no process to be had) is tried again, later
   each time; a push cuts that wait short. It may have been a command's: the journal tells (`Dispatcher.reconcile`).
6. A worker never dies of an exception: its repository would be dead until the next start.
"""

from __future__ import annotations

import random
import re
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Protocol

from gitops_hook.config import Settings
from gitops_hook.errors import JournalError
from gitops_hook.journal.writer import Journal
from gitops_hook.log import log
from gitops_hook.model import Claim, Run
from gitops_hook.names import may_clone
from gitops_hook.outcomes import CAUSES, GOOD, REST, RETRIED, settles, severity_of
from gitops_hook.sync.checkouts import Checkout, Checkouts
from gitops_hook.sync.run_log import last_lines
from gitops_hook.sync.runner import GRACE, Result, Runner, Task
from gitops_hook.sync.worker import WakeUp, Worker

#: Seconds between tries to write down that a run begins or how it ended, while the journal cannot be written.
_JOURNAL_WAIT = 1.0
#: So many runs in a row that the daemon's own shutdown had to end are no accident: the deploy restarts the daemon and
#: waits for it. Going on would restart it for ever.
_RESTART_LOOP = 3
#: Seconds over its limit, and over the grace after that, by which a run is surely recorded: it has only to be judged.
_OVERDUE = 30.0
#: Seconds after a run that settled nothing until it is tried again though no worker of ours waits to: a command did it,
#: and whoever gave that may have it done again himself.
_LEFT_TO_US = 60.0
#: What `gitops.timeout` may be, in seconds; anything else is as if it were not set.
_TIMEOUT = re.compile("[1-9][0-9]{0,6}")


class RunObserver(Protocol):
    """Somebody who is told of each run. It is called by the thread that does the run, so it must not wait for long."""

    def began(self, claim: Claim, task: Task) -> None:
        """A run has begun, and the script is about to start."""

    def ended(self, run: Run, claim: Claim, task: Task) -> None:
        """A run has ended, and stands in the journal."""


class FairSemaphore:
    """The places under the cap, given in the order in which they were asked for."""

    def __init__(self, count: int) -> None:
        self._free = count
        self._closed = False
        # Guards all of the above and the line of those who wait; held for a few steps only, never while waiting.
        self._lock = threading.Lock()
        self._line: deque[threading.Event] = deque()

    @contextmanager
    def one(self) -> Iterator[bool]:
        """A place, as soon as it is this caller's turn; False instead once `close` was called."""
        granted = self._take()
        try:
            yield granted
        finally:
            if granted:
                self._give_back()

    def close(self) -> None:
        """Give no more places, and send everyone home who waits."""
        with self._lock:
            self._closed = True
            for turn in self._line:
                turn.set()

    def _take(self) -> bool:
        with self._lock:
            if self._closed:
                return False
            if self._free:
                self._free -= 1
                return True
            turn = threading.Event()
            self._line.append(turn)
        turn.wait()
        with self._lock:
            # Handed over by `_give_back`, which took us from the line; or sent home by `close`, still standing in it.
            return turn not in self._line

    def _give_back(self) -> None:
        with self._lock:
            if self._line and not self._closed:
                self._line.popleft().set()
            else:
                self._free += 1


class Dispatcher:
    """Runs what is owed. Any thread may call any method."""

    def __init__(
        self,
        journal: Journal,
        checkouts: Checkouts,
        runner: Runner,
        *,
        max_syncs: int,
        sync_timeout: int,
        clone: Sequence[str] = (),
        clone_url: str = "",
        observers: Sequence[RunObserver] = (),
        clock: Callable[[], float] = time.monotonic,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        """`clock` tells seconds, from whenever; what is written down is told by the journal's own."""
        self._journal = journal
        self._checkouts = checkouts
        self._runner = runner
        self._max_syncs = max_syncs
        self._sync_timeout = sync_timeout
        self._clone = clone
        self._clone_url = clone_url
        self._observers = observers
        self._clock = clock
        self._jitter = jitter
        self._slots = FairSemaphore(max_syncs)
        self._stopping = threading.Event()
        self._terminated = False
        self._renewals = journal.replacements
        # The workers by their repository's name in lower case, for forges take names so. Guarded by _lock, and so is
        # putting into their queues: a worker that goes must see under the lock that nothing was put.
        self._workers: dict[str, Worker] = {}
        self._lock = threading.Lock()
        #: The last run that did not go well, since the start.
        self.failure: Run | None = None
        # The runs of the script in hand, and the time on the clock when each must be over. Written by their
        # workers, looked at by anyone; each step is whole, so no lock is needed.
        self._due: dict[int, float] = {}
        # The newest run of each repository that was given up, when that was said. By anyone, each step whole.
        self._loops: dict[str, int] = {}

    @classmethod
    def from_settings(
        cls,
        settings: Settings,
        environ: Mapping[str, str],
        journal: Journal,
        checkouts: Checkouts,
        observers: Sequence[RunObserver] = (),
    ) -> Dispatcher:
        """One that runs what `settings` say, with what scripts may see of `environ`, and tells `observers`."""
        return cls(
            journal,
            checkouts,
            Runner(settings.sync_script, settings.root, environ),
            max_syncs=settings.max_syncs,
            sync_timeout=settings.sync_timeout,
            clone=settings.clone,
            clone_url=settings.clone_url,
            observers=observers,
        )

    def start(self) -> None:
        """Take up what an earlier daemon left: say which runs it interrupted, run what is owed, look at every checkout.

        What is owed goes first and may take every place; the look at all checkouts keeps to half of them, so that a
        push on a host with many never waits behind it.
        """
        for died in self._journal.end_unfinished():
            _tell_end(died.run, died)
        owed = [repository for repository in self._journal.pending() if not self._restarts_us(repository)]
        if owed:
            log.info("deliveries are owed from before", repositories=len(owed))
        self._feed(owed, "recovery", self._max_syncs)
        self.sweep()

    def sweep(self) -> None:
        """Sync every managed checkout once."""
        self._renewals = self._journal.replacements
        self._feed(self._checkouts, "sweep", max(1, self._max_syncs // 2))

    def notify(self, repository: str, trigger: str = "push", done: Callable[[], None] | None = None) -> None:
        """See to `repository` soon. A push runs what is owed, if anything still is; any other trigger runs anyway."""
        key = repository.lower()
        with self._lock:
            if self._stopping.is_set():
                return
            worker = self._workers.get(key)
            if not worker:
                worker = Worker(self, repository)
                try:
                    worker.thread.start()
                except RuntimeError as error:  # no thread to be had; `reconcile` comes back to it
                    log.error("no worker could be started", repository=repository, reason=error)
                    return
                self._workers[key] = worker
            # A wake-up that nobody has taken yet serves this push too.
            if trigger != "push" or worker.queue.empty():
                worker.queue.put(WakeUp(trigger, done))

    def reconcile(self) -> None:
        """Called now and then, this sees to what was lost, or left by commands.

        A wake-up, all that a damaged journal owed, runs whose process was killed, and those that settled nothing.
        """
        if self._renewals != self._journal.replacements:
            self.sweep()
        abandoned = [run.id for run in self._journal.running() if self._is_abandoned(run)]
        for died in self._journal.end_unfinished(abandoned) if abandoned else ():
            _tell_end(died.run, died)
        for repository in self._journal.pending():
            if repository.lower() not in self._workers:
                self.notify(repository)
        for run in self._journal.newest(RETRIED, self._journal.now() - _LEFT_TO_US):
            if run.repository.lower() not in self._workers and not self._restarts_us(run.repository):
                self.notify(run.repository, "retry")

    def stop(self) -> None:
        """Start no more runs. Those in hand go on; `join` waits for them."""
        with self._lock:
            self._stopping.set()
            for worker in self._workers.values():
                worker.queue.put(WakeUp("stop"))
        self._slots.close()

    def join(self, timeout: float) -> bool:
        """Wait until every worker has gone, `timeout` seconds at most; returns whether they have."""
        deadline = time.monotonic() + timeout
        with self._lock:
            workers = list(self._workers.values())
        for worker in workers:
            worker.thread.join(max(0.0, deadline - time.monotonic()))
        return not any(worker.thread.is_alive() for worker in workers)

    def terminate(self) -> None:
        """After `stop`: end the runs in hand."""
        self._terminated = True
        self._runner.terminate()

    @property
    def workers(self) -> int:
        """How many workers there are now."""
        return len(self._workers)

    @property
    def running(self) -> int:
        """How many runs of the script are in hand now."""
        return len(self._due)

    def overdue(self) -> list[int]:
        """The runs that go on though nothing lets a script live so long: their workers hang, in code of ours."""
        now = self._clock()
        return [run for run, due in self._due.copy().items() if due < now]

    # -- what workers do --------------------------------------------------------------------------------------------

    def step(self, repository: str, trigger: str) -> bool:
        """Do one run of `repository` if one is due; returns whether the matter is settled."""
        with self._slots.one() as granted:
            if not granted or self._stopping.is_set():
                return True  # the journal remembers
            claim = self._begin(repository, trigger)
            return self._run(claim)[1] if claim else True

    def _begin(self, repository: str, trigger: str) -> Claim | None:
        """Begin a run, however long the journal takes to be writable; None where none is due, or at the end.

        The place is kept meanwhile, for nobody else can begin one either.
        """
        while True:
            try:
                return self._journal.start(repository, trigger, if_pending=trigger == "push")
            except JournalError:
                if self._stopping.wait(_JOURNAL_WAIT):
                    return None

    def run_now(self, repository: str, trigger: str) -> Run:
        """Run `repository` in the caller's thread, as soon as there is a place; returns how it ended.

        For a process that has no workers; between processes the script's lock keeps runs apart.
        Raises `JournalError` where the run cannot be begun.
        """
        with self._slots.one():
            claim = self._journal.start(repository, trigger)
            assert claim
            return self._run(claim, "command")[0]

    def _run(self, claim: Claim, cause: str = "shutdown") -> tuple[Run, bool]:
        """Do a run that has begun; returns how it ended, and whether that settles the matter.

        `cause` is recorded if `terminate` ends it.
        """
        run, newest = claim.run, claim.newest
        task = Task(
            repository=newest.repository if newest else run.repository,
            run=run.id,
            ref=newest.ref if newest else "",
            after=newest.after if newest else "",
            event=newest.event if newest else run.trigger,
            delivery=newest.guid if newest else "",
            deliveries=claim.deliveries,
        )
        _tell_beginning(claim)
        self._notify_observers(lambda observer: observer.began(claim, task))
        try:
            result = self._execute(task, run)
        except OSError as error:
            result = Result("interrupted", None, message=f"The script could not be started: {error}")
        except Exception:
            log.exception("a run met a fault of our own", repository=run.repository, run=run.id)
            result = Result("interrupted", None, message=CAUSES["internal"], cause="internal")
        # A script may answer TERM with a status of its own. That is not how it would have ended.
        if self._stopping.is_set() and (result.outcome == "interrupted" or (self._terminated and result.exit)):
            result = result._replace(outcome="interrupted", message=CAUSES[cause], cause=cause)
        ended = run._replace(ended=self._journal.now(), **result._asdict())
        settled = settles(ended.outcome)
        went_well = severity_of(ended.outcome) in (GOOD, REST)
        if not went_well:
            self.failure = ended
        self._record(ended, settled=settled)
        _tell_end(ended, claim, "" if went_well else last_lines(self._journal.log_path(run.id)))
        if settled:
            _tell_sharers(claim, ended)
        self._notify_observers(lambda observer: observer.ended(ended, claim, task))
        return ended, settled

    def _notify_observers(self, tell: Callable[[RunObserver], None]) -> None:
        """A fault of one is logged, and is neither the run's nor the other observers'."""
        for observer in self._observers:
            try:
                tell(observer)
            except Exception:
                log.exception("a observer of runs met a fault", observer=type(observer).__name__)

    def _execute(self, task: Task, run: Run) -> Result:
        """Run the script, under the limit that the checkout sets, or with leave to clone one."""
        checkout = self._checkouts.find(run.repository)
        limit = self._limit(checkout)
        if not checkout and may_clone(run.repository, self._clone):
            task = task._replace(clone_url=self._clone_url.format(repository=task.repository))
        self._due[run.id] = self._clock() + limit + GRACE + _OVERDUE
        try:
            return self._runner.run(task, self._journal.log_path(run.id), limit)
        finally:
            del self._due[run.id]

    def _limit(self, checkout: Checkout | None) -> int:
        """How long a run may take, in seconds."""
        own = checkout.settings.get("timeout", "") if checkout else ""
        return int(own) if _TIMEOUT.fullmatch(own) else self._sync_timeout

    def _is_abandoned(self, run: Run) -> bool:
        """Whether a run in hand is none of ours, and older than any of its kind: a command's, which was killed."""
        if run.id in self._due:
            return False
        try:
            limit = self._limit(self._checkouts.find(run.repository))
        except OSError:  # no process to be had; the next look will tell
            return False
        return self._journal.now() - run.started > limit + GRACE + _OVERDUE

    def _record(self, run: Run, *, settled: bool) -> None:
        """Write down how a run ended, however long the journal takes to be writable again."""
        while True:
            try:
                return self._journal.finish(run, settled=settled)
            except JournalError:
                if self._stopping.wait(_JOURNAL_WAIT):
                    return None  # unrecorded, it counts as interrupted at the next start, and is done again

    def _restarts_us(self, repository: str) -> bool:
        """Whether the last runs of `repository` were all ended by the daemon's shutdown; what they owe is given up.

        A push that came since is another matter, and perhaps the remedy: while one is owed, it has its run.
        """
        try:
            last = self._journal.runs(repository, _RESTART_LOOP)
            if len(last) < _RESTART_LOOP or not all(run.cause == "shutdown" for run in last):
                return False
            if self._journal.settle_claimed(repository):
                return False
        except JournalError:
            return False  # then nothing can be run either; whoever tries comes back to it
        if self._loops.get(repository.lower()) != last[0].id:  # said once, however often it is asked
            self._loops[repository.lower()] = last[0].id
            log.error(
                "its runs end only by the daemon's shutdown, so it waits for a push; a deploy that restarts the daemon"
                " must not wait for it: systemctl --no-block restart gitops-hook",
                repository=repository,
            )
        return True

    def _feed(self, repositories: Iterable[str], trigger: str, lanes: int) -> None:
        """WakeUp `repositories` one after another, never more than `lanes` of them unfinished.

        A lane ends where no worker is to be had: `reconcile` comes back to what is owed, the next sweep to the rest.
        """
        rest = iter(repositories)
        lock = (
            threading.Lock()
        )  # guards `rest`, which several workers come to, and which may have to ask git for a name

        def next_one() -> None:
            while True:
                with lock:
                    repository = next(rest, None)
                if not repository:
                    return
                if not self._restarts_us(repository):
                    self.notify(repository, trigger, next_one)
                    return

        for _ in range(lanes):
            next_one()

    def _retire(self, worker: Worker) -> bool:
        """Let an idle worker go, unless it was woken in this moment."""
        with self._lock:
            if worker.queue.empty():
                del self._workers[worker.repository.lower()]
                return True
            return False


def _tell_beginning(claim: Claim) -> None:
    run, newest = claim.run, claim.newest
    log.info(
        "run started",
        repository=run.repository,
        run=run.id,
        trigger=run.trigger,
        delivery=newest.guid if newest else None,
        deliveries=claim.deliveries or None,
    )
    _tell_sharers(claim)


def _tell_end(run: Run, claim: Claim, output: str = "") -> None:
    """Tell how a run ended: what is done again by itself needs an eye, any other failure a person."""
    tell = log.info if severity_of(run.outcome) in (GOOD, REST) else log.error if settles(run.outcome) else log.warning
    newest = claim.newest
    assert run.ended
    tell(
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


def _tell_sharers(claim: Claim, ended: Run | None = None) -> None:
    """Name the deliveries that share a run with the newest, whose lines are the run's own: as it starts, as it settles.

    A line each, so that whoever looks for a GUID finds its story; and only by the first run that serves it and by the
    one that settles it, so that a thousand which wait for a remote are not told again at every try.
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
            log.info("delivery taken up", repository=claim.run.repository, run=claim.run.id, delivery=delivery.guid)
