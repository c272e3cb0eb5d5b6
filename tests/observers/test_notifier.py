"""The notifier: which notice is sent when, across failures of the command, restarts and kills."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from harness import SECRET, SOURCE, Daemon, push, until
from scratch import Upstream

from gitops_hook.journal.writer import Journal
from gitops_hook.model import NoticeState, Run
from gitops_hook.observers import notifier as module
from gitops_hook.observers.notifier import PATIENCE, REPEAT, Notifier
from gitops_hook.sync.checkouts import Checkouts
from gitops_hook.sync.runner import Task

NOW = 1_700_000_000.0
#: Appends the facts of each notice to a file, one line each.
NOTES = 'read -r facts; echo "$facts" >> "$0.notes"'


def notice_state(outcome: str, ago: float) -> NoticeState:
    return NoticeState("acme/site", outcome, NOW - ago, NOW - ago)


class Desk:
    """A notifier, a journal, and a command that stores the facts it receives."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.now = NOW
        (folder / "root/acme/site/.git").mkdir(parents=True)
        self.command = folder / "command"
        self.write(NOTES)
        self.open()

    def open(self) -> None:
        self.journal = Journal(self.folder / "state")
        environment = {"PATH": os.environ["PATH"]}
        self.notices = Notifier(
            self.journal,
            Checkouts(self.folder / "root"),
            [str(self.command)],
            environment,
            clock=lambda: self.now,
            jitter=lambda: 0.5,
        )

    def restart(self) -> None:
        self.journal.close()
        self.open()

    def write(self, text: str) -> None:
        new = self.folder / "new"
        new.write_text(f"#!/bin/bash\n{text}\n")
        new.chmod(0o755)
        new.rename(self.command)

    def run(self, outcome: str, repository: str = "acme/site", **more: object) -> Run:
        claim = self.journal.start(repository, "push")
        assert claim
        run = claim.run._replace(**{"outcome": outcome, "ended": self.now, "exit": 0, **more})
        self.journal.finish(run, settled=True)
        self.notices.ended(run, claim, Task(repository, run.id))
        return run

    def record(self, *ends: tuple[str, float], cause: str | None = None) -> None:
        """Store runs of acme/site that ended with these outcomes, so many seconds ago, oldest first."""
        for outcome, ago in ends:
            claim = self.journal.start("acme/site", "push")
            assert claim
            ended = claim.run._replace(ended=NOW - ago, outcome=outcome, exit=0, cause=cause)
            self.journal.finish(ended, settled=True)

    def sent(self) -> list[tuple[str, str, str]]:
        return [(facts["notice"], facts["repository"], facts["outcome"]) for facts in self.facts()]

    def facts(self) -> list[dict[str, object]]:
        notes = Path(f"{self.command}.notes")
        return [json.loads(line) for line in notes.read_text().splitlines()] if notes.exists() else []


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    made = Desk(tmp_path)
    yield made
    made.journal.close()


