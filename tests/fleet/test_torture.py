"""Faults at random moments: no acknowledged push is lost, no limit is exceeded, no rejected commit proceeds.

ROUNDS is the number of rounds for each version of etcd, SEED repeats a sequence. Each round begins a fault, pushes to a
free and to a planned repository meanwhile, ends the fault, and waits until every host has the newest commits. A fifth as
many rounds follow with etcd's access control.
"""

from __future__ import annotations

import os
import random
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from etcd_cluster import Cluster, enable_authentication
from harness import push, until
from hosts import KEYS, Hosts
from scratch import Upstream, git
from test_deployer import DEPLOY, Deploy

from gitops_hook.fleet.etcd import Credentials, Etcd
from gitops_hook.fleet.messages import EtcdError, put
from gitops_hook.fleet.rollout import Plan

ROUNDS = int(os.environ.get("ROUNDS", "3"))
SEED = int(os.environ.get("SEED", "0")) or random.randrange(10**6)
#: The faults to try, by name; all of them by default.
FAULTS = os.environ.get("FAULTS", "").split()
FREE, PLANNED = "acme/free", "acme/site"
LABELS = {"c1": "stage=canary", "r1": "", "r2": "", "r3": "", "r4": ""}
AT_ONCE = {"canary": 1, "rest": 2}


