"""Figures of a fleet on this machine: ``PYTHONPATH=.:tests:tests/fleet python3 tests/fleet/bench_fleet.py``.

1. Ten daemons and one push, with all members alive and right after the death of the leader.
2. Many followers and many repositories: real etcd, real followers and forwarder, no script. HOSTS is their numbers.
   Bytes, memory and CPU time hardly depend on the load of the machine; times do.
"""

from __future__ import annotations

import os
import re
import statistics
import sys
import tempfile
import threading
import time
import urllib.request
from contextlib import ExitStack
from pathlib import Path

from etcd_cluster import Cluster, binaries
from harness import push, until
from hosts import Hosts
from scratch import Upstream

from gitops_hook.fleet.etcd import Etcd
from gitops_hook.fleet.follow import Follower, Listener
from gitops_hook.fleet.grid import Grid
from gitops_hook.fleet.keys import Have, Keys, Want, dump
from gitops_hook.fleet.messages import put
from gitops_hook.fleet.mirror import Mirror
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


class Recording(Listener):
    """A host that keeps every repository: it notes when it is notified, and its deploys take no time."""

    def __init__(self, name: str, keys: Keys, etcd: Etcd, begins: dict[str, float]) -> None:
        self.name = name
        self.keys = keys
        self.etcd = etcd
        self.begins = begins
        self.delays: list[float] = []
        self.unwritten: list[str] = []
        self.done = threading.Event()

    def wants(self, want: Want, *, is_live: bool) -> list[str]:
        return [want.repository]

    def notify(self, checkout: str) -> None:
        self.delays.append(time.monotonic() - self.begins[checkout])
        self.unwritten.append(checkout)
        if len(self.delays) == PUSHES:
            self.done.set()

    def connected(self, *, is_new_life: bool) -> None:
        pass

    def changed(self, checkouts: set[str]) -> None:
        pass

    def write_statuses(self) -> None:
        """Write the status of each repository, 100 in a transaction, as a host does once a second."""
        have = Have("b" * 40, "updated", 4711, "72d3162e-cc78-11e3-81ab-4c9367dc0958", 4711, time.time(), "moved")
        while self.unwritten:
            batch, self.unwritten = self.unwritten[:100], self.unwritten[100:]
            writes = [put(self.keys.have(self.name, checkout), dump(have)) for checkout in batch]
            self.etcd.transact([], writes, within=60)


def total(cluster: Cluster, metric: str) -> float:
    """Return a metric of etcd, summed over its labels and the members."""
    found = 0.0
    for member in cluster.members:
        with urllib.request.urlopen(f"{member.endpoint}/metrics", timeout=30) as answer:
            lines = answer.read().decode().splitlines()
        found += sum(float(line.rsplit(" ", 1)[1]) for line in lines if re.match(rf"{metric}[ {{]", line))
    return found


def cpu_of(cluster: Cluster) -> float:
    """Return the CPU time of all members in seconds."""
    return total(cluster, "process_cpu_seconds_total")


