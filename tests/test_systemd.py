"""The daemon's messages to systemd, and the watchdog: programs that really hang, in each place where one can."""

from __future__ import annotations

import os
import resource
import signal
import socket
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from http.client import HTTPException
from pathlib import Path

import pytest
from harness import Daemon, burst, push, until

from gitops_hook.systemd import notify, reloading, watchdog_interval


class Supervisor:
    """The other end of ``NOTIFY_SOCKET``."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(path))

    def hear(self, timeout: float = 30) -> list[str]:
        """The states in the next message, or none if there is none for so many seconds."""
        self._socket.settimeout(timeout)
        try:
            return self._socket.recv(4096).decode().split("\n")
        except OSError:  # TimeoutError, since Python 3.10
            return []

    def wait_for(self, state: str, timeout: float = 30) -> list[str]:
        """The next message with a state that begins so."""
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            states = self.hear(max(0.001, deadline - time.monotonic()))
            if any(line.startswith(state) for line in states):
                return states
        raise AssertionError(f"the supervisor did not hear {state}")

    def is_fed(self, seconds: float) -> bool:
        """Return whether a watchdog message arrives within `seconds`."""
        self._socket.setblocking(False)
        try:
            while self._socket.recv(4096):
                pass
        except BlockingIOError:
            pass
        try:
            self.wait_for("WATCHDOG=1", seconds)
        except AssertionError:
            return False
        return True

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def supervisor(tmp_path: Path) -> Iterator[Supervisor]:
    supervisor = Supervisor(tmp_path / "notify")
    yield supervisor
    supervisor.close()


@pytest.fixture
def start_hanging(start_daemon: Callable[..., Daemon], supervisor: Supervisor) -> Callable[..., Daemon]:
    """Starts a watched daemon in which `fault`, a piece of Python, has been planted."""

    def start(fault: str, **settings: str) -> Daemon:
        program = (
            "import threading\n"
            "from gitops_hook import main_loop\n"
            "from gitops_hook.cli.main import main\n"
            "from gitops_hook.httpd import server\n"
            "from gitops_hook.journal import database, writer as journal\n"
            "from gitops_hook.sync import executor, runner\n"
            "def hang(*_): threading.Event().wait()\n"
            "main_loop._ACCEPT_LIMIT = main_loop._JOURNAL_LIMIT = 0.5\n"
            f"{fault}\n"
            "raise SystemExit(main())"
        )
        return start_daemon(
            program=["-c", program], NOTIFY_SOCKET=str(supervisor.path), WATCHDOG_USEC="200000", **settings
        )

    return start


def deliver_without_answer(daemon: Daemon) -> None:
    """Deliver a push from a thread that outlives its connection: the answer does not come."""

    def deliver() -> None:
        with suppress(OSError, HTTPException):
            daemon.deliver(push("acme/site"))

    threading.Thread(target=deliver, daemon=True).start()


def test_the_interval_is_half_of_what_systemd_allows_and_is_kept_from_children():
    environ = {"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(os.getpid()), "PATH": "/bin"}
    assert watchdog_interval(environ) == 15
    assert environ == {"PATH": "/bin"}
    assert watchdog_interval({"WATCHDOG_USEC": "30000000"}) == 15


@pytest.mark.parametrize("environ", [{}, {"WATCHDOG_USEC": "0"}, {"WATCHDOG_USEC": "x"}, {"WATCHDOG_USEC": "9", "WATCHDOG_PID": "1"}])  # fmt: skip
def test_without_a_watchdog_no_message_is_sent(environ):
    assert watchdog_interval(environ) is None


def test_without_a_supervisor_no_message_is_sent(tmp_path):
    notify({}, "READY=1")
    notify({"NOTIFY_SOCKET": str(tmp_path / "gone")}, "READY=1")
    notify({"NOTIFY_SOCKET": "relative"}, "READY=1")


def test_without_descriptors_nothing_is_sent_and_nothing_fails(supervisor):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
    try:
        notify({"NOTIFY_SOCKET": str(supervisor.path)}, "WATCHDOG=1")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_an_abstract_socket_receives_messages(tmp_path):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other_end:
        other_end.bind(f"\0{tmp_path}")
        notify({"NOTIFY_SOCKET": f"@{tmp_path}"}, "READY=1", "STATUS=x")
        assert other_end.recv(100) == b"READY=1\nSTATUS=x"


def test_a_reload_reports_the_time_at_which_it_began(supervisor, start_daemon):
    daemon = start_daemon(NOTIFY_SOCKET=str(supervisor.path))
    supervisor.wait_for("READY=1")
    before = time.monotonic_ns() // 1000
    daemon.process.send_signal(signal.SIGHUP)
    fields = dict(state.split("=") for state in supervisor.wait_for("RELOADING=1"))
    assert before <= int(fields["MONOTONIC_USEC"]) <= int(reloading()[1].partition("=")[2])
    supervisor.wait_for("READY=1")


def test_the_status_line_counts_repositories_and_runs_and_names_the_last_failure(
    tmp_path, supervisor, start_daemon, script
):
    (tmp_path / "root/acme/site/.git").mkdir(parents=True)
    os.mkfifo(tmp_path / "go")
    fails = script('read -r word < "$GITOPS_ROOT/../go"; exit 70')
    start_daemon(NOTIFY_SOCKET=str(supervisor.path), GITOPS_SYNC_SCRIPT=fails)
    supervisor.wait_for("STATUS=checkouts: 1, running: 1")
    (tmp_path / "go").write_text("now\n")
    found = supervisor.wait_for("STATUS=checkouts: 1, running: 0; last failure: run 1 of acme/site, deploy-failed, 20")
    assert len(found) == 1


def test_a_healthy_daemon_feeds_the_watchdog_until_it_stops(supervisor, start_hanging):
    daemon = start_hanging("")
    for _ in range(5):
        assert supervisor.is_fed(5)
    assert daemon.stop() == 0
    assert "WATCHDOG=1" not in supervisor.wait_for("STOPPING=1")


def test_a_hanging_accept_loop_stops_the_watchdog_messages_and_the_traceback_shows_it(supervisor, start_hanging):
    daemon = start_hanging("server.Server.process_request = hang")
    assert supervisor.is_fed(5)
    with socket.create_connection(("127.0.0.1", daemon.port)):
        daemon.wait_for(
            rf"a server accepts no connections; the watchdog is not notified address=127.0.0.1:{daemon.port}"
        )
        assert not supervisor.is_fed(1)
    daemon.process.send_signal(signal.SIGABRT)  # as systemd does
    assert daemon.wait() == -signal.SIGABRT
    assert "Fatal Python error: Aborted" in daemon.log
    assert "in process_request" in daemon.log or "in hang" in daemon.log


def test_a_hanging_journal_stops_the_watchdog_messages(supervisor, start_hanging):
    daemon = start_hanging(
        "commit = journal.Journal._commit\n"
        "journal.Journal._commit = lambda self, works: hang() if isinstance(works[0][0], tuple) else commit(self, works)"
    )
    assert supervisor.is_fed(5)
    (daemon.root / "acme/site/.git").mkdir(parents=True)
    deliver_without_answer(daemon)
    deadline = time.monotonic() + 10
    while supervisor.is_fed(1):
        assert time.monotonic() < deadline


def test_a_run_that_hangs_is_reported_and_does_not_cost_the_daemon_its_life(supervisor, start_hanging):
    daemon = start_hanging("runner.Runner.run = hang; executor.OVERDUE = -10.0", GITOPS_SYNC_TIMEOUT="1")
    (daemon.root / "acme/site/.git").mkdir(parents=True)
    daemon.deliver(push("acme/site"))
    while "running: 1; beyond the time limit: run 1" not in supervisor.wait_for("STATUS=")[0]:
        pass
    assert all(supervisor.is_fed(5) for _ in range(5))
    assert daemon.log.count("a run exceeded its time limit; restart the daemon to repeat it run=1") == 1


def test_a_locked_journal_is_reported_and_does_not_cost_the_daemon_its_life(supervisor, start_hanging):
    """Each commit fails after a tenth of a second and has one delivery, so 200 that wait would delay a probe by 20 s."""
    limit = 3.0
    daemon = start_hanging(f"database.BUSY_MS = 100; journal._BATCH = 1; main_loop._JOURNAL_LIMIT = {limit}")
    (daemon.root / "acme/site/.git").mkdir(parents=True)
    with ThreadPoolExecutor(1) as forge, closing(sqlite3.connect(daemon.state / "journal.db")) as neighbor:
        neighbor.execute("BEGIN IMMEDIATE")
        answers = forge.submit(burst, daemon.port, [push("acme/site")] * 450, 450)
        # Each connection has a thread. Slow clients have not sent all when the first have their answer.
        until(lambda: len([*Path(f"/proc/{daemon.process.pid}/task").iterdir()]) > 200)
        while "; the journal cannot be written: database is locked" not in supervisor.wait_for("STATUS=")[0]:
            pass
        ends = time.monotonic() + 2 * limit
        while time.monotonic() < ends:
            assert supervisor.is_fed(limit)
        assert not answers.done()
        neighbor.rollback()
        counts = answers.result()
    assert (counts.keys(), sum(counts.values())) == ({202, 503}, 450)
    assert daemon.request("GET", "/healthz")[0] == 200
    assert "does not answer" not in daemon.log


def test_a_long_run_does_not_stop_the_watchdog_messages(supervisor, start_hanging, script, tmp_path):
    os.mkfifo(tmp_path / "running")
    daemon = start_hanging("executor.OVERDUE = 0.0", GITOPS_SYNC_SCRIPT=script('echo > "$GITOPS_ROOT/../running"; sleep 60'))  # fmt: skip
    (daemon.root / "acme/site/.git").mkdir(parents=True)
    daemon.deliver(push("acme/site"))
    (tmp_path / "running").read_text()
    assert all(supervisor.is_fed(2) for _ in range(10))
