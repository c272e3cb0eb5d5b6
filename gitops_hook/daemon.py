"""Connect all parts of the daemon, start them, and stop them in order.

Rules:

1. The main thread waits for signals and does periodic tasks (`main_loop`).
2. At the start, the sockets come last: a client that can connect gets an answer. At the end, they are closed first, and
   the journal last.
3. One daemon per state directory: it holds the lock of the directory (`lock`). A temporary process of a command ends
   at its request.
"""

from __future__ import annotations

import faulthandler
import signal
import socket
import threading
import time
from collections.abc import Callable, MutableMapping
from contextlib import ExitStack
from pathlib import Path

from gitops_hook import __version__
from gitops_hook.config import Address, Settings
from gitops_hook.control.app import ControlApp
from gitops_hook.dashboard.rejections import Rejections
from gitops_hook.errors import JournalError, StartError
from gitops_hook.httpd.call import Application
from gitops_hook.httpd.forwarded import forwarded_middleware
from gitops_hook.httpd.limits import PAGE_LIMITS, Limits
from gitops_hook.httpd.server import Server
from gitops_hook.httpd.sockets import listen_on_address, listen_on_path
from gitops_hook.journal.writer import Journal
from gitops_hook.lock import DAEMON, Holder, StateLock, ask_to_stop
from gitops_hook.log import log
from gitops_hook.main_loop import ACCEPT_FAILED, RUNS_ENDED, MainLoop, SignalPipe, describe
from gitops_hook.observers.commits import Commits
from gitops_hook.observers.metrics import Metrics
from gitops_hook.receiver.app import RESULTS, WebhookApp
from gitops_hook.reporting import make_dashboard, make_fleet, make_notifier, make_sender
from gitops_hook.secrets import SecretSource
from gitops_hook.sync.checkouts import Checkouts
from gitops_hook.sync.dispatcher import Dispatcher, RunObserver
from gitops_hook.sync.runner import GRACE
from gitops_hook.systemd import inherited_sockets, notify, watchdog_interval

#: Seconds until requests and runs must end after a SIGTERM. The unit's TimeoutStopSec is longer than their sum.
REQUESTS_DEADLINE = 5.0
RUNS_DEADLINE = 60.0
#: Seconds until a notice must end after that. An unfinished notice is sent again at the next start.
NOTICE_DEADLINE = 5.0
#: Seconds until the temporary process of a command must release the lock, after it was asked to stop.
HANDOVER_DEADLINE = REQUESTS_DEADLINE + RUNS_DEADLINE + GRACE + 5.0
#: Seconds that each of the fleet's threads has to end.
FLEET_DEADLINE = 3.0


def serve(settings: Settings, environ: MutableMapping[str, str]) -> int:
    """Run the daemon until a signal ends it, and return the exit status.

    Raises `ConfigError` or `StartError` if it cannot start.
    """
    signals = SignalPipe()
    secrets = SecretSource(settings.webhook_secret, settings.webhook_secret_file)
    faulthandler.enable(2)
    interval = watchdog_interval(environ)
    with ExitStack() as stack:
        lock = _lock(settings.state, environ)
        stack.callback(lock.release)
        try:
            journal = Journal(settings.state)
        except JournalError as error:
            raise StartError(str(error)) from error
        stack.callback(journal.close)
        checkouts = Checkouts(settings.root)
        metrics, rejections = Metrics(journal, checkouts, RESULTS), Rejections()
        observers: list[RunObserver] = [metrics, Commits(journal, checkouts)]
        fleet = make_fleet(settings, journal, checkouts) if settings.fleet else None
        notifier = make_notifier(settings, environ, journal, checkouts, fleet) if settings.notify else None
        observers += [notifier] if notifier else []
        sender = make_sender(settings, journal, checkouts, observers, fleet) if settings.report else None
        if fleet:
            observers.append(fleet)
            metrics.read_fleet = fleet.metrics
        dispatcher = Dispatcher.from_settings(settings, environ, journal, checkouts, observers)
        webhook = WebhookApp(
            secrets.current,
            checkouts,
            journal,
            dispatcher.notify,
            settings.clone,
            fleet=fleet.forwarder if fleet else None,
            count=_counter(metrics, rejections),
        )
        servers = _serve_both(
            settings,
            environ,
            lambda: forwarded_middleware(webhook, settings.trusted_proxies),
            lambda: make_dashboard(
                settings, journal, checkouts, metrics, rejections, secret_places=secrets.places(environ), fleet=fleet
            ),
        )
        dispatcher.start()
        if fleet:
            fleet.start(dispatcher.notify, dispatcher.sweep)
            stack.callback(fleet.stop, FLEET_DEADLINE)
        control = start_control(settings, journal, checkouts, dispatcher, signals)
        lock.describe(str(settings.control))
        if sender:
            sender.start()
            stack.callback(sender.stop, REQUESTS_DEADLINE)
        for server in servers:
            _start_accepting(server, signals)
            _log_listening(server, settings)
        notify(environ, "READY=1")
        if notifier:
            notifier.start()
        servers.append(control)
        main_loop = MainLoop(servers, dispatcher, journal, checkouts, environ, notifier=notifier)
        status = main_loop.run(signals, interval)
        notify(environ, "STOPPING=1")
        stop_runs(signals, servers, dispatcher)
        if notifier:
            notifier.stop(NOTICE_DEADLINE)
    log.info("stopped", exit=status)
    return status


