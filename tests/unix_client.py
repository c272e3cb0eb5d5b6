"""A client of the control socket."""

from __future__ import annotations

import http.client
import json
import socket
from pathlib import Path
from typing import Any


class UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=30)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(30)
        self.sock.connect(str(self._path))


def post(path: Path, target: str, body: Any, method: str = "POST") -> tuple[int, dict[str, Any]]:
    """Send a request to a control socket, and return the status and the JSON of the response."""
    connection = UnixConnection(path)
    try:
        connection.request(method, target, json.dumps(body))
        response = connection.getresponse()
        return response.status, json.loads(response.read())
    finally:
        connection.close()
