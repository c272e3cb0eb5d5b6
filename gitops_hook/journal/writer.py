"""Write the journal.

Rules:

1. When a method returns, its change is on the disk: SQLite in WAL mode with ``synchronous=FULL``.
2. A delivery is pending until a run that claimed it ends with an outcome that settles it. The table alone decides
   that, so a process that dies at any time loses nothing.
3. One thread has the writing connection. A caller hands it a function and waits. The functions that arrive during a
   commit share the next commit, so a burst costs few disk syncs. A probe passes everything that waits.
4. A disk error fails the current functions with `JournalError`. The next function tries again. If the file is damaged,
   the next function gets a new file (`database`).
"""

from __future__ import annotations

import sqlite3
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar, Union, cast

from gitops_hook.errors import JournalError
from gitops_hook.journal.database import Database
from gitops_hook.journal.reader import RUN_COLUMNS, JournalReader, is_damage, select_deliveries
from gitops_hook.journal.renames import new_name
from gitops_hook.log import log
from gitops_hook.model import Claim, Commit, CommitStatus, Delivery, HookPing, NoticeState, Run
from gitops_hook.outcomes import CAUSES, RETRIED, outcome_of

T = TypeVar("T")
#: How long rows are kept, in seconds, and their maximum number: a quarter of a year, and tens of megabytes.
KEEP_SECONDS = 90 * 86400
KEEP_ROWS = 100_000
#: How long an unsent commit status is kept, in seconds. After that, nobody looks at that commit.
KEEP_STATUSES = 3 * 86400
#: The maximum size of all logs together, in bytes.
KEEP_LOG_BYTES = 1 << 30
#: The maximum number of requests in one commit. SQLite before 3.32 allows 999 values in a statement; a delivery has 9.
_BATCH = 100

#: A change: deliveries to insert, or a function that gets the writing connection within a transaction.
_Change = Union[tuple[Delivery, ...], Callable[[sqlite3.Connection], Any]]


