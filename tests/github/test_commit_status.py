"""What the forge is told of each run: which commit, which words; through faults, limits, restarts and other processes."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fake_github import TOKEN, Fault, Forge
from harness import push
from scratch import Upstream, git

from gitops_hook.config import load
from gitops_hook.github.commit_status import CommitStatusReporter, CommitStatusSender, _reports
from gitops_hook.journal.writer import Journal
from gitops_hook.model import Claim, CommitStatus, Delivery, Run
from gitops_hook.sync.checkouts import Checkouts
from gitops_hook.sync.runner import Task

A, B = "a" * 40, "b" * 40
HOST = socket.gethostname()


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    opened = Journal(tmp_path / "state")
    yield opened
    opened.close()


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """One that was cloned from the forge, as far as its config tells."""
    path = tmp_path / "root/acme/site"
    path.mkdir(parents=True)
    git("init", "--quiet", cwd=path)
    return path


@pytest.fixture
def make_sender(tmp_path: Path, journal: Journal, forge: Forge, checkout: Path, token_file: Path, clock: Any) -> Callable[..., CommitStatusSender]:  # fmt: skip
    git("remote", "add", "origin", "git@127.0.0.1:acme/site.git", cwd=checkout)
    forge.clock = clock

    def make(report: str = "status", **more: str) -> CommitStatusSender:
        environ = {
            "GITOPS_ROOT": str(tmp_path / "root"),
            "GITOPS_REPORT": report,
            "GITHUB_API_URL": forge.url,
            "GITHUB_TOKEN_FILE": str(token_file),
            "GITOPS_CLONE_URL": "https://elsewhere.example.org/{repository}",
            **more,
        }
        sender = CommitStatusSender(
            load(environ, {}), journal, Checkouts(tmp_path / "root"), clock=clock, jitter=lambda: 0.5
        )
        sender._stopping.wait = clock.sleep  # type: ignore[method-assign]
        return sender

    return make


def run(outcome: str | None = None, after: str | None = A, **more: Any) -> Run:
    exit_status = {"updated": 0, "unchanged": 0, "paused": 0, "unreachable": 75}.get(outcome or "", 70)
    made = Run(7, "acme/site", "push", 100.0)
    return made if outcome is None else made._replace(ended=101.25, outcome=outcome, exit=exit_status, before=B, after=after, **more)  # fmt: skip


def told(ended: Run, pushed: str = A) -> list[tuple[str, str, str]]:
    return [report[1:2] + report[3:5] for report in _reports(ended, Task("acme/site", 7, after=pushed))]


def report(commit: str = A, state: str = "pending", description: str = "d", **more: Any) -> CommitStatus:
    return CommitStatus("acme/site", commit, 7, state, description, **{"changed": 1_800_000_000.0, **more})


def statuses(forge: Forge) -> list[tuple[str, str, str]]:
    return [(sha, body["state"], body["description"]) for _, sha, body in forge.statuses]


# -- which commit, which words -------------------------------------------------------------------------------------


def test_a_success_is_told_to_the_commit_that_is_live():
    assert told(run("updated")) == [(A, "success", "updated in 1.2 s")]
    assert told(run("unchanged")) == [(A, "success", "unchanged in 1.2 s")]
    assert told(run("cloned", B), pushed="") == [(B, "success", "cloned in 1.2 s")]


def test_a_pushed_commit_that_another_has_overtaken_is_told_which():
    assert told(run("updated", B)) == [
        (B, "success", "updated in 1.2 s"),
        (A, "success", f"updated in 1.2 s; {B[:10]} is live by now"),
    ]
    # That one was told when it went live.
    assert told(run("unchanged", B)) == [(A, "success", f"unchanged in 1.2 s; {B[:10]} is live by now")]


@pytest.mark.parametrize(
    "outcome", ["deploy-failed", "rolled-back", "dirty", "diverged", "denied", "timed-out", "failed"]
)
def test_a_failure_is_told_to_the_commit_that_was_pushed(outcome):
    assert told(run(outcome, B)) == [(A, "failure", f"{outcome} after 1.2 s")]


def test_a_run_that_nobody_pushed_for_is_told_where_it_changed_something():
    assert told(run("unchanged"), pushed="") == []
    assert told(run("updated"), pushed="") == [(A, "success", "updated in 1.2 s")]
    assert told(run("deploy-failed"), pushed="") == [(A, "failure", "deploy-failed after 1.2 s")]
    assert told(run("dirty"), pushed="") == []


def test_an_end_that_the_last_daemon_could_not_tell_any_more_is_told_by_the_next(journal):
    for repository, outcome in (("acme/site", "updated"), ("acme/blog", None), ("acme/paused", "paused")):
        claim = journal.start(repository, "push")
        journal.save_statuses(report()._replace(repository=repository, run=claim.run.id))
        if outcome:
            journal.finish(
                claim.run._replace(ended=claim.run.started + 2, outcome=outcome, exit=0, after=A), settled=True
            )
    answers = CommitStatusReporter(journal)
    answers.catch_up()
    answers.catch_up()
    journal.probe()  # which waits for all that was handed in before
    assert sorted((row.repository, row.state) for row in journal.statuses_due(2e9)) == [
        ("acme/blog", "pending"),
        ("acme/paused", "pending"),
        ("acme/site", "success"),
    ]


def test_what_is_done_again_stays_pending():
    assert told(run("unreachable", B)) == [(A, "pending", "unreachable after 1.2 s; it is done again later")]
    assert told(run("paused", B)) == [(A, "pending", "paused after 1.2 s; it is done again later")]
    for status in (None, -9):  # it could not be started, or was killed
        assert told(run("interrupted", None)._replace(exit=status))[0][1] == "pending"


def test_a_newer_state_takes_the_place_of_one_that_was_not_sent(journal):
    answers = CommitStatusReporter(journal)
    claim, task = Claim(run(), (Delivery("g", "push", 1.0, "acme/site", "r", after=A),)), Task("acme/site", 7, after=A)
    answers.began(claim, task)
    answers.ended(run("updated"), claim, task)
    journal.probe()  # which waits for all that was handed in before
    ((row,),) = [journal.statuses_due(time.time() + 1)]
    assert (row.state, row.version) == ("success", 2)
    answers.began(claim, Task("acme/site", 8))  # no push asked for it
    journal.probe()
    assert len(journal.statuses_due(time.time() + 1)) == 1


# -- sent ----------------------------------------------------------------------------------------------------------


def test_a_status_is_told_with_all_that_belongs_to_it(forge, journal, make_sender):
    journal.save_statuses(report(state="success", description="updated in 1.2 s"))
    assert make_sender(GITOPS_PUBLIC_URL="https://page.example.org/").step() > 0
    assert forge.statuses == [
        (
            "acme/site",
            A,
            {
                "state": "success",
                "description": "updated in 1.2 s",
                "context": f"gitops/{HOST}",
                "target_url": "https://page.example.org/runs/7",
            },
        )
    ]
    assert journal.next_status_due() is None
    make_sender().step()
    assert len(forge.statuses) == 1


def test_a_deployment_is_made_once_and_told_each_state(forge, journal, make_sender, checkout):
    git("config", "gitops.environment", "staging", cwd=checkout)
    sender = make_sender("deployment", GITOPS_PUBLIC_URL="https://page.example.org")
    for state in ("pending", "failure"):
        journal.save_statuses(report(state=state))
        sender.step()
    (made,) = forge.deployments
    assert (made["ref"], made["environment"], made["auto_merge"], made["required_contexts"]) == (
        A,
        "staging",
        False,
        [],
    )
    assert [(said["state"], said["environment"], said["log_url"]) for said in made["statuses"]] == [
        ("in_progress", "staging", "https://page.example.org/runs/7"),
        ("failure", "staging", "https://page.example.org/runs/7"),
    ]
    assert journal._query("SELECT * FROM commit_statuses") == []
    git("config", "--unset", "gitops.environment", cwd=checkout)
    journal.save_statuses(report(B, "success"))
    sender.step()
    assert forge.deployments[1]["environment"] == HOST


def test_a_deployment_whose_status_failed_is_not_made_twice(forge, journal, make_sender, clock):
    forge.faults.append(Fault(r"/deployments/\d+/statuses", 502))
    sender = make_sender("deployment")
    journal.save_statuses(report(state="success"))
    sender.step()
    clock.now += 60
    sender.step()
    ((made,),) = [forge.deployments]
    assert [said["state"] for said in made["statuses"]] == ["success"]


def test_a_fault_is_tried_again_later_each_time(forge, journal, make_sender, clock, capfd):
    forge.faults += [Fault("", 502, times=3), Fault("", 200, manner="close"), Fault("", 200, manner="cut")]
    sender = make_sender()
    journal.save_statuses(report(state="success"))
    waits = []
    while not forge.statuses:
        waits.append(sender.step())
        clock.now = max(clock.now, journal.next_status_due() or 0)
    assert waits[:3] == [5, 10, 20]
    assert len(waits) == 6
    assert journal.next_status_due() is None
    assert capfd.readouterr().err.count("GitHub cannot be told of runs now") == 1


@pytest.mark.parametrize("status", [401, 403, 404, 409, 410, 422])
def test_what_the_forge_does_not_want_is_dropped_with_one_line(forge, journal, make_sender, capfd, status):
    forge.faults.append(Fault("", status, body={"message": "No commit found for SHA"}))
    journal.save_statuses(report(state="success"), report(B, "success"))
    make_sender().step()
    assert [sha for _, sha, _ in forge.statuses] == [B]
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 1
    assert "is dropped repository=acme/site" in lines[0]
    assert "No commit found for SHA" in lines[0]
    assert journal._query("SELECT * FROM commit_statuses") == []


def test_a_limit_holds_for_all_until_it_has_passed(forge, journal, make_sender, clock):
    forge.faults.append(Fault("", 403, {"Retry-After": "600"}))
    sender = make_sender()
    journal.save_statuses(report(state="success"), report(B, "success"))
    sender.step()
    clock.now += 500
    sender.step()
    assert len(forge.asked) == 1
    clock.now += 200
    sender.step()
    assert len(forge.statuses) == 2


def test_what_comes_while_it_is_sent_is_not_lost(forge, journal, make_sender, monkeypatch):
    sender = make_sender()
    journal.save_statuses(report())
    tell = sender._tell_status
    # A moment of ours in the middle of the request: the run ends while its beginning is told.
    monkeypatch.setattr(sender, "_tell_status", lambda *a: (journal.save_statuses(report(state="success")), tell(*a)))
    sender.step()
    monkeypatch.undo()
    sender.step()
    assert [state for _, state, _ in statuses(forge)] == ["pending", "success"]
    assert journal._query("SELECT * FROM commit_statuses") == []


def test_what_is_not_at_that_forge_is_told_nobody(forge, journal, make_sender, checkout, tmp_path):
    git("remote", "set-url", "origin", "https://gitea.example.org/acme/site.git", cwd=checkout)
    journal.save_statuses(report(state="success"), report(state="success")._replace(repository="acme/none"))
    make_sender().step()
    assert forge.asked == []
    assert journal.next_status_due() is None


def test_a_checkout_without_an_owner_is_called_as_its_origin_is(forge, journal, make_sender, checkout, tmp_path):
    sender = make_sender()
    checkout.rename(tmp_path / "root/site")
    journal.save_statuses(report(state="success")._replace(repository="site"))
    sender.step()
    assert forge.statuses[0][0] == "acme/site"


def test_without_a_token_it_waits_and_says_so_once(forge, journal, make_sender, token_file, capfd):
    token_file.write_text("\n")
    sender = make_sender()
    journal.save_statuses(report(state="success"))
    sender.step()
    sender.step()
    assert capfd.readouterr().err.count("there is no token") == 1
    token_file.write_text(TOKEN)
    sender.step()
    assert len(forge.statuses) == 1


def test_old_reports_go(journal):
    journal.save_statuses(report(changed=time.time() - 4 * 86400), report(B, changed=time.time()))
    journal.prune()
    assert [row.commit for row in journal.statuses_due(time.time() + 1)] == [B]


# -- with a daemon -------------------------------------------------------------------------------------------------


@pytest.fixture
def reporting(tmp_path: Path, forge: Forge, token_file: Path) -> dict[str, str]:
    """The settings of a host whose checkouts come from the forge; git is told where that really is."""
    config = tmp_path / "gitconfig"
    config.write_text(f'[url "{tmp_path}/forge/"]\n\tinsteadOf = http://127.0.0.1/\n')
    return {
        "GITOPS_REPORT": "status",
        "GITHUB_API_URL": forge.url,
        "GITHUB_TOKEN_FILE": str(token_file),
        "GIT_CONFIG_GLOBAL": str(config),
    }


def at_the_forge(upstream: Upstream, root: Path, **settings: str) -> Path:
    checkout = upstream.checkout(root, **settings)
    git("remote", "set-url", "origin", "http://127.0.0.1/acme/site.git", cwd=checkout)
    return checkout


def wait_for_statuses(forge: Forge, count: int) -> list[tuple[str, str, str]]:
    deadline = time.monotonic() + 30
    while len(forge.statuses) < count:
        assert time.monotonic() < deadline, statuses(forge)
        time.sleep(0.01)
    return statuses(forge)


def test_a_push_is_told_pending_and_then_what_came_of_it(tmp_path, forge, start_daemon, reporting):
    upstream = Upstream(tmp_path / "forge")
    daemon = start_daemon(**reporting)
    at_the_forge(upstream, daemon.root, deploy=f"read -r _ <{tmp_path}/go; ! grep bad b")
    os.mkfifo(tmp_path / "go")
    good = upstream.commit({"b": "good"})
    daemon.deliver(push("acme/site", good))
    assert wait_for_statuses(forge, 1) == [(good, "pending", "the run has begun")]
    (tmp_path / "go").write_text("\n")
    assert wait_for_statuses(forge, 2)[1][:2] == (good, "success")
    bad = upstream.commit({"b": "bad"})
    daemon.deliver(push("acme/site", bad))
    wait_for_statuses(forge, 3)
    (tmp_path / "go").write_text("\n")
    assert wait_for_statuses(forge, 4)[3][:2] == (bad, "failure")
    assert daemon.stop() == 0


def test_reports_survive_a_kill_and_a_forge_that_is_down(tmp_path, forge, start_daemon, reporting):
    upstream = Upstream(tmp_path / "forge")
    forge.faults.append(Fault("", 503, times=-1))
    daemon = start_daemon(**reporting)
    at_the_forge(upstream, daemon.root)
    after = upstream.commit({"a": "b"})
    daemon.deliver(push("acme/site", after))
    daemon.wait_for("run updated ")
    while daemon.query("SELECT state FROM commit_statuses") != [("success",)]:
        time.sleep(0.01)
    daemon.kill()
    forge.faults.clear()
    daemon.start()
    assert ("success",) in {row[1:2] for row in wait_for_statuses(forge, 1) if row[0] == after}
    assert daemon.stop() == 0


def test_a_sync_from_the_command_line_leaves_its_report_to_the_daemon(tmp_path, forge, start_daemon, reporting, hook):
    upstream = Upstream(tmp_path / "forge")
    (tmp_path / "root").mkdir()
    at_the_forge(upstream, tmp_path / "root")
    after = upstream.commit({"a": "b"})
    hook("sync", "acme/site", **{**reporting, "GITHUB_TOKEN_FILE": "/nonexistent"})
    assert forge.asked == []
    daemon = start_daemon(**reporting)
    ((sha, state, said),) = wait_for_statuses(forge, 1)
    assert (sha, state) == (after, "success")
    assert said.startswith("updated in ")
    assert daemon.stop() == 0


def test_no_run_waits_for_a_forge_that_hangs(tmp_path, forge, start_daemon, reporting):
    upstream = Upstream(tmp_path / "forge")
    forge.faults.append(Fault("", 200, manner="hang", times=-1))
    daemon = start_daemon(**reporting)
    at_the_forge(upstream, daemon.root)
    for number in range(3):
        daemon.deliver(push("acme/site", upstream.commit({"a": str(number)})))
        daemon.wait_for("run updated ")
    assert len(forge.asked) == 1
    daemon.process.terminate()
    assert daemon.wait(30) == 0
