"""Daily operation with a real daemon, real commands and real checkouts: holds, releases and rollbacks."""

from __future__ import annotations

import getpass
import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from documents import code_blocks
from harness import Daemon, push, until
from scratch import git


def status(hook: Any) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(hook("status", "acme/site", "--json").stdout)
    return found


@pytest.fixture
def paste(tmp_path: Path, environ: dict[str, str]) -> Callable[[str], str]:
    """Run commands in a shell with `gitops-hook` on its PATH, and return the output."""
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "gitops-hook").write_text(f'#!/bin/sh\nexec {sys.executable} -m gitops_hook "$@"\n')
    (tools / "gitops-hook").chmod(0o755)

    def run(commands: str) -> str:
        more = {"PATH": f"{tools}:{os.environ['PATH']}"}
        done = subprocess.run(
            ["bash", "-ec", commands], env={**environ, **more}, capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return run


def head(checkout: Path) -> str:
    return git("rev-parse", "HEAD", cwd=checkout)


def outcomes(daemon: Daemon) -> list[tuple[str, str]]:
    return daemon.query("SELECT trigger, outcome FROM runs ORDER BY id")


def test_a_push_waits_for_the_end_of_a_pause(upstream, hook, start_daemon, paste):
    (commands,) = code_blocks("docs/operations.md", "Pausing", "sh")
    pause, resume = commands.splitlines()
    daemon = start_daemon()
    checkout = upstream.checkout(daemon.root)
    before = upstream.head()
    paste(pause)
    after = upstream.commit({"a": "b"})
    daemon.deliver(push("acme/site", after), guid="waits")
    assert daemon.wait_for_run()[1] == "paused"
    found = status(hook)
    assert (found["state"], found["pending"], found["hold"]["reason"]) == ("paused", 1, "migrating the database")
    assert "waiting pushes: 1. To resume: gitops-hook resume acme/site" in hook("status").stdout
    assert head(checkout) == before
    paste(resume)
    assert daemon.query("SELECT pending, run FROM deliveries WHERE guid = 'waits'") == [(0, 2)]
    assert head(checkout) == after
    assert (status(hook)["state"], status(hook)["hold"]) == ("in sync", None)


def test_a_bad_commit_is_rolled_back_and_deployed_on_request(upstream, hook, start_daemon, paste, tmp_path):
    tools = f"{tmp_path}/tools:{os.environ['PATH']}"
    daemon = start_daemon(PATH=tools)
    checkout = upstream.checkout(
        daemon.root, health=f"[[ ! -e sick || -e {tmp_path}/well ]]", healthTimeout="0", deploy="echo . >> deploys"
    )
    hook("sync", "acme/site")
    good, bad = upstream.head(), upstream.commit({"sick": "1"})
    daemon.deliver(push("acme/site", bad))
    until(lambda: status(hook)["state"] == "rolled back")
    assert head(checkout) == good
    hook("deploy", "acme/site", status=71)  # without --force, a bad commit stays bad
    hook("deploy", "acme/site", "--commit", bad[:8], status=71)
    fix = status(hook)["fix"]
    assert f"gitops-hook deploy --force --commit {bad} acme/site" in fix
    (tmp_path / "well").touch()
    paste(fix.replace("sudo ", ""))
    assert head(checkout) == bad
    count = (checkout / "deploys").read_text()
    hook("deploy", "acme/site")
    assert (checkout / "deploys").read_text() == count + ".\n"
    assert (status(hook)["state"], status(hook)["hold"]) == ("in sync", None)
    assert daemon.query("SELECT pusher FROM deliveries WHERE event = 'deploy'") == [(getpass.getuser(),)] * 4


def test_a_rollback_holds_the_last_good_commit_until_deploy(upstream, hook, start_daemon, paste):
    (commands,) = code_blocks("docs/operations.md", "Rolling back", "sh")
    rollback, release = commands.splitlines()
    daemon = start_daemon()
    checkout = upstream.checkout(daemon.root)
    commits = [upstream.head()]
    hook("sync", "acme/site")
    for text in "12":
        commits.append(upstream.commit({"page": text}))
        hook("sync", "acme/site")
    said = paste(rollback)
    assert f"acme/site is pinned at {commits[1][:10]} by {getpass.getuser()}: the cart is broken" in said
    assert head(checkout) == commits[1]
    hook("rollback", "acme/site")  # further back, not forth again
    assert head(checkout) == commits[0]
    hook("rollback", "acme/site", "--reason", "twice", status=66)  # nothing was deployed before
    newest = upstream.commit({"page": "3"})
    daemon.deliver(push("acme/site", newest))
    assert daemon.wait_for_run("trigger=push")[1] == "held"
    found = status(hook)
    assert (found["state"], found["hold"]["commit"], found["pending"]) == ("held", commits[0], 0)
    assert re.search(r"is pinned at .* To release: gitops-hook deploy acme/site", hook("status").stdout)
    paste(release)
    assert head(checkout) == newest
    assert (status(hook)["state"], status(hook)["hold"]) == ("in sync", None)


def test_a_push_ends_a_rollback_until_the_next_push(upstream, hook, start_daemon):
    daemon = start_daemon()
    checkout = upstream.checkout(daemon.root)
    first = upstream.head()
    upstream.commit({"page": "1"})
    hook("sync", "acme/site")
    assert "until the next push" in hook("rollback", "acme/site", first, "--until-push").stdout
    daemon.deliver(push("acme/site", upstream.head()))  # an old webhook, delivered again
    assert daemon.wait_for_run("trigger=push")[1] == "held"
    assert (head(checkout), status(hook)["hold"]["until_push"]) == (first, True)
    newest = upstream.commit({"page": "2"})
    daemon.deliver(push("acme/site", newest))
    assert daemon.wait_for_run("trigger=push")[1] == "updated"
    assert (head(checkout), status(hook)["hold"]) == (newest, None)


def test_an_unhealthy_commit_is_rolled_back(tmp_path, upstream, hook, start_daemon, paste):
    (commands,) = code_blocks("docs/operations.md", "Health checks", "sh")
    (tmp_path / "www").mkdir()
    page = tmp_path / "www/health"
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(SimpleHTTPRequestHandler, directory=str(page.parent))) as server:
        threading.Thread(target=server.serve_forever).start()
        try:
            daemon = start_daemon()
            checkout = upstream.checkout(daemon.root)
            hook("config", "acme/site", "deploy", f"[ -e broken ] && rm {page} || touch {page}")
            hook("config", "acme/site", "healthTimeout", "1")
            paste(commands.replace("9000", str(server.server_port)))
            good = upstream.head()
            hook("deploy", "acme/site")
            upstream.commit({"broken": "yes"})
            hook("sync", "acme/site", status=71)
            assert (head(checkout), page.exists(), status(hook)["state"]) == (good, True, "rolled back")
            hook("sync", "acme/site", status=71)
            hook("deploy", "--force", "acme/site", status=71)
        finally:
            server.shutdown()