def many(folder: Path, program: Path, number: int) -> None:
    """Push to 1,000 repositories at once, with `number` followers, each with a journal and an etcd client of its own."""
    with ExitStack() as stack:
        cluster = stack.enter_context(Cluster(program, 3))
        keys = Keys(f"bench-{number}")
        begins: dict[str, float] = {}
        hosts: list[Recording] = []
        followers = []
        for host in range(number):
            journal = Journal(folder / f"{number}-{host}")
            stack.callback(journal.close)
            hosts.append(Recording(f"host-{host}", keys, Etcd(cluster.endpoints), begins))
            stack.callback(hosts[-1].etcd.close)
            followers.append(Follower(Etcd(cluster.endpoints), keys, FleetJournal(journal), hosts[-1]))
            followers[-1].start()
            stack.callback(followers[-1].stop, 5)
        until(lambda: all(follower.is_connected for follower in followers), "a follower does not connect", 120)
        journal = Journal(folder / f"{number}-receiver")
        stack.callback(journal.close)
        forwarder = Forwarder(Etcd(cluster.endpoints), keys, FleetJournal(journal), "receiver")
        for repository in range(PUSHES):
            name = f"acme/repository-{repository}"
            guid = f"72d3162e-cc78-11e3-{number:04}-{repository:012}"
            push = Delivery(guid, "push", time.time(), name, "refs/heads/main", "a" * 40, "b" * 40, "ada")
            forwarder.accept([], push, default_branch="main")
            begins[name] = 0.0
        began = time.monotonic()
        begins.update(dict.fromkeys(begins, began))
        before = measure(cluster)
        forwarder.start()
        stack.callback(forwarder.stop, 5)
        for host in hosts:
            assert host.done.wait(600), f"only {len(host.delays)} of {PUSHES}"
        took = time.monotonic() - began
        delivered = measure(cluster)
        delays = sorted(delay for host in hosts for delay in host.delays)
        last = sorted(max(host.delays[index] for host in hosts) for index in range(PUSHES))
        print(
            f"{number} hosts, {PUSHES} pushes at once: {PUSHES / took:.0f} pushes/s to the last host,"
            f" p50 {delays[len(delays) // 2]:.2f} s, p99 of the last host {last[int(PUSHES * 0.99)]:.2f} s"
        )
        report("  follow", before, delivered, number)
        began = time.monotonic()
        for host in hosts:
            host.write_statuses()
        print(f"  {PUSHES * number} statuses in {time.monotonic() - began:.1f} s")
        report("  statuses", delivered, measure(cluster), number)
        size = total(cluster, "etcd_mvcc_db_total_size_in_bytes") / len(cluster.members)
        print(
            f"  member: {max(resident(m.pid) for m in cluster.members)} MiB resident, database {size / 2**20:.0f} MiB"
        )
        print(f"  all hosts in one process: {resident(os.getpid())} MiB")
        began, cpu = time.monotonic(), time.process_time()
        mirror = Mirror(Etcd(cluster.endpoints), keys)
        stack.callback(mirror.stop, 5)
        before_mirror = resident(os.getpid())
        state = mirror.state(120)
        assert state
        built, page_cpu = time.monotonic() - began, time.process_time()
        grid = Grid("bench", mirror.state).grid("", "", 1, 50, 120)
        assert grid and len(grid.hosts) == number
        print(
            f"  page: first state after {built:.1f} s ({page_cpu - cpu:.1f} s CPU), rows in"
            f" {time.process_time() - page_cpu:.2f} s CPU, {resident(os.getpid()) - before_mirror} MiB more"
        )


def measure(cluster: Cluster) -> dict[str, float]:
    """Return the counters that do not depend on the load of the machine."""
    return {
        "cpu of members": cpu_of(cluster),
        "cpu of hosts": time.process_time(),
        "bytes sent": total(cluster, "etcd_network_client_grpc_sent_bytes_total"),
        "bytes received": total(cluster, "etcd_network_client_grpc_received_bytes_total"),
        "peer bytes": total(cluster, "etcd_network_peer_sent_bytes_total"),
    }


def report(what: str, before: dict[str, float], after: dict[str, float], hosts: int) -> None:
    """Print the differences, for each push."""
    each = {name: (after[name] - before[name]) / PUSHES for name in after}
    print(
        f"{what}, for each push: {each['bytes sent']:.0f} B to hosts ({each['bytes sent'] / hosts:.0f} B each),"
        f" {each['bytes received']:.0f} B from hosts, {each['peer bytes']:.0f} B between members,"
        f" CPU {each['cpu of members'] * 1000:.2f} ms of the members, {each['cpu of hosts'] * 1000 / hosts:.2f} ms of a host"
    )


def main() -> int:
    """Print the figures; return the exit status."""
    programs = binaries()
    if not programs:
        print("SKIPPED: there is no etcd; `make test-fleet` unpacks Debian's package, or set ETCD")
        return 0
    version, program = sorted(programs.items())[-1]
    print(f"etcd {version}, three members")
    base = "/dev/shm" if Path("/dev/shm").is_dir() else None
    with tempfile.TemporaryDirectory(dir=base) as name:
        for number in map(int, os.environ.get("HOSTS", "10 30 100").split()):
            many(Path(name), program, number)
        with Cluster(program, 3) as cluster:
            one_push(Path(name) / "hosts", cluster)
    return 0


if __name__ == "__main__":
    sys.exit(main())
