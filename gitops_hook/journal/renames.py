"""The new names of repositories that were renamed or transferred at the forge, as webhooks announced them."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable


def record_rename(connection: sqlite3.Connection, checkouts: Iterable[str], name: str) -> None:
    """Store that the repository of these checkouts is called `name` now."""
    rows = [(checkout, name) for checkout in checkouts]
    connection.executemany("INSERT OR REPLACE INTO renames (repository, name) VALUES (?, ?)", rows)


def new_name(connection: sqlite3.Connection, checkout: str) -> str:
    """Return the new name of a checkout's repository, or an empty string."""
    row = connection.execute("SELECT name FROM renames WHERE repository = ?", (checkout,)).fetchone()
    return row[0] if row else ""
