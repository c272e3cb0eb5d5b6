"""Journals of other versions: an older one is migrated with all its content, a newer one stays untouched."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from gitops_hook.errors import JournalError, JournalTooNew
from gitops_hook.journal import database
from gitops_hook.journal.reader import JournalReader
from gitops_hook.journal.schema import STEPS
from gitops_hook.journal.writer import Journal
from gitops_hook.model import Commit, CommitStatus, NoticeState

VERSION_0_1 = (Path(__file__).parent / "version-0.1.sql").read_text()


def execute(state: Path, script: str) -> None:
    with closing(sqlite3.connect(state / "journal.db")) as connection:
        connection.executescript(script)


def query(state: Path, sql: str) -> list[tuple[object, ...]]:
    with closing(sqlite3.connect(state / "journal.db")) as connection:
        return connection.execute(sql).fetchall()


def schema(state: Path) -> list[tuple[object, ...]]:
    return query(state, "SELECT type, name, tbl_name FROM sqlite_master ORDER BY name")


def test_a_new_journal_is_private_and_has_the_current_version(tmp_path: Path):
    for _ in range(2):
        Journal(tmp_path).close()
        assert query(tmp_path, "PRAGMA journal_mode") == [("wal",)]
        assert query(tmp_path, "PRAGMA user_version") == [(len(STEPS),)]
    assert (tmp_path / "journal.db").stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "runs").stat().st_mode & 0o777 == 0o700


def test_version_0_1_keeps_its_content(tmp_path: Path):
    execute(tmp_path, VERSION_0_1)
    with closing(Journal(tmp_path)) as journal:
        assert journal.pending() == ["acme/blog"]
        assert [journal.deliveries(guid)[0].pending for guid in ("settled", "pending")] == [False, True]
        assert [run.cause for run in journal.runs()] == [None, "killed", "limit", "killed", "shutdown", None]
        assert [run.repository for run in journal.running()] == ["acme/running"]
        assert journal.commits([1]) == {1: [Commit("1" * 40, "Ada", "Say hello", 900.0)]}
        assert journal.hook_pings() == []  # a payload chose their URLs
        assert journal.statuses_due(3) == [
            CommitStatus("acme/site", "1" * 40, 1, "success", "updated in 1.0 s", 2.5, due=2.5)
        ]
        assert journal.notices() == {"acme/slow": NoticeState("acme/slow", "timed-out", 3.5, 4.5)}
        claim = journal.start("acme/blog", "recovery")
        assert claim
        assert claim.run.id == 7


def test_a_migrated_journal_has_the_tables_of_a_new_one(tmp_path: Path):
    (tmp_path / "old").mkdir()
    execute(tmp_path / "old", VERSION_0_1)
    for name in ("old", "new"):
        Journal(tmp_path / name).close()
    assert schema(tmp_path / "old") == schema(tmp_path / "new")


def test_a_reader_asks_for_the_migration_of_an_older_journal(tmp_path: Path):
    execute(tmp_path, VERSION_0_1)
    with pytest.raises(JournalError, match=r"version 4 .*Restart the daemon to migrate it"):
        JournalReader(tmp_path).pending()


def test_a_newer_version_is_rejected_and_stays_unchanged(tmp_path: Path):
    execute(tmp_path, "CREATE TABLE of_the_future (x); PRAGMA user_version = 99")
    before = (tmp_path / "journal.db").read_bytes()
    for access in (Journal, lambda state: JournalReader(state).runs()):
        with pytest.raises(JournalTooNew, match=f"version 99.*up to {len(STEPS)}"):
            access(tmp_path)
    assert (tmp_path / "journal.db").read_bytes() == before
    assert not list(tmp_path.glob("*.damaged-*"))


def test_each_step_is_applied_once_and_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    Journal(tmp_path).close()
    steps = (
        *STEPS,
        "CREATE TABLE notes (text); INSERT INTO notes VALUES ('one; two')",
        "INSERT INTO notes SELECT text || ', three' FROM notes;",
    )
    monkeypatch.setattr(database, "STEPS", steps)
    for _ in range(2):
        Journal(tmp_path).close()
    assert query(tmp_path, "SELECT text FROM notes") == [("one; two",), ("one; two, three",)]
    assert query(tmp_path, "PRAGMA user_version") == [(len(steps),)]


def test_a_failed_migration_keeps_the_old_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    Journal(tmp_path).close()
    with monkeypatch.context() as patch, pytest.raises(JournalError, match="nowhere"):
        patch.setattr(database, "STEPS", (*STEPS, "CREATE TABLE half (x)", "INSERT INTO nowhere VALUES (1)"))
        Journal(tmp_path)
    assert query(tmp_path, "SELECT name FROM sqlite_master WHERE name = 'half'") == []
    assert query(tmp_path, "PRAGMA user_version") == [(len(STEPS),)]
    Journal(tmp_path).close()
