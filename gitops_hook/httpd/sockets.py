"""Create listening sockets.

Each function raises OSError if the address cannot be used.
"""

from __future__ import annotations

import os
import socket
import stat
from contextlib import suppress
from pathlib import Path

from gitops_hook.config import Address


def listen_on_address(address: Address) -> socket.socket:
    """Return a TCP socket that listens on an IP address. The IPv6 wildcard also accepts IPv4."""
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, True)
        if family == socket.AF_INET6:
            listening.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, address.host != "::")
        listening.bind(address)
        listening.listen()  # fails here if another process has bound the port in the meantime
    except OSError:
        listening.close()
        raise
    return listening


def listen_on_path(path: Path) -> socket.socket:
    """Return a Unix socket at `path` that only this user and root can connect to, in place of a stale one."""
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with suppress(FileNotFoundError):
            if stat.S_ISSOCK(path.lstat().st_mode):
                path.unlink()
        listening.bind(str(path))
        os.chmod(path, 0o600)  # noqa: PTH101 - nobody can connect before listen()
        listening.listen()
    except OSError:
        listening.close()
        raise
    return listening
