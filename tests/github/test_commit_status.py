"""Commit statuses: which commits get which status, and how it is sent across faults, limits and restarts."""

from __future__ import annotations

import os
import shutil
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fake_github import TOKEN, Fault, Forge
from harness import push
from scratch import Upstream, fetched_commit, git

from gitops_hook.config import load
from gitops_hook.github.commit_status import CommitStatusReporter
from gitops_hook.github.status_sender import CommitStatusSender
from gitops_hook.journal.writer import Journal
from gitops_hook.model import CommitStatus, Delivery
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
    """Create a checkout whose origin is at the forge."""
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
        return CommitStatusSender(
            load(environ, {}), journal, Checkouts(tmp_path / "root"), clock=clock, jitter=lambda: 0.5, wait=clock.sleep
        )

    return make


def report(commit: str = A, state: str = "pending", description: str = "d", **more: Any) -> CommitStatus:
    return CommitStatus("acme/site", commit, 7, state, description, **{"changed": 1_800_000_000.0, **more})


def statuses(forge: Forge) -> list[tuple[str, str, str]]:
    return [(sha, body["state"], body["description"]) for _, sha, body in forge.statuses]


@pytest.mark.parametrize("kind", ["status", "deployment"])
def test_an_environment_is_distinguished_from_the_main_checkout(forge, journal, checkout, make_sender, kind):
    commit = fetched_commit(checkout, "work")
    sender = make_sender(kind)
    shutil.copytree(checkout, f"{checkout}@staging")
    for name in ("acme/site", "acme/site@staging"):
        journal.save_statuses(report(commit)._replace(repository=name))
    sender.run_once()
    if kind == "status":
        places = {body["context"] for _, _, body in forge.statuses}
        assert places == {f"gitops/{HOST}", f"gitops/{HOST}/staging"}
    else:
        places = {body["environment"] for body in forge.deployments}
        assert places == {HOST, f"{HOST}/staging"}


# -- which statuses a run stores ---------------------------------------------------------------------------------------


class Host:
    """A checkout of a real upstream, and the statuses that its runs store."""

    def __init__(self, folder: Path, journal: Journal) -> None:
        self.upstream = Upstream(folder / "forge")
        (folder / "root").mkdir()
        self.checkout = self.upstream.checkout(folder / "root")
        self.journal = journal
        self.reporter = CommitStatusReporter(journal, Checkouts(folder / "root"))

    def commit(self, content: str) -> str:
        """Push a commit and fetch it."""
        commit = self.upstream.commit({"a": content})
        git("fetch", "--quiet", "origin", cwd=self.checkout)
        return commit

    def run(
        self, outcome: str, after: str | None, pushed: str = "", *, settled: bool = True
    ) -> dict[str, tuple[str, str]]:
        """Record a run with this result; return the state and description of each commit that waits to be sent."""
        if pushed:
            self.journal.record(Delivery("g", "push", 1.0, "acme/site", "refs/heads/main", after=pushed))
        claim = self.journal.start("acme/site", "push")
        assert claim
        task = Task("acme/site", claim.run.id, after=pushed)
        self.reporter.began(claim, task)
        ended = claim.run._replace(ended=claim.run.started + 1.25, outcome=outcome, exit=0, after=after)
        self.journal.finish(ended, settled=settled)
        self.reporter.ended(ended, claim, task)
        self.journal.write(lambda connection: None)  # waits for the statuses that were submitted before
        return {row.commit: (row.state, row.description) for row in self.journal.statuses_due(2e9)}


@pytest.fixture
def host(tmp_path: Path, journal: Journal) -> Host:
    return Host(tmp_path, journal)


def test_the_live_commit_gets_success(host: Host):
    live = host.commit("1")
    assert host.run("updated", live, live) == {live: ("success", "updated in 1.2 s")}
    assert host.run("unchanged", live, live) == {live: ("success", "unchanged in 1.2 s")}


