"""The journal and the dispatcher as state machines: their promises hold for all operations in every order.

Each step is a call; time is a number. The journal, the scripts and the crashes are real; the tests take the turns that
the workers' threads would.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from gitops_hook import log as logs
from gitops_hook.journal.writer import KEEP_SECONDS, Journal
from gitops_hook.model import Delivery, Run
from gitops_hook.sync.checkouts import Checkouts
from gitops_hook.sync.dispatcher import Dispatcher
from gitops_hook.sync.executor import Executor
from gitops_hook.sync.runner import Runner
from gitops_hook.sync.worker import Worker

#: Two repositories; forges take names without regard to case.
REPOSITORIES = st.sampled_from(["acme/site", "Acme/Site", "acme/shop"])
DAY = 86400
MEMORY = Path("/dev/shm")


class Clock:
    """A clock that advances at each reading, and on request."""

    def __init__(self) -> None:
        self.seconds = 1_700_000_000.0

    def __call__(self) -> float:
        self.seconds += 0.001
        return self.seconds


class OnDisk(RuleBasedStateMachine):
    """A journal in a folder, which can be left and found again."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="gitops-hook-machine-"))
        # In memory where that can be had: thousands of commits need not wait for the disk here.
        self.states = Path(tempfile.mkdtemp(prefix="gitops-hook-machine-", dir=MEMORY if MEMORY.is_dir() else None))
        self.clock = Clock()
        self.crashes = 0
        self.journal = Journal(self.state(), now=self.clock)

    def reopen(self) -> None:
        self.journal.close()
        self.journal = Journal(self.state(), now=self.clock)

    def lose_power(self) -> None:
        """Go on with what is on the disk at this moment: the file, and the log that SQLite keeps beside it."""
        before = self.state()
        self.crashes += 1
        shutil.copytree(before, self.state(), ignore=shutil.ignore_patterns("*-shm"))
        self.reopen()
        shutil.rmtree(before)

    def state(self) -> Path:
        return self.states / f"state-{self.crashes}"

    def rows(self, sql: str) -> list[tuple]:
        return self.journal._query(sql)

    def teardown(self) -> None:
        self.journal.close()
        shutil.rmtree(self.folder)
        shutil.rmtree(self.states)


class Row(NamedTuple):
    """A delivery as the model has it."""

    guid: str
    repository: str
    received: float
    run: int | None = None
    pending: bool = True


class JournalMachine(OnDisk):
    """Compare the journal with a model: a list of the expected rows."""

    def __init__(self) -> None:
        super().__init__()
        self.deliveries: list[Row] = []
        self.running: dict[int, Run] = {}
        self.newest_run = 0

    def mark(self, is_such, **changes) -> None:
        self.deliveries = [row._replace(**changes) if is_such(row) else row for row in self.deliveries]

    @rule(repository=REPOSITORIES, guid=st.sampled_from("abc"))
    def record(self, repository: str, guid: str) -> None:
        row = Row(guid, repository, self.clock())
        self.journal.record(Delivery(guid, "push", row.received, repository, "refs/heads/main"))
        self.deliveries.append(row)

    @rule(repository=REPOSITORIES, if_pending=st.booleans())
    def start(self, repository: str, if_pending: bool) -> None:
        def is_claimed(row: Row) -> bool:
            return row.pending and row.run not in self.running and row.repository.lower() == repository.lower()

        claimed = [row for row in self.deliveries if is_claimed(row)]
        claim = self.journal.start(repository, "push", if_pending=if_pending)
        assert (claim is None) == (if_pending and not claimed)
        if claim:
            assert claim.run.id > self.newest_run, "an id is used twice"
            assert claim.deliveries == len(claimed)
            assert (claim.newest and claim.newest.guid) == (claimed[-1].guid if claimed else None)
            self.newest_run = claim.run.id
            self.running[claim.run.id] = claim.run
            self.mark(is_claimed, run=claim.run.id)

    @precondition(lambda self: self.running)
    @rule(settled=st.booleans(), data=st.data())
    def finish(self, settled: bool, data: st.DataObject) -> None:
        run = self.running.pop(data.draw(st.sampled_from(sorted(self.running))))
        self.journal.finish(run._replace(ended=self.clock(), outcome="updated", exit=0), settled=settled)
        if settled:
            self.mark(lambda row: row.run == run.id, pending=False)

    @rule(repository=REPOSITORIES)
    def settle(self, repository: str) -> None:
        def was_tried(row: Row) -> bool:
            return row.run is not None and row.repository.lower() == repository.lower()

        self.mark(was_tried, pending=False)
        self.journal.settle_claimed(repository)

    @rule(days=st.sampled_from([1, 50]))
    def prune(self, days: int) -> None:
        self.clock.seconds += days * DAY
        self.journal.prune()
        horizon = self.clock.seconds - KEEP_SECONDS
        self.deliveries = [row for row in self.deliveries if row.pending or row.received >= horizon]

    @rule(how=st.sampled_from(["reopen", "lose_power"]))
    def restart(self, how: str) -> None:
        getattr(self, how)()
        assert len(self.journal.end_unfinished()) == len(self.running)
        self.running.clear()

    @invariant()
    def the_journal_agrees(self) -> None:
        rows = self.rows("SELECT guid, repository, received, run, pending FROM deliveries ORDER BY id")
        assert [Row(*row[:4], pending=bool(row[4])) for row in rows] == self.deliveries
        owed = {row.repository.lower() for row in self.deliveries if row.pending}
        assert {repository.lower() for repository in self.journal.pending()} == owed
        assert {run for (run,) in self.rows("SELECT id FROM runs WHERE outcome IS NULL")} == set(self.running)


