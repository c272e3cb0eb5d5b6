"""The journal: which deliveries were accepted, which runs served them, what is still owed, what a forge is told.

Rules:

1. What `record` returned for is on the disk: SQLite in WAL mode with ``synchronous=FULL``.
2. A delivery is owed until a run that claimed it has ended with an outcome that settles it. So whatever dies, and
   whenever, what is owed is what the table says; nothing has to be put back.
3. One thread holds the writing connection. Callers hand it work and wait; what comes in while a commit is under way
   shares the next one, so a burst pays for few syncs of the disk. Readers have connections of their own.
4. A fault of the disk is an answer (`JournalError`), and the next piece of work simply tries again. A damaged file is
   set aside, never deleted.
5. `schema` has the tables. Beside it this is the only module that knows SQL, and the only one that knows how the
   state folder is laid out: ``journal.db``, ``runs/<id>.log``, and ``runs/notice.log`` of the last notice.
"""

from __future__ import annotations

import os
import queue
import sqlite3
import threading
import time
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Generic, TypeVar, cast

from gitops_hook.errors import JournalError, JournalTooNew
from gitops_hook.journal.reader import BUSY_MS, RUN_COLUMNS, JournalReader, is_damage, select_deliveries
from gitops_hook.journal.schema import STEPS
from gitops_hook.log import log
from gitops_hook.model import DIED, Claim, Commit, CommitStatus, Delivery, HookPing, NoticeState, Run

T = TypeVar("T")
#: How long rows are kept, and how many at most: a quarter of a year for an operator's questions, and a journal
#: that stays in the tens of megabytes.
KEEP_SECONDS = 90 * 86400
KEEP_ROWS = 100_000
#: How long an answer to a commit is worth sending: who pushed has long looked elsewhere. In seconds.
KEEP_REPORTS = 3 * 86400
#: What all logs together may take. Most runs print a few hundred bytes; this bounds those that print a megabyte.
KEEP_LOG_BYTES = 1 << 30
#: The most pieces of work in one commit. SQLite before 3.32 takes 999 values in a statement, and a delivery has 8.
_BATCH = 100


class _Work(Generic[T]):
    """A piece of work on its way through the writing thread: rows to insert, or something else to do."""

    def __init__(
        self,
        do: Callable[[sqlite3.Connection], T] | None = None,
        delivery: Delivery | None = None,
        then: Callable[[], None] | None = None,
    ) -> None:
        self.do = do
        self.delivery = delivery
        self._then = then  # for one who does not wait: called when it is finished
        self.result: T | None = None
        self._error: Exception | None = None
        # A bare lock is the cheapest event there is: taken now, released by `finish`, taken again by `wait`.
        self._done = threading.Lock()
        self._done.acquire()

    def finish(self, error: Exception | None = None) -> None:
        self._error = error
        self._done.release()
        if self._then:
            self._then()

    def wait(self) -> T:
        self._done.acquire()
        if self._error:
            raise JournalError(str(self._error)) from self._error
        return cast(T, self.result)


