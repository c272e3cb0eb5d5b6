"""A server for any WSGI application, with limits on what peers may use and a graceful stop.

Rules:

1. `http.server` accepts connections, `request` validates what peers send, `wsgiref` calls the application.
2. Everything has a limit: the size of a head, the time of a request, connections, memory for bodies. At a limit, the
   peer that has been waited for longest is disconnected.
3. Policy belongs to the application. The server knows no path, method or media type. A body is received while the
   application reads it. If the application does not read it, the server drops it, up to a limit, and closes.
4. No name is resolved, neither this host's nor the peer's.
5. `Server.drain` responds to every request that has arrived before it closes the connections.

The thread that accepts waits for no peer. Each connection has a thread from its first request to its last.
"""

from __future__ import annotations

import errno
import socket
import sys
import time
from contextlib import suppress
from http.server import HTTPServer
from socketserver import BaseRequestHandler, TCPServer, ThreadingMixIn
from typing import Any

from gitops_hook.httpd.call import Application
from gitops_hook.httpd.connection import Connection, host_and_port
from gitops_hook.httpd.limits import Limits, Resources
from gitops_hook.httpd.stream import Stream
from gitops_hook.log import log


class Server(ThreadingMixIn, HTTPServer):
    """Serves one application on one listening socket. The caller's thread accepts in `serve_forever`."""

    daemon_threads = True
    block_on_close = False

    def __init__(
        self, listening: socket.socket, application: Application, limits: Limits | None = None, name: str = ""
    ) -> None:
        """Take over `listening`, a bound stream socket of any family. `name` appears in the log."""
        self.name = name
        # The constructor of HTTPServer would look up this host's name.
        TCPServer.__init__(self, ("", 0), BaseRequestHandler, bind_and_activate=False)
        self.socket.close()
        self.socket = listening
        self.socket.setblocking(False)  # a peer may be gone between select and accept
        self.limits = limits or Limits()
        self.socket.listen(self.limits.backlog)
        self.address_family = listening.family
        self.server_address = listening.getsockname()
        self.application = application
        self.resources = Resources(self.limits)
        #: When the accepting loop last turned, on the monotonic clock. The watchdog checks it.
        self.turned = time.monotonic()

    def service_actions(self) -> None:
        """Note a turn of the accepting loop; `serve_forever` calls this."""
        self.turned = time.monotonic()

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
        """Start a thread for a connection as soon as there is room."""
        self.resources.add(Stream(request, self.limits.request))
        try:
            super().process_request(request, client_address)
        except RuntimeError as error:  # no thread can be started
            log.error("no connection can be served", reason=error)
            self.shutdown_request(request)

    def finish_request(self, request: Any, client_address: Any) -> None:
        """Serve a connection in its thread; `ThreadingMixIn` calls this."""
        stream = self.resources.stream_of(request)
        Connection(stream, client_address, self.resources, self.application).serve()

    def shutdown_request(self, request: Any) -> None:
        """Close a connection and forget it."""
        self.resources.remove(request)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Log the exception that ended a connection's thread, unless the peer disconnected."""
        if not isinstance(sys.exc_info()[1], OSError):
            log.exception("serving a connection failed", peer=host_and_port(client_address)[0])

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
        self.socket.close()
        self.resources.wait_until_empty(quiet)
        self.resources.hang_up(socket.SHUT_RD, lambda stream: stream.idle)
        ended = self.resources.wait_until_empty(max(0.0, started + timeout - time.monotonic()))
        self.resources.hang_up(socket.SHUT_RDWR, lambda stream: True)
        return ended
