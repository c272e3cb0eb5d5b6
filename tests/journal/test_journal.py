"""Test the journal on a real disk: its guarantees, and its reaction to a faulty disk, file or other process."""

from __future__ import annotations

import os
import queue
import random
import sqlite3
import stat
import struct
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from disks import fill, small_disk
from test_app import full_disk

from gitops_hook.errors import JournalError
from gitops_hook.journal import database
from gitops_hook.journal import writer as module
from gitops_hook.journal.reader import JournalReader
from gitops_hook.journal.writer import Journal
from gitops_hook.model import Claim, Commit, CommitStatus, Delivery, HookPing, NoticeState, Run

SOURCE = Path(__file__).resolve().parents[2]


def delivery(guid: str = "g", repository: str = "acme/site", received: float | None = None) -> Delivery:
    return Delivery(guid, "push", time.time() if received is None else received, repository, "refs/heads/main")


def arrival(hook: int = 7, target: str = "acme/site", received: float = 1.5) -> HookPing:
    return HookPing(hook, target, "https://hooks.example.org", "g", received, "0123456789abcdef")


def report(commit: str = "a" * 40, state: str = "pending", changed: float = 1.5) -> CommitStatus:
    return CommitStatus("acme/site", commit, 7, state, "said", changed)


def run_to_the_end(journal: Journal, repository: str = "acme/site", *, settled: bool = True) -> Run:
    claim = journal.start(repository, "push")
    assert claim
    ended = claim.run._replace(ended=time.time(), outcome="updated", exit=0)
    journal.finish(ended, settled=settled)
    return ended


def set_aside(folder: Path) -> list[str]:
    return sorted(path.name.partition(".damaged-")[0] for path in folder.glob("*.damaged-*"))


def query(folder: Path, sql: str) -> list[tuple[object, ...]]:
    with closing(sqlite3.connect(folder / "journal.db")) as connection:
        return connection.execute(sql).fetchall()


def commits(wal: Path) -> int:
    """Count the transactions in the write-ahead log: each ends with a frame that has a database size (SQLite's file format)."""
    data = wal.read_bytes()
    page, salts = struct.unpack(">I", data[8:12])[0], data[16:24]
    frames = [data[start : start + 24] for start in range(32, len(data), 24 + page)]
    return sum(1 for frame in frames if frame[8:16] == salts and frame[4:8] != b"\0\0\0\0")


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    opened = Journal(tmp_path)
    yield opened
    opened.close()


class TestDeliveries:
    def test_records_survive_closing_the_journal(self, journal: Journal, tmp_path: Path):
        sent = Delivery("g1", "push", 1.5, "acme/site", "refs/heads/main", "0" * 40, "1" * 40, "ada")
        journal.record(sent)
        journal.close()
        with closing(Journal(tmp_path)) as again:
            (read,) = again.deliveries("g1")
        assert read == sent._replace(id=1, run=0, pending=True)

    def test_deliveries_keep_the_order_in_which_they_were_recorded(self, journal: Journal):
        for number in range(20):
            journal.record(delivery("same", received=float(-number)))
        assert [read.received for read in journal.deliveries("same")] == [float(-number) for number in range(20)]

    def test_a_redelivery_is_a_row_of_its_own(self, journal: Journal):
        journal.record(delivery("twice"))
        run_to_the_end(journal)
        journal.record(delivery("twice"))
        assert [read.pending for read in journal.deliveries("twice")] == [False, True]

    def test_it_is_in_the_file_when_record_returns(self, journal: Journal, tmp_path: Path):
        journal.record(delivery())
        assert query(tmp_path, "SELECT count(*) FROM deliveries") == [(1,)]

    def test_simultaneous_deliveries_share_transactions(self, journal: Journal, tmp_path: Path):
        threads = [
            threading.Thread(target=lambda name=name: [journal.record(delivery(f"{name}-{n}")) for n in range(5)])
            for name in range(50)
        ]
        journal.record(delivery("first"))
        before = commits(tmp_path / "journal.db-wal")
        with closing(sqlite3.connect(tmp_path / "journal.db", isolation_level=None)) as neighbor:
            neighbor.execute("BEGIN IMMEDIATE")  # the writing thread waits for it, and the others for the thread
            for thread in threads:
                thread.start()
            neighbor.execute("ROLLBACK")
        for thread in threads:
            thread.join()
        assert query(tmp_path, "SELECT count(DISTINCT guid) FROM deliveries") == [(251,)]
        assert commits(tmp_path / "journal.db-wal") - before < 100


