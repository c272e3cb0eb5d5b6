"""Send a request to the process that writes the journal: HTTP with JSON over its Unix socket.

`gitops_hook.control.app` lists the requests. The path of the socket is in the lock file of the state directory.
"""

from __future__ import annotations

import http.client
import json
import socket
from collections.abc import Mapping
from contextlib import closing
from typing import Any

#: Seconds to wait for an answer. The server answers when the request is on disk.
_TIMEOUT = 30


class NotAccepted(OSError):
    """Nothing accepts connections at the socket, so the request was not sent and can be repeated."""


class _Connection(http.client.HTTPConnection):
    """An HTTP connection over a Unix socket."""

    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=_TIMEOUT)
        self._path = path

    def connect(self) -> None:
        channel = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        channel.settimeout(_TIMEOUT)
        try:
            channel.connect(self._path)
        except OSError as error:
            channel.close()
            if isinstance(error, (FileNotFoundError, ConnectionRefusedError)):
                raise NotAccepted(error.errno, error.strerror, self._path) from None
            error.filename = self._path
            raise
        self.sock = channel


def post(path_of_socket: str, path: str, body: Mapping[str, object]) -> tuple[int, dict[str, Any]]:
    """Send a request; return the HTTP status and the JSON answer.

    Raises `NotAccepted` if nothing accepts connections, and OSError if the peer fails or is not gitops-hook.
    """
    with closing(_Connection(path_of_socket)) as connection:
        connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
        try:
            response = connection.getresponse()
            answer = json.loads(response.read())
        except (http.client.HTTPException, ValueError) as error:
            raise OSError(f"the answer at {path_of_socket} is invalid: {error}") from None
        if not isinstance(answer, dict):
            raise OSError(f"the answer at {path_of_socket} is not an object")
        return response.status, answer
