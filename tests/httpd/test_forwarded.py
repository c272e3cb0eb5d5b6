"""The client's address behind a proxy; nginx, Caddy and Go with the configuration of docs/proxies.md."""

from __future__ import annotations

import http.client
import json
import os
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from ipaddress import ip_network
from pathlib import Path

import pytest
from harness import SOURCE, WEBHOOK, Daemon, headers, push
from scratch import Upstream

from gitops_hook.httpd.forwarded import client_address, forwarded_middleware

DOCUMENT = (SOURCE / "docs/proxies.md").read_text()
TRUSTED = [ip_network("10.0.0.0/8"), ip_network("fd00::/8")]


# -- the address ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("peer", "claim", "expected"),
    [
        ("127.0.0.1", "192.0.2.7", "192.0.2.7"),
        ("::1", "192.0.2.7", "192.0.2.7"),
        ("", "192.0.2.7", "192.0.2.7"),  # a Unix socket
        ("10.1.2.3", "192.0.2.7", "192.0.2.7"),
        ("::ffff:10.1.2.3", "192.0.2.7", "192.0.2.7"),
        ("198.51.100.1", "192.0.2.7", "198.51.100.1"),  # nobody's proxy
        ("127.0.0.1", "6.6.6.6, 192.0.2.7", "192.0.2.7"),  # the left one could be anybody's word
        ("127.0.0.1", "192.0.2.7, 10.0.0.1, fd00::1", "192.0.2.7"),
        ("127.0.0.1", "10.0.0.1", "10.0.0.1"),  # all of them are ours
        ("127.0.0.1", "192.0.2.7:4711", "192.0.2.7"),
        ("127.0.0.1", "[2001:db8::1]:4711", "2001:db8::1"),
        ("127.0.0.1", "2001:DB8:0::1", "2001:db8::1"),
        ("127.0.0.1", "::ffff:192.0.2.7", "192.0.2.7"),
        ("127.0.0.1", "unknown", "127.0.0.1"),
        ("127.0.0.1", "192.0.2.7, unknown, 10.0.0.1", "10.0.0.1"),
        ("127.0.0.1", "192.0.2.7,", "127.0.0.1"),
        ("127.0.0.1", "192.0.2.7\x1b[31m", "127.0.0.1"),
        ("127.0.0.1", "fe80::1%\x9b31m", "127.0.0.1"),
        ("127.0.0.1", "[", "127.0.0.1"),
        ("127.0.0.1", "\u0661.1.1.1", "127.0.0.1"),
        ("127.0.0.1", "192.0.2.7," + "10.0.0.1," * 5000 + "10.0.0.2", "10.0.0.1"),
    ],
)
def test_the_client_is_the_right_most_untrusted_address(peer, claim, expected):
    assert client_address(peer, claim, TRUSTED) == expected


def test_without_the_header_the_peer_is_the_client():
    seen = []
    application = forwarded_middleware(
        lambda environ, start_response: seen.append(environ["REMOTE_ADDR"]) or [], TRUSTED
    )
    application({"REMOTE_ADDR": "127.0.0.1"}, lambda *answer: None)
    application({"REMOTE_ADDR": "127.0.0.1", "HTTP_X_FORWARDED_FOR": "192.0.2.7"}, lambda *answer: None)
    assert seen == ["127.0.0.1", "192.0.2.7"]


def test_the_log_names_the_client_of_a_rejected_request(start_daemon):
    daemon = start_daemon(GITOPS_TRUSTED_PROXIES="192.0.2.0/24, 2001:db8::/32")
    forwarded = {"X-Forwarded-For": "6.6.6.6, 203.0.113.9, 192.0.2.1"}
    assert daemon.request("POST", WEBHOOK, b"{}", forwarded)[0] == 401
    daemon.wait_for(r"webhook refused .* peer=203\.0\.113\.9 ")
    with closing(socket.create_connection(("127.0.0.1", daemon.port))) as channel:
        head = "\r\n".join(f"{name}: {value}" for name, value in headers(b"{}").items())
        channel.sendall(f"POST {WEBHOOK} HTTP/1.1\r\nHost: x\r\nX-Forwarded-For: 203.0.113.9\r\nContent-Length: 9\r\n{head}\r\n\r\n{{}}".encode())  # fmt: skip
        channel.shutdown(socket.SHUT_WR)
        daemon.wait_for(r"webhook refused .*http=400 .* peer=203\.0\.113\.9")
    assert "6.6.6.6" not in daemon.log