class TestClaims:
    def test_a_run_claims_all_pending_deliveries_of_its_repository_in_any_case(self, journal: Journal):
        journal.record(delivery("a", "acme/site"))
        journal.record(delivery("b", "Acme/Site"))
        journal.record(delivery("c", "acme/other"))
        claim = journal.start("ACME/site", "push")
        assert claim
        assert (claim.deliveries, claim.newest and claim.newest.guid) == (2, "b")
        assert [journal.deliveries(guid)[0].run for guid in "abc"] == [claim.run.id, claim.run.id, 0]

    def test_a_claim_marks_deliveries_that_no_run_served_before(self, journal: Journal):
        journal.record(delivery("a"))
        first = run_to_the_end(journal, settled=False)
        journal.record(delivery("b"))
        claim = journal.start("acme/site", "retry")
        assert claim
        assert [(served.guid, served.run) for served in claim.served] == [("a", first.id), ("b", 0)]

    def test_a_delivery_of_a_running_run_is_not_claimed_again(self, journal: Journal):
        journal.record(delivery("first"))
        first = journal.start("acme/site", "push")
        journal.record(delivery("second"))
        second = journal.start("acme/site", "push", if_pending=True)
        assert first and second
        assert journal.start("acme/site", "push", if_pending=True) is None
        journal.finish(second.run._replace(ended=1.0, outcome="updated"), settled=True)
        assert [journal.deliveries(guid)[0].pending for guid in ("first", "second")] == [True, False]
        journal.finish(first.run._replace(ended=1.0, outcome="updated"), settled=True)
        assert journal.pending() == []

    def test_a_run_without_deliveries_claims_none(self, journal: Journal):
        claim = journal.start("acme/site", "sweep")
        assert claim
        assert (claim.deliveries, claim.newest) == (0, None)

    def test_a_notification_without_pending_work_starts_nothing(self, journal: Journal):
        journal.record(delivery(repository="acme/other"))
        assert journal.start("acme/site", "push", if_pending=True) is None
        assert journal.runs() == []

    def test_a_delivery_during_a_run_stays_pending(self, journal: Journal):
        journal.record(delivery("before"))
        claim = journal.start("acme/site", "push", if_pending=True)
        assert claim
        journal.record(delivery("during"))
        journal.finish(claim.run._replace(ended=1.0, outcome="updated", exit=0), settled=True)
        assert [journal.deliveries(guid)[0].pending for guid in ("before", "during")] == [False, True]
        assert journal.pending() == ["acme/site"]

    def test_a_run_that_settled_nothing_leaves_its_deliveries_to_the_next(self, journal: Journal):
        journal.record(delivery("g"))
        first = run_to_the_end(journal, settled=False)
        assert journal.pending() == ["acme/site"]
        second = run_to_the_end(journal)
        assert journal.pending() == []
        assert first.id < journal.deliveries("g")[0].run == second.id

    def test_the_end_of_a_run_is_read_back(self, journal: Journal):
        claim = journal.start("acme/site", "push")
        assert claim
        assert journal.run(claim.run.id) == claim.run
        ended = claim.run._replace(ended=2.5, outcome="rolled-back", exit=71, before="a", after="b", message="c")
        journal.finish(ended, settled=True)
        assert journal.run(claim.run.id) == ended
        assert journal.run(ended.id + 1) is None

    def test_runs_are_listed_newest_first_in_any_case_and_limited(self, journal: Journal):
        ids = [run_to_the_end(journal, name).id for name in ("acme/a", "acme/b", "Acme/A")]
        assert [run.id for run in journal.runs()] == ids[::-1]
        assert [run.id for run in journal.runs("ACME/a")] == [ids[2], ids[0]]
        assert [run.id for run in journal.runs(limit=1)] == [ids[2]]

    def test_runs_that_were_running_at_the_start_are_interrupted_and_their_deliveries_pending(self, journal: Journal):
        journal.record(delivery())
        done = run_to_the_end(journal, "acme/other")
        claim = journal.start("acme/site", "push")
        assert claim
        (died,) = journal.end_unfinished()
        interrupted = journal.run(claim.run.id)
        assert interrupted
        assert (interrupted.outcome, bool(interrupted.ended)) == ("interrupted", True)
        assert interrupted.cause == "killed"
        assert (died.run, died.newest and died.newest.guid) == (interrupted, "g")
        assert journal.run(done.id) == done
        assert journal.pending() == ["acme/site"]
        assert journal.end_unfinished() == []

    def test_giving_up_touches_one_repository(self, journal: Journal):
        for name in ("acme/site", "acme/other"):
            journal.record(delivery(repository=name))
            run_to_the_end(journal, name, settled=False)
        journal.settle_claimed("ACME/SITE")
        assert journal.pending() == ["acme/other"]

    def test_giving_up_spares_what_no_run_has_tried(self, journal: Journal):
        journal.record(delivery("tried"))
        run_to_the_end(journal, settled=False)
        journal.record(delivery("untried"))
        journal.settle_claimed("acme/site")
        assert [journal.deliveries(guid)[0].pending for guid in ("tried", "untried")] == [False, True]