#: What a run may come to: the script's exit status, or the signal that ends it, or that it cannot begin.
NO_ROOM = "no room for its log"
ENDS = ["0", "65", "70", "1", "-9", "75", NO_ROOM]
SCRIPT = '#!/bin/bash\nread -r end <"$0.end"\n[[ $end == -* ]] && kill "$end" $$\nexit "$end"\n'


class DispatcherMachine(OnDisk):
    """A dispatcher, and the world around it."""

    @initialize(sites=st.booleans())
    def begin(self, sites: bool) -> None:
        self.patch = pytest.MonkeyPatch()
        # No thread does the runs: the machine does them, one at a time.
        self.patch.setattr(Worker, "start", lambda worker: None)
        logs.mute()
        self.root = self.folder / "root"
        self.root.mkdir()
        for repository in ("acme/site", "acme/shop") if sites else ():
            (self.root / repository / ".git").mkdir(parents=True)
            (self.root / repository / ".git/config").touch()
        self.script = self.folder / "script"
        self.script.write_text(SCRIPT)
        self.script.chmod(0o755)
        self.accepted: dict[str, float] = {}
        self.settled: set[str] = set()
        self.turn_on()

    def turn_on(self) -> None:
        """Start a dispatcher without its scheduler; everything pending is in line or delayed at once."""
        checkouts, runner = Checkouts(self.root), Runner(self.script, self.root, os.environ)
        executor = Executor(self.journal, checkouts, runner, sync_timeout=60, clock=self.clock)
        self.dispatcher = Dispatcher(
            self.journal, checkouts, executor, max_syncs=2, clock=self.clock, jitter=lambda: 0.5
        )
        self.dispatcher.recover()
        self.dispatcher.sweep()
        assert all(self.dispatcher._is_known(name) for name in self.journal.pending())

    @property
    def workers(self) -> list[Worker]:
        return list(self.dispatcher._active.values())

    # -- what may happen --------------------------------------------------------------------------------------------

    @rule(repository=REPOSITORIES, count=st.integers(1, 3), noticed=st.booleans())
    def push(self, repository: str, count: int, noticed: bool) -> None:
        """So many pushes, which are not `noticed` where no thread is to be had."""
        for _ in range(count):
            guid, received = str(len(self.accepted)), self.clock()
            self.journal.record(Delivery(guid, "push", received, repository, "refs/heads/main", "", guid))
            self.accepted[guid] = received
            if noticed:
                self.dispatcher.notify(repository)

    @precondition(lambda self: self.workers)
    @rule(data=st.data(), end=st.sampled_from(sorted(ENDS)))
    def run_once(self, data: st.DataObject, end: str) -> None:
        self.take_turn(data.draw(st.sampled_from(self.workers)), end)

    @rule(trigger=st.sampled_from(["push", "sweep", "resume"]), repository=REPOSITORIES)
    def ask(self, trigger: str, repository: str) -> None:
        self.dispatcher.notify(repository, trigger)

    @rule(chore=st.sampled_from(["sweep", "reconcile", "prune"]))
    def chore(self, chore: str) -> None:
        if chore == "prune":
            self.clock.seconds += 91 * DAY
            self.journal.prune()
        else:
            getattr(self.dispatcher, chore)()

    @rule(repository=REPOSITORIES)
    def request_a_run(self, repository: str) -> None:
        guid, received = str(len(self.accepted)), self.clock()
        self.journal.record(Delivery(guid, "manual", received, repository, ""))
        self.accepted[guid] = received
        self.dispatcher.request([repository], "manual")

    @rule()
    def restart(self) -> None:
        """In order: nothing more starts, and the workers end."""
        self.dispatcher.stop()
        runs = len(self.journal.runs())
        for worker in self.workers:
            worker.run_once()
        assert len(self.journal.runs()) == runs
        assert self.dispatcher.workers == 0
        self.reopen()
        self.turn_on()

    @rule(repository=REPOSITORIES, running=st.booleans())
    def die(self, repository: str, running: bool) -> None:
        """The power fails, possibly during a run."""
        if running:
            self.journal.start(repository, "push")
        self.lose_power()
        self.turn_on()

    # -- how ---------------------------------------------------------------------------------------------------------

    def prepare(self, end: str) -> None:
        """Have the next run come to this."""
        self.script.with_name("script.end").write_text(end + "\n")
        ((newest,),) = self.rows("SELECT coalesce(max(seq), 0) FROM sqlite_sequence WHERE name = 'runs'")
        log = self.journal.log_path(newest + 1)
        if end == NO_ROOM:
            log.mkdir(exist_ok=True)
        elif log.exists():
            log.rmdir()

    @rule()
    def pass_time(self) -> None:
        """Let the next delayed checkout become due."""
        delay = self.dispatcher.run_due()
        if delay is not None:
            assert delay <= 900 * 1.25
            self.clock.seconds += delay
            self.dispatcher.run_due()

    def take_turn(self, worker: Worker, end: str) -> None:
        self.prepare(end)
        worker.run_once()
        assert worker not in self.workers or not worker.queue.empty()

    # -- what must hold ----------------------------------------------------------------------------------------------

    @invariant()
    def what_is_owed_no_more_was_served(self) -> None:
        """By a run that began after it was received, and came to something that settles it."""
        rows = {guid: (owed, run) for guid, owed, run in self.rows("SELECT guid, pending, run FROM deliveries")}
        for guid in self.accepted.keys() - self.settled:
            assert guid in rows, f"{guid} was dropped while it was owed"
            owed, number = rows[guid]
            if not owed:
                run = self.journal.run(number)
                assert run and run.outcome not in (None, "unreachable") and run.exit is not None
                assert run.started >= self.accepted[guid]
                self.settled.add(guid)
        assert not [guid for guid in self.settled & rows.keys() if rows[guid][0]], "it is owed again"

    @invariant()
    def no_two_runs_of_a_repository_overlap(self) -> None:
        ended: dict[str, float] = {}
        for name, start, end in self.rows("SELECT lower(repository), started, ended FROM runs ORDER BY id"):
            assert start >= ended.get(name, 0), "two at a time"
            assert end is not None, "a run is running without a worker"
            ended[name] = end
        assert self.dispatcher.running == 0
        assert len(self.workers) <= 2, "more workers than slots"

    def teardown(self) -> None:
        """In the end, once the world is well, nothing is owed, nobody waits, and everything accepted was served."""
        try:
            for _ in range(10):
                self.dispatcher.reconcile()
                self.pass_time()
                for worker in self.workers:
                    self.take_turn(worker, "0")
            assert (self.journal.pending(), self.dispatcher.workers) == ([], 0)
            self.what_is_owed_no_more_was_served()
            assert self.settled == self.accepted.keys()
        finally:
            self.patch.undo()
            super().teardown()


TestJournal = JournalMachine.TestCase
TestJournal.settings = settings(max_examples=settings.default.max_examples // 6, stateful_step_count=30)
TestDispatcher = DispatcherMachine.TestCase
TestDispatcher.settings = settings(max_examples=settings.default.max_examples // 6, stateful_step_count=30)
