"""Single runs, in the thread of the test."""

from __future__ import annotations

import os
import sqlite3
import threading
import time
from contextlib import closing
from pathlib import Path

import pytest
from harness import until
from stage import GATED, REPORTS, Stage

from gitops_hook.config import load
from gitops_hook.journal import database
from gitops_hook.journal.writer import Journal
from gitops_hook.model import Claim, Delivery, Run
from gitops_hook.outcomes import OUTCOMES
from gitops_hook.sync.backoff import RETRIES
from gitops_hook.sync.checkouts import Checkouts
from gitops_hook.sync.dispatcher import Dispatcher
from gitops_hook.sync.executor import Early
from gitops_hook.sync.runner import Task


class TestWhatIsRun:
    def test_a_push_runs_only_if_a_delivery_is_pending(self, stage: Stage):
        executor = stage.executor("exit 0")
        assert executor.execute("acme/site", "push") is None
        stage.record()
        assert executor.execute("acme/site", "push")
        assert executor.execute("acme/site", "push") is None
        assert [(run.outcome, run.trigger) for run in stage.runs()] == [("updated", "push")]

    def test_any_other_trigger_runs_in_any_case(self, stage: Stage):
        stage.executor("exit 0").execute("acme/site", "sweep")
        assert [(run.outcome, run.trigger) for run in stage.runs()] == [("updated", "sweep")]

    def test_the_script_gets_the_newest_delivery(self, stage: Stage):
        stage.record(guid="old")
        stage.record("Acme/Site", guid="new")
        stage.executor('echo "$1 $GITOPS_REPOSITORY $GITOPS_AFTER $GITOPS_DELIVERY"').execute("acme/site", "push")
        assert stage.journal.log_path(1).read_text() == "Site Acme/Site new new\n"

    def test_without_a_delivery_there_are_no_hints(self, stage: Stage):
        stage.executor('echo "${GITOPS_REF-} ${GITOPS_AFTER-} ${GITOPS_DELIVERY-}."').execute("acme/site", "sweep")
        assert stage.journal.log_path(1).read_text() == "  .\n"

    def test_a_clone_is_permitted_only_if_there_is_no_checkout(self, stage: Stage):
        stage.checkouts("acme/here")
        executor = stage.executor("echo $GITOPS_CLONE_URL", clone=["acme/*"], clone_url="https://x/{repository}")
        for repository in ("acme/here", "acme/new", "evil/new"):
            executor.execute(repository, "sweep")
        logs = [stage.journal.log_path(run).read_text().strip() for run in (1, 2, 3)]
        assert logs == ["", "https://x/acme/new", ""]

    @pytest.mark.parametrize(
        ("own", "limit"), [("7", "7"), ("0", "60"), ("-1", "60"), ("x", "60"), ("", "60"), ("9" * 5000, "60")]
    )
    def test_a_checkout_can_set_its_own_limit(self, stage: Stage, own: str, limit: str):
        stage.checkouts("acme/site")
        (stage.root / "acme/site/.git/config").write_text(f'[gitops]\ntimeout = "{own}"\n')
        stage.executor(r"tr '\0' ' ' </proc/$PPID/cmdline").execute("acme/site", "sweep")
        assert stage.journal.log_path(1).read_text().split()[2] == limit

    def test_a_dispatcher_from_settings_runs_their_script(self, stage: Stage):
        stage.write("exit 0")
        given = {"GITHUB_WEBHOOK_SECRET": "s", "GITOPS_ROOT": str(stage.root), "GITOPS_SYNC_SCRIPT": str(stage.script)}
        made = Dispatcher.from_settings(load(given, {}), os.environ, stage.journal, Checkouts(stage.root))
        made.request(["acme/site"], "manual")
        assert [run.outcome for run in stage.wait_for_runs(1)] == ["updated"]

    def test_after_a_stop_nothing_runs(self, stage: Stage):
        executor = stage.executor("exit 0")
        executor.stop()
        assert executor.execute("acme/site", "sweep") is None
        assert stage.runs() == []


