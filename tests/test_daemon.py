"""The daemon as a process: how it starts, how it ends, what its settings do."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from harness import MEASURED, SECRET, SOURCE, Daemon, processes_of, push

#: A script that reports its start on one fifo, and ends after a line on another.
WAITS = 'echo running > "$GITOPS_ROOT/../running"; read -r word < "$GITOPS_ROOT/../go"; echo "$word"'


@pytest.fixture
def fifos(tmp_path: Path) -> Path:
    for name in ("running", "go"):
        os.mkfifo(tmp_path / name)
    return tmp_path


def serve(tmp_path: Path, *arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """Run the program until it ends by itself."""
    given = {
        "PATH": os.environ["PATH"],
        "HOME": str(tmp_path),
        "PYTHONPATH": str(SOURCE),
        **MEASURED,
        "GITHUB_WEBHOOK_SECRET": SECRET,
        "GITOPS_ROOT": str(tmp_path),
        "GITOPS_CONTROL": str(tmp_path / "control.sock"),
        "GITOPS_LISTEN": "127.0.0.1:0",
        "GITOPS_DASHBOARD_LISTEN": "127.0.0.1:0",
        **environ,
    }
    given = {name: value for name, value in given.items() if value != "unset"}
    return subprocess.run(
        [sys.executable, "-m", "gitops_hook", *(arguments or ("serve",))],
        env=given,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=30,
    )


@pytest.mark.parametrize(
    ("environ", "said"),
    [
        ({"GITHUB_WEBHOOK_SECRET": "unset"}, "there is no secret. Set GITHUB_WEBHOOK_SECRET_FILE or GITHUB_WEBHOOK_SECRET"),
        ({"GITHUB_WEBHOOK_SECRET_FILE": "/nonexistent"}, "GITHUB_WEBHOOK_SECRET_FILE='/nonexistent' is invalid: No such file"),
        ({"GITOPS_MAX_SYNCS": "many"}, "GITOPS_MAX_SYNCS='many' from the environment is invalid: it is not a whole number"),
        ({"GITOPS_ROOT": "/nonexistent"}, "GITOPS_ROOT='/nonexistent' from the environment is invalid: the directory does not exist"),
        ({"GITOPS_LISTEN": "localhost:80"}, "GITOPS_LISTEN='localhost:80' from the environment is invalid: "),
        ({"GITOPS_MAXSYNCS": "4"}, "GITOPS_MAXSYNCS from the environment is invalid: there is no such option; did you mean GITOPS_MAX_SYNCS?"),
    ],
)  # fmt: skip
def test_a_bad_setting_ends_the_start_with_one_line_and_78(tmp_path, environ, said):
    done = serve(tmp_path, **environ)
    assert done.returncode == 78
    assert done.stderr.startswith(f"gitops-hook: {said}")
    assert done.stderr.count("\n") == 1


def test_an_invalid_flag_is_named(tmp_path):
    done = serve(tmp_path, "serve", "--sync-timeout", "0")
    assert done.returncode == 78
    assert "GITOPS_SYNC_TIMEOUT='0' from the flag --sync-timeout is invalid" in done.stderr


def test_a_usage_error_exits_with_64(tmp_path):
    for arguments in (["serve", "--no-such-flag"], ["no-such-command"], []):
        done = subprocess.run(
            [sys.executable, "-m", "gitops_hook", *arguments], cwd=SOURCE, capture_output=True, text=True, timeout=30
        )
        assert done.returncode == 64
        assert "usage: gitops-hook" in done.stderr


def test_a_port_in_use_is_reported_in_one_line(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        done = serve(tmp_path, GITOPS_LISTEN=address)
    assert done.returncode == 69
    assert done.stderr == f"gitops-hook: GITOPS_LISTEN={address} cannot be used: Address already in use\n"


def test_a_second_daemon_on_the_same_state_is_refused(tmp_path, start_daemon):
    daemon = start_daemon()
    done = serve(tmp_path, GITOPS_STATE=str(daemon.state))
    assert done.returncode == 69
    assert "another gitops-hook uses GITOPS_STATE" in done.stderr
    assert daemon.request("GET", "/healthz")[0] == 200


def test_a_state_directory_that_cannot_be_created_is_reported_in_one_line(tmp_path):
    (tmp_path / "file").touch()
    done = serve(tmp_path, GITOPS_STATE=str(tmp_path / "file/state"))
    assert (done.returncode, done.stderr.count("\n")) == (69, 1)


def test_the_program_runs_from_the_source_tree(tmp_path, start_daemon):
    daemon = start_daemon(program=[str(SOURCE / "scripts/gitops-hook")], PYTHONPATH="")
    assert daemon.request("GET", "/healthz") == (200, {"status": "ok"})
    assert daemon.stop() == 0


def test_the_daemon_listens_on_ipv6(start_daemon):
    daemon = start_daemon(GITOPS_LISTEN="[::1]:0")
    with socket.create_connection(("::1", daemon.port), timeout=10) as connection:
        connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        assert connection.recv(100).startswith(b"HTTP/1.1 200 OK\r\n")


def told_to_end_in_a_run(
    fifos: Path, start_daemon: Callable[..., Daemon], script: Callable[..., str], **options
) -> Daemon:
    """A daemon with a current run for the delivery `kept`, after SIGTERM."""
    daemon = start_daemon(GITOPS_SYNC_SCRIPT=script(WAITS), **options)
    (daemon.root / "acme/site/.git").mkdir(parents=True)
    daemon.deliver(push("acme/site"), guid="kept")
    (fifos / "running").read_text()
    daemon.process.send_signal(signal.SIGTERM)
    daemon.wait_for("stopping signal=SIGTERM")
    return daemon


def test_sigterm_lets_a_run_end(fifos, start_daemon, script):
    daemon = told_to_end_in_a_run(fifos, start_daemon, script)
    (fifos / "go").write_text("word\n")
    assert daemon.wait() == 0
    assert daemon.query("SELECT outcome, exit FROM runs") == [("updated", 0)]
    assert (daemon.state / "runs/1.log").read_text() == "word\n"


def ends_the_run_and_owes_it(daemon: Daemon, fifos: Path) -> None:
    """Check that the run's process group has ended, and that its delivery runs again."""
    assert daemon.wait() == 0
    assert daemon.query("SELECT outcome, exit FROM runs") == [("interrupted", -signal.SIGTERM)]
    assert daemon.query("SELECT guid, pending FROM deliveries") == [("kept", 1)]
    assert not processes_of(daemon.root)
    daemon.start()
    assert (fifos / "running").read_text() == "running\n"
    (fifos / "go").write_text("word\n")
    daemon.wait_for(r"run updated .*trigger=recovery .*delivery=kept")
    assert daemon.query("SELECT guid, run, pending FROM deliveries") == [("kept", 2, 0)]


