"""Run the operator's command when a repository starts to fail, and when it works again.

Rules:

1. The journal decides. The state of a repository, as its runs show it, is compared with the last notice about it; a
   difference is a notice. So a restart loses and repeats nothing, a failure that ends before its notice causes none,
   and the run of a command counts like any other.
2. A notice counts as sent only if the command exits 0. After a failure, all notices wait (`RETRY`).
3. An outcome that is retried without help, such as an unreachable remote, is a failure after `PATIENCE`. A run that was
   ended together with its process, and a run that a pause prevented, say nothing about the repository.
4. One thread runs the command, for one notice after the other, each with a time limit. No run waits for it.
"""

from __future__ import annotations

import json
import os
import queue
import random
import socket
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple, Protocol

from gitops_hook.errors import JournalError
from gitops_hook.log import log
from gitops_hook.model import Claim, History, NoticeState, Run, Streak
from gitops_hook.outcomes import OUTCOMES, REST, WAIT, reason_to_notify
from gitops_hook.sync.backoff import Backoff
from gitops_hook.sync.checkouts import Checkouts
from gitops_hook.sync.run_log import last_lines
from gitops_hook.sync.runner import Task, run_limited
from gitops_hook.text import rfc3339

#: Seconds before an outcome that is retried without help counts as a failure: longer than most forges are down.
PATIENCE = 900.0
#: Seconds after which a failure that continues is repeated.
REPEAT = 86400.0
#: The time limit of the command in seconds.
LIMIT = 30
#: The delays after a failed command.
RETRY = Backoff(60.0, 900.0)
#: The sentence of each kind of notice, with the outcome and the previous outcome.
_SENTENCES = {
    "failing": "fails: {}",
    "changed": "fails for another reason: {} (before: {})",
    "still": "still fails: {}",
    "well": "works again: {} (before: {})",
}
#: The outcomes that are retried without help, and those of runs that did nothing, as configured.
_WAITING = tuple(outcome.name for outcome in OUTCOMES if outcome.severity == WAIT)
_RESTING = tuple(outcome.name for outcome in OUTCOMES if outcome.severity == REST)
#: The causes (`outcomes.CAUSES`) that say nothing about the repository.
_UNRELATED_CAUSES = ("shutdown", "command", "killed", "cancelled")


class Notice(NamedTuple):
    """A notice to send. `kind` is a key of `_SENTENCES`."""

    kind: str
    repository: str
    #: The outcome of the run, or its cause (`outcomes.NOTIFIED_CAUSES`).
    outcome: str
    #: The outcome of the previous notice, or None.
    previous: str | None
    #: When the failure started, in seconds since the epoch.
    since: float
    run: Run


def find_notice(streak: Streak | None, sent: NoticeState | None, now: float) -> Notice | None:
    """Return the notice to send about a repository with this `streak` after the last notice `sent`, or None."""
    run = _decisive_run(streak)
    if not run or not streak:
        return None
    assert run.outcome and run.ended
    previous = sent.outcome if sent else None
    reason = reason_to_notify(run.outcome, run.cause)
    if not reason:
        return Notice("well", run.repository, run.outcome, previous, sent.since, run) if sent else None
    if not sent:
        return Notice("failing", run.repository, reason, None, streak.failing_since or run.ended, run)
    if sent.outcome != reason:
        return Notice("changed", run.repository, reason, previous, sent.since, run)
    return Notice("still", run.repository, reason, previous, sent.since, run) if now - sent.at >= REPEAT else None


def _decisive_run(streak: Streak | None) -> Run | None:
    """Return the run that shows the state of the repository: the newest, unless it may recover without help."""
    if not streak:
        return None
    newest, since = streak.newest, streak.waiting_since
    if newest.outcome in _WAITING and since is not None and (newest.ended or since) - since < PATIENCE:
        return streak.before_waiting
    return newest


def facts_of(notice: Notice, host: str, output: str) -> dict[str, object]:
    """Return the facts that the command receives, as JSON and as variables. An unknown fact is None."""
    return {
        "notice": notice.kind,
        "summary": f"{notice.repository} on {host} {_SENTENCES[notice.kind].format(notice.outcome, notice.previous)}",
        "host": host,
        "repository": notice.repository,
        "outcome": notice.outcome,
        "previous": notice.previous,
        "since": rfc3339(notice.since, "seconds"),
        "run": notice.run.id or None,
        "commit": notice.run.after or None,
        "message": notice.run.message or None,
        "output": output or None,
    }


class NoticeRecords(Protocol):
    """The records that notices derive from: those of this host's journal, or those of a fleet."""

    def notices(self) -> dict[str, NoticeState]:
        """Return the last notice of each repository with one, by name in lower case."""

    def histories(self, repository: str | None = None) -> list[History]:
        """Return the newest run of each repository."""

    def streak(
        self, repository: str, waiting: Sequence[str], resting: Sequence[str], unrelated: Sequence[str]
    ) -> Streak | None:
        """Return the streak of a repository's newest runs, or None."""

    def record_notice(self, notice: NoticeState) -> None:
        """Record a notice that was sent."""

    def forget_notice(self, repository: str) -> None:
        """Forget the notice of a repository."""

    def log_path(self, run: int | str) -> Path:
        """Return the file with the output of a run, or of the last notice (``notice``)."""


