"""The reports of a fleet: one notice and one commit status for all hosts."""

from __future__ import annotations

import json
import re
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from etcd_cluster import Cluster
from fake_github import TOKEN, Forge
from harness import Daemon, push, until
from hosts import KEYS, Hosts
from scratch import Upstream, git
from test_deployer import SITE

from gitops_hook.fleet.commits import verdict
from gitops_hook.fleet.keys import Decision, Have, Host, Want, dump
from gitops_hook.fleet.messages import KeyValue
from gitops_hook.fleet.overview import Collection
from gitops_hook.fleet.rollout import Plan

DASHBOARD = re.compile(r"the dashboard .*address=(\S+)")
OLD, NEW = "a" * 40, "b" * 40


def notices(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "notices").read_text().splitlines()]


def test_a_fleet_sends_one_notice_and_the_next_holder_goes_on(hosts: Hosts, forge: Upstream) -> None:
    (hosts.folder / "notices").touch()
    command = f"sh -c 'cat >> {hosts.folder}/notices'"
    for name in ("a", "b", "c"):
        hosts.checkout(name, forge, deploy="test ! -e bad")
        hosts.start(name, GITOPS_NOTIFY=command)
    hosts.wait_until_live("a", "b", "c")
    until(lambda: hosts.client.get(KEYS.role("notices")), "no host has the role")
    for name in ("a", "b", "c"):
        until(lambda name=name: hosts.status(name).outcome, f"{name} has no status")
    bad = forge.commit({"bad": "x"})
    hosts.daemons["a"].deliver(push(SITE, bad), guid="guid-1")
    for name in ("a", "b", "c"):
        hosts.daemons[name].wait_for_run("outcome=deploy-failed")
        until(lambda name=name: hosts.status(name).outcome == "deploy-failed", f"{name} has no status")
    until(lambda: notices(hosts.folder), "no notice", 40)
    (first,) = notices(hosts.folder)
    assert (first["notice"], first["host"], first["repository"]) == ("failing", "test", SITE)
    assert first["outcome"] == "deploy-failed"
    assert "of 3 hosts: gitops.deploy failed" in first["message"]

    until(lambda: hosts.value(KEYS.report("notices", SITE)), "the notice is not recorded")
    holder = hosts.client.get(KEYS.role("notices")).value.decode()
    assert hosts.daemons[holder].stop() == 0
    until(lambda: hosts.client.get(KEYS.role("notices")), "no other host takes the role", 40)
    other = next(name for name in ("a", "b", "c") if name != holder)
    good = forge.commit({"bad": None})
    hosts.daemons[other].deliver(push(SITE, good), guid="guid-2")
    until(lambda: len(notices(hosts.folder)) > 1, "no second notice", 40)
    assert [entry["notice"] for entry in notices(hosts.folder)] == ["failing", "well"]


def test_a_fleet_sends_one_notice_about_a_new_name(hosts: Hosts, forge: Upstream) -> None:
    (hosts.folder / "notices").touch()
    for name in ("a", "b"):
        hosts.checkout(name, forge)
        hosts.start(name, GITOPS_NOTIFY=f"sh -c 'cat >> {hosts.folder}/notices'")
    hosts.wait_until_live("a", "b")
    changes = {"repository": {"name": {"from": "site"}}}
    payload = {"action": "renamed", "changes": changes, "repository": {"full_name": "acme/new"}}
    assert hosts.daemons["a"].deliver(payload, "repository", guid="guid-1")[0] == 202
    until(lambda: hosts.status("a").cause == hosts.status("b").cause == "renamed", "a host does not show it")
    until(lambda: notices(hosts.folder), "no notice", 40)
    until(lambda: hosts.value(KEYS.report("notices", SITE)), "the notice is not recorded")
    (notice,) = notices(hosts.folder)
    assert (notice["notice"], notice["repository"], notice["outcome"]) == ("failing", SITE, "renamed")
    assert "a webhook calls the repository acme/new" in notice["message"]


