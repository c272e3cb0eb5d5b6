"""Read the journal, next to the process that writes it or without one.

Rules:

1. A method opens a read-only connection, makes one query and closes the connection. Any thread may call it.
2. What a method returns is a committed state. `histories` returns several queries of the same state.
3. Every method raises `JournalError` if the file cannot be read, or if its version is not the current one.
4. This package alone knows the layout of the state directory: ``journal.db``, ``runs/<id>.log`` for the output of a
   run, and ``runs/notice.log`` for the output of the last notice.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, cast

from gitops_hook.errors import JournalError, JournalTooNew
from gitops_hook.journal.schema import STEPS
from gitops_hook.model import (
    Commit,
    CommitStatus,
    Delivery,
    History,
    HookPing,
    NoticeState,
    Run,
    RunSpan,
    Served,
    Streak,
    Waited,
)
from gitops_hook.outcomes import CONFIRMING, GOOD, NOTIFIED_CAUSES, OUTCOMES, REST

#: The time to wait, in milliseconds, for another process that has the file locked, such as the sqlite3 shell.
BUSY_MS = 5000
#: The newest rows that a report about the last day reads, and the most that it returns.
_REPORTED_ROWS, _MAX_REPORTED = 10_000, 10
#: The outcomes of a run that leaves a new commit deployed.
_DEPLOYING = ("updated", "cloned")
#: Greater than every id.
_MAX_ID = 2**62


def _columns(table: str, names: Iterable[str]) -> str:
    return ", ".join(f"{table}.{name}" for name in names)


def _quoted(names: Iterable[str]) -> str:
    return ", ".join(f"'{name}'" for name in names)


# A function selects the columns of each tuple in the order of its fields.
RUN_COLUMNS = _columns("runs", Run._fields)
_DELIVERY_COLUMNS = (
    "guid, event, received, repository, ref, before, after, pusher, id, coalesce(run, 0), pending, force"
)
_STATUS_COLUMNS = "repository, commit_id, run, state, description, changed, version, due, tries, deployment"
_PING_COLUMNS = _columns("pings", HookPing._fields)
_NOTICE_COLUMNS = _columns("notices", NoticeState._fields)

#: The names of all repositories with runs. It takes one index step per name; DISTINCT would read the whole index.
_ALL_NAMES = """names (name) AS (
    SELECT min(repository) FROM runs
    UNION ALL SELECT (SELECT min(repository) FROM runs WHERE repository > name) FROM names WHERE name IS NOT NULL
)"""
_OF_NAME = "FROM runs WHERE repository = name AND"
_LAST_COMMIT_ID = f"(SELECT after {_OF_NAME} after > '' ORDER BY id DESC LIMIT 1)"
_LAST_COMMITS = f"""
    SELECT id, author, subject, time FROM commits WHERE id IN (SELECT {_LAST_COMMIT_ID} FROM names) GROUP BY id
"""
_NEWEST_RUNS = "FROM names JOIN runs ON runs.id = (SELECT max(id) FROM runs WHERE repository = name)"
_NEWEST = f"""
    SELECT {RUN_COLUMNS},
        (SELECT max(ended) {_OF_NAME} outcome IN ({_quoted(CONFIRMING)})),
        (SELECT outcome {_OF_NAME} outcome IS NOT NULL ORDER BY id DESC LIMIT 1),
        (SELECT ended {_OF_NAME} outcome IN ({_quoted(_DEPLOYING)}) ORDER BY id DESC LIMIT 1),
        {_LAST_COMMIT_ID}
    {_NEWEST_RUNS}
"""
_RUN_SPANS = "SELECT outcome, started, ended FROM runs WHERE repository = ? ORDER BY id DESC LIMIT ?"
_WAITED = f"""
    SELECT repository, count(*), max(waited), max(received)
    FROM (
        SELECT pushes.repository, received, coalesce(runs.started, ?) - received AS waited
        FROM (SELECT * FROM deliveries ORDER BY id DESC LIMIT {_REPORTED_ROWS}) AS pushes
        LEFT JOIN runs ON runs.id = pushes.run
        WHERE event = 'push' AND received > ?
    )
    WHERE waited >= ? GROUP BY repository ORDER BY max(waited) DESC LIMIT {_MAX_REPORTED}
