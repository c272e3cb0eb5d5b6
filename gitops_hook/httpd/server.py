"""Any WSGI application on a socket, with limits on what a peer may take, and a drain at the end.

Rules:

1. `http.server` accepts, `framing` judges what a peer may say, `wsgiref` calls the application.
2. Everything is bounded: the bytes of a head, the time for a whole request, connections, bytes of bodies in memory.
   At the bound on connections, or on bodies, the one that has kept us waiting longest gives way.
3. Policy is the application's: here nothing is known of paths, methods or media types. A body is read when the
   application asks for it; one that it does not want is thrown away, up to a bound, and the connection closed.
4. No names are looked up, neither ours nor the peer's.
5. `Server.drain` answers what has arrived before it closes.

The thread that accepts waits for nobody. Each connection has a thread, from its first request to its last.
"""

from __future__ import annotations

import errno
import io
import json
import math
import operator
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from http import HTTPStatus
from http.server import HTTPServer
from socketserver import BaseRequestHandler, TCPServer, ThreadingMixIn
from typing import Any, NamedTuple
from wsgiref.handlers import SimpleHandler
from wsgiref.headers import Headers

from gitops_hook.errors import HTTPError
from gitops_hook.httpd.request import Request, parse_head, refuse_bare_line_feeds
from gitops_hook.log import log

Application = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]


class Limits(NamedTuple):
    """What peers may take. Sizes are in bytes, times in seconds."""

    #: A thread is what a connection costs, some 50 KiB; a forge and its proxies keep a few dozen open.
    connections: int = 512
    #: Connections that the kernel holds for us in a burst (net.core.somaxconn may allow fewer).
    backlog: int = 4096
    #: A forge sends about 1 KiB of head; proxies stop at 8 to 32.
    head: int = 32 << 10
    #: Bodies in memory at one time: four of the largest that GitHub sends.
    bodies: int = 100 << 20
    #: What is not counted of each body, so that a usual push is let in whoever holds the rest; 32 MiB over all.
    spared: int = 64 << 10
    #: From the first byte of a request to its last. GitHub gives up after 10 s; a slow link may need more.
    request: float = 30.0
    #: For a connection with no request on it: longer than nginx keeps one (60 s), so that nginx is the one to close.
    idle: float = 75.0
    #: What is thrown away of an unwanted body, so that the peer comes to read the answer: more than GitHub ever sends.
    unwanted: int = 32 << 20


#: What is asked of the kernel at once: a usual push with its head, and a large one in few steps.
_CHUNK = 64 << 10
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