class TestWhatIsSettled:
    @pytest.mark.parametrize("outcome", [outcome for outcome in OUTCOMES if outcome.by_script])
    def test_the_table_of_outcomes_decides(self, stage: Stage, outcome):
        stage.record()
        script = f'echo outcome={outcome.name} >"$GITOPS_RESULT"; exit {outcome.exit}'
        ended = stage.executor(script).execute("acme/site", "push")
        assert ended
        assert (ended.run.outcome, ended.settled) == (outcome.name, outcome.settles)
        is_pending = outcome.keeps_pushes or not outcome.settles
        assert stage.journal.pending() == (["acme/site"] if is_pending else [])

    @pytest.mark.parametrize(("setting", "outcome"), [("", "unchanged"), ("pin", "held"), ("approved", "held")])
    def test_a_commit_that_never_appears_does_not_hide_a_hold(self, stage: Stage, setting: str, outcome: str):
        stage.record()
        stage.checkouts("acme/site")
        if setting:
            (stage.root / "acme/site/.git/config").write_text(f"[gitops]\n{setting} = {'a' * 40}\n")
        retries = RETRIES["early"].retries
        assert retries
        executor = stage.executor('echo outcome=early >"$GITOPS_RESULT"; exit 75')
        ended = executor.execute("acme/site", "push", early=Early(1, retries))
        assert ended
        assert (ended.run.outcome, stage.journal.pending()) == (outcome, [])

    def test_a_paused_run_settles_requests_but_no_push(self, stage: Stage):
        stage.record(guid="push")
        stage.journal.record(Delivery("request", "manual", time.time(), "acme/site", ""))
        stage.executor('echo outcome=paused >"$GITOPS_RESULT"').execute("acme/site", "manual")
        pending = [stage.journal.deliveries(guid)[0].pending for guid in ("push", "request")]
        assert pending == [True, False]

    @pytest.mark.parametrize("signal", ["KILL", "TERM", "INT"])
    def test_a_script_that_was_killed_settles_nothing(self, stage: Stage, signal: str):
        stage.record()
        ended = stage.executor(f"kill -{signal} $$").execute("acme/site", "push")
        assert ended
        assert (ended.run.outcome, ended.settled) == ("interrupted", False)
        assert stage.journal.pending() == ["acme/site"]

    def test_a_script_that_cannot_start_settles_nothing_and_says_why(self, stage: Stage):
        stage.record()
        stage.journal.log_path(1).mkdir()
        ended = stage.executor("exit 0").execute("acme/site", "push")
        assert ended
        assert (ended.settled, ended.run.outcome, ended.run.exit) == (False, "interrupted", None)
        assert ended.run.message and "Is a directory" in ended.run.message

    def test_an_internal_error_leaves_no_run_unfinished(self, stage: Stage, capfd: pytest.CaptureFixture[str]):
        stage.record("acme/new")
        ended = stage.executor("exit 0", clone=["acme/*"], clone_url="{no such field}").execute("acme/new", "push")
        assert ended
        assert (ended.settled, ended.run.outcome) == (False, "interrupted")
        assert stage.journal.pending() == ["acme/new"]
        assert "KeyError" in capfd.readouterr().err

    def test_a_run_waits_for_a_journal_that_cannot_be_written(self, stage: Stage, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setattr(database, "BUSY_MS", 20)
        stage.journal.close()
        stage.journal = Journal(stage.folder / "state")
        executor = stage.executor(GATED)
        stage.record()
        run = threading.Thread(target=executor.execute, args=("acme/site", "push"))
        with closing(sqlite3.connect(stage.folder / "state/journal.db", isolation_level=None)) as neighbor:
            neighbor.execute("BEGIN IMMEDIATE")
            run.start()
            until(lambda: stage.journal.fault)
            assert stage.runs() == []
            neighbor.execute("COMMIT")
            stage.began(1)
            neighbor.execute("BEGIN IMMEDIATE")
            stage.open_gate()
            until(lambda: stage.journal.fault)
            assert [run.outcome for run in stage.runs()] == [None]
        run.join()
        assert [run.outcome for run in stage.runs()] == ["updated"]
        assert stage.journal.pending() == []
        assert len(stage.notes()) == 2


class TestLimits:
    def test_a_run_is_overdue_after_its_limit_and_all_grace_periods(self, stage: Stage):
        now = [1000.0]
        executor = stage.executor(GATED, clock=lambda: now[0])
        running = threading.Thread(target=executor.execute, args=("acme/site", "sweep"))
        running.start()
        stage.began(1)
        assert executor.running == [1]
        found = []
        for now[0] in (1000.0, 1100.0, 1100.5):  # 60 s, 10 s to end its group, 30 s to record it
            found.append(executor.overdue)
        stage.open_gate()
        running.join()
        assert found == [[], [], [1]]
        assert executor.running == []


class TestLog:
    @pytest.mark.parametrize("outcome", ["updated", "unchanged", "cloned", "paused"])
    def test_a_successful_end_is_not_a_failure(self, stage: Stage, outcome: str, capfd: pytest.CaptureFixture[str]):
        executor = stage.executor(REPORTS)
        executor.execute(outcome, "sweep")
        assert executor.failure is None
        (line,) = (line for line in capfd.readouterr().err.splitlines() if f" run {outcome} " in line)
        assert " info run " in line and " commit=abc " in f"{line} " and " exit=" not in line
        assert 100 <= int(line.partition(" ms=")[2].split()[0]) < 1_000_000

    @pytest.mark.parametrize(
        ("script", "level", "outcome"), [("exit 75", "warning", "unreachable"), ("exit 70", "error", "deploy-failed")]
    )
    def test_any_other_end_is_the_last_failure(self, stage: Stage, script: str, level: str, outcome: str, capfd):
        executor = stage.executor(script)
        ended = executor.execute("acme/site", "manual")
        assert ended and ended.run.outcome == outcome
        assert executor.failure == ended.run
        (line,) = (line for line in capfd.readouterr().err.splitlines() if f" {level} run {outcome} " in line)
        assert f" exit={script[5:]} " in line

    def test_the_lines_of_a_run_name_all_its_deliveries(self, stage: Stage, capfd: pytest.CaptureFixture[str]):
        stage.record(guid="first")
        stage.record(guid="second")
        executor = stage.executor('echo why; echo message=broken >"$GITOPS_RESULT"; sleep 0.1; exit 70')
        executor.execute("acme/site", "push")
        stage.record(guid="third")
        stage.record(guid="fourth")
        stage.executor(f"echo quiet; {REPORTS}").execute("acme/site", "push")
        error = capfd.readouterr().err
        assert " info run started repository=acme/site run=1 trigger=push delivery=second deliveries=2" in error
        assert " reason=broken output=why" in error and "quiet" not in error
        settled = [line for line in error.splitlines() if " info delivery settled " in line]
        assert " delivery=first " in settled[0] and " delivery=third commit=abc " in settled[1]
        for line in settled:
            assert 100 <= int(line.partition(" ms=")[2]) < 1_000_000

    def test_retries_do_not_log_a_delivery_again(self, stage: Stage, capfd: pytest.CaptureFixture[str]):
        executor = stage.executor("exit 75")
        for guid in ("one", "two"):
            stage.record(guid=guid)
        for _ in range(3):
            executor.execute("acme/site", "retry")
        stage.write("exit 0")
        executor.execute("acme/site", "retry")
        lines = [line for line in capfd.readouterr().err.splitlines() if "delivery=one" in line]
        assert len(lines) == 2
        assert " delivery claimed " in lines[0] and " run=1 " in lines[0]
        assert " delivery settled " in lines[1] and " run=4 " in lines[1]


class Observer:
    """Notes each call with the state of the journal at that time, and may raise an exception."""

    def __init__(self, journal: Journal, fails: bool = False) -> None:
        self.journal = journal
        self.fails = fails
        self.calls: list[tuple[str, int, str | None]] = []

    def began(self, claim: Claim, task: Task) -> None:
        self.note("began", claim.run.id)

    def ended(self, run: Run, claim: Claim, task: Task) -> None:
        assert (run.id, task.run) == (claim.run.id, claim.run.id)
        self.note("ended", run.id)

    def note(self, call: str, run: int) -> None:
        known = self.journal.run(run)
        self.calls.append((call, run, known.outcome if known else "not in the journal"))
        if self.fails:
            raise ValueError("an observer of the test")


def test_observers_are_informed_of_each_run_and_their_errors_do_no_harm(stage: Stage, capfd):
    observers = [Observer(stage.journal, fails=True), Observer(stage.journal)]
    stage.executor("exit 0", observers=observers).execute("acme/site", "sweep")
    expected = [("began", 1, None), ("ended", 1, "updated")]
    assert [observer.calls for observer in observers] == [expected, expected]
    assert capfd.readouterr().err.count("ValueError: an observer of the test") == 2


def test_the_slot_is_released_between_the_journal_and_the_observers(stage: Stage, tmp_path: Path):
    observer = Observer(stage.journal)
    executor = stage.executor("exit 0", observers=[observer])
    executor.execute("acme/site", "sweep", released=lambda: observer.note("released", 1))
    assert observer.calls == [("began", 1, None), ("released", 1, "updated"), ("ended", 1, "updated")]