class TestArrivals:
    def test_the_ping_of_an_unknown_hook_is_not_stored(self, journal: Journal):
        for hook in range(500):
            journal.record_ping(arrival(hook))
        assert journal.hook_pings() == []

    def test_a_ping_changes_neither_target_nor_url(self, journal: Journal):
        journal.remember_hook(8, "acme/site", "https://hooks.example.org")
        journal.record_ping(arrival(8)._replace(target="evil/site", url="https://evil.example.org"))
        assert journal.hook_pings() == [arrival(8)]

    def test_the_newest_ping_of_each_hook_is_kept_until_it_is_deleted(self, journal: Journal):
        journal.remember_hook(arrival().hook, "acme/site", "https://hooks.example.org")
        journal.remember_hook(8, "acme", "https://hooks.example.org")
        journal.record_ping(arrival())
        journal.record_ping(arrival(8, "acme"))
        journal.record_ping(arrival(received=2.5))
        assert journal.hook_pings() == [arrival(received=2.5), arrival(8, "acme")]
        journal.forget_pings("ACME/site", "https://elsewhere.example.org")
        journal.forget_pings("ACME/site", "https://hooks.example.org")
        assert journal.hook_pings() == [arrival(8, "acme")]

    def test_the_number_of_rows_is_limited(self, journal: Journal, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setattr(module, "KEEP_ROWS", 2)
        for hook in (1, 2, 3):
            journal.remember_hook(hook, "acme/site", "https://hooks.example.org")
            journal.record_ping(arrival(hook, received=float(hook)))
        journal.prune()
        assert [kept.hook for kept in journal.hook_pings()] == [2, 3]


class TestReports:
    def test_a_newer_state_of_a_commit_replaces_an_unsent_state(self, journal: Journal):
        journal.save_statuses(report(), report("b" * 40))
        journal.postpone_status(journal.statuses_due(2)[0], 5.0)
        journal.save_statuses(report(state="success", changed=3.0)._replace(repository="ACME/site"))
        assert [(due.commit[0], due.state, due.version, due.tries) for due in journal.statuses_due(4)] == [
            ("b", "pending", 1, 0),
            ("a", "success", 2, 0),
        ]

    def test_a_notice_is_deleted_only_if_none_is_newer(self, journal: Journal):
        journal.save_statuses(report())
        (status,) = journal.statuses_due(2)
        journal.save_statuses(report(state="success", changed=2.0))
        journal.status_sent(status, final=True)
        journal.postpone_status(status, 99.0)
        (newer,) = journal.statuses_due(2)
        assert newer.state == "success"
        journal.status_sent(newer, final=True)
        assert journal.next_status_due() is None

    def test_a_deployment_is_remembered_across_other_events(self, journal: Journal):
        journal.save_statuses(report())
        (status,) = journal.statuses_due(2)
        journal.save_statuses(report(state="success", changed=2.0))
        journal.save_deployment(status, 42)
        assert journal.statuses_due(2)[0].deployment == 42

    def test_a_callback_runs_after_the_commit(self, journal: Journal):
        seen: queue.SimpleQueue[float | None] = queue.SimpleQueue()
        journal.save_statuses(report(), then=lambda: seen.put(journal.next_status_due()))
        assert seen.get(timeout=20) == 1.5

    def test_a_callback_runs_after_a_failed_commit(self, journal: Journal):
        done = threading.Event()
        journal.save_statuses(report(state=None), then=done.set)  # type: ignore[arg-type] # which the table refuses
        assert done.wait(20)
        assert journal.next_status_due() is None


class TestRetention:
    def test_old_rows_are_deleted_except_pending_running_or_referenced_rows(self, journal: Journal):
        old = time.time() - module.KEEP_SECONDS - 60
        journal.record(delivery("settled", "acme/a", old))
        settled = journal.start("acme/a", "push")
        journal.record(delivery("owed", "acme/b", old))
        tried = journal.start("acme/b", "push")
        running = journal.start("acme/c", "sweep")
        plain = journal.start("acme/d", "sweep")
        assert settled and tried and running and plain
        for claim, done in ((settled, True), (tried, False), (plain, True)):
            journal.finish(claim.run._replace(started=old, ended=old, outcome="updated"), settled=done)
        journal.prune()
        assert [len(journal.deliveries(guid)) for guid in ("settled", "owed")] == [0, 1]
        assert {run.id for run in journal.runs()} == {tried.run.id, running.run.id}

    def test_the_oldest_rows_are_deleted_beyond_the_limit(self, journal: Journal, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setattr(module, "KEEP_ROWS", 3)
        journal.record(delivery("owed", "acme/owed"))
        for number in range(6):
            journal.record(delivery(str(number)))
            run_to_the_end(journal)
        journal.prune()
        assert [guid for guid in ("owed", *"012345") if journal.deliveries(guid)] == ["owed", "3", "4", "5"]
        assert len(journal.runs()) == 3
        assert journal.pending() == ["acme/owed"]

    def test_a_runs_id_is_never_used_twice(self, journal: Journal, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setattr(module, "KEEP_SECONDS", -60)
        last = run_to_the_end(journal)
        journal.prune()
        assert journal.runs() == []
        assert run_to_the_end(journal).id > last.id

    def test_commits_go_with_their_run(self, journal: Journal, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setattr(module, "KEEP_ROWS", 1)
        old, new = run_to_the_end(journal), run_to_the_end(journal)
        for run in (old, new):
            journal.save_commits(run.id, [Commit("c" * 40, "Ada", f"of run {run.id}", 1.0)], 1)
        journal.prune()
        kept = Commit("c" * 40, "Ada", f"of run {new.id}", 1.0)
        assert journal.commits([old.id, new.id]) == {new.id: [kept]}

    def test_the_oldest_logs_are_deleted_beyond_the_byte_limit(self, journal: Journal, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setattr(module, "KEEP_LOG_BYTES", 250)
        for run in (8, 9, 10, 11):
            journal.log_path(run).write_bytes(b"x" * 100)
        journal.prune()
        assert [run for run in (8, 9, 10, 11) if journal.log_path(run).exists()] == [10, 11]

    def test_old_logs_are_deleted_and_unknown_files_are_ignored(self, journal: Journal):
        for name in ("1.log", "1.result", "notes", "\N{SUPERSCRIPT TWO}.log"):
            path = journal.log_path(1).with_name(name)
            path.write_text("old")
            os.utime(path, (0, 0))
        journal.log_path(2).write_text("new")
        journal.prune()
        assert [path.name for path in journal.log_path(2).parent.iterdir()] == ["2.log"]

    def test_a_missing_directory_of_logs_is_a_journal_error(self, journal: Journal):
        journal.log_path(1).parent.rmdir()
        with pytest.raises(JournalError) as caught:
            journal.prune()
        assert str(caught.value) == f"{journal.log_path(1).parent}: No such file or directory"


class TestTold:
    def test_notices_are_stored_per_repository_in_any_case_until_deleted(self, journal: Journal, tmp_path: Path):
        for notice in (
            NoticeState("acme/site", "dirty", 1.5, 2.5),
            NoticeState("acme/other", "failed", 3, 4),
            NoticeState("Acme/Site", "diverged", 1.5, 5),
        ):
            journal.record_notice(notice)
        journal.close()
        with closing(Journal(tmp_path)) as again:
            assert again.notices() == {
                "acme/site": NoticeState("Acme/Site", "diverged", 1.5, 5),
                "acme/other": NoticeState("acme/other", "failed", 3, 4),
            }
            again.forget_notice("ACME/SITE")
            assert list(again.notices()) == ["acme/other"]


class TestPasts:
    def test_each_repository_has_its_newest_run_its_commit_and_its_last_runs(self, journal: Journal):
        for number in range(40):
            run = run_to_the_end(journal, "acme/site")
            journal.finish(run._replace(after=f"{number:040}"), settled=True)
        journal.save_commits(
            run.id, [Commit(f"{39:040}", "Ada", "Say hello", 7.0), Commit("f" * 40, "Ada", "x", 6.0)], 2
        )
        failed = journal.start("ACME/Site", "push")  # forges take names without regard to case
        assert failed
        journal.finish(failed.run._replace(ended=9.0, outcome="denied", after=""), settled=True)
        running = journal.start("acme/blog", "sweep")
        assert running
        blog, site = journal.histories()
        assert blog == (running.run, None, None, None, None)
        assert (site.newest.id, site.confirmed) == (failed.run.id, run.ended)
        assert site.commit == Commit(f"{39:040}", "Ada", "Say hello", 7.0)
        assert (site.last_outcome, site.deployed) == ("denied", run.ended)
        of_blog, of_site = journal.run_spans(["acme/blog", "acme/SITE"], 5)
        assert of_blog == [(None, running.run.started, None)]
        assert [outcome for outcome, _, _ in of_site] == ["denied", *["updated"] * 4]
        assert journal.histories("acme/SITE") == [site]
        assert journal.histories("acme/none") == []

    def test_runs_are_paged_by_their_ids(self, journal: Journal):
        ids = [run_to_the_end(journal, repository).id for repository in ("acme/a", "acme/b") * 3][::-1]
        assert [run.id for run in journal.runs(limit=4)] == ids[:4]
        assert [run.id for run in journal.runs(limit=4, before=ids[3])] == ids[4:]
        assert [run.id for run in journal.runs("acme/b", 2, before=ids[1])] == [ids[2], ids[4]]

    def test_the_deliveries_and_the_result_of_a_run_are_stored(self, journal: Journal):
        for guid in ("first", "second"):
            journal.record(delivery(guid))
        claim = journal.start("acme/site", "push")
        assert claim
        ended = claim.run._replace(ended=9.0, outcome="updated", fetched=6.0, deployed=7.0, healthy=8.0)
        journal.finish(ended, settled=True)
        assert journal.run(claim.run.id) == ended
        served = journal.served(claim.run.id, limit=1)
        first, second = journal.deliveries("first"), journal.deliveries("second")
        assert served == (2, first[0].received, first)
        assert journal.served(claim.run.id).deliveries == first + second
        assert journal.served(77) == (0, None, [])


class TestBounds:
    """Retention, exact to the row, the byte and about the second."""

    def test_rows_are_kept_for_ninety_days(self, journal: Journal):
        for guid, age in (("older", 30), ("younger", -30)):
            journal.record(delivery(guid, received=time.time() - 90 * 86400 - age))
        run_to_the_end(journal)
        journal.prune()
        assert [guid for guid in ("older", "younger") if journal.deliveries(guid)] == ["younger"]

    def test_a_hundred_thousand_rows_are_kept(self, journal: Journal, tmp_path: Path):
        for guid in ("first", "second", "last"):
            journal.record(delivery(guid))
        with closing(sqlite3.connect(tmp_path / "journal.db")) as connection, connection:
            connection.execute("UPDATE deliveries SET id = 100001 WHERE guid = 'last'")
        run_to_the_end(journal)
        journal.prune()
        assert [guid for guid in ("first", "second", "last") if journal.deliveries(guid)] == ["second", "last"]

    def test_a_gibibyte_of_logs_is_kept(self, journal: Journal):
        for run, size in ((1, 1), (2, (1 << 30) - 1), (3, 1)):
            with journal.log_path(run).open("wb") as file:
                file.truncate(size)  # a hole, which takes no disk
        journal.prune()
        assert [run for run in (1, 2, 3) if journal.log_path(run).exists()] == [2, 3]

    def test_notices_at_once_are_limited(self, journal: Journal, tmp_path: Path):
        last = [journal.start("acme/site", "sweep") for _ in range(126)][-1]
        assert last
        rows = [("g", time.time(), last.run.id)] * 1001
        with closing(sqlite3.connect(tmp_path / "journal.db")) as connection, connection:
            connection.executemany(
                "INSERT INTO deliveries (guid, event, received, repository, ref, before, after, pusher, run)"
                " VALUES (?, 'push', ?, 'acme/site', '', '', '', '', ?)",
                rows,
            )
        assert [len(journal.runs()), len(journal.runs("acme/site")), len(journal.runs(limit=101))] == [100, 100, 101]
        assert journal.runs(limit=1) == [last.run]
        assert [len(journal.deliveries("g")), len(journal.deliveries("g", 1001))] == [1000, 1001]
        served = journal.served(last.run.id)
        assert (served.number, len(served.deliveries)) == (1001, 100)
        assert [len(runs) for runs in journal.run_spans(["acme/site"])] == [30]
        assert journal.pending_counts() == [("acme/site", 1001)]

    def test_a_cached_commit_response_expires_after_three_days(self, journal: Journal):
        for letter, age in (("a", 30), ("b", -30)):
            journal.save_statuses(report(letter * 40, changed=time.time() - 3 * 86400 - age))
        journal.prune()
        assert [left.commit[0] for left in journal.pending_statuses()] == ["b"]

    def test_a_sent_status_is_not_due_and_stays_stored(self, journal: Journal):
        journal.save_statuses(report())
        journal.status_sent(journal.statuses_due(2)[0], final=False)
        assert (journal.statuses_due(9e9), journal.next_status_due()) == ([], None)
        assert [begun.commit for begun in journal.pending_statuses()] == ["a" * 40]

    def test_a_minimal_result_is_accepted(self, journal: Journal):
        little = CommitStatus("acme/site", "a" * 40, 1, "pending", "in a sentence")
        assert little[5:] == (0.0, 1, None, 0, 0)
        assert Claim(run_to_the_end(journal)).served == ()
        journal.save_statuses(*(little._replace(commit=f"{number:040}") for number in range(101)))
        assert [len(journal.statuses_due(1.0)), len(journal.statuses_due(1.0, 101))] == [100, 101]

    @pytest.mark.parametrize("outcome", ["updated", "unchanged", "cloned", "paused", "dirty"])
    def test_in_sync_after_a_run(self, journal: Journal, outcome: str):
        claim = journal.start("acme/site", "push")
        assert claim
        journal.finish(claim.run._replace(ended=time.time(), outcome=outcome), settled=True)
        began = claim.run.started
        answers = [journal.is_confirmed_since("ACME/site", moment) for moment in (began - 1, began)]
        assert answers == [outcome != "dirty", False]

    def test_is_commit_known(self, journal: Journal):
        run = run_to_the_end(journal)
        journal.save_commits(run.id, [Commit("a" * 40, "Ada", "Say hello", 1.0)], 1)
        assert [journal.knows_commit(letter * 40) for letter in "ab"] == [True, False]


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2 + 100)


def empty(path: Path) -> None:
    os.truncate(path, 0)


def noise(path: Path) -> None:
    path.write_bytes(random.Random(1).randbytes(20_000))


def behead(path: Path) -> None:
    with path.open("r+b") as file:
        file.write(b"\0" * 100)


class TestDamage:
    @pytest.mark.parametrize("damage", [noise, truncate, empty, behead, Path.unlink])
    def test_a_damaged_journal_is_moved_aside_with_its_files_and_logged(
        self, damage, tmp_path: Path, capfd: pytest.CaptureFixture[str]
    ):
        with closing(Journal(tmp_path)) as journal:
            for number in range(100):
                journal.record(delivery(f"{number:0100}"))
            journal.log_path(7).write_text("what run 7 printed")
        damage(tmp_path / "journal.db")
        (tmp_path / "journal.db-wal").write_bytes(b"a wal")
        with closing(Journal(tmp_path)) as journal:
            journal.record(delivery("new"))
            assert journal.pending() == ["acme/site"]
            assert not journal.log_path(7).exists()
        kept = [name for name in set_aside(tmp_path) if name != "journal.db"]
        assert kept == ["journal.db-wal", "runs"] or kept == ["runs"]
        assert [path.read_text() for path in tmp_path.glob("runs.damaged-*/7.log")] == ["what run 7 printed"]
        assert " error THE JOURNAL IS DAMAGED. " in capfd.readouterr().err
        assert [stat.S_IMODE(path.stat().st_mode) for path in tmp_path.glob("runs*")] == [0o700] * 2

    def test_repeated_damage_overwrites_no_copy(self, tmp_path: Path):
        for number in range(3):
            Journal(tmp_path).close()
            (tmp_path / "journal.db").write_text(f"noise {number}")
        Journal(tmp_path).close()
        kept = {path.read_text() for path in tmp_path.glob("journal.db.damaged-*")}
        assert kept == {"noise 0", "noise 1", "noise 2"}

    def test_logs_without_a_journal_are_set_aside_however_often_in_a_second(self, tmp_path: Path):
        for number in range(3):
            with closing(Journal(tmp_path)) as journal:
                journal.log_path(7).write_text(f"log {number}")
            (tmp_path / "journal.db").unlink()
        Journal(tmp_path).close()
        assert {path.read_text() for path in tmp_path.glob("runs.damaged-*/7.log")} == {"log 0", "log 1", "log 2"}

    def test_an_empty_database_file_is_not_damage(self, tmp_path: Path):
        (tmp_path / "journal.db").touch()
        Journal(tmp_path).close()
        assert set_aside(tmp_path) == []

    def test_damage_of_an_open_journal_is_repaired_without_a_restart(
        self, journal: Journal, tmp_path: Path, capfd: pytest.CaptureFixture[str]
    ):
        journal.record(delivery("lost"))
        noise(tmp_path / "journal.db")
        empty(tmp_path / "journal.db-wal")
        with pytest.raises(JournalError):
            journal.pending()
        journal.record(delivery("new"))
        assert [len(journal.deliveries(guid)) for guid in ("lost", "new")] == [0, 1]
        assert journal.replacements == 1
        assert journal.fault is None
        assert "journal.db" in set_aside(tmp_path)
        assert " error THE JOURNAL IS DAMAGED. " in capfd.readouterr().err
        assert [stat.S_IMODE(path.stat().st_mode) for path in tmp_path.glob("runs*")] == [0o700] * 2

    def test_damage_on_a_full_disk_is_repaired_when_space_is_available(self, tmp_path: Path):
        with small_disk(tmp_path / "disk", "400k") as folder, closing(Journal(folder)) as journal:
            old = journal.start("acme/old", "push")
            assert old
            noise(folder / "journal.db")
            empty(folder / "journal.db-wal")
            ballast = fill(folder)
            with pytest.raises(JournalError):
                journal.pending()
            assert journal.fault
            ballast.unlink()
            new = journal.start("acme/new", "push")
            assert new
            assert journal.replacements == 1
            assert new.run.id > old.run.id

    def test_a_run_from_before_a_damage_does_not_change_later_runs(self, journal: Journal, tmp_path: Path):
        old = journal.start("acme/old", "push")
        assert old
        noise(tmp_path / "journal.db")
        empty(tmp_path / "journal.db-wal")
        with pytest.raises(JournalError):
            journal.pending()
        journal.record(delivery(repository="acme/new"))
        new = journal.start("acme/new", "push")
        assert new
        journal.finish(old.run._replace(ended=1.0, outcome="updated"), settled=True)
        assert journal.run(new.run.id) == new.run
        assert journal.pending() == ["acme/new"]


class TestFaults:
    def test_a_full_disk_is_503_and_recovers_without_a_restart(self, tmp_path: Path, capfd):
        with small_disk(tmp_path / "disk", "400k") as folder, closing(Journal(folder)) as journal:
            journal.record(delivery("before"))
            ballast = fill(folder)
            with pytest.raises(JournalError, match=r"full|disk I/O"):
                for number in range(1000):
                    journal.record(delivery(f"{number:0500}"))
            assert journal.fault
            assert journal.pending() == ["acme/site"]
            ballast.unlink()
            journal.record(delivery("after"))
            assert journal.fault is None
            assert [len(journal.deliveries(guid)) for guid in ("before", "after")] == [1, 1]
        err = capfd.readouterr().err
        assert err.count("the journal cannot be written") == err.count("the journal can be written again") == 1

    def test_a_full_disk_at_the_start_is_a_journal_error(self, tmp_path: Path):
        with small_disk(tmp_path / "disk", "256k") as folder:
            (folder / "runs").mkdir()
            ballast = fill(folder)
            for _ in range(2):
                with pytest.raises(JournalError):
                    Journal(folder)
            ballast.unlink()
            Journal(folder).close()
            assert set_aside(folder) == []

    def test_a_read_only_disk_is_a_journal_error(self, tmp_path: Path):
        with small_disk(tmp_path / "disk", "1m") as folder:
            Journal(folder).close()
            subprocess.run(["mount", "-o", "remount,ro", folder], check=True)
            with pytest.raises(JournalError, match="Read-only"):
                Journal(folder)

    def test_a_state_directory_that_is_a_file_is_a_journal_error(self, tmp_path: Path):
        (tmp_path / "state").touch()
        with pytest.raises(JournalError, match="state"):
            Journal(tmp_path / "state")

    def test_a_locked_journal_is_503_after_the_wait_and_recovers(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setattr(database, "BUSY_MS", 50)
        with closing(Journal(tmp_path)) as journal:
            with closing(sqlite3.connect(tmp_path / "journal.db", isolation_level=None)) as neighbor:
                neighbor.execute("BEGIN IMMEDIATE")
                with pytest.raises(JournalError, match="locked"):
                    journal.record(delivery())
                assert journal.fault
            journal.record(delivery())
            assert journal.fault is None

    def test_an_exception_in_a_task_does_not_end_the_thread(self, journal: Journal):
        with pytest.raises(JournalError):
            journal.record(delivery(received=None)._replace(guid=object()))  # type: ignore[arg-type]
        with pytest.raises(JournalError):
            journal.record(delivery("lone surrogate \ud800"))
        journal.record(delivery("after"))
        assert len(journal.deliveries("after")) == 1

    def test_a_reader_that_cannot_open_the_file_raises_a_journal_error(self, journal: Journal, tmp_path: Path):
        (tmp_path / "journal.db").rename(tmp_path / "elsewhere")
        for read in (journal.pending, journal.runs, lambda: journal.run(1), lambda: journal.deliveries("g")):
            with pytest.raises(JournalError):
                read()

    def test_probe_notices_a_fault_and_its_end(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setattr(database, "BUSY_MS", 20)
        with closing(Journal(tmp_path)) as journal:
            with closing(sqlite3.connect(tmp_path / "journal.db", isolation_level=None)) as neighbor:
                neighbor.execute("BEGIN IMMEDIATE")
                journal.probe()
                assert journal.fault
            journal.probe()
            assert journal.fault is None

    def test_a_probe_passes_all_requests_that_wait(self, journal: Journal):
        started, gate, order = threading.Event(), threading.Event(), queue.SimpleQueue()
        holder = threading.Thread(target=journal.write, args=(lambda connection: started.set() or gate.wait(),))
        holder.start()
        started.wait()
        for _ in range(250):
            journal.save_statuses(then=lambda: order.put("waited"))
        journal.start_probe().add_done_callback(lambda future: order.put("probe"))
        gate.set()
        assert [order.get() for _ in range(251)] == ["probe", *["waited"] * 250]
        holder.join()

    def test_a_journal_error_names_the_file_and_exits_with_74(self, tmp_path: Path):
        (tmp_path / "runs").write_text("")
        with pytest.raises(JournalError, match=f"^{tmp_path / 'runs'}: ") as caught:
            Journal(tmp_path)
        assert caught.value.status == 74

    def test_a_probe_is_a_write(self, journal: Journal, tmp_path: Path):
        journal.record(delivery())
        with full_disk(tmp_path):
            journal.probe()
            assert journal.fault
        journal.probe()
        assert journal.fault is None

    def test_it_makes_the_folders_that_are_missing(self, tmp_path: Path):
        with closing(Journal(tmp_path / "a" / "b")) as journal:
            journal.record(delivery())

    def test_a_missing_database_with_a_log_is_damage(self, tmp_path: Path, capfd):
        for belongs in ("journal.db-wal", "runs/1.log"):
            folder = tmp_path / belongs.replace("/", "-")
            Journal(folder).close()
            (folder / "journal.db").unlink()
            (folder / belongs).write_text("what was there")
            with closing(Journal(folder)) as journal:
                assert journal.replacements == 1
            assert "missing or empty" in capfd.readouterr().err

    def test_a_failed_read_names_the_file(self, tmp_path: Path):
        with pytest.raises(JournalError, match=f"^{tmp_path / 'journal.db'}: "):
            JournalReader(tmp_path).pending()

    def test_after_a_complete_loss_run_numbers_start_at_one(self, tmp_path: Path):
        (tmp_path / "journal.db").write_bytes(b"noise" * 1000)
        with closing(Journal(tmp_path)) as journal:
            assert run_to_the_end(journal).id == 1


class TestClosing:
    def test_closing_twice_and_using_it_afterwards(self, journal: Journal):
        journal.close()
        journal.close()
        with pytest.raises(JournalError, match=r"^the journal is closed$"):
            journal.record(delivery())
        journal.probe()

    def test_no_thread_and_no_descriptor_is_left(self, tmp_path: Path):
        before = threading.active_count(), len(list(Path("/proc/self/fd").iterdir()))
        for _ in range(5):
            with closing(Journal(tmp_path)) as journal:
                journal.record(delivery())
                journal.pending()
        assert (threading.active_count(), len(list(Path("/proc/self/fd").iterdir()))) == before

    def test_recording_during_the_close_returns_an_error(self, tmp_path: Path):
        for _ in range(30):
            journal = Journal(tmp_path)
            recorded = []

            def record(journal: Journal = journal, recorded: list[str] = recorded) -> None:
                while True:
                    guid = f"{threading.get_ident()}-{len(recorded)}"
                    try:
                        journal.record(delivery(guid))
                    except JournalError:
                        return
                    recorded.append(guid)

            threads = [threading.Thread(target=record, daemon=True) for _ in range(4)]
            for thread in threads:
                thread.start()
            journal.close()
            for thread in threads:
                thread.join(10)
            assert not any(thread.is_alive() for thread in threads)