class Journal(JournalReader):
    """The journal in a state directory. Any thread may call any method; each raises `JournalError` on failure."""

    def __init__(self, state: Path, *, now: Callable[[], float] = time.time) -> None:
        """Open the journal, create it, or migrate it. `now` returns the time for new rows.

        Raises `JournalTooNew` for a file of a later version.
        """
        super().__init__(state)
        self.now = now
        #: The error of the last write, or None if it succeeded.
        self.fault: str | None = None
        # Only the writing thread uses the database and the connection from here on. The connection is None while the
        # file cannot be opened.
        self._database = Database(self._path, self._logs)
        self._connection: sqlite3.Connection | None = self._database.open()
        # Guards the two below, and is notified when one changes. Callers of `_submit` and `close` take it, and the
        # writing thread between two commits.
        self._changed = threading.Condition(threading.Lock())
        self._requests: deque[tuple[_Change, Future[Any]]] = deque()
        self._closed = False
        self._writer = threading.Thread(target=self._write, name="journal", daemon=True)
        self._writer.start()

    @property
    def replacements(self) -> int:
        """Return how many times a damaged file was replaced. Its pending deliveries are unknown: sync everything."""
        return self._database.replacements

    # -- deliveries and runs ----------------------------------------------------------------------------------------

    def write(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Run `work` in the next commit, and return its result once that is on the disk."""
        return self._call(work)

    def record(self, *deliveries: Delivery) -> None:
        """Store accepted deliveries as pending, all in one commit."""
        self._submit(deliveries).result()

    def start(self, repository: str, trigger: str, *, if_pending: bool = False) -> Claim | None:
        """Start a run that claims every pending delivery of `repository`.

        A delivery that another running run has claimed stays with that run. Returns None if `if_pending` is True and
        there is nothing to claim.
        """

        def change(connection: sqlite3.Connection) -> Claim | None:
            claimable = (
                "repository = ? AND pending AND NOT EXISTS"
                " (SELECT 1 FROM runs WHERE runs.id = deliveries.run AND runs.outcome IS NULL)"
            )
            served = select_deliveries(connection, f"{claimable} ORDER BY id", repository)
            if if_pending and not served:
                return None
            started = self.now()
            run = connection.execute(
                "INSERT INTO runs (repository, trigger, started) VALUES (?, ?, ?)", (repository, trigger, started)
            ).lastrowid
            assert run is not None
            self._database.newest_run = run
            connection.execute(f"UPDATE deliveries SET run = ? WHERE {claimable}", (run, repository))
            return Claim(Run(run, repository, trigger, started), tuple(served), new_name(connection, repository))

        return self._call(change)

    def finish(self, run: Run, *, settled: bool) -> None:
        """Record the end of a run. If it settles its deliveries, they are no longer pending.

        After an outcome that keeps pushes, only the requests are settled.
        """
        settles_pushes = not outcome_of(run.outcome).keeps_pushes

        def change(connection: sqlite3.Connection) -> None:
            _update(connection, run)
            if settled:
                connection.execute(
                    "UPDATE deliveries SET pending = 0 WHERE run = ? AND (? OR event != 'push')",
                    (run.id, settles_pushes),
                )

        self._call(change)

    def end_unfinished(self) -> list[Claim]:
        """Record ``interrupted`` with the cause ``killed`` for each running run, and return those.

        Only a process that has just taken the lock of the state directory may call it: their process is dead.
        """

        def change(connection: sqlite3.Connection) -> list[Claim]:
            rows = connection.execute(f"SELECT {RUN_COLUMNS} FROM runs WHERE outcome IS NULL")
            running = [Run(*row) for row in rows]
            killed = [
                run._replace(ended=self.now(), outcome="interrupted", message=CAUSES["killed"], cause="killed")
                for run in running
            ]
            for run in killed:
                _update(connection, run)
            return [
                Claim(run, tuple(select_deliveries(connection, "run = ? AND pending ORDER BY id", run.id)))
                for run in killed
            ]

        return self._call(change)

    def settle_claimed(self, repository: str) -> None:
        """Settle the deliveries of `repository` that a run has claimed, because a person cancelled its retries."""
        retried = ", ".join("?" * len(RETRIED))
        newest = f"id = (SELECT max(id) FROM runs WHERE repository = ?) AND outcome IN ({retried})"

        def change(connection: sqlite3.Connection) -> None:
            connection.execute(f"UPDATE runs SET cause = 'cancelled' WHERE {newest}", (repository, *RETRIED))
            claimed = "repository = ? AND pending AND run IS NOT NULL"
            connection.execute(f"UPDATE deliveries SET pending = 0 WHERE {claimed}", (repository,))

        self._call(change)

    def save_commits(self, run: int, commits: Sequence[Commit], brought: int) -> None:
        """Store the commits of a run, newest first, and their total number `brought`."""

        def change(connection: sqlite3.Connection) -> None:
            connection.executemany(
                "INSERT OR REPLACE INTO commits (run, position, id, author, subject, time) VALUES (?, ?, ?, ?, ?, ?)",
                [(run, position, *commit) for position, commit in enumerate(commits)],
            )
            connection.execute("UPDATE runs SET brought = ? WHERE id = ?", (brought, run))

        self._call(change)

    # -- pings, commit statuses, notices ----------------------------------------------------------------------------

    def remember_hook(self, hook: int, target: str, url: str) -> None:
        """Store that an operator registered the webhook `hook` of `target` with `url`. Its last ping is kept."""
        self._execute(
            "INSERT INTO pings (hook, target, url, guid, received, signed) VALUES (?, ?, ?, '', 0, '')"
            " ON CONFLICT (hook) DO UPDATE SET target = excluded.target, url = excluded.url",
            *(hook, target, url),
        )

    def record_ping(self, ping: HookPing) -> None:
        """Store the ping of a registered webhook in place of its previous one. Ignore any other, and what it claims."""
        self._execute(
            "UPDATE pings SET guid = ?, received = ?, signed = ? WHERE hook = ?",
            *(ping.guid, ping.received, ping.signed, ping.hook),
        )

    def forget_pings(self, target: str, url: str) -> None:
        """Forget the webhooks of `target` that were registered with `url`, because they were deleted."""
        self._execute("DELETE FROM pings WHERE target = ? AND url = ?", target, url)

    def save_statuses(self, *statuses: CommitStatus, then: Callable[[], None] | None = None) -> None:
        """Store commit statuses to send. Each replaces the status of the same commit that is not sent yet.

        If `then` is given, do not wait: the writing thread calls it after the commit or the failure.
        """

        def change(connection: sqlite3.Connection) -> None:
            connection.executemany(
                "INSERT INTO commit_statuses (repository, commit_id, run, state, description, changed, due)"
                " VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT (repository, commit_id) DO UPDATE SET run = excluded.run,"
                " state = excluded.state, description = excluded.description, changed = excluded.changed,"
                " due = excluded.due, tries = 0, version = version + 1",
                [(*status[:6], status.changed) for status in statuses],
            )

        if then:
            self._submit(change).add_done_callback(lambda future: then())
        else:
            self._call(change)

    def status_sent(self, status: CommitStatus, *, final: bool) -> None:
        """Record that a commit status was sent, or never will be; `final` if no other status of the commit follows.

        A newer status of the same commit stays unchanged.
        """
        sql = "DELETE FROM commit_statuses" if final else "UPDATE commit_statuses SET due = NULL"
        self._execute(f"{sql} WHERE {_SAME_STATUS}", *_key(status))

    def postpone_status(self, status: CommitStatus, due: float) -> None:
        """Count a failed attempt and send the status again at the time `due`, unless a newer one replaced it."""
        self._execute(f"UPDATE commit_statuses SET due = ?, tries = tries + 1 WHERE {_SAME_STATUS}", due, *_key(status))

    def save_deployment(self, status: CommitStatus, deployment: int) -> None:
        """Store the forge's id of the deployment of a commit, which later statuses of that commit refer to."""
        sql = "UPDATE commit_statuses SET deployment = ? WHERE repository = ? AND commit_id = ?"
        self._execute(sql, deployment, status.repository, status.commit)

    def record_notice(self, notice: NoticeState) -> None:
        """Store the last notice about a repository."""
        self._execute("INSERT OR REPLACE INTO notices (repository, outcome, since, at) VALUES (?, ?, ?, ?)", *notice)

    def forget_notice(self, repository: str) -> None:
        """Delete the notice about a repository, which works again."""
        self._execute("DELETE FROM notices WHERE repository = ?", repository)

    # -- upkeep -----------------------------------------------------------------------------------------------------

    def probe(self) -> None:
        """Try to write a row. `fault` has the result."""
        with suppress(JournalError):
            self.start_probe().result()

    def start_probe(self) -> Future[Any]:
        """Start to write a row, before all requests that wait. Raises `JournalError` if the journal is closed."""
        sql = "INSERT OR REPLACE INTO probe (id, time) VALUES (1, ?)"
        return self._submit(lambda connection: connection.execute(sql, (self.now(),)), first=True)

    def prune(self) -> None:
        """Delete old and surplus rows and logs. A pending delivery and its run stay."""
        horizon = self.now() - KEEP_SECONDS

        def change(connection: sqlite3.Connection) -> None:
            connection.execute(
                "DELETE FROM deliveries WHERE NOT pending"
                " AND (received < ? OR id <= (SELECT max(id) FROM deliveries) - ?)",
                (horizon, KEEP_ROWS),
            )
            connection.execute(
                "DELETE FROM runs WHERE outcome IS NOT NULL AND (ended < ? OR id <= (SELECT max(id) FROM runs) - ?)"
                " AND NOT EXISTS (SELECT 1 FROM deliveries WHERE deliveries.run = runs.id)",
                (horizon, KEEP_ROWS),
            )
            connection.execute("DELETE FROM commit_statuses WHERE changed < ?", (self.now() - KEEP_STATUSES,))
            connection.execute(
                "DELETE FROM pings WHERE hook IN (SELECT hook FROM pings ORDER BY received DESC LIMIT -1 OFFSET ?)",
                (KEEP_ROWS,),
            )

        self._call(change)
        try:
            self._prune_logs(horizon)
        except OSError as error:
            raise JournalError(f"{error.filename}: {error.strerror}") from error

    def _prune_logs(self, horizon: float) -> None:
        total = 0
        for log_file in sorted(self._logs.iterdir(), key=_number, reverse=True):
            with suppress(FileNotFoundError):
                stat = log_file.stat()
                total += stat.st_size
                if total > KEEP_LOG_BYTES or stat.st_mtime < horizon:
                    log_file.unlink()

    def close(self) -> None:
        """Commit what was submitted and close the file. A second call does nothing."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._writer.join()

    # -- the writing thread -----------------------------------------------------------------------------------------

    def _execute(self, sql: str, *values: object) -> None:
        self._call(lambda connection: connection.execute(sql, values))

    def _call(self, change: Callable[[sqlite3.Connection], T]) -> T:
        """Call a function with the writing connection, wait for the commit, and return the result of the function."""
        return cast(T, self._submit(change).result())

    def _submit(self, change: _Change, *, first: bool = False) -> Future[Any]:
        future: Future[Any] = Future()
        with self._changed:
            if self._closed:
                raise JournalError("the journal is closed")
            (self._requests.appendleft if first else self._requests.append)((change, future))
            self._changed.notify()
        return future

    def _write(self) -> None:
        """Commit requests until the journal is closed. This thread must never die: every caller waits for it."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._requests or self._closed)
                batch = [self._requests.popleft() for _ in range(min(len(self._requests), _BATCH))]
            if not batch:
                break
            self._commit(batch)
        if self._connection:
            self._connection.close()

    def _commit(self, requests: list[tuple[_Change, Future[Any]]]) -> None:
        """Make changes in one transaction: either all of them are on the disk, or all fail."""
        results: list[Any] = []
        failure: Exception | None = None
        try:
            connection = self._connection = self._connection or self._database.open()
            connection.execute("BEGIN IMMEDIATE")
            rows = [row for change, _ in requests if isinstance(change, tuple) for row in change]
            insert_deliveries(connection, rows)
            results = [None if isinstance(change, tuple) else change(connection) for change, _ in requests]
            connection.execute("COMMIT")
        except Exception as error:
            failure = error
            self._roll_back(error)
        if failure and not self.fault:
            log.error("the journal cannot be written", file=self._path, reason=failure)
        elif self.fault and not failure:
            log.info("the journal can be written again", file=self._path)
        self.fault = str(failure) if failure else None
        for position, (_, future) in enumerate(requests):
            if failure:
                future.set_exception(JournalError(str(failure)))
            else:
                future.set_result(results[position])

    def _roll_back(self, error: Exception) -> None:
        if self._connection:
            with suppress(sqlite3.Error):
                self._connection.execute("ROLLBACK")
            if is_damage(error):
                self._connection.close()
                self._connection = None  # the next request opens the file again, which replaces it if necessary

    def _handle_damage(self, damage: sqlite3.Error) -> None:
        """Make the writing thread open the file again: its page cache may hide the damage that a reader found."""

        def change(connection: sqlite3.Connection) -> None:
            raise damage

        with suppress(JournalError):
            self._call(change)
        self.probe()


_SAME_STATUS = "repository = ? AND commit_id = ? AND version = ?"


def _key(status: CommitStatus) -> tuple[str, str, int]:
    return status.repository, status.commit, status.version


def _update(connection: sqlite3.Connection, run: Run) -> None:
    """Store every field of a run that its end determines."""
    columns = ", ".join(f"{field} = ?" for field in Run._fields[4:])
    connection.execute(f"UPDATE runs SET {columns} WHERE id = ?", (*run[4:], run.id))


def insert_deliveries(connection: sqlite3.Connection, deliveries: Sequence[Delivery]) -> None:
    """Insert deliveries in few statements: each one releases Python's lock several times, which costs time."""
    for start in range(0, len(deliveries), _BATCH):
        batch = deliveries[start : start + _BATCH]
        connection.execute(
            "INSERT INTO deliveries (guid, event, received, repository, ref, before, after, pusher, force) VALUES "
            + ",".join(["(?,?,?,?,?,?,?,?,?)"] * len(batch)),
            [value for delivery in batch for value in (*delivery[:8], delivery.force)],
        )


def _number(path: Path) -> int:
    return int(path.stem) if path.stem.isdecimal() else 0