def test_an_ancestor_of_the_live_commit_gets_success(host: Host):
    pushed, live = host.commit("1"), host.commit("2")
    assert host.run("updated", live, pushed) == {
        live: ("success", "updated in 1.2 s"),
        pushed: ("success", f"updated in 1.2 s; {live[:10]} is live"),
    }


def test_a_forged_commit_gets_no_success(host: Host):
    live = host.commit("1")
    assert host.run("unchanged", live, "e" * 40) == {"e" * 40: ("failure", f"not deployed; {live[:10]} is live")}


def test_a_commit_that_is_not_part_of_the_live_one_gets_no_success(host: Host):
    """A force push replaced it, or it is on another branch: the checkout has it, and it is not live."""
    live, replaced = host.upstream.head(), host.commit("1")
    git("push", "--quiet", "--force", "origin", f"{live}:main", cwd=host.upstream.work)
    git("fetch", "--quiet", "origin", cwd=host.checkout)
    assert host.run("updated", live, replaced)[replaced] == ("failure", f"not deployed; {live[:10]} is live")


def test_a_live_commit_that_the_remote_lacks_gets_no_success(host: Host):
    git("-c", "user.name=a", "-c", "user.email=b", "commit", "--quiet", "--allow-empty", "-m", "local", cwd=host.checkout)  # fmt: skip
    local = git("rev-parse", "HEAD", cwd=host.checkout)
    assert host.run("unchanged", local, local)[local][0] == "failure"


@pytest.mark.parametrize(("outcome", "state"), [("updated", "success"), ("deploy-failed", "failure")])
def test_a_superseded_commit_does_not_stay_pending(host: Host, outcome: str, state: str):
    first = host.commit("1")
    assert host.run("unreachable", None, first, settled=False)[first][0] == "pending"
    live = host.commit("2")
    assert {commit: found for commit, (found, _) in host.run(outcome, live, live).items()} == {
        first: state,
        live: state,
    }
    assert host.journal.pending_statuses() == []


@pytest.mark.parametrize(
    "outcome", ["deploy-failed", "rolled-back", "dirty", "diverged", "denied", "timed-out", "failed"]
)
def test_a_failure_belongs_to_the_pushed_commit(host: Host, outcome: str):
    old, pushed = host.upstream.head(), host.commit("1")
    assert host.run(outcome, old, pushed) == {pushed: ("failure", f"{outcome} after 1.2 s")}


def test_a_run_without_a_push_reports_only_a_change(host: Host):
    live = host.commit("1")
    assert host.run("unchanged", live) == {}
    assert host.run("dirty", live) == {}
    assert host.run("deploy-failed", live) == {live: ("failure", "deploy-failed after 1.2 s")}
    assert host.run("updated", live) == {live: ("success", "updated in 1.2 s")}


@pytest.mark.parametrize("outcome", ["unreachable", "paused", "interrupted"])
def test_a_run_that_is_repeated_stays_pending(host: Host, outcome: str):
    pushed = host.commit("1")
    assert host.run(outcome, None, pushed, settled=False) == {
        pushed: ("pending", f"{outcome} after 1.2 s; it is repeated")
    }


def test_the_next_daemon_finishes_what_the_last_one_could_not_store(host: Host):
    live, journal = host.commit("1"), host.journal
    for repository, outcome in (("acme/site", "updated"), ("acme/blog", None), ("acme/paused", "paused")):
        claim = journal.start(repository, "push")
        assert claim
        journal.save_statuses(report(live)._replace(repository=repository, run=claim.run.id))
        if outcome:
            ended = claim.run._replace(ended=claim.run.started + 2, outcome=outcome, exit=0, after=live)
            journal.finish(ended, settled=True)
    host.reporter.catch_up()
    host.reporter.catch_up()
    journal.write(lambda connection: None)
    assert sorted((row.repository, row.state) for row in journal.statuses_due(2e9)) == [
        ("acme/blog", "pending"),
        ("acme/paused", "pending"),
        ("acme/site", "success"),
    ]


