"""Daily operation with a real daemon, real commands and real checkouts: holds, releases and rollbacks."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
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
