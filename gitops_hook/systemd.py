"""What systemd and a daemon say to each other: sockets handed over, states told. Without systemd, silence.

Sources: sd_listen_fds(3), sd_notify(3).
"""

from __future__ import annotations

import os
import socket
from collections.abc import MutableMapping

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


def notify(environ: MutableMapping[str, str], state: str) -> None:
    """Tell the supervisor a state such as ``READY=1``, if there is one that listens."""
    address = environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as channel:
        try:
            channel.connect("\0" + address[1:] if address[0] == "@" else address)
            channel.sendall(state.encode())
        except OSError:
            pass  # a supervisor that does not listen must not end the daemon
