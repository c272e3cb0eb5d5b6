"""A fleet of real daemons: one webhook, every host that keeps the repository follows."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from itertools import islice
from pathlib import Path

from etcd_cluster import Cluster
from harness import SECRET, WEBHOOK, push, until
from hosts import KEYS, Hosts, command
from scratch import Upstream, git

from gitops_hook.fleet.etcd import Etcd
from gitops_hook.fleet.keys import Want, load
from gitops_hook.fleet.messages import put
from gitops_hook.fleet.outbox import Forwarder
from gitops_hook.journal.fleet import FleetJournal
from gitops_hook.journal.writer import Journal
from gitops_hook.model import Delivery


def test_one_webhook_reaches_every_host(hosts: Hosts, forge: Upstream) -> None:
    for name in ("a", "b", "c"):
        if name != "a":  # the receiver has no checkout
            hosts.checkout(name, forge)
        hosts.start(name)
    hosts.wait_until_live("a", "b", "c")
    for name in ("b", "c"):
        hosts.daemons[name].wait_for_run("trigger=sweep")  # which would bring a commit that is pushed earlier
    commit = forge.commit({"x": "1"})
    hosts.push("a", commit, "guid-1")
    hosts.wait_for_commit(commit, "b", "c")
    want = hosts.value(KEYS.want("acme/site"))
    assert (want["after"], want["guid"], want["via"]) == (commit, "guid-1", "a")
    for name in ("b", "c"):
        until(lambda name=name: hosts.status(name).commit == commit, f"{name} reports no status")
        assert hosts.status(name).outcome == "updated"
        assert [row[0] for row in hosts.daemons[name].query("SELECT guid FROM deliveries")] == ["guid-1"]
    assert hosts.daemons["a"].query("SELECT count(*) FROM deliveries") == [(0,)]


def test_a_second_receiver_of_the_same_delivery_changes_nothing(hosts: Hosts, forge: Upstream) -> None:
    for name in ("a", "b"):
        hosts.checkout(name, forge)
        hosts.start(name)
    hosts.wait_until_live("a", "b")
    commit = forge.commit({"x": "1"})
    for name in ("a", "b", "a"):
        hosts.push(name, commit, "guid-1")
    hosts.wait_for_commit(commit)
    for daemon in hosts.daemons.values():
        until(
            lambda daemon=daemon: daemon.query("SELECT count(*) FROM fleet_outbox") == [(0,)], "the outbox is not empty"
        )
    assert hosts.client.get(KEYS.want("acme/site")).version == 1


def test_a_new_name_of_a_repository_reaches_every_host(hosts: Hosts, forge: Upstream) -> None:
    """The receiver has no checkout, `b` is away, and the checkout of `other` is of another owner's repository."""
    for name in ("a", "b"):
        hosts.checkout(name, forge)
    other = hosts.checkout("other", forge)
    git("remote", "set-url", "origin", "/y/acme/site.git", cwd=other)
    for name in ("receiver", "a", "b", "other"):
        hosts.start(name)
    hosts.wait_until_live("receiver", "a", "b", "other")
    for name in ("a", "b"):
        hosts.daemons[name].wait_for_run("trigger=sweep")
    hosts.daemons["b"].kill()
    old = str(forge.bare.with_suffix("")).lstrip("/")
    payload = {
        "event_name": "project_rename",
        "old_path_with_namespace": old,
        "path_with_namespace": old.replace("acme/site", "acme/new"),
    }
    body = json.dumps(payload).encode()
    sent = {"Content-Type": "application/json", "X-Gitlab-Event": "System Hook", "X-Gitlab-Token": SECRET}
    status, answer = hosts.daemons["receiver"].request("POST", WEBHOOK, body, {**sent, "X-Gitlab-Event-UUID": "guid-1"})
    assert (status, answer["status"], answer["repository"]) == (202, "queued", "acme/site"), answer
    hosts.daemons["a"].wait_for_run("delivery=guid-1")
    hosts.daemons["b"].start()
    hosts.daemons["b"].wait_for_run("delivery=guid-1")
    for name in ("a", "b"):
        sql = "SELECT cause, message LIKE '%a webhook calls the repository acme/new%', fix FROM runs"
        newest = hosts.daemons[name].query(f"{sql} ORDER BY id DESC LIMIT 1")
        assert newest == [("renamed", 1, "")], newest
    until(lambda: hosts.status("a").cause == hosts.status("b").cause == "renamed", "the statuses do not show it")
    assert hosts.daemons["other"].query("SELECT count(*) FROM deliveries") == [(0,)]
    assert "acme/site: a webhook calls the repository acme/new" in command(hosts, "status", "acme/site")


