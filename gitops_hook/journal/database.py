"""Open the journal's file for writing: create it, migrate it, and replace it if it is damaged.

Rules:

1. A damaged file is renamed, with everything that belongs to it, and never deleted.
2. A migration is one transaction. A process that dies during a migration leaves the old version.
3. A file with a later version stays untouched.
"""

from __future__ import annotations

import os
import sqlite3
import time
from pathlib import Path

from gitops_hook.errors import JournalError, JournalTooNew
from gitops_hook.journal.reader import BUSY_MS, check_version, is_damage
from gitops_hook.journal.schema import STEPS
from gitops_hook.log import log


class Database:
    """The file of the journal. Only the thread that writes the journal may call a method."""

    def __init__(self, path: Path, logs: Path) -> None:
        self.path = path
        self._logs = logs
        #: The number of times that a damaged file was replaced.
        self.replacements = 0
        #: The id of the newest run that was started in any file.
        self.newest_run = 0

    def open(self) -> sqlite3.Connection:
        """Open the file, or replace it if it is damaged.

        Transactions are explicit (``isolation_level`` None). Raises `JournalError`.
        """
        try:
            self._logs.mkdir(mode=0o700, parents=True, exist_ok=True)
            try:
                return self._connect()
            except sqlite3.DatabaseError as error:
                if not is_damage(error):
                    raise
                self.replacements += 1  # counts even if no new file can be created yet: its content is lost
                self._set_aside(str(error))
            return self._connect()
        except sqlite3.Error as error:
            raise JournalError(f"{self.path}: {error}") from error
        except OSError as error:
            raise JournalError(f"{error.filename}: {error.strerror}") from error

    def _connect(self) -> sqlite3.Connection:
        # SQLite would treat an empty file as a new one and delete the -wal file, which may hold all the content.
        if not _size(self.path) and (_size(Path(f"{self.path}-wal")) or any(self._logs.iterdir())):
            raise sqlite3.DatabaseError("the file is missing or empty, but the files that belong to it exist")
        # The first connection is opened in the thread that constructs the journal, hence check_same_thread.
        connection = sqlite3.connect(self.path, timeout=BUSY_MS / 1000, isolation_level=None, check_same_thread=False)
        try:
            os.chmod(self.path, 0o600)  # noqa: PTH101 - it contains the names of people
            # quick_check reads every page: some milliseconds per megabyte, once per start.
            ((verdict,),) = connection.execute("PRAGMA quick_check(1)").fetchall()
            if verdict != "ok":
                raise sqlite3.DatabaseError(verdict)
            connection.execute("PRAGMA synchronous = FULL")
            migrate(self.path, connection)
            self._continue_run_ids(connection)
            connection.execute("PRAGMA journal_mode = WAL")  # changes the file, so only after the version check
        except BaseException:
            connection.close()
            raise
        return connection

    def _continue_run_ids(self, connection: sqlite3.Connection) -> None:
        """Start the run ids of a new file after those of the replaced one: current runs keep their ids and logs."""
        if self.replacements:
            connection.execute(
                "INSERT INTO sqlite_sequence (name, seq) SELECT 'runs', ?"
                " WHERE NOT EXISTS (SELECT 1 FROM sqlite_sequence WHERE name = 'runs')",
                (self.newest_run,),
            )

    def _set_aside(self, reason: str) -> None:
        """Rename the damaged file, SQLite's files beside it, and the logs of its runs."""
        suffix = time.strftime(".damaged-%Y%m%dT%H%M%SZ", time.gmtime())
        while any(self.path.parent.glob(f"*{suffix}*")):
            suffix += "+"
        aside = self.path.with_name(self.path.name + suffix)
        for path, target in (
            (Path(f"{self.path}-wal"), Path(f"{aside}-wal")),
            (Path(f"{self.path}-shm"), Path(f"{aside}-shm")),
            (self._logs, self._logs.with_name(self._logs.name + suffix)),
            (self.path, aside),
        ):
            if path.exists():
                path.rename(target)
        self._logs.mkdir(mode=0o700)
        log.error(
            "THE JOURNAL IS DAMAGED. It was renamed, a new one was created, and every checkout is synced",
            reason=reason,
            file=aside,
        )


def migrate(path: Path, connection: sqlite3.Connection) -> None:
    """Bring the tables to the current version, in one transaction that also reads the version.

    Raises `JournalTooNew`, or sqlite3.Error; the file then keeps its version.
    """
    connection.execute("BEGIN IMMEDIATE")
    try:
        ((version,),) = connection.execute("PRAGMA user_version").fetchall()
        if version > len(STEPS):
            check_version(path, connection)
        for step in STEPS[version:]:
            for statement in _statements(step):
                connection.execute(statement)
        connection.execute(f"PRAGMA user_version = {len(STEPS)}")
        connection.execute("COMMIT")
    except (sqlite3.Error, JournalTooNew):
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def _statements(script: str) -> list[str]:
    """Split a script into statements. `executescript` is no alternative: it commits an open transaction."""
    statements, current = [], ""
    for part in script.split(";"):
        current += part + ";"
        if sqlite3.complete_statement(current):
            statements.append(current)
            current = ""
    return [statement for statement in statements if statement.strip("; \n")]


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
