"""The body of a request, received while the application reads it."""

from __future__ import annotations

import io
import re
from contextlib import suppress
from http import HTTPStatus
from typing import Any

from gitops_hook.errors import HTTPError
from gitops_hook.httpd.limits import Resources
from gitops_hook.httpd.request import MAX_LINES, Request
from gitops_hook.httpd.stream import Stream

#: The size of a chunk, and an extension.
_CHUNK_LINE = re.compile(rb"([0-9A-Fa-f]{1,8})(?:[\t ]*;[\t\x20-\x7e\x80-\xff]*)?")
#: The longest line of a chunked body in bytes, with its end.
_MAX_LINE = 4096
#: The number of chunks of any size, and the average size in bytes that more chunks must have.
_FREE_CHUNKS, _CHUNK_AVERAGE = 1000, 512
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


class RequestBody(io.RawIOBase):
    """The bytes after a head, as many as its Content-Length.

    Memory is reserved for the bytes that arrive, not for the announced length: an announcement costs a peer nothing.
    """

    def __init__(self, stream: Stream, resources: Resources, request: Request) -> None:
        super().__init__()
        self._stream = stream
        self._resources = resources
        self._length_known = request.length is not None
        #: The bytes until the end of the body, or of the chunk.
        self._rest = request.length or 0
        self._expects_continue = request.expects_continue
        self._taken = 0

    @property
    def complete(self) -> bool:
        """Return whether the whole body was read, so that another request may follow."""
        return self._length_known and not self._rest

    def readable(self) -> bool:
        """Return True: `io.BufferedReader` asks for it."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Read into `buffer` and return the number of bytes.

        Raise `HTTPError`: 408 at the deadline, 400 if the body is malformed or ends early, 503 without memory. It is no
        OSError, so it passes through the application to the server.
        """
        return self._read_rest(buffer) if self._rest else 0

    def _read_rest(self, buffer: Any) -> int:
        received = self._stream.received
        if not received:
            self._fill()
        size = min(len(buffer), self._rest, len(received))
        self._taken += size
        # The first bytes do not count, so reserve at most what exceeds them.
        self._resources.hold(self._stream, min(size, self._taken - self._resources.limits.uncounted))
        buffer[:size] = self._stream.take(size)
        self._rest -= size
        self._expects_continue = False
        return size

    def _fill(self) -> None:
        """Receive more bytes, and ask for them first if the peer waits for that."""
        if self._expects_continue:
            with suppress(OSError):  # if the peer is gone, the next read shows it
                self._stream.socket.sendall(_CONTINUE)
        self._expects_continue = False
        if not self._stream.fill():
            raise HTTPError(HTTPStatus.BAD_REQUEST, "the body ends early")


class ChunkedBody(RequestBody):
    """A body in chunks (RFC 9112, 7.1). Extensions and trailers are dropped."""

    def __init__(self, stream: Stream, resources: Resources, request: Request) -> None:
        super().__init__(stream, resources, request)
        self._chunks = 0
        self._ended = False

    @property
    def complete(self) -> bool:
        """Return whether the whole body was read, so that another request may follow."""
        return self._ended

    def readinto(self, buffer: Any) -> int:
        """Read into `buffer` and return the number of bytes. Raise `HTTPError` as the base class does."""
        if self._ended:
            return 0
        if not self._rest:
            self._start_chunk()
            if self._ended:
                return 0
        size = self._read_rest(buffer)
        if not self._rest and self._line():
            raise _malformed()
        return size

    def _start_chunk(self) -> None:
        """Read the size of the next chunk; after the last chunk, the trailers."""
        match = _CHUNK_LINE.fullmatch(self._line())
        if not match:
            raise _malformed()
        self._rest = int(match[1], 16)
        self._chunks += 1
        # A chunk costs a few steps of the interpreter, so a peer must not send a large body in tiny ones.
        if self._chunks > _FREE_CHUNKS + self._taken // _CHUNK_AVERAGE:
            raise HTTPError(HTTPStatus.BAD_REQUEST, "the chunks are too small")
        if not self._rest:
            for _ in range(MAX_LINES):
                if not self._line():
                    self._ended = True
                    return
            raise _malformed()

    def _line(self) -> bytes:
        """Return the next line without its end."""
        received = self._stream.received
        while True:
            end = received.find(b"\n", 0, _MAX_LINE)
            if end >= 0:
                line = self._stream.take(end + 1)
                if not line.endswith(b"\r\n"):
                    raise _malformed()
                return line[:-2]
            if len(received) >= _MAX_LINE:
                raise _malformed()
            self._fill()


def _malformed() -> HTTPError:
    return HTTPError(HTTPStatus.BAD_REQUEST, "the chunked body is malformed")
