"""The daemon: everything wired together, started, and stopped in order.

Rules:

1. A signal is a word to the main thread, which acts on it, and otherwise does its chores by the clock.
2. At the start, sockets come last: who can connect is served. At the end they go first, and the journal last.
3. One daemon to a state folder, by a lock on that folder which dies with its process.
4. The watchdog is fed only while everything moves: what would leave a push unserved for ever ends the feed. Where it
   hung, the traceback of every thread tells, for that is what becomes of the supervisor's SIGABRT.
"""

from __future__ import annotations

import faulthandler
import fcntl
import os
import sched
import select
import signal
import socket
import threading
import time
from collections.abc import Callable, MutableMapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from gitops_hook import __version__
from gitops_hook.config import Address, Settings
from gitops_hook.dashboard.app import Dashboard
from gitops_hook.errors import JournalError, StartError
from gitops_hook.github.commit_status import CommitStatusReporter, CommitStatusSender
from gitops_hook.httpd.call import Application
from gitops_hook.httpd.forwarded import forwarded_middleware
from gitops_hook.httpd.limits import PAGE_LIMITS, Limits
from gitops_hook.httpd.server import Server
from gitops_hook.journal.writer import Journal
from gitops_hook.log import log
from gitops_hook.observers.commits import Commits
from gitops_hook.observers.metrics import Metrics
from gitops_hook.observers.notifier import Notifier
from gitops_hook.receiver.app import RESULTS, WebhookApp
from gitops_hook.secrets import SecretSource
from gitops_hook.sync.checkouts import Checkouts
from gitops_hook.sync.dispatcher import Dispatcher, RunObserver
from gitops_hook.sync.runner import GRACE, inherited
from gitops_hook.systemd import inherited_sockets, notify, reloading, watchdog_interval
from gitops_hook.text import escape, local

#: Seconds that requests in hand have at the end, and runs. The unit's TimeoutStopSec is their sum and some more.
REQUESTS_DEADLINE = 5.0
RUNS_DEADLINE = 60.0
#: Seconds that a notice in hand has after all that: most take less, and one that does not is told by the next daemon.
NOTICE_DEADLINE = 5.0
#: Seconds between looks at what is owed, and between prunings of the journal.
_REMIND = 60.0
_PRUNE = 3600.0
#: Seconds between looks at whether there is a new status to tell: it is read by people.
_STATUS = 1.0
#: Seconds without a turn after which a loop that accepts hangs. A turn takes 0.25 s, and little over 1 s at the worst.
_TURN = 10.0
#: What threads have to say to the main thread: words of one byte, beside the numbers of signals.
_RUNS_ENDED = 254
_NOT_ACCEPTING = 255


class SignalPipe:
    """What the main thread is told, in a pipe: signals, and what other threads have to say.

    The handler in C writes a signal's number as it comes. One in Python would have to wait until the main thread runs,
    which may be in a minute, if the signal comes between its last look and its sleep.
    """

    def __init__(self) -> None:
        self._reading, self._writing = os.pipe()
        os.set_blocking(self._writing, False)
        signal.set_wakeup_fd(self._writing)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, lambda number, frame: None)

    def put(self, word: int) -> None:
        """Say a word; from any thread."""
        os.write(self._writing, bytes([word]))

    def get(self, timeout: float | None) -> int | None:
        """The next word, or None if there is none for `timeout` seconds."""
        ready, _, _ = select.select([self._reading], [], [], timeout)
        return os.read(self._reading, 1)[0] if ready else None