def test_a_second_sigterm_ends_the_run_at_once(fifos, start_daemon, script):
    daemon = told_to_end_in_a_run(fifos, start_daemon, script)
    daemon.process.send_signal(signal.SIGTERM)
    daemon.wait_for('ending the current runs reason="a second signal"')
    ends_the_run_and_owes_it(daemon, fifos)


def test_a_reload_while_it_stops_ends_no_run(fifos, start_daemon, script):
    daemon = told_to_end_in_a_run(fifos, start_daemon, script)
    daemon.process.send_signal(signal.SIGHUP)
    daemon.wait_for("still stopping signal=SIGHUP")
    (fifos / "go").write_text("word\n")
    assert daemon.wait() == 0
    assert daemon.query("SELECT outcome, exit FROM runs") == [("updated", 0)]


def test_the_run_is_ended_at_the_deadline(fifos, start_daemon, script):
    hasty = "import gitops_hook.daemon as d; d.RUNS_DEADLINE = 0.3; from gitops_hook.cli.main import main; raise SystemExit(main())"
    daemon = told_to_end_in_a_run(fifos, start_daemon, script, program=["-c", hasty])
    ends_the_run_and_owes_it(daemon, fifos)


def test_sighup_syncs_every_checkout(start_daemon, script):
    daemon = start_daemon(GITOPS_SYNC_SCRIPT=script("true"))
    for name in ("acme/site", "acme/blog"):
        (daemon.root / name / ".git").mkdir(parents=True)
    daemon.process.send_signal(signal.SIGHUP)
    assert {daemon.wait_for(r"run updated repository=(\S+) .*trigger=sweep")[1] for _ in range(2)} == {
        "acme/site",
        "acme/blog",
    }


def test_secrets_are_rotated_without_a_restart(tmp_path, start_daemon):
    secrets = tmp_path / "secrets"
    secrets.write_text("old\n")
    daemon = start_daemon(GITHUB_WEBHOOK_SECRET="", GITHUB_WEBHOOK_SECRET_FILE=str(secrets))
    tries = [daemon.deliver({"zen": ""}, "ping", secret=secret)[0] for secret in ("old", "new")]
    new = tmp_path / "secrets.new"
    new.write_text("new\nold\n")
    new.rename(secrets)
    tries += [daemon.deliver({"zen": ""}, "ping", secret=secret)[0] for secret in ("old", "new")]
    daemon.wait_for('webhook pong .*secret="line 2"')
    secrets.write_text("new\n")
    tries += [daemon.deliver({"zen": ""}, "ping", secret=secret)[0] for secret in ("old", "new")]
    assert tries == [200, 401, 200, 200, 401, 200]


def test_systemd_passes_the_socket_and_receives_the_state(tmp_path, start_daemon):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as supervisor, socket.create_server(("127.0.0.1", 0)) as ours:
        supervisor.bind(str(tmp_path / "notify"))
        supervisor.settimeout(30)
        os.set_inheritable(ours.fileno(), True)
        activate = (
            "import os, sys; os.dup2(int(sys.argv.pop(1)), 3); "
            "os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS='1', LISTEN_FDNAMES='webhook'); "
            "os.execv(sys.executable, [sys.executable, '-m', 'gitops_hook', *sys.argv[1:]])"
        )
        daemon = start_daemon(
            program=["-c", activate, str(ours.fileno())],
            keep_open=[ours.fileno()],
            NOTIFY_SOCKET=str(tmp_path / "notify"),
        )
        assert daemon.port == ours.getsockname()[1]
        assert supervisor.recv(100) == b"READY=1"
        assert daemon.stop() == 0
        assert all(state.startswith(b"STATUS=") for state in iter(lambda: supervisor.recv(100), b"STOPPING=1"))
        with socket.create_connection(ours.getsockname(), timeout=30) as early:  # the kernel holds it meanwhile
            early.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            daemon.start()
            assert early.recv(100).startswith(b"HTTP/1.1 200 OK\r\n")


def test_no_signal_is_lost_before_the_wait():
    hammer = (
        "import os, signal, threading, time\n"
        "from gitops_hook.main_loop import SignalPipe\n"
        "words = SignalPipe()\n"
        "for number in range(500):\n"
        "    threading.Timer(number % 50 / 1e5, os.kill, (os.getpid(), signal.SIGTERM)).start()\n"
        "    assert words.get(20) == signal.SIGTERM, number\n"
    )
    subprocess.run([sys.executable, "-c", hammer], cwd=SOURCE, check=True, timeout=60)
