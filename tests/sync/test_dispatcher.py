"""From deliveries to runs: order, slots, retries, start and stop."""

from __future__ import annotations

import os
import threading
from collections import Counter
from contextlib import suppress

import pytest
from harness import until
from stage import BRIEF, GATED, THREE_AT_ONCE, TWO_AT_ONCE, Stage, most_at_once

from gitops_hook.errors import JournalError
from gitops_hook.model import Claim, Run
from gitops_hook.sync import backoff
from gitops_hook.sync.backoff import Backoff
from gitops_hook.sync.runner import Task


@pytest.fixture
def long_delays(monkeypatch: pytest.MonkeyPatch, stage: Stage) -> None:
    monkeypatch.setitem(backoff.RETRIES, "backoff", Backoff(3600.0, 3600.0))
    monkeypatch.setattr(backoff, "RESTARTS", Backoff(3600.0, 3600.0))


class TestOrder:
    def test_no_checkout_overlaps_itself_and_the_bound_holds(self, stage: Stage):
        dispatcher = stage.dispatcher(THREE_AT_ONCE, max_syncs=3)
        names = [f"acme/r{number}" for number in range(6)]
        for round_ in range(8):
            for name in names:
                stage.push(dispatcher, name, f"{name} {round_}")
                dispatcher.notify(name.upper(), "asked")
        until(lambda: not stage.journal.pending() and not dispatcher.workers)
        notes = [note.lower() for note in stage.notes()]
        assert most_at_once(notes) == 3
        assert {most_at_once(notes, f"r{number}") for number in range(6)} == {1}

    def test_the_checkout_that_has_waited_longest_is_next(self, stage: Stage):
        dispatcher = stage.dispatcher(GATED, max_syncs=1)
        stage.push(dispatcher, "acme/busy", "1")
        stage.began(1)
        stage.push(dispatcher, "acme/other", "2")
        stage.push(dispatcher, "acme/busy", "3")
        stage.push(dispatcher, "acme/third", "4")
        stage.push(dispatcher, "acme/other", "5")
        stage.open_gate(4)
        order = [run.repository for run in stage.wait_for_runs(4)]
        assert order == ["acme/busy", "acme/other", "acme/third", "acme/busy"]

    def test_pushes_during_a_run_share_the_next(self, stage: Stage):
        dispatcher = stage.dispatcher(GATED)
        stage.push(dispatcher, guid="first")
        stage.began(1)
        for number in range(50):
            stage.push(dispatcher, guid=str(number))
        stage.open_gate(2)
        stage.wait_for_runs(2)
        until(lambda: not dispatcher.workers)
        assert len(stage.runs()) == 2
        assert [stage.journal.deliveries(guid)[0].run for guid in ("first", "0", "49")] == [1, 2, 2]

    def test_a_notification_that_is_not_a_push_decides(self, stage: Stage):
        dispatcher = stage.dispatcher(GATED, max_syncs=1)
        dispatcher.notify("acme/first", "sweep")
        stage.began(1)
        for trigger in ("push", "manual", "push"):
            dispatcher.notify("acme/site", trigger)
        stage.open_gate(2)
        assert [run.trigger for run in stage.wait_for_runs(2)] == ["sweep", "manual"]

    def test_names_that_differ_in_case_share_a_worker(self, stage: Stage):
        dispatcher = stage.dispatcher(GATED)
        stage.push(dispatcher, "acme/site")
        stage.began(1)
        stage.push(dispatcher, "ACME/Site")
        assert dispatcher.workers == 1
        stage.open_gate(2)
        stage.wait_for_runs(2)


