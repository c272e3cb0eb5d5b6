"""Requests to a running daemon over its control socket."""

from __future__ import annotations

import os
import re
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from harness import Daemon, push, until
from scratch import git
from unix_client import post

from gitops_hook.text import rfc3339

GATED = 'echo "$GITOPS_EVENT" >> "$GITOPS_ROOT/../began"; read -r _ < "$GITOPS_ROOT/../gate"'


def ask(daemon: Daemon, target: str, **body: Any) -> tuple[int, dict[str, Any]]:
    return post(daemon.state / "control.sock", target, {"by": "ada", **body})


def checkout(daemon: Daemon, name: str = "acme/site") -> Path:
    path = daemon.root / name
    path.mkdir(parents=True)
    git("init", "--quiet", cwd=path)
    return path


@pytest.fixture
def gated(tmp_path: Path, start_daemon, script) -> Daemon:
    """A daemon whose runs of acme/site wait until somebody writes to `gate`."""
    os.mkfifo(tmp_path / "gate")
    daemon = start_daemon(GITOPS_SYNC_SCRIPT=script(GATED))
    checkout(daemon)
    return daemon


def runs(daemon: Daemon) -> list[tuple[Any, ...]]:
    return daemon.query("SELECT trigger, outcome, cause FROM runs ORDER BY id")


def test_a_request_is_a_delivery_that_a_run_settles(start_daemon, script):
    daemon = start_daemon(GITOPS_SYNC_SCRIPT=script('echo "$GITOPS_EVENT $GITOPS_AFTER $*" > "$GITOPS_ROOT/../run"'))
    checkout(daemon)
    status, answer = ask(daemon, "/runs", checkouts=["acme/site"], trigger="deploy", commit="a" * 40, force=True)
    assert status == 202
    (request,) = answer["requests"]
    assert request["checkout"] == "acme/site"
    daemon.wait_for_run()
    assert daemon.query("SELECT guid, event, pusher, pending FROM deliveries") == [
        (request["delivery"], "deploy", "ada", 0)
    ]
    assert runs(daemon) == [("deploy", "updated", None)]
    assert (daemon.root / "../run").read_text() == f"deploy {'a' * 40} --force site\n"


def test_all_names_every_checkout(start_daemon, script):
    daemon = start_daemon(GITOPS_SYNC_SCRIPT=script("exit 0"))
    names = [f"acme/site{number}" for number in range(5)]
    for name in names:
        checkout(daemon, name)
    status, answer = ask(daemon, "/runs", checkouts=[], all=True, trigger="sweep")
    assert status == 202
    assert sorted(request["checkout"] for request in answer["requests"]) == names
    until(lambda: len(runs(daemon)) == 5 and daemon.query("SELECT 1 FROM deliveries WHERE pending") == [])
    assert set(runs(daemon)) == {("sweep", "updated", None)}


def test_a_request_survives_a_kill_of_the_daemon(gated: Daemon):
    ask(gated, "/runs", checkouts=["acme/site"], trigger="manual")
    until((gated.root / "../began").exists)
    gated.kill()
    gated.start()
    (gated.root / "../gate").write_text("\n")
    until(lambda: gated.query("SELECT pending FROM deliveries") == [(0,)])
    assert runs(gated)[:2] == [("manual", "interrupted", "killed"), ("recovery", "updated", None)]


def test_a_request_during_a_run_gets_the_next_run(gated: Daemon):
    gated.deliver(push("acme/site"))
    until((gated.root / "../began").exists)
    ask(gated, "/runs", checkouts=["acme/site"], trigger="manual")
    (gated.root / "../gate").write_text("\n")
    until(lambda: len((gated.root / "../began").read_text().split()) == 2)
    (gated.root / "../gate").write_text("\n")
    until(
        lambda: (
            runs(gated)[1:] == [("manual", "updated", None)]
            and gated.query("SELECT 1 FROM deliveries WHERE pending") == []
        )
    )
    assert gated.query("SELECT event, run FROM deliveries ORDER BY id") == [("push", 1), ("manual", 2)]


def test_cancel_ends_the_run_and_settles_its_deliveries(gated: Daemon):
    gated.deliver(push("acme/site"))
    until((gated.root / "../began").exists)
    assert ask(gated, "/cancel", checkouts=["acme/site"]) == (200, {"runs": [1]})
    until(lambda: runs(gated) == [("push", "interrupted", "cancelled")])
    assert gated.query("SELECT pending FROM deliveries") == [(0,)]
    assert ask(gated, "/cancel", checkouts=["acme/site"]) == (200, {"runs": []})


def test_cancel_gives_up_a_run_that_waits_to_be_retried(start_daemon, script):
    daemon = start_daemon(GITOPS_SYNC_SCRIPT=script("exit 75"))
    checkout(daemon)
    daemon.deliver(push("acme/site"))
    until(lambda: runs(daemon) == [("push", "unreachable", None)])
    assert ask(daemon, "/cancel", checkouts=["acme/site"]) == (200, {"runs": []})
    assert daemon.query("SELECT pending FROM deliveries") == [(0,)]
    assert runs(daemon) == [("push", "unreachable", "cancelled")]


