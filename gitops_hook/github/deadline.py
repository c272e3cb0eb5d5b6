"""Limit the time of a whole HTTP call, however slowly the peer sends.

The timeout of a socket applies to each operation. A peer that sends a byte, or another ``100 Continue``, before each
timeout keeps the call alive for ever. A `Deadline` therefore shuts the connection down.
"""

from __future__ import annotations

import socket
import ssl
import threading
import time
from contextlib import suppress
from functools import partial
from http.client import HTTPConnection, HTTPSConnection
from typing import Any
from urllib.request import HTTPHandler, HTTPSHandler, Request


class Deadline:
    """Closes the connections of a call when its time is over, even while the peer sends. A context manager."""

    def __init__(self, seconds: float) -> None:
        self._end = time.monotonic() + seconds
        self._watches: list[tuple[threading.Timer, socket.socket]] = []

    def watch(self, connection: socket.socket) -> None:
        """Close `connection` at the deadline. A duplicate is closed, because TLS replaces the socket object."""
        duplicate = connection.dup()
        timer = threading.Timer(max(0.0, self._remaining), _shut_down, (duplicate,))
        timer.daemon = True
        timer.start()
        self._watches.append((timer, duplicate))

    def connect(self, address: tuple[str, int], timeout: float, *more: Any) -> socket.socket:
        """Return a connection that is closed at the deadline. The arguments are those of `socket.create_connection`."""
        connection = socket.create_connection(address, max(0.001, min(timeout, self._remaining)), *more)
        connection.settimeout(timeout)
        self.watch(connection)
        return connection

    @property
    def is_over(self) -> bool:
        """Return True after the deadline."""
        return self._remaining <= 0

    @property
    def _remaining(self) -> float:
        return self._end - time.monotonic()

    def __enter__(self) -> Deadline:
        return self

    def __exit__(self, *exc: object) -> None:
        for timer, duplicate in self._watches:
            timer.cancel()
            timer.join()
            duplicate.close()


def _shut_down(connection: socket.socket) -> None:
    with suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)


class _Connection(HTTPConnection):
    """A connection under a deadline."""

    #: Set by `_create`: the constructor of HTTPSConnection passes no further arguments on.
    deadline: Deadline

    def connect(self) -> None:
        """Connect under the deadline. `HTTPConnection.connect` also asks a proxy for a tunnel (CONNECT)."""
        self._create_connection = self.deadline.connect
        super().connect()


class _TLSConnection(HTTPSConnection, _Connection):
    """The same with TLS: the handshake follows `_Connection.connect`, so it is under the deadline, too."""


def _create(kind: type[_Connection], deadline: Deadline, *args: Any, **more: Any) -> _Connection:
    """Return a new connection of `kind` under `deadline`, which connects later."""
    connection = kind(*args, **more)
    connection.deadline = deadline
    return connection


class DeadlineHandler(HTTPHandler, HTTPSHandler):
    """Opens connections under the deadline of one call."""

    def __init__(self, context: ssl.SSLContext, deadline: Deadline) -> None:
        super().__init__(context=context)
        self._tls_context = context
        self._deadline = deadline

    def http_open(self, request: Request) -> Any:
        """Open an HTTP connection."""
        return self.do_open(partial(_create, _Connection, self._deadline), request)

    def https_open(self, request: Request) -> Any:
        """Open an HTTPS connection."""
        connection = partial(_create, _TLSConnection, self._deadline, context=self._tls_context)
        return self.do_open(connection, request)
