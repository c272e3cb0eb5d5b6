"""From deliveries to runs: a real journal, a real runner, tiny real scripts."""

from __future__ import annotations

import os
import re
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path

import pytest
from harness import until

from gitops_hook.config import load
from gitops_hook.journal import writer as journal
from gitops_hook.journal.writer import Journal
from gitops_hook.model import Claim, Delivery, Run
from gitops_hook.sync import dispatcher as module
from gitops_hook.sync import runner
from gitops_hook.sync.checkouts import Checkouts
from gitops_hook.sync.dispatcher import Dispatcher, FairSemaphore
from gitops_hook.sync.runner import Runner, Task
from gitops_hook.sync.worker import WakeUp, Worker

#: Notes its beginning and its end, and between them waits for a line to come through the gate.
GATED = 'echo "+ $1" >>$0.notes; read -r _ <$0.gate; echo "- $1" >>$0.notes'
#: Notes its beginning and its end, and takes a moment in which others could overlap.
BRIEF = 'echo "+ $1" >>$0.notes; sleep 0.01; echo "- $1" >>$0.notes'
#: The same, but the first two, or three, wait for one another.
TWO_AT_ONCE = BRIEF.replace("sleep 0.01", "until (($(grep -c ^+ $0.notes) >= 2)); do sleep 0.01; done")
THREE_AT_ONCE = TWO_AT_ONCE.replace(">= 2", ">= 3")


#: As they are when no test shortens them.
IDLE, FIRST_WAIT = module._IDLE, module._FIRST_WAIT
#: Reports the outcome that its repository is called by.
REPORTS = 'echo "outcome=$1" >"$GITOPS_RESULT"; echo after=abc >>"$GITOPS_RESULT"; sleep 0.1'


