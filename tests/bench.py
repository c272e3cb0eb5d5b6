"""Measure the daemon (``make bench``) and, in the same run, a minimal alternative for comparison.

The benchmark uses only the standard library. The load generator is a separate process with one thread and epoll, which
minimizes its share of the cores that the server also uses.
"""

from __future__ import annotations

import argparse
import http.client
import json
import multiprocessing
import re
import select
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

from engine import bench_sync
from forge import served
from harness import SECRET, SOURCE, WEBHOOK, Daemon, headers, push
from scratch import GIT_ENV, Upstream, git

sys.path.insert(0, str(SOURCE))

import generated

BARE_SERVER = f"""
import hashlib, hmac, json, socketserver, sys
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

class Server(socketserver.ThreadingMixIn, WSGIServer):
    daemon_threads = True
    request_queue_size = 1024

class Quiet(WSGIRequestHandler):
    def log_message(self, *words): pass

def app(environ, start_response):
    body = environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"]))
    signature = "sha256=" + hmac.new({SECRET.encode()!r}, body, hashlib.sha256).hexdigest()
    assert hmac.compare_digest(signature, environ["HTTP_X_HUB_SIGNATURE_256"])
    json.loads(body)
    answer = b'{{"status": "queued"}}'
    start_response("202 Accepted", [("Content-Type", "application/json"), ("Content-Length", str(len(answer)))])
    return [answer]

server = make_server("127.0.0.1", 0, app, Server, Quiet)
print(server.server_port, flush=True)
server.serve_forever()
"""


def eight_kilobytes(repository: str) -> bytes:
    """Return a push payload of 8 KiB, the size that GitHub sends for a few commits."""
    commits: list[dict[str, Any]] = []
    while True:
        body = json.dumps(push(repository, commits=commits)).encode()
        if len(body) >= 8 << 10:
            return body
        commits.append(
            {
                "id": "1" * 40,
                "message": "work " * 20,
                "timestamp": "2026-01-01T00:00:00Z",
                "author": {"name": "Ada"},
                "modified": ["a"],
            }
        )


def load(port: int, connections: int, count: int, results: multiprocessing.Queue[Any]) -> None:
    """Deliver `count` pushes over `connections` connections; put (total seconds, sorted latencies) or an error."""
    body = eight_kilobytes("acme/site")
    fixed = "".join(f"{name}: {value}\r\n" for name, value in headers(body).items() if name != "X-GitHub-Delivery")
    head = f"POST {WEBHOOK} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(body)}\r\n{fixed}X-GitHub-Delivery: "
    poll = select.epoll()
    sockets: dict[int, socket.socket] = {}
    answers: dict[int, bytes] = {}
    sent_at: dict[int, float] = {}
    latencies: list[float] = []
    sent = 0

    def send(channel: socket.socket) -> None:
        nonlocal sent
        sent += 1
        answers[channel.fileno()] = b""
        sent_at[channel.fileno()] = time.perf_counter()
        channel.sendall(f"{head}{uuid.UUID(int=sent)}\r\n\r\n".encode() + body)

    def connect() -> socket.socket:
        channel = socket.create_connection(("127.0.0.1", port))
        channel.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sockets[channel.fileno()] = channel
        poll.register(channel, select.EPOLLIN)
        return channel

    began = time.perf_counter()
    for _ in range(connections):
        send(connect())
    while len(latencies) < count:
        for descriptor, _ in poll.poll(30):
            chunk = sockets[descriptor].recv(65536)
            answers[descriptor] += chunk
            head_end = answers[descriptor].find(b"\r\n\r\n")
            closing = not chunk
            if (
                head_end >= 0
                and b"Connection: close" not in answers[descriptor]
                and b"HTTP/1.0" not in answers[descriptor]
            ):
                length = int(answers[descriptor].split(b"Content-Length: ")[1].split(b"\r\n")[0])
                if len(answers[descriptor]) < head_end + 4 + length:
                    continue
            elif not closing:
                continue
            if not answers[descriptor].startswith((b"HTTP/1.1 202", b"HTTP/1.0 202")):
                return results.put(f"not a 202: {answers[descriptor][:300]!r}")
            latencies.append(time.perf_counter() - sent_at[descriptor])
            if closing:
                poll.unregister(descriptor)
                sockets.pop(descriptor).close()
            if sent < count:
                send(connect() if closing else sockets[descriptor])
    results.put((time.perf_counter() - began, sorted(latencies)))
    return None