def test_pause_resume_and_config_write_the_checkout_s_own_settings(start_daemon, script):
    daemon = start_daemon(GITOPS_SYNC_SCRIPT=script("exit 0"))
    path = checkout(daemon)

    def setting(name: str) -> str:
        done = subprocess.run(["git", "config", f"gitops.{name}"], cwd=path, capture_output=True, text=True)
        return done.stdout.strip()

    assert ask(daemon, "/pause", checkouts=["acme/site"], reason="tuning", until=None) == (200, {})
    assert setting("paused") == "true"
    assert re.fullmatch(r"ada 20\S+Z tuning", setting("pausedBy"))
    until_time = time.time() + 7200
    assert ask(daemon, "/pause", checkouts=["acme/site"], until=until_time) == (200, {})
    assert setting("paused") == rfc3339(until_time, "seconds")
    assert re.fullmatch(r"ada 20\S+Z", setting("pausedBy"))
    assert ask(daemon, "/resume", checkouts=["acme/site"])[0] == 202
    assert setting("paused") == setting("pausedBy") == ""
    until(lambda: runs(daemon) == [("resume", "updated", None)])
    assert ask(daemon, "/config", checkout="acme/site", name="paused", value="true") == (200, {})
    assert setting("pausedBy").startswith("ada 20")
    assert ask(daemon, "/config", checkout="acme/site", name="paused", value=None) == (200, {})
    assert setting("pausedBy") == ""
    assert ask(daemon, "/config", checkout="acme/site", name="branch", value="next") == (200, {})
    assert setting("branch") == "next"
    for _ in range(2):
        assert ask(daemon, "/config", checkout="acme/site", name="branch", value=None) == (200, {})
    assert setting("branch") == ""


@pytest.mark.parametrize(
    ("target", "body", "status", "reason"),
    [
        ("/runs", {"checkouts": ["acme/none"]}, 404, "there is no checkout of acme/none"),
        ("/runs", {"checkouts": ["../etc"]}, 400, "`../etc` is not a repository's name"),
        ("/runs", {"checkouts": []}, 400, "`checkouts` is not a list of names"),
        ("/runs", {"checkouts": ["acme/site"], "trigger": "push"}, 400, "`trigger` is none of "),
        ("/runs", {"checkouts": ["acme/site"], "commit": "abc"}, 400, "`commit` is not a full commit id"),
        ("/runs", [], 400, "the request is not a JSON object"),
        (
            "/config",
            {"checkout": "acme/site", "name": "brnach", "value": "x"},
            400,
            "there is no setting gitops.brnach",
        ),
        ("/config", {"checkout": "acme/site", "name": "branch", "value": "-x"}, 400, "gitops.branch must be"),
        ("/config", {"checkout": "acme/site", "name": "branch", "value": 7}, 400, "`value` is neither"),
        ("/pause", {"checkouts": ["acme/site"], "until": 1.0}, 400, "`until` is not a time in the future"),
        ("/pause", {"checkouts": ["acme/site"], "until": "soon"}, 400, "`until` is not a time in the future"),
        ("/nothing", {}, 404, "there is no request /nothing"),
    ],
)
def test_an_invalid_request_changes_nothing(start_daemon, script, target, body, status, reason):
    daemon = start_daemon(GITOPS_SYNC_SCRIPT=script("exit 0"))
    checkout(daemon)
    found, answer = post(daemon.state / "control.sock", target, body)
    assert found == status
    assert answer["reason"].startswith(reason)
    assert daemon.query("SELECT count(*) FROM deliveries") == [(0,)]


def test_the_socket_is_private_and_a_get_is_rejected(start_daemon, script):
    daemon = start_daemon(GITOPS_SYNC_SCRIPT=script("exit 0"))
    path = daemon.state / "control.sock"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert post(path, "/runs", {}, "GET")[0] == 405


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be another user")
def test_another_user_is_rejected_even_where_the_socket_is_open(start_daemon, script):
    daemon = start_daemon(GITOPS_SYNC_SCRIPT=script("exit 0"))
    checkout(daemon)
    path = daemon.state / "control.sock"
    path.chmod(0o777)
    for directory in (path.parent, *path.parents):
        if directory.stat().st_mode & 0o005 != 0o005:
            directory.chmod(0o755)
    tests = Path(__file__).resolve().parents[1]
    code = (
        f"import os, sys; sys.path.insert(0, {str(tests)!r}); from unix_client import post; from pathlib import Path;"
        f"os.setuid(65534); print(post(Path({str(path)!r}), '/runs', {{'checkouts': ['acme/site']}}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.startswith("(403, "), done.stderr
    assert daemon.query("SELECT count(*) FROM deliveries") == [(0,)]


def test_a_socket_path_that_the_kernel_cannot_take_ends_the_start(tmp_path: Path):
    done = subprocess.run(
        [sys.executable, "-m", "gitops_hook", "serve", "--root", tmp_path, "--state", tmp_path / ("x" * 100)],
        env={"GITHUB_WEBHOOK_SECRET": "x", "PATH": os.environ["PATH"], "PYTHONPATH": str(Path.cwd())},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 78
    assert "GITOPS_CONTROL" in done.stderr
    assert "107 bytes" in done.stderr
