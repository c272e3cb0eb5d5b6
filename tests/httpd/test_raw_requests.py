"""The table of raw requests: each row sent to the server and the application, directly and through nginx and Caddy."""

from __future__ import annotations

import re
import socket
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from harness import SECRET, SOURCE, WEBHOOK, until
from raw_requests import CASES, PROBE, VERSIONS, Case, table
from scratch import Upstream
from test_forwarded import caddy, nginx, standing
from test_server import Serving

from gitops_hook.httpd.forwarded import forwarded_middleware
from gitops_hook.journal.writer import Journal
from gitops_hook.receiver.app import WebhookApp
from gitops_hook.secrets import Secrets
from gitops_hook.sync.checkouts import Checkouts

NAMES = [case.sent for case in CASES]


class Door:
    """The webhook on a socket, wired as the daemon does it; it notes what it was asked, and how it answered."""

    def __init__(self, folder: Path) -> None:
        root = Upstream(folder / "forge").checkout(folder / "root").parents[1]
        self.journal = Journal(folder / "state")
        secrets = Secrets({"line 1": SECRET.encode()})
        self._application = forwarded_middleware(
            WebhookApp(lambda: secrets, Checkouts(root), self.journal, lambda _: None), []
        )
        #: The path and the row of each request that reached it, and the status that it answered.
        self.notes: list[tuple[str, str, int]] = []

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Any:
        def note(status: str, *more: Any) -> Any:
            self.notes.append((environ["PATH_INFO"], environ.get("HTTP_X_GITHUB_DELIVERY", ""), int(status[:3])))
            return start_response(status, *more)

        return self._application(environ, note)

    def queued(self) -> int:
        return sum(count for _, count in self.journal.pending_counts())


@pytest.fixture(scope="module")
def door(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Door]:
    door = Door(tmp_path_factory.mktemp("door"))
    yield door
    door.journal.close()


@pytest.fixture(scope="module")
def address(door: Door) -> Iterator[tuple[str, int]]:
    with Serving(door) as serving:
        yield serving.server.server_address


def send(address: tuple[str, int], case: Case) -> tuple[list[int], str]:
    """Send a row, and the probe behind it; every status until the other side closes, and the first reason given."""
    head, blank, body = case.raw.partition(b"\r\n\r\n")
    said = b""
    with socket.create_connection(address, timeout=20) as channel, suppress(ConnectionResetError):
        if case.manner == "waits":
            channel.sendall(head + blank)
            said = channel.recv(65536)
            channel.sendall(body + PROBE if b" 100 " in said else b"")
        elif case.manner == "ends":
            channel.sendall(case.raw)
            channel.shutdown(socket.SHUT_WR)
        else:
            channel.sendall(case.raw + PROBE)
        for part in iter(lambda: channel.recv(65536), b""):
            said += part
    said = said.replace(b"HTTP/1.1 100 Continue\r\n\r\n", b"", said.count(b"HTTP/1.1 100 ") - 1)  # Caddy's and ours
    statuses = [int(status) for status in re.findall(rb"^HTTP/1\.[01] (\d{3})", said, re.MULTILINE)]
    reason = re.search(rb'"reason": "([^"]*)"', said)
    return statuses, reason[1].decode() if reason else ""


def in_words(statuses: list[int], otherwise: str) -> str:
    return ", ".join(map(str, statuses)) or otherwise


@pytest.mark.parametrize("case", CASES, ids=NAMES)
def test_each_request_gets_the_response_of_the_table(door: Door, address: Any, case: Case) -> None:
    before = door.queued()
    statuses, reason = send(address, case)
    if not case.answer.endswith(", closed"):
        assert statuses.pop() == 404, "the probe, on the same connection"
    observed = in_words(statuses, "nothing") + (f" {reason}" if statuses[0] >= 400 else "")
    assert observed == case.answer.replace(", closed", "")
    assert door.queued() - before == statuses.count(202)


@pytest.fixture(scope="module", params=[nginx, caddy], ids=lambda program: program.__name__)
def proxy(request: Any, address: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, int]]:
    with standing(request.param, tmp_path_factory.mktemp("proxy") / "its", address[1]) as port:
        yield request.param.__name__, port


@pytest.mark.parametrize("case", CASES, ids=NAMES)
def test_nothing_is_smuggled_past_a_proxy(
    door: Door, proxy: tuple[str, int], case: Case, capfd: pytest.CaptureFixture[str]
) -> None:
    name, port = proxy
    before = len(door.notes)
    queued = door.queued()
    statuses, _ = send(("127.0.0.1", port), case)

    def answers() -> list[int]:
        return [status for _, row, status in door.notes[before:] if row and row.encode() in case.raw]

    # A proxy may forward a request after it has answered or closed.
    until(lambda: door.queued() - queued == answers().count(202))
    answered = answers()
    paths = {path for path, _, _ in door.notes[before:]}
    assert paths <= {WEBHOOK}, "the probe has come through"
    assert len(answered) <= case.raw.count(b"X-GitHub-Delivery:"), "more requests than were sent"
    assert 500 not in [*statuses, *answered]
    if re.search(rf"\b{re.escape(VERSIONS[name])}\b", version(name)):  # the table has these versions; others may differ
        if statuses[1:] and statuses[-1] == 404:
            statuses.pop()  # the proxy's own answer to the probe
        refused = [int(status) for status in re.findall(r"request refused http=(\d+)", capfd.readouterr().err)]
        observed = f"{in_words(statuses, 'closed')} / {in_words(answered or refused, 'none')}"
        assert getattr(case, name) in (observed, "varies")


@cache
def version(program: str) -> str:
    done = subprocess.run([program, "-v" if program == "nginx" else "version"], capture_output=True, text=True)
    return done.stdout + done.stderr


def test_the_document_shows_the_table() -> None:
    assert table() in (SOURCE / "docs/security.md").read_text(), "python3 tests/raw_requests.py prints it"