class Torture:
    def __init__(self, cluster: Cluster, hosts: Hosts, folder: Path, chance: random.Random) -> None:
        self.cluster = cluster
        self.hosts = hosts
        self.chance = chance
        self.forges = {name: Upstream(folder / "forge", name) for name in (FREE, PLANNED)}
        self.password = folder / "password"
        self.deploys_file = folder / "deploys"
        self.deploys_file.touch()
        self.newest: dict[str, str] = {}
        self.bad: set[str] = set()
        self.acknowledged = 0
        self.counts: Counter[str] = Counter()
        self.unlimited: list[tuple[float, float]] = []  # times in which a host had lost its lease during a deploy
        self.number = 0

    def start(self) -> None:
        hosts = self.hosts
        hosts.client.transact([], [put(KEYS.plan(PLANNED), Plan.parse(["canary:1", "rest:2"]).dump())], within=30)
        for name, labels in LABELS.items():
            for forge in self.forges.values():
                git("update-ref", "refs/gitops/deployed", "HEAD", cwd=hosts.checkout(name, forge, deploy=DEPLOY))
            hosts.start(name, labels)
        hosts.wait_until_live(*LABELS)
        for daemon in hosts.daemons.values():
            daemon.wait_for("checkout follows a plan")

    def push(self, name: str, receiver: str, *, is_bad: bool = False) -> None:
        """Push a commit; the receiver must acknowledge it, in every state of etcd."""
        self.number += 1
        forge = self.forges[name]
        spoiled = (forge.work / "bad").exists()
        change: dict[str, str | None] = {"bad": "x"} if is_bad else {"bad": None} if spoiled else {}
        commit = forge.commit({"x": str(self.number), **change})
        if is_bad:
            self.bad.add(commit)
        status, answer = self.hosts.daemons[receiver].deliver(push(name, commit), guid=f"guid-{self.number}")
        assert status == 202, answer
        self.counts[answer["fleet"]] += 1
        self.acknowledged += 1
        self.newest[name] = commit

    def receiver(self, *but: str) -> str:
        return self.chance.choice([name for name in LABELS if name not in but])

    def push_both(self, *but: str) -> None:
        self.push(FREE, self.receiver(*but))
        self.push(PLANNED, self.receiver(*but))

    # -- faults -------------------------------------------------------------------------------------------------------

    def leader_dies(self) -> None:
        leader = self.cluster.leader()
        self.push_both()
        leader.kill()
        self.push_both()
        self.pause()
        leader.start()

    def member_dies(self) -> None:
        member = self.chance.choice(self.cluster.members)
        member.kill()
        self.push_both()
        self.pause()
        member.start()

    def member_is_stopped(self) -> None:
        member = self.chance.choice(self.cluster.members)
        member.pause()
        self.push_both()
        self.pause()
        member.resume()

    def quorum_is_lost(self) -> None:
        members = self.chance.sample(self.cluster.members, 2)
        for member in members:
            member.kill()
        self.push_both()
        for member in members:
            member.start()

    def receiver_dies_before_it_forwards(self) -> None:
        receiver = self.receiver()
        for member in self.cluster.members:
            member.pause()
        self.push(FREE, receiver)
        self.push(PLANNED, receiver)
        self.hosts.daemons[receiver].kill()
        for member in self.cluster.members:
            member.resume()
        self.hosts.daemons[receiver].start()

    def host_dies(self) -> None:
        victim = self.receiver()
        self.push_both(victim)
        self.pause()
        self.hosts.daemons[victim].kill()
        self.push_both(victim)
        self.hosts.daemons[victim].start()

    def host_is_stopped(self) -> None:
        victim = self.receiver()
        daemon = self.hosts.daemons[victim]
        os.kill(daemon.process.pid, 19)
        self.push_both(victim)
        self.pause()
        os.kill(daemon.process.pid, 18)

    def host_is_away_during_a_compaction(self) -> None:
        victim = self.receiver()
        self.hosts.daemons[victim].kill()
        for _ in range(3):
            self.push_both(victim)
        client = self.hosts.client
        client.call("/v3/kv/compaction", {"revision": str(client.read(KEYS.root, within=20).revision)}, within=20)
        self.hosts.daemons[victim].start()

    def lease_is_lost(self) -> None:
        begin = time.time()
        self.push_both()
        self.pause()
        for pair in self.hosts.client.read(KEYS.hosts, within=20).pairs:
            self.hosts.client.revoke(pair.lease)
        self.unlimited.append((begin, time.time() + 10))

    def tokens_expire(self) -> None:
        """Change the password, which ends every token at once; the file of the hosts has the new one a moment earlier."""
        self.number += 1
        self.password.write_text(f"host:secret-{self.number}")
        change = {"name": "host", "password": f"secret-{self.number}"}
        self.hosts.client.call("/v3/auth/user/changepw", change, within=20)
        self.push_both()

    def watches_are_denied(self) -> None:
        membership = {"name": "host", "role": "host"}
        self.hosts.client.call("/v3/auth/user/revoke", membership, within=20)
        member = self.chance.choice(self.cluster.members)
        member.kill()  # watches outlive the permission; those of this member must be made again
        member.start()
        self.push_both()
        self.pause()
        self.hosts.client.call("/v3/auth/user/grant", {"user": "host", "role": "host"}, within=20)

    def cluster_is_wiped(self) -> None:
        self.push_both()
        self.cluster.wipe()
        self.push_both()

    def cluster_with_users_is_wiped(self) -> None:
        """Replace the cluster by one without users, and enable the access control again."""
        self.cluster_is_wiped()
        self.password.write_text("host:secret")
        client = Etcd(self.cluster.endpoints)
        enable_authentication(client, KEYS.root)
        client.close()

    def canary_fails(self) -> None:
        self.push(PLANNED, self.receiver(), is_bad=True)
        bad = self.newest[PLANNED]
        until(lambda: bad in str(self.hosts.value(KEYS.halt(PLANNED))), "the canary does not halt the commit", 60)
        self.push_both()

    def pause(self) -> None:
        time.sleep(self.chance.random())

    # -- rounds -------------------------------------------------------------------------------------------------------

    def round(self, fault: Callable[[], None]) -> None:
        self.counts[fault.__name__] += 1
        fault()
        for repository, commit in self.newest.items():
            self.hosts.wait_for_commit(commit, repository=repository, timeout=120)

    def check_deploys(self) -> None:
        deploys = [line.split() for line in self.deploys_file.read_text().splitlines()]
        planned = {*git("log", "--format=%H", "--all", cwd=self.forges[PLANNED].work).split()}
        entries = sorted(
            Deploy(float(time), host, commit, kind) for time, host, commit, kind in deploys if commit in planned
        )
        running: dict[str, str] = {}
        for entry in entries:
            if entry.kind == "begin":
                running[entry.host] = entry.commit  # a deploy of a killed host has no end
                stage = "canary" if entry.host == "c1" else "rest"
                assert entry.commit not in self.bad or stage == "canary", entry
                if self.is_limited(entry.time):
                    others = [host for host in running if ("canary" if host == "c1" else "rest") == stage]
                    assert len(others) <= AT_ONCE[stage], (entry, running)
            elif running.get(entry.host) == entry.commit:
                del running[entry.host]

    def is_limited(self, moment: float) -> bool:
        return not any(begin <= moment <= end for begin, end in self.unlimited)

    # -- all rounds ---------------------------------------------------------------------------------------------------

    def run(self, faults: Sequence[Callable[[], None]], rounds: int) -> str:
        """Go through the faults in turn, or by chance if there are more than rounds; return a report."""
        faults = [fault for fault in faults if not FAULTS or fault.__name__ in FAULTS]
        begin = time.monotonic()
        for number in range(rounds if faults else 0):
            fault = faults[number % len(faults)] if len(faults) <= rounds else self.chance.choice(faults)
            try:
                self.round(fault)
            except (AssertionError, EtcdError) as error:
                log = "\n".join(f"-- {name}\n{daemon.log[-4000:]}" for name, daemon in self.hosts.daemons.items())
                log += "\n".join(f"-- {member.name}\n{member.log()[-2000:]}" for member in self.cluster.members)
                raise AssertionError(f"round {number} of seed {SEED}, {fault.__name__}: {error}\n{log}") from error
        self.check_deploys()
        return (
            f"{rounds} rounds of seed {SEED} in {time.monotonic() - begin:.0f} s: {self.acknowledged} pushes acknowledged,"
            f" 0 lost, {len(self.bad)} commits rejected, 0 proceeded; {dict(self.counts)}"
        )


