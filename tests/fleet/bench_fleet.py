"""Figures of a fleet on this machine: ``PYTHONPATH=.:tests:tests/fleet python3 tests/fleet/bench_fleet.py``.

1. Ten daemons and one push, with all members alive and right after the death of the leader.
2. Many followers and many repositories: real etcd, real followers and forwarder, no script.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path

from etcd_cluster import Cluster, binaries
from harness import push, until
from hosts import Hosts
from scratch import Upstream

from gitops_hook.fleet.etcd import Etcd
from gitops_hook.fleet.follow import Follower, Listener
from gitops_hook.fleet.keys import Keys, Want
from gitops_hook.fleet.outbox import Forwarder
from gitops_hook.journal.fleet import FleetJournal
from gitops_hook.journal.writer import Journal
from gitops_hook.model import Delivery

SITE = "acme/site"
PUSHES = 1000


def resident(pid: int) -> int:
    """Return the resident memory of a process in MiB."""
    fields = Path(f"/proc/{pid}/status").read_text().split()
    return int(fields[fields.index("VmRSS:") + 1]) >> 10


def last_end(hosts: Hosts, commit: str) -> float:
    """Return when the last host ended its run, in seconds since the epoch."""
    query = "SELECT max(ended) FROM runs WHERE after = ?"
    ends = [daemon.query(query, commit)[0][0] for daemon in hosts.daemons.values()]
    while not all(ends):
        time.sleep(0.01)
        ends = [daemon.query(query, commit)[0][0] for daemon in hosts.daemons.values()]
    return max(ends)


def one_push(folder: Path, cluster: Cluster) -> None:
    """Measure one push to ten daemons, several times."""
    forge = Upstream(folder / "forge", SITE)
    names = [f"h{number}" for number in range(10)]
    with Hosts(folder, cluster.endpoints) as hosts:
        for name in names:
            hosts.checkout(name, forge)
            hosts.start(name)
        hosts.wait_until_live(*names)
        for what, rounds in (("all members alive", 5), ("right after the leader's death", 3)):
            answers, ends = [], []
            for number in range(rounds):
                commit = forge.commit({"x": f"{what} {number}"})
                leader = cluster.leader() if "death" in what else None
                if leader:
                    leader.kill()
                began = time.time()
                _, answer = hosts.daemons["h0"].deliver(push(SITE, commit), guid=f"{what}-{number}".replace(" ", "-"))
                answers.append((time.time() - began) * 1000)
                hosts.wait_for_commit(commit, timeout=60)
                ends.append(last_end(hosts, commit) - began)
                if leader:
                    leader.start()
                    cluster.wait()
            print(
                f"one push to 10 daemons, {what}: answer {statistics.median(answers):.0f} ms ({answer['fleet']}),"
                f" all deployed after {statistics.median(ends) * 1000:.0f} ms (median of {rounds})"
            )
        print(f"memory: daemon {resident(hosts.daemons['h1'].process.pid)} MiB")


class Counting(Listener):
    """A host that keeps every repository and notes when it is notified."""

    def __init__(self, begins: dict[str, float]) -> None:
        self.begins = begins
        self.delays: list[float] = []
        self.done = threading.Event()

    def wants(self, want: Want, *, is_live: bool) -> list[str]:
        return [want.repository]

    def notify(self, checkout: str) -> None:
        self.delays.append(time.monotonic() - self.begins[checkout])
        if len(self.delays) == PUSHES:
            self.done.set()

    def connected(self, *, is_new_life: bool) -> None:
        pass

    def changed(self, checkouts: set[str]) -> None:
        pass


def many(folder: Path, cluster: Cluster, number: int) -> None:
    """Push to 1,000 repositories at once, with `number` followers, each with a journal of its own."""
    keys = Keys(f"bench-{number}")
    begins: dict[str, float] = {}
    followers, listeners, journals = [], [], []
    for host in range(number):
        journals.append(Journal(folder / f"{number}-{host}"))
        listeners.append(Counting(begins))
        followers.append(Follower(Etcd(cluster.endpoints), keys, FleetJournal(journals[-1]), listeners[-1]))
        followers[-1].start()
    until(lambda: all(follower.is_connected for follower in followers), "a follower does not connect", 60)
    journals.append(Journal(folder / f"{number}-receiver"))
    forwarder = Forwarder(Etcd(cluster.endpoints), keys, FleetJournal(journals[-1]), "receiver")
    began = time.monotonic()
    for repository in range(PUSHES):
        name = f"acme/r{repository}"
        begins[name] = time.monotonic()
        forwarder.accept([], Delivery(f"{number}-{repository}", "push", time.time(), name, "refs/heads/main"), "main")
    accepted = time.monotonic() - began
    forwarder.start()
    begins.update(dict.fromkeys(begins, time.monotonic()))
    began = time.monotonic()
    for listener in listeners:
        assert listener.done.wait(300), f"only {len(listener.delays)} of {PUSHES}"
    took = time.monotonic() - began
    delays = sorted(delay for listener in listeners for delay in listener.delays)
    print(
        f"{PUSHES} pushes to {number} followers: {PUSHES / accepted:.0f}/s accepted, {took:.1f} s to the last follower"
        f" ({PUSHES * number / took:.0f} deliveries/s in their journals), p50 {delays[len(delays) // 2]:.2f} s,"
        f" p99 {delays[int(len(delays) * 0.99)]:.2f} s; member {max(resident(m.pid) for m in cluster.members)} MiB"
    )
    for follower in followers:
        follower.stop(5)
    forwarder.stop(5)
    for journal in journals:
        journal.close()


def main() -> int:
    """Print the figures; return the exit status."""
    programs = binaries()
    if not programs:
        print("SKIPPED: there is no etcd; `make test-fleet` unpacks Debian's package, or set ETCD")
        return 0
    version, program = sorted(programs.items())[-1]
    print(f"etcd {version}, three members")
    base = "/dev/shm" if Path("/dev/shm").is_dir() else None
    with tempfile.TemporaryDirectory(dir=base) as name, Cluster(program, 3) as cluster:
        for number in (10, 100):
            many(Path(name), cluster, number)
        one_push(Path(name) / "hosts", cluster)
    return 0


if __name__ == "__main__":
    sys.exit(main())