def test_a_push_to_another_branch_runs_nothing_but_is_forwarded(hosts: Hosts, forge: Upstream) -> None:
    hosts.checkout("a", forge)
    hosts.checkout("b", forge, branch="next")
    a, b = hosts.start("a"), hosts.start("b")
    hosts.wait_until_live("a", "b")
    git("checkout", "--quiet", "-b", "next", cwd=forge.work)
    forge.branch = "next"
    commit = forge.commit({"x": "1"})
    hosts.push("a", commit, "guid-1", ref="refs/heads/next")
    b.wait_for(r"push from the fleet .*delivery=guid-1")
    b.wait_for_run("delivery=guid-1")
    assert a.query("SELECT count(*) FROM deliveries") == [(0,)]


def test_a_host_that_was_away_catches_up_with_one_delivery(hosts: Hosts, forge: Upstream) -> None:
    hosts.checkout("a", forge)
    hosts.checkout("b", forge)
    hosts.start("a")
    b = hosts.start("b")
    hosts.wait_until_live("a", "b")
    hosts.push("a", forge.commit({"x": "0"}), "guid-0")
    b.wait_for_run("delivery=guid-0")
    b.kill()
    for number in range(1, 7):
        commit = forge.commit({"x": str(number)})
        hosts.push("a", commit, f"guid-{number}")
    revision = hosts.client.read(KEYS.root).revision
    hosts.client.call("/v3/kv/compaction", {"revision": str(revision)})
    b.start()
    hosts.wait_for_commit(commit)
    b.wait_for(r"push from the fleet .*delivery=guid-6")
    assert b.query("SELECT guid FROM deliveries ORDER BY id") == [("guid-0",), ("guid-6",)]


def test_a_push_that_a_late_own_push_replaced_is_not_missed(hosts: Hosts, cluster: Cluster, forge: Upstream) -> None:
    for name in ("a", "b"):
        hosts.checkout(name, forge)
        hosts.start(name)
    hosts.wait_until_live("a", "b")
    hosts.push("a", forge.commit({"x": "1"}), "guid-1")
    for name in ("a", "b"):
        hosts.daemons[name].wait_for_run("delivery=guid-1")
    own = hosts.client.get(KEYS.want("acme/site")).value
    os.kill(hosts.daemons["a"].process.pid, signal.SIGSTOP)
    try:
        cluster.members[0].kill()  # which ends the watch of `a`
        cluster.start()
        commit = forge.commit({"x": "2"})
        hosts.push("b", commit, "guid-2")
        hosts.client.transact([], [put(KEYS.want("acme/site"), own)])  # as if the outbox of `a` had held it back
    finally:
        os.kill(hosts.daemons["a"].process.pid, signal.SIGCONT)
    hosts.wait_for_commit(commit, timeout=40)


def test_a_receiver_waits_until_the_fleet_has_the_push(etcd: Etcd, tmp_path: Path) -> None:
    journal = Journal(tmp_path / "state")
    forwarder = Forwarder(etcd, KEYS, FleetJournal(journal), "a")
    delivery = Delivery("guid-1", "push", time.time(), "acme/site", "refs/heads/main")
    row = forwarder.accept([], delivery, default_branch="main")
    assert forwarder.wait(row, patience=0) == "pending"
    forwarder.start()
    assert forwarder.wait(row, patience=60) == "committed"
    assert etcd.get(KEYS.seen("guid-1"))
    forwarder.stop(10)
    journal.close()


