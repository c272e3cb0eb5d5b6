"""HTTP connections to a member of etcd."""

from __future__ import annotations

import http.client
import socket
import ssl
from urllib.parse import urlsplit


def connect(endpoint: str, timeout: float, tls: ssl.SSLContext | None) -> http.client.HTTPConnection:
    """Return an open connection to the member with the URL `endpoint`. Raises OSError.

    `timeout` is in seconds. Without `tls`, an https URL uses the authorities that the system trusts.
    """
    url = urlsplit(endpoint)
    host = url.hostname or ""
    connection: http.client.HTTPConnection
    if url.scheme == "https":
        context = tls or ssl.create_default_context()
        connection = http.client.HTTPSConnection(host, url.port, timeout=timeout, context=context)
    else:
        connection = http.client.HTTPConnection(host, url.port, timeout=timeout)
    connection.connect()
    return connection


def is_closed(channel: socket.socket) -> bool:
    """Return True if the peer closed an idle connection. An idle connection has nothing to read."""
    timeout = channel.gettimeout()
    channel.settimeout(0)
    try:
        # The peek of an SSLSocket is not allowed; the plain socket's sees the same bytes.
        socket.socket.recv(channel, 1, socket.MSG_PEEK)
    except (BlockingIOError, InterruptedError):
        return False
    except OSError:
        return True
    finally:
        channel.settimeout(timeout)
    return True