def serve(settings: Settings, environ: MutableMapping[str, str]) -> int:
    """Run the daemon until a signal ends it; returns its exit status.

    Raises `ConfigError` or `StartError` where it cannot start.
    """
    words = SignalPipe()
    secrets = SecretSource(settings.webhook_secret, settings.webhook_secret_file)
    faulthandler.enable(2)
    interval = watchdog_interval(environ)
    with ExitStack() as stack:
        _lock(settings.state, stack)
        try:
            journal = Journal(settings.state)
        except JournalError as error:
            raise StartError(str(error)) from error
        stack.callback(journal.close)
        checkouts = Checkouts(settings.root)
        instruments = Metrics(journal, checkouts, RESULTS)
        observers: list[RunObserver] = [instruments, Commits(journal, checkouts)]
        notices = None
        if settings.notify:
            notices = Notifier(journal, checkouts, settings.notify, inherited(environ, settings.root))
            observers.append(notices)
        sender = CommitStatusSender(settings, journal, checkouts) if settings.report else None
        if sender:
            answers = CommitStatusReporter(journal, sender.notify)
            answers.catch_up()
            observers.append(answers)
        dispatcher = Dispatcher.from_settings(settings, environ, journal, checkouts, observers)
        webhook = WebhookApp(
            secrets.current, checkouts, journal, dispatcher.notify, settings.clone, count=instruments.answered
        )
        app = forwarded_middleware(webhook, settings.trusted_proxies)
        dashboard = Dashboard(journal, checkouts, settings.sync_timeout, instruments.exposition)
        servers = _serve_both(settings, environ, app, dashboard)
        dispatcher.start()
        if sender:
            sender.start()
            stack.callback(sender.stop, REQUESTS_DEADLINE)
        for server in servers:
            threading.Thread(target=_accept, args=(server, words), name="accept", daemon=True).start()
            address = _describe(server.server_address)
            log.info(f"listening for the {server.name}", address=address, version=__version__, root=settings.root)
        notify(environ, "READY=1")
        if notices:
            notices.start()
        housekeeping = _Housekeeping(servers, dispatcher, journal, checkouts, environ, notices=notices)
        status = housekeeping.stay(words, interval)
        notify(environ, "STOPPING=1")
        _stop(words, servers, dispatcher)
        if notices:
            notices.stop(NOTICE_DEADLINE)
    log.info("stopped", exit=status)
    return status


class _Housekeeping:
    """What the main thread looks after while the daemon serves."""

    def __init__(
        self,
        servers: list[Server],
        dispatcher: Dispatcher,
        journal: Journal,
        checkouts: Checkouts,
        environ: MutableMapping[str, str],
        *,
        notices: Notifier | None,
    ) -> None:
        self._notices = notices
        self._servers = servers
        self._dispatcher = dispatcher
        self._journal = journal
        self._checkouts = checkouts
        self._environ = environ
        self._repositories = 0
        self._told = ""

    def stay(self, words: SignalPipe, watchdog: float | None) -> int:
        """Do the chores until a signal or a fault ends the day; returns the exit status."""
        chores = sched.scheduler()

        def every(seconds: float, chore: Callable[[], None]) -> None:
            def again() -> None:
                chores.enter(seconds, 0, again)
                chore()

            chores.enter(0, 0, again)

        every(_REMIND, self._remind)
        every(_PRUNE, self._prune)
        every(_REMIND, self._count)
        every(_STATUS, self._tell_status)
        if self._notices:
            every(_REMIND, self._notices.look)
        if watchdog:
            every(watchdog, self._feed_watchdog)
        while True:
            word = words.get(chores.run(blocking=False))
            if word is None:
                continue
            if word == signal.SIGHUP:
                log.info("every checkout is synced once, as asked by SIGHUP")
                notify(self._environ, *reloading())
                self._dispatcher.sweep()
                self._count()
                notify(self._environ, "READY=1")
            elif word == _NOT_ACCEPTING:
                return 1
            else:
                log.info("stopping", signal=signal.Signals(word).name)
                return 0

    def _remind(self) -> None:
        try:
            self._dispatcher.reconcile()
        except JournalError as error:
            log.error("the journal cannot be read", reason=error)

    def _prune(self) -> None:
        try:
            self._journal.prune()
        except (JournalError, OSError) as error:
            log.error("the journal cannot be pruned", reason=error)

    def _count(self) -> None:
        self._repositories = self._checkouts.count()  # it reads many folders, so not at every look at the status

    def _tell_status(self) -> None:
        """Tell the line that ``systemctl status`` shows, if it has changed."""
        status = f"repositories: {self._repositories}, runs in hand: {self._dispatcher.running}"
        failure = self._dispatcher.failure
        if failure:
            when = f", {local(failure.ended)}" if failure.ended else ""
            status += f"; last failure: run {failure.id} of {failure.repository}, {failure.outcome}{when}"
        if self._journal.fault:
            status += f"; the journal cannot be written: {self._journal.fault}"
        if status != self._told:
            notify(self._environ, f"STATUS={escape(status)}")
            self._told = status

    def _feed_watchdog(self) -> None:
        """Feed it if everything moves. While the journal's writing thread hangs, so does this: no feed either."""
        self._journal.probe()
        now = time.monotonic()
        stuck = [_describe(server.server_address) for server in self._servers if now - server.turned > _TURN]
        overdue = self._dispatcher.overdue()
        for address in stuck:
            log.error("no connection is accepted any more, so the watchdog is not fed", address=address)
        for run in overdue:
            log.error("a run hangs past its limit, so the watchdog is not fed", run=run)
        if not stuck and not overdue:
            notify(self._environ, "WATCHDOG=1")