"""
#: A sweep that moved a checkout although no webhook had arrived. A clone moves it too, but from nowhere.
_FOUND_BY_SWEEP = f"""
    SELECT {RUN_COLUMNS} FROM (SELECT * FROM runs ORDER BY id DESC LIMIT {_REPORTED_ROWS}) AS runs
    WHERE trigger = 'sweep' AND started > ? AND before > '' AND after > '' AND before <> after
        AND NOT EXISTS (SELECT 1 FROM deliveries WHERE run = runs.id AND event = 'push')
    ORDER BY id DESC LIMIT {_MAX_REPORTED}
"""
_COMMIT_TEXT = "coalesce(commits.id || ' ' || author || ' ' || subject, '')"
_SEARCHED = f"repository || ' ' || coalesce(outcome, '') || ' ' || {_COMMIT_TEXT}"
_WENT_WELL = _quoted(outcome.name for outcome in OUTCOMES if outcome.severity in (GOOD, REST))


class JournalReader:
    """Read-only access to the journal in a state directory."""

    def __init__(self, state: Path) -> None:
        self._path = state / "journal.db"
        self._logs = state / "runs"

    # -- deliveries -------------------------------------------------------------------------------------------------

    def deliveries(self, guid: str, limit: int = 1000) -> list[Delivery]:
        """Return the deliveries with a GUID, oldest first. A redelivery has a row of its own."""
        with self._reading() as connection:
            return select_deliveries(connection, "guid = ? ORDER BY id LIMIT ?", guid, limit)

    def served(self, run: int, limit: int = 100) -> Served:
        """Return the deliveries that a run claimed and no later run claimed again, at most `limit` of them as rows."""
        with self._reading() as connection:
            ((count, first),) = connection.execute(
                "SELECT count(*), min(received) FROM deliveries WHERE run = ?", (run,)
            )
            return Served(count, first, select_deliveries(connection, "run = ? ORDER BY id LIMIT ?", run, limit))

    def pending(self) -> list[str]:
        """Return the repositories with pending deliveries."""
        return [name for name, _ in self.pending_counts()]

    def pending_counts(self) -> list[tuple[str, int]]:
        """Return each repository with pending deliveries, and their number."""
        return self._query("SELECT repository, count(*) FROM deliveries WHERE pending GROUP BY repository")

    def waited(self, since: float, now: float, least: float) -> list[Waited]:
        """Return the repositories with pushes since a time that waited `least` seconds for a run, the longest first.

        A push that was retried waited until its newest run. Among the newest 10,000 deliveries, at most 10 rows.
        """
        return [Waited(*row) for row in self._query(_WAITED, now, since, least)]

    # -- runs -------------------------------------------------------------------------------------------------------

    def run(self, run: int) -> Run | None:
        """Return the run with an id, or None."""
        return next(iter(self._runs("id = ?", run)), None)

    def runs(self, repository: str | None = None, limit: int = 100, before: int | None = None) -> list[Run]:
        """Return the newest runs of one repository or of all, newest first, with ids below `before`."""
        bound = _MAX_ID if before is None else before
        if repository is None:
            return self._runs("id < ? ORDER BY id DESC LIMIT ?", bound, limit)
        return self._runs("repository = ? AND id < ? ORDER BY id DESC LIMIT ?", repository, bound, limit)

    def good_commits(self, repository: str, live: str, limit: int = 100) -> list[str]:
        """Return the commits that were deployed with success before `live` first was, newest first.

        If `live` never was, return all of them. A held run counts if it deployed.
        """
        good = f"repository = ? AND (outcome IN ({_quoted(CONFIRMING)}) OR (outcome = 'held' AND deployed IS NOT NULL))"
        first = f"SELECT min(id) FROM runs WHERE {good} AND after = ?"
        sql = (
            f"SELECT after FROM runs WHERE {good} AND after NOT IN ('', ?) AND id < coalesce(({first}), {_MAX_ID})"
            " GROUP BY after ORDER BY max(id) DESC LIMIT ?"
        )
        return [after for (after,) in self._query(sql, repository, live, repository, live, limit)]

    def found_by_sweep(self, since: float) -> list[Run]:
        """Return the newest runs since a time in which a sweep found a push without a webhook, at most 10."""
        return [Run(*row) for row in self._query(_FOUND_BY_SWEEP, since)]

    def search_runs(self, words: Sequence[str], limit: int) -> list[Run]:
        """Return the newest runs whose repository, outcome and one of their commits contain all `words`."""
        contains = " AND ".join(f"instr(lower({_SEARCHED}), ?)" for _ in words)
        found = f"SELECT DISTINCT runs.id FROM runs LEFT JOIN commits ON run = runs.id WHERE {contains}"
        ids = [word.lower() for word in words]
        return self._runs(f"id IN ({found} ORDER BY runs.id DESC LIMIT ?) ORDER BY id DESC", *ids, limit)

    def running(self) -> list[Run]:
        """Return the runs without a recorded end."""
        return self._runs("outcome IS NULL")

    def is_confirmed_since(self, repository: str, moment: float) -> bool:
        """Return True if a run of `repository` started after the time `moment` and went well."""
        sql = f"SELECT 1 FROM runs WHERE repository = ? AND started > ? AND outcome IN ({_WENT_WELL}) LIMIT 1"
        return bool(self._query(sql, repository, moment))

    def histories(self, repository: str | None = None) -> list[History]:
        """Return the history of each repository with runs, or of one, in two queries.

        With 1,000 repositories and 100,000 runs this takes about 0.05 s.
        """
        names, values = (_ALL_NAMES, ()) if repository is None else ("names (name) AS (SELECT ?)", (repository,))
        with self._reading() as connection:
            connection.execute("BEGIN")
            rows = connection.execute(f"WITH RECURSIVE {names} {_LAST_COMMITS}", values)
            known = {commit.id: commit for commit in map(Commit._make, rows)}
            return [
                History(
                    Run._make(run),
                    confirmed,
                    known.get(last) or (Commit(last, "", "", 0.0) if last else None),
                    outcome,
                    deployed,
                )
                for *run, confirmed, outcome, deployed, last in connection.execute(
                    f"WITH RECURSIVE {names} {_NEWEST}", values
                )
            ]

    def run_spans(self, repositories: Iterable[str], length: int = 30) -> list[list[RunSpan]]:
        """Return the newest `length` runs of each of `repositories`, newest first."""
        with self._reading() as connection:
            return [list(map(RunSpan._make, connection.execute(_RUN_SPANS, (name, length)))) for name in repositories]

    def streak(
        self, repository: str, waiting: Sequence[str], resting: Sequence[str], unrelated: Sequence[str]
    ) -> Streak | None:
        """Return the streak of a repository's newest runs, or None if its last run rested or nothing is known.

        `waiting` are the outcomes that are retried without help, `resting` those of runs that did nothing as
        configured, `unrelated` the causes that say nothing about the repository. The number of runs does not matter.
        """
        ended = "repository = ? AND outcome IS NOT NULL"
        is_related = f"(cause IS NULL OR cause NOT IN ({_quoted(unrelated)}))"
        related = f"{ended} AND outcome NOT IN ({_quoted(resting)}) AND {is_related}"
        is_waiting = f"outcome IN ({_quoted(waiting)})"
        is_fine = f"outcome IN ({_quoted(CONFIRMING)}) AND (cause IS NULL OR cause NOT IN ({_quoted(NOTIFIED_CAUSES)}))"
        with self._reading() as connection:
            connection.execute("BEGIN")

            def newest(where: str) -> Run | None:
                sql = f"SELECT {RUN_COLUMNS} FROM runs WHERE {where} ORDER BY id DESC LIMIT 1"
                row = connection.execute(sql, (repository,)).fetchone()
                return Run(*row) if row else None

            def first_end_after(run: Run | None) -> float | None:
                sql = f"SELECT ended FROM runs WHERE {related} AND id > ? ORDER BY id LIMIT 1"
                row = connection.execute(sql, (repository, run.id if run else 0)).fetchone()
                return row[0] if row else None

            last, run = newest(ended), newest(related)
            if not last or last.outcome in resting or not run:
                return None
            settled = newest(f"{related} AND NOT {is_waiting}")
            confirmed = newest(f"{related} AND {is_fine}")
            return Streak(run, first_end_after(settled), settled, first_end_after(confirmed))

    def log_path(self, run: int | str) -> Path:
        """Return the path of the output of a run, or of the other output with that name."""
        return self._logs / f"{run}.log"

    # -- commits, pings, commit statuses, notices -------------------------------------------------------------------

    def commits(self, runs: Sequence[int]) -> dict[int, list[Commit]]:
        """Return the known commits of each run, newest first. The first is the one at which it left the checkout.

        `runs` has at most 999 ids, the limit of values in one statement in old versions of SQLite.
        """
        marks = ", ".join("?" * len(runs))
        sql = f"SELECT run, id, author, subject, time FROM commits WHERE run IN ({marks}) ORDER BY run, position"
        found: dict[int, list[Commit]] = {}
        for run, *commit in self._query(sql, *runs):
            found.setdefault(run, []).append(Commit(*commit))
        return found

    def knows_commit(self, commit: str) -> bool:
        """Return True if the author and the subject of a commit are known."""
        return bool(self._query("SELECT 1 FROM commits WHERE id = ? LIMIT 1", commit))

    def hook_pings(self) -> list[HookPing]:
        """Return the registered webhooks with their newest pings, in the order of their ids."""
        return [HookPing(*row) for row in self._query(f"SELECT {_PING_COLUMNS} FROM pings ORDER BY hook")]

    def statuses_due(self, moment: float, limit: int = 100) -> list[CommitStatus]:
        """Return the commit statuses that are due at the time `moment`, in the order of their due times."""
        return self._statuses("due <= ? ORDER BY due LIMIT ?", moment, limit)

    def pending_statuses(self) -> list[CommitStatus]:
        """Return the commit statuses with the state ``pending``, sent or not."""
        return self._statuses("state = 'pending'")

    def next_status_due(self) -> float | None:
        """Return the earliest time at which a commit status is due, or None."""
        ((due,),) = self._query("SELECT min(due) FROM commit_statuses WHERE due IS NOT NULL")
        return cast("float | None", due)

    def notices(self) -> dict[str, NoticeState]:
        """Return the last notice about each failing repository, by its name in lower case."""
        states = [NoticeState(*row) for row in self._query(f"SELECT {_NOTICE_COLUMNS} FROM notices")]
        return {state.repository.lower(): state for state in states}

    # -- connections ------------------------------------------------------------------------------------------------

    @contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        uri = f"{self._path.absolute().as_uri()}?mode=ro"
        try:
            with closing(sqlite3.connect(uri, timeout=BUSY_MS / 1000, uri=True)) as connection:
                check_version(self._path, connection)
                yield connection
        except sqlite3.Error as error:
            if is_damage(error):
                self._handle_damage(error)
            raise JournalError(f"{self._path}: {error}") from error

    def _runs(self, where: str, *values: object) -> list[Run]:
        return [Run(*row) for row in self._query(f"SELECT {RUN_COLUMNS} FROM runs WHERE {where}", *values)]

    def _statuses(self, where: str, *values: object) -> list[CommitStatus]:
        sql = f"SELECT {_STATUS_COLUMNS} FROM commit_statuses WHERE {where}"
        return [CommitStatus(*row) for row in self._query(sql, *values)]

    def _query(self, sql: str, *values: object) -> list[Any]:
        with self._reading() as connection:
            return connection.execute(sql, values).fetchall()

    def _handle_damage(self, damage: sqlite3.Error) -> None:
        """React to a damaged file. A reader only reports it; the writer replaces the file."""


def select_deliveries(connection: sqlite3.Connection, where: str, *values: object) -> list[Delivery]:
    """Return the deliveries that match a condition in SQL."""
    rows = connection.execute(f"SELECT {_DELIVERY_COLUMNS} FROM deliveries WHERE {where}", values)
    return [Delivery._make((*row[:-2], bool(row[-2]), bool(row[-1]))) for row in rows]


def check_version(path: Path, connection: sqlite3.Connection) -> None:
    """Raise `JournalError` if the journal at `path` does not have the current version. Version 0 is an empty file."""
    ((version,),) = connection.execute("PRAGMA user_version").fetchall()
    if version > len(STEPS):
        raise JournalTooNew(
            f"{path} has version {version}; this gitops-hook supports versions up to {len(STEPS)}. Install a newer one"
        )
    if 0 < version < len(STEPS):
        raise JournalError(f"{path} has version {version} of an earlier gitops-hook. Restart the daemon to migrate it")


def is_damage(error: Exception) -> bool:
    """Return True for SQLITE_CORRUPT and SQLITE_NOTADB. sqlite3 raises exactly this class for them.

    A full disk, a read-only file and a locked file raise the subclass OperationalError. They need no new file.
    """
    return type(error) is sqlite3.DatabaseError
