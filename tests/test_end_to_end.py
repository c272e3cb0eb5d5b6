"""The main job on real input: a signed push over HTTP moves a real checkout, and its deploy command runs."""

from __future__ import annotations

import os
import time
from pathlib import Path

from harness import NOBODY, SECRET, push
from scratch import Upstream, git


def test_a_push_moves_the_checkout_and_deploys(tmp_path, start_daemon):
    upstream = Upstream(tmp_path / "forge")
    daemon = start_daemon()
    checkout = upstream.checkout(daemon.root, deploy="git log -1 --format=%s > ../live")
    before, after = upstream.head(), upstream.commit({"index.html": "hello"}, message="Say hello")
    assert daemon.deliver(push("acme/site", after, before=before), guid="first") == (
        202,
        {"status": "queued", "repository": "acme/site", "delivery": "first"},
    )
    line = daemon.wait_for(r"run updated .*").group()
    assert "repository=acme/site run=1 outcome=updated trigger=push delivery=first deliveries=1" in line
    assert git("rev-parse", "HEAD", cwd=checkout) == after
    assert (checkout / "index.html").read_text() == "hello"
    assert (checkout.parent / "live").read_text() == "Say hello\n"
    assert daemon.query("SELECT trigger, outcome, exit, before, after FROM runs") == [
        ("push", "updated", 0, before, after)
    ]
    assert daemon.query("SELECT guid, run, pending FROM deliveries") == [("first", 1, 0)]


def test_an_irrelevant_event_is_200_and_starts_no_run(tmp_path, start_daemon):
    upstream = Upstream(tmp_path / "forge")
    daemon = start_daemon()
    checkout = upstream.checkout(daemon.root)
    head = upstream.head()
    after = upstream.commit({"index.html": "hello"})
    for payload, event, reason in (
        (push("acme/site", after, ref="refs/heads/feature"), "push", "the tracked branch is `main`"),
        (push("acme/site", after, ref="refs/tags/v1"), "push", "the tracked branch is `main`"),
        (push("acme/site", NOBODY, before=head), "push", "the ref was deleted"),
        (push("acme/other", after), "push", "this host has no checkout of the repository"),
        ({"action": "opened", **push("acme/site")}, "issues", "the event `issues` starts no run"),
    ):
        status, answer = daemon.deliver(payload, event)
        assert (status, answer["status"], answer["reason"]) == (200, "ignored", reason)
    assert daemon.deliver({"zen": "Keep it logically awesome."}, "ping")[1]["status"] == "pong"
    assert daemon.stop() == 0
    assert daemon.query("SELECT count(*) FROM runs") == daemon.query("SELECT count(*) FROM deliveries") == [(0,)]
    assert git("rev-parse", "HEAD", cwd=checkout) == head


def test_a_push_from_a_clone_pattern_without_a_checkout_clones_it(tmp_path, start_daemon):
    upstream = Upstream(tmp_path / "forge")
    daemon = start_daemon(GITOPS_CLONE="acme/*", GITOPS_CLONE_URL=f"{tmp_path}/forge/{{repository}}.git")
    assert daemon.deliver(push("acme/site", upstream.head()))[0] == 202
    daemon.wait_for(r"run cloned ")
    assert git("rev-parse", "HEAD", cwd=daemon.root / "acme/site") == upstream.head()
    assert daemon.deliver(push("other/site", upstream.head()))[1]["status"] == "ignored"


def test_a_push_while_the_daemon_was_down_is_deployed_after_its_start(tmp_path, start_daemon):
    upstream = Upstream(tmp_path / "forge")
    flat = Upstream(tmp_path / "forge", "acme/flat")
    (tmp_path / "root").mkdir()
    checkouts = [upstream.checkout(tmp_path / "root"), flat.checkout(tmp_path / "root", nested=False)]
    news = [upstream.commit({"a": "b"}), flat.commit({"a": "b"})]
    daemon = start_daemon()
    daemon.wait_for(r"run updated repository=acme/(site|flat) .*trigger=sweep")
    daemon.wait_for(r"run updated repository=acme/(site|flat) .*trigger=sweep")
    assert [git("rev-parse", "HEAD", cwd=checkout) for checkout in checkouts] == news


def test_an_unreachable_remote_is_retried_and_a_push_ends_the_delay(tmp_path, start_daemon):
    upstream = Upstream(tmp_path / "forge")
    daemon = start_daemon()
    checkout = upstream.checkout(daemon.root)
    after = upstream.commit({"a": "b"})
    away = upstream.bare.rename(tmp_path / "away")
    daemon.deliver(push("acme/site", after))
    daemon.wait_for(r"run unreachable ")
    assert daemon.query("SELECT pending FROM deliveries") == [(1,)]
    away.rename(upstream.bare)
    daemon.deliver(push("acme/site", after))  # the wait before the next try is at least 3.75 s
    line = daemon.wait_for(r"run updated .*", timeout=3).group()
    assert "deliveries=2" in line
    assert git("rev-parse", "HEAD", cwd=checkout) == after


def test_a_late_webhook_hides_no_newer_push(tmp_path, start_daemon, script):
    os.mkfifo(tmp_path / "go")
    upstream = Upstream(tmp_path / "forge")
    daemon = start_daemon()
    checkout = upstream.checkout(daemon.root, deploy=f"read -r word < {tmp_path}/go")
    old = upstream.commit({"a": "1"})
    daemon.deliver(push("acme/site", old))
    while git("rev-parse", "HEAD", cwd=checkout) != old:  # it is being deployed: what comes now waits for the next run
        time.sleep(0.01)
    new = upstream.commit({"a": "2"})
    daemon.deliver(push("acme/site", new))
    daemon.deliver(push("acme/site", old))
    for _ in range(2):
        (tmp_path / "go").write_text("word\n")
        daemon.wait_for("run updated ")
    assert git("rev-parse", "HEAD", cwd=checkout) == new


def test_the_secret_is_in_no_environment_log_or_file_of_ours(tmp_path, start_daemon):
    upstream = Upstream(tmp_path / "forge")
    daemon = start_daemon()
    upstream.checkout(daemon.root, deploy="env; tr '\\0' '\\n' < /proc/$$/cmdline")
    daemon.deliver(push("acme/site", upstream.commit({"a": "b"})))
    daemon.wait_for(r"run updated ")
    daemon.deliver(push("acme/site"), secret="wrong")
    assert daemon.stop() == 0
    output = (daemon.state / "runs/1.log").read_text()
    assert "GITOPS_REPOSITORY=acme/site" in output
    everything = [path for path in Path(daemon.state).rglob("*") if path.is_file()]
    assert len(everything) >= 2
    assert not [path for path in everything if SECRET.encode() in path.read_bytes()]
    assert SECRET not in daemon.log
    assert "GITHUB_WEBHOOK_SECRET" not in output