class Server(ThreadingMixIn, HTTPServer):
    """Serves one application on one listening socket. `serve_forever` accepts, in a thread of the caller's."""

    daemon_threads = True
    block_on_close = False

    def __init__(
        self, listening: socket.socket, application: Application, limits: Limits | None = None, name: str = ""
    ) -> None:
        """Take over `listening`, a bound stream socket of any family; `name` is what people call what is served."""
        self.name = name
        TCPServer.__init__(self, ("", 0), _Connection, bind_and_activate=False)  # HTTPServer's own would ask DNS
        self.socket.close()
        self.socket = listening
        self.socket.setblocking(False)  # a peer may be gone between select and accept
        self.limits = limits or Limits()
        self.socket.listen(self.limits.backlog)
        self.address_family = listening.family
        self.server_address = listening.getsockname()
        self.application = application
        self.draining = False
        #: Seconds that an idle connection is kept, whatever the limits say; `drain` sets it.
        self.grace = math.inf
        #: When the loop that accepts last came round, on the monotonic clock: how a watchdog knows that it does.
        self.turned = time.monotonic()
        # Guards the two below; notified when a connection ends. Taken by the thread that accepts and by those that
        # serve, for a few steps, never while waiting for a peer. A connection is None until its thread has begun.
        self._changed = threading.Condition()
        self._connections: dict[socket.socket, _Connection | None] = {}
        self._bodies = 0

    def service_actions(self) -> None:
        """Note another turn of the loop that accepts; `serve_forever` calls this."""
        self.turned = time.monotonic()

    def get_request(self) -> tuple[socket.socket, Any]:
        """Accept a connection. Out of descriptors, make room rather than spin."""
        try:
            return self.socket.accept()
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                log.error("no connection can be accepted", reason=error.strerror)
                with self._changed:
                    self._evict()
                time.sleep(0.1)  # the same connection is reported again at once
            raise

    def process_request(self, request: Any, client_address: Any) -> None:
        """Give a connection its thread, as soon as there is room."""
        with self._changed:
            if len(self._connections) >= self.limits.connections:
                self._evict()
                # A second at most, for `shutdown` waits for this thread; and one too many beats one turned away.
                self._changed.wait_for(lambda: len(self._connections) < self.limits.connections, timeout=1)
            self._connections[request] = None
        try:
            super().process_request(request, client_address)
        except RuntimeError as error:  # no thread to be had
            log.error("no connection can be served", reason=error)
            self.shutdown_request(request)

    def shutdown_request(self, request: Any) -> None:
        """Close a connection and forget it."""
        with self._changed:
            self._connections.pop(request, None)
            self._changed.notify_all()
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Log what a connection's thread died of; that a peer went away is no news."""
        if not isinstance(sys.exc_info()[1], OSError):
            log.exception("serving a connection failed", peer=_host_and_port(client_address)[0])

    def begin(self, connection: _Connection) -> None:
        """Note that a connection's thread has begun."""
        with self._changed:
            self._connections[connection.request] = connection

    def hold(self, size: int) -> None:
        """Take memory for `size` bytes of a body, until `release`; raises `HTTPError` (503) where there is none."""

        def there_is_room() -> bool:
            return self._bodies + size <= self.limits.bodies

        with self._changed:
            if not there_is_room():
                self._evict(of_holders=True)
                self._changed.wait_for(there_is_room, timeout=1)
            if not there_is_room():
                raise HTTPError(HTTPStatus.SERVICE_UNAVAILABLE, "too many large requests are in hand")
            self._bodies += size

    def release(self, size: int) -> None:
        """Give back what `hold` took."""
        with self._changed:
            self._bodies -= size
            self._changed.notify_all()

    def drain(self, timeout: float, quiet: float = 0.5) -> bool:
        """After `shutdown`: answer what has begun, then close; returns whether that was done within `timeout` seconds.

        What the kernel has accepted for us counts as begun: its peer may have sent a request. A kept connection may
        have one under way to us at this moment. So idle ones stay open for `quiet` seconds; then they are closed for
        reading, after which Linux still hands out what it had received.
        """
        quiet = min(quiet, timeout)
        self.draining, self.grace = True, quiet
        began = time.monotonic()
        with suppress(OSError):  # BlockingIOError where none is left
            while time.monotonic() < began + quiet:
                self.process_request(*self.get_request())
        self.socket.close()
        with self._changed:
            self._changed.wait_for(lambda: not self._connections, quiet)
            for connection in self._connections.values():
                if connection and connection.idle:
                    connection.hang_up(socket.SHUT_RD)
            ended = self._changed.wait_for(lambda: not self._connections, max(0.0, began + timeout - time.monotonic()))
            for connection in self._connections.values():
                if connection:
                    connection.hang_up(socket.SHUT_RDWR)
        return ended

    def _evict(self, *, of_holders: bool = False) -> None:
        """Hang up on the peer that has kept us waiting longest, if any does. The caller holds the lock."""
        waiting = [
            connection
            for connection in self._connections.values()
            if connection and connection.waiting and (connection.held or not of_holders)
        ]
        if waiting:
            min(waiting, key=_since).hang_up(socket.SHUT_RDWR)


_since = operator.attrgetter("since")


