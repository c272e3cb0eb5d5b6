"""Change the rows of a checkout whose name changes, or that is removed. Each function is one commit."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence

from gitops_hook.journal.renames import record_rename
from gitops_hook.journal.writer import Journal, insert_deliveries
from gitops_hook.model import Delivery
from gitops_hook.names import repository_of

#: The tables with a column for the name of a checkout.
_COLUMNS = (
    ("deliveries", "repository"),  # before the runs that they refer to
    ("runs", "repository"),
    ("commit_statuses", "repository"),
    ("notices", "repository"),
    ("renames", "repository"),
    ("fleet_rollouts", "checkout"),
)


def announce_rename(journal: Journal, deliveries: Sequence[Delivery], name: str) -> None:
    """Store deliveries and the new name of the repository of their checkouts. Raises `JournalError`."""

    def work(connection: sqlite3.Connection) -> None:
        record_rename(connection, [delivery.repository for delivery in deliveries], name)
        insert_deliveries(connection, deliveries)

    journal.write(work)


def rename_checkout(journal: Journal, old: str, new: str) -> None:
    """Give every row of the checkout `old` the name `new`, pending deliveries included. Raises `JournalError`."""

    def work(connection: sqlite3.Connection) -> None:
        for table, column in _COLUMNS:
            connection.execute(f"UPDATE OR REPLACE {table} SET {column} = ? WHERE {column} = ?", (new, old))
        connection.execute("DELETE FROM renames WHERE repository = ? AND name = ?", (new, repository_of(new)))
        # The forge's webhook belongs to the repository, which keeps it under its new name.
        connection.execute("UPDATE pings SET target = ? WHERE target = ?", (repository_of(new), old))

    journal.write(work)


def forget_checkout(journal: Journal, name: str) -> None:
    """Delete every row of the checkout `name`, and the output of its runs. Raises `JournalError`."""

    def work(connection: sqlite3.Connection) -> list[int]:
        runs = [run for (run,) in connection.execute("SELECT id FROM runs WHERE repository = ?", (name,))]
        for table, column in _COLUMNS:
            connection.execute(f"DELETE FROM {table} WHERE {column} = ?", (name,))
        return runs

    for run in journal.write(work):
        journal.log_path(run).unlink(missing_ok=True)