@pytest.mark.slow
@pytest.mark.timeout(0)  # 200 rounds take half an hour
def test_torture(trio: Cluster, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Hosts(tmp_path, trio.endpoints) as hosts:
        torture = Torture(trio, hosts, tmp_path, random.Random(SEED))
        torture.start()
        faults = [
            torture.leader_dies,
            torture.member_dies,
            torture.member_is_stopped,
            torture.quorum_is_lost,
            torture.receiver_dies_before_it_forwards,
            torture.host_dies,
            torture.host_is_stopped,
            torture.host_is_away_during_a_compaction,
            torture.lease_is_lost,
            torture.canary_fails,
            torture.cluster_is_wiped,
        ]
        report = torture.run(faults, ROUNDS)
        with capsys.disabled():
            print(f"\n  {report}")


@pytest.mark.slow
@pytest.mark.timeout(0)  # 200 rounds take half an hour
def test_torture_with_access_control(program: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "password").write_text("host:secret")
    # Tokens live for two seconds without a request. A password is hashed quickly, since the hosts share this machine.
    with Cluster(program, 3, ("--auth-token-ttl=2", "--bcrypt-cost=4")) as cluster:
        client = Etcd(cluster.endpoints)
        enable_authentication(client, KEYS.root)
        client.close()
        root = Credentials("root", "secret")
        settings = {"GITOPS_ETCD_PASSWORD_FILE": str(tmp_path / "password")}
        with Hosts(tmp_path, cluster.endpoints, credentials=lambda: root, **settings) as hosts:
            torture = Torture(cluster, hosts, tmp_path, random.Random(SEED))
            torture.start()
            faults = [
                torture.tokens_expire,
                torture.watches_are_denied,
                torture.leader_dies,
                torture.host_dies,
                torture.cluster_with_users_is_wiped,
            ]
            report = torture.run(faults, max(1, ROUNDS // 5))
        with capsys.disabled():
            print(f"\n  access control: {report}")
