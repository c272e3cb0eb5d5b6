"""The limits of a server, and its resources in use: connections, calls, and memory for bodies and responses."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http import HTTPStatus
from typing import NamedTuple

from gitops_hook.errors import HTTPError
from gitops_hook.httpd.stream import Stream

#: The most evicted connections whose threads have not ended yet. A thread ends as soon as it gets the interpreter.
_MAX_ENDING = 64


class Limits(NamedTuple):
    """Limits for peers. Sizes are in bytes, times in seconds."""

    #: Connections at one time. Each has a thread, about 50 KiB. A forge and its proxies keep a few dozen open.
    connections: int = 512
    #: Threads that exist before the first connection and stay.
    reserve: int = 8
    #: Calls of the application at one time; 0 for no limit. Each call competes with every other thread for the
    #: interpreter.
    calls: int = 0
    #: Connections that the kernel queues in a burst (net.core.somaxconn may allow fewer).
    backlog: int = 4096
    #: The head of a request. A forge sends about 1 KiB; proxies stop at 8 to 32 KiB.
    head: int = 32 << 10
    #: Bodies and responses in memory at one time: four of the largest bodies that GitHub sends.
    memory: int = 100 << 20
    #: The part of each body or response that does not count, so that an ordinary push always passes: 32 MiB in total.
    uncounted: int = 64 << 10
    #: From the first byte of a request to its last. GitHub gives up after 10 s; a slow link may need more.
    request: float = 30.0
    #: Without a request. nginx closes idle connections after 60 s, and a proxy must be the first to close.
    idle: float = 75.0
    #: The part of an unread body that is received and dropped, so that the peer reads the response.
    discarded: int = 32 << 20


#: The limits of a server for people and monitoring. It has its own connections and memory, and few calls at a time, so
#: that it cannot delay the webhooks.
PAGE_LIMITS = Limits(connections=64, reserve=2, calls=2, memory=32 << 20)


class Resources:
    """The connections and the memory of one server. Any thread may call any method."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        #: Whether the server stops: each response is the last on its connection.
        self.draining = False
        #: The longest time in seconds that an idle connection is kept; `Server.drain` shortens it.
        self.grace = math.inf
        # Guards the three below. Threads that accept or serve take it for a few steps, never to wait for a peer.
        # Notified when a connection ends and when memory is released.
        self._changed = threading.Condition()
        self._streams: set[Stream] = set()
        #: The evicted ones among them.
        self._ending = 0
        self._held = 0
        self._calls = threading.BoundedSemaphore(limits.calls) if limits.calls else None

    def add(self, stream: Stream) -> bool:
        """Register a new connection. At the limit, hang up on the peer that has been waited for longest.

        Return False if there is no such peer, because every connection is busy, or if evicted connections do not end.
        """
        with self._changed:
            if len(self._streams) >= self.limits.connections:
                # The calling thread accepts connections, so it waits only to let the evicted ones run.
                if not self._changed.wait_for(lambda: self._ending < _MAX_ENDING, timeout=0.1):
                    return False
                if len(self._streams) - self._ending >= self.limits.connections and not self._evict():
                    return False
            self._streams.add(stream)
            return True

    def remove(self, stream: Stream) -> None:
        """Forget a connection that ended."""
        with self._changed:
            self._streams.remove(stream)
            self._ending -= stream.evicted
            self._changed.notify_all()

    def evict(self) -> bool:
        """Hang up on the peer that has been waited for longest. Return False if there is none."""
        with self._changed:
            return self._evict()

    @contextmanager
    def call_slot(self) -> Iterator[None]:
        """Wait until the application may be called. Raise `HTTPError` (503) if that takes too long."""
        if self._calls and not self._calls.acquire(timeout=self.limits.request):
            raise HTTPError(HTTPStatus.SERVICE_UNAVAILABLE, "too many requests are being processed")
        try:
            yield
        finally:
            if self._calls:
                self._calls.release()

    def wait_until_empty(self, timeout: float) -> bool:
        """Wait until no connection is left. Return False after `timeout` seconds."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._streams, timeout)

    def hang_up(self, how: int, which: Callable[[Stream], bool]) -> None:
        """Shut down the connections that `which` selects."""
        with self._changed:
            for stream in filter(which, self._streams):
                stream.hang_up(how)

    def hold(self, stream: Stream, size: int) -> None:
        """Reserve memory for `size` bytes until `release`. Raise `HTTPError` (503) if there is none."""
        if size <= 0:
            return

        def is_free() -> bool:
            return self._held + size <= self.limits.memory

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

    def _evict(self, *, holders: bool = False) -> bool:
        """Hang up on the peer that has been waited for longest; with `holders`, among those that hold memory.

        The caller holds the lock.
        """
        waiting = [
            stream for stream in self._streams if stream.waiting and not stream.evicted and (stream.held or not holders)
        ]
        if not waiting:
            return False
        longest = min(waiting, key=lambda stream: stream.since)
        longest.evicted = True
        self._ending += 1
        longest.hang_up()
        return True
