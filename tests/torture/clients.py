"""Hostile and faulty clients; valid deliveries in parallel must not be affected."""

from __future__ import annotations

import hashlib
import json
import resource
import shutil
import socket
import struct
import subprocess
import threading
import time
import uuid
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

from harness import NOBODY, SECRET, WEBHOOK, burst, headers, push, raw_delivery

from torture.account import Account, Line
from torture.honest import Honest
from torture.host import Host

_MIB = 1 << 20
_LARGEST = 25 * _MIB
_RECORDED = "SELECT id FROM deliveries WHERE guid = ?"


def clients(folder: Path, account: Account, short: bool) -> None:
    """Test each kind of client in turn on one daemon."""
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    connections = 500 if short else 2000
    seconds = 5 if short else 30
    idle = min(1000 if short else 10_000, most - 100)
    large = 32 if short else 512
    ordeals: dict[str, Callable[[Host, Line], None]] = {
        f"slowloris: {connections:,} slow heads": lambda host, line: _slowhttptest(host, line, "-H", connections, seconds),
        f"slowloris: {connections:,} slow bodies": lambda host, line: _slowhttptest(host, line, "-B", connections, seconds),
        f"{connections:,} peers that close their half in mid-body": lambda host, line: _half_closed(host, line, connections),
        f"{connections:,} peers that are reset in mid-body": lambda host, line: _reset(host, line, connections),
        f"{idle:,} idle connections": lambda host, line: _idle(host, line, idle, seconds),
        f"{large} bodies of 25 MiB at once": lambda host, line: _large(host, line, large, whole=True),
        f"{large} bodies of 25 MiB that lack their last byte": lambda host, line: _large(host, line, large, whole=False),
        "hostile payloads, signed": _hostile,
        "names that differ in case only": _cases,
        "requests without a valid signature": lambda host, line: _unproven(host, line, 200 if short else 2000),
    }  # fmt: skip
    with Host(folder, account, 2, commits=20) as host:
        for name, ordeal in ordeals.items():
            line = account.fault(name)
            with Honest(host, line):
                ordeal(host, line)
            account.print(line)
        host.settle()
        host.verify_outcomes()
        assert "the application failed" not in host.daemon.log, "a peer made the application raise"
        for secret in (SECRET, "Traceback"):
            assert secret not in host.daemon.log


def _connect(host: Host) -> socket.socket:
    return socket.create_connection(("127.0.0.1", host.daemon.port), 60)


def _slowhttptest(host: Host, line: Line, kind: str, connections: int, seconds: int) -> None:
    """Open `connections` connections; each sends a few bytes every two seconds."""
    if not shutil.which("slowhttptest"):
        line.skipped = "slowhttptest is not installed"
        return
    url = f"http://127.0.0.1:{host.daemon.port}{WEBHOOK}"
    options = ["-c", connections, "-r", 500, "-i", 2, "-l", seconds, "-s", 8192, "-x", 10, "-p", 3, "-u", url]
    done = subprocess.run(["slowhttptest", kind, *map(str, options)], capture_output=True, text=True)
    line.tried += connections
    line.held += connections if done.returncode == 0 and host.daemon.process.poll() is None else 0
    line.reasons += [done.stdout[-500:] + done.stderr] if done.returncode else []


def _delivery(host: Host, size: int = 8192, **options: Any) -> bytes:
    body = json.dumps(push(host.repositories[0], commits=["x" * size])).encode()
    return raw_delivery(body, headers(body, **options))