@pytest.fixture
def github(tmp_path: Path) -> Iterator[Forge]:
    """A server with GitHub's API that knows the repository."""
    server = Forge()
    server.add(SITE)
    (tmp_path / "token").write_text(TOKEN)
    (tmp_path / "token").chmod(0o600)
    (tmp_path / "gitconfig").write_text(f'[url "{tmp_path}/forge/"]\n\tinsteadOf = http://127.0.0.1/\n')
    yield server
    server.close()


def test_a_fleet_reports_one_status_of_a_commit(hosts: Hosts, forge: Upstream, tmp_path: Path, github: Forge) -> None:
    for name in ("a", "b", "c"):
        checkout = hosts.checkout(name, forge, deploy="test ! -e bad")
        git("remote", "set-url", "origin", "http://127.0.0.1/acme/site.git", cwd=checkout)
        hosts.start(
            name,
            GITOPS_REPORT="status",
            GITHUB_API_URL=github.url,
            GITHUB_TOKEN_FILE=str(tmp_path / "token"),
            GIT_CONFIG_GLOBAL=str(tmp_path / "gitconfig"),
        )
    hosts.wait_until_live("a", "b", "c")
    until(lambda: hosts.client.get(KEYS.role("statuses")), "no host has the role", 40)

    def states(commit: str) -> list[str]:
        return [body["state"] for _, sha, body in github.statuses if sha == commit]

    good = forge.commit({"x": "1"})
    hosts.daemons["a"].deliver(push(SITE, good), guid="guid-1")
    until(lambda: states(good)[-1:] == ["success"], "no success", 40)
    bad = forge.commit({"bad": "x"})
    hosts.daemons["b"].deliver(push(SITE, bad), guid="guid-2")
    until(lambda: states(bad)[-1:] == ["failure"], "no failure", 40)
    hosts.wait_for_commit(bad)
    assert states(good).count("success") == states(bad).count("failure") == 1
    assert {body["context"] for _, _, body in github.statuses} == {"gitops/test"}
    assert "deploy-failed" in github.statuses[-1][2]["description"]


def metrics(daemon: Daemon) -> dict[str, float]:
    """Return the metrics of the fleet that a host serves."""
    # The daemon logs this address after that of the webhook, for which the start waits.
    until(lambda: DASHBOARD.search(daemon.log), "the dashboard does not listen")
    with urllib.request.urlopen(f"http://{DASHBOARD.search(daemon.log)[1]}/metrics") as answer:
        lines = [line.rsplit(" ", 1) for line in answer.read().decode().splitlines()]
    return {name: float(value) for name, value in lines if name.startswith("gitops_hook_fleet_")}


def test_the_metrics_of_a_fleet_do_not_grow_with_it(hosts: Hosts, cluster: Cluster, forge: Upstream) -> None:
    hosts.checkout("a", forge)
    a = hosts.start("a", GITOPS_DASHBOARD_LISTEN="127.0.0.1:0", GITOPS_NOTIFY="true")
    hosts.wait_until_live("a")
    until(lambda: metrics(a).get('gitops_hook_fleet_checkouts{state="up to date"}') == 1, "no checkouts")
    alone = metrics(a)
    assert alone["gitops_hook_fleet_connected"] == alone["gitops_hook_fleet_hosts"] == 1
    assert alone["gitops_hook_fleet_outbox"] == alone["gitops_hook_fleet_halted"] == 0
    assert alone['gitops_hook_fleet_role{role="notices"}'] == 1
    for name in ("b", "c"):
        hosts.checkout(name, forge)
        hosts.start(name)
    hosts.wait_until_live("b", "c")
    until(lambda: metrics(a)["gitops_hook_fleet_hosts"] == 3, "the hosts are not counted")
    assert metrics(a).keys() == alone.keys()
    cluster.members[0].kill()
    try:
        until(lambda: metrics(a)["gitops_hook_fleet_connected"] == 0, "the host seems connected", 40)
        a.deliver(push(SITE, forge.commit({"x": "1"})))
        assert metrics(a)["gitops_hook_fleet_outbox"] == 1
    finally:
        cluster.start()