class Notifier:
    """Sends notices. It is a run observer, and runs a thread between `start` and `stop`. Threads may share it."""

    def __init__(
        self,
        journal: NoticeRecords,
        checkouts: Checkouts,
        command: Sequence[str],
        environment: Mapping[str, str],
        *,
        host: str = "",
        clock: Callable[[], float] = time.time,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        """Create a notifier that is not started.

        `environment` has the variables of the command besides the facts. `clock` returns seconds since the epoch.
        `host` is the name in the notices: that of the fleet, or by default this host's.
        """
        self._host = host or socket.gethostname()
        self._journal = journal
        self._checkouts = checkouts
        self._command = command
        self._environment = environment
        self._clock = clock
        self._jitter = jitter
        #: The repositories to examine; "" stands for all.
        self._requests: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._work, name="notices", daemon=True)
        # Only the notifier's thread writes the fields below. It replaces _failing as a whole, so observers may read it:
        # the repositories with a notice, in lower case.
        self._failing: frozenset[str] = frozenset()
        self._failures = 0
        self._not_before = 0.0
        self._last_failure: dict[str, float] = {}

    def began(self, claim: Claim, task: Task) -> None:
        """Do nothing: a run that starts shows nothing yet."""

    def ended(self, run: Run, claim: Claim, task: Task) -> None:
        """Examine the repository of a run, unless it worked before and after."""
        if reason_to_notify(run.outcome, run.cause) or run.repository.lower() in self._failing:
            self._requests.put(run.repository)

    def examine(self, repository: str) -> None:
        """Examine one repository, or all if the name is empty."""
        self._requests.put(repository)

    def look(self) -> None:
        """Examine every repository: for the runs of commands, failed notices, and failures that continue."""
        self._requests.put("")

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self, timeout: float) -> None:
        """Send no further notice, and wait at most `timeout` seconds for the current one. The next start continues."""
        self._stopping.set()
        self._requests.put("")
        self._thread.join(timeout)

    def _work(self) -> None:
        while True:
            requests = [self._requests.get()]
            with suppress(queue.Empty):
                while True:
                    requests.append(self._requests.get_nowait())
            if self._stopping.is_set():
                return
            try:
                self.run_once([] if "" in requests else requests)
            except JournalError as error:
                log.error("notices cannot be looked up", reason=error)
            except Exception:
                log.exception("internal error in the notifier")

    def run_once(self, repositories: Sequence[str] = ()) -> None:
        """Send the notices that are due about `repositories`, or about all if there are none."""
        sent = self._journal.notices()
        self._failing = frozenset(sent)
        if self._clock() < self._not_before:
            return
        # The repository whose notice failed last comes last, so that it does not delay the others.
        names = dict.fromkeys(repositories) or self._candidates(sent)
        for name in sorted(names, key=lambda name: self._last_failure.get(name.lower(), 0.0)):
            streak = self._journal.streak(name, _WAITING, _RESTING, _UNRELATED_CAUSES)
            notice = find_notice(streak, sent.get(name.lower()), self._clock())
            if self._stopping.is_set():
                return
            if not notice or (notice.kind == "still" and notice.run.id and not self._checkouts.find(name)):
                continue
            if not self._send(notice):
                self._last_failure[name.lower()] = self._clock()
                self._failures += 1
                self._not_before = self._clock() + RETRY.delay(self._failures, self._jitter)
                return
            self._failures = 0
            self._last_failure.pop(name.lower(), None)
            self._failing = frozenset(self._journal.notices())

    def _candidates(self, sent: Mapping[str, NoticeState]) -> list[str]:
        """Return the repositories with a failed last run or a notice; delete the notices about unknown ones."""
        newest = {past.newest.repository.lower(): past.newest for past in self._journal.histories()}
        for key in sent.keys() - newest.keys():
            self._journal.forget_notice(key)
        return [
            run.repository for key, run in newest.items() if reason_to_notify(run.outcome, run.cause) or key in sent
        ]

    def _send(self, notice: Notice) -> bool:
        """Run the command and record the notice; return True if the command succeeded."""
        started = time.monotonic()
        log_path = self._journal.log_path("notice")
        reason = self._run_command(notice)
        write = log.error if reason else log.info
        write(
            "notice failed" if reason else "notice sent",
            repository=notice.repository,
            run=notice.run.id,
            outcome=notice.outcome,
            notice=notice.kind,
            ms=round((time.monotonic() - started) * 1000),
            reason=reason or None,
            output=(last_lines(log_path) or None) if reason else None,
        )
        if reason:
            return False
        if notice.kind == "well":
            self._journal.forget_notice(notice.repository)
        else:
            self._journal.record_notice(NoticeState(notice.repository, notice.outcome, notice.since, self._clock()))
        return True

    def _run_command(self, notice: Notice) -> str:
        """Run the command with the facts of a notice; return why it failed, or an empty string."""
        output = "" if notice.kind == "well" else last_lines(self._journal.log_path(notice.run.id))
        facts = facts_of(notice, self._host, output)
        variables = {f"GITOPS_{name.upper()}": str(value) for name, value in facts.items() if value is not None}
        log_path = self._journal.log_path("notice")
        try:
            stdin = os.memfd_create("notice")
            try:
                os.write(stdin, json.dumps(facts).encode() + b"\n")
                os.lseek(stdin, 0, os.SEEK_SET)
                status = run_limited(self._command, {**self._environment, **variables}, log_path, LIMIT, stdin=stdin)
            finally:
                os.close(stdin)
        except OSError as error:
            return str(error)
        if status == 124:  # timeout(1)
            return f"no end within {LIMIT} s"
        return f"exit {status}" if status else ""
