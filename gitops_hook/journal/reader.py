"""TODO."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, cast

from gitops_hook.errors import JournalError
from gitops_hook.journal.schema import STEPS
from gitops_hook.model import Commit, CommitStatus, Delivery, History, HookPing, NoticeState, Run, Served

#: How long to wait, in milliseconds, for another process that holds the file (a person with the sqlite3 shell).
BUSY_MS = 5000
#: Above every id.
_BEYOND = 2**62
#: Every repository that ever ran: one step along the index for each, where DISTINCT would read all of it.
_EVERY_NAME = """names (name) AS (
    SELECT min(repository) FROM runs
    UNION ALL SELECT (SELECT min(repository) FROM runs WHERE repository > name) FROM names WHERE name IS NOT NULL
)"""
_POSITION = "(SELECT after FROM runs WHERE repository = name AND after > '' ORDER BY id DESC LIMIT 1)"
_LAST_COMMITS = f"""
    SELECT id, author, subject, time FROM commits WHERE id IN (SELECT {_POSITION} FROM names) GROUP BY id
"""
RUN_COLUMNS = ", ".join(f"runs.{field}" for field in Run._fields)
_OF_NEWEST = "FROM names JOIN runs ON runs.id = (SELECT max(id) FROM runs WHERE repository = name)"
_NEWEST = f"""
    SELECT {RUN_COLUMNS},
        (SELECT max(ended) FROM runs WHERE repository = name AND outcome IN ('updated', 'unchanged', 'cloned')),
        {_POSITION}
    {_OF_NEWEST}
