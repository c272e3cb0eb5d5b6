"""Roll-outs on real daemons: order, peak, halt, hosts that die or return, a newer commit during a roll-out."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import ClassVar, NamedTuple

import pytest
from etcd_cluster import Cluster
from harness import push, until
from hosts import KEYS, Hosts, command, command_on
from scratch import Upstream, git

from gitops_hook.fleet.keys import Decision, dump
from gitops_hook.fleet.messages import delete, put
from gitops_hook.fleet.rollout import Plan

DEPLOY = f"bash {Path(__file__).with_name('deploy.sh')}"
SITE = "acme/site"


class Deploy(NamedTuple):
    time: float
    host: str
    commit: str
    kind: str


class Stages(Hosts):
    """A fleet in stages: one canary, three web hosts, two others."""

    LABELS: ClassVar[dict[str, str]] = {
        "c1": "stage=canary",
        "w1": "stage=web",
        "w2": "stage=web",
        "w3": "stage=web",
        "r1": "",
        "r2": "",
    }

    def __init__(self, folder: Path, endpoints: list[str], forge: Upstream) -> None:
        self.deploys_file = folder / "deploys"
        self.deploys_file.touch()
        super().__init__(folder, endpoints)
        self.forge = forge

    def start_all(self, plan: str = "canary:1 web:2 rest:1") -> None:
        self.plan(plan)
        for name in self.LABELS:
            checkout = self.checkout(name, self.forge, deploy=DEPLOY)
            git("update-ref", "refs/gitops/deployed", "HEAD", cwd=checkout)
        with ThreadPoolExecutor() as pool:  # a start mostly waits for the interpreter
            list(pool.map(self.start, self.LABELS, self.LABELS.values()))
        self.wait_until_live(*self.LABELS)
        for name in self.LABELS:
            self.daemons[name].wait_for("checkout follows a plan")
            until(lambda name=name: self.status(name).outcome, f"{name} has no status")

    def plan(self, text: str) -> None:
        self.client.transact([], [put(KEYS.plan(SITE), Plan.parse(text.split()).dump())])

    def push(self, files: dict[str, str], receiver: str = "r1") -> str:
        commit = self.forge.commit(files)
        assert self.daemons[receiver].deliver(push(SITE, commit))[0] == 202
        return commit

    def deploys(self, commit: str) -> list[Deploy]:
        lines = [line.split() for line in self.deploys_file.read_text().splitlines()]
        return [Deploy(float(time), host, id, kind) for time, host, id, kind in lines if id == commit]

    def peak(self, commit: str, *names: str) -> int:
        """Return how many of these hosts deployed a commit at the same time."""
        running = most = 0
        for deploy in sorted(self.deploys(commit)):
            if deploy.host in names:
                running += 1 if deploy.kind == "begin" else -1
                most = max(most, running)
        return most

    def remembered(self, name: str) -> str:
        """Return what a host's journal remembers of its roll-outs."""
        return str(self.daemons[name].query("SELECT plan FROM fleet_rollouts"))

    def passed(self, stage: str) -> str:
        value = self.value(KEYS.passed(SITE, stage))
        return value["commit"] if value else ""


@pytest.fixture
def stages(cluster: Cluster, tmp_path: Path, forge: Upstream) -> Iterator[Stages]:
    with Stages(tmp_path, cluster.endpoints, forge) as stages:
        yield stages


def test_a_commit_proceeds_in_stages(stages: Stages) -> None:
    stages.start_all()
    commit = stages.push({"x": "1"})
    stages.wait_for_commit(commit, timeout=40)
    until(lambda: stages.passed("rest") == commit, "the roll-out does not end")
    order = [deploy.host for deploy in stages.deploys(commit) if deploy.kind == "begin"]
    assert order[0] == "c1"
    assert set(order[1:4]) == {"w1", "w2", "w3"}
    assert sorted(order) == sorted(stages.LABELS)  # each host once
    assert stages.peak(commit, "w1", "w2", "w3") == 2
    assert stages.peak(commit, "r1", "r2") == 1
    ends = {deploy.host: deploy.time for deploy in stages.deploys(commit) if deploy.kind == "end"}
    begins = {deploy.host: deploy.time for deploy in stages.deploys(commit) if deploy.kind == "begin"}
    assert max(ends[host] for host in ("w1", "w2", "w3")) < min(begins["r1"], begins["r2"])
    until(lambda: not stages.client.read(KEYS.watched + "turn/").pairs, "turns are left")
    revision = stages.client.read(KEYS.root).revision
    second = stages.push({"x": "2"})
    stages.wait_for_commit(second, timeout=40)
    until(lambda: stages.passed("rest") == second, "the second roll-out does not end")
    assert (stages.client.read(KEYS.root).revision - revision) / len(stages.LABELS) < 6


