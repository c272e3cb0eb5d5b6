"""Attacks on memory and the interpreter, while legitimate deliveries are measured.

For each attack: the 99th percentile in milliseconds before and during the attack, from the same daemon, and the daemon's
peak memory in MiB. The bound is 250 ms, and on a busy machine as many times more as each core had processes at the start.
"""

from __future__ import annotations

import http.client
import json
import multiprocessing
import re
import socket
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from typing import Any

from harness import WEBHOOK, Daemon, headers, push, until

from torture.account import Account
from torture.honest import BUSYNESS

LIMIT_MS = 250
BODY_SIZE = 25 << 20
_SPAWN = multiprocessing.get_context("spawn")
#: The checkouts of the daemon, so that its page is long.
_CHECKOUTS = 300


def deliver(port: int, seconds: float, results: multiprocessing.Queue[Any]) -> None:
    """Send 50 deliveries per second on 4 connections, each in its turn; put the latencies and the failures."""
    body = json.dumps(push("acme/site", commits=[{"message": "x" * 7000}])).encode()
    latencies: list[float] = []
    failures = 0
    connections = [http.client.HTTPConnection("127.0.0.1", port, timeout=30) for _ in range(4)]
    ends = time.monotonic() + seconds
    number = 0
    while time.monotonic() < ends:
        connection = connections[number % 4]
        number += 1
        started = time.monotonic()
        for attempt in range(2):  # a server may close an idle connection at any time, so a proxy tries again
            try:
                connection.request("POST", WEBHOOK, body, headers(body))
                response = connection.getresponse()
                response.read()
                failures += response.status != 202
                break
            except OSError:
                failures += attempt
                connection.close()
        latencies.append(time.monotonic() - started)
        time.sleep(max(0.0, 0.02 - (time.monotonic() - started)))
    results.put((sorted(latencies), failures))


def measure(port: int, seconds: float) -> tuple[int, float, int]:
    """Return the number of deliveries, the 99th percentile in milliseconds, and the number of failures."""
    results: multiprocessing.Queue[Any] = _SPAWN.Queue()
    process = _SPAWN.Process(target=deliver, args=(port, seconds, results))
    process.start()
    latencies, failures = results.get(timeout=seconds + 120)
    process.join()
    return len(latencies), latencies[len(latencies) * 99 // 100] * 1e3, failures


def post(port: int, body: bytes, sent: dict[str, str]) -> None:
    """Send one request and drop its response, as an attacker does."""
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=60)) as connection, suppress(OSError):
        connection.request("POST", WEBHOOK, body, sent)
        connection.getresponse().read()


def repeat(stop: threading.Event, count: int, action: Callable[[], None]) -> list[threading.Thread]:
    """Call `action` in `count` threads, again and again."""

    def loop() -> None:
        while not stop.is_set():
            action()

    threads = [threading.Thread(target=loop) for _ in range(count)]
    for thread in threads:
        thread.start()
    return threads


def hold(port: int, count: int, sent: bytes, stop: threading.Event) -> None:
    """Open connections, send the same bytes on each, and keep them open for a second."""
    with ExitStack() as stack:
        for _ in range(count):
            with suppress(OSError):
                channel = stack.enter_context(socket.create_connection(("127.0.0.1", port), 5))
                channel.sendall(sent)
        stop.wait(1)


