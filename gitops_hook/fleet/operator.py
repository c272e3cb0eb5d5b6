"""The orders that an operator gives to roll-outs. Each is one transaction, compared with what the operator saw."""

from __future__ import annotations

import time
from collections.abc import Sequence

from gitops_hook.fleet.etcd import Etcd
from gitops_hook.fleet.keys import EVERY_COMMIT, Decision, Keys, Want, dump, load
from gitops_hook.fleet.messages import KeyValue, Operation, absent, delete, delete_prefix, put, unchanged
from gitops_hook.fleet.rollout import NO_PLAN, REST, Plan, Rollout
from gitops_hook.fleet.view import FleetView


class OrderError(ValueError):
    """An order that cannot be given; the message says why."""


class Operator:
    """An operator by name. Every method raises EtcdError, and OrderError."""

    def __init__(self, etcd: Etcd, keys: Keys, name: str) -> None:
        self._etcd = etcd
        self._keys = keys
        self._name = name

    def rollout(self, checkout: str) -> Rollout:
        """Return the roll-out of a checkout as it is now."""
        pairs: list[KeyValue] = []
        revision = 0
        for prefix in self._keys.viewed:
            snapshot = self._etcd.read(prefix, revision=revision)
            revision = snapshot.revision
            pairs += snapshot.pairs
        view = FleetView(self._keys)
        view.reset(revision, pairs)
        rollout = view.rollout(checkout)
        if not rollout:
            raise OrderError(f"{checkout} has no plan: gitops-hook fleet plan {checkout} canary:1 rest")
        return rollout

    def set_plan(self, checkout: str, plan: Plan) -> None:
        """Give a checkout a plan, or replace it. A new plan begins without the decisions of an earlier one."""
        key = self._keys.plan(checkout)
        write = put(key, plan.dump())
        self._etcd.transact([absent(key)], [write, *self._forget(checkout)], [write])

    def delete_plan(self, checkout: str) -> None:
        """End the plan of a checkout: its hosts follow their branches again.

        The key remains without stages, so that no host restores the plan which it remembers.
        """
        self._etcd.transact([], [put(self._keys.plan(checkout), NO_PLAN), *self._forget(checkout)])

    def promote(self, checkout: str, stage: str, commit: str = "") -> str:
        """Decide that a stage has passed a commit, regardless of what its hosts have; return the commit.

        Without `commit` it is the one that the stage should have. A halt that names the commit ends.
        """
        rollout = self.rollout(checkout)
        stages = {entry.label: entry for entry in rollout.plan.stages}
        if stage not in stages:
            raise OrderError(f"the plan of {checkout} has no stage {stage}; it is: {rollout.plan}")
        if stage == REST:
            raise OrderError(f"`{REST}` is the last stage: no stage follows it")
        commit = commit or rollout.target(stages[stage], self._newest_push(checkout))
        if not commit:
            raise OrderError(f"no commit is known for stage {stage}: name it with --commit")
        decision = Decision(commit, self._name, round(time.time(), 3), "promoted")
        writes = [put(self._keys.passed(checkout, stage), dump(decision))]
        if rollout.halt and rollout.halt.decision.commit == commit:
            writes.append(delete(self._keys.halt(checkout)))
        self._apply(checkout, rollout, writes)
        return commit

    def halt(self, checkout: str, reason: str = "") -> None:
        """Stop every commit of a checkout until `resume`. Deploys that have begun go on."""
        self.rollout(checkout)
        decision = Decision(EVERY_COMMIT, self._name, round(time.time(), 3), reason)
        self._etcd.transact([], [put(self._keys.halt(checkout), dump(decision))])

    def resume(self, checkout: str) -> Decision:
        """End a halt and return it. A host whose deploy failed tries again."""
        rollout = self.rollout(checkout)
        if not rollout.halt:
            raise OrderError(f"{checkout} is not halted")
        self._apply(checkout, rollout, [delete(self._keys.halt(checkout))])
        return rollout.halt.decision

    def _apply(self, checkout: str, rollout: Rollout, writes: Sequence[Operation]) -> None:
        seen = rollout.halt.revision if rollout.halt else 0
        if not self._etcd.transact([unchanged(self._keys.halt(checkout), seen)], writes).succeeded:
            raise OrderError("the halt changed in the meantime: look at the status, and decide again")

    def _newest_push(self, checkout: str) -> str:
        pair = self._etcd.get(self._keys.want(checkout.partition("@")[0]))
        want = load(Want, pair.value) if pair else None
        return want.after if want else ""

    def _forget(self, checkout: str) -> Sequence[Operation]:
        return [delete_prefix(self._keys.passed(checkout, "")), delete(self._keys.halt(checkout))]