class Stage:
    """A dispatcher with everything around it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.root = folder / "root"
        self.root.mkdir()
        self.script = folder / "script"
        self.notes_file = folder / "script.notes"
        self.notes_file.touch()
        os.mkfifo(folder / "script.gate")
        self.gate = os.open(folder / "script.gate", os.O_RDWR)
        self.journal = Journal(folder / "state")
        self.dispatchers: list[Dispatcher] = []

    def dispatcher(self, script: str, max_syncs: int = 4, **more: object) -> Dispatcher:
        self.write(script)
        made = Dispatcher(
            self.journal,
            Checkouts(self.root),
            Runner(self.script, self.root, os.environ),
            max_syncs=max_syncs,
            sync_timeout=60,
            jitter=lambda: 0.5,
            **more,  # type: ignore[arg-type]
        )
        self.dispatchers.append(made)
        return made

    def write(self, script: str) -> None:
        new = self.folder / "new"
        new.write_text(f"#!/bin/bash\n{script}\n")
        new.chmod(0o755)
        new.rename(self.script)

    def record(self, repository: str = "acme/site", guid: str = "g") -> None:
        self.journal.record(Delivery(guid, "push", time.time(), repository, "refs/heads/main", "", guid))

    def push(self, dispatcher: Dispatcher, repository: str = "acme/site", guid: str = "g") -> None:
        self.record(repository, guid)
        dispatcher.notify(repository)

    def checkouts(self, *repositories: str) -> None:
        for repository in repositories:
            (self.root / repository / ".git").mkdir(parents=True)
            (self.root / repository / ".git" / "config").touch()

    def open_gate(self, count: int = 1) -> None:
        os.write(self.gate, b"\n" * count)

    def notes(self) -> list[str]:
        return self.notes_file.read_text().splitlines()

    def runs(self) -> list[Run]:
        return self.journal.runs(limit=10_000)[::-1]

    def wait_for_runs(self, count: int) -> list[Run]:
        until(lambda: sum(run.outcome is not None for run in self.runs()) >= count, f"no {count} runs: {self.runs()}")
        return self.runs()

    def began(self, count: int) -> None:
        until(lambda: sum(note[0] == "+" for note in self.notes()) >= count, f"no {count} began: {self.notes()}")

    def close(self) -> None:
        for dispatcher in self.dispatchers:
            dispatcher.stop()
            dispatcher.terminate()
            assert dispatcher.join(20)
        self.journal.close()
        os.close(self.gate)


def most_at_once(notes: list[str], only: str | None = None) -> int:
    now = most = 0
    for sign, name in (note.split() for note in notes):
        if only in (None, name):
            now += 1 if sign == "+" else -1
            most = max(most, now)
    return most


@pytest.fixture(autouse=True)
def brief_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_IDLE", 0.1)
    monkeypatch.setattr(module, "_FIRST_WAIT", 0.02)
    monkeypatch.setattr(module, "_JOURNAL_WAIT", 0.02)
    monkeypatch.setattr(runner, "GRACE", 2)  # bash keeps a TERM that comes just before it reads until it has read


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    threads = set(threading.enumerate())
    made = Stage(tmp_path)
    yield made
    made.close()
    until(lambda: set(threading.enumerate()) <= threads, "a thread is left")


class TestPlaces:
    def test_a_place_is_given_back_whatever_happens(self):
        places = FairSemaphore(1)
        for _ in range(3):
            with suppress(KeyError), places.one() as granted:
                assert granted
                raise KeyError

    def test_they_go_to_whoever_has_waited_longest(self):
        places, order = FairSemaphore(1), []

        def take(name: int) -> None:
            with places.one() as granted:
                order.append((name, granted))

        with places.one():
            threads = []
            for name in range(10):
                threads.append(threading.Thread(target=take, args=(name,)))
                threads[-1].start()
                until(lambda name=name: len(places._line) == name + 1)
        for thread in threads:
            thread.join()
        assert order == [(name, True) for name in range(10)]

    def test_who_gives_back_and_asks_again_comes_last(self):
        places, order = FairSemaphore(1), []

        def take(name: str) -> None:
            with places.one():
                order.append(name)

        first = places.one()
        first.__enter__()
        thread = threading.Thread(target=take, args=("patient",))
        thread.start()
        until(lambda: places._line)
        first.__exit__(None, None, None)
        take("busy")
        thread.join()
        assert order == ["patient", "busy"]

    def test_closing_sends_everyone_home_and_gives_no_more(self):
        places, granted = FairSemaphore(1), []

        def take() -> None:
            with places.one() as place:
                granted.append(place)

        with places.one() as held:
            threads = [threading.Thread(target=take) for _ in range(5)]
            for thread in threads:
                thread.start()
            until(lambda: len(places._line) == 5)
            places.close()
            for thread in threads:
                thread.join(10)
            assert held
            take()
        take()
        assert granted == [False] * 7


class TestStep:
    """Without any thread."""

    def test_a_push_runs_only_what_is_owed(self, stage: Stage):
        dispatcher = stage.dispatcher("exit 0")
        assert dispatcher.step("acme/site", "push") is True
        assert stage.runs() == []
        stage.record()
        assert dispatcher.step("acme/site", "push") is True
        assert dispatcher.step("acme/site", "push") is True
        assert [(run.outcome, run.trigger) for run in stage.runs()] == [("updated", "push")]

    def test_any_other_trigger_runs_anyway(self, stage: Stage):
        stage.dispatcher("exit 0").step("acme/site", "sweep")
        assert [(run.outcome, run.trigger) for run in stage.runs()] == [("updated", "sweep")]

    def test_the_script_is_told_of_the_newest_delivery(self, stage: Stage):
        stage.record(guid="old")
        stage.record("Acme/Site", guid="new")
        stage.dispatcher('echo "$1 $GITOPS_REPOSITORY $GITOPS_AFTER $GITOPS_DELIVERY"').step("acme/site", "push")
        assert stage.journal.log_path(1).read_text() == "Site Acme/Site new new\n"

    @pytest.mark.parametrize(("status", "settled"), [(0, True), (70, True), (65, True), (1, True), (75, False)])
    def test_whether_a_status_settles_the_matter(self, stage: Stage, status: int, settled: bool):
        stage.record()
        assert stage.dispatcher(f"exit {status}").step("acme/site", "push") is settled
        assert stage.journal.pending() == ([] if settled else ["acme/site"])

    @pytest.mark.parametrize("signal", ["KILL", "TERM", "INT"])
    def test_a_script_that_was_killed_owes_still(self, stage: Stage, signal: str):
        stage.record()
        assert stage.dispatcher(f"kill -{signal} $$").step("acme/site", "push") is False
        assert [run.outcome for run in stage.runs()] == ["interrupted"]
        assert stage.journal.pending() == ["acme/site"]

    def test_what_cannot_start_is_owed_and_says_why(self, stage: Stage):
        stage.record()
        stage.journal.log_path(1).mkdir()
        assert stage.dispatcher("exit 0").step("acme/site", "push") is False
        (run,) = stage.runs()
        assert (run.outcome, run.exit) == ("interrupted", None)
        assert run.message and "Is a directory" in run.message
        assert stage.journal.pending() == ["acme/site"]

    def test_a_fault_of_our_own_leaves_no_run_in_hand(self, stage: Stage, capfd: pytest.CaptureFixture[str]):
        stage.record("acme/new")
        dispatcher = stage.dispatcher("exit 0", clone=["acme/*"], clone_url="{no such field}")
        assert dispatcher.step("acme/new", "push") is False
        assert [run.outcome for run in stage.runs()] == ["interrupted"]
        assert stage.journal.pending() == ["acme/new"]
        assert " error a run met a fault of our own repository=acme/new run=1 traceback=" in capfd.readouterr().err

    def test_leave_to_clone_is_given_only_where_there_is_no_checkout(self, stage: Stage):
        stage.checkouts("acme/here")
        dispatcher = stage.dispatcher("echo $GITOPS_CLONE_URL", clone=["acme/*"], clone_url="https://x/{repository}")
        for repository in ("acme/here", "acme/new", "evil/new"):
            dispatcher.step(repository, "sweep")
        logs = [stage.journal.log_path(run).read_text().strip() for run in (1, 2, 3)]
        assert logs == ["", "https://x/acme/new", ""]

    @pytest.mark.parametrize(
        ("own", "limit"), [("7", "7"), ("0", "60"), ("-1", "60"), ("x", "60"), ("", "60"), ("9" * 5000, "60")]
    )
    def test_a_checkout_may_set_its_own_limit(self, stage: Stage, own: str, limit: str):
        stage.checkouts("acme/site")
        (stage.root / "acme/site/.git/config").write_text(f'[gitops]\ntimeout = "{own}"\n')
        stage.dispatcher(r"tr '\0' ' ' </proc/$PPID/cmdline").step("acme/site", "sweep")
        assert stage.journal.log_path(1).read_text().split()[2] == limit

    @pytest.mark.parametrize("outcome", ["updated", "unchanged", "cloned", "paused"])
    def test_an_end_that_is_good_is_told_and_no_failure(self, stage: Stage, outcome: str, capfd):
        dispatcher = stage.dispatcher(REPORTS)
        assert dispatcher.failure is None
        dispatcher.step(outcome, "sweep")
        assert dispatcher.failure is None
        (line,) = (line for line in capfd.readouterr().err.splitlines() if f" run {outcome} " in line)
        assert " info run " in line and " commit=abc " in f"{line} " and " exit=" not in line
        assert 100 <= int(line.partition(" ms=")[2].split()[0]) < 1_000_000

    @pytest.mark.parametrize(
        ("script", "level", "outcome"), [("exit 75", "warning", "unreachable"), ("exit 70", "error", "deploy-failed")]
    )
    def test_an_end_that_is_not_is_the_last_failure(self, stage: Stage, script: str, level: str, outcome: str, capfd):
        dispatcher = stage.dispatcher(script)
        run = dispatcher.run_now("acme/site", "manual")
        assert (run.outcome, dispatcher.failure) == (outcome, run)
        (line,) = (line for line in capfd.readouterr().err.splitlines() if f" {level} run {outcome} " in line)
        assert f" exit={script[5:]} " in line

    def test_the_lines_of_a_run_tell_its_story(self, stage: Stage, capfd: pytest.CaptureFixture[str]):
        stage.record(guid="first")
        stage.record(guid="second")
        stage.dispatcher('echo why; echo message=broken >"$GITOPS_RESULT"; sleep 0.1; exit 70').step(
            "acme/site", "push"
        )
        stage.record(guid="third")
        stage.record(guid="fourth")
        stage.dispatcher(f"echo quiet; {REPORTS}").step("acme/site", "push")
        error = capfd.readouterr().err
        assert " info run started repository=acme/site run=1 trigger=push delivery=second deliveries=2" in error
        assert " reason=broken output=why" in error and "quiet" not in error and "XX" not in error
        settled = [line for line in error.splitlines() if " info delivery settled " in line]
        assert " delivery=first " in settled[0] and " delivery=third commit=abc " in settled[1]
        for line in settled:
            assert 100 <= int(line.partition(" ms=")[2]) < 1_000_000

    def test_what_settings_say_is_run(self, stage: Stage, tmp_path: Path):
        stage.write("exit 0")
        given = {"GITHUB_WEBHOOK_SECRET": "s", "GITOPS_ROOT": str(stage.root), "GITOPS_SYNC_SCRIPT": str(stage.script)}
        made = Dispatcher.from_settings(load(given, {}), os.environ, stage.journal, Checkouts(stage.root))
        assert made.run_now("acme/site", "manual").outcome == "updated"

    def test_without_a_delivery_there_are_no_hints(self, stage: Stage):
        stage.dispatcher('echo "${GITOPS_REF-} ${GITOPS_AFTER-} ${GITOPS_DELIVERY-}."').step("acme/site", "sweep")
        assert stage.journal.log_path(1).read_text() == "  .\n"

    def test_what_could_not_be_done_is_told_in_a_sentence(self, stage: Stage):
        dispatcher = stage.dispatcher("exit 0", clone=["acme/*"], clone_url="{no such field}")
        assert (
            dispatcher.run_now("acme/new", "manual").message
            == "A fault of the daemon's own; its log has the traceback."
        )
        stage.journal.log_path(2).mkdir()
        message = dispatcher.run_now("other/site", "manual").message
        assert message and message.startswith("The script could not be started: ")

    def test_once_it_is_to_stop_no_step_runs_anything(self, stage: Stage):
        dispatcher = stage.dispatcher("exit 0")
        dispatcher._stopping.set()
        assert dispatcher.step("acme/site", "sweep") is True
        dispatcher._slots.close()
        assert dispatcher.step("acme/site", "sweep") is True
        assert stage.runs() == []

    def test_a_journal_that_cannot_be_read_says_nothing_of_restarts(self, stage: Stage):
        dispatcher = stage.dispatcher("exit 0")
        stage.journal.close()
        (stage.journal.log_path(1).parents[1] / "journal.db").write_bytes(b"noise" * 1000)
        assert dispatcher._restarts_us("acme/site") is False

    def test_a_run_is_overdue_when_its_limit_and_all_graces_are_past(self, stage: Stage):
        now = [1000.0]
        dispatcher = stage.dispatcher(GATED, clock=lambda: now[0])
        running = threading.Thread(target=dispatcher.step, args=("acme/site", "sweep"))
        running.start()
        stage.began(1)
        assert dispatcher.running == 1
        found = []
        for now[0] in (1000.0, 1100.0, 1100.5):  # 60 s, 10 s to end its group, 30 s to record it
            found.append(dispatcher.overdue())
        stage.open_gate()
        running.join()
        assert found == [[], [], [1]]

    def test_places_that_are_given_back_are_as_many_as_were_taken(self):
        places = FairSemaphore(2)
        with places.one(), places.one():
            assert places._free == 0
        assert places._free == 2


class TestOrder:
    def test_no_repository_overlaps_itself_and_the_cap_holds(self, stage: Stage):
        dispatcher = stage.dispatcher(THREE_AT_ONCE, max_syncs=3)
        names = [f"acme/r{number}" for number in range(6)]
        for round_ in range(8):
            for name in names:
                stage.push(dispatcher, name, f"{name} {round_}")
                dispatcher.notify(name.upper(), "asked")
        until(lambda: not stage.journal.pending() and not dispatcher.workers)
        notes = stage.notes()
        assert most_at_once([note.lower() for note in notes]) == 3
        assert {most_at_once([note.lower() for note in notes], f"r{number}") for number in range(6)} == {1}

    def test_a_busy_repository_keeps_nobody_out(self, stage: Stage):
        dispatcher = stage.dispatcher(GATED, max_syncs=1)
        stage.push(dispatcher, "acme/busy", "1")
        stage.began(1)
        stage.push(dispatcher, "acme/other", "2")
        until(lambda: dispatcher._slots._line)
        stage.push(dispatcher, "acme/busy", "3")
        stage.open_gate(3)
        assert [run.repository for run in stage.wait_for_runs(3)] == ["acme/busy", "acme/other", "acme/busy"]

    def test_pushes_during_a_run_collapse_into_one_more(self, stage: Stage, capfd: pytest.CaptureFixture[str]):
        dispatcher = stage.dispatcher(GATED)
        stage.push(dispatcher, guid="first")
        stage.began(1)
        for number in range(50):
            stage.push(dispatcher, guid=str(number))
        stage.open_gate(2)
        first, second = stage.wait_for_runs(2)
        until(lambda: not dispatcher.workers)
        assert len(stage.runs()) == 2
        assert [stage.journal.deliveries(guid)[0].run for guid in ("first", "0", "49")] == [
            first.id,
            second.id,
            second.id,
        ]
        lines = [line for line in capfd.readouterr().err.splitlines() if "run=2" in line]
        (start,) = [line for line in lines if "run started" in line]
        (end,) = [line for line in lines if "run updated" in line]
        for fact in ("repository=acme/site", "trigger=push", "delivery=49", "deliveries=50"):
            assert fact in start and fact in end
        assert "outcome=updated" in end
        for guid in map(str, range(49)):  # the others, a line each as it starts and as it settles
            about = [
                re.sub(r".* info (delivery [a-z ]+) \w+=.*", r"\1", line)
                for line in lines
                if f"delivery={guid} " in f"{line} "
            ]
            assert about == ["delivery taken up", "delivery settled"]
        assert len(lines) == 2 + 2 * 49

    def test_names_that_differ_in_case_share_a_worker(self, stage: Stage):
        dispatcher = stage.dispatcher(GATED)
        stage.push(dispatcher, "acme/site")
        stage.began(1)
        stage.push(dispatcher, "ACME/Site")
        assert dispatcher.workers == 1
        stage.open_gate(2)
        stage.wait_for_runs(2)


class TestRetry:
    def test_what_is_out_of_reach_is_tried_until_it_is_not(self, stage: Stage):
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

    def test_the_wait_doubles_up_to_its_bound_and_is_spread(self, stage: Stage, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setattr(module, "_FIRST_WAIT", 5.0)
        jitter = [0.0, 1.0]
        dispatcher = stage.dispatcher("exit 75", max_syncs=1)
        dispatcher._jitter = lambda: jitter[0]
        worker, waits = Worker(dispatcher, "acme/site"), []
        for failures in (1, 2, 3, 8, 9, 5000):
            worker._failures = failures
            waits.append(worker._next_timeout())
        assert waits == [wait * 0.75 for wait in (5, 10, 20, 640, 900, 900)]
        jitter.reverse()
        assert worker._next_timeout() == 900 * 1.25

    def test_a_push_cuts_the_wait_short(self, stage: Stage, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setattr(module, "_FIRST_WAIT", 3600.0)
        dispatcher = stage.dispatcher("exit 75")
        stage.push(dispatcher, guid="a")
        stage.wait_for_runs(1)
        stage.write("exit 0")
        stage.push(dispatcher, guid="b")
        assert [run.outcome for run in stage.wait_for_runs(2)] == ["unreachable", "updated"]
        assert stage.journal.pending() == []

    def test_a_delivery_s_lines_do_not_grow_with_the_tries(self, stage: Stage, capfd: pytest.CaptureFixture[str]):
        dispatcher = stage.dispatcher("exit 75")
        for guid in ("one", "two"):
            stage.record(guid=guid)
        for _ in range(3):
            assert dispatcher.step("acme/site", "retry") is False
        stage.write("exit 0")
        assert dispatcher.step("acme/site", "retry") is True
        lines = [line for line in capfd.readouterr().err.splitlines() if "delivery=one" in line]
        assert [re.findall(r" info (.*?) \w+=|run=(\d)", line) for line in lines] == [
            [("delivery taken up", ""), ("", "1")],
            [("delivery settled", ""), ("", "4")],
        ]

    def test_what_failed_for_good_is_not_tried_again(self, stage: Stage):
        dispatcher = stage.dispatcher("exit 65")
        stage.push(dispatcher)
        until(lambda: stage.wait_for_runs(1) and not dispatcher.workers)
        assert [run.outcome for run in stage.runs()] == ["diverged"]
        assert stage.journal.pending() == []

    def test_what_could_not_start_is_tried_again(self, stage: Stage):
        dispatcher = stage.dispatcher("exit 0")
        logs = stage.journal.log_path(1).parent
        logs.rename(logs.with_name("elsewhere"))
        stage.push(dispatcher)
        stage.wait_for_runs(2)
        assert stage.journal.pending() == ["acme/site"]
        logs.mkdir()
        until(lambda: not stage.journal.pending())
        assert stage.runs()[-1].outcome == "updated"

    def test_what_a_journal_that_fails_holds_up_runs_once_it_heals(self, stage: Stage, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setattr(module, "_FIRST_WAIT", 3600.0)
        monkeypatch.setattr(module, "_JOURNAL_WAIT", 0.01)
        monkeypatch.setattr(journal, "_BUSY_MS", 20)
        stage.journal.close()
        stage.journal = Journal(stage.folder / "state")
        dispatcher = stage.dispatcher("exit 0")
        stage.record()
        with closing(sqlite3.connect(stage.folder / "state/journal.db", isolation_level=None)) as neighbour:
            neighbour.execute("BEGIN IMMEDIATE")
            dispatcher.notify("acme/site")
            until(lambda: stage.journal.fault)
        assert [run.outcome for run in stage.wait_for_runs(1)] == ["updated"]

    def test_a_journal_that_fails_while_a_run_ends_has_it_once_it_heals(
        self, tmp_path: Path, stage: Stage, monkeypatch: pytest.MonkeyPatch
    ):
        stage.journal.close()
        monkeypatch.setattr(journal, "_BUSY_MS", 20)
        stage.journal = Journal(tmp_path / "state")
        dispatcher = stage.dispatcher(GATED)
        stage.push(dispatcher)
        stage.began(1)
        with closing(sqlite3.connect(tmp_path / "state/journal.db", isolation_level=None)) as neighbour:
            neighbour.execute("BEGIN IMMEDIATE")
            stage.open_gate()
            until(lambda: stage.journal.fault)
            assert [run.outcome for run in stage.runs()] == [None]
        assert [run.outcome for run in stage.wait_for_runs(1)] == ["updated"]
        assert stage.journal.pending() == []
        assert len(stage.notes()) == 2


class TestWorkers:
    def test_they_go_when_idle_and_come_when_needed(self, stage: Stage):
        dispatcher = stage.dispatcher("exit 0")
        for number in range(3):
            stage.push(dispatcher)
            stage.wait_for_runs(number + 1)
            until(lambda: not dispatcher.workers)

    def test_a_wake_up_as_a_worker_goes_is_not_lost(self, stage: Stage, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setattr(module, "_IDLE", 0.0005)
        dispatcher = stage.dispatcher("exit 0")
        dispatcher.step = lambda repository, trigger: True  # type: ignore[method-assign]
        for number in range(2000):
            done = threading.Event()
            dispatcher.notify("acme/site", "asked", done.set)
            assert done.wait(10), number
            if number % 3:
                time.sleep(0.0005)  # about when it goes

    def test_an_exception_does_not_end_a_worker(self, stage: Stage, capfd: pytest.CaptureFixture[str]):
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

    def test_one_that_cannot_start_is_made_good_by_a_reminder(self, stage: Stage, monkeypatch: pytest.MonkeyPatch):
        dispatcher = stage.dispatcher("exit 0")

        def no_thread(self: threading.Thread) -> None:
            raise RuntimeError("can't start new thread")

        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", no_thread)
            stage.push(dispatcher)
        assert dispatcher.workers == 0
        dispatcher.reconcile()
        stage.wait_for_runs(1)

    def test_a_turn_is_one_wait_and_what_it_asks_for(self, stage: Stage):
        dispatcher = stage.dispatcher("exit 75")
        worker = Worker(dispatcher, "acme/site")
        dispatcher._workers["acme/site"] = worker
        stage.record()
        dispatcher.notify("acme/site")
        assert worker.run_once() is True
        stage.write("exit 0")
        assert worker.run_once() is True
        assert worker.run_once() is False
        assert [(run.trigger, run.outcome) for run in stage.runs()] == [("push", "unreachable"), ("retry", "updated")]
        assert dispatcher.workers == 0

    def test_of_several_wake_ups_one_that_is_no_push_has_its_way(self, stage: Stage):
        dispatcher = stage.dispatcher("exit 0")
        worker = dispatcher._workers["acme/site"] = Worker(dispatcher, "acme/site")
        for trigger, waiting in (("push", 1), ("push", 1), ("sync", 2), ("push", 2)):
            dispatcher.notify("acme/site", trigger)
            assert worker.queue.qsize() == waiting
        assert worker.run_once() is True
        assert worker.queue.empty()
        assert [run.trigger for run in stage.runs()] == ["sync"]
        del dispatcher._workers["acme/site"]  # it has no thread to wait for

    def test_each_try_that_settles_nothing_counts_once(self, stage: Stage, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setattr(module, "_IDLE", IDLE)
        monkeypatch.setattr(module, "_FIRST_WAIT", FIRST_WAIT)
        dispatcher = stage.dispatcher("exit 75", clock=lambda: 1000.0)
        worker = dispatcher._workers["acme/site"] = Worker(dispatcher, "acme/site")
        dues = [worker.due]
        for trigger in ("sync", "sync", "sync"):
            worker.queue.put(WakeUp(trigger))
            worker.run_once()
            dues.append(worker.due)
        assert dues == [1001.0, 1005.0, 1010.0, 1020.0]
        monkeypatch.setattr(dispatcher, "step", None)  # a fault of our own
        worker.queue.put(WakeUp("sync"))
        worker.run_once()
        assert worker._failures == 4
        del dispatcher._workers["acme/site"]

    def test_its_thread_tells_whose_it_is_and_keeps_no_process_alive(self, stage: Stage):
        thread = Worker(stage.dispatcher("exit 0"), "acme/site").thread
        assert (thread.name, thread.daemon) == ("worker acme/site", True)

    def test_a_reminder_where_nothing_is_amiss_asks_for_nothing(self, stage: Stage):
        stage.checkouts("acme/site")
        dispatcher = stage.dispatcher("exit 0")
        dispatcher.reconcile()
        assert dispatcher.workers == 0

    def test_a_sweep_takes_one_place_of_two(self, stage: Stage):
        stage.checkouts("acme/a", "acme/b", "acme/c")
        dispatcher = stage.dispatcher(GATED, max_syncs=2)
        dispatcher.sweep()
        stage.began(1)
        assert dispatcher.workers == 1

    def test_a_thousand_repositories_leave_no_thread_and_owe_nothing(self, stage: Stage):
        dispatcher = stage.dispatcher("exit 0", max_syncs=4)
        dispatcher._runner._script = Path("/bin/true")
        for number in range(1000):
            stage.push(dispatcher, f"acme/r{number}")
        until(lambda: not stage.journal.pending())
        assert set(Counter(run.repository for run in stage.runs()).values()) == {1}
        assert len(stage.runs()) == 1000
        until(lambda: not dispatcher.workers)


class TestStart:
    def test_it_takes_up_what_an_earlier_daemon_left(self, stage: Stage, capfd: pytest.CaptureFixture[str]):
        stage.record("acme/owed")
        assert stage.journal.start("acme/owed", "push")
        stage.checkouts("acme/swept")
        stage.dispatcher("exit 0").start()
        runs = stage.wait_for_runs(3)
        assert {(run.repository, run.trigger, run.outcome) for run in runs} == {
            ("acme/owed", "push", "interrupted"),
            ("acme/owed", "recovery", "updated"),
            ("acme/swept", "sweep", "updated"),
        }
        assert stage.journal.pending() == []
        err = capfd.readouterr().err
        assert "run interrupted repository=acme/owed run=1 outcome=interrupted" in err and "deliveries are owed" in err

    def test_a_sweep_covers_every_checkout_on_half_the_places(self, stage: Stage):
        names = [f"acme/r{number}" for number in range(12)] + ["flat"]
        stage.checkouts(*names)
        stage.dispatcher(TWO_AT_ONCE, max_syncs=4).sweep()
        assert sorted(run.repository for run in stage.wait_for_runs(13)) == sorted(names)
        assert most_at_once(stage.notes()) == 2

    def test_a_sweep_passes_over_checkouts_that_fail(self, stage: Stage, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setattr(module, "_FIRST_WAIT", 3600.0)
        stage.checkouts(*(f"acme/r{number}" for number in range(6)))
        stage.dispatcher("exit 75", max_syncs=1).sweep()
        assert len(stage.wait_for_runs(6)) == 6

    def test_a_reminder_repairs_a_wake_up_that_was_lost(self, stage: Stage):
        dispatcher = stage.dispatcher("exit 0")
        stage.record()
        dispatcher.reconcile()
        assert [run.outcome for run in stage.wait_for_runs(1)] == ["updated"]

    @pytest.mark.parametrize("script", ["exit 75", "kill -KILL $$"])
    def test_a_reminder_tries_again_what_a_command_left_unsettled(self, stage: Stage, script: str):
        stage.dispatcher(script).run_now("acme/left", "sweep")
        dispatcher = stage.dispatcher("exit 0")
        dispatcher.run_now("acme/fine", "sweep")
        dispatcher.reconcile()
        assert dispatcher.workers == 0, "whoever did it may do it again himself"
        stage.journal.now = lambda: time.time() + 61
        dispatcher.reconcile()
        last = stage.wait_for_runs(3)[-1]
        assert (last.repository, last.trigger, last.outcome) == ("acme/left", "retry", "updated")
        until(lambda: not dispatcher.workers)
        stage.journal.now = lambda: time.time() + 3600
        dispatcher.reconcile()
        assert dispatcher.workers == 0

    def test_a_reminder_ends_no_run_whose_limit_cannot_be_looked_up(self, stage: Stage, monkeypatch):
        stage.checkouts("acme/site")
        claim = stage.journal.start("acme/site", "manual")
        assert claim
        stage.journal.now = lambda: time.time() + 99999
        dispatcher = stage.dispatcher("exit 0")
        monkeypatch.setenv("PATH", "/nonexistent")
        dispatcher.reconcile()
        assert stage.runs() == [claim.run]
        monkeypatch.undo()
        dispatcher.reconcile()
        assert [run.outcome for run in stage.runs()] == ["interrupted"]

    def test_a_reminder_leaves_alone_what_has_a_worker_and_what_was_given_up(self, stage: Stage, monkeypatch):
        monkeypatch.setattr(module, "_FIRST_WAIT", 3600.0)
        dispatcher = stage.dispatcher("exit 75")
        dispatcher.notify("acme/waits", "sweep")
        stage.wait_for_runs(1)
        for _ in range(3):
            claim = stage.journal.start("acme/restarts", "sweep")
            assert claim
            ended = claim.run._replace(ended=time.time(), outcome="interrupted", cause="shutdown")
            stage.journal.finish(ended, settled=False)
        stage.journal.now = lambda: time.time() + 61
        dispatcher.reconcile()
        assert [*dispatcher._workers] == ["acme/waits"]
        assert dispatcher._workers["acme/waits"].queue.empty()

    def test_a_reminder_ends_the_runs_of_commands_that_were_killed(self, stage: Stage, capfd):
        stage.checkouts("acme/patient")
        (stage.root / "acme/patient/.git/config").write_text("[gitops]\ntimeout = 120\n")
        dispatcher = stage.dispatcher("exit 0")  # 60 s, 10 s to end its group, 30 s to record it
        stage.record("acme/dead")
        for repository, ago in (("acme/dead", 103), ("acme/lives", 91), ("acme/patient", 103), ("acme/ours", 999)):
            stage.journal.now = lambda ago=ago: time.time() - ago
            claim = stage.journal.start(repository, "manual")
        assert claim
        dispatcher._due[claim.run.id] = 0.0
        stage.journal.now = time.time
        dispatcher.reconcile()
        dead, *others = stage.wait_for_runs(2)
        assert (dead.outcome, dead.cause) == ("interrupted", "killed")
        assert [(run.repository, run.outcome) for run in others] == [
            ("acme/lives", None), ("acme/patient", None), ("acme/ours", None), ("acme/dead", "updated"),
        ]  # fmt: skip
        assert "run interrupted repository=acme/dead run=1 outcome=interrupted" in capfd.readouterr().err
        stage.journal.finish(dead._replace(outcome="updated", message="it lived"), settled=True)
        assert stage.runs()[0].message == "it lived"

    def test_after_a_damaged_journal_every_checkout_is_looked_at(self, stage: Stage):
        stage.checkouts("acme/a", "acme/b")
        dispatcher = stage.dispatcher("exit 0")
        stage.record("acme/lost")
        (stage.folder / "state/journal.db").write_bytes(b"noise" * 5000)
        os.truncate(stage.folder / "state/journal.db-wal", 0)
        with suppress(module.JournalError):
            dispatcher.reconcile()
        assert stage.journal.replacements == 1
        dispatcher.reconcile()
        stage.wait_for_runs(2)
        dispatcher.reconcile()
        until(lambda: not dispatcher.workers)
        assert len(stage.runs()) == 2


class TestStop:
    def test_nothing_more_starts_and_the_rest_stays_owed(self, stage: Stage):
        dispatcher = stage.dispatcher(GATED, max_syncs=1)
        stage.push(dispatcher, "acme/in-hand")
        stage.began(1)
        stage.push(dispatcher, "acme/in-line")
        until(lambda: dispatcher._slots._line)
        dispatcher.stop()
        stage.push(dispatcher, "acme/late")
        assert dispatcher.join(0.01) is False
        stage.open_gate()
        assert dispatcher.join(20) is True
        assert [(run.repository, run.outcome) for run in stage.runs()] == [("acme/in-hand", "updated")]
        assert sorted(stage.journal.pending()) == ["acme/in-line", "acme/late"]

    def test_a_retry_that_waits_does_not_hold_it_up(self, stage: Stage, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setattr(module, "_FIRST_WAIT", 3600.0)
        dispatcher = stage.dispatcher("exit 75")
        stage.push(dispatcher)
        stage.wait_for_runs(1)
        dispatcher.stop()
        assert dispatcher.join(20) is True

    @pytest.mark.parametrize("answer", ["", "trap 'exit 70' TERM;", "trap 'exit 75' TERM;"])
    def test_a_run_that_it_ends_stays_owed_whatever_the_script_answers(self, stage: Stage, answer: str):
        dispatcher = stage.dispatcher(answer + GATED)
        stage.push(dispatcher)
        stage.began(1)
        dispatcher.stop()
        dispatcher.terminate()
        assert dispatcher.join(20) is True
        assert [(run.outcome, run.cause) for run in stage.runs()] == [("interrupted", "shutdown")]
        assert stage.journal.pending() == ["acme/site"]

    def test_a_run_that_ends_well_in_spite_of_it_is_done(self, stage: Stage):
        # The moment is for timeout(1), which itself ends at a TERM that meets it between fork and wait.
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
        ("end", "outcome", "message"),
        [
            (
                "kill -KILL $$",
                "interrupted",
                "The daemon's shutdown ended this run; it is done again at the next start.",
            ),
            ("exit 70", "deploy-failed", ""),
        ],
    )
    def test_a_run_that_fails_while_it_waits_is_judged_by_how(self, stage: Stage, end: str, outcome: str, message: str):
        dispatcher = stage.dispatcher(f"{GATED}; {end}")
        stage.push(dispatcher)
        stage.began(1)
        dispatcher.stop()
        stage.open_gate()
        assert dispatcher.join(20) is True
        assert [(run.outcome, run.message) for run in stage.runs()] == [(outcome, message)]

    def test_every_worker_is_told(self, stage: Stage):
        dispatcher = stage.dispatcher("exit 0")
        worker = Worker(dispatcher, "acme/site")
        dispatcher._workers["acme/site"] = worker
        dispatcher.stop()
        assert worker.queue.queue[0] == WakeUp("stop")
        assert worker.run_once() is False
        del dispatcher._workers["acme/site"]  # it has no thread to wait for

    def end_three_times(self, stage: Stage) -> None:
        stage.record(guid="first")
        for number in range(3):
            dispatcher = stage.dispatcher(GATED)
            dispatcher.start()
            stage.began(number + 1)
            dispatcher.stop()
            dispatcher.terminate()
            assert dispatcher.join(20)
        assert stage.journal.pending() == ["acme/site"]

    def test_a_deploy_that_restarts_the_daemon_is_given_up_loudly(self, stage: Stage, capfd):
        self.end_three_times(stage)
        stage.checkouts("acme/site")
        dispatcher = stage.dispatcher("exit 0")
        dispatcher.start()
        assert stage.journal.pending() == []
        said = (
            " error \"its runs end only by the daemon's shutdown, so it waits for a push; a deploy that restarts the daemon"
            ' must not wait for it: systemctl --no-block restart gitops-hook" '
        )
        assert capfd.readouterr().err.replace('"', "").count(said.replace('"', "")) == 1
        assert dispatcher._restarts_us("acme/site") is True
        stage.push(dispatcher, guid="remedy")
        assert [run.outcome for run in stage.wait_for_runs(4)] == 3 * ["interrupted"] + ["updated"]
        assert stage.runs()[-1].trigger == "push", "no sweep in between"

    def test_a_push_that_came_since_has_its_run(self, stage: Stage):
        self.end_three_times(stage)
        stage.record(guid="remedy")
        stage.dispatcher("exit 0").start()
        assert stage.wait_for_runs(4)[-1].outcome == "updated"
        assert stage.journal.pending() == []


class Noting:
    """A observer that keeps what it was told, and may have a fault of its own."""

    def __init__(self, journal: Journal, fault: bool = False) -> None:
        self.journal = journal
        self.fault = fault
        self.told: list[tuple[str, int, str | None]] = []

    def began(self, claim: Claim, task: Task) -> None:
        self.note("began", claim.run.id)

    def ended(self, run: Run, claim: Claim, task: Task) -> None:
        assert (run.id, task.run) == (claim.run.id, claim.run.id)
        self.note("ended", run.id)

    def note(self, what: str, run: int) -> None:
        known = self.journal.run(run)
        self.told.append((what, run, known.outcome if known else "not in the journal"))
        if self.fault:
            raise ValueError("a observer of the test")


def test_witnesses_are_told_of_each_run_and_their_faults_harm_nothing(stage: Stage, capfd: pytest.CaptureFixture):
    observers = [Noting(stage.journal, fault=True), Noting(stage.journal)]
    dispatcher = stage.dispatcher("exit 0", observers=observers)
    stage.push(dispatcher)
    until(lambda: len(observers[1].told) == 2)
    (run,) = stage.runs()
    expected = [("began", run.id, None), ("ended", run.id, "updated")]
    assert [observer.told for observer in observers] == [expected, expected]
    assert capfd.readouterr().err.count(" error a observer of runs met a fault observer=") == 2