def dense_payloads(port: int, page: int, stop: threading.Event) -> list[threading.Thread]:
    """Three signed payloads of 25 MiB that consist of empty objects, again and again."""
    start, end = json.dumps(push("acme/site", odd="here")).encode().split(b'"here"')
    body = start + b"[" + b'{"a":{}},' * ((BODY_SIZE - len(start) - len(end)) // 9 - 1) + b"0]" + end
    return repeat(stop, 3, lambda: post(port, body, headers(body)))


def unsigned_forms(port: int, page: int, stop: threading.Event) -> list[threading.Thread]:
    """Forms of 25 MiB of escapes with a wrong signature, again and again."""
    body = b"payload=" + b"%41" * ((BODY_SIZE - 8) // 3)
    sent = {"X-Gitea-Event": "push", "X-Gitea-Signature": "0" * 64, "Content-Type": "application/x-www-form-urlencoded"}
    return repeat(stop, 3, lambda: post(port, body, sent))


def small_unsigned_forms(port: int, page: int, stop: threading.Event) -> list[threading.Thread]:
    """The same with the largest size that is decoded."""
    body = b"payload=" + b"%41" * (((1 << 20) - 8) // 3)
    sent = {"X-Gitea-Event": "push", "X-Gitea-Signature": "0" * 64, "Content-Type": "application/x-www-form-urlencoded"}
    return repeat(stop, 3, lambda: post(port, body, sent))


def page_readers(port: int, page: int, stop: threading.Event) -> list[threading.Thread]:
    """Sixteen readers who reload the overview without a pause."""

    def read() -> None:
        with closing(http.client.HTTPConnection("127.0.0.1", page, timeout=60)) as connection, suppress(OSError):
            connection.request("GET", "/")
            connection.getresponse().read()

    return repeat(stop, 16, read)


def unread_pages(port: int, page: int, stop: threading.Event) -> list[threading.Thread]:
    """Four hundred requests for the overview whose responses nobody reads."""

    return repeat(stop, 1, lambda: hold(page, 400, b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n", stop))


def busy_connections(port: int, page: int, stop: threading.Event) -> list[threading.Thread]:
    """Six hundred connections that send half a request, again and again."""

    return repeat(stop, 1, lambda: hold(port, 600, f"POST {WEBHOOK} HTTP/1.1\r\nHost: x\r\n".encode(), stop))


ATTACKS = {
    attack.__name__: attack
    for attack in (dense_payloads, unsigned_forms, small_unsigned_forms, page_readers, unread_pages, busy_connections)
}


def checkouts(root: Path, count: int) -> None:
    """Create directories that the daemon takes for checkouts, so that the page is long."""
    for number in range(count):
        config = root / f"acme/site{number or ''}/.git/config"
        config.parent.mkdir(parents=True)
        config.write_text("[gitops]\n\tbranch = main\n")


def pressure(folder: Path, account: Account, seconds: float) -> None:
    """Measure for `seconds` during each attack, and for half of that before it."""
    for name, attack in ATTACKS.items():
        line = account.fault(f"{name.replace('_', ' ')}: deliveries, and their p99 below {LIMIT_MS} ms")
        script = folder / name / "sync.sh"
        checkouts(folder / name / "root", _CHECKOUTS)
        script.write_text("#!/bin/sh\n")
        script.chmod(0o755)
        settings = {"GITOPS_DASHBOARD_LISTEN": "127.0.0.1:0", "GITOPS_SYNC_SCRIPT": str(script)}
        with Daemon(folder / name, **settings) as daemon:
            page = int(daemon.wait_for(r"listening for the dashboard .*address=\S*:(\d+)")[1])
            # Runs of the first sweep can end before the page listens.
            until(lambda daemon=daemon: len(re.findall("info run updated ", daemon.log)) == _CHECKOUTS, "no sweep", 60)
            stop = threading.Event()
            _, before, _ = measure(daemon.port, seconds / 2)
            threads = attack(daemon.port, page, stop)
            time.sleep(0.5)
            count, during, failures = measure(daemon.port, seconds)
            stop.set()
            for thread in threads:
                thread.join()
            status = Path(f"/proc/{daemon.process.pid}/status").read_text()
            peak = int(status.partition("VmHWM:")[2].split()[0]) >> 10
            daemon.kill()
        line.tried, line.held = count, count - failures
        line.remark = f"p99 {before:.0f} ms before, {during:.0f} ms during, peak {peak} MiB"
        line.check(during < LIMIT_MS * BUSYNESS, line.remark)
        account.print(line)
