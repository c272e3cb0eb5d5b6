"""The state of a whole fleet at one revision. It is read from etcd; no host and no daemon needs to run."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from gitops_hook.fleet.etcd import Etcd
from gitops_hook.fleet.keys import Have, Host, Keys, Want, load
from gitops_hook.fleet.messages import KeyValue
from gitops_hook.fleet.rollout import Rollout, next_step
from gitops_hook.fleet.view import FleetView


class Member(NamedTuple):
    """A host of the fleet, live or offline. `checkouts` is the number of its statuses."""

    name: str
    host: Host
    is_live: bool
    checkouts: int


class FleetState(NamedTuple):
    """The fleet at one revision, read at `moment` (seconds since the epoch).

    `statuses` are by checkout and host, `wants` by repository, `rollouts` and `tips` by checkout; names are in lower
    case. A tip is the commit that hosts without a roll-out should have. `revisions` are those of the wants.
    """

    revision: int
    moment: float
    members: Sequence[Member]
    wants: Mapping[str, Want]
    rollouts: Mapping[str, Rollout]
    statuses: Mapping[str, Mapping[str, Have]]
    tips: Mapping[str, str]
    revisions: Mapping[str, int]

    def expected(self, checkout: str, host: str) -> str:
        """Return the commit that a host should have; "" if that is not known."""
        rollout, tip = self.rollouts.get(checkout), self.tips.get(checkout, "")
        return rollout.target(rollout.stage_of(host), tip) if rollout else tip

    def step_reason(self, checkout: str, host: str) -> str:
        """Return what a host does next in a roll-out, for people; "" without a plan."""
        rollout = self.rollouts.get(checkout)
        if not rollout or host not in rollout.hosts:
            return ""
        have = self.statuses.get(checkout, {}).get(host, Have())
        step = next_step(rollout, host, self.expected(checkout, host), have)
        return step.reason or step.action.value


def find_tip(statuses: Mapping[str, Have], want: Want, halted: str = "") -> str:
    """Return the commit that the hosts of a checkout should have; "" if that is not known.

    It is the newest pushed commit, if any host has it, tried it or halted it. Otherwise it is the commit that most
    hosts have: a push to another branch replaces the newest one of this branch.
    """
    common = Counter(have.commit for have in statuses.values())
    is_tried = any(have.guid == want.guid for have in statuses.values())
    if want.after and (want.after in common or want.after == halted or is_tried):
        return want.after
    return common.most_common(1)[0][0] if common else ""


class Collection:
    """The keys of a fleet, as far as they were applied, except those that mark deliveries. No I/O, one thread."""

    def __init__(self, keys: Keys) -> None:
        self._keys = keys
        self.view = FleetView(keys)
        self.wants: dict[str, Want] = {}
        self._revisions: dict[str, int] = {}
        self.statuses: dict[str, dict[str, Have]] = {}
        self._remembered: dict[str, Host] = {}

    def apply(self, event: KeyValue) -> str | None:
        """Apply a pair or an event.

        Return the checkout or the repository that it concerns, "" for a change of the live hosts, or None.
        """
        self.view.revision = max(self.view.revision, event.mod_revision)
        if event.key.startswith(self._keys.wants):
            name = event.key[len(self._keys.wants) :]
            self.wants[name], self._revisions[name] = load(Want, event.value) or Want(), event.mod_revision
            return name
        if event.key.startswith(self._keys.watched):
            change = self.view.apply(event)
            return "" if change.kind == "host" else None if change.kind in ("role", "life") else change.name
        if not event.key.startswith(self._keys.statuses):
            return None
        host, checkout = self._keys.status_of(event.key)
        if not checkout:
            self._remember(host, event)
            return None
        if event.is_deleted:
            self.statuses.get(checkout, {}).pop(host, None)
        else:
            # Hosts of a checkout have few commits and outcomes: one string serves all of them.
            have = load(Have, event.value) or Have()
            have = have._replace(commit=sys.intern(have.commit), outcome=sys.intern(have.outcome))
            self.statuses.setdefault(checkout, {})[sys.intern(host)] = have
        return checkout

    def _remember(self, host: str, event: KeyValue) -> None:
        if event.is_deleted:
            self._remembered.pop(host, None)
        else:
            self._remembered[host] = load(Host, event.value) or Host()

    def state(self) -> FleetState:
        """Return the state after the last event."""
        now = time.time()
        kept = Counter(host for by_host in self.statuses.values() for host in by_host)
        live = self.view.hosts
        members = []
        for name in sorted({*live, *self._remembered, *kept}):
            remembered = self._remembered.get(name, Host())
            host = live.get(name, remembered)._replace(seen=now if name in live else remembered.seen)
            members.append(Member(name, host, name in live, kept[name]))
        statuses = {name: dict(by_host) for name, by_host in self.statuses.items() if by_host}
        rollouts = {name: rollout for name in self.view.planned if (rollout := self.view.rollout(name))}
        return FleetState(
            self.view.revision,
            now,
            members,
            dict(self.wants),
            rollouts,
            statuses,
            {name: self._tip(name, by_host, rollouts.get(name)) for name, by_host in statuses.items()},
            dict(self._revisions),
        )

    def _tip(self, checkout: str, statuses: Mapping[str, Have], rollout: Rollout | None) -> str:
        want = self.wants.get(checkout.partition("@")[0], Want())
        return find_tip(statuses, want, rollout.halt.decision.commit if rollout and rollout.halt else "")


def read_collection(etcd: Etcd, keys: Keys) -> Collection:
    """Return the keys of the fleet at one revision. Raises EtcdError."""
    collection = Collection(keys)
    revision = 0
    for prefix in (keys.watched, keys.statuses):
        snapshot = etcd.read(prefix, revision=revision, within=10.0)
        revision = snapshot.revision
        for pair in snapshot.pairs:
            collection.apply(pair)
    collection.view.revision = revision
    return collection


def read_state(etcd: Etcd, keys: Keys) -> FleetState:
    """Return the state of the fleet. Raises EtcdError."""
    return read_collection(etcd, keys).state()
