"""Roll-outs under any order of events: hosts with stale views, deaths, returns, lost leases, bad and newer commits.

The hosts run the real decisions and transactions; only time, git and etcd are models. A deploy of a commit that begins
with `bad` fails on every host.
"""

from __future__ import annotations

from collections import Counter

import hypothesis.strategies as st
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from model_etcd import ModelEtcd

from gitops_hook.fleet.keys import Decision, Have, Host, Keys, dump, load
from gitops_hook.fleet.messages import put
from gitops_hook.fleet.rollout import (
    Action,
    Plan,
    Transaction,
    end_turn,
    leave_turn,
    next_step,
    pass_stage,
    passing,
    take_turn,
)
from gitops_hook.fleet.view import FleetView

KEYS = Keys("test")
CHECKOUT = "acme/site"
PLAN = Plan.parse(["canary:1", "web:2,wait=10s", "rest:3"])
LABELS = {"c1": "canary", "c2": "canary", **{f"w{n}": "web" for n in range(4)}, **{f"r{n}": "" for n in range(5)}}


class Actor:
    """One host. `deploying` is the commit of a deploy that has begun."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.have = Have()
        self.lease = 0
        self.deploying = ""
        self.is_fenced = False  # its lease ended during a deploy, so its place in the line is gone
        self.view = FleetView(KEYS)
        self.seen = 0

    @property
    def is_alive(self) -> bool:
        return self.lease > 0


class RolloutMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.etcd = ModelEtcd()
        self.now = 100.0
        self.leases = 0
        self.tip = ""
        self.pushes = 0
        self.approved: dict[str, set[str]] = {stage.label: set() for stage in PLAN.stages}
        self.starts_after_halt: Counter[str] = Counter()
        self.was_fenced = False
        self.hosts = {name: Actor(name) for name in LABELS}
        self.etcd.apply(Transaction([], [put(KEYS.plan(CHECKOUT), PLAN.dump())]))
        for actor in self.hosts.values():
            self._connect(actor)
            self._write_status(actor)
        self._push("good")

    # -- the world ----------------------------------------------------------------------------------------------------

    def _push(self, kind: str) -> None:
        self.pushes += 1
        self.tip = f"{kind}-{self.pushes}"

    def _connect(self, actor: Actor) -> None:
        self.leases += 1
        actor.lease = self.leases
        host = dump(Host({"stage": LABELS[actor.name]}))
        self.etcd.apply(Transaction([], [put(KEYS.host(actor.name), host, actor.lease)]))
        actor.view.reset(self.etcd.revision, self.etcd.below(KEYS.watched))
        actor.seen = len(self.etcd.history)

    def _write_status(self, actor: Actor) -> None:
        self.etcd.apply(Transaction([], [put(KEYS.have(actor.name, CHECKOUT), dump(actor.have))]))

    def _deliver(self, actor: Actor, number: int) -> None:
        events = self.etcd.history[actor.seen : actor.seen + number]
        # A watch delivers the events of one revision together.
        for event in self.etcd.history[actor.seen + len(events) :]:
            if not events or event.mod_revision != events[-1].mod_revision:
                break
            events.append(event)
        for event in events:
            actor.view.apply(event)
        actor.seen += len(events)

    def _act(self, actor: Actor) -> None:
        rollout = actor.view.rollout(CHECKOUT)
        assert rollout
        step = next_step(rollout, actor.name, self.tip, actor.have)
        if step.action is Action.QUEUE:
            self.etcd.apply(take_turn(KEYS, rollout, actor.name, step.commit, actor.lease))
        elif step.action is Action.DEPLOY:
            self._begin(actor, step.commit)
        elif step.action is not Action.WAIT:
            leave = leave_turn(KEYS, rollout, actor.name)
            if leave.then:
                self.etcd.apply(leave)

    def _begin(self, actor: Actor, commit: str) -> None:
        stage = PLAN.stages[PLAN.position(LABELS[actor.name])]
        number = PLAN.stages.index(stage)
        if number:
            assert commit in self.approved[PLAN.stages[number - 1].label], "a deploy without approval"
            assert not commit.startswith("bad"), "a bad commit got past the canary"
        halt = self.etcd.keys.get(KEYS.halt(CHECKOUT))
        decision = load(Decision, halt.value) if halt else None
        if decision and decision.commit == commit:
            self.starts_after_halt[commit] += 1
        actor.deploying = commit

    def _finish(self, actor: Actor) -> None:
        commit, actor.deploying = actor.deploying, ""
        is_bad = commit.startswith("bad")
        outcome = "deploy-failed" if is_bad else "updated" if commit == self.tip else "held"
        actor.have = Have(commit, outcome, ended=self.now)
        actor.is_fenced = False
        halt = Decision(commit, actor.name, self.now, outcome) if is_bad else None
        while True:
            rollout = actor.view.rollout(CHECKOUT)
            assert rollout
            if self.etcd.apply(end_turn(KEYS, rollout, actor.name, actor.have, halt)):
                stored = self.etcd.keys.get(KEYS.halt(CHECKOUT))
                assert not is_bad or (stored and commit in stored.value.decode()), "a failure that halts nothing"
                return
            self._deliver(actor, 10**6)

    def _evaluate(self, actor: Actor) -> None:
        rollout = actor.view.rollout(CHECKOUT)
        assert rollout
        if actor.name not in rollout.hosts:
            return
        stage = rollout.stage_of(actor.name)
        statuses = {}
        for pair in self.etcd.below(KEYS.statuses):
            host, _ = KEYS.status_of(pair.key)
            have = load(Have, pair.value)
            assert have
            statuses[host] = have
        found = passing(rollout, stage, statuses)
        decision = Decision(found.commit, actor.name, self.now)
        if found.commit and found.due <= self.now and self.etcd.apply(pass_stage(KEYS, rollout, stage, decision)):
            self.approved[stage.label].add(found.commit)
            for host in actor.view.hosts:
                if PLAN.stages[PLAN.position(LABELS[host])] == stage:
                    assert statuses[host].commit == found.commit, (
                        "a stage passed before all of its hosts had the commit"
                    )

    # -- rules --------------------------------------------------------------------------------------------------------

    @rule(kind=st.sampled_from(["good", "good", "bad"]))
    def push(self, kind: str) -> None:
        self._push(kind)

    @rule(name=st.sampled_from(sorted(LABELS)), number=st.integers(1, 20))
    def deliver(self, name: str, number: int) -> None:
        if self.hosts[name].is_alive:
            self._deliver(self.hosts[name], number)

    @rule(name=st.sampled_from(sorted(LABELS)))
    def act(self, name: str) -> None:
        actor = self.hosts[name]
        if actor.is_alive and not actor.deploying:
            self._act(actor)

    @rule(name=st.sampled_from(sorted(LABELS)))
    def finish(self, name: str) -> None:
        actor = self.hosts[name]
        if actor.is_alive and actor.deploying:
            self._finish(actor)

    @rule(name=st.sampled_from(sorted(LABELS)))
    def evaluate(self, name: str) -> None:
        if self.hosts[name].is_alive:
            self._evaluate(self.hosts[name])

    @rule(seconds=st.sampled_from([1, 30]))
    def wait(self, seconds: int) -> None:
        self.now += seconds

    @rule(number=st.integers(1, 12))
    def let_everyone_work(self, number: int) -> None:
        for _ in range(number):
            self._round()

    @rule(name=st.sampled_from(sorted(LABELS)))
    def die(self, name: str) -> None:
        actor = self.hosts[name]
        if actor.is_alive:
            actor.deploying = ""
            self.etcd.expire(actor.lease)
            actor.lease = 0

    @rule(name=st.sampled_from(sorted(LABELS)))
    def come_back(self, name: str) -> None:
        if not self.hosts[name].is_alive:
            self._connect(self.hosts[name])

    @precondition(lambda self: any(actor.deploying for actor in self.hosts.values()))
    @rule(data=st.data())
    def lose_the_lease_during_a_deploy(self, data: st.DataObject) -> None:
        names = sorted(name for name, actor in self.hosts.items() if actor.deploying)
        actor = self.hosts[data.draw(st.sampled_from(names))]
        actor.is_fenced = self.was_fenced = True
        self.etcd.expire(actor.lease)
        self._connect(actor)

    @rule()
    def resume(self) -> None:
        self.starts_after_halt.clear()
        halt = KEYS.halt(CHECKOUT)
        if halt in self.etcd.keys:
            self.etcd.revision += 1
            self.etcd._record(halt, None)

    # -- what holds always --------------------------------------------------------------------------------------------

    @invariant()
    def no_stage_deploys_on_more_hosts_than_planned(self) -> None:
        running = Counter(
            PLAN.position(LABELS[actor.name])
            for actor in self.hosts.values()
            if actor.deploying and not actor.is_fenced
        )
        assert all(count <= PLAN.stages[number].limit(0) for number, count in running.items())

    @invariant()
    def no_canary_begins_a_commit_that_another_one_halted(self) -> None:
        assert self.was_fenced or not self.starts_after_halt

    def _round(self) -> None:
        for actor in self.hosts.values():
            if actor.is_alive:
                self._deliver(actor, 10**6)
                if actor.deploying:
                    self._finish(actor)
                else:
                    self._act(actor)
                self._evaluate(actor)

    def teardown(self) -> None:
        """When every host lives and nothing is pushed any more, all have the newest commit, or the canary stopped it."""
        for actor in self.hosts.values():
            if not actor.is_alive:
                self._connect(actor)
        for _ in range(60):
            self.now += 1
            self._round()
        for name, actor in self.hosts.items():
            if not self.tip.startswith("bad"):
                assert actor.have.commit == self.tip, name
            elif LABELS[name] != "canary":
                assert not actor.have.commit.startswith("bad"), name
        super().teardown()


TestRollout = RolloutMachine.TestCase
TestRollout.settings = settings(max_examples=settings.default.max_examples // 5, stateful_step_count=40)
