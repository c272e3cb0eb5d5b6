"""The connections of the client: TLS, and the deadline of a call."""

from __future__ import annotations

import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from fake_github import TOKEN

from gitops_hook.github import client as module
from gitops_hook.github.client import ApiError, Client

HOOKS = "/repos/acme/site/hooks"


def refused(client: Client) -> ApiError:
    with pytest.raises(ApiError) as caught:
        client.call("GET", HOOKS)
    return caught.value


@pytest.mark.parametrize(
    "drip",
    [
        pytest.param([b"HTTP/1.1 200 OK\r\n", *[b"X-Slow: 1\r\n"] * 1000], id="headers"),
        pytest.param([b"HTTP/1.1 100 Continue\r\n\r\n"] * 1000, id="continue"),
        pytest.param([b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n", *[b" "] * 1000], id="body"),
    ],
)
def test_an_answer_that_never_ends_reaches_the_deadline(clock, monkeypatch, drip):
    monkeypatch.setattr(module, "_DEADLINE", 0.4)
    with dripping(drip) as url:
        started = time.monotonic()
        error = refused(Client(url, TOKEN, tries=1, clock=clock))
    assert "takes too long" in str(error)
    assert time.monotonic() - started < 5


def test_a_proxy_whose_tunnel_never_opens_reaches_the_deadline(clock, monkeypatch):
    monkeypatch.setattr(module, "_DEADLINE", 0.4)
    with dripping([b"HTTP/1.1 200 OK\r\n", *[b"X-Slow: 1\r\n"] * 1000]) as proxy:
        monkeypatch.setenv("https_proxy", proxy)
        monkeypatch.setenv("no_proxy", "")
        started = time.monotonic()
        error = refused(Client("https://api.example", TOKEN, tries=1, clock=clock))
    assert "takes too long" in str(error)
    assert time.monotonic() - started < 5


@contextmanager
def dripping(pieces: list[bytes]) -> Iterator[str]:
    """Serve one connection that gets a piece of the answer every 50 ms; yields the URL."""
    ended = threading.Event()

    def serve() -> None:
        connection, _ = listening.accept()
        with connection, suppress(OSError):
            connection.recv(65536)
            for piece in pieces:
                connection.sendall(piece)
                if ended.wait(0.05):
                    return

    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=serve)
        thread.start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        ended.set()
        thread.join()


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    """A self-signed certificate of 127.0.0.1, with its key in the same file."""
    path = tmp_path / "certificate.pem"
    command = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:P-256",
        "-nodes",
        "-days",
        "1",
    ]
    name = [
        "-subj",
        "/CN=127.0.0.1",
        "-addext",
        "subjectAltName=IP:127.0.0.1",
        "-keyout",
        path,
        "-out",
        tmp_path / "crt",
    ]
    subprocess.run([*command, *name], check=True, capture_output=True)
    path.write_text(path.read_text() + (tmp_path / "crt").read_text())
    return path


@pytest.fixture
def tls_url(certificate: Path) -> Iterator[str]:
    """The URL of an API with this certificate, which answers each GET with an empty list."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"[]")

        def log_message(self, *_: object) -> None:
            pass

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        yield f"https://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_a_server_with_a_trusted_certificate_gets_the_request(tls_url, certificate, clock, monkeypatch):
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    assert Client(tls_url, TOKEN, tries=1, clock=clock).call("GET", HOOKS).value == []


def test_a_server_with_an_unknown_certificate_is_rejected(tls_url, clock):
    assert "certificate verify failed" in str(refused(Client(tls_url, TOKEN, tries=1, clock=clock)))


def test_a_handshake_that_never_ends_reaches_the_deadline(clock, monkeypatch):
    monkeypatch.setattr(module, "_DEADLINE", 0.4)
    with dripping([b"\x16\x03\x03\x40\x00\x02\x00\x3f\xfc", *[b"\x00"] * 1000]) as url:
        error = refused(Client(url.replace("http:", "https:"), TOKEN, tries=1, clock=clock))
    assert "takes too long" in str(error)