class _Connection(BaseRequestHandler):
    """Serves one connection, request after request."""

    request: socket.socket
    server: Server

    def setup(self) -> None:
        #: What has come and was not used yet.
        self.received = bytearray()
        #: Whether no byte of the next request has come.
        self.idle = True
        #: The bytes of memory that its body takes of what all bodies may.
        self.held = 0
        #: Whether it is the peer's turn, and since when this request or this idleness has lasted.
        self.waiting, self.since = True, time.monotonic()
        self.server.begin(self)  # from here on a drain finds it; before, it learns of the drain by its grace
        self._be_patient(self.server.limits.request)
        self._timeout = self.server.limits.request
        # The kernel's own timeouts: Python's would cost two more system calls for every one that reads or writes.
        _set_timeout(self.request, socket.SO_RCVTIMEO, self._timeout)
        _set_timeout(self.request, socket.SO_SNDTIMEO, self._timeout)
        host, port = _host_and_port(self.request.getsockname())
        peer, _ = _host_and_port(self.client_address)
        self.surroundings = {"SERVER_NAME": host, "SERVER_PORT": port, "REMOTE_ADDR": peer}
        if self.request.family != socket.AF_UNIX:
            self.request.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, True)

    def handle(self) -> None:
        """Serve until either side wants to end, or cannot go on."""
        with suppress(OSError):  # the peer is gone, or does not take its answer
            while self._serve_one():
                self.idle = True
                self._be_patient(self.server.limits.idle)

    def hang_up(self, how: int) -> None:
        """From another thread: end this one's waiting."""
        with suppress(OSError):
            self.request.shutdown(how)

    def receive(self) -> bytes:
        """What the peer sends next, or b"" once it is gone; raises `HTTPError` (408) when its time is over."""
        remaining = self.since + self._next_timeout - time.monotonic()
        if remaining <= 0:  # even if more is there: a peer that always sends would never be late
            raise _too_late()
        if abs(remaining - self._timeout) > 1:  # a system call, so not for every request
            self._timeout = max(0.001, remaining)  # for the kernel, none at all is for ever
            _set_timeout(self.request, socket.SO_RCVTIMEO, self._timeout)
        self.waiting = True
        try:
            return self.request.recv(_CHUNK)
        except BlockingIOError:
            raise _too_late() from None
        except OSError:  # reset, unreachable: it matters to nobody here how the peer went
            return b""
        finally:
            self.waiting = False

    def _serve_one(self) -> bool:
        """Read a request and answer it; returns whether another may follow."""
        try:
            head = self._read_head()
            if head is None:
                return False
            request = parse_head(head)
        except HTTPError as refused:
            return not self.idle and self._answer(_ILL_FRAMED, _raising(refused))
        return self._answer(request, self.server.application)

    def _answer(self, request: Request, application: Application) -> bool:
        body = _Body(self, request)
        call = _Call(self, request, body)
        self.waiting = False  # it may be since the answer before, where requests come several at once
        try:
            call.run(application)
        finally:
            body.release()
        self.waiting = True
        self.request.sendall(call.output())
        if not call.keep_alive:
            self._throw_away()
        return call.keep_alive

    def _read_head(self) -> bytes | None:
        """The bytes up to the empty line, or None if the peer closes before it has begun."""
        while True:
            if self.received.startswith(b"\r\n"):  # some clients end a body so; RFC 9112 (2.2) has us overlook one
                del self.received[:2]
            if self.idle and self.received and self.received != b"\r":  # which may be half of those
                self.idle = False
                self._be_patient(self.server.limits.request)
            end = self.received.find(b"\r\n\r\n")
            head = bytes(self.received if end < 0 else self.received[:end])
            if len(head) > self.server.limits.head:
                raise HTTPError(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, "the head is too large")
            refuse_bare_line_feeds(head)
            if end >= 0:
                del self.received[: end + 4]
                return head
            more = self.receive()
            if not more:
                if self.idle:
                    return None
                raise HTTPError(HTTPStatus.BAD_REQUEST, "the head ends early")
            self.received += more

    def _be_patient(self, patience: float) -> None:
        """From now on, wait `patience` seconds in all for what is due."""
        self.since = time.monotonic()
        self._next_timeout = min(patience, self.server.grace) if self.idle else patience

    def _throw_away(self) -> None:
        """Read on for a while after the last answer: to close on a peer that is writing would take it from him."""
        self.request.shutdown(socket.SHUT_WR)
        self._be_patient(self.server.limits.request)
        rest = self.server.limits.unwanted
        with suppress(HTTPError):
            while rest > 0:
                chunk = self.receive()
                if not chunk:
                    return
                rest -= len(chunk)


class _Body(io.RawIOBase):
    """What follows a head, read from the connection as the application asks for it."""

    def __init__(self, connection: _Connection, request: Request) -> None:
        super().__init__()
        self.unread = request.length or 0
        self._connection = connection
        self._expects_continue = request.expects_continue
        self._taken = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        """Raises `HTTPError`, which is no OSError, so that it passes through the application to the server."""
        if not self.unread:
            return 0
        received = self._connection.received
        if self._expects_continue and not received:
            with suppress(OSError):  # if the peer is gone, receiving tells
                self._connection.request.sendall(_CONTINUE)
        self._expects_continue = False
        if not received:
            received += self._connection.receive()
            if not received:
                raise HTTPError(HTTPStatus.BAD_REQUEST, "the body ends early")
        size = min(len(buffer), self.unread, len(received))
        self._hold(size)  # not what was announced: to announce costs a peer nothing
        buffer[:size] = received[:size]
        del received[:size]
        self.unread -= size
        return size

    def _hold(self, size: int) -> None:
        counted = min(size, max(0, self._taken + size - self._connection.server.limits.spared))
        if counted:
            self._connection.server.hold(counted)
        self._taken += size
        self._connection.held += counted

    def release(self) -> None:
        """Give back the memory that was taken."""
        if self._connection.held:
            self._connection.server.release(self._connection.held)
            self._connection.held = 0