def _stop(words: SignalPipe, servers: list[Server], dispatcher: Dispatcher) -> None:
    """Accept no more, answer what was begun, let runs in hand end, or end them."""
    dispatcher.stop()
    for server in servers:
        server.shutdown()
    deadline = time.monotonic() + REQUESTS_DEADLINE
    for server in servers:
        server.drain(max(0.0, deadline - time.monotonic()))

    def wait_for_runs() -> None:
        dispatcher.join(RUNS_DEADLINE + GRACE)
        words.put(_RUNS_ENDED)

    threading.Thread(target=wait_for_runs, name="wait for runs", daemon=True).start()
    deadline = time.monotonic() + RUNS_DEADLINE
    word = words.get(RUNS_DEADLINE)
    while word in (signal.SIGHUP, _NOT_ACCEPTING):  # no reason to hurry
        log.info("stopping goes on", signal="SIGHUP" if word == signal.SIGHUP else None)
        word = words.get(max(0.0, deadline - time.monotonic()))
    if word != _RUNS_ENDED:
        log.warning("runs are ended", reason="a second signal" if word else f"{RUNS_DEADLINE:.0f} s are over")
        dispatcher.terminate()
        dispatcher.join(GRACE + 2)


def _accept(server: Server, words: SignalPipe) -> None:
    """Accept connections until `Server.shutdown`; a daemon that cannot is of no use, and ends."""
    try:
        server.serve_forever(poll_interval=0.25)
    except Exception:
        log.exception("no more connections can be accepted")
        words.put(_NOT_ACCEPTING)


def _lock(state: Path, stack: ExitStack) -> None:
    try:
        state.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(state, os.O_RDONLY | os.O_CLOEXEC)
        stack.callback(os.close, descriptor)
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise StartError(f"another gitops-hook runs on GITOPS_STATE={str(state)!r}") from None
    except OSError as error:
        raise StartError(f"GITOPS_STATE={str(state)!r} cannot be used: {error.strerror}") from None


def _serve_both(
    settings: Settings, environ: MutableMapping[str, str], webhook: Application, dashboard: Application
) -> list[Server]:
    """A server for each socket, of those that systemd hands over by name or else of one bound to the address set."""
    inherited = inherited_sockets(environ)
    servers = []
    for name, option, address, app, limits in (
        ("webhook", "GITOPS_LISTEN", settings.listen, webhook, Limits()),
        ("dashboard", "GITOPS_DASHBOARD_LISTEN", settings.dashboard_listen, dashboard, PAGE_LIMITS),
    ):
        sockets = inherited.pop(name, []) or ([_bind(option, address)] if address else [])
        servers += [Server(listening, app, limits, name) for listening in sockets]
    for name, strays in inherited.items():
        log.warning("inherited sockets are not used; their names are not ours", name=name, sockets=len(strays))
    return servers


def _bind(option: str, address: Address) -> socket.socket:
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, True)
        if family == socket.AF_INET6:
            listening.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, address.host != "::")
        listening.bind(address)
        listening.listen()  # a port that another has bound in the meantime shows here
    except OSError as error:
        listening.close()
        raise StartError(f"{option}={address} cannot be used: {error.strerror}") from None
    return listening


def _describe(address: Any) -> str:
    return str(Address(*address[:2])) if isinstance(address, tuple) else str(address)