class Fleet:
    """Keys of a small fleet, applied one by one."""

    def __init__(self, *hosts: str, plan: str = "") -> None:
        self.collection = Collection(KEYS)
        self.revision = 0
        for name in hosts:
            stage = name.partition("-")[0]
            self.put(KEYS.host(name), dump(Host({"stage": stage})))
        if plan:
            self.put(KEYS.plan(SITE), Plan.parse(plan.split()).dump())

    def put(self, key: str, value: bytes) -> None:
        self.revision += 1
        self.collection.apply(KeyValue(key, value, self.revision, self.revision, 1, 0))

    def push(self, commit: str) -> None:
        self.put(KEYS.want(SITE), dump(Want(SITE, "refs/heads/main", OLD, commit, "guid", time.time())))

    def have(self, host: str, commit: str, outcome: str = "updated", **more: object) -> None:
        have = Have(commit, outcome, want=self.revision, guid="guid")._replace(**more)
        self.put(KEYS.have(host, SITE), dump(have))

    def verdict(self) -> tuple[str, str] | None:
        found = verdict(self.collection.state(), SITE)
        return (found.state, found.description) if found else None


def test_success_needs_every_live_host() -> None:
    fleet = Fleet("a", "b", "c")
    for host in ("a", "b", "c", "offline"):
        fleet.have(host, OLD, guid="earlier")
    fleet.push(NEW)
    assert fleet.verdict() is None  # no host tried it yet: it may be a forged id, or another branch
    fleet.have("a", NEW)
    assert fleet.verdict() == ("pending", "1 of 3 live hosts have it")
    fleet.have("b", NEW)
    fleet.have("c", NEW)
    assert fleet.verdict() == ("success", "on 3 live hosts")


def test_a_paused_host_does_not_count() -> None:
    fleet = Fleet("a", "b")
    fleet.push(NEW)
    fleet.have("a", NEW)
    fleet.have("b", OLD, "held", paused=True, guid="earlier")
    assert fleet.verdict() == ("success", "on 1 live hosts")


def test_failure_names_the_host_and_the_reason() -> None:
    fleet = Fleet("a", "b", "c")
    fleet.push(NEW)
    fleet.have("a", NEW)
    fleet.have("c", OLD, "deploy-failed", message="exit 3")
    fleet.have("b", OLD, "deploy-failed", message="exit 3")
    assert fleet.verdict() == ("failure", "b and 1 more of 3 hosts: deploy-failed: exit 3")


def test_a_failure_before_the_push_is_not_one_of_its_commit() -> None:
    fleet = Fleet("a", "b")
    fleet.have("b", OLD, "deploy-failed", want=0, guid="earlier")
    fleet.push(NEW)
    fleet.have("a", NEW)
    assert fleet.verdict() == ("pending", "1 of 2 live hosts have it")


def test_a_rollout_succeeds_with_its_last_stage_and_fails_with_a_halt() -> None:
    fleet = Fleet("canary-1", "rest-1", "rest-2", plan="canary:1 rest")
    fleet.push(NEW)
    fleet.have("canary-1", NEW, guid="rollout")
    fleet.have("rest-1", NEW, guid="rollout")
    fleet.have("rest-2", OLD, guid="rollout")
    assert fleet.verdict()[0] == "pending"
    fleet.have("rest-2", NEW, guid="rollout")
    assert fleet.verdict() == ("success", "the last stage has it")
    fleet.push("c" * 40)
    fleet.put(KEYS.halt(SITE), dump(Decision("c" * 40, "canary-1", 0, "deploy-failed: exit 3", "deploy-failed")))
    assert fleet.verdict() == ("failure", "canary-1: deploy-failed: exit 3")


@pytest.mark.parametrize("by_operator", [True, False])
def test_a_halt_by_an_operator_is_no_failure(by_operator: bool) -> None:
    fleet = Fleet("canary-1", "rest-1", plan="canary:1 rest")
    fleet.push(NEW)
    fleet.have("canary-1", OLD, "held", guid="guid")
    outcome = "" if by_operator else "deploy-failed"
    fleet.put(KEYS.halt(SITE), dump(Decision("*" if by_operator else NEW, "ada", 0, "maintenance", outcome)))
    assert fleet.verdict()[0] == ("pending" if by_operator else "failure")