"""
_HISTORY = "SELECT outcome, started, ended FROM runs WHERE repository = ? ORDER BY id DESC LIMIT ?"


class JournalReader:
    """The journal in one state folder, to look into. It works beside the process that writes it, and without one."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "journal.db"
        self._logs = folder / "runs"

    def pending(self) -> list[str]:
        """The repositories that deliveries are owed to."""
        rows = self._query("SELECT DISTINCT repository FROM deliveries WHERE owed")
        return [repository for (repository,) in rows]

    def run(self, run: int) -> Run | None:
        """The run of that id."""
        return next(iter(self._runs("id = ?", run)), None)

    def runs(self, repository: str | None = None, limit: int = 100, before: int | None = None) -> list[Run]:
        """The newest runs, of one repository or of all, newest first; those below the id `before`, if given."""
        bound = _BEYOND if before is None else before
        if repository is None:
            return self._runs("id < ? ORDER BY id DESC LIMIT ?", bound, limit)
        return self._runs("repository = ? AND id < ? ORDER BY id DESC LIMIT ?", repository, bound, limit)

    def newest(self, outcomes: Sequence[str], before: float) -> list[Run]:
        """The newest run of each repository, where it came to one of `outcomes` and ended before that moment.

        `before` is in seconds since the epoch.
        """
        marks = ", ".join("?" * len(outcomes))
        sql = f"WITH RECURSIVE {_EVERY_NAME} SELECT {RUN_COLUMNS} {_OF_NEWEST} WHERE outcome IN ({marks}) AND ended < ?"
        return [Run(*row) for row in self._query(sql, *outcomes, before)]

    def running(self) -> list[Run]:
        """The runs that have not ended, as far as anybody has said so."""
        return self._runs("outcome IS NULL")

    def commits(self, runs: Sequence[int]) -> dict[int, list[Commit]]:
        """Where each run left its checkout, and below that what else it brought, newest first, as far as it is kept.

        Of 999 runs at the most: so many values older versions of SQLite take.
        """
        marks = ", ".join("?" * len(runs))
        found: dict[int, list[Commit]] = {}
        for run, *commit in self._query(
            f"SELECT run, id, author, subject, time FROM commits WHERE run IN ({marks}) ORDER BY run, position", *runs
        ):
            found.setdefault(run, []).append(Commit(*commit))
        return found

    def knows_commit(self, commit: str) -> bool:
        """Whether the author and the subject of a commit are known."""
        return bool(self._query("SELECT 1 FROM commits WHERE id = ? LIMIT 1", commit))

    def deliveries(self, guid: str, limit: int = 1000) -> list[Delivery]:
        """What came of a delivery, once for each time that it came, oldest first."""
        with self._reading() as connection:
            return select_deliveries(connection, "guid = ? ORDER BY id LIMIT ?", guid, limit)

    def served(self, run: int, limit: int = 100) -> Served:
        """The deliveries that a run has claimed and no later one has claimed again; the oldest `limit` as rows."""
        with self._reading() as connection:
            ((count, first),) = connection.execute(
                "SELECT count(*), min(received) FROM deliveries WHERE run = ?", (run,)
            )
            return Served(count, first, select_deliveries(connection, "run = ? ORDER BY id LIMIT ?", run, limit))

    def log_path(self, run: int | str) -> Path:
        """Where the output of a run is kept, or of what else leaves some, by its name."""
        return self._logs / f"{run}.log"

    def histories(self, repository: str | None = None, length: int = 30) -> list[History]:
        """The past of each repository that ever ran, or of one; `length` is how many runs of it are in its history.

        Its parts are of one moment. With 1,000 repositories and 100,000 runs this takes 0.1 s.
        """
        names, values = (_EVERY_NAME, ()) if repository is None else ("names (name) AS (SELECT ?)", (repository,))
        with self._reading() as connection:
            connection.execute("BEGIN")
            known = {
                commit.id: commit
                for commit in map(Commit._make, connection.execute(f"WITH RECURSIVE {names} {_LAST_COMMITS}", values))
            }
            rows = connection.execute(f"WITH RECURSIVE {names} {_NEWEST}", values).fetchall()
            return [
                History(
                    Run._make(run),
                    confirmed,
                    known.get(position) or (Commit(position, "", "", 0.0) if position else None),
                    connection.execute(_HISTORY, (run[1], length)).fetchall(),
                )
                for *run, confirmed, position in rows
            ]

    def pending_counts(self) -> list[tuple[str, int]]:
        """Each repository that deliveries are owed to, and how many."""
        return self._query("SELECT repository, count(*) FROM deliveries WHERE owed GROUP BY repository")

    def hook_pings(self) -> list[HookPing]:
        """The newest ping of each webhook, by the ids of the hooks."""
        return [HookPing(*row) for row in self._query("SELECT * FROM pings ORDER BY hook")]

    def is_confirmed_since(self, repository: str, moment: float) -> bool:
        """Whether a run that began after `moment` (seconds since the epoch) left `repository` where it should be."""
        good = "('updated', 'unchanged', 'cloned', 'paused')"
        sql = f"SELECT 1 FROM runs WHERE repository = ? AND started > ? AND outcome IN {good} LIMIT 1"
        return bool(self._query(sql, repository, moment))

    def reports_due(self, moment: float, limit: int = 100) -> list[CommitStatus]:
        """What the forge is to be told by `moment` (seconds since the epoch), what is due longest first."""
        sql = "SELECT * FROM reports WHERE due <= ? ORDER BY due LIMIT ?"
        return [CommitStatus(*row) for row in self._query(sql, moment, limit)]

    def reports_begun(self) -> list[CommitStatus]:
        """What was said or is to be said to be pending, of which there may be more to tell by now."""
        return [CommitStatus(*row) for row in self._query("SELECT * FROM reports WHERE state = 'pending'")]

    def next_report(self) -> float | None:
        """When the next report is due, in seconds since the epoch."""
        ((due,),) = self._query("SELECT min(due) FROM reports WHERE due IS NOT NULL")
        return cast("float | None", due)

    def told(self) -> dict[str, NoticeState]:
        """What was told of the repositories that fail, by their names in lower case."""
        rows = [NoticeState(*row) for row in self._query("SELECT repository, outcome, since, at FROM told")]
        return {told.repository.lower(): told for told in rows}

    @contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        """A connection that reads, for one look."""
        uri = f"file:{_uri(self._path)}?mode=ro"
        try:
            with closing(sqlite3.connect(uri, timeout=BUSY_MS / 1000, uri=True)) as connection:
                ((version,),) = connection.execute("PRAGMA user_version").fetchall()
                if 0 < version < len(STEPS):
                    raise JournalError(f"{self._path} is an earlier version's; restart the daemon, which migrates it")
                yield connection
        except sqlite3.Error as error:
            if is_damage(error):
                self._doubt(error)
            raise JournalError(f"{self._path}: {error}") from error

    def _runs(self, where: str, *values: object) -> list[Run]:
        return [Run(*row) for row in self._query(f"SELECT {RUN_COLUMNS} FROM runs WHERE {where}", *values)]

    def _query(self, sql: str, *values: object) -> list[Any]:
        with self._reading() as connection:
            return connection.execute(sql, values).fetchall()

    def _doubt(self, damage: sqlite3.Error) -> None:
        """Called where a look met damage; whoever writes sees to it."""


def select_deliveries(connection: sqlite3.Connection, where: str, *values: object) -> list[Delivery]:
    rows = connection.execute(
        "SELECT guid, event, received, repository, ref, before, after, pusher, id, coalesce(run, 0), owed"
        f" FROM deliveries WHERE {where}",
        values,
    )
    return [Delivery._make((*row[:-1], bool(row[-1]))) for row in rows]


def is_damage(error: Exception) -> bool:
    """Whether this is SQLITE_CORRUPT or SQLITE_NOTADB: sqlite3 raises exactly this class for those.

    A full disk, a read-only or a locked file are its subclass OperationalError, and heal by themselves.
    """
    return type(error) is sqlite3.DatabaseError


def _uri(path: Path) -> str:
    return path.absolute().as_uri()[len("file://") :]