class Journal(JournalReader):
    """The journal in one state folder. Any thread may call any method; each may raise `JournalError`."""

    def __init__(self, folder: Path, *, mends: bool = True, now: Callable[[], float] = time.time) -> None:
        """Open the journal in `folder`, or begin one. Raises `JournalTooNew` besides.

        `mends` says that a damaged file may be set aside: for the daemon alone, for it knows that no other has it open.
        `now` is the time in seconds since the epoch that rows are written by.
        """
        super().__init__(folder)
        self.now = now
        self._mends = mends
        #: Why the last write failed, or None if it did not.
        self.fault: str | None = None
        #: How many times a damaged file was set aside. What it owed is known to nobody: look at every checkout.
        self.renewals = 0
        # The writing thread's own from here on; the connection is None while the file cannot be opened.
        self._newest_run = 0
        self._connection: sqlite3.Connection | None = self._open()
        self._work: queue.SimpleQueue[_Work[Any] | None] = queue.SimpleQueue()
        # Guards _closed and putting into _work: nothing may come behind the None that ends the writing thread.
        self._lock = threading.Lock()
        self._closed = False
        self._writer = threading.Thread(target=self._write, name="journal", daemon=True)
        self._writer.start()

    # -- writing ----------------------------------------------------------------------------------------------------

    def write(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Run `work` in the next commit, and return its result once that is on the disk."""
        return self._submit(_Work(work))

    def record(self, delivery: Delivery) -> None:
        """Commit an accepted delivery; it is owed from now on."""
        self._submit(_Work(delivery=delivery))

    def record_ping(self, arrival: HookPing) -> None:
        """Commit a webhook's ping, in the place of its last one."""
        sql = "INSERT OR REPLACE INTO pings VALUES (?, ?, ?, ?, ?, ?)"
        self._submit(_Work(lambda connection: connection.execute(sql, arrival)))

    def forget(self, target: str, url: str) -> None:
        """Forget the webhooks of `target` that sent to `url`: they are no more."""
        sql = "DELETE FROM pings WHERE target = ? AND url = ?"
        self._submit(_Work(lambda connection: connection.execute(sql, (target, url))))

    def start(self, repository: str, trigger: str, *, if_pending: bool = False) -> Claim | None:
        """Begin a run: it claims every owed delivery of `repository`. With `if_pending`, None where there is none."""

        def work(connection: sqlite3.Connection) -> Claim | None:
            served = select_deliveries(connection, "repository = ? AND owed ORDER BY id", repository)
            if if_pending and not served:
                return None
            started = self.now()
            run = connection.execute(
                "INSERT INTO runs (repository, trigger, started) VALUES (?, ?, ?)", (repository, trigger, started)
            ).lastrowid
            assert run is not None
            self._newest_run = run
            connection.execute("UPDATE deliveries SET run = ? WHERE repository = ? AND owed", (run, repository))
            return Claim(Run(run, repository, trigger, started), tuple(served))

        return self._submit(_Work(work))

    def finish(self, run: Run, *, settled: bool) -> None:
        """Record how a run ended; if that settles the matter, its deliveries are owed no more."""

        def work(connection: sqlite3.Connection) -> None:
            connection.execute(
                f"UPDATE runs SET {', '.join(f'{field} = ?' for field in Run._fields[4:])} WHERE id = ?",
                (*run[4:], run.id),
            )
            if settled:
                connection.execute("UPDATE deliveries SET owed = 0 WHERE run = ?", (run.id,))

        self._submit(_Work(work))

    def remember(self, run: int, commits: Sequence[Commit], brought: int) -> None:
        """Keep where a run left its checkout, and below that what else it brought: `brought` commits in all."""

        def work(connection: sqlite3.Connection) -> None:
            connection.executemany(
                "INSERT OR REPLACE INTO commits (run, position, id, author, subject, time) VALUES (?, ?, ?, ?, ?, ?)",
                [(run, position, *commit) for position, commit in enumerate(commits)],
            )
            connection.execute("UPDATE runs SET brought = ? WHERE id = ?", (brought, run))

        self._submit(_Work(work))

    def interrupt(self, runs: Collection[int] | None = None) -> list[Claim]:
        """Record that `runs`, or all, have died with their processes, as far as they are in hand; returns those.

        One that lives after all is put right by `finish`.
        """

        def work(connection: sqlite3.Connection) -> list[Claim]:
            rows = connection.execute(f"SELECT {RUN_COLUMNS} FROM runs WHERE outcome IS NULL")
            running = [Run(*row) for row in rows if runs is None or row[0] in runs]
            died = [run._replace(outcome="interrupted", ended=self.now(), message=DIED) for run in running]
            connection.executemany(
                "UPDATE runs SET outcome = ?, ended = ?, message = ? WHERE id = ?",
                [(run.outcome, run.ended, run.message, run.id) for run in died],
            )
            return [
                Claim(run, tuple(select_deliveries(connection, "run = ? AND owed ORDER BY id", run.id))) for run in died
            ]

        return self._submit(_Work(work))

    def settle(self, repository: str) -> bool:
        """Give up what runs have tried for `repository`; returns whether anything that none has tried is owed."""

        def work(connection: sqlite3.Connection) -> bool:
            connection.execute(
                "UPDATE deliveries SET owed = 0 WHERE repository = ? AND owed AND run IS NOT NULL", (repository,)
            )
            return bool(select_deliveries(connection, "repository = ? AND owed LIMIT 1", repository))

        return self._submit(_Work(work))

    def report(self, *reports: CommitStatus, then: Callable[[], None] | None = None) -> None:
        """Write down what the forge is to be told, in the place of what it was not told yet of the same commits.

        With `then` the caller does not wait: that is called, by the writing thread, once it is done or has failed.
        """

        def work(connection: sqlite3.Connection) -> None:
            connection.executemany(
                "INSERT INTO reports (repository, commit_id, run, state, description, changed, due)"
                " VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT (repository, commit_id) DO UPDATE SET run = excluded.run,"
                " state = excluded.state, description = excluded.description, changed = excluded.changed,"
                " due = excluded.due, tries = 0, version = version + 1",
                [(*report[:6], report.changed) for report in reports],
            )

        if then:
            self._hand_in(_Work(work, then=then))
        else:
            self._submit(_Work(work))

    def reported(self, report: CommitStatus, *, over: bool) -> None:
        """The forge was told, or never will be; `over` says that nothing more is to be told of the commit.

        What has come in its place since is left alone.
        """
        sql = "DELETE FROM reports" if over else "UPDATE reports SET due = NULL"
        self._change_report(report, f"{sql} WHERE repository = ? AND commit_id = ? AND version = ?")

    def postpone(self, report: CommitStatus, due: float) -> None:
        """The forge could not be told; try again at `due`, unless something newer has come in its place."""
        where = "WHERE repository = ? AND commit_id = ? AND version = ?"
        self._change_report(report, f"UPDATE reports SET due = ?, tries = tries + 1 {where}", due)

    def deployed(self, report: CommitStatus, deployment: int) -> None:
        """The forge has made this deployment for the commit; whatever is told of it next belongs to that."""
        sql = "UPDATE reports SET deployment = ? WHERE repository = ? AND commit_id = ?"
        key = (deployment, report.repository, report.commit)
        self._submit(_Work(lambda connection: connection.execute(sql, key)))

    def _change_report(self, report: CommitStatus, sql: str, *values: object) -> None:
        key = (*values, report.repository, report.commit, report.version)
        self._submit(_Work(lambda connection: connection.execute(sql, key)))

    def record_notice(self, told: NoticeState) -> None:
        """Record what the operator was told of a repository."""
        self._submit(
            _Work(lambda connection: connection.execute("INSERT OR REPLACE INTO told VALUES (?, ?, ?, ?)", told))
        )

    def forget_notice(self, repository: str) -> None:
        """Forget it: the repository is well, and the operator knows."""
        self._submit(
            _Work(lambda connection: connection.execute("DELETE FROM told WHERE repository = ?", (repository,)))
        )

    def probe(self) -> None:
        """Try a write; `fault` tells afterwards."""
        with suppress(JournalError):
            self._submit(_Work(lambda connection: connection.execute(f"PRAGMA user_version = {len(STEPS)}")))

    def prune(self) -> None:
        """Drop what is too old or too much: rows that nothing owes, and logs."""
        horizon = self.now() - KEEP_SECONDS

        def work(connection: sqlite3.Connection) -> None:
            connection.execute(
                "DELETE FROM deliveries WHERE NOT owed"
                " AND (received < ? OR id <= (SELECT max(id) FROM deliveries) - ?)",
                (horizon, KEEP_ROWS),
            )
            connection.execute(
                "DELETE FROM runs WHERE outcome IS NOT NULL AND (ended < ? OR id <= (SELECT max(id) FROM runs) - ?)"
                " AND NOT EXISTS (SELECT 1 FROM deliveries WHERE deliveries.run = runs.id)",
                (horizon, KEEP_ROWS),
            )
            connection.execute("DELETE FROM reports WHERE changed < ?", (self.now() - KEEP_REPORTS,))
            connection.execute(
                "DELETE FROM pings WHERE hook IN (SELECT hook FROM pings ORDER BY received DESC LIMIT -1 OFFSET ?)",
                (KEEP_ROWS,),
            )

        self._submit(_Work(work))
        try:
            self._prune_logs(horizon)
        except OSError as error:
            raise JournalError(f"{error.filename}: {error.strerror}") from error

    def close(self) -> None:
        """Finish what was handed in and let go of the file. Calling it again does nothing."""
        with self._lock:
            if not self._closed:
                self._closed = True
                self._work.put(None)
        self._writer.join()

    # -- inside -----------------------------------------------------------------------------------------------------

    def _submit(self, work: _Work[T]) -> T:
        self._hand_in(work)
        return work.wait()

    def _hand_in(self, work: _Work[Any]) -> None:
        with self._lock:
            if self._closed:
                raise JournalError("the journal is closed")
            self._work.put(work)

    def _write(self) -> None:
        """The writing thread. It must never die: every caller waits for it."""
        while True:
            batch = [self._work.get()]
            with suppress(queue.Empty):
                while batch[-1] and len(batch) < _BATCH:
                    batch.append(self._work.get_nowait())
            works = [work for work in batch if work]
            if works:
                self._commit(works)
            if not batch[-1]:
                if self._connection:
                    self._connection.close()
                return

    def _commit(self, works: list[_Work[Any]]) -> None:
        """Do `works` in one transaction: all of them are on the disk, or all fail."""
        error: Exception | None = None
        try:
            connection = self._connection = self._connection or self._open()
            connection.execute("BEGIN IMMEDIATE")
            _insert(connection, [work.delivery for work in works if work.delivery])
            for work in works:
                if work.do:
                    work.result = work.do(connection)
            connection.execute("COMMIT")
        except Exception as caught:
            error = caught
            self._recover(caught)
        if error and not self.fault:
            log.error("the journal cannot be written", file=self._path, reason=error)
        elif self.fault and not error:
            log.info("the journal can be written again", file=self._path)
        self.fault = str(error) if error else None
        for work in works:
            work.finish(error)

    def _recover(self, error: Exception) -> None:
        if self._connection:
            with suppress(sqlite3.Error):
                self._connection.execute("ROLLBACK")
            if is_damage(error):
                self._connection.close()
                self._connection = None  # opened anew by the next work, which sets the file aside if it must

    def _open(self) -> sqlite3.Connection:
        """Open the file, or begin a new one where it is damaged."""
        try:
            self._logs.mkdir(mode=0o700, parents=True, exist_ok=True)
            try:
                return self._connect()
            except sqlite3.DatabaseError as error:
                if not (is_damage(error) and self._mends):
                    raise
                self.renewals += 1  # even if no new file can be made now: from here on it is a new one
                self._set_aside(str(error))
            return self._connect()
        except sqlite3.Error as error:
            raise JournalError(f"{self._path}: {error}") from error
        except OSError as error:
            raise JournalError(f"{error.filename}: {error.strerror}") from error

    def _connect(self) -> sqlite3.Connection:
        # SQLite takes an empty file for a new one, and deletes the -wal that may hold all there is.
        if not _size(self._path) and (_size(Path(f"{self._path}-wal")) or any(self._logs.iterdir())):
            raise sqlite3.DatabaseError("it is missing or empty, but what belongs to it is there")
        # The connection is made here and used by the writing thread alone, hence check_same_thread. Transactions are
        # begun and ended by hand (isolation_level None).
        connection = sqlite3.connect(self._path, timeout=BUSY_MS / 1000, isolation_level=None, check_same_thread=False)
        try:
            os.chmod(self._path, 0o600)  # noqa: PTH101 - it tells who pushed what
            # quick_check reads every page: some milliseconds for a megabyte, once a start.
            ((verdict,),) = connection.execute("PRAGMA quick_check(1)").fetchall()
            if verdict != "ok":
                raise sqlite3.DatabaseError(verdict)
            connection.execute("PRAGMA synchronous = FULL")
            self._migrate(connection)
            if self.renewals:
                # Runs in hand end under their old ids and go on with their old logs: no new run may be called so.
                connection.execute(
                    "INSERT INTO sqlite_sequence (name, seq) SELECT 'runs', ?"
                    " WHERE NOT EXISTS (SELECT 1 FROM sqlite_sequence WHERE name = 'runs')",
                    (self._newest_run,),
                )
            connection.execute("PRAGMA journal_mode = WAL")  # this changes the file, so it must be known as ours
        except BaseException:
            connection.close()
            raise
        return connection

    def _migrate(self, connection: sqlite3.Connection) -> None:
        ((version,),) = connection.execute("PRAGMA user_version").fetchall()
        if version > len(STEPS):
            raise JournalTooNew(
                f"{self._path} has version {version}, made by a later gitops-hook; this one knows {len(STEPS)}"
            )
        for number, step in enumerate(STEPS[version:], version + 1):
            connection.executescript(f"BEGIN IMMEDIATE; {step}; PRAGMA user_version = {number}; COMMIT")

    def _set_aside(self, reason: str) -> None:
        """Rename the damaged file, what SQLite keeps beside it, and the logs that its runs are told by."""
        suffix = time.strftime(".damaged-%Y%m%dT%H%M%SZ", time.gmtime())
        while any(self._path.parent.glob(f"*{suffix}*")):  # the file may be gone, and its logs not
            suffix += "+"
        aside = self._path.with_name(self._path.name + suffix)
        for path, target in (
            (Path(f"{self._path}-wal"), Path(f"{aside}-wal")),
            (Path(f"{self._path}-shm"), Path(f"{aside}-shm")),
            (self._logs, self._logs.with_name(self._logs.name + suffix)),
            (self._path, aside),
        ):
            if path.exists():
                path.rename(target)
        self._logs.mkdir(mode=0o700)
        log.error(
            "THE JOURNAL IS DAMAGED and was set aside; a new one is begun, and every checkout is synced",
            reason=reason,
            file=aside,
        )

    def _doubt(self, damage: sqlite3.Error) -> None:
        """Have the writing thread open the file anew: what it holds in memory may hide from it what a reader met."""

        def work(connection: sqlite3.Connection) -> None:
            raise damage

        with suppress(JournalError):
            self._submit(_Work(work))
        self.probe()

    def _prune_logs(self, horizon: float) -> None:
        total = 0
        for log_file in sorted(self._logs.iterdir(), key=_number, reverse=True):
            with suppress(FileNotFoundError):
                stat = log_file.stat()
                total += stat.st_size
                if total > KEEP_LOG_BYTES or stat.st_mtime < horizon:
                    log_file.unlink()


def _insert(connection: sqlite3.Connection, deliveries: list[Delivery]) -> None:
    """Insert in one statement: each gives up Python's lock several times, and gets it back from a busy server."""
    if deliveries:
        connection.execute(
            "INSERT INTO deliveries (guid, event, received, repository, ref, before, after, pusher) VALUES "
            + ",".join(["(?,?,?,?,?,?,?,?)"] * len(deliveries)),
            [value for delivery in deliveries for value in delivery[:8]],
        )


def _number(path: Path) -> int:
    return int(path.stem) if path.stem.isdecimal() else 0


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
