"""A connected socket with a receive buffer and one deadline for everything that belongs to a request."""

from __future__ import annotations

import socket
import time
from contextlib import suppress
from http import HTTPStatus

from gitops_hook.errors import HTTPError

#: The size of a read in bytes: an ordinary push with its head in one, a large push in few.
CHUNK = 64 << 10


class Stream:
    """One connection. Its own thread calls every method except `hang_up`; other threads read the attributes."""

    def __init__(self, connection: socket.socket, timeout: float) -> None:
        """Wrap a connected socket. The first request must begin and end within `timeout` seconds."""
        self.socket = connection
        #: Bytes that were received and are not used yet.
        self.received = bytearray()
        #: Whether no byte of the next request has arrived.
        self.idle = True
        #: Whether the connection's thread waits for the peer, or is about to.
        self.waiting = True
        #: Whether the connection was ended because of a limit.
        self.evicted = False
        #: The memory that this connection holds, in bytes. `Resources` sets it.
        self.held = 0
        self.start(timeout)
        self._send_timeout = self._timeout = timeout
        self.socket.settimeout(timeout)

    def start(self, timeout: float) -> None:
        """Start a period, of a request or between requests, that ends in `timeout` seconds."""
        #: When the period began, on the monotonic clock.
        self.since = time.monotonic()
        self._deadline = self.since + timeout

    def fill(self) -> bool:
        """Receive more bytes. Return False at the end of the stream. Raise `HTTPError` (408) at the deadline."""
        remaining = self._deadline - time.monotonic()
        if remaining <= 0:  # even if more bytes are there: a peer that sends without a pause must not go on for ever
            raise _timed_out()
        if abs(remaining - self._timeout) > 1:
            self._set_timeout(remaining)
        self.waiting = True
        try:
            chunk = self.socket.recv(CHUNK)
        except socket.timeout:
            raise _timed_out() from None
        except OSError:  # reset or unreachable: equivalent to the end here
            return False
        finally:
            self.waiting = False
        self.received += chunk
        return bool(chunk)

    def take(self, size: int) -> bytes:
        """Return the next `size` bytes of the buffer, which holds at least as many."""
        taken = bytes(self.received[:size])
        del self.received[:size]
        return taken

    def send(self, data: bytes) -> None:
        """Send `data`. Raise OSError if the peer is gone or does not read it in time."""
        self.waiting = True
        if self._timeout < self._send_timeout - 1:  # little was left to receive the request
            self._set_timeout(self._send_timeout)
        self.socket.sendall(data)

    def _set_timeout(self, seconds: float) -> None:
        """Set the socket's timeout. This is a system call, so callers accept a difference of 1 s."""
        self._timeout = seconds
        self.socket.settimeout(seconds)

    def hang_up(self, how: int = socket.SHUT_RDWR) -> None:
        """Shut the connection down, from any thread. A thread that waits for the peer continues at once."""
        with suppress(OSError):
            self.socket.shutdown(how)


def _timed_out() -> HTTPError:
    return HTTPError(HTTPStatus.REQUEST_TIMEOUT, "the request took too long")
