"""Commands next to a running daemon: the daemon performs the runs, the commands follow."""

from __future__ import annotations

import getpass
import json
import os
import pty
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from harness import Daemon, push, until
from scratch import Upstream, git

#: A deploy that announces its start in one FIFO, and waits for a line in another.
GATED = "echo began > ../../../began; read -r word < ../../../gate; echo $word"


@pytest.fixture
def gate(tmp_path: Path) -> Path:
    os.mkfifo(tmp_path / "began")
    os.mkfifo(tmp_path / "gate")
    return tmp_path / "gate"


def wait_for_begin(gate: Path) -> None:
    with gate.with_name("began").open() as began:
        assert began.read() == "began\n"


@contextmanager
def typed(environ: dict[str, str], *words: str) -> Iterator[subprocess.Popen[str]]:
    """Start a command, and end it with the block."""
    command = [sys.executable, "-m", "gitops_hook", *words]
    with subprocess.Popen(
        command, env=environ, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def newest(daemon: Daemon, column: str) -> object:
    return daemon.query(f"SELECT {column} FROM runs ORDER BY id DESC LIMIT 1")[0][0]


def test_the_daemon_performs_the_run_and_records_the_user(tmp_path, upstream, hook, start_daemon):
    daemon = start_daemon(HOME="/the-daemons-home")
    upstream.checkout(daemon.root, deploy='echo "$HOME ${SSH_AUTH_SOCK-none}" > ../../../seen')
    done = hook("sync", "acme/site", HOME="/the-callers-home", SSH_AUTH_SOCK="/the-callers-agent")
    assert "updated" in done.stdout or "unchanged" in done.stdout
    assert "no daemon" not in done.stderr
    assert (tmp_path / "seen").read_text() == "/the-daemons-home none\n"
    assert daemon.query("SELECT event, pusher, pending FROM deliveries WHERE event = 'manual'") == [
        ("manual", getpass.getuser(), 0)
    ]


@pytest.mark.parametrize("with_daemon", [True, False])
def test_a_deploy_never_has_a_terminal(tmp_path, upstream, environ, start_daemon, with_daemon):
    if with_daemon:
        start_daemon()
    deploy = "if (: < /dev/tty) 2>/dev/null; then echo yes; else echo no; fi > ../../../terminal"
    upstream.checkout(tmp_path / "root", deploy=deploy)
    pid, terminal = pty.fork()
    if not pid:
        os.execve(sys.executable, [sys.executable, "-m", "gitops_hook", "sync", "acme/site"], environ)
    shown = b""
    while True:
        try:
            shown += os.read(terminal, 65536)
        except OSError:  # EIO: the other end is closed
            break
    os.close(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0, shown
    assert (tmp_path / "terminal").read_text() == "no\n"


def test_without_a_daemon_the_command_says_so_in_one_line(upstream, tmp_path, hook):
    upstream.checkout(tmp_path / "root")
    done = hook("sync", "acme/site")
    assert "no daemon is running" in done.stderr
    assert done.stderr.count("\n") == 1


def test_an_interrupt_stops_following_and_cancel_ends_the_run(tmp_path, upstream, environ, hook, start_daemon, gate):
    daemon = start_daemon()
    upstream.checkout(daemon.root, deploy=GATED)
    with typed(environ, "sync", "acme/site") as command:
        wait_for_begin(gate)
        command.send_signal(signal.SIGINT)
        _, errors = command.communicate(timeout=30)
        assert command.returncode == 130
    assert "the runs continue. To end them: gitops-hook sync --cancel acme/site" in errors
    assert newest(daemon, "outcome") is None
    number = newest(daemon, "id")
    assert hook("sync", "--cancel", "acme/site").stdout == f"run {number} was cancelled\n"
    assert (newest(daemon, "outcome"), newest(daemon, "cause")) == ("interrupted", "cancelled")
    assert daemon.query("SELECT 1 FROM deliveries WHERE pending") == []
    assert "no run was in progress" in hook("sync", "--cancel", "acme/site").stdout


def test_a_follower_of_a_cancelled_run_exits_as_interrupted(upstream, environ, hook, start_daemon, gate):
    daemon = start_daemon()
    upstream.checkout(daemon.root, deploy=GATED)
    with typed(environ, "sync", "acme/site") as command:
        wait_for_begin(gate)
        hook("sync", "--cancel", "acme/site")
        output, _ = command.communicate(timeout=30)
        assert command.returncode == 130
    assert "interrupted" in output


def test_sync_during_a_run_follows_the_next_run(upstream, environ, hook, start_daemon, gate):
    daemon = start_daemon()
    checkout = upstream.checkout(daemon.root, deploy=GATED)
    daemon.deliver(push("acme/site", upstream.commit({"a": "b"})))
    wait_for_begin(gate)
    after = upstream.commit({"a": "c"})
    with typed(environ, "sync", "--json", "acme/site") as command:
        until(lambda: daemon.query("SELECT 1 FROM deliveries WHERE event = 'manual'"))
        git("config", "gitops.deploy", "true", cwd=checkout)
        gate.write_text("go on\n")
        output, _ = command.communicate(timeout=30)
        assert command.returncode == 0
    row = json.loads(output)
    assert (row["outcome"], row["after"]) == ("updated", after)


def test_a_failure_prints_the_last_lines_and_the_command_for_all(upstream, hook, start_daemon):
    daemon = start_daemon()
    upstream.checkout(daemon.root, deploy=r"seq 30; printf '\033[2Jmissing tool\n'; exit 3")
    output = hook("sync", "acme/site", status=70).stdout
    lines = output.splitlines()
    assert "    30" in lines and "    1" not in lines
    assert "\x1b" not in output and "missing tool" in output
    assert lines[-1] == f"All output: gitops-hook logs {newest(daemon, 'id')}"


def test_a_terminal_has_a_live_line(upstream, tmp_path, environ, start_daemon, gate):
    daemon = start_daemon()
    upstream.checkout(daemon.root, deploy=f"echo compiling; {GATED}")
    terminal, slave = pty.openpty()
    command = [sys.executable, "-m", "gitops_hook", "sync", "acme/site"]
    with subprocess.Popen(command, env=environ, stdin=slave, stdout=slave, stderr=slave) as process:
        os.close(slave)
        wait_for_begin(gate)
        shown = b""
        while not re.search(rb"acme/site: running for .*compiling", shown):
            shown += os.read(terminal, 65536)
        gate.write_text("go on\n")
        while True:
            try:
                shown += os.read(terminal, 65536)
            except OSError:  # EIO: the other end is closed
                break
    os.close(terminal)
    assert process.returncode == 0
    assert b"updated" in shown or b"unchanged" in shown


def test_a_command_waits_for_a_command_that_performs_the_runs(tmp_path, upstream, environ, gate):
    upstream.checkout(tmp_path / "root", deploy=GATED)
    Upstream(tmp_path / "forge", "acme/blog").checkout(tmp_path / "root")
    with typed(environ, "sync", "acme/site") as first:
        wait_for_begin(gate)
        with typed(environ, "sync", "--json", "acme/blog") as second:
            output, errors = second.communicate(timeout=30)
            assert second.returncode == 0
        assert json.loads(output)["repository"] == "acme/blog"
        assert "gitops-hook sync (process " in errors
        gate.write_text("go on\n")
        assert first.communicate(timeout=30)[0]
        assert first.returncode == 0


# -- add -----------------------------------------------------------------------------------------------------------


def test_a_push_during_the_clone_sees_no_checkout(tmp_path, upstream, environ, start_daemon, gate):
    daemon = start_daemon()
    slow = (
        f"ext::sh -c echo% began% >% {gate.with_name('began')};% read% x% <% {gate};% git-upload-pack% {upstream.bare}"
    )
    environ = {**environ, "GIT_ALLOW_PROTOCOL": "ext:file"}
    with typed(environ, "add", "acme/site", "--url", slow, "--deploy", "echo live > ../../../live") as command:
        wait_for_begin(gate)  # the command asks the remote before it clones
        gate.write_text("go on\n")
        wait_for_begin(gate)
        assert not (daemon.root / "acme/site").exists()
        assert daemon.deliver(push("acme/site", upstream.head()))[1]["status"] == "ignored"
        gate.write_text("go on\n")
        # The run asks the remote, too.
        git("--version", cwd=tmp_path)
        checkout = daemon.root / "acme/site"
        until(checkout.exists)
        git("remote", "set-url", "origin", upstream.bare, cwd=checkout)
        output, errors = command.communicate(timeout=30)
    assert git("config", "gitops.deploy", cwd=checkout) == "echo live > ../../../live", output + errors
    assert [path.name for path in checkout.parent.iterdir()] == ["site"]


def test_the_messages_of_the_remote_are_captured_and_escaped(tmp_path, upstream, hook, environ):
    remote = tmp_path / "acme/site"
    remote.parent.mkdir()
    remote.write_text("#!/bin/sh\nprintf '\\033[31mno such project\\n' >&2\nexit 1\n")
    remote.chmod(0o755)
    done = hook("add", "acme/site", "--url", f"ext::{remote}", status=75, GIT_ALLOW_PROTOCOL="ext")
    assert "no such project" in done.stderr
    assert "\x1b" not in done.stderr + done.stdout
    assert list((tmp_path / "root").iterdir()) == []


def test_add_rejects_invalid_settings_before_it_clones(tmp_path, upstream, hook):
    assert "gitops.branch must be" in hook("add", "acme/site", "--branch", "..", status=64).stderr
    assert not (tmp_path / "root/acme").exists()


# -- settings ------------------------------------------------------------------------------------------------------


def test_config_lists_sets_and_unsets(tmp_path, upstream, hook, start_daemon):
    daemon = start_daemon()
    checkout = upstream.checkout(daemon.root)
    rows = [json.loads(line) for line in hook("config", "acme/site", "--json").stdout.splitlines()]
    effective = {row["name"]: (row["value"], row["source"]) for row in rows}
    assert effective["branch"][0] is None
    assert effective["timeout"][0] == "600"
    hook("config", "acme/site", "branch", status=1)
    hook("config", "acme/site", "Branch", "main")
    assert git("config", "gitops.branch", cwd=checkout) == "main"
    assert hook("config", "acme/site", "gitops.branch").stdout == "main\n"
    assert re.search(r"^branch +main +\S*/config$", hook("config", "acme/site").stdout, re.MULTILINE)
    assert "gitops.dirty must be" in hook("config", "acme/site", "dirty", "maybe", status=65).stderr
    assert "did you mean branch?" in hook("config", "acme/site", "brnch", "x", status=64).stderr
    hook("config", "acme/site", "--unset", status=64)
    hook("config", "acme/site", "--unset", "branch", "main", status=64)
    hook("config", "acme/site", "branch", "--unset")
    hook("config", "acme/site", "deploy", "true")
    hook("config", "acme/site", "--unset", "deploy")
    hook("config", "acme/site", "health", "--", "--version")
    hook("config", "--unset", "acme/site", "health")
    assert "gitops.health" not in git("config", "--list", "--local", cwd=checkout)
    assert "deploy" not in git("config", "--list", "--local", cwd=checkout)
    assert "branch" not in git("config", "--list", "--local", cwd=checkout).replace("branch.main", "")
    hook("config", "acme/none", status=66)