def test_a_commit_outside_the_branch_is_not_deployed(upstream, hook, start_daemon):
    daemon = start_daemon()
    checkout = upstream.checkout(daemon.root)
    hook("sync", "acme/site")
    git("commit", "--quiet", "--allow-empty", "--message", "local", cwd=checkout)
    for name in ("HEAD", "f" * 40, "--upload-pack=x", "a..b"):
        reason = "not in the branch" if name == "HEAD" else "has no commit"
        assert reason in hook("deploy", "acme/site", f"--commit={name}", status=66).stderr
    assert "belong to --commit" in hook("deploy", "acme/site", "--until-push", status=64).stderr
    assert "gitops.pin" not in git("config", "--local", "--list", cwd=checkout)


def test_a_checkout_follows_releases(upstream, hook, start_daemon, paste):
    (commands,) = code_blocks("docs/operations.md", "Following releases", "sh")
    daemon = start_daemon()
    checkout = upstream.checkout(daemon.root)

    def release(tag: str) -> str:
        commit = upstream.commit({"page": tag})
        git("tag", "--annotate", "--message", tag, tag, cwd=upstream.work)
        git("push", "--quiet", "origin", f"refs/tags/{tag}", cwd=upstream.work)
        return commit

    first = release("v1.9")
    paste(commands)
    found = status(hook)
    assert (head(checkout), found["tag"], found["state"]) == (first, "v1.9", "in sync")
    after = upstream.commit({"page": "not released"})
    answer = daemon.deliver(push("acme/site", after))
    assert (answer[0], answer[1]["reason"]) == (200, "the tracked pattern of tags is `v*`")
    second = release("v1.10")
    tag_object = git("rev-parse", "v1.10", cwd=upstream.work)
    assert daemon.deliver(push("acme/site", tag_object, ref="refs/tags/v1.10"))[0] == 202
    assert daemon.wait_for_run("trigger=push")[1] == "updated"
    assert (head(checkout), status(hook)["tag"]) == (second, "v1.10")
    assert "v1.10" in hook("status").stdout
    hook("rollback", "acme/site")
    assert (head(checkout), status(hook)["state"], status(hook)["tag"]) == (first, "held", None)
    hook("deploy", "acme/site")
    assert status(hook)["tag"] == "v1.10"
    assert "202" in hook("send", "acme/site", GITOPS_LISTEN=f"127.0.0.1:{daemon.port}").stdout
    assert "v*" in hook("doctor", status=2).stdout


def test_a_host_that_left_its_fleet_follows_the_branch(upstream, hook, start_daemon, paste):
    (commands,) = code_blocks("docs/fleet.md", "Leave", "sh")
    daemon = start_daemon()
    checkout = upstream.checkout(daemon.root)
    approved = upstream.head()
    git("config", "gitops.approved", approved, cwd=checkout)
    newest = upstream.commit({"page": "2"})
    hook("sync", "acme/site")
    assert (head(checkout), status(hook)["state"]) == (approved, "held")
    paste(commands)
    assert (head(checkout), status(hook)["state"]) == (newest, "in sync")


def test_a_pause_ends_by_itself(upstream, hook, start_daemon):
    daemon = start_daemon()
    checkout = upstream.checkout(daemon.root)
    hook("pause", "acme/site", "--for", "1s")
    after = upstream.commit({"a": "b"})
    until(lambda: status(hook)["hold"] is None)
    daemon.process.send_signal(signal.SIGHUP)
    until(lambda: status(hook)["state"] == "in sync")
    assert head(checkout) == after
    assert "paused" not in git("config", "--local", "--list", cwd=checkout)