class TestThreads:
    def test_three_thousand_names_need_few_threads(self, stage: Stage):
        dispatcher = stage.dispatcher(GATED, max_syncs=4)
        before = threading.active_count()
        for number in range(3000):
            dispatcher.notify(f"acme/r{number}", "manual")
        stage.began(4)
        # A run has a worker and a reader of its output.
        assert threading.active_count() - before <= 2 * 4
        assert dispatcher.workers == 3000

    def test_a_thousand_checkouts_leave_nothing_pending(self, stage: Stage):
        dispatcher = stage.dispatcher("exit 0", max_syncs=4)
        for number in range(200):
            stage.push(dispatcher, f"acme/r{number}")
        until(lambda: not stage.journal.pending(), timeout=60)
        assert set(Counter(run.repository for run in stage.runs()).values()) == {1}
        assert len(stage.runs()) == 200
        until(lambda: not dispatcher.workers)

    def test_a_checkout_in_backoff_has_no_thread(self, stage: Stage, long_delays: None):
        dispatcher = stage.dispatcher("exit 75")
        before = threading.active_count()
        for number in range(20):
            stage.push(dispatcher, f"acme/r{number}")
        stage.wait_for_runs(20)
        until(lambda: not dispatcher.workers and threading.active_count() <= before)
        assert len(stage.journal.pending()) == 20

    def test_an_exception_does_not_end_the_service_of_a_checkout(self, stage: Stage, capfd):
        dispatcher = stage.dispatcher("exit 0")
        done = threading.Event()

        def fail() -> None:
            done.set()
            raise ZeroDivisionError

        dispatcher.notify("acme/site", "asked", fail)
        assert done.wait(10)
        stage.push(dispatcher)
        until(lambda: not stage.journal.pending())
        assert "ZeroDivisionError" in capfd.readouterr().err

    def test_a_thread_that_cannot_start_is_started_later(self, stage: Stage, monkeypatch: pytest.MonkeyPatch):
        dispatcher = stage.dispatcher("exit 0")

        def no_thread(self: threading.Thread) -> None:
            raise RuntimeError("can't start new thread")

        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", no_thread)
            stage.push(dispatcher)
            assert stage.runs() == []
        dispatcher.reconcile()
        stage.wait_for_runs(1)

    def test_pushes_wait_for_the_end_of_a_pause(self, stage: Stage):
        dispatcher = stage.dispatcher('echo outcome=paused >"$GITOPS_RESULT"')
        stage.checkouts("acme/site")
        config = stage.root / "acme/site/.git/config"
        config.write_text("[gitops]\npaused = 2999-01-31T12:00:00Z\n")
        stage.push(dispatcher)
        stage.wait_for_runs(1)
        until(lambda: not dispatcher.workers)
        dispatcher.reconcile()
        assert dispatcher.workers == 0
        assert stage.journal.pending() == ["acme/site"]
        stage.write("exit 0")
        config.write_text("[gitops]\npaused = 2026-01-31T12:00:00Z\n")
        dispatcher.reconcile()
        assert [run.outcome for run in stage.wait_for_runs(2)] == ["paused", "updated"]
        assert stage.journal.pending() == []

    def test_an_overdue_run_releases_its_slot(self, stage: Stage):
        now = [1000.0]
        dispatcher = stage.dispatcher(GATED, max_syncs=1, clock=lambda: now[0])
        stage.push(dispatcher, "acme/hangs", "1")
        stage.began(1)
        stage.push(dispatcher, "acme/other", "2")
        now[0] += 10_000
        assert dispatcher.overdue() == [1]
        dispatcher.reconcile()
        stage.began(2)
        stage.push(dispatcher, "acme/hangs", "3")
        stage.open_gate(3)
        stage.wait_for_runs(3)
        assert most_at_once(stage.notes(), "hangs") == 1

    def test_observers_hold_no_slot(self, stage: Stage):
        blocked, entered = threading.Event(), threading.Event()

        class Slow:
            def began(self, claim: Claim, task: Task) -> None:
                pass

            def ended(self, run: Run, claim: Claim, task: Task) -> None:
                if run.repository == "acme/slow":
                    entered.set()
                    assert blocked.wait(20)

        dispatcher = stage.dispatcher(BRIEF, max_syncs=1, observers=[Slow()])
        stage.push(dispatcher, "acme/slow", "1")
        assert entered.wait(20)
        stage.push(dispatcher, "acme/quick", "2")
        assert [run.repository for run in stage.wait_for_runs(2)] == ["acme/slow", "acme/quick"]
        blocked.set()


