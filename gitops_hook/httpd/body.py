"""The body of a request, received while the application reads it."""

from __future__ import annotations

import io
from contextlib import suppress
from http import HTTPStatus
from typing import Any

from gitops_hook.errors import HTTPError
from gitops_hook.httpd.limits import Resources
from gitops_hook.httpd.request import Request
from gitops_hook.httpd.stream import Stream

_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


class RequestBody(io.RawIOBase):
    """The bytes after a head.

    Memory is reserved for the bytes that arrive, not for the announced length: an announcement costs a peer nothing.
    """

    def __init__(self, stream: Stream, resources: Resources, request: Request) -> None:
        super().__init__()
        #: The number of bytes that were not read yet.
        self.unread = request.length or 0
        self._stream = stream
        self._resources = resources
        self._expects_continue = request.expects_continue
        self._taken = 0

    def readable(self) -> bool:
        """Return True: `io.BufferedReader` asks for it."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Read into `buffer` and return the number of bytes.

        Raise `HTTPError`: 408 at the deadline, 400 if the body ends early, 503 without memory. It is no OSError, so it
        passes through the application to the server.
        """
        if not self.unread:
            return 0
        received = self._stream.received
        if self._expects_continue and not received:
            with suppress(OSError):  # if the peer is gone, the next read shows it
                self._stream.socket.sendall(_CONTINUE)
        self._expects_continue = False
        if not received and not self._stream.fill():
            raise HTTPError(HTTPStatus.BAD_REQUEST, "the body ends early")
        size = min(len(buffer), self.unread, len(received))
        self._hold(size)
        buffer[:size] = self._stream.take(size)
        self.unread -= size
        return size

    def _hold(self, size: int) -> None:
        """Reserve memory for the next `size` bytes, except for the part of each body that does not count."""
        counted = min(size, max(0, self._taken + size - self._resources.limits.uncounted))
        if counted:
            self._resources.hold(self._stream, counted)
        self._taken += size
