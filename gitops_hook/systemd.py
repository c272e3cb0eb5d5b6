"""What systemd and a daemon say to each other: sockets handed over, states told. Without systemd, silence.

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
    """The listening sockets that this process was started with, by their names (``FileDescriptorName=``).

    The variables that tell of them are taken out of `environ`, for they speak to this process alone.
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
    """Seconds from one ``WATCHDOG=1`` to the next, half of what the supervisor allows; None if it watches nothing.

    The variables that tell of it are taken out of `environ`, for they speak to this process alone.
    """
    allowed, pid = environ.pop("WATCHDOG_USEC", ""), environ.pop("WATCHDOG_PID", str(os.getpid()))
    if pid != str(os.getpid()) or not allowed.isdigit() or not int(allowed):
        return None
    return int(allowed) / 1e6 / 2


def notify(environ: MutableMapping[str, str], *states: str) -> None:
    """Tell the supervisor states such as ``READY=1``, in one message, if there is one that listens."""
    address = environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return
    # No descriptor to be had, or nobody who listens: neither must end the daemon.
    with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as channel:
        channel.connect("\0" + address[1:] if address[0] == "@" else address)
        channel.sendall("\n".join(states).encode())


def reloading() -> tuple[str, str]:
    """The states to tell when a reload begins; ``READY=1`` ends it."""
    return "RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}"
