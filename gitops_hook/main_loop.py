"""The main thread of the daemon: wait for signals, and do the periodic tasks between them.

Rules:

1. Signals and threads send codes to the main thread.
2. No task waits for long: a task that is late delays the watchdog.
3. The watchdog gets a signal only while the servers and the journal make progress. Otherwise systemd sends SIGABRT,
   and the traceback of every thread appears in the log. A journal that cannot be written makes progress: its requests
   fail. A run that hangs is reported, because a restart would end all the others.
"""

from __future__ import annotations

import os
import sched
import select
import signal
import threading
import time
from collections.abc import Callable, MutableMapping, Sequence
from concurrent.futures import Future
from typing import Any

from gitops_hook.config import Address
from gitops_hook.errors import JournalError
from gitops_hook.httpd.server import Server
from gitops_hook.journal.writer import Journal
from gitops_hook.log import log
from gitops_hook.observers.notifier import Notifier
from gitops_hook.sync.checkouts import Checkouts
from gitops_hook.sync.dispatcher import Dispatcher
from gitops_hook.systemd import notify, reloading
from gitops_hook.text import escape, local

#: Codes that threads send to the main thread, next to the numbers of signals.
RUNS_ENDED = 254
ACCEPT_FAILED = 255
#: Seconds between two runs of each periodic task.
_RECONCILE_INTERVAL = 60.0
_PRUNE_INTERVAL = 3600.0
_STATUS_INTERVAL = 1.0
#: Seconds after which a server's accept loop counts as stuck. An iteration takes 0.25 s, and little over 1 s at most.
_ACCEPT_LIMIT = 10.0
#: Seconds after which the journal counts as stuck. While another process locks it, each commit fails after 5 s, and a
#: probe waits for one commit at most.
_JOURNAL_LIMIT = 20.0


class SignalPipe:
    """A queue of one-byte codes for the main thread: numbers of signals, and the codes of other threads.

    Python's C signal handler writes the number to the pipe (`signal.set_wakeup_fd`). A handler in Python would only run
    when the main thread executes bytecode, which may be a minute later if the signal arrives just before `select`.
    """

    def __init__(self) -> None:
        self._reading, self._writing = os.pipe()
        os.set_blocking(self._writing, False)
        signal.set_wakeup_fd(self._writing)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, lambda number, frame: None)

    def put(self, code: int) -> None:
        """Send a code, from any thread."""
        os.write(self._writing, bytes([code]))

    def get(self, timeout: float | None) -> int | None:
        """Return the next code, or None if there is none within `timeout` seconds."""
        ready, _, _ = select.select([self._reading], [], [], timeout)
        return os.read(self._reading, 1)[0] if ready else None


class MainLoop:
    """The periodic tasks of the main thread while the daemon serves."""

    def __init__(
        self,
        servers: Sequence[Server],
        dispatcher: Dispatcher,
        journal: Journal,
        checkouts: Checkouts,
        environ: MutableMapping[str, str],
        *,
        notifier: Notifier | None,
    ) -> None:
        self._notifier = notifier
        self._servers = servers
        self._dispatcher = dispatcher
        self._journal = journal
        self._checkouts = checkouts
        self._environ = environ
        self._repositories = 0
        self._last_status = ""
        self._overdue: set[int] = set()  # the overdue runs that were logged
        #: The last probe of the journal, and the time of its start on the monotonic clock.
        self._probe: Future[Any] | None = None
        self._probed = 0.0

    def run(self, signals: SignalPipe, watchdog: float | None) -> int:
        """Run the tasks until a signal or an error ends the daemon, and return the exit status.

        `watchdog` is the interval of the watchdog in seconds, if there is one.
        """
        tasks = sched.scheduler()

        def every(seconds: float, task: Callable[[], None]) -> None:
            def repeat() -> None:
                tasks.enter(seconds, 0, repeat)
                task()

            tasks.enter(0, 0, repeat)

        every(_RECONCILE_INTERVAL, self._reconcile)
        every(_PRUNE_INTERVAL, self._start_pruning)
        every(_RECONCILE_INTERVAL, self._count)
        every(_STATUS_INTERVAL, self._send_status)
        if self._notifier:
            every(_RECONCILE_INTERVAL, self._notifier.look)
        if watchdog:
            every(watchdog, self._feed_watchdog)
        while True:
            code = signals.get(tasks.run(blocking=False))
            if code is None:
                continue
            if code == signal.SIGHUP:
                log.info("SIGHUP: every checkout is synced")
                notify(self._environ, *reloading())
                self._dispatcher.sweep()
                self._count()
                notify(self._environ, "READY=1")
            elif code == ACCEPT_FAILED:
                return 1
            else:
                log.info("stopping", signal=signal.Signals(code).name)
                return 0

    def _reconcile(self) -> None:
        try:
            self._dispatcher.reconcile()
        except JournalError as error:
            log.error("the journal cannot be read", reason=error)

    def _start_pruning(self) -> None:
        """Prune in a thread of its own: a locked journal would delay the watchdog."""
        try:
            threading.Thread(target=self._prune, name="prune", daemon=True).start()
        except RuntimeError as error:
            log.error("the journal cannot be pruned", reason=error)

    def _prune(self) -> None:
        try:
            self._journal.prune()
        except (JournalError, OSError) as error:
            log.error("the journal cannot be pruned", reason=error)

    def _count(self) -> None:
        self._repositories = self._checkouts.count()  # reads many directories, so it is not part of `_send_status`

    def _send_status(self) -> None:
        """Send the line that ``systemctl status`` shows, if it has changed, and log runs that became overdue."""
        overdue = self._dispatcher.overdue()
        for run in {*overdue} - self._overdue:
            log.error("a run exceeded its time limit; restart the daemon to repeat it", run=run)
        self._overdue = {*overdue}
        status = f"checkouts: {self._repositories}, running: {self._dispatcher.running}"
        failure = self._dispatcher.failure
        if failure:
            when = f", {local(failure.ended)}" if failure.ended else ""
            status += f"; last failure: run {failure.id} of {failure.repository}, {failure.outcome}{when}"
        if overdue:
            status += f"; beyond the time limit: run {', '.join(map(str, overdue))}"
        if self._journal.fault:
            status += f"; the journal cannot be written: {self._journal.fault}"
        if status != self._last_status:
            notify(self._environ, f"STATUS={escape(status)}")
            self._last_status = status

    def _feed_watchdog(self) -> None:
        """Notify the watchdog if the servers and the journal make progress. This never waits for either."""
        now = time.monotonic()
        if not self._probe or self._probe.done():
            self._probe, self._probed = self._journal.start_probe(), now
        stuck = [describe(server.server_address) for server in self._servers if now - server.turned > _ACCEPT_LIMIT]
        for address in stuck:
            log.error("a server accepts no connections; the watchdog is not notified", address=address)
        if now - self._probed > _JOURNAL_LIMIT:
            log.error("the journal does not answer; the watchdog is not notified")
        elif not stuck:
            notify(self._environ, "WATCHDOG=1")


def describe(address: Any) -> str:
    """Return a socket's address as text."""
    return str(Address(*address[:2])) if isinstance(address, tuple) else str(address)