def test_a_late_push_is_announced_but_the_newest_stays_requested(etcd: Etcd, tmp_path: Path) -> None:
    now = time.time()
    for host, received in (("late", now - 10), ("other", now), ("later", now + 10)):
        journal = Journal(tmp_path / host)
        forwarder = Forwarder(etcd, KEYS, FleetJournal(journal), host)
        forwarder.accept([], Delivery(host, "push", received, "acme/site", "refs/heads/main"))
        if host == "late":
            late, late_journal = forwarder, journal
        else:
            assert forwarder.run_once()
            journal.close()
        if host == "other":
            revision = etcd.read(KEYS.root).revision
            assert late.run_once()
            late_journal.close()
            with etcd.watch(KEYS.wants, revision + 1) as watch:
                events = (load(Want, event.value).guid for batch in watch for event in batch.events)
                assert list(islice(events, 2)) == ["late", "other"]
    assert load(Want, etcd.get(KEYS.want("acme/site")).value).guid == "later"


def test_a_push_that_arrives_while_etcd_is_down_is_forwarded_later(
    hosts: Hosts, cluster: Cluster, forge: Upstream
) -> None:
    hosts.checkout("a", forge)
    hosts.checkout("b", forge)
    a = hosts.start("a")
    hosts.start("b")
    hosts.wait_until_live("a", "b")
    cluster.members[0].kill()
    try:
        commit = forge.commit({"x": "1"})
        status, answer = a.deliver(push("acme/site", commit), guid="guid-1")
        assert (status, answer["fleet"]) == (202, "pending")
        hosts.wait_for_commit(commit, "a")
        a.kill()  # the outbox is on its disk
        a.start()
    finally:
        cluster.start()
    hosts.wait_for_commit(commit, "b")
    until(lambda: a.query("SELECT count(*) FROM fleet_outbox") == [(0,)], "the outbox keeps what it has forwarded")


def test_a_host_starts_and_works_without_etcd(hosts: Hosts, forge: Upstream) -> None:
    hosts.endpoints = ["http://127.0.0.1:1"]
    hosts.checkout("a", forge)
    a = hosts.start("a")
    commit = forge.commit({"x": "1"})
    assert a.deliver(push("acme/site", commit))[1]["fleet"] == "pending"
    hosts.wait_for_commit(commit)
    assert a.stop() == 0


def test_a_wiped_cluster_is_noticed_and_used(hosts: Hosts, cluster: Cluster, forge: Upstream) -> None:
    hosts.checkout("a", forge)
    hosts.checkout("b", forge)
    a, b = hosts.start("a"), hosts.start("b")
    hosts.wait_until_live("a", "b")
    assert a.deliver(push("acme/site", forge.commit({"x": "1"})), guid="guid-1")[0] == 202
    b.wait_for_run("delivery=guid-1")
    cluster.wipe()
    b.wait_for("the fleet's etcd was wiped")
    commit = forge.commit({"x": "2"})
    assert a.deliver(push("acme/site", commit), guid="guid-2")[0] == 202
    hosts.wait_for_commit(commit)
    hosts.wait_until_live("a", "b")
    until(lambda: hosts.status("a").commit == hosts.status("b").commit == commit, "no status after the wipe")


def test_the_host_key_disappears_with_the_host(hosts: Hosts, forge: Upstream) -> None:
    a = hosts.start("a", labels="stage=canary,region=eu")
    hosts.wait_until_live("a")
    assert hosts.value(KEYS.host("a"))["labels"] == {"stage": "canary", "region": "eu"}
    assert a.stop() == 0
    assert hosts.client.get(KEYS.host("a")) is None


def test_without_a_fleet_none_of_its_code_is_imported() -> None:
    code = "import sys, gitops_hook.daemon, gitops_hook.cli.main; print([m for m in sys.modules if 'fleet' in m])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
