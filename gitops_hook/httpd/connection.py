"""One connection: requests in, responses out, until either side ends it."""

from __future__ import annotations

import socket
import struct
from contextlib import suppress
from http import HTTPStatus
from typing import Any, NamedTuple

from gitops_hook.errors import HTTPError
from gitops_hook.httpd.body import ChunkedBody, RequestBody
from gitops_hook.httpd.call import Application, Call, rejecting
from gitops_hook.httpd.limits import Resources
from gitops_hook.httpd.request import Request, parse_head, reject_bare_line_feeds
from gitops_hook.httpd.stream import Stream

#: Stands for a request whose head cannot be read.
_MALFORMED = Request({"REQUEST_METHOD": "GET", "SERVER_PROTOCOL": "HTTP/1.1"}, None, False, False, False)
#: The first byte of a TLS connection (RFC 8446, 5.1: the type of a handshake record). No method begins with it.
_TLS_HANDSHAKE = b"\x16"
#: The response to a head that ends early. It is constant, and there is no line in the log: when hundreds of peers leave
#: at once, both would take the interpreter from the other connections.
_EARLY_END = (
    b"HTTP/1.1 400 Bad Request\r\nContent-Type: application/json\r\nContent-Length: 55\r\nConnection: close\r\n\r\n"
    b'{"status": "refused", "reason": "the head ends early"}\n'
)
#: The key of a `Peer` in the environ of a request that arrived through a Unix socket.
PEER = "gitops_hook.peer"
_CREDENTIALS = struct.Struct("3i")


class Peer(NamedTuple):
    """The process at the other end of a Unix socket, as the kernel knows it (unix(7), SO_PEERCRED)."""

    pid: int
    uid: int
    gid: int


class Connection:
    """Serves the requests of one connection, one after another, in the thread that calls `serve`."""

    def __init__(self, stream: Stream, peer: Any, resources: Resources, application: Application) -> None:
        """Prepare to serve `stream`. `peer` is the peer's socket address."""
        self.stream = stream
        self._resources = resources
        self._limits = resources.limits
        self._application = application
        host, port = host_and_port(stream.socket.getsockname())
        self.peer = host_and_port(peer)[0]
        self._environ: dict[str, Any] = {"SERVER_NAME": host, "SERVER_PORT": port, "REMOTE_ADDR": self.peer}
        self._wait(self._limits.request)
        if stream.socket.family == socket.AF_UNIX:
            self._environ[PEER] = Peer(*_CREDENTIALS.unpack(_peer_credentials(stream.socket)))
        else:
            stream.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, True)

    def serve(self) -> None:
        """Serve requests until either side ends the connection."""
        with suppress(OSError):  # the peer is gone, or does not read its response
            while self._serve_one():
                self.stream.idle = True
                self._wait(self._limits.idle)

    def _serve_one(self) -> bool:
        """Read a request and send the response. Return True if another request may follow."""
        try:
            head = self._read_head()
            if head is None:
                return False
            request = parse_head(head)
        except HTTPError as error:
            if self.stream.idle or self.stream.evicted:  # nobody reads a response
                return False
            return self._call(_MALFORMED, rejecting(error))
        return self._call(request, self._application)

    def _call(self, request: Request, application: Application) -> bool:
        """Call the application and send its response. Return True if another request may follow."""
        body = (ChunkedBody if request.chunked else RequestBody)(self.stream, self._resources, request)
        call = Call(self._environ, request, body, self._resources)
        self.stream.waiting = False  # it is still set if this request arrived together with the one before
        try:
            with self._resources.call_slot():
                call.run(application)
        except HTTPError as error:
            call.run(rejecting(error))
        finally:
            self._resources.release(self.stream)
        output = call.output()
        try:
            self._resources.hold(self.stream, len(output) - self._limits.uncounted)
        except HTTPError as error:
            call = Call(self._environ, request, body, self._resources)
            call.run(rejecting(error))
            output = call.output()
        try:
            self.stream.send(output)
        finally:
            self._resources.release(self.stream)
        if not call.keep_alive:
            self._discard_rest()
        return call.keep_alive

    def _read_head(self) -> bytes | None:
        """Return the bytes before the empty line, or None if the peer closes before it has sent them."""
        stream = self.stream
        while True:
            if stream.received.startswith(b"\r\n"):  # some clients end a body so; RFC 9112 (2.2): ignore one
                del stream.received[:2]
            if stream.idle and stream.received and stream.received != b"\r":  # which may be half of those
                stream.idle = False
                self._wait(self._limits.request)
            if stream.received.startswith(_TLS_HANDSHAKE):
                raise HTTPError(HTTPStatus.BAD_REQUEST, "TLS on the plain port")
            end = stream.received.find(b"\r\n\r\n")
            head = bytes(stream.received if end < 0 else stream.received[:end])
            if len(head) > self._limits.head:
                raise HTTPError(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, "the head is too large")
            reject_bare_line_feeds(head)
            if end >= 0:
                del stream.received[: end + 4]
                return head
            if not stream.fill():
                if not stream.idle and not stream.evicted:
                    stream.send(_EARLY_END)
                return None

    def _wait(self, timeout: float) -> None:
        """Give the peer `timeout` seconds from now; while it is idle, not more than the grace period of a drain."""
        self.stream.start(min(timeout, self._resources.grace) if self.stream.idle else timeout)

    def _discard_rest(self) -> None:
        """Receive and drop bytes after the last response.

        Closing a socket with unread bytes sends a reset, which deletes the response from the peer's buffer.
        """
        self.stream.socket.shutdown(socket.SHUT_WR)
        self._wait(self._limits.request)
        rest = self._limits.discarded
        with suppress(HTTPError):
            while rest > 0 and self.stream.fill():
                rest -= len(self.stream.received)
                self.stream.received.clear()


def _peer_credentials(connection: socket.socket) -> bytes:
    return connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)


def host_and_port(address: Any) -> tuple[str, str]:
    """Return a socket address as two strings. A Unix socket has neither."""
    return (str(address[0]), str(address[1])) if isinstance(address, tuple) else ("", "")
