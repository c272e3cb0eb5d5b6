"""A forge with private repositories: a real sshd with authorized keys, and an HTTPS server that checks a token.

private_forge.py FOLDER CERTIFICATE KEY PORT USER:TOKEN serves the repositories below FOLDER over HTTPS on loopback.
"""

from __future__ import annotations

import base64
import getpass
import os
import shutil
import socket
import ssl
import subprocess
import sys
from functools import partial
from http.server import ThreadingHTTPServer
from pathlib import Path
from types import MappingProxyType

import pytest
from forge import _Handler
from harness import until
from scratch import Upstream

SSHD = shutil.which("sshd", path=f"{os.environ['PATH']}:/usr/sbin:/usr/local/sbin") or ""

needs_sshd = pytest.mark.skipif(not SSHD, reason="no sshd on this machine")
needs_openssl = pytest.mark.skipif(not shutil.which("openssl"), reason="no openssl on this machine")


class Sshd:
    """An sshd for the current user, whose authorized keys are in a file.

    `prefix` is a command that runs its arguments in another network, such as nsenter.
    """

    def __init__(self, folder: Path, prefix: tuple[str, ...] = ()) -> None:
        folder.mkdir()
        self.authorized = folder / "authorized_keys"
        self.authorized.touch(0o600)
        self._folder = folder
        self._prefix = prefix
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self.new_host_key()
        if os.geteuid() == 0:
            Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
        (folder / "sshd_config").write_text(
            f"Port {self.port}\nListenAddress 127.0.0.1\nHostKey {folder}/host_key\nPidFile none\nUsePAM no\n"
            f"AuthorizedKeysFile {self.authorized}\nStrictModes no\nPasswordAuthentication no\n"
            "PermitRootLogin prohibit-password\nKbdInteractiveAuthentication no\n"
        )
        self.start()

    def new_host_key(self) -> None:
        (self._folder / "host_key").unlink(missing_ok=True)
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", self._folder / "host_key"], check=True)

    def start(self) -> None:
        command = [*self._prefix, SSHD, "-D", "-e", "-f", str(self._folder / "sshd_config")]
        with (self._folder / "sshd.log").open("w") as log:
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=log)
        until(self._listens, "sshd does not listen")

    def _listens(self) -> bool:
        assert self.process.poll() is None, self.log()
        return "Server listening" in self.log()

    def log(self) -> str:
        """Return the server's messages since its start."""
        return (self._folder / "sshd.log").read_text()

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(10)

    def authorize(self, key: str) -> None:
        with self.authorized.open("a") as file:
            file.write(f"{key}\n")

    def url(self, upstream: Upstream) -> str:
        return f"ssh://{getpass.getuser()}@127.0.0.1:{self.port}{upstream.bare}"


class PrivateHandler(_Handler):
    """Serve repositories to the user and the token of `accepted`, in the form USER:TOKEN."""

    accepted = ""

    def do_GET(self) -> None:
        expected = base64.b64encode(self.accepted.encode()).decode()
        if self.headers.get("Authorization") != f"Basic {expected}":
            self.send_response(401)
            self.send_header("WWW-Authenticate", 'Basic realm="forge"')
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        super().do_GET()

    do_POST = do_GET


def create_certificate(folder: Path) -> tuple[Path, Path]:
    """Create a certificate for 127.0.0.1 that signs itself, and return its file and the file of its key."""
    certificate, key = folder / "ca.pem", folder / "key.pem"
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 1 -subj /CN=127.0.0.1"
    extension = ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", key, "-out", certificate]
    subprocess.run([*command.split(), *extension], check=True, capture_output=True)
    return certificate, key


def https_server(repositories: Path, certificate: Path, key: Path, port: int = 0) -> ThreadingHTTPServer:
    """Create an HTTPS server for the repositories below a directory. `PrivateHandler.accepted` has the token."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    server = ThreadingHTTPServer(("127.0.0.1", port), partial(PrivateHandler, repositories, MappingProxyType({})))
    server.daemon_threads = True
    server.socket = context.wrap_socket(server.socket, server_side=True)
    return server


if __name__ == "__main__":
    PrivateHandler.accepted = sys.argv[5]
    https_server(*map(Path, sys.argv[1:4]), int(sys.argv[4])).serve_forever()