def _log_listening(server: Server, settings: Settings) -> None:
    address = describe(server.server_address)
    log.info(f"listening for the {server.name}", address=address, version=__version__, root=settings.root)


def _counter(metrics: Metrics, rejections: Rejections) -> Callable[[str, str, str], None]:
    """Return a function that counts a response of the webhook: its result, the class of its reason, and the peer."""

    def count(result: str, reason: str, peer: str) -> None:
        metrics.answered(result, reason)
        if result == "refused":
            rejections.add(reason, peer)

    return count


def start_control(
    settings: Settings, journal: Journal, checkouts: Checkouts, dispatcher: Dispatcher, signals: SignalPipe
) -> Server:
    """Start to serve the control socket. Raises `StartError`."""
    app = ControlApp(journal, checkouts, dispatcher, settings.state, settings.clone)
    try:
        server = Server(listen_on_path(settings.control), app, Limits(connections=64, reserve=2), name="control")
    except OSError as error:
        raise StartError(f"GITOPS_CONTROL={str(settings.control)!r} cannot be used: {error.strerror}") from None
    _start_accepting(server, signals)
    return server


def stop_runs(signals: SignalPipe, servers: list[Server], dispatcher: Dispatcher) -> None:
    """Stop accepting, finish the current requests, and wait for the current runs, or end them at the deadline."""
    dispatcher.stop()
    for server in servers:
        server.shutdown()
    deadline = time.monotonic() + REQUESTS_DEADLINE
    for server in servers:
        server.drain(max(0.0, deadline - time.monotonic()))

    def wait_for_runs() -> None:
        dispatcher.join(RUNS_DEADLINE + GRACE)
        signals.put(RUNS_ENDED)

    threading.Thread(target=wait_for_runs, name="wait for runs", daemon=True).start()
    deadline = time.monotonic() + RUNS_DEADLINE
    code = signals.get(RUNS_DEADLINE)
    while code in (signal.SIGHUP, ACCEPT_FAILED):  # neither shortens the wait
        log.info("still stopping", signal="SIGHUP" if code == signal.SIGHUP else None)
        code = signals.get(max(0.0, deadline - time.monotonic()))
    if code != RUNS_ENDED:
        log.warning("ending the current runs", reason="a second signal" if code else f"{RUNS_DEADLINE:.0f} s are over")
        dispatcher.terminate()
        dispatcher.join(GRACE + 2)


def _accept(server: Server, signals: SignalPipe) -> None:
    """Accept connections until `Server.shutdown`. If that fails, end the daemon, so that systemd restarts it."""
    try:
        server.serve_forever(poll_interval=0.25)
    except Exception:
        log.exception("the server cannot accept connections")
        signals.put(ACCEPT_FAILED)


def _start_accepting(server: Server, signals: SignalPipe) -> None:
    threading.Thread(target=_accept, args=(server, signals), name="accept", daemon=True).start()


def _lock(state: Path, environ: MutableMapping[str, str]) -> StateLock:
    """Lock the state directory, after the temporary process of a command has ended. Raises `StartError`."""

    def wait_for(found: Holder) -> None:
        log.info("waiting for a command to end", command=found.what, pid=found.pid)
        ask_to_stop(found)
        notify(environ, f"EXTEND_TIMEOUT_USEC={int(HANDOVER_DEADLINE * 1e6)}")

    lock = StateLock(state, DAEMON)
    lock.acquire(HANDOVER_DEADLINE, wait_for)
    return lock


def _serve_both(
    settings: Settings,
    environ: MutableMapping[str, str],
    make_webhook: Callable[[], Application],
    make_dashboard: Callable[[], Application],
) -> list[Server]:
    """Create a server for each socket: those that systemd passed by name, or else one for the configured address.

    An application without a socket is not created.
    """
    inherited = inherited_sockets(environ)
    servers = []
    for name, option, address, make_app, limits in (
        ("webhook", "GITOPS_LISTEN", settings.listen, make_webhook, Limits()),
        ("dashboard", "GITOPS_DASHBOARD_LISTEN", settings.dashboard_listen, make_dashboard, PAGE_LIMITS),
    ):
        sockets = inherited.pop(name, []) or ([_bind(option, address)] if address else [])
        if sockets:
            app = make_app()
            servers += [Server(listening, app, limits, name) for listening in sockets]
    for name, unknown in inherited.items():
        log.warning("inherited sockets have an unknown name and are not used", name=name, sockets=len(unknown))
    return servers


def _bind(option: str, address: Address) -> socket.socket:
    try:
        return listen_on_address(address)
    except OSError as error:
        raise StartError(f"{option}={address} cannot be used: {error.strerror}") from None
