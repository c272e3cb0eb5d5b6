"""The whole way of a request in one thread: packets of bytes in, answers out, and what came to be queued.

It is real from the first byte that is received to the row in the journal; only the thread that would accept the
connection is missing. What a property test or a fuzzer throws at it is judged by `check`.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import logging
import re
import socket
from base64 import b64encode
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote_to_bytes

from harness import WEBHOOK

from gitops_hook import log as logs
from gitops_hook.httpd.connection import Connection
from gitops_hook.httpd.forwarded import forwarded_middleware
from gitops_hook.httpd.limits import Limits
from gitops_hook.httpd.server import Server
from gitops_hook.httpd.stream import Stream
from gitops_hook.journal.writer import Journal
from gitops_hook.receiver.app import WebhookApp
from gitops_hook.receiver.forges import FORGES, Forge
from gitops_hook.receiver.signatures import Digest
from gitops_hook.secrets import Secrets
from gitops_hook.sync.checkouts import Checkouts
from gitops_hook.text import escape

#: What forges prove themselves by, and what somebody else tries.
KEY, ANOTHER = bytes(range(32)), bytes(range(1, 33))
FORM = "application/x-www-form-urlencoded"
NOW = 1_700_000_000
#: The statuses that a client may get. No request causes an internal error (500); nor does it take more here
#: than there is (503), or longer than it may (408).
STATUSES = {200, 202, 400, 401, 404, 405, 411, 413, 415, 431, 505}

_HEAD = re.compile(
    rb"HTTP/1\.1 (\d{3}) [A-Za-z-]+(?: [A-Za-z-]+)*\r\n((?:[A-Za-z-]+: [\x20-\x7e]*\r\n)*)\r\n", re.DOTALL
)


class Answer(NamedTuple):
    """An answer as the client has it."""

    status: int
    closes: bool
    body: bytes


def secret(key: bytes = KEY) -> bytes:
    """A secret that serves every forge: as it is, and as the key in it."""
    return b"whsec_" + b64encode(key)


def sign(forge: Forge, event: str, body: bytes, media_type: str = "application/json", key: bytes = KEY) -> bytes:
    """A request of this forge; a form is signed as this forge does."""
    fields = {"Host": "here", forge.event: event, forge.delivery: "g", "Content-Type": media_type}
    if forge.mark:
        fields[forge.mark] = "x"
    if isinstance(forge.signature, Digest):
        signed = body
        if forge.signature.signs_field and media_type == FORM:
            signed = unquote_to_bytes(body.partition(b"=")[2].replace(b"+", b" "))
        digest = hmac.new(secret(key), signed, hashlib.sha256).hexdigest()
        fields[forge.signature.header] = forge.signature.prefix + digest
    else:
        digest = hmac.digest(key, b"id.%d." % NOW + body, "sha256")
        fields["webhook-id"], fields["webhook-timestamp"] = "id", str(NOW)
        fields[forge.signature.signature] = "v1," + b64encode(digest).decode()
    fields["Content-Length"] = str(len(body))
    head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    return f"POST {WEBHOOK} HTTP/1.1\r\n{head}\r\n".encode("latin-1") + body


class RequestPath:
    """The daemon's way in, over folders of its own, with one checkout: acme/site."""

    def __init__(self, folder: Path) -> None:
        config = folder / "root/acme/site/.git/config"
        config.parent.mkdir(parents=True)
        config.touch()
        self.journal = Journal(folder / "state")
        self.woken: list[str] = []
        secrets = Secrets({"line 1": secret()})
        checkouts = Checkouts(folder / "root")
        app = WebhookApp(lambda: secrets, checkouts, self.journal, self.woken.append, now=lambda: NOW)
        listening = socket.socket(socket.AF_UNIX)
        listening.bind("")  # to a name that the kernel chooses
        self.server = Server(listening, forwarded_middleware(app), Limits(request=10))

    def close(self) -> None:
        self.server.server_close()
        self.journal.close()

    def send(self, packets: Iterable[bytes]) -> list[Answer]:
        """Send these on one connection, and hear its answers."""
        client, ours = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)  # which keeps packets apart
        with closing(client):
            for packet in packets:
                if packet:
                    client.sendall(packet)
            client.shutdown(socket.SHUT_WR)
            try:
                Connection(Stream(ours, 10), "", self.server.resources, self.server.application).serve()
            finally:
                self.server.shutdown_request(ours)
            said = b"".join(iter(lambda: client.recv(1 << 20), b""))
        return list(_answers(said))

    def check(self, packets: Iterable[bytes], *, proven: bool) -> list[Answer]:
        """Send these requests, check that each response is an allowed one, and return the responses.

        `proven` says that they may hold a request with a signature; else nothing may come of them.
        """
        self.woken.clear()
        answers = self.send(packets)
        for answer in answers:
            assert answer.status in STATUSES, answer
            assert isinstance(json.loads(answer.body or b"{}"), dict), answer
        assert not any(answer.closes for answer in answers[:-1]), "an answer follows the last one"
        queued = sum(answer.status == 202 for answer in answers)
        assert [name.lower() for name in self.woken] == ["acme/site"] * queued
        assert proven or not queued, "something was queued that nobody has signed"
        return answers

    def judge_case(self, case: bytes) -> None:
        """Judge what a fuzzer made: the first byte says how the rest is sent."""
        how, rest = (case[0], case[1:]) if case else (0, b"")
        forge = FORGES[how // 4 % len(FORGES)]
        event = list(forge.pushes)[how // 4 // len(FORGES) % len(forge.pushes)]
        if how % 4 == 0:
            self.check([rest], proven=False)
        elif how % 4 == 1:
            self.check([sign(forge, event, rest)], proven=True)
        elif how % 4 == 2:
            self.check([sign(forge, event, b"payload=" + rest, FORM)], proven=True)
        else:
            self.check([sign(forge, event, rest, key=ANOTHER)], proven=False)


def check_log_lines() -> None:
    """From now on write no log lines, but see that each would be one."""

    class Checked(logs.TextFormatter):
        def format(self, record: logging.LogRecord) -> str:
            line = super().format(record)
            assert escape(line) == line
            assert secret().decode() not in line
            return line

    # An assertion of a formatter is to end the test, and the line itself is not printed.
    class Discard(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            self.format(record)

    handler = Discard()
    handler.setFormatter(Checked(under_systemd=False))
    logging.getLogger("gitops_hook").handlers = [handler]


def _answers(said: bytes) -> Iterable[Answer]:
    while said:
        if said.startswith(b"HTTP/1.1 100 Continue\r\n\r\n"):
            said = said[25:]
            continue
        head = _HEAD.match(said)
        assert head, f"that is no answer: {said[:200]!r}"
        fields = dict(line.split(": ", 1) for line in head[2].decode().splitlines())
        end = head.end() + int(fields["Content-Length"])
        if said[end:].startswith(b"HTTP/1.1 ") or end == len(said):
            body = said[head.end() : end]
        else:  # the answer to HEAD
            end, body = head.end(), b""
        yield Answer(int(head[1]), fields.get("Connection") == "close", body)
        said = said[end:]
