"""Start a temporary daemon for a command while no daemon is running.

Rules:

1. Every command sends its requests to a control socket. If no process holds the state directory's lock, the command
   starts one: the same journal, dispatcher and control socket as the daemon's, without webhook and status page.
2. That process runs like the unit: as the owner of the state directory, with the unit's supplementary groups, in a
   session of its own without a terminal, and without the environment of the caller's session.
3. It ends when the command has closed its pipe and no run is left. SIGTERM ends it like the daemon.
"""

from __future__ import annotations

import grp
import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import NoReturn

from gitops_hook.config import Settings
from gitops_hook.daemon import REQUESTS_DEADLINE, start_control, stop_runs
from gitops_hook.errors import GitopsError
from gitops_hook.github.commit_status import CommitStatusReporter
from gitops_hook.journal.writer import Journal
from gitops_hook.lock import StateLock, holder
from gitops_hook.log import log
from gitops_hook.main_loop import SignalPipe
from gitops_hook.observers.commits import Commits
from gitops_hook.sync.checkouts import Checkouts
from gitops_hook.sync.dispatcher import Dispatcher, RunObserver
from gitops_hook.users import owner_of

#: Seconds for a process that holds the lock to open its control socket, or to end.
_PATIENCE = 10.0
#: Seconds between two checks whether runs are left.
_INTERVAL = 0.1
#: The code of the command's end in the `SignalPipe`.
_COMMAND_ENDED = 253
#: Variables of the caller that the temporary daemon keeps when it runs as another user.
_KEPT = ("PATH", "LANG", "LC_ALL", "LC_CTYPE", "TZ")
_UNIT = "gitops-hook.service"


@contextmanager
def performer(settings: Settings, what: str, warn: Callable[[str], None]) -> Iterator[str]:
    """Yield the path of the control socket of the process that performs runs; start one if there is none.

    `what` describes the command to others that wait for it. `warn` is called with a sentence if no daemon is running.
    A process that was started here ends after its runs. The end of the block waits for that, but not after an
    exception, such as KeyboardInterrupt: the runs continue without the command.

    Raises `GitopsError`.
    """
    deadline = time.monotonic() + _PATIENCE
    while True:
        found = holder(settings.state)
        if not found:
            break
        if found.socket and Path(found.socket).exists():
            yield found.socket
            return
        if time.monotonic() > deadline:
            raise GitopsError(69, f"{found.what} holds {settings.state} and has no control socket; restart it")
        time.sleep(_INTERVAL)
    warn("no daemon is running; this command starts the runs itself")
    pid, pipe = _start(settings, what)
    try:
        yield str(settings.control)
    except BaseException:
        os.close(pipe)
        raise
    os.close(pipe)
    os.waitpid(pid, 0)


def _start(settings: Settings, what: str) -> tuple[int, int]:
    """Start the process. Return its id, and the descriptor whose closing lets it end. Raises `GitopsError`."""
    alive, pipe = os.pipe()
    answers, ready = os.pipe()
    pid = os.fork()
    if not pid:
        os.close(pipe)
        os.close(answers)
        _run_child(settings, what, alive, ready)
    os.close(alive)
    os.close(ready)
    with os.fdopen(answers, "rb") as file:
        answer = json.loads(file.read() or b'{"status": 70, "message": "the temporary daemon failed to start"}')
    if answer["status"]:
        os.close(pipe)
        os.waitpid(pid, 0)
        raise GitopsError(answer["status"], answer["message"])
    return pid, pipe


def _run_child(settings: Settings, what: str, alive: int, ready: int) -> NoReturn:
    """Perform requests in the child process; never return."""

    def answer(status: int, message: str) -> None:
        with suppress(OSError):
            os.write(ready, json.dumps({"status": status, "message": message}).encode())
            os.close(ready)

    try:
        os.setsid()
        null = os.open(os.devnull, os.O_RDWR)
        for descriptor in (0, 1, 2):
            os.dup2(null, descriptor)
        log.mute()
        environ = _become_owner(settings.state)
        _perform(settings, environ, what, alive, lambda: answer(0, ""))
        os._exit(0)
    except GitopsError as error:
        answer(error.status, str(error))
    except Exception as error:
        answer(70, f"the temporary daemon failed: {error!r}")
    finally:
        os._exit(70)


def _perform(
    settings: Settings, environ: Mapping[str, str], what: str, alive: int, is_ready: Callable[[], None]
) -> None:
    """Serve the control socket until the command has ended and no run is left, or until a signal."""
    signals = SignalPipe()
    with ExitStack() as stack:
        lock = StateLock(settings.state, what)
        lock.acquire()
        stack.callback(lock.release)
        journal = Journal(settings.state)
        stack.callback(journal.close)
        checkouts = Checkouts(settings.root)
        observers: list[RunObserver] = [Commits(journal, checkouts)]
        if settings.report and not settings.fleet:  # a fleet reports the statuses of its hosts
            observers.append(CommitStatusReporter(journal, checkouts))  # the daemon sends what this stores
        dispatcher = Dispatcher.from_settings(settings, environ, journal, checkouts, observers)
        dispatcher.record_killed()
        dispatcher.start_scheduler()
        server = start_control(settings, journal, checkouts, dispatcher, signals)
        lock.describe(str(settings.control))
        is_ready()

        def wait_for_command() -> None:
            os.read(alive, 1)
            signals.put(_COMMAND_ENDED)

        threading.Thread(target=wait_for_command, name="wait for command", daemon=True).start()
        ending = False
        while True:
            code = signals.get(_INTERVAL if ending else None)
            if code in (signal.SIGTERM, signal.SIGINT):
                break
            ending = ending or code == _COMMAND_ENDED
            if ending and not dispatcher.workers:
                break
        if code not in (signal.SIGTERM, signal.SIGINT):
            # A request that arrives during the drain is still performed.
            server.shutdown()
            server.drain(REQUESTS_DEADLINE)
            while dispatcher.workers and signals.get(_INTERVAL) not in (signal.SIGTERM, signal.SIGINT):
                pass
        stop_runs(signals, [server], dispatcher)


def _become_owner(state: Path) -> dict[str, str]:
    """Become the owner of the state directory if this is root, and return the environment for runs."""
    user = owner_of(state) if state.exists() else None
    if not user or user.uid == os.geteuid() or os.geteuid() != 0:
        return dict(os.environ)
    os.setgroups(sorted({*os.getgrouplist(user.name, user.gid), *_unit_groups()}))
    os.setgid(user.gid)
    os.setuid(user.uid)
    os.umask(0o022)
    os.chdir("/")
    kept = {name: os.environ[name] for name in _KEPT if name in os.environ}
    return {**kept, "HOME": user.home, "USER": user.name, "LOGNAME": user.name, "SHELL": user.shell}


def _unit_groups() -> list[int]:
    """Return the ids of the unit's SupplementaryGroups=; none without systemd or the unit."""
    command = ["systemctl", "show", "--property=SupplementaryGroups", "--value", _UNIT]
    try:
        names = subprocess.run(command, capture_output=True, text=True, check=False, timeout=10).stdout.split()
    except (OSError, subprocess.TimeoutExpired):
        return []
    groups = []
    for name in names:
        with suppress(KeyError):
            groups.append(int(name) if name.isdecimal() else grp.getgrnam(name).gr_gid)
    return groups
