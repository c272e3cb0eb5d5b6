"""The state of a whole fleet at one revision. It is read from etcd; no host and no daemon needs to run."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from gitops_hook.fleet.etcd import Etcd
from gitops_hook.fleet.keys import Have, Host, Keys, Want, load
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

    `statuses` are by checkout and host, `wants` by repository, `rollouts` by checkout; names are in lower case.
    """

    revision: int
    moment: float
    members: Sequence[Member]
    wants: Mapping[str, Want]
    rollouts: Mapping[str, Rollout]
    statuses: Mapping[str, Mapping[str, Have]]

    def expected(self, checkout: str, host: str) -> str:
        """Return the commit that a host should have; "" if that is not known.

        With a plan it is the commit of the host's stage. Without one it is the newest pushed commit, if any host has
        it, else the commit that most hosts have: a push to another branch replaces the newest one of this branch.
        """
        statuses = self.statuses.get(checkout, {})
        common = Counter(have.commit for have in statuses.values()).most_common(1)
        want = self.wants.get(checkout.partition("@")[0])
        tip = want.after if want and any(have.commit == want.after for have in statuses.values()) else ""
        tip = tip or (common[0][0] if common else "")
        rollout = self.rollouts.get(checkout)
        return rollout.target(rollout.stage_of(host), tip) if rollout else tip

    def step_reason(self, checkout: str, host: str) -> str:
        """Return what a host does next in a roll-out, for people; "" without a plan."""
        rollout = self.rollouts.get(checkout)
        if not rollout or host not in rollout.hosts:
            return ""
        have = self.statuses.get(checkout, {}).get(host, Have())
        step = next_step(rollout, host, self.expected(checkout, host), have)
        return step.reason or step.action.value


def read_state(etcd: Etcd, keys: Keys) -> FleetState:
    """Return the state of the fleet. Raises EtcdError."""
    snapshot = etcd.read(keys.root, within=10.0)
    view = FleetView(keys)
    wants: dict[str, Want] = {}
    statuses: dict[str, dict[str, Have]] = {}
    remembered: dict[str, Host] = {}
    for pair in snapshot.pairs:
        if pair.key.startswith(keys.wants):
            wants[pair.key[len(keys.wants) :]] = load(Want, pair.value) or Want()
        elif pair.key.startswith(keys.watched):
            view.apply(pair)
        elif pair.key.startswith(keys.statuses):
            host, checkout = keys.status_of(pair.key)
            if checkout:
                statuses.setdefault(checkout, {})[host] = load(Have, pair.value) or Have()
            else:
                remembered[host] = load(Host, pair.value) or Host()
    kept = Counter(host for by_host in statuses.values() for host in by_host)
    members = [
        Member(name, view.hosts.get(name) or remembered.get(name) or Host(), name in view.hosts, kept[name])
        for name in sorted({*view.hosts, *remembered, *kept})
    ]
    members = [member._replace(host=member.host._replace(seen=_seen(member, remembered))) for member in members]
    rollouts = {name: rollout for name in view.planned if (rollout := view.rollout(name))}
    return FleetState(snapshot.revision, time.time(), members, wants, rollouts, statuses)


def _seen(member: Member, remembered: Mapping[str, Host]) -> float:
    return time.time() if member.is_live else remembered.get(member.name, Host()).seen