class _Call(SimpleHandler):
    """One call of the application, its answer gathered in memory."""

    environ: dict[str, Any]
    headers: Headers | None
    status: str | None
    http_version = "1.1"
    server_software = ""
    os_environ = {}  # the process's own environment, with all that it holds, is nobody's business here  # noqa: RUF012

    def __init__(self, connection: _Connection, request: Request, body: _Body) -> None:
        self._answer = io.BytesIO()
        stdin = io.BufferedReader(body, _CHUNK) if body.unread else io.BytesIO()
        environ = {**connection.surroundings, **request.environ}
        super().__init__(stdin, self._answer, sys.stderr, environ, multithread=True)
        self._server = connection.server
        self._request = request
        self._body = body
        #: Whether another request may follow on this connection.
        self.keep_alive = request.keep_alive

    def run(self, application: Any) -> None:
        """Call it. Unlike wsgiref, take a broken pipe for a fault: no peer is written to here, so it is another's."""
        try:
            self.setup_environ()
            self.result = application(self.environ, self.start_response)
            self.finish_response()
        except Exception:
            self.handle_error()

    def output(self) -> bytes:
        """What goes to the peer."""
        answer = self._answer.getvalue()
        if self._request.environ["REQUEST_METHOD"] == "HEAD":
            return answer[: answer.index(b"\r\n\r\n") + 4]
        return answer

    def cleanup_headers(self) -> None:
        """Complete the headers before they are written: the length, and whether this is the last answer."""
        super().cleanup_headers()
        assert self.headers is not None
        self.keep_alive = (
            self.keep_alive
            and not self._server.draining
            and self._request.length is not None
            and not self._body.unread
            and "Content-Length" in self.headers
        )
        if not self.keep_alive:
            self.headers["Connection"] = "close"
        if (self.status or "").startswith("304"):  # its length would be that of what it stands for (RFC 9110, 8.6)
            del self.headers["Content-Length"]

    def handle_error(self) -> None:
        """Answer for the application, which has raised something. What it had begun to say has not left yet."""
        self._answer.seek(0)
        self._answer.truncate()
        self.headers_sent = False
        super().handle_error()

    def log_exception(self, exc_info: Any) -> None:
        """Log a refusal, or a fault of the application."""
        error = exc_info[1]
        if isinstance(error, HTTPError):
            peer = self.environ["REMOTE_ADDR"] or None  # as the application has come to know it
            log.warning("request refused", http=error.status.value, reason=error.reason, peer=peer)
        else:
            log.exception("the application failed", path=self._request.environ.get("PATH_INFO"))

    def error_output(self, environ: Any, start_response: Any) -> list[bytes]:
        """What is said instead of the application's own answer."""
        error = sys.exc_info()[1]
        self.keep_alive = False
        if isinstance(error, HTTPError):
            status, reason = error.status, error.reason
        else:
            status, reason = HTTPStatus.INTERNAL_SERVER_ERROR, "the application failed; the log says how"
        body = json.dumps({"status": "refused", "reason": reason}).encode() + b"\n"
        headers = [("Content-Type", "application/json"), ("Content-Length", str(len(body)))]
        if status == HTTPStatus.SERVICE_UNAVAILABLE:
            headers.append(("Retry-After", "10"))
        start_response(f"{status.value} {status.phrase}", headers, sys.exc_info())
        return [body]


#: Stands for a request whose head could not be read.
_ILL_FRAMED = Request({"REQUEST_METHOD": "GET", "SERVER_PROTOCOL": "HTTP/1.1"}, None, False, False)


def _raising(refused: HTTPError) -> Application:
    """An application that refuses whatever comes."""

    def application(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        raise refused

    return application


#: A struct timeval. Where a long has 32 bits and a time has 64, the option is another one, SO_RCVTIMEO_NEW.
_TIMEVAL = "qq" if socket.SO_RCVTIMEO == 66 else "ll"


def _too_late() -> HTTPError:
    return HTTPError(HTTPStatus.REQUEST_TIMEOUT, "the request took too long")


def _set_timeout(connection: socket.socket, which: int, seconds: float) -> None:
    whole = int(seconds)
    connection.setsockopt(socket.SOL_SOCKET, which, struct.pack(_TIMEVAL, whole, int((seconds - whole) * 1e6)))


def _host_and_port(address: Any) -> tuple[str, str]:
    """An address as the kernel gives it, as text; a Unix socket has none."""
    return (str(address[0]), str(address[1])) if isinstance(address, tuple) else ("", "")
