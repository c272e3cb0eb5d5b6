"""A server for any WSGI application, with limits on what peers may use and a graceful stop.

Rules:

1. `socketserver` accepts connections, `request` validates what peers send, `wsgiref` calls the application.
2. Everything has a limit: the size of a head, the time of a request, connections, memory for bodies and responses. At a
   limit, the peer that has been waited for longest is disconnected. If the daemon waits for no peer, the new one gets
   503.
3. Policy belongs to the application. The server knows no path, method or media type. A body is received while the
   application reads it. If the application does not read it, the server drops it, up to a limit, and closes.
4. No name is resolved, neither this host's nor the peer's.
5. `Server.drain` responds to every request that has arrived before it closes the connections.

The thread that accepts waits for no peer. Each connection has a thread from its first request to its last; `threads`
explains which.
"""

from __future__ import annotations

import errno
import json
import socket
import time
from collections import deque
from contextlib import suppress
from socketserver import BaseRequestHandler, TCPServer
from typing import Any

from gitops_hook.httpd.call import Application
from gitops_hook.httpd.connection import Connection
from gitops_hook.httpd.limits import Limits, Resources
from gitops_hook.httpd.stream import Stream
from gitops_hook.httpd.threads import Threads
from gitops_hook.log import log

#: The response of the accepting thread. It must not take longer than one system call.
_UNAVAILABLE = (
    b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\nContent-Length: %d\r\n"
    b"Retry-After: 10\r\nConnection: close\r\n\r\n"
)
#: Rejected connections that stay open for a moment, and the bytes that each may have sent.
_MAX_REJECTED, _REJECTED_BYTES = 64, 1 << 20


class Server(TCPServer):
    """Serves one application on one listening socket. The caller's thread accepts in `serve_forever`."""

    def __init__(
        self, listening: socket.socket, application: Application, limits: Limits | None = None, name: str = ""
    ) -> None:
        """Take over `listening`, a bound stream socket of any family. `name` appears in the log.

        The reserve of threads starts here. Raise RuntimeError if the system refuses it.
        """
        self.name = name
        super().__init__(("", 0), BaseRequestHandler, bind_and_activate=False)
        self.socket.close()
        self.socket = listening
        self.socket.setblocking(False)  # a peer may be gone between select and accept
        self.limits = limits or Limits()
        self.socket.listen(self.limits.backlog)
        self.address_family = listening.family
        self.server_address = listening.getsockname()
        self.application = application
        self.resources = Resources(self.limits)
        # At the limit of connections, a new one gets the thread of the one that gave way.
        self._threads = Threads(self.limits.reserve, self.limits.connections, self._serve)
        #: Rejected connections with the time of their response. Used only by the thread that accepts.
        self._rejected: deque[tuple[float, socket.socket]] = deque()
        #: When the accepting loop last turned, on the monotonic clock. The watchdog checks it.
        self.turned = time.monotonic()

    def service_actions(self) -> None:
        """Note a turn of the accepting loop, and close rejected connections; `serve_forever` calls this."""
        self.turned = time.monotonic()
        while self._rejected and (self._rejected[0][0] < self.turned - 1 or len(self._rejected) > _MAX_REJECTED):
            _, connection = self._rejected.popleft()
            with suppress(OSError):  # closing a socket with unread bytes would delete the response
                connection.recv(_REJECTED_BYTES)
            connection.close()

    def get_request(self) -> tuple[socket.socket, Any]:
        """Accept a connection. Without free descriptors, disconnect a peer and pause."""
        try:
            return self.socket.accept()
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                log.error("no connection can be accepted", reason=error.strerror)
                self.resources.evict()
                time.sleep(0.1)  # the kernel reports the same connection again at once
            raise

    def process_request(self, request: Any, client_address: Any) -> None:
        """Give a connection to a thread, or reject it if no thread or no room is available."""
        stream = Stream(request, self.limits.request)
        connection = Connection(stream, client_address, self.resources, self.application)
        if not self.resources.add(stream):
            self._reject(request, "too many connections are busy")
        elif not self._threads.submit(connection):
            stream.waiting = False  # to evict it would free no thread
            if self.resources.evict():  # its thread is free at once
                self._threads.enqueue(connection)
            else:
                self.resources.remove(stream)
                self._reject(request, "no thread is available")

    def server_close(self) -> None:
        """Close the listening socket and end the idle threads."""
        super().server_close()
        self._threads.close()
        while self._rejected:
            self._rejected.popleft()[1].close()

    def _serve(self, connection: Connection) -> None:
        """Serve a connection in its thread, to its end."""
        try:
            connection.serve()
        except Exception:  # the thread must survive
            log.exception("serving a connection failed", peer=connection.peer)
        finally:
            self.shutdown_request(connection.stream.socket)
            self.resources.remove(connection.stream)

    def _reject(self, connection: socket.socket, reason: str) -> None:
        """Send 503 without waiting, and close the connection a second later, when the peer has read it."""
        log.warning("connection refused", http=503, reason=reason)
        body = json.dumps({"status": "unavailable", "reason": reason}).encode() + b"\n"
        with suppress(OSError):
            connection.setblocking(False)
            connection.send(_UNAVAILABLE % len(body) + body)
            connection.shutdown(socket.SHUT_WR)
        self._rejected.append((time.monotonic(), connection))

    def drain(self, timeout: float, quiet: float = 0.5) -> bool:
        """Respond to the requests that have arrived, then close. Call it after `shutdown`.

        The kernel's queue counts: a peer in it may have sent a request. A request may also be under way on an idle
        connection. Therefore idle connections stay open for `quiet` seconds; then they are closed for reading, after
        which Linux still returns the bytes that it received before.

        Return True if every connection ended within `timeout` seconds.
        """
        quiet = min(quiet, timeout)
        self.resources.draining, self.resources.grace = True, quiet
        started = time.monotonic()
        with suppress(OSError):  # BlockingIOError if the queue is empty
            while time.monotonic() < started + quiet:
                self.process_request(*self.get_request())
        self.server_close()
        self.resources.wait_until_empty(quiet)
        self.resources.hang_up(socket.SHUT_RD, lambda stream: stream.idle)
        ended = self.resources.wait_until_empty(max(0.0, started + timeout - time.monotonic()))
        self.resources.hang_up(socket.SHUT_RDWR, lambda stream: True)
        return ended