# -- real proxies --------------------------------------------------------------------------------------------------


def block(language: str) -> str:
    """Return the only block of the document in this language."""
    (found,) = re.findall(rf"^```{language}\n(.*?)^```", DOCUMENT, re.MULTILINE | re.DOTALL)
    return found


def free_port() -> int:
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def listens(port: int) -> bool:
    with closing(socket.socket()) as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def nginx(folder: Path, daemon: int, port: int) -> list[str]:
    location = block("nginx").replace("127.0.0.1:8787", f"127.0.0.1:{daemon}")
    places = "".join(
        f"{name}_temp_path {folder}/{name};" for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    (folder / "nginx.conf").write_text(
        f"daemon off; master_process off; pid {folder}/pid; error_log stderr; events {{}}\n"
        f"http {{ access_log off; lingering_timeout 200ms; {places} server {{ listen {port};\n{location}}} }}\n"
    )
    return ["nginx", "-e", "stderr", "-c", f"{folder}/nginx.conf"]


def caddy(folder: Path, daemon: int, port: int) -> list[str]:
    text = block("caddyfile").replace("127.0.0.1:8787", f"127.0.0.1:{daemon}")
    text = text.replace("hooks.example.org", f"http://:{port}")  # no certificate to be had here
    (folder / "Caddyfile").write_text(f"{{\n admin off\n}}\n{text}")
    return ["caddy", "run", "--adapter", "caddyfile", "--config", f"{folder}/Caddyfile"]


def go(folder: Path, daemon: int, port: int) -> list[str]:
    text = block("go").replace("127.0.0.1:8787", f"127.0.0.1:{daemon}").replace("127.0.0.1:8080", f":{port}")
    (folder / "proxy.go").write_text(text)
    environ = {**os.environ, "GOCACHE": str(folder / "cache"), "GO111MODULE": "off", "HOME": str(folder)}
    subprocess.run(["go", "build", "-o", folder / "proxy", folder / "proxy.go"], env=environ, check=True)
    return [str(folder / "proxy")]


@contextmanager
def standing(program: Callable[[Path, int, int], list[str]], folder: Path, daemon: int) -> Iterator[int]:
    """A proxy before the port `daemon`, with all it keeps in `folder`; its own port."""
    if not shutil.which(program.__name__):
        pytest.skip(f"no {program.__name__} on this machine")
    port = free_port()
    folder.mkdir()
    with (folder / "log").open("wb") as log, subprocess.Popen(
        program(folder, daemon, port), env={**os.environ, "HOME": str(folder)}, stdin=subprocess.DEVNULL, stdout=log, stderr=log
    ) as process:  # fmt: skip
        deadline = time.monotonic() + 30
        while not listens(port):
            assert process.poll() is None and time.monotonic() < deadline, (folder / "log").read_text()
            time.sleep(0.02)  # there is nothing of it to wait for
        yield port
        process.terminate()


class Proxy:
    """A proxy before a daemon."""

    def __init__(self, name: str, port: int, daemon: Daemon) -> None:
        self.name, self.port, self.daemon = name, port, daemon

    def connect(self, host: str = "127.0.0.1") -> http.client.HTTPConnection:
        return http.client.HTTPConnection(host, self.port, timeout=30)

    def deliver(self, body: bytes, *, host: str = "127.0.0.1", chunked: bool = False, **more: str) -> int:
        """The status that is answered to a signed delivery."""
        with closing(self.connect(host)) as connection:
            parts = iter([body[:1000], body[1000:]]) if chunked else body
            with suppress(BrokenPipeError, ConnectionResetError):  # who refuses may answer before all is sent
                connection.request("POST", WEBHOOK, parts, {**headers(body), **more}, encode_chunked=chunked)
            return connection.getresponse().status


@pytest.fixture(params=[nginx, caddy, go], ids=lambda program: program.__name__)
def proxy(request, tmp_path, start_daemon) -> Iterator[Proxy]:
    Upstream(tmp_path / "forge").checkout(tmp_path / "root")
    daemon = start_daemon()
    with standing(request.param, tmp_path / "proxy", daemon.port) as port:
        yield Proxy(request.param.__name__, port, daemon)


def own_address() -> str | None:
    """An address of this host that is not loopback's, if it has any."""
    with closing(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # sends nothing
        except OSError:
            return None
        return str(probe.getsockname()[0])


def payload(size: int = 0) -> bytes:
    return json.dumps(push("acme/site", commits=[{"message": "x" * size}])).encode()


def test_a_delivery_arrives_whole_with_its_signature_and_the_client_s_address(proxy):
    assert proxy.deliver(payload()) == 202
    proxy.daemon.wait_for(r"webhook queued .* peer=127\.0\.0\.1 ")
    assert proxy.deliver(payload(20 << 20)) == 202
    proxy.daemon.wait_for("webhook queued")
    assert proxy.deliver(payload(20 << 20), **{"X-Hub-Signature-256": "sha256=" + "0" * 64}) == 401


def test_forwarded_headers_of_a_client_are_ignored(proxy):
    address = own_address()
    if not address:
        pytest.skip("this host has only loopback addresses")
    assert proxy.deliver(payload(), host=address, **{"X-Forwarded-For": "6.6.6.6, 127.0.0.1"}) == 202
    proxy.daemon.wait_for(rf"webhook queued .* peer={re.escape(address)} ")
    assert "6.6.6.6" not in proxy.daemon.log


def test_a_chunked_body_is_accepted(proxy):
    assert proxy.deliver(payload(20 << 20), chunked=True, **{"Transfer-Encoding": "chunked"}) == 202


def test_a_client_that_expects_100_continue_receives_it(proxy):
    body = payload(20 << 20)
    with closing(socket.create_connection(("127.0.0.1", proxy.port), timeout=30)) as channel:
        head = "".join(f"{name}: {value}\r\n" for name, value in headers(body).items())
        channel.sendall(
            f"POST {WEBHOOK} HTTP/1.1\r\nHost: hooks\r\n{head}Content-Length: {len(body)}\r\nConnection: close\r\nExpect: 100-continue\r\n\r\n".encode()
        )
        with channel.makefile("rb") as answer:
            assert answer.readline().startswith(b"HTTP/1.1 100 ")
            channel.sendall(body)
            lines = [line for line in iter(answer.readline, b"") if line.startswith(b"HTTP/1.1 ")]
        assert lines[-1].startswith(b"HTTP/1.1 202 "), lines  # Caddy passes the daemon's 100 on as well


def test_more_than_25_mib_is_refused(proxy):
    assert proxy.deliver(payload(26 << 20)) == 413


def test_the_page_socket_serves_only_the_page(proxy):
    with closing(proxy.connect()) as connection:
        connection.request("GET", "/healthz")
        assert connection.getresponse().status == 404


@pytest.mark.parametrize("program", [nginx, caddy], ids=lambda program: program.__name__)
def test_the_page_is_read_by_a_name_of_the_proxy_s_own(program, tmp_path, start_daemon):
    """Check the statement of docs/operations.md: nginx sends its own address as the host, Caddy only if configured."""
    daemon = start_daemon(GITOPS_DASHBOARD_LISTEN="127.0.0.1:0")
    page = f"127.0.0.1:{daemon.wait_for(r'listening for the dashboard .*address=.*:([0-9]+)')[1]}"

    def before_the_page(folder: Path, port: int, own: int) -> list[str]:
        command = program(folder, port, own)
        file = Path(command[-1])
        if program is nginx:
            words = f"server {{ listen {own}; location / {{ proxy_pass http://{page}; }} }} }}\n"
            file.write_text(file.read_text().partition("server {")[0] + words)
        else:
            words = f"reverse_proxy {page} {{\n header_up Host {{upstream_hostport}}\n}}"
            file.write_text(f"{{\n admin off\n}}\nhttp://:{own} {{\n{words}\n}}\n")
        return command

    before_the_page.__name__ = program.__name__
    with ExitStack() as stack:
        port = stack.enter_context(standing(before_the_page, tmp_path / "proxy", daemon.port))
        client = stack.enter_context(closing(http.client.HTTPConnection("127.0.0.1", port, timeout=30)))
        client.request("GET", "/", headers={"Host": "status.example.org"})
        answer = client.getresponse()
        assert (answer.status, b"No repository yet" in answer.read()) == (200, True)