def _half_closed(host: Host, line: Line, count: int) -> None:
    """Send half a body and close the sending side; expect 400 for each."""
    half = _delivery(host)[:-4000]
    for _ in range(count // 100):
        with ExitStack() as stack:
            peers = [stack.enter_context(_connect(host)) for _ in range(100)]
            for peer in peers:
                peer.sendall(half)
                peer.shutdown(socket.SHUT_WR)
            for peer in peers:
                answer = peer.makefile("rb").readline()
                line.check(answer.startswith(b"HTTP/1.1 400 "), f"the answer was {answer!r}")
        time.sleep(0.2)


def _reset(host: Host, line: Line, count: int) -> None:
    """Send half a body, then reset the connection; the valid deliveries verify that the daemon still responds."""
    half = _delivery(host)[:-4000]
    for number in range(count):
        peer = _connect(host)
        peer.sendall(half)
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        peer.close()
        line.check(True)
        if number % 100 == 99:
            time.sleep(0.2)  # `_idle` tests the rate of new connections


def _idle(host: Host, line: Line, count: int, seconds: int) -> None:
    """Open idle connections. Above the limit the daemon closes the oldest; a new connection is accepted."""
    with ExitStack() as stack:
        for _ in range(count):
            try:
                stack.enter_context(_connect(host))
                line.check(True)
            except OSError as error:
                line.check(False, f"a connection was refused: {error}")
        time.sleep(seconds / 5)  # valid deliveries continue in the meantime


def _large(host: Host, line: Line, count: int, *, whole: bool) -> None:
    """Send `count` bodies of the maximum size with a wrong signature, in full or without the last byte."""
    answers: list[bytes] = []
    body = bytes(_LARGEST)
    fields = {**headers(b"{}"), "X-Hub-Signature-256": "sha256=" + hashlib.sha256(b"no").hexdigest()}
    head = raw_delivery(b"", fields, length=_LARGEST)
    began = threading.Barrier(count)

    def send() -> None:
        with suppress(OSError), _connect(host) as peer:
            began.wait(60)
            with suppress(OSError):  # the daemon closed it in favor of another connection
                peer.sendall(head)
                peer.sendall(body if whole else memoryview(body)[:-1])
            if not whole:
                peer.settimeout(5)  # keep the connection and its body open for this time
            answers.append(peer.makefile("rb").readline())
            return
        answers.append(b"")

    threads = [threading.Thread(target=send) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for answer in answers:
        # A wrong signature, too little memory, or a closed connection; never 202, never 500.
        line.check(answer[9:12] in (b"", b"401", b"408", b"503"), f"the answer was {answer!r}")


def _hostile(host: Host, line: Line) -> None:
    """Send signed hostile payloads; expect the exact status for each, never 500, and no row unless it is 202.

    GitHub shows any 4xx status as a failed delivery, so a well-formed push of no concern is answered 200 `ignored`.
    """
    repository = host.repositories[0]
    usual = json.dumps(push(repository, host.commits[host.number]))
    nul, surrogate = json.dumps("refs/heads/\0main"), '"refs/heads/\\ud800"'
    bodies = {
        "deep arrays": (b"[" * 100_000 + b"]" * 100_000, 400),
        "deep objects": (b'{"a":' * 100_000 + b"1" + b"}" * 100_000, 400),
        "a number of a million digits": (usual[:-1].encode() + b', "n": ' + b"9" * 1_000_000 + b"}", 202),
        "an exponent beyond all": (usual[:-1].encode() + b', "n": 1e999999999}', 202),
        "a repository of a huge number": (b'{"ref": "refs/heads/main", "repository": 1e400}', 400),
        "duplicate keys, the last one foreign": (usual[:-1].encode() + b', "repository": {"full_name": "no/no"}}', 200),
        "NUL in the ref": (usual.replace('"refs/heads/main"', nul).encode(), 200),
        "a lone surrogate in the ref": (usual.replace('"refs/heads/main"', surrogate).encode(), 200),
        "a lone surrogate in a name": (usual.replace('"ada"', '"\\ud800"').encode(), 202),
        "NUL in the repository's name": (usual.replace(f'"{repository}"', '"acme/\\u0000"').encode(), 200),
        "a path in the repository's name": (usual.replace(f'"{repository}"', '"../../etc"').encode(), 200),
        "an option as the repository's name": (usual.replace(f'"{repository}"', '"acme/--help"').encode(), 200),
        "invalid UTF-8": (b'{"ref": "\xff\xfe"}', 400),
        "an overlong NUL": (b'{"ref": "\xc0\x80"}', 400),
        "UTF-16": (usual.encode("utf-16"), 400),
        "a byte order mark": (b"\xef\xbb\xbf" + usual.encode(), 400),
        "nothing": (b"", 400),
        "NaN": (b"NaN", 400),
        "an array": (b"[]", 400),
        "a deletion": (json.dumps(push(repository, NOBODY)).encode(), 200),
        "20 MiB of one string": (usual[:-1].encode() + b', "x": "' + b"x" * (20 * _MIB) + b'"}', 202),
        "a million small objects": (usual[:-1].encode() + b', "x": [' + b"{}," * 1_000_000 + b"{}]}", 202),
    }
    for name, (body, expected) in bodies.items():
        status, answer, guid = 0, {}, str(uuid.uuid4())
        with suppress(OSError):
            status, answer = host.daemon.request("POST", WEBHOOK, body, headers(body, guid=guid))
        line.check(status == expected, f"{name}: {status}, not {expected}")
        if expected == 200:
            line.check(answer.get("status") == "ignored", f"{name}: the answer was {answer}")
        if expected != 202:
            line.check(not host.daemon.query(_RECORDED, guid), f"{name}: the delivery was recorded")


def _cases(host: Host, line: Line) -> None:
    """Deliver for one repository in many spellings: one worker, no overlap, every delivery served."""
    owner, name = host.repositories[0].split("/")
    spellings = [f"{o}/{n}" for o in (owner, owner.upper(), owner.title()) for n in (name, name.upper(), name.title())]
    for _ in range(5):
        host.push(host.number + 1)
        pushes = [push(spelling, host.commits[host.number]) for spelling in spellings]
        answers = burst(host.daemon.port, pushes, len(pushes))
        line.tried += len(pushes)
        line.held += answers[202]
        line.reasons += [] if answers == {202: len(pushes)} else [f"the answers were {dict(answers)}"]


def _unproven(host: Host, line: Line, count: int) -> None:
    """Check promise 4: every invalid signature gets the same 401 response, and no row enters the journal."""
    body = json.dumps(push("acme/unproven", host.commits[0])).encode()
    good = headers(body)
    unsigned = {name: value for name, value in good.items() if not name.startswith("X-Hub-Signature")}
    hexadecimal = good["X-Hub-Signature-256"].partition("=")[2]
    kinds = [
        unsigned,
        {**unsigned, "X-Hub-Signature": good["X-Hub-Signature"]},
        *(
            {**unsigned, "X-Hub-Signature-256": signature}
            for signature in (
                "", "sha256=", "sha256=" + "0" * 64, hexadecimal, "sha1=" + hexadecimal, "sha256=" + hexadecimal.upper(),
                "sha256=" + hexadecimal[:-1], "sha256=" + hexadecimal + "0", f"sha256={hexadecimal}, sha256={hexadecimal}",
                headers(body, secret="another")["X-Hub-Signature-256"], headers(body + b" ")["X-Hub-Signature-256"],
            )
        ),
    ]  # fmt: skip
    responses = set()
    promise = host.account.promises[4]
    for number in range(count):
        status, answer = host.daemon.request("POST", WEBHOOK, body, kinds[number % len(kinds)])
        responses.add(json.dumps(answer))
        line.check(status == 401, f"{status} for kind {number % len(kinds)}")
        promise.check(status == 401 and len(responses) == 1, f"{status}, responses {responses}")
    rows = "SELECT (SELECT count(*) FROM deliveries WHERE repository = ?) + (SELECT count(*) FROM runs WHERE repository = ?)"
    promise.check(host.daemon.query(rows, *["acme/unproven"] * 2) == [(0,)], "something was written")
    line.remark = line.remark or f"one response for all: {responses.pop() if responses else ''}"