# -- sent ----------------------------------------------------------------------------------------------------------


def test_a_status_is_sent_with_all_its_fields(forge, journal, make_sender):
    journal.save_statuses(report(state="success", description="updated in 1.2 s"))
    assert make_sender(GITOPS_PUBLIC_URL="https://page.example.org/").run_once() > 0
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
    make_sender().run_once()
    assert len(forge.statuses) == 1


def test_a_deployment_is_created_once_and_receives_each_state(forge, journal, make_sender, checkout):
    git("config", "gitops.environment", "staging", cwd=checkout)
    commit = fetched_commit(checkout, "1")
    sender = make_sender("deployment", GITOPS_PUBLIC_URL="https://page.example.org")
    for state in ("pending", "failure"):
        journal.save_statuses(report(commit, state))
        sender.run_once()
    (made,) = forge.deployments
    assert (made["ref"], made["environment"], made["auto_merge"], made["required_contexts"]) == (
        commit,
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
    journal.save_statuses(report(fetched_commit(checkout, "2"), "success"))
    sender.run_once()
    assert forge.deployments[1]["environment"] == HOST


def test_a_deployment_whose_status_failed_is_not_made_twice(forge, journal, make_sender, checkout, clock):
    forge.faults.append(Fault(r"/deployments/\d+/statuses", 502))
    sender = make_sender("deployment")
    journal.save_statuses(report(fetched_commit(checkout, "1"), "success"))
    sender.run_once()
    clock.now += 60
    sender.run_once()
    ((made,),) = [forge.deployments]
    assert [said["state"] for said in made["statuses"]] == ["success"]


def test_no_deployment_is_created_for_a_commit_that_the_remote_lacks(forge, journal, make_sender, checkout, clock):
    sender = make_sender("deployment")
    fetched_commit(checkout, "1")
    for state in ("pending", "failure", "success"):
        journal.save_statuses(report("e" * 40, state))
        sender.run_once()
    assert forge.asked == []
    assert journal.next_status_due() is None


def test_a_pending_deployment_waits_until_its_commit_is_fetched(forge, journal, make_sender, checkout, clock):
    sender = make_sender("deployment")
    commit = fetched_commit(checkout, "1")
    git("update-ref", "-d", "refs/remotes/origin/main", cwd=checkout)
    journal.save_statuses(report(commit))
    assert sender.run_once() == 5
    git("update-ref", "refs/remotes/origin/main", commit, cwd=checkout)
    clock.now += 5
    sender.run_once()
    assert [made["ref"] for made in forge.deployments] == [commit]


def test_an_error_is_retried_with_growing_delays(forge, journal, make_sender, clock, capfd):
    forge.faults += [Fault("", 502, times=3), Fault("", 200, manner="close"), Fault("", 200, manner="cut")]
    sender = make_sender()
    journal.save_statuses(report(state="success"))
    waits = []
    while not forge.statuses:
        waits.append(sender.run_once())
        clock.now = max(clock.now, journal.next_status_due() or 0)
    assert waits[:3] == [5, 10, 20]
    assert len(waits) == 6
    assert journal.next_status_due() is None
    assert capfd.readouterr().err.count("commit statuses cannot be sent now") == 1


@pytest.mark.parametrize("status", [401, 403, 404, 409, 410, 422])
def test_a_rejected_status_is_dropped_with_one_line(forge, journal, make_sender, capfd, status):
    forge.faults.append(Fault("", status, body={"message": "No commit found for SHA"}))
    journal.save_statuses(report(state="success"), report(B, "success"))
    make_sender().run_once()
    assert [sha for _, sha, _ in forge.statuses] == [B]
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 1
    assert "is dropped repository=acme/site" in lines[0]
    assert "No commit found for SHA" in lines[0]
    assert journal._query("SELECT * FROM commit_statuses") == []


def test_a_rate_limit_applies_to_all_calls_until_it_ends(forge, journal, make_sender, clock):
    forge.faults.append(Fault("", 403, {"Retry-After": "600"}))
    sender = make_sender()
    journal.save_statuses(report(state="success"), report(B, "success"))
    sender.run_once()
    clock.now += 500
    sender.run_once()
    assert len(forge.asked) == 1
    clock.now += 200
    sender.run_once()
    assert len(forge.statuses) == 2


def test_a_state_that_changes_during_the_call_is_sent_next(forge, journal, make_sender, monkeypatch):
    sender = make_sender()
    journal.save_statuses(report())
    send = sender._send_status
    # The run ends while the request with its pending status is under way.
    monkeypatch.setattr(sender, "_send_status", lambda *a: (journal.save_statuses(report(state="success")), send(*a)))
    sender.run_once()
    monkeypatch.undo()
    sender.run_once()
    assert [state for _, state, _ in statuses(forge)] == ["pending", "success"]
    assert journal._query("SELECT * FROM commit_statuses") == []


def test_no_status_is_sent_for_a_repository_of_another_forge(forge, journal, make_sender, checkout, tmp_path):
    git("remote", "set-url", "origin", "https://gitea.example.org/acme/site.git", cwd=checkout)
    journal.save_statuses(report(state="success"), report(state="success")._replace(repository="acme/none"))
    make_sender().run_once()
    assert forge.asked == []
    assert journal.next_status_due() is None


def test_a_checkout_without_an_owner_is_called_as_its_origin_is(forge, journal, make_sender, checkout, tmp_path):
    sender = make_sender()
    checkout.rename(tmp_path / "root/site")
    journal.save_statuses(report(state="success")._replace(repository="site"))
    sender.run_once()
    assert forge.statuses[0][0] == "acme/site"


def test_without_a_token_statuses_wait_and_it_is_logged_once(forge, journal, make_sender, token_file, capfd):
    token_file.write_text("\n")
    sender = make_sender()
    journal.save_statuses(report(state="success"))
    sender.run_once()
    sender.run_once()
    assert capfd.readouterr().err.count("there is no token") == 1
    token_file.write_text(TOKEN)
    sender.run_once()
    assert len(forge.statuses) == 1


def test_old_reports_are_deleted(journal):
    journal.save_statuses(report(changed=time.time() - 4 * 86400), report(B, changed=time.time()))
    journal.prune()
    assert [row.commit for row in journal.statuses_due(time.time() + 1)] == [B]


# -- with a daemon -------------------------------------------------------------------------------------------------


@pytest.fixture
def reporting(tmp_path: Path, forge: Forge, token_file: Path) -> dict[str, str]:
    """The settings of a host whose checkouts come from the forge; git resolves the URL to the local repository."""
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


def test_a_push_receives_pending_and_then_its_result(tmp_path, forge, start_daemon, reporting):
    upstream = Upstream(tmp_path / "forge")
    daemon = start_daemon(**reporting)
    at_the_forge(upstream, daemon.root, deploy=f"read -r _ <{tmp_path}/go; ! grep bad b")
    os.mkfifo(tmp_path / "go")
    good = upstream.commit({"b": "good"})
    daemon.deliver(push("acme/site", good))
    assert wait_for_statuses(forge, 1) == [(good, "pending", "the run has started")]
    (tmp_path / "go").write_text("\n")
    assert wait_for_statuses(forge, 2)[1][:2] == (good, "success")
    bad = upstream.commit({"b": "bad"})
    daemon.deliver(push("acme/site", bad))
    wait_for_statuses(forge, 3)
    (tmp_path / "go").write_text("\n")
    assert wait_for_statuses(forge, 4)[3][:2] == (bad, "failure")
    assert daemon.stop() == 0


def test_commit_statuses_survive_a_kill_and_an_outage_of_the_forge(tmp_path, forge, start_daemon, reporting):
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
