"""A forge over HTTP: git-http-backend(1) serves repositories on loopback, without TLS.

The benchmarks fetch from it, because checkouts fetch over a network; a path on the same disk is faster.
"""

from __future__ import annotations

import subprocess
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import MappingProxyType

from scratch import GIT_ENV


class _Handler(BaseHTTPRequestHandler):
    """Pass each request to a CGI program (RFC 3875)."""

    protocol_version = "HTTP/1.1"

    def __init__(self, folder: Path, moved: Mapping[str, str], *arguments: object) -> None:
        self.folder = folder
        self.moved = moved
        super().__init__(*arguments)  # type: ignore[arg-type]

    def do_GET(self) -> None:
        path, _, query = self.path.partition("?")
        for old, new in self.moved.items():
            if path.startswith(f"/{old}"):
                self.send_response(301)
                self.send_header("Location", f"/{new}{self.path[len(old) + 1 :]}")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
        length = int(self.headers.get("Content-Length", 0))
        done = subprocess.run(
            ["git", "http-backend"],
            env={
                **GIT_ENV,
                "GIT_PROJECT_ROOT": str(self.folder),
                "GIT_HTTP_EXPORT_ALL": "1",
                "PATH_INFO": path,
                "QUERY_STRING": query,
                "REQUEST_METHOD": self.command,
                "CONTENT_TYPE": self.headers.get("Content-Type", ""),
                "CONTENT_LENGTH": str(length),
                "GIT_PROTOCOL": self.headers.get("Git-Protocol", ""),
                "HTTP_CONTENT_ENCODING": self.headers.get("Content-Encoding", ""),
            },
            input=self.rfile.read(length),
            stdout=subprocess.PIPE,
            check=True,
        )
        head, _, body = done.stdout.partition(b"\r\n\r\n")
        fields = dict(line.split(": ", 1) for line in head.decode().split("\r\n"))
        self.send_response(int(fields.pop("Status", "200").split()[0]))
        for name, value in {**fields, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    do_POST = do_GET

    def log_message(self, *words: object) -> None:
        """Log nothing, so that the output contains only the figures."""


@contextmanager
def served(folder: Path, moved: Mapping[str, str] = MappingProxyType({})) -> Iterator[str]:
    """Serve the bare repositories below `folder` inside the block, and yield the base URL.

    The URLs of the repositories in `moved` redirect to those of their new names.
    """
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Handler, folder, moved))
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