def test_a_bad_canary_stops_the_fleet_and_a_newer_commit_proceeds(stages: Stages) -> None:
    stages.start_all()
    bad = stages.push({"bad": "x"})
    until(lambda: stages.value(KEYS.halt(SITE)), "the canary does not halt the commit", 40)
    halt = stages.value(KEYS.halt(SITE))
    assert (halt["commit"], halt["by"]) == (bad, "c1")
    assert halt["reason"].startswith("deploy-failed: ")
    good = stages.push({"bad": None, "x": "2"})
    stages.wait_for_commit(good, timeout=40)
    assert {deploy.host for deploy in stages.deploys(bad)} == {"c1"}


def test_a_failure_in_a_stage_stops_the_rest_of_it_until_an_operator_resumes(stages: Stages) -> None:
    stages.start_all("canary:1 web:1 rest:1")
    spoiled = [stages.folder / name / "spoiled" for name in ("w1", "w2", "w3")]
    for file in spoiled:
        file.touch()
    commit = stages.push({"x": "1"})
    until(lambda: stages.value(KEYS.halt(SITE)), "no web host halts the commit", 40)
    assert stages.value(KEYS.halt(SITE))["by"] in ("w1", "w2", "w3")
    assert stages.passed("canary") == commit
    tried = {deploy.host for deploy in stages.deploys(commit)} - {"c1"}
    assert len(tried) == 1, "other hosts of the stage began after the failure"
    for file in spoiled:
        file.unlink()
    stages.client.transact([], [delete(KEYS.halt(SITE))])
    stages.wait_for_commit(commit, timeout=40)


def test_an_operator_halts_everything_and_resumes(stages: Stages) -> None:
    stages.start_all()
    stages.client.transact([], [put(KEYS.halt(SITE), dump(Decision("*", "ada")))])
    commit = stages.push({"x": "1"})
    stages.daemons["c1"].wait_for_run("outcome=held")
    stages.client.transact([], [delete(KEYS.halt(SITE))])
    stages.wait_for_commit(commit, timeout=40)


def test_a_dead_host_is_passed_over_and_catches_up(stages: Stages) -> None:
    stages.start_all()
    stages.daemons["w2"].kill()
    commit = stages.push({"x": "1"})
    stages.wait_for_commit(commit, "c1", "w1", "w3", "r1", "r2", timeout=60)
    assert stages.commit_of("w2") != commit
    stages.daemons["w2"].start()
    stages.wait_for_commit(commit, "w2", timeout=40)


def test_a_host_that_is_killed_during_its_turn_enters_the_line_again(stages: Stages) -> None:
    stages.start_all()
    commit = stages.forge.commit({"x": "1"})
    stages.daemons["r1"].deliver(push(SITE, commit))
    until(lambda: any(deploy.host == "w1" for deploy in stages.deploys(commit)), "w1 has no turn", 40)
    stages.daemons["w1"].kill()
    stages.daemons["w1"].start()
    stages.wait_for_commit(commit, timeout=60)
    until(lambda: stages.passed("rest") == commit, "the roll-out does not end", 40)
    assert stages.status("w1").commit == commit


def test_a_newer_commit_during_a_rollout_replaces_it(stages: Stages) -> None:
    stages.start_all()
    older = stages.push({"x": "1"})
    until(lambda: stages.passed("canary") == older, "the canary does not pass", 40)
    newer = stages.push({"x": "2"})
    stages.wait_for_commit(newer, timeout=60)
    assert stages.peak(newer, "w1", "w2", "w3") <= 2


def test_a_checkout_follows_its_branch_again_when_its_plan_is_gone(stages: Stages) -> None:
    stages.start_all()
    stages.client.transact([], [delete(KEYS.plan(SITE))])
    for name in stages.LABELS:
        stages.daemons[name].wait_for("checkout follows its branch again")
    commit = stages.push({"x": "1"})
    stages.wait_for_commit(commit)
    assert stages.passed("canary") != commit


