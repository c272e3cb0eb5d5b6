"""One host's view of the fleet: the keys below ``w/``, as far as its watch has shown them. No I/O.

A view may be stale, but it is always the state of one past revision: a snapshot, and then each event in order.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from gitops_hook.fleet.keys import Decision, Host, Keys, load
from gitops_hook.fleet.messages import KeyValue
from gitops_hook.fleet.rollout import Plan, Rollout, Stored, Turn


class Change(NamedTuple):
    """The meaning of one event: its kind (the part of the key after ``w/``), and the name behind that."""

    kind: str
    name: str


class FleetView:
    """The keys below ``w/`` at one revision, except those of pushes. One thread changes it."""

    def __init__(self, keys: Keys) -> None:
        self._keys = keys
        #: The revision of the newest event, or of the snapshot.
        self.revision = 0
        #: The live hosts by name.
        self.hosts: dict[str, Host] = {}
        #: The hosts that report for the fleet, by role.
        self.roles: dict[str, str] = {}
        self._plans: dict[str, Plan] = {}
        self._passed: dict[str, dict[str, Stored]] = {}
        self._halts: dict[str, Stored] = {}
        self._turns: dict[str, dict[str, dict[str, Turn]]] = {}

    def reset(self, revision: int, pairs: Iterable[KeyValue]) -> None:
        """Replace everything by a snapshot."""
        self.__init__(self._keys)  # type: ignore[misc]
        for pair in pairs:
            self.apply(pair)
        self.revision = revision

    def apply(self, event: KeyValue) -> Change:
        """Apply one event; return what it concerns."""
        self.revision = max(self.revision, event.mod_revision)
        kind, _, name = event.key[len(self._keys.watched) :].partition("/")
        if kind == "host":
            host = load(Host, event.value)
            _set(self.hosts, name, None if event.is_deleted else host)
        elif kind == "role":
            _set(self.roles, name, None if event.is_deleted else event.value.decode("utf-8", "replace"))
        elif kind == "plan":
            _set(self._plans, name, None if event.is_deleted else Plan.load(event.value))
        elif kind == "halt":
            _set(self._halts, name, _stored(event))
        elif kind == "passed":
            name, _, stage = name.rpartition("/")
            _set(self._passed.setdefault(name, {}), stage, _stored(event))
        elif kind == "turn":
            line, _, host_name = name.rpartition("/")
            name, _, stage = line.rpartition("/")
            turn = Turn(host_name, event.value.decode("utf-8", "replace"), event.create_revision)
            _set(self._turns.setdefault(name, {}).setdefault(stage, {}), host_name, None if event.is_deleted else turn)
        return Change(kind, name)

    @property
    def planned(self) -> list[str]:
        """Return the checkouts that have a plan."""
        return sorted(self._plans)

    @property
    def halted(self) -> list[str]:
        """Return the checkouts with a plan and a halt."""
        return sorted(self._plans.keys() & self._halts.keys())

    def rollout(self, checkout: str) -> Rollout | None:
        """Return the roll-out of a checkout, or None if it has no plan."""
        name = checkout.lower()
        plan = self._plans.get(name)
        if not plan:
            return None
        return Rollout(
            name,
            plan,
            {host: facts.stage for host, facts in self.hosts.items()},
            dict(self._passed.get(name, {})),
            {stage: list(turns.values()) for stage, turns in self._turns.get(name, {}).items()},
            self._halts.get(name),
        )


def _set(table: dict, name: str, value: object) -> None:  # type: ignore[type-arg]
    if value is None:
        table.pop(name, None)
    else:
        table[name] = value


def _stored(event: KeyValue) -> Stored | None:
    decision = None if event.is_deleted else load(Decision, event.value)
    return Stored(decision, event.mod_revision) if decision else None
