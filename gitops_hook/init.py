"""The first process of a container: run the daemon as a child, and reap every other process.

The kernel gives orphans to process 1 of their PID namespace (pid_namespaces(7)). If that process does not wait for
them, they stay as zombies until no process number is left. The daemon itself must not wait for any child: it would take
the exit statuses of its scripts.
"""

from __future__ import annotations

import os
import signal
from collections.abc import MutableMapping
from contextlib import suppress

_FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def is_first_process() -> bool:
    """Return True if this process is the first of its PID namespace."""
    return os.getpid() == 1


def run_child(environ: MutableMapping[str, str]) -> int | None:
    """Fork. Return None in the child; in the parent, forward signals, reap orphans, and return the child's exit status.

    Call this before any thread starts. Sockets that systemd passed to this process belong to the child.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, _FORWARDED)  # none is lost between the fork and the handlers
    child = os.fork()
    if child == 0:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _FORWARDED)
        for name in ("LISTEN_PID", "WATCHDOG_PID"):
            if environ.get(name) == "1":
                environ[name] = str(os.getpid())
        return None

    def forward(number: int, frame: object) -> None:
        with suppress(ProcessLookupError):
            os.kill(child, number)

    for number in _FORWARDED:
        signal.signal(number, forward)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _FORWARDED)
    while True:
        process, status = os.waitpid(-1, 0)
        if process == child:
            return os.waitstatus_to_exitcode(status) if os.WIFEXITED(status) else 128 + os.WTERMSIG(status)
