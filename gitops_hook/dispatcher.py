"""From what is owed to runs: a queue and a worker thread per repository, and a cap over all of them.

Rules:

1. A worker alone runs its repository, so two runs of one repository never overlap. It starts when it is first needed
   and goes when nothing has been asked of it for a while.
2. A queue only wakes; the journal says what is owed. A wake-up that is lost, doubled or late changes nothing.
3. A run starts after it has its place under the cap, and claims what is owed as it starts: the pushes that came while
   it waited collapse into one run.
4. Places go to whoever has waited longest, so that no busy repository keeps the others out.
5. A run that settled nothing (the remote out of reach, the script killed, no process to be had) is tried again, later
   each time; a push cuts that wait short.
6. A worker never dies of an exception: its repository would be dead until the next start.
"""

from __future__ import annotations

import queue
import random
import re
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import NamedTuple, Protocol

from gitops_hook.config import Settings
from gitops_hook.journal import Journal, JournalError
from gitops_hook.logs import log
from gitops_hook.records import Claim, Run
from gitops_hook.repository import Checkouts, may_clone
from gitops_hook.runner import GRACE, Result, Runner, Task, last_lines

#: Seconds that a worker waits for more work before it goes: a thread is cheap to start, and a sweep needs many.
_IDLE = 1.0
#: The first and the longest wait before another try, in seconds. The longest is what a polling timer would take.
_FIRST_WAIT = 5.0
_LONGEST_WAIT = 900.0
#: Seconds between tries to write down that a run begins or how it ended, while the journal cannot be written.
_JOURNAL_WAIT = 1.0
#: So many runs in a row that the daemon's own shutdown had to end are no accident: the deploy restarts the daemon and
#: waits for it. Going on would restart it for ever.
_RESTART_LOOP = 3
#: Seconds over its limit, and over the grace after that, by which a run is surely recorded: it has only to be judged.
_OVERDUE = 30.0
#: What is said of a run that our shutdown ended.
ENDED_BY_US = "The daemon's shutdown ended this run; it is done again at the next start."

#: What `gitops.timeout` may be, in seconds; anything else is as if it were not set.
_TIMEOUT = re.compile("[1-9][0-9]{0,6}")

#: Outcomes that leave the checkout where upstream is, or where the operator wants it.
_GOOD = {"updated", "unchanged", "cloned", "paused"}
#: Outcomes of accidents, which say nothing of what was pushed: the remote was out of reach, or the script was killed,
#: by whomever, or could not be started.
_UNSETTLED = {"unreachable", "interrupted"}


def is_settled(run: Run) -> bool:
    """Whether a run has settled its matter, well or not; if not, it is done again, soon or at the next start."""
    return run.outcome not in _UNSETTLED


class Wake(NamedTuple):
    """What a queue carries: why to look, and whom to tell when that has been done."""

    trigger: str
    done: Callable[[], None] | None = None


class Witness(Protocol):
    """Somebody who is told of each run. It is called by the thread that does the run, so it must not wait for long."""

    def began(self, claim: Claim, task: Task) -> None:
        """A run has begun, and the script is about to start."""

    def ended(self, run: Run, claim: Claim, task: Task) -> None:
        """A run has ended, and stands in the journal."""


