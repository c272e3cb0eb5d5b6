"""Notifier: a command of the operator's is run when a repository starts to fail, and when it is well again.

Rules:

1. The journal is the truth here too. What its runs say of a repository is compared with what was last told; where the
   two differ, it is told. So nothing is queued that a restart could lose or repeat, a failure that is over before it
   could be told needs no word, and a sync from the command line counts like the daemon's own.
2. NoticeState is what the command ended well for. If it fails, all notices wait a while: it is tried again, not hammered.
3. What heals by itself is no failure yet: a remote out of reach is one after `PATIENCE`. Neither is a run that ended
   with the process that did it, the daemon or a command; a pause says nothing, and nothing is said while it lasts.
4. One thread tells, one notice after the other, each bounded in time. No run waits for it.
"""

from __future__ import annotations

import json
import os
import queue
import socket
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from itertools import takewhile
from typing import NamedTuple

from gitops_hook.errors import JournalError
from gitops_hook.journal.writer import Journal
from gitops_hook.log import log
from gitops_hook.model import Claim, NoticeState, Run
from gitops_hook.outcomes import outcome_of, settles
from gitops_hook.sync.checkouts import Checkouts
from gitops_hook.sync.run_log import last_lines
from gitops_hook.sync.runner import Task, run_limited
from gitops_hook.text import rfc3339

#: Seconds for which a remote may be out of reach before somebody is told: some eight tries, and longer than most
#: forges need to come back.
PATIENCE = 900.0
#: Seconds after which a failure that goes on is told again.
AGAIN = 86400.0
#: Seconds that the command may take, and that all notices wait after it has failed.
LIMIT = 30
_AFTER_FAILURE = 900.0
#: How many runs back a failure's beginning is looked for: at four tries an hour, two days.
_LOOK_BACK = 200
#: What a notice says in a few words.
_SAID = {
    "failing": "fails: {}",
    "changed": "fails for another reason: {}, no more {}",
    "still": "still fails: {}",
    "well": "is well again: {}, no more {}",
}
#: What is said of runs that tell nothing of their repository: they ended with their process.
_ENDED_WITH_PROCESS = ("shutdown", "killed")


class Notice(NamedTuple):
    """What is told of a repository: `kind` is failing, changed, still or well."""

    kind: str
    repository: str
    #: How it stands now, and what was told before.
    outcome: str
    previous: str | None
    #: Since when it fails or, once it is well, since when it had; in seconds since the epoch.
    since: float
    run: Run


class Verdict(NamedTuple):
    """The run that says how a repository stands, and since when it stands so (seconds since the epoch)."""

    run: Run
    since: float


def verdict(runs: Iterable[Run]) -> Verdict | None:
    """What a repository's `runs`, newest first, say of it; None if they say nothing yet."""
    telling = [run for run in runs if run.ended and run.outcome != "paused" and run.cause not in _ENDED_WITH_PROCESS]
    retried = list(takewhile(lambda run: not settles(run.outcome), telling))
    if retried and _ended(retried[0]) - _ended(retried[-1]) < PATIENCE:
        telling = telling[len(retried) :]
    if not telling:
        return None
    failures = list(takewhile(lambda run: not outcome_of(run.outcome).confirms, telling))
    return Verdict(telling[0], _ended(failures[-1] if failures else telling[0]))


def _ended(run: Run) -> float:
    return run.ended or 0.0


def notice(runs: Sequence[Run], told: NoticeState | None, now: float) -> Notice | None:
    """What there is to tell of a repository with these `runs`, newest first, after what was `told`; None if nothing."""
    found = verdict(runs)
    if not found or runs[0].outcome == "paused":
        return None
    run, since = found
    assert run.outcome
    previous = told.outcome if told else None
    if outcome_of(run.outcome).confirms:
        return Notice("well", run.repository, run.outcome, previous, told.since, run) if told else None
    if not told or told.outcome != run.outcome:
        kind = "changed" if told else "failing"
    elif now - told.at >= AGAIN:
        kind = "still"
    else:
        return None
    return Notice(kind, run.repository, run.outcome, previous, told.since if told else since, run)