def measure_load(port: int, connections: int, count: int) -> tuple[float, float, float]:
    """Return acknowledgements per second, and the median and 99th percentile of the latency in milliseconds."""
    results: multiprocessing.Queue[Any] = multiprocessing.Queue()
    client = multiprocessing.Process(target=load, args=(port, connections, count, results))
    client.start()
    result = results.get(timeout=120)
    client.join()
    if isinstance(result, str):
        raise SystemExit(result)
    seconds, latencies = result
    return count / seconds, latencies[len(latencies) // 2] * 1e3, latencies[len(latencies) * 99 // 100] * 1e3


def bench_acknowledgements(folder: Path, count: int) -> None:
    print(
        f"\nAcknowledged deliveries, {count} signed pushes of 8 KB; gitops-hook writes them to disk, the bare server does not"
    )
    print(f"{'':34}{'per second':>12}{'p50 ms':>10}{'p99 ms':>10}")
    sync = folder / "sync.sh"
    sync.write_text("#!/bin/sh\nexec sleep 0.3\n")
    sync.chmod(0o755)
    bare = subprocess.Popen([sys.executable, "-c", BARE_SERVER], stdout=subprocess.PIPE, text=True)
    assert bare.stdout
    bare_port = int(bare.stdout.readline())
    with Daemon(folder / "ack", GITOPS_SYNC_SCRIPT=str(sync)) as daemon:
        checkout_stand_in(daemon.root, "acme/site")
        measure_load(daemon.port, 16, 500)
        measure_load(bare_port, 16, 500)
        for connections in (16, 64):
            for name, port in (("bare wsgiref", bare_port), ("gitops-hook", daemon.port)):
                rate, p50, p99 = measure_load(port, connections, count)
                print(f"{name + f', {connections} connections':34}{rate:12.0f}{p50:10.1f}{p99:10.1f}")
        daemon.stop()
    bare.kill()
    bare.wait()
    bare.stdout.close()


def median_ms(seconds: list[float]) -> float:
    return statistics.median(seconds) * 1e3


def bench_push_to_checkout(folder: Path, rounds: int) -> None:
    """Measure the time from the POST until the branch of the checkout is at the pushed commit."""
    print(f"\nFrom the push to the checkout, one small commit; medians of {rounds}")
    with served(folder / "http" / "forge") as url:
        for where, name in (("http", "the upstream over HTTP, on loopback"), ("path", "on the same disk")):
            bare, ours = measure_push_to_checkout(folder / where, rounds, url if where == "http" else "")
            print(name)
            print(f"{'  git fetch && git reset --keep by hand':44}{median_ms(bare):8.1f} ms")
            print(f"{'  POST to gitops-hook until HEAD is there':44}{median_ms(ours):8.1f} ms")
            print(
                f"{'  times as long':44}{median_ms(ours) / median_ms(bare):8.2f}" + ", target 1.5" * (where == "http")
            )


def measure_push_to_checkout(folder: Path, rounds: int, url: str) -> tuple[list[float], list[float]]:
    """Return the seconds of each round, first with plain git, then with the daemon."""
    upstream = Upstream(folder / "forge")
    (folder / "root").mkdir()
    checkout = upstream.checkout(folder / "root")
    by_hand = upstream.checkout(folder / "hand")
    if url:
        for path in (checkout, by_hand):
            git("remote", "set-url", "origin", f"{url}/acme/site.git", cwd=path)
    ours, bare = [], []
    with Daemon(folder) as daemon:
        daemon.wait_for_run("trigger=sweep")
        for number in range(rounds):
            after = upstream.commit({f"{number}.txt": "work\n"})
            began = time.perf_counter()
            daemon.deliver(push("acme/site", after))
            while (checkout / ".git/refs/heads/main").read_text().strip() != after:
                time.sleep(0.0005)
            ours.append(time.perf_counter() - began)
            daemon.wait_for(r"run updated ")
            began = time.perf_counter()
            subprocess.run(
                ["sh", "-c", "git fetch --quiet origin main && git reset --quiet --keep FETCH_HEAD"],
                cwd=by_hand,
                env=GIT_ENV,
                check=True,
            )
            bare.append(time.perf_counter() - began)
            assert git("rev-parse", "HEAD", cwd=by_hand) == after
        daemon.stop()
    return bare, ours


def checkout_stand_in(root: Path, repository: str) -> None:
    """Create a directory that the daemon recognizes as a checkout; it cannot be synced."""
    git_folder = root / repository / ".git"
    git_folder.mkdir(parents=True)
    (git_folder / "config").write_text("[gitops]\n\tbranch = main\n")


def status(daemon: Daemon) -> dict[str, str]:
    lines = Path(f"/proc/{daemon.process.pid}/status").read_text().splitlines()
    return dict(line.split(":", 1) for line in lines)


def threads(daemon: Daemon) -> int:
    return int(status(daemon)["Threads"])


def footprint(daemon: Daemon) -> str:
    return f"{int(status(daemon)['VmRSS'].split()[0]) / 1024:8.1f} MiB {threads(daemon):5} threads"


def bench_footprint(folder: Path, repositories: int) -> None:
    sync = folder / "true.sh"
    sync.write_text("#!/bin/sh\n")
    sync.chmod(0o755)
    print(f"\nResident memory and threads; the sweep covers {repositories} checkouts")
    with Daemon(folder / "footprint", GITOPS_SYNC_SCRIPT=str(sync)) as daemon:
        print(f"{'idle, just started':44}{footprint(daemon)}")
        idle_threads = threads(daemon)
        for number in range(repositories):
            checkout_stand_in(daemon.root, f"acme/site{number}")
        began = time.perf_counter()
        daemon.process.send_signal(signal.SIGHUP)
        for number in range(repositories):
            daemon.wait_for(r"run updated ", timeout=60)
            if number == repositories // 2:
                print(f"{'in the middle of the sweep':44}{footprint(daemon)}")
        seconds = time.perf_counter() - began
        while threads(daemon) > idle_threads:  # idle workers end after a while
            time.sleep(0.1)
        print(f"{f'idle again, sweep finished after {seconds:.1f} s':44}{footprint(daemon)}")
        daemon.stop()


def bench_page(folder: Path, repositories: int, runs: int) -> None:
    """Measure the dashboard and its JSON API over HTTP with generated runs. It runs in this process: CPU time counts."""
    for number in sorted({3, 40, repositories}):
        each = max(1, min(runs // number, 2 * runs // repositories))
        print(f"\nThe dashboard, {number} repositories with {each} runs each; medians of 15, in CPU time")
        with generated.serve(folder / f"page{number}", number, each) as host:
            address = host.url.removeprefix("http://")
            with closing(http.client.HTTPConnection(address)) as connection:
                bench_host(connection, host, number * each)


def bench_host(connection: http.client.HTTPConnection, host: generated.Host, runs: int) -> None:
    newest_first = "/?sort=-deployed"
    keys = ".".join(re.findall(r"data-key=(\w+)", fetch(connection, newest_first).decode()))
    refresh = f"{newest_first}&known={keys}"
    measure_page(connection, "the first page", "/")
    measure_page(connection, "a refresh without a change", refresh)
    measure_page(connection, "a refresh after new runs of 10 repositories", refresh, lambda: host.change(10))
    measure_page(connection, "a search", "/?q=billing")
    measure_page(connection, "a repository", f"/repositories/{host.names[0]}")
    measure_page(connection, "a run", f"/runs/{runs // 2}")
    measure_page(connection, "JSON, every repository", f"/api/repositories?limit={len(host.names)}")
    measure_page(connection, "JSON, 100 runs", "/api/runs")


def measure_page(
    connection: http.client.HTTPConnection, name: str, path: str, change: Callable[[], None] = lambda: None
) -> None:
    seconds, size = [], 0
    for _ in range(15):
        change()
        began = time.process_time()
        size = len(fetch(connection, path))
        seconds.append(time.process_time() - began)
    print(f"{name:44}{median_ms(seconds):8.1f} ms {size:8} bytes")


def fetch(connection: http.client.HTTPConnection, path: str) -> bytes:
    connection.request("GET", path)
    return connection.getresponse().read()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=5000, help="deliveries for each row of the first table")
    parser.add_argument("--rounds", type=int, default=25, help="pushes for the second table")
    parser.add_argument("--repositories", type=int, default=1000, help="checkouts for the last table")
    parser.add_argument("--runs", type=int, default=100_000, help="runs in the journal for the page")
    parser.add_argument("--page", action="store_true", help="measure only the page")
    options = parser.parse_args()
    multiprocessing.set_start_method("spawn")
    folder = Path(tempfile.mkdtemp(prefix="gitops-hook-bench-"))
    try:
        if not options.page:
            bench_acknowledgements(folder, options.count)
            bench_push_to_checkout(folder, options.rounds)
            print(f"\nThe script alone, medians of {options.rounds}")
            bench_sync.report(options.rounds)
            bench_footprint(folder, options.repositories)
        bench_page(folder, options.repositories, options.runs)
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