def test_a_canary_that_has_just_lost_its_lease_misses_no_push(stages: Stages) -> None:
    stages.start_all()
    for number in range(3):
        stages.client.revoke(stages.client.get(KEYS.host("c1")).lease)
        commit = stages.push({"x": str(number)})
        stages.wait_for_commit(commit, timeout=60)
        stages.wait_until_live("c1")


def test_a_wiped_cluster_gets_its_plans_and_halts_back(stages: Stages, cluster: Cluster) -> None:
    stages.start_all()
    for _ in range(500):  # the revisions of the next cluster are lower than those that the hosts have seen
        stages.client.transact([], [put("/junk", b"x")])
    earlier = stages.push({"x": "0"})
    stages.wait_for_commit(earlier)
    until(lambda: stages.passed("rest") == earlier, "the roll-out does not end", 60)
    command(stages, "halt", SITE, "maintenance")
    stages.daemons["w1"].kill()  # it has no part in the restoration, and must not deploy past the plan later
    for name in set(stages.LABELS) - {"w1"}:
        until(lambda name=name: "maintenance" in stages.remembered(name), f"{name} does not remember the halt")
    before = stages.forge.head()
    cluster.wipe()
    until(lambda: stages.value(KEYS.plan(SITE)), "nobody restores the plan", 40)
    assert stages.value(KEYS.plan(SITE))["stages"] == ["canary:1", "web:2", "rest:1"]
    assert stages.value(KEYS.halt(SITE))["reason"] == "maintenance"
    commit = stages.push({"x": "1"})
    stages.daemons["w1"].start()
    stages.daemons["c1"].wait_for_run("outcome=held", timeout=60)
    stages.daemons["w1"].wait_for_run("trigger=sweep", timeout=60)
    assert {stages.commit_of(name) for name in stages.LABELS} == {before}
    command(stages, "resume", SITE)
    stages.wait_for_commit(commit, timeout=60)
    assert stages.peak(commit, "w1", "w2", "w3") <= 2


def test_a_plan_that_was_deleted_after_a_wipe_stays_deleted(stages: Stages, cluster: Cluster) -> None:
    stages.start_all()
    stages.daemons["w1"].kill()
    cluster.wipe()
    until(lambda: stages.value(KEYS.plan(SITE)), "nobody restores the plan", 40)
    command(stages, "plan", SITE, "--delete")
    stages.daemons["w1"].start()
    stages.daemons["w1"].wait_for("checkout follows its branch again", timeout=60)
    assert stages.value(KEYS.plan(SITE)) == {"stages": []}


def test_an_operators_pin_wins_over_a_rollout(stages: Stages) -> None:
    stages.start_all()
    checkout = stages.folder / "w1" / "root" / SITE
    pinned = stages.commit_of("w1")
    git("config", "gitops.pin", pinned, cwd=checkout)
    first = stages.push({"x": "1"}, receiver="w1")
    stages.wait_for_commit(first, *(set(stages.LABELS) - {"w1"}))
    until(lambda: stages.passed("web") == first, "the stage waits for a pinned host", 60)
    until(lambda: stages.status("w1").paused, "the pin is not reported", 60)
    assert stages.commit_of("w1") == pinned
    git("config", "--unset", "gitops.pin", cwd=checkout)
    second = stages.push({"x": "2"}, receiver="w1")
    stages.wait_for_commit(second)


@pytest.mark.parametrize("name", ["c1", "w1"])
def test_a_rollback_until_the_next_push_ends_when_a_newer_commit_is_approved(stages: Stages, name: str) -> None:
    stages.start_all()
    before = stages.forge.head()
    undone = stages.push({"x": "1"})
    stages.wait_for_commit(undone, timeout=60)
    until(lambda: stages.passed("rest") == undone, "the roll-out does not end", 60)
    command_on(stages, name, "rollback", SITE, "--until-push")
    until(lambda: stages.status(name).commit == before and stages.status(name).paused, "the host is not pinned", 40)
    command_on(stages, name, "sync", SITE)  # the remote has no newer commit, so the pin stays
    assert stages.commit_of(name) == before
    deploys = len(stages.deploys(undone))
    newer = stages.push({"x": "2"}, receiver="r1" if name == "w1" else name)
    stages.wait_for_commit(newer, timeout=60)
    until(lambda: stages.passed("rest") == newer, "the roll-out does not end", 60)
    assert len(stages.deploys(undone)) == deploys, "the commit that was rolled back was deployed again"
    until(lambda: not stages.status(name).paused, "the status still shows the pin", 40)
    assert stages.peak(newer, "w1", "w2", "w3") <= 2