class TestRetry:
    def test_an_unreachable_remote_is_tried_with_growing_delays(self, stage: Stage):
        dispatcher = stage.dispatcher("echo >>$0.tries; [ $(wc -l <$0.tries) = 4 ] || exit 75")
        stage.push(dispatcher)
        runs = stage.wait_for_runs(4)
        assert [(run.outcome, run.trigger) for run in runs] == [
            ("unreachable", "push"), *2 * [("unreachable", "retry")], ("updated", "retry"),
        ]  # fmt: skip
        gaps = [after.started - before.started for before, after in zip(runs, runs[1:])]
        assert gaps[0] >= 0.02 and gaps[1] >= 0.04 and gaps[2] >= 0.08
        until(lambda: not dispatcher.workers)
        assert len(stage.runs()) == 4
        assert dispatcher.run_due() is None

    def test_each_run_that_settles_nothing_counts_once(self, stage: Stage, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setitem(backoff.RETRIES, "backoff", Backoff(5.0, 900.0))
        dispatcher = stage.dispatcher("exit 75", scheduled=False, clock=lambda: 1000.0)
        dues = []
        for number in range(3):
            dispatcher.notify("acme/site", "manual")
            stage.wait_for_runs(number + 1)
            until(lambda: not dispatcher.workers)
            dues.append(dispatcher.run_due())
        assert dues == [5.0, 10.0, 20.0]

    def test_a_push_cuts_the_delay_short(self, stage: Stage, long_delays: None):
        dispatcher = stage.dispatcher("exit 75")
        stage.push(dispatcher, guid="a")
        stage.wait_for_runs(1)
        stage.write("exit 0")
        stage.push(dispatcher, guid="b")
        assert [run.outcome for run in stage.wait_for_runs(2)] == ["unreachable", "updated"]
        assert stage.journal.pending() == []

    def test_a_permanent_failure_is_not_retried(self, stage: Stage):
        dispatcher = stage.dispatcher("exit 65")
        stage.push(dispatcher)
        until(lambda: stage.wait_for_runs(1) and not dispatcher.workers)
        assert [run.outcome for run in stage.runs()] == ["diverged"]
        assert stage.journal.pending() == []
        assert dispatcher.run_due() is None

    def test_a_script_that_could_not_start_is_retried(self, stage: Stage):
        dispatcher = stage.dispatcher("exit 0")
        logs = stage.journal.log_path(1).parent
        logs.rename(logs.with_name("elsewhere"))
        stage.push(dispatcher)
        stage.wait_for_runs(2)
        assert stage.journal.pending() == ["acme/site"]
        logs.mkdir()
        until(lambda: not stage.journal.pending())
        assert stage.runs()[-1].outcome == "updated"


def outcome(name: str, status: int = 75) -> str:
    """A script that notes its call and ends with this outcome."""
    return f'echo "+ $1" >>$0.notes; echo outcome={name} >"$GITOPS_RESULT"; exit {status}'


class TestEarly:
    """A webhook that arrives before the remote shows its commit."""

    @pytest.fixture(autouse=True)
    def short_delays(self, monkeypatch: pytest.MonkeyPatch, stage: Stage) -> None:
        monkeypatch.setitem(backoff.RETRIES, "early", Backoff(0.02, 0.04, retries=5))

    def test_it_is_retried_five_times_and_then_settled(self, stage: Stage):
        dispatcher = stage.dispatcher(outcome("early"))
        stage.push(dispatcher, guid="abc")
        until(lambda: not stage.journal.pending())
        runs = stage.runs()
        assert [run.outcome for run in runs] == [*["early"] * 5, "unchanged"]
        assert runs[-1].message and "abc" in runs[-1].message

    def test_a_new_delivery_starts_the_count_again(self, stage: Stage):
        dispatcher = stage.dispatcher(outcome("early"))
        stage.push(dispatcher, guid="one")
        stage.began(4)
        stage.push(dispatcher, guid="two")
        until(lambda: not stage.journal.pending())
        newest = [run for run in stage.runs() if run.id >= stage.journal.deliveries("two")[0].run - 5]
        assert [run.outcome for run in newest] == [*["early"] * 5, "unchanged"]
        assert len(stage.runs()) > 6

    def test_the_commit_that_appears_is_deployed(self, stage: Stage):
        dispatcher = stage.dispatcher(f"[ -e $0.ready ] && exit 0; {outcome('early')}")
        stage.push(dispatcher)
        stage.began(2)
        (stage.folder / "script.ready").touch()
        until(lambda: not stage.journal.pending())
        assert stage.runs()[-1].outcome == "updated"


def test_a_remote_without_access_is_retried_at_the_longest_delay(stage: Stage):
    dispatcher = stage.dispatcher(outcome("no-access"), scheduled=False, clock=lambda: 1000.0)
    stage.push(dispatcher)
    stage.wait_for_runs(1)
    until(lambda: not dispatcher.workers)
    assert dispatcher.run_due() == 900.0
    assert stage.journal.pending() == ["acme/site"]


class TestLoops:
    """A deploy that pushes to its own repository."""

    #: Brings a commit, after the test has pushed during the run.
    BRINGS = GATED + '; printf "outcome=updated\\nbefore=%s\\nafter=%s\\n" $GITOPS_RUN- $GITOPS_RUN >"$GITOPS_RESULT"'

    def loop(self, stage: Stage, dispatcher, runs: int) -> None:
        stage.push(dispatcher, guid="0")
        for number in range(1, runs + 1):
            stage.began(number)
            stage.push(dispatcher, guid=str(number))
            stage.open_gate()
        stage.wait_for_runs(runs)
        until(lambda: not dispatcher.workers)

    def test_it_is_delayed_and_explained(self, stage: Stage):
        dispatcher = stage.dispatcher(self.BRINGS, scheduled=False)
        self.loop(stage, dispatcher, 5)
        assert 29 < (dispatcher.run_due() or 0) <= 30
        messages = [run.message for run in stage.runs()]
        assert messages[:4] == [""] * 4
        assert messages[4] and "push to its own repository" in messages[4]
        assert stage.runs()[4].cause == "loop"
        assert stage.journal.pending() == ["acme/site"]

    def test_a_push_does_not_cut_the_delay_short_but_a_person_does(self, stage: Stage):
        dispatcher = stage.dispatcher(self.BRINGS, scheduled=False)
        self.loop(stage, dispatcher, 5)
        stage.push(dispatcher, guid="more")
        done = threading.Event()
        dispatcher.notify("acme/site", "sweep", done.set)
        assert done.wait(5)
        assert dispatcher.workers == 0
        dispatcher.notify("acme/site", "manual")
        stage.open_gate()
        assert stage.wait_for_runs(6)[-1].trigger == "manual"

    def test_pushes_between_runs_are_no_loop(self, stage: Stage):
        dispatcher = stage.dispatcher(self.BRINGS, scheduled=False)
        stage.open_gate(8)
        for number in range(1, 9):
            stage.push(dispatcher, guid=str(number))
            stage.wait_for_runs(number)
            until(lambda: not dispatcher.workers)
        assert {run.message for run in stage.runs()} == {""}
        assert dispatcher.run_due() is None


class TestStart:
    def test_it_resumes_what_an_earlier_daemon_left(self, stage: Stage, capfd: pytest.CaptureFixture[str]):
        stage.record("acme/pending")
        assert stage.journal.start("acme/pending", "push")
        stage.checkouts("acme/swept")
        stage.dispatcher("exit 0", scheduled=False).start()
        runs = stage.wait_for_runs(3)
        assert {(run.repository, run.trigger, run.outcome) for run in runs} == {
            ("acme/pending", "push", "interrupted"),
            ("acme/pending", "recovery", "updated"),
            ("acme/swept", "sweep", "updated"),
        }
        assert stage.journal.pending() == []
        assert "run interrupted repository=acme/pending run=1 outcome=interrupted" in capfd.readouterr().err

    def test_a_sweep_covers_every_checkout_on_half_of_the_slots(self, stage: Stage):
        names = [f"acme/r{number}" for number in range(12)] + ["flat"]
        stage.checkouts(*names)
        stage.dispatcher(TWO_AT_ONCE, max_syncs=4).sweep()
        assert sorted(run.repository for run in stage.wait_for_runs(13)) == sorted(names)
        assert most_at_once(stage.notes()) == 2

    def test_a_sweep_continues_after_failed_checkouts(self, stage: Stage, long_delays: None):
        stage.checkouts(*(f"acme/r{number}" for number in range(6)))
        stage.dispatcher("exit 75", max_syncs=1).sweep()
        assert len(stage.wait_for_runs(6)) == 6


class TestReconciliation:
    def test_without_pending_work_no_run_starts(self, stage: Stage):
        stage.checkouts("acme/site")
        dispatcher = stage.dispatcher("exit 0")
        dispatcher.reconcile()
        assert dispatcher.workers == 0

    def test_it_repairs_a_lost_wake_up(self, stage: Stage):
        dispatcher = stage.dispatcher("exit 0")
        stage.record()
        dispatcher.reconcile()
        assert [run.outcome for run in stage.wait_for_runs(1)] == ["updated"]

    def test_it_leaves_delayed_checkouts_alone(self, stage: Stage, long_delays: None):
        dispatcher = stage.dispatcher("exit 75")
        stage.push(dispatcher, "acme/waits")
        stage.wait_for_runs(1)
        until(lambda: not dispatcher.workers)
        dispatcher.reconcile()
        assert dispatcher.workers == 0

    def test_after_a_damaged_journal_it_sweeps_once(self, stage: Stage):
        stage.checkouts("acme/a", "acme/b")
        dispatcher = stage.dispatcher("exit 0")
        stage.record("acme/lost")
        (stage.folder / "state/journal.db").write_bytes(b"noise" * 5000)
        os.truncate(stage.folder / "state/journal.db-wal", 0)
        with suppress(JournalError):
            dispatcher.reconcile()
        assert stage.journal.replacements == 1
        dispatcher.reconcile()
        stage.wait_for_runs(2)
        dispatcher.reconcile()
        until(lambda: not dispatcher.workers)
        assert len(stage.runs()) == 2


class TestStop:
    def test_after_a_stop_no_run_starts_and_deliveries_stay_pending(self, stage: Stage):
        dispatcher = stage.dispatcher(GATED, max_syncs=1)
        stage.push(dispatcher, "acme/running")
        stage.began(1)
        stage.push(dispatcher, "acme/in-line")
        dispatcher.stop()
        stage.push(dispatcher, "acme/late")
        assert dispatcher.join(0.01) is False
        stage.open_gate()
        assert dispatcher.join(20) is True
        assert [(run.repository, run.outcome) for run in stage.runs()] == [("acme/running", "updated")]
        assert sorted(stage.journal.pending()) == ["acme/in-line", "acme/late"]

    def test_a_delayed_checkout_does_not_hold_it_up(self, stage: Stage, long_delays: None):
        dispatcher = stage.dispatcher("exit 75")
        stage.push(dispatcher)
        stage.wait_for_runs(1)
        dispatcher.stop()
        assert dispatcher.join(20) is True

    @pytest.mark.parametrize("answer", ["", "trap 'exit 70' TERM;", "trap 'exit 75' TERM;"])
    def test_a_run_that_the_daemon_ends_stays_pending(self, stage: Stage, answer: str):
        dispatcher = stage.dispatcher(answer + GATED)
        stage.push(dispatcher)
        stage.began(1)
        dispatcher.stop()
        dispatcher.terminate()
        assert dispatcher.join(20) is True
        assert [(run.outcome, run.cause) for run in stage.runs()] == [("interrupted", "shutdown")]
        assert stage.journal.pending() == ["acme/site"]

    def test_a_run_that_succeeds_despite_sigterm_is_settled(self, stage: Stage):
        # The pause is for timeout(1), which ends if SIGTERM arrives between its fork and its wait.
        dispatcher = stage.dispatcher("trap '' TERM; sleep 0.2; " + GATED)
        stage.push(dispatcher)
        stage.began(1)
        dispatcher.stop()
        dispatcher.terminate()
        stage.open_gate()
        assert dispatcher.join(20) is True
        assert [(run.outcome, run.exit) for run in stage.runs()] == [("updated", 0)]
        assert stage.journal.pending() == []

    @pytest.mark.parametrize(
        ("end", "outcome", "cause"),
        [("kill -KILL $$", "interrupted", "shutdown"), ("exit 70", "deploy-failed", None)],
    )
    def test_a_run_that_fails_during_the_wait_has_its_own_outcome(
        self, stage: Stage, end: str, outcome: str, cause: str | None
    ):
        dispatcher = stage.dispatcher(f"{GATED}; {end}")
        stage.push(dispatcher)
        stage.began(1)
        dispatcher.stop()
        stage.open_gate()
        assert dispatcher.join(20) is True
        assert [(run.outcome, run.cause) for run in stage.runs()] == [(outcome, cause)]


class TestRestarts:
    """A deploy that restarts the daemon and waits for it."""

    def end_by_shutdown(self, stage: Stage, times: int) -> None:
        stage.record(guid="first")
        for number in range(times):
            dispatcher = stage.dispatcher(GATED)
            dispatcher.notify("acme/site", "recovery")
            stage.began(number + 1)
            dispatcher.stop()
            dispatcher.terminate()
            assert dispatcher.join(20)
        assert stage.journal.pending() == ["acme/site"]

    def test_a_run_that_was_ended_once_is_repeated_at_once(self, stage: Stage, long_delays: None):
        self.end_by_shutdown(stage, 1)
        stage.dispatcher("exit 0").recover()
        assert stage.wait_for_runs(2)[-1].outcome == "updated"

    def test_from_the_second_time_on_it_is_repeated_with_a_growing_delay(self, stage: Stage):
        self.end_by_shutdown(stage, 2)
        stage.checkouts("acme/site")
        delays = []
        for number in (3, 4):
            dispatcher = stage.dispatcher(GATED, scheduled=False, clock=lambda: 1000.0)
            dispatcher.recover()
            dispatcher.sweep()
            assert dispatcher.workers == 0
            delays.append(dispatcher.run_due())
            dispatcher.notify("acme/site", "manual")
            stage.began(number)
            dispatcher.stop()
            dispatcher.terminate()
            assert dispatcher.join(20)
        assert delays == [30.0, 60.0]
        assert stage.journal.pending() == ["acme/site"], "an accepted push is never dropped"

    def test_a_sweep_does_not_cut_that_delay_short_but_a_push_does(self, stage: Stage, long_delays: None, capfd):
        self.end_by_shutdown(stage, 3)
        stage.checkouts("acme/site")
        dispatcher = stage.dispatcher("exit 0")
        dispatcher.recover()
        dispatcher.sweep()
        dispatcher.reconcile()
        assert dispatcher.workers == 0
        assert capfd.readouterr().err.count("--no-block restart") == 1
        stage.push(dispatcher, guid="fix")
        assert stage.wait_for_runs(4)[-1].outcome == "updated"
        assert stage.journal.pending() == []


def test_a_worker_thread_keeps_no_process_alive(stage: Stage):
    dispatcher = stage.dispatcher(GATED)
    dispatcher.notify("acme/site", "manual")
    stage.began(1)
    ours = [thread for thread in threading.enumerate() if "acme/site" in thread.name]
    assert [thread.daemon for thread in ours] == [True]
    stage.open_gate()
