"""Only the holder of the state directory's lock writes the journal."""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from harness import SECRET, SOURCE, until
from scratch import Upstream, git
from unix_client import UnixConnection

from gitops_hook.cli.parser import build_parser
from gitops_hook.lock import DAEMON, Holder, StateLock, holder

VERSION_0_1 = (Path(__file__).parent / "journal/version-0.1.sql").read_text()


def environment(folder: Path, **settings: str) -> dict[str, str]:
    return {
        "PATH": os.environ["PATH"],
        "HOME": str(folder),
        "PYTHONPATH": str(SOURCE),
        "GIT_CONFIG_NOSYSTEM": "1",
        "GITHUB_WEBHOOK_SECRET": SECRET,
        "GITOPS_ROOT": str(folder / "root"),
        "GITOPS_STATE": str(folder / "state"),
        **settings,
    }


def command(folder: Path, *arguments: str, **settings: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "gitops_hook", *arguments],
        env=environment(folder, **settings),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def result_of(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=60)
    return process.returncode, out, err


def query(folder: Path, sql: str) -> list[tuple[Any, ...]]:
    with closing(sqlite3.connect(f"file:{folder}/state/journal.db?mode=ro", uri=True)) as connection:
        return connection.execute(sql).fetchall()


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A root with one checkout of a real upstream."""
    upstream = Upstream(tmp_path / "forge")
    (tmp_path / "root").mkdir()
    return upstream.checkout(tmp_path / "root")


# -- who writes --------------------------------------------------------------------------------------------------------

#: A system call that changes the database or its write-ahead log. A read-only connection opens the log and the shared
#: memory read-write too (SQLite does), but writes only to the shared memory.
WRITE = re.compile(
    r'open(at)?\([^"]*"[^"]*/journal\.db", O_(RDWR|WRONLY)|(pwrite64|pwritev|write|ftruncate)\(\d+<[^>]*/journal\.db(-wal)?>'
    r'|(truncate|rename|unlink)(at)?\([^"]*"[^"]*/journal\.db(-wal)?"'
)
CALLS = "?open,openat,?creat,truncate,ftruncate,?rename,renameat,renameat2,?unlink,unlinkat,write,pwrite64,pwritev"
STRACE = ["strace", "-f", "--seccomp-bpf", "-qq", "-y", "-e", f"trace={CALLS}", "-o"]
COMMANDS = [
    ["status"], ["runs"], ["sync", "acme/site"], ["sync", "--all"],
    ["sync", "--cancel", "acme/site"], ["pause", "acme/site"], ["resume", "acme/site"], ["send", "acme/site"],
    ["logs", "1"], ["doctor"], ["config", "acme/site", "timeout", "60"], ["deploy", "acme/site"],
    ["rollback", "acme/site"], ["migrate", "--dry-run"], ["add", "acme/site"], ["rename", "acme/site", "acme/shop"],
    ["remove", "acme/shop", "--keep-files"], ["register", "acme/site", "--url", "https://hooks.example.org"],
    ["unregister", "acme/site"], ["hooks", "acme/site"], ["audit"], ["fleet", "status"],
]  # fmt: skip


def test_every_command_is_traced():
    commands = next(action for action in build_parser()._actions if isinstance(action, argparse._SubParsersAction))
    assert set(commands.choices) - {"serve"} == {arguments[0] for arguments in COMMANDS}


@pytest.mark.skipif(not shutil.which("strace"), reason="no strace on this machine")
def test_no_command_opens_the_journal_for_writing_next_to_a_daemon(tmp_path: Path, site: Path, start_daemon):
    daemon = start_daemon()
    until(lambda: daemon.query("SELECT 1 FROM runs WHERE outcome IS NOT NULL"))
    for number, arguments in enumerate(COMMANDS):
        trace = tmp_path / f"trace.{number}"
        done = subprocess.run(
            [*STRACE, trace, sys.executable, "-m", "gitops_hook", *arguments],
            env=environment(tmp_path, GITOPS_LISTEN=f"127.0.0.1:{daemon.port}", GITHUB_API_URL="http://127.0.0.1:1"),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=120,
        )
        assert done.returncode != os.EX_USAGE, (arguments, done.stderr)
        assert [line for line in trace.read_text().splitlines() if WRITE.search(line)] == [], arguments
    assert not (daemon.root / "acme/site").exists()
    assert (daemon.root / "acme/shop/.git.removed").exists()
    assert daemon.stop() == 0
    # The same pattern finds the writes of a process that holds the lock.
    trace = tmp_path / "trace"
    subprocess.run(
        [*STRACE, trace, sys.executable, "-c", OPEN, daemon.state, "g"], env=environment(tmp_path), check=True
    )
    assert len([line for line in trace.read_text().splitlines() if WRITE.search(line)]) > 2


# -- without a daemon --------------------------------------------------------------------------------------------------


def test_without_a_daemon_a_command_performs_the_run_without_a_terminal(tmp_path: Path, site: Path):
    # Field 7 of /proc/PID/stat is the controlling terminal, and 0 is none.
    git("config", "gitops.deploy", f"cut -d' ' -f6,7 /proc/self/stat > {tmp_path}/session", cwd=site)
    status, _, err = result_of(command(tmp_path, "sync", "acme/site"))
    assert status == 0, err
    session, terminal = (tmp_path / "session").read_text().split()
    assert int(session) != os.getsid(0)
    assert terminal == "0"
    assert err.count("no daemon is running") == 1
    assert query(tmp_path, "SELECT trigger, outcome FROM runs") in ([("manual", "unchanged")], [("manual", "updated")])
    assert query(tmp_path, "SELECT count(*) FROM deliveries WHERE pending") == [(0,)]
    assert holder(tmp_path / "state") is None


def test_commands_at_the_same_time_share_one_temporary_daemon(tmp_path: Path, site: Path):
    commands = [command(tmp_path, "sync", "acme/site") for _ in range(3)]
    results = [result_of(process) for process in commands]
    assert [status for status, _, _ in results] == [0, 0, 0], results
    assert query(tmp_path, "SELECT count(*) FROM deliveries WHERE pending") == [(0,)]
    assert set(query(tmp_path, "SELECT outcome FROM runs")) <= {("unchanged",), ("updated",)}


def test_a_killed_command_leaves_the_run_to_the_temporary_daemon(tmp_path: Path, site: Path):
    os.mkfifo(tmp_path / "gate")
    script = tmp_path / "script"
    script.write_text(f"#!/bin/bash\ntouch {tmp_path}/began; read -r _ < {tmp_path}/gate\n")
    script.chmod(0o755)
    process = command(tmp_path, "sync", "acme/site", GITOPS_SYNC_SCRIPT=str(script))
    until((tmp_path / "began").exists)
    process.kill()
    process.communicate()
    found = holder(tmp_path / "state")
    assert found
    assert found.what != DAEMON
    (tmp_path / "gate").write_text("\n")
    until(lambda: holder(tmp_path / "state") is None)
    assert query(tmp_path, "SELECT outcome FROM runs") == [("updated",)]


def test_a_command_repeats_its_request_if_the_temporary_daemon_is_killed(tmp_path: Path, site: Path):
    script = tmp_path / "script"
    script.write_text(f"#!/bin/bash\n[[ ! -e {tmp_path}/began ]] || exit 0\ntouch {tmp_path}/began; exec sleep 60\n")
    script.chmod(0o755)
    process = command(tmp_path, "sync", "acme/site", GITOPS_SYNC_SCRIPT=str(script))
    until((tmp_path / "began").exists)
    found = holder(tmp_path / "state")
    assert found
    os.kill(found.pid, signal.SIGKILL)
    status, _, err = result_of(process)
    assert status == 0, err
    assert query(tmp_path, "SELECT outcome, cause FROM runs") == [("interrupted", "killed"), ("updated", None)]
    assert query(tmp_path, "SELECT DISTINCT run, pending FROM deliveries") == [(2, 0)]


def accepts_connections(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port)).close()
    except ConnectionRefusedError:
        return False
    return True


def test_a_request_during_the_stop_is_rejected_and_can_be_repeated(start_daemon, script):
    daemon = start_daemon(GITOPS_SYNC_SCRIPT=script("exit 0"))
    with closing(UnixConnection(daemon.state / "control.sock")) as connection:
        connection.putrequest("POST", "/runs")
        connection.putheader("Content-Length", "13")
        connection.endheaders(b'{"all":')
        daemon.process.send_signal(signal.SIGTERM)
        # The log line "stopping" precedes the change of state. A closed port follows it.
        until(lambda: not accepts_connections(daemon.port))
        connection.send(b" true}")
        response = connection.getresponse()
        assert (response.status, json.loads(response.read())["stopping"]) == (503, True)
    assert daemon.wait() == 0
    assert daemon.query("SELECT count(*) FROM deliveries") == [(0,)]


def test_a_command_repeats_a_request_that_a_stopping_daemon_rejected(tmp_path: Path, site: Path, start_daemon, script):
    lock = StateLock(tmp_path / "state", DAEMON)
    lock.acquire()
    stopping = socket.create_server(str(tmp_path / "stopping"), family=socket.AF_UNIX)
    lock.describe(str(tmp_path / "stopping"))
    process = command(tmp_path, "sync", "acme/site", GITOPS_SYNC_SCRIPT=script("exit 0"))
    with stopping, stopping.accept()[0] as connection:
        lock.release()
        daemon = start_daemon(GITOPS_SYNC_SCRIPT=script("exit 0"))
        body = b'{"reason": "the daemon is stopping", "stopping": true}'
        connection.sendall(b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
        assert result_of(process)[0] == 0
    assert ("manual", "updated") in daemon.query("SELECT trigger, outcome FROM runs")


def open_when_stopped(folder: Path) -> None:
    """Open the gate of a run when the temporary daemon no longer accepts requests."""

    def is_stopped() -> bool:
        try:
            with closing(UnixConnection(folder / "state/control.sock")) as connection:
                connection.connect()
        except OSError:
            return True
        return False

    until(is_stopped, timeout=60)
    (folder / "gate").write_text("\n")


def test_a_daemon_that_starts_waits_for_the_temporary_one(tmp_path: Path, site: Path, start_daemon, script):
    os.mkfifo(tmp_path / "gate")
    gated = script('touch "$GITOPS_ROOT/../began"; read -r _ < "$GITOPS_ROOT/../gate"')
    process = command(tmp_path, "sync", "acme/site", GITOPS_SYNC_SCRIPT=gated)
    until((tmp_path / "began").exists)
    threading.Thread(target=open_when_stopped, args=(tmp_path,)).start()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        daemon = start_daemon(GITOPS_SYNC_SCRIPT=script("exit 0"), NOTIFY_SOCKET=str(tmp_path / "notify"))
        assert manager.recv(1000).startswith(b"EXTEND_TIMEOUT_USEC=")
    assert "waiting for a command to end" in daemon.log
    assert daemon.query("SELECT outcome FROM runs ORDER BY id LIMIT 1") == [("updated",)]
    assert result_of(process)[0] == 0
    assert holder(tmp_path / "state") == Holder(daemon.process.pid, str(daemon.state / "control.sock"), DAEMON)


# -- races -------------------------------------------------------------------------------------------------------------

OPEN = (
    "import sys; from pathlib import Path; from gitops_hook.lock import StateLock;"
    " from gitops_hook.journal.writer import Journal; from gitops_hook.model import Delivery;"
    " state = Path(sys.argv[1]); lock = StateLock(state, 'test'); lock.acquire(60);"
    " journal = Journal(state); journal.record(Delivery(sys.argv[2], 'push', 1.0, 'acme/site', ''));"
    " journal.close(); lock.release()"
)


@pytest.mark.parametrize("is_old", [False, True])
def test_processes_that_open_a_state_directory_at_the_same_time_all_succeed(tmp_path: Path, is_old: bool):
    state = tmp_path / "state"
    if is_old:
        state.mkdir()
        with closing(sqlite3.connect(state / "journal.db")) as connection:
            connection.executescript(VERSION_0_1)
    processes = [
        subprocess.Popen([sys.executable, "-c", OPEN, state, f"g{number}"], stderr=subprocess.PIPE, text=True)
        for number in range(3)
    ]
    errors = [process.communicate(timeout=60)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0], errors
    assert sorted(query(tmp_path, "SELECT guid FROM deliveries WHERE guid LIKE 'g_'")) == [("g0",), ("g1",), ("g2",)]


def test_a_journal_is_not_migrated_while_an_old_daemon_holds_the_directory(tmp_path: Path, site: Path):
    (tmp_path / "state").mkdir()
    with closing(sqlite3.connect(tmp_path / "state/journal.db")) as connection:
        connection.executescript(VERSION_0_1)
    lock = StateLock(tmp_path / "state", DAEMON)  # version 0.1 has the same lock, and no description
    lock.acquire()
    (tmp_path / "state/holder.json").unlink()
    try:
        status, _, err = result_of(command(tmp_path, "serve", GITOPS_LISTEN="127.0.0.1:0", GITOPS_DASHBOARD_LISTEN=""))
        assert status == 69
        assert "another gitops-hook uses" in err
        assert query(tmp_path, "PRAGMA user_version") == [(4,)]
    finally:
        lock.release()


def test_the_lock_ends_with_its_holder(tmp_path: Path):
    code = (
        "import sys, time; from pathlib import Path; from gitops_hook.lock import StateLock;"
        " lock = StateLock(Path(sys.argv[1]), 'test'); lock.acquire(); print('held', flush=True); time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", code, tmp_path], stdout=subprocess.PIPE, text=True)
    assert process.stdout
    assert process.stdout.readline() == "held\n"
    found = holder(tmp_path)
    assert found == Holder(process.pid, "", "test")
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert holder(tmp_path) is None
    assert json.loads((tmp_path / "holder.json").read_text())["pid"] == process.pid
    lock = StateLock(tmp_path, "next")
    lock.acquire(0)
    assert holder(tmp_path) == Holder(os.getpid(), "", "next")
    lock.release()
