"""The limits of a server, and its resources in use: connections, and memory for bodies."""

from __future__ import annotations

import math
import socket
import threading
from collections.abc import Callable
from http import HTTPStatus
from typing import NamedTuple

from gitops_hook.errors import HTTPError
from gitops_hook.httpd.stream import Stream


class Limits(NamedTuple):
    """What peers may use. Sizes are in bytes, times in seconds."""

    #: Connections at one time. Each has a thread, about 50 KiB. A forge and its proxies keep a few dozen open.
    connections: int = 512
    #: Connections that the kernel queues in a burst (net.core.somaxconn may allow fewer).
    backlog: int = 4096
    #: The head of a request. A forge sends about 1 KiB; proxies stop at 8 to 32 KiB.
    head: int = 32 << 10
    #: Bodies in memory at one time: four of the largest that GitHub sends.
    bodies: int = 100 << 20
    #: The part of each body that does not count, so that an ordinary push always passes: 32 MiB in total.
    uncounted: int = 64 << 10
    #: From the first byte of a request to its last. GitHub gives up after 10 s; a slow link may need more.
    request: float = 30.0
    #: Without a request. nginx closes idle connections after 60 s, and a proxy must be the first to close.
    idle: float = 75.0
    #: The part of an unread body that is received and dropped, so that the peer reads the response.
    discarded: int = 32 << 20


class Resources:
    """The connections and the memory of one server. Any thread may call any method."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        #: Whether the server stops: each response is the last on its connection.
        self.draining = False
        #: The longest time in seconds that an idle connection is kept; `Server.drain` shortens it.
        self.grace = math.inf
        # Guards the two below. Threads that accept or serve take it for a few steps, never while they wait for a peer.
        # Notified when a connection ends and when memory is released.
        self._changed = threading.Condition()
        self._streams: dict[socket.socket, Stream] = {}
        self._held = 0

    def add(self, stream: Stream) -> None:
        """Register a new connection. At the limit, hang up on the peer that has been waited for longest."""
        with self._changed:
            if len(self._streams) >= self.limits.connections:
                self._evict()
                # One second at most, because the thread that accepts waits here. Then exceed the limit by one.
                self._changed.wait_for(lambda: len(self._streams) < self.limits.connections, timeout=1)
            self._streams[stream.socket] = stream

    def stream_of(self, connection: socket.socket) -> Stream:
        """Return the registered stream of a socket."""
        with self._changed:
            return self._streams[connection]

    def remove(self, connection: socket.socket) -> None:
        """Forget a connection that ended."""
        with self._changed:
            self._streams.pop(connection, None)
            self._changed.notify_all()

    def evict(self) -> None:
        """Hang up on the peer that has been waited for longest, if any."""
        with self._changed:
            self._evict()

    def wait_until_empty(self, timeout: float) -> bool:
        """Wait until no connection is left. Return False after `timeout` seconds."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._streams, timeout)

    def hang_up(self, how: int, which: Callable[[Stream], bool]) -> None:
        """Shut down the connections that `which` selects."""
        with self._changed:
            for stream in filter(which, self._streams.values()):
                stream.hang_up(how)

    def hold(self, stream: Stream, size: int) -> None:
        """Reserve memory for `size` bytes of a body until `release`. Raise `HTTPError` (503) if there is none."""

        def is_free() -> bool:
            return self._held + size <= self.limits.bodies

        with self._changed:
            if not is_free():
                self._evict(holders=True)
                self._changed.wait_for(is_free, timeout=1)
            if not is_free():
                raise HTTPError(HTTPStatus.SERVICE_UNAVAILABLE, "too many large requests are being processed")
            self._held += size
            stream.held += size

    def release(self, stream: Stream) -> None:
        """Release all memory that a connection holds."""
        if stream.held:
            with self._changed:
                self._held -= stream.held
                stream.held = 0
                self._changed.notify_all()

    def _evict(self, *, holders: bool = False) -> None:
        """Hang up on the peer that has been waited for longest; with `holders`, among those that hold memory.

        The caller holds the lock.
        """
        waiting = [stream for stream in self._streams.values() if stream.waiting and (stream.held or not holders)]
        if waiting:
            min(waiting, key=lambda stream: stream.since).hang_up()
