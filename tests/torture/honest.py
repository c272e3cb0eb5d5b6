"""Valid deliveries during a test: measure the response times and the resources that the daemon uses.

The sender is a separate process, so that the load generator's threads cannot delay it.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import time
import uuid
from contextlib import suppress
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any, NamedTuple

from harness import WEBHOOK, headers, push, until

from torture.account import Line
from torture.host import Host

#: Seconds between two deliveries. Twenty per second is more than a busy organization sends to one host.
_PACE = 0.05
_AT_LEAST = 20
#: The initial load per core, at least 1. On a busy machine, limits of time are multiplied by it.
BUSYNESS = max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))
#: The promised limit for the 99th percentile, in seconds.
_PATIENCE = 1.0 * BUSYNESS


class Footprint(NamedTuple):
    """The resources of a daemon: current and peak memory in MiB, and counts."""

    resident: float
    peak: float
    threads: int
    descriptors: int
    #: The size of the state directory in bytes.
    disk: int

    @classmethod
    def of(cls, host: Host) -> Footprint:
        process = Path(f"/proc/{host.daemon.process.pid}")
        status = dict(line.split(":", 1) for line in (process / "status").read_text().splitlines())
        resident, peak = (int(status[name].split()[0]) / 1024 for name in ("VmRSS", "VmHWM"))
        disk = 0
        for path in host.state.rglob("*"):
            with suppress(FileNotFoundError):
                disk += path.stat().st_size
        return cls(resident, peak, int(status["Threads"]), len(list((process / "fd").iterdir())), disk)


def _deliver(port: int, repository: str, commit: str, begun: Any, stop: Any, results: Any) -> None:
    """Deliver until `stop` is set, then put a list of (GUID, status or 0, seconds) into `results`."""
    done: list[tuple[str, int, float]] = []
    while len(done) < _AT_LEAST or not stop.is_set():
        guid, status = str(uuid.uuid4()), 0
        body = json.dumps(push(repository, commit)).encode()
        began = time.perf_counter()
        connection = HTTPConnection("127.0.0.1", port, timeout=20)
        with suppress(OSError, HTTPException):
            connection.request("POST", WEBHOOK, body, headers(body, guid=guid))
            status = connection.getresponse().status
        connection.close()
        done.append((guid, status, time.perf_counter() - began))
        begun.set()
        time.sleep(_PACE)
    results.put(done)


class Honest:
    """Deliver to the host's last repository inside the block, and check promises 5 and 6 at its end.

    Promise 5 is checked with the response times, promise 6 with the daemon's resources before and after the block.
    """

    #: The maxima over all tests: seconds, and memory in MiB.
    worst_wait = 0.0
    worst_peak = 0.0

    def __init__(self, host: Host, line: Line, *, memory: int = 512) -> None:
        self._host = host
        self._line = line
        self._memory = memory

    def __enter__(self) -> Honest:
        until(self._host.is_idle, timeout=300)
        self._before = Footprint.of(self._host)
        spawn = multiprocessing.get_context("spawn")
        begun, self._stop, self._results = spawn.Event(), spawn.Event(), spawn.Queue()
        repository, commit = self._host.repositories[-1], self._host.commits[self._host.number]
        self._number = self._host.number
        arguments = (self._host.daemon.port, repository, commit, begun, self._stop, self._results)
        self._forge = spawn.Process(target=_deliver, args=arguments)
        self._forge.start()
        begun.wait()
        return self

    def __exit__(self, kind: object, *exc: object) -> None:
        self._stop.set()
        done = self._results.get(timeout=60)
        self._forge.join()
        if kind is None:
            self._judge_waits(done)
            self._judge_footprint()

    def _judge_waits(self, done: list[tuple[str, int, float]]) -> None:
        waits = sorted(seconds for _, _, seconds in done)
        late = waits[len(waits) * 99 // 100]
        refused = [status for _, status, _ in done if status != 202]
        for guid, status, _ in done:
            if status == 202:
                self._host.acknowledged[guid] = (self._host.repositories[-1], self._number)
        self._line.remark = f"p99 {late * 1e3:.0f} ms of {len(done)} valid deliveries"
        Honest.worst_wait = max(Honest.worst_wait, late)
        self._host.account.promises[5].check(
            late < _PATIENCE and not refused,
            f"{self._line.name}: {self._line.remark}, not accepted: {refused[:5]} ({len(refused)})",
        )

    def _judge_footprint(self) -> None:
        """Check that memory stays below its limit, and that everything else returns to its initial value."""
        with suppress(AssertionError):
            until(self._has_come_back, timeout=120)
        after = Footprint.of(self._host)
        Honest.worst_peak = max(Honest.worst_peak, after.peak)
        self._line.remark += f", peak {after.peak:.0f} MiB"
        self._host.account.promises[6].check(
            self._has_come_back() and after.peak < self._memory,
            f"{self._line.name}: {after}, before the test {self._before}",
        )

    def _has_come_back(self) -> bool:
        """Return True if threads, descriptors and disk use are near their initial values.

        Rows and logs need some space; two threads and four descriptors may be in use for a moment.
        """
        after = Footprint.of(self._host)
        return (
            self._host.is_idle()
            and after.threads <= self._before.threads + 2
            and after.descriptors <= self._before.descriptors + 4
            and after.disk <= self._before.disk + (64 << 20)
        )
