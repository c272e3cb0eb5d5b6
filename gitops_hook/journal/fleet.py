"""The fleet's part of the journal: events to forward, the position in the fleet's events, and held checkouts.

Each method is one commit. An event is accepted together with its outbox row, and followed together with the cursor, so
a crash neither loses nor repeats one.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

from gitops_hook.journal.renames import record_rename
from gitops_hook.journal.writer import Journal, insert_deliveries
from gitops_hook.model import Delivery

_KNOWN = "SELECT 1 FROM deliveries WHERE guid = ? AND repository = ?"


class Outgoing(NamedTuple):
    """An event on its way to the fleet: a push, or a new name of the repository (`renamed`).

    `received` is in seconds since the epoch. `path` is the full path of a renamed repository whose owner is a nested
    group, else "".
    """

    guid: str
    received: float
    repository: str
    ref: str
    before: str
    after: str
    pusher: str
    default_branch: str
    renamed: str = ""
    path: str = ""
    id: int = 0


_OUTBOX_COLUMNS = ", ".join(Outgoing._fields[:-1])


class Cursor(NamedTuple):
    """The position in the fleet's pushes: the life of the cluster, and the newest revision that was followed."""

    life: str = ""
    revision: int = 0


class HeldCheckout(NamedTuple):
    """A checkout that a roll-out holds. `commit` and `guid` are those of a deploy that has begun, else empty."""

    checkout: str
    plan: bytes
    commit: str = ""
    guid: str = ""


class FleetJournal:
    """The fleet's tables. Any thread may call any method; each may raise JournalError."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal

    def accept(self, deliveries: Sequence[Delivery], outgoing: Outgoing) -> int:
        """Commit an event: the deliveries on this host, and the row that forwards it. Return the id of that row."""

        def work(connection: sqlite3.Connection) -> int:
            insert_deliveries(connection, deliveries)
            if outgoing.renamed:
                record_rename(connection, [delivery.repository for delivery in deliveries], outgoing.renamed)
            values = outgoing[:-1]
            row = connection.execute(
                f"INSERT INTO fleet_outbox ({_OUTBOX_COLUMNS}) VALUES ({', '.join('?' * len(values))})", values
            ).lastrowid
            assert row is not None
            return row

        return self._journal.write(work)

    def outgoing(self, limit: int) -> list[Outgoing]:
        """Return the oldest events to forward."""
        sql = f"SELECT {_OUTBOX_COLUMNS}, id FROM fleet_outbox ORDER BY id LIMIT ?"
        return self._journal.write(lambda connection: [Outgoing(*row) for row in connection.execute(sql, (limit,))])

    def outbox_size(self) -> int:
        """Return the number of events to forward."""
        sql = "SELECT count(*) FROM fleet_outbox"
        return int(self._journal.write(lambda connection: connection.execute(sql).fetchone()[0]))

    def forwarded(self, rows: Collection[int]) -> None:
        """Remove rows that the fleet has."""

        def work(connection: sqlite3.Connection) -> None:
            connection.executemany("DELETE FROM fleet_outbox WHERE id = ?", [(row,) for row in rows])

        self._journal.write(work)

    def cursor(self) -> Cursor:
        """Return the position in the fleet's pushes."""
        sql = "SELECT life, revision FROM fleet_cursor"
        rows = self._journal.write(lambda connection: connection.execute(sql).fetchall())
        return Cursor(*rows[0]) if rows else Cursor()

    def follow(
        self, cursor: Cursor, deliveries: Sequence[Delivery], renamed: Mapping[str, str], *, keeps_known: bool
    ) -> list[Delivery]:
        """Commit deliveries and the new position; return the deliveries that were committed.

        A delivery is known if a row of the same repository has its GUID: this host received the event itself. It is
        left out unless `keeps_known`. `renamed` has the new name of a repository by the GUID of the event that
        announced it.
        """

        def work(connection: sqlite3.Connection) -> list[Delivery]:
            known = [
                delivery
                for delivery in deliveries
                if not keeps_known and connection.execute(_KNOWN, (delivery.guid, delivery.repository)).fetchone()
            ]
            new = [delivery for delivery in deliveries if delivery not in known]
            insert_deliveries(connection, new)
            for delivery in new:
                if delivery.guid in renamed:
                    record_rename(connection, [delivery.repository], renamed[delivery.guid])
            connection.execute("DELETE FROM fleet_cursor")
            connection.execute("INSERT INTO fleet_cursor VALUES (?, ?)", cursor)
            return new

        return self._journal.write(work)

    def held(self) -> dict[str, HeldCheckout]:
        """Return the checkouts that roll-outs hold, by their names in lower case."""
        sql = "SELECT checkout, plan, commit_id, guid FROM fleet_rollouts"
        rows = self._journal.write(lambda connection: connection.execute(sql).fetchall())
        return {row[0].lower(): HeldCheckout(*row) for row in rows}

    def hold(self, held: HeldCheckout, deliveries: Sequence[Delivery] = ()) -> None:
        """Commit the state of a held checkout, and deliveries that act on it."""

        def work(connection: sqlite3.Connection) -> None:
            insert_deliveries(connection, deliveries)
            connection.execute("INSERT OR REPLACE INTO fleet_rollouts VALUES (?, ?, ?, ?)", held)

        self._journal.write(work)

    def release(self, checkout: str, deliveries: Sequence[Delivery] = ()) -> None:
        """Forget a checkout that no roll-out holds any more, and commit deliveries that act on it."""

        def work(connection: sqlite3.Connection) -> None:
            insert_deliveries(connection, deliveries)
            connection.execute("DELETE FROM fleet_rollouts WHERE checkout = ?", (checkout,))

        self._journal.write(work)