class Places:
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
        witnesses: Sequence[Witness] = (),
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
        self._witnesses = witnesses
        self._clock = clock
        self._jitter = jitter
        self._places = Places(max_syncs)
        self._stopping = threading.Event()
        self._terminated = False
        self._renewals = journal.renewals
        # The workers by their repository's name in lower case, for forges take names so. Guarded by _lock, and so is
        # putting into their queues: a worker that goes must see under the lock that nothing was put.
        self._workers: dict[str, _Worker] = {}
        self._lock = threading.Lock()
        #: The last run that did not go well, since the start.
        self.failure: Run | None = None
        # The runs of the script in hand, and the time on the clock when each must be over. Written by their
        # workers, looked at by anyone; each step is whole, so no lock is needed.
        self._due: dict[int, float] = {}
        # The newest run of each repository that was given up, when that was said. By anyone, each step whole.
        self._loops: dict[str, int] = {}

    @classmethod
    def by(
        cls,
        settings: Settings,
        environ: Mapping[str, str],
        journal: Journal,
        checkouts: Checkouts,
        witnesses: Sequence[Witness] = (),
    ) -> Dispatcher:
        """One that runs what `settings` say, with what scripts may see of `environ`, and tells `witnesses`."""
        return cls(
            journal,
            checkouts,
            Runner(settings.sync_script, settings.root, environ),
            max_syncs=settings.max_syncs,
            sync_timeout=settings.sync_timeout,
            clone=settings.clone,
            clone_url=settings.clone_url,
            witnesses=witnesses,
        )

    def start(self) -> None:
        """Take up what an earlier daemon left: say which runs it interrupted, run what is owed, look at every checkout.

        What is owed goes first and may take every place; the look at all checkouts keeps to half of them, so that a
        push on a host with many never waits behind it.
        """
        for died in self._journal.interrupt():
            _tell_end(died.run, died)
        owed = [repository for repository in self._journal.owed() if not self._restarts_us(repository)]
        if owed:
            log.info("deliveries are owed from before", repositories=len(owed))
        self._feed(owed, "recovery", self._max_syncs)
        self.sweep()

    def sweep(self) -> None:
        """Sync every managed checkout once."""
        self._renewals = self._journal.renewals
        self._feed(self._checkouts, "sweep", max(1, self._max_syncs // 2))

    def wake(self, repository: str, trigger: str = "push", done: Callable[[], None] | None = None) -> None:
        """See to `repository` soon. A push runs what is owed, if anything still is; any other trigger runs anyway."""
        key = repository.lower()
        with self._lock:
            if self._stopping.is_set():
                return
            worker = self._workers.get(key)
            if not worker:
                worker = _Worker(self, repository)
                try:
                    worker.thread.start()
                except RuntimeError as error:  # no thread to be had; `remind` comes back to it
                    log.error("no worker could be started", repository=repository, reason=error)
                    return
                self._workers[key] = worker
            # A wake-up that nobody has taken yet serves this push too.
            if trigger != "push" or worker.queue.empty():
                worker.queue.put(Wake(trigger, done))

    def remind(self) -> None:
        """Called now and then, this repairs what was lost: a wake-up, or all that a damaged journal owed."""
        if self._renewals != self._journal.renewals:
            self.sweep()
        for repository in self._journal.owed():
            if repository.lower() not in self._workers:
                self.wake(repository)

    def stop(self) -> None:
        """Start no more runs. Those in hand go on; `join` waits for them."""
        with self._lock:
            self._stopping.set()
            for worker in self._workers.values():
                worker.queue.put(Wake("stop"))
        self._places.close()

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
    def in_hand(self) -> int:
        """How many runs of the script are in hand now."""
        return len(self._due)

    def overdue(self) -> list[int]:
        """The runs that go on though nothing lets a script live so long: their workers hang, in code of ours."""
        now = self._clock()
        return [run for run, due in self._due.copy().items() if due < now]

    # -- what workers do --------------------------------------------------------------------------------------------

    def step(self, repository: str, trigger: str) -> bool:
        """Do one run of `repository` if one is due; returns whether the matter is settled."""
        with self._places.one() as granted:
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
                return self._journal.start(repository, trigger, if_owed=trigger == "push")
            except JournalError:
                if self._stopping.wait(_JOURNAL_WAIT):
                    return None

    def run_now(self, repository: str, trigger: str) -> Run:
        """Run `repository` in the caller's thread, as soon as there is a place; returns how it ended.

        For a process that has no workers; between processes the script's lock keeps runs apart.
        Raises `JournalError` where the run cannot be begun.
        """
        with self._places.one():
            claim = self._journal.start(repository, trigger)
            assert claim
            return self._run(claim)[0]

    def _run(self, claim: Claim) -> tuple[Run, bool]:
        """Do a run that has begun; returns how it ended, and whether that settles the matter."""
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
        self._tell_witnesses(lambda witness: witness.began(claim, task))
        try:
            result = self._execute(task, run)
        except OSError as error:
            result = Result("interrupted", None, message=f"The script could not be started: {error}")
        except Exception:
            log.exception("a run met a fault of our own", repository=run.repository, run=run.id)
            result = Result("interrupted", None, message="A fault of the daemon's own; its log has the traceback.")
        # A script may answer TERM with a status of its own. That is not how it would have ended.
        if self._stopping.is_set() and (result.outcome == "interrupted" or (self._terminated and result.exit)):
            result = result._replace(outcome="interrupted", message=ENDED_BY_US)
        ended = run._replace(ended=self._journal.now(), **result._asdict())
        settled = is_settled(ended)
        if ended.outcome not in _GOOD:
            self.failure = ended
        self._record(ended, settled=settled)
        _tell_end(ended, claim, "" if ended.outcome in _GOOD else last_lines(self._journal.log_path(run.id)))
        if settled:
            _tell_sharers(claim, ended)
        self._tell_witnesses(lambda witness: witness.ended(ended, claim, task))
        return ended, settled

    def _tell_witnesses(self, tell: Callable[[Witness], None]) -> None:
        """A fault of one is logged, and is neither the run's nor the other witnesses'."""
        for witness in self._witnesses:
            try:
                tell(witness)
            except Exception:
                log.exception("a witness of runs met a fault", witness=type(witness).__name__)

    def _execute(self, task: Task, run: Run) -> Result:
        """Run the script, under the limit that the checkout sets, or with leave to clone one."""
        checkout = self._checkouts.find(run.repository)
        limit = self._sync_timeout
        if checkout:
            own = checkout.settings.get("timeout", "")
            limit = int(own) if _TIMEOUT.fullmatch(own) else limit
        elif may_clone(run.repository, self._clone):
            task = task._replace(clone_url=self._clone_url.format(repository=task.repository))
        self._due[run.id] = self._clock() + limit + GRACE + _OVERDUE
        try:
            return self._runner.run(task, self._journal.log_path(run.id), limit)
        finally:
            del self._due[run.id]

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
            if len(last) < _RESTART_LOOP or not all(run.message == ENDED_BY_US for run in last):
                return False
            if self._journal.settle(repository):
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
        """Wake `repositories` one after another, never more than `lanes` of them unfinished.

        A lane ends where no worker is to be had: `remind` comes back to what is owed, the next sweep to the rest.
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
                    self.wake(repository, trigger, next_one)
                    return

        for _ in range(lanes):
            next_one()

    def _retire(self, worker: _Worker) -> bool:
        """Let an idle worker go, unless it was woken in this moment."""
        with self._lock:
            if worker.queue.empty():
                del self._workers[worker.repository.lower()]
                return True
            return False


class _Worker:
    """The thread that runs one repository."""

    def __init__(self, dispatcher: Dispatcher, repository: str) -> None:
        self.repository = repository
        self.queue: queue.Queue[Wake] = queue.Queue()
        self.thread = threading.Thread(target=self._work, name=f"worker {repository}", daemon=True)
        self._dispatcher = dispatcher
        #: How many tries in a row have settled nothing.
        self._failures = 0
        #: When the next try is due, or when this worker has been idle for long enough, on the dispatcher's clock.
        self.due = dispatcher._clock() + self._patience()

    def _work(self) -> None:
        while self.turn():
            pass

    def turn(self) -> bool:
        """Wait for a wake-up, or until a try is due, and act on it; returns whether there is to be another turn."""
        wakes = self._wait()
        if any(wake.trigger == "stop" for wake in wakes):
            return False
        if not wakes and not self._failures:
            return not self._dispatcher._retire(self)
        # A push alone runs only what is owed; whatever else was asked for, or a try that is due, runs anyway.
        triggers = [wake.trigger for wake in wakes] or ["retry"]
        trigger = next((trigger for trigger in triggers if trigger != "push"), "push")
        settled = False
        try:
            try:
                settled = self._dispatcher.step(self.repository, trigger)
            finally:
                for wake in wakes:
                    if wake.done:
                        wake.done()
        except Exception:
            log.exception("a worker met a fault of our own", repository=self.repository)
        self._failures = 0 if settled else self._failures + 1
        self.due = self._dispatcher._clock() + self._patience()
        return True

    def _patience(self) -> float:
        """How long to wait for a wake-up: until the next try is due, or until this worker is idle."""
        if not self._failures:
            return _IDLE
        wait = min(_LONGEST_WAIT, _FIRST_WAIT * 2.0 ** min(self._failures - 1, 10))
        return wait * (0.75 + self._dispatcher._jitter() / 2)

    def _wait(self) -> list[Wake]:
        """Every wake-up in the queue once there is one; none if there was none until it is due to look."""
        wakes = []
        with suppress(queue.Empty):
            wakes.append(self.queue.get(timeout=max(0.0, self.due - self._dispatcher._clock())))
            while True:
                wakes.append(self.queue.get_nowait())
        return wakes


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
    tell = log.info if run.outcome in _GOOD else log.error if is_settled(run) else log.warning
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