class TestWhichNotice:
    def test_a_loop_and_a_new_name_are_reported_although_the_outcome_is_good(self, desk: Desk):
        for cause in (None, "loop", "loop", "renamed", None):
            desk.run("updated", cause=cause, message="why")
            desk.notices.run_once()
        assert [fact["notice"] for fact in desk.facts()] == ["failing", "changed", "well"]
        assert [fact["outcome"] for fact in desk.facts()] == ["loop", "renamed", "updated"]
        assert desk.facts()[0]["since"] == desk.facts()[1]["since"]

    @pytest.mark.parametrize(
        ("ends", "known", "kind"),
        [
            ([("updated", 5)], None, None),
            ([("deploy-failed", 5)], None, "failing"),
            ([("updated", 9), ("dirty", 5)], None, "failing"),
            ([("dirty", 5)], ("dirty", 5), None),
            ([("dirty", 9), ("dirty", 5)], ("dirty", 9), None),
            ([("dirty", 9), ("diverged", 5)], ("dirty", 9), "changed"),
            ([("dirty", REPEAT)], ("dirty", REPEAT - 1), None),
            ([("dirty", REPEAT)], ("dirty", REPEAT), "still"),
            ([("dirty", 9), ("unchanged", 5)], ("dirty", 9), "well"),
            ([("dirty", 9), ("unchanged", 5)], None, None),  # over before a notice was sent
            ([("unreachable", 0)], None, None),
            ([("unreachable", PATIENCE - 1), ("unreachable", 0)], None, None),
            ([("unreachable", PATIENCE), ("unreachable", 0)], None, "failing"),
            ([("unreachable", PATIENCE), ("updated", 100), ("unreachable", 0)], None, None),
            ([("dirty", 500), ("unreachable", 5)], ("dirty", 500), None),  # not long enough to be another reason
            ([("dirty", 5000), ("unreachable", 2000), ("unreachable", 5)], ("dirty", 5000), "changed"),
            ([("dirty", 5000), ("unreachable", 2000), ("unreachable", 5)], ("unreachable", 500), None),
            ([("dirty", 500), ("paused", 5)], None, None),
            ([("dirty", REPEAT), ("paused", 5)], ("dirty", REPEAT), None),
            ([("paused", 5)], ("dirty", 9), None),
            ([("dirty", 9), ("paused", 7), ("updated", 5)], ("dirty", 9), "well"),
            ([], None, None),
            ([("interrupted", 5)], None, None),  # killed by somebody, and done again
            ([("interrupted", PATIENCE), ("interrupted", 0)], None, "failing"),
        ],
    )
    def test_the_runs_and_the_last_notice_decide(
        self, desk: Desk, ends: list[tuple[str, float]], known: tuple[str, float] | None, kind: str | None
    ):
        desk.record(*ends)
        if known:
            desk.journal.record_notice(notice_state(*known))
        desk.notices.run_once(["acme/site"])
        assert [notice for notice, _, _ in desk.sent()] == ([kind] if kind else [])

    @pytest.mark.parametrize("cause", ["shutdown", "command", "killed", "cancelled"])
    def test_a_run_that_ended_with_its_process_is_no_failure(self, desk: Desk, cause: str):
        desk.record(("interrupted", PATIENCE), ("interrupted", 0), cause=cause)
        desk.notices.run_once(["acme/site"])
        assert desk.sent() == []

    def test_a_failure_starts_with_the_first_failed_run(self, desk: Desk):
        desk.record(("updated", 90), ("dirty", 80), ("paused", 70), ("diverged", 60))
        desk.notices.run_once(["acme/site"])
        assert [facts["since"] for facts in desk.facts()] == ["2023-11-14T22:12:00Z"]

    def test_a_remote_that_is_unreachable_for_many_runs_is_a_failure(self, desk: Desk):
        """A push every four seconds makes more runs in a quarter of an hour than any fixed number."""
        desk.record(("updated", 2000), *(("unreachable", 1200.0 - 4 * number) for number in range(300)))
        desk.notices.run_once(["acme/site"])
        assert [(facts["notice"], facts["since"]) for facts in desk.facts()] == [("failing", "2023-11-14T21:53:20Z")]