class Notifier:
    """Tells. It is a observer of runs, and has a thread between `start` and `stop`; any thread may call any method."""

    def __init__(
        self,
        journal: Journal,
        checkouts: Checkouts,
        command: Sequence[str],
        environment: Mapping[str, str],
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`environment` is what the command sees besides the facts."""
        self._journal = journal
        self._checkouts = checkouts
        self._command = command
        self._environment = environment
        self._clock = clock
        #: What to look at: a repository, or all of them ("").
        self._news: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._work, name="notices", daemon=True)
        # The thread's own from here on. Repositories that something was told of, by their names in lower case; it is
        # replaced whole, so observers may look into it.
        self._failing: frozenset[str] = frozenset()
        self._not_before = 0.0
        self._last_failure: dict[str, float] = {}

    def began(self, claim: Claim, task: Task) -> None:
        """A run has begun: that says nothing."""

    def ended(self, run: Run, claim: Claim, task: Task) -> None:
        """A run has ended: look at its repository, unless all was and is well."""
        if not outcome_of(run.outcome).confirms or run.repository.lower() in self._failing:
            self._news.put(run.repository)

    def look(self) -> None:
        """Look at every repository: for what others have run, for what was not told, for what goes on for a day."""
        self._news.put("")

    def start(self) -> None:
        """Begin to tell."""
        self._thread.start()

    def stop(self, timeout: float) -> None:
        """Tell no more; wait `timeout` seconds at most for a notice in hand. What was not told is told next time."""
        self._stopping.set()
        self._news.put("")
        self._thread.join(timeout)

    def _work(self) -> None:
        while True:
            news = [self._news.get()]
            with suppress(queue.Empty):
                while True:
                    news.append(self._news.get_nowait())
            if self._stopping.is_set():
                return
            try:
                self.run_once([] if "" in news else news)
            except JournalError as error:
                log.error("what there is to tell cannot be looked up", reason=error)
            except Exception:
                log.exception("notices met a fault of our own")

    def run_once(self, repositories: Sequence[str]) -> None:
        """Tell what there is to tell of `repositories`, or of all if there are none given."""
        told = self._journal.notices()
        self._failing = frozenset(told)
        if self._clock() < self._not_before:
            return
        # Whoever's notice failed comes last, so that it holds up nobody else's.
        names = dict.fromkeys(repositories) or self._all(told)
        for name in sorted(names, key=lambda name: self._last_failure.get(name.lower(), 0.0)):
            due = notice(self._journal.runs(name, _LOOK_BACK), told.get(name.lower()), self._clock())
            if self._stopping.is_set():
                return
            if not due or (due.kind == "still" and not self._checkouts.find(name)):
                continue
            if not self._tell(due):
                self._last_failure[name.lower()] = self._clock()
                self._not_before = self._clock() + _AFTER_FAILURE
                return
            self._last_failure.pop(name.lower(), None)
            self._failing = frozenset(self._journal.notices())

    def _all(self, told: Mapping[str, NoticeState]) -> list[str]:
        """The repositories that there may be something to tell of; whose runs are all forgotten, is forgotten too."""
        newest = {past.newest.repository.lower(): past.newest for past in self._journal.histories(length=1)}
        for key in told.keys() - newest.keys():
            self._journal.forget_notice(key)
        return [run.repository for key, run in newest.items() if not outcome_of(run.outcome).confirms or key in told]

    def _tell(self, due: Notice) -> bool:
        """Run the command, and note what was told; returns whether it ended well."""
        began = time.monotonic()
        log_path = self._journal.log_path("notice")
        facts = self._facts(due)
        variables = {f"GITOPS_{name.upper()}": str(value) for name, value in facts.items() if value is not None}
        words = os.memfd_create("notice")
        try:
            os.write(words, json.dumps(facts).encode() + b"\n")
            os.lseek(words, 0, os.SEEK_SET)
            status = run_limited(self._command, {**self._environment, **variables}, log_path, LIMIT, stdin=words)
            reason = f"exit {status}" if status != 124 else f"no end within {LIMIT} s"  # timeout(1)
        except OSError as error:
            status, reason = -1, str(error)
        finally:
            os.close(words)
        tell = log.error if status else log.info
        tell(
            "a notice could not be told" if status else "notice told",
            repository=due.repository,
            run=due.run.id,
            outcome=due.outcome,
            notice=due.kind,
            ms=round((time.monotonic() - began) * 1000),
            reason=reason if status else None,
            output=(last_lines(log_path) or None) if status else None,
        )
        if status:
            return False
        if due.kind == "well":
            self._journal.forget_notice(due.repository)
        else:
            self._journal.record_notice(NoticeState(due.repository, due.outcome, due.since, self._clock()))
        return True

    def _facts(self, due: Notice) -> dict[str, object]:
        """What the command is told, as variables and as JSON."""
        well = due.kind == "well"
        host = socket.gethostname()
        return {
            "notice": due.kind,
            "summary": f"{due.repository} on {host} {_SAID[due.kind].format(due.outcome, due.previous)}",
            "host": host,
            "repository": due.repository,
            "outcome": due.outcome,
            "previous": due.previous,
            "since": rfc3339(due.since, "seconds"),
            "run": due.run.id,
            "commit": due.run.after or None,
            "message": due.run.message or None,
            "output": (None if well else last_lines(self._journal.log_path(due.run.id))) or None,
        }
