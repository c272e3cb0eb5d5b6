"""Exchange sockets and states with systemd. Without systemd, every function does nothing.

Sources: sd_listen_fds(3), sd_notify(3), sd_watchdog_enabled(3).
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import MutableMapping
from contextlib import suppress

#: SD_LISTEN_FDS_START.
_FIRST = 3


def inherited_sockets(environ: MutableMapping[str, str]) -> dict[str, list[socket.socket]]:
    """Return the listening sockets that systemd passed to this process, by their names (``FileDescriptorName=``).

    Removes the variables from `environ`, because they concern only this process.
    """
    count, pid, names = (environ.pop(f"LISTEN_{name}", "") for name in ("FDS", "PID", "FDNAMES"))
    sockets: dict[str, list[socket.socket]] = {}
    if pid != str(os.getpid()) or not count.isdigit():
        return sockets
    for descriptor, name in zip(range(_FIRST, _FIRST + int(count)), names.split(":") + [""] * int(count)):
        os.set_inheritable(descriptor, False)
        sockets.setdefault(name, []).append(socket.socket(fileno=descriptor))
    return sockets


def watchdog_interval(environ: MutableMapping[str, str]) -> float | None:
    """Return the seconds between two ``WATCHDOG=1``, half of the limit, or None without a watchdog.

    Removes the variables from `environ`, because they concern only this process.
    """
    allowed, pid = environ.pop("WATCHDOG_USEC", ""), environ.pop("WATCHDOG_PID", str(os.getpid()))
    if pid != str(os.getpid()) or not allowed.isdigit() or not int(allowed):
        return None
    return int(allowed) / 1e6 / 2


def notify(environ: MutableMapping[str, str], *states: str) -> None:
    """Send states such as ``READY=1`` to the supervisor, in one message, if there is a supervisor."""
    address = environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return
    # No free descriptor, or no supervisor that listens: the daemon continues.
    with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as channel:
        channel.connect("\0" + address[1:] if address[0] == "@" else address)
        channel.sendall("\n".join(states).encode())


def reloading() -> tuple[str, str]:
    """Return the states to send at the start of a reload; ``READY=1`` ends it."""
    return "RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}"