@contextmanager
def standard_error_in(path: Path) -> Iterator[None]:
    """Have it in a file, to be read as it grows: a look by `capfd` loses what is written in that moment."""
    kept = os.dup(2)
    with path.open("w") as file:
        os.dup2(file.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


class TestSending:
    def test_a_failure_from_start_to_end(self, desk: Desk):
        for step in ("updated", "dirty", "dirty", "diverged", "unchanged", "unchanged"):
            desk.run(step)
            desk.notices.run_once([])
        assert [sent[::2] for sent in desk.sent()] == [
            ("failing", "dirty"), ("changed", "diverged"), ("well", "unchanged"),
        ]  # fmt: skip

    def test_a_failure_that_continues_is_repeated_daily(self, desk: Desk):
        desk.run("dirty")
        for hour in range(24 * 3):
            desk.now = NOW + hour * 3600
            desk.notices.run_once([])
        assert [kind for kind, _, _ in desk.sent()] == ["failing", "still", "still"]

    def test_a_restart_repeats_nothing_and_loses_nothing(self, desk: Desk):
        desk.run("dirty")
        desk.restart()  # no notice was sent yet
        desk.notices.run_once([])
        desk.restart()
        desk.notices.run_once([])
        desk.run("updated")
        desk.restart()
        desk.notices.run_once([])
        desk.restart()
        desk.notices.run_once([])
        assert [kind for kind, _, _ in desk.sent()] == ["failing", "well"]

    def test_a_failure_that_ended_before_its_notice_causes_none(self, desk: Desk):
        desk.run("dirty")
        desk.run("updated")
        desk.notices.run_once([])
        assert desk.sent() == []

    def test_names_that_differ_in_case_are_one_repository(self, desk: Desk):
        desk.run("dirty")
        desk.notices.run_once(["acme/site"])
        desk.run("dirty", "Acme/Site")
        desk.notices.run_once(["Acme/Site"])
        desk.run("updated", "ACME/SITE")
        desk.notices.run_once([])
        assert [kind for kind, _, _ in desk.sent()] == ["failing", "well"]

    def test_a_deleted_checkout_is_not_repeated_daily(self, desk: Desk):
        desk.run("dirty")
        desk.notices.run_once([])
        shutil.rmtree(desk.folder / "root/acme/site")
        desk.now += REPEAT
        desk.notices.run_once([])
        assert len(desk.sent()) == 1

    def test_the_notice_about_an_unknown_repository_is_deleted(self, desk: Desk):
        desk.journal.record_notice(NoticeState("acme/past", "dirty", NOW, NOW))
        desk.notices.run_once([])
        assert (desk.journal.notices(), desk.sent()) == ({}, [])

    def test_the_command_receives_the_facts_as_variables_and_json(self, desk: Desk):
        desk.write('env -0 > "$0.env"; cat > "$0.json"')
        run = desk.run("deploy-failed", after="a" * 40, message="it $(failed) 'so'", exit=70)
        desk.journal.log_path(run.id).write_text("first\n\x1b[31mlast\n")
        desk.notices.run_once([])
        facts = json.loads(Path(f"{desk.command}.json").read_text())
        assert facts == {
            "notice": "failing",
            "summary": f"acme/site on {socket.gethostname()} fails: deploy-failed",
            "host": socket.gethostname(),
            "repository": "acme/site",
            "outcome": "deploy-failed",
            "previous": None,
            "since": "2023-11-14T22:13:20Z",
            "run": run.id,
            "commit": "a" * 40,
            "message": "it $(failed) 'so'",
            "output": "first\nlast",
        }
        environment = dict(line.split("=", 1) for line in Path(f"{desk.command}.env").read_text().split("\0") if line)
        shells_own = {"PWD", "SHLVL", "_", "PATH", "OLDPWD"}
        assert {name: value for name, value in environment.items() if name not in shells_own} == {
            f"GITOPS_{name.upper()}": str(value) for name, value in facts.items() if value is not None
        }

    def test_a_failed_notice_is_retried_and_does_not_delay_others(self, desk: Desk, capfd):
        desk.write(f"[[ $GITOPS_REPOSITORY != acme/site ]] || {{ echo no route; exit 7; }}; {NOTES}")
        desk.run("dirty")
        desk.notices.run_once([])
        desk.run("dirty", "acme/other")
        desk.notices.run_once([])  # all wait
        assert desk.sent() == []
        line = capfd.readouterr().err
        assert re.search(r'error notice failed repository=acme/site .*reason="exit 7" output="no route"', line)
        desk.now += 60
        desk.notices.run_once([])
        assert desk.sent() == [("failing", "acme/other", "dirty")]
        desk.write(NOTES)
        desk.now += 60
        desk.notices.run_once([])
        assert desk.sent()[1:] == [("failing", "acme/site", "dirty")]

    def test_a_command_that_hangs_is_ended_with_its_children(self, desk: Desk, monkeypatch, capfd):
        monkeypatch.setattr(module, "LIMIT", 1)
        desk.write('sleep 1000 & echo $! > "$0.pid"; wait')
        desk.run("dirty")
        desk.notices.run_once([])
        assert 'reason="no end within 1 s"' in capfd.readouterr().err
        cmdline = Path(f"/proc/{Path(f'{desk.command}.pid').read_text().strip()}/cmdline")
        until(lambda: not cmdline.exists() or not cmdline.read_text())  # a dead one has none, though nobody reaped it

    def test_a_command_that_cannot_be_started_is_logged(self, desk: Desk, capfd):
        desk.command.unlink()
        desk.run("dirty")
        desk.notices.run_once([])
        assert "notice failed" in capfd.readouterr().err

    def test_no_run_waits_for_a_notice(self, desk: Desk):
        os.mkfifo(f"{desk.command}.gate")
        desk.write(f'read -r _ < "$0.gate"; {NOTES}')
        desk.notices.start()
        for _ in range(3):
            desk.run("dirty")
        desk.run("updated", "acme/other")
        assert desk.sent() == []
        Path(f"{desk.command}.gate").write_text("\n")
        until(desk.journal.notices)
        assert desk.sent() == [("failing", "acme/site", "dirty")]
        desk.run("updated")
        Path(f"{desk.command}.gate").write_text("\n")
        until(lambda: not desk.journal.notices())
        desk.notices.stop(20)
        assert not desk.notices._thread.is_alive()

    def test_an_unreadable_journal_does_not_end_the_thread(self, desk: Desk, tmp_path: Path):
        desk.notices.start()
        journal, away = desk.folder / "state/journal.db", desk.folder / "state/away"
        desk.run("dirty", "acme/other")
        until(desk.journal.notices)
        journal.rename(away)
        with standard_error_in(tmp_path / "stderr"):
            desk.notices.look()
            until(lambda: "notices cannot be looked up" in (tmp_path / "stderr").read_text())
        away.rename(journal)
        desk.run("dirty")
        until(lambda: len(desk.journal.notices()) == 2)
        desk.notices.stop(20)
        assert not desk.notices._thread.is_alive()


# -- a real daemon -------------------------------------------------------------------------------------------------


@pytest.fixture
def noting(tmp_path: Path, script) -> Callable[[], list[dict[str, str]]]:
    """The notices that a daemon's command has received."""
    script(NOTES, "notify")
    notes = tmp_path / "notify.notes"

    def received() -> list[dict[str, str]]:
        return [json.loads(line) for line in notes.read_text().splitlines()] if notes.exists() else []

    return received


def test_a_daemon_reports_a_failed_deploy_and_its_end(tmp_path, start_daemon, noting, hook):
    upstream = Upstream(tmp_path / "forge")
    daemon: Daemon = start_daemon(GITOPS_NOTIFY=f"{tmp_path}/notify 'with an argument'")
    upstream.checkout(daemon.root, deploy="cat page")
    for number in range(2):
        daemon.deliver(push("acme/site", upstream.commit({"a": str(number)})))
        daemon.wait_for("run deploy-failed ")
        if number == 0:
            daemon.wait_for("notice sent repository=acme/site run=1 outcome=deploy-failed notice=failing")
    assert daemon.stop() == 0
    daemon.start()  # its sweep fails again, and no notice is sent again
    daemon.wait_for("run deploy-failed .*trigger=sweep")
    assert daemon.stop() == 0
    # A sync from the command line, while no daemon runs, is reported by the next one.
    upstream.commit({"page": "hello"})
    hook("sync", "acme/site")
    daemon.start()
    daemon.wait_for("notice sent .*notice=well")
    assert daemon.stop() == 0
    failing, well = noting()
    assert (failing["notice"], failing["outcome"]) == ("failing", "deploy-failed")
    assert well["notice"] == "well"
    assert "page" in failing["output"] and failing["message"]
    assert (well["previous"], well["since"]) == ("deploy-failed", failing["since"])
    assert SECRET not in json.dumps(noting())


def test_a_daemon_killed_during_a_notice_sends_it_again(tmp_path, start_daemon, script):
    os.mkfifo(tmp_path / "gate")
    script(f'echo $$ >> "$0.begun"; read -r _ < {tmp_path}/gate; {NOTES}', "notify")
    daemon = start_daemon(GITOPS_NOTIFY=f"{tmp_path}/notify", GITOPS_SYNC_SCRIPT=script("exit 65"))
    (daemon.root / "acme/site/.git").mkdir(parents=True)
    daemon.deliver(push("acme/site"))
    begun = tmp_path / "notify.begun"
    until(lambda: begun.exists() and begun.read_text())
    daemon.kill()
    (first,) = begun.read_text().split()
    until(lambda: not Path(f"/proc/{first}").exists(), "the command outlived its daemon")
    daemon.start()
    until(lambda: len(begun.read_text().split()) == 2)
    (tmp_path / "gate").write_text("\n")
    daemon.wait_for("notice sent ")
    assert len((tmp_path / "notify.notes").read_text().splitlines()) == 1


def test_a_missing_command_ends_the_start(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "gitops_hook", "serve"],
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(SOURCE), "GITHUB_WEBHOOK_SECRET": "x",
             "GITOPS_ROOT": str(tmp_path), "GITOPS_NOTIFY": "/nonexistent/mail ops"},
        capture_output=True,
        text=True,
    )  # fmt: skip
    assert done.returncode == 78
    assert "GITOPS_NOTIFY='/nonexistent/mail ops' from the environment is invalid: the program" in done.stderr
