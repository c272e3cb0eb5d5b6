"""One host reports for the whole fleet: it sends one notice instead of one per host, and the commit statuses.

    a host that can report: is ``w/role/<role>`` absent? --> writes its name there, on its lease
    the host of the role: a key changed --> does the state differ from the last report? --> ``r/<role>/<checkout>``

Rules:

1. A host offers itself for each role that its settings permit: `NOTICES` with ``GITOPS_NOTIFY``, `STATUSES` with
   ``GITOPS_REPORT``. The key disappears with the lease of its host, and the next host takes the role.
2. A report is a comparison with the last one, which is in etcd. So a new holder neither repeats nor forgets one. It is
   recorded only while the role is still the host's own: two hosts that both believe to have it can send a report
   twice, but never lose one.
3. Without etcd no host reports. Each one logs that it works on alone, and its metrics show it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection

from gitops_hook.errors import JournalError
from gitops_hook.fleet.etcd import Etcd
from gitops_hook.fleet.follow import Follower
from gitops_hook.fleet.keys import Keys, Report, dump, load
from gitops_hook.fleet.messages import EtcdError, absent, delete, equal, put
from gitops_hook.fleet.mirror import EVERY, Mirror
from gitops_hook.fleet.overview import FleetState
from gitops_hook.log import log

#: The roles.
NOTICES, STATUSES = "notices", "statuses"
#: Seconds between two looks at the changes.
_TICK = 1.0


class Role:
    """A host's part in one role. Any thread may call any method; each may raise EtcdError."""

    def __init__(self, etcd: Etcd, keys: Keys, follower: Follower, host: str, name: str) -> None:
        self.name = name
        self._etcd = etcd
        self._keys = keys
        self._follower = follower
        self._host = host

    @property
    def is_ours(self) -> bool:
        """Return True while this host has the role, as far as it knows."""
        return self._follower.is_connected and self._holder() == self._host

    def offer(self, lease: int) -> None:
        """Take the role if no host has it."""
        if lease and self._follower.is_connected and not self._holder():
            key = self._keys.role(self.name)
            if self._etcd.transact([absent(key)], [put(key, self._host.encode(), lease)]).succeeded:
                log.info("this host reports for the fleet", role=self.name)

    def reports(self) -> dict[str, Report]:
        """Return the last reports by checkout."""
        prefix = self._keys.report(self.name)
        found = {pair.key[len(prefix) :]: load(Report, pair.value) for pair in self._etcd.read(prefix).pairs}
        return {name: report for name, report in found.items() if report}

    def record(self, checkout: str, report: Report | None) -> None:
        """Record the last report about a checkout, or forget it, if this host still has the role."""
        key = self._keys.report(self.name, checkout)
        write = put(key, dump(report)) if report else delete(key)
        self._etcd.transact([equal(self._keys.role(self.name), self._host.encode())], [write])

    def _holder(self) -> str:
        with self._follower.lock:
            return self._follower.view.roles.get(self.name, "")


class Reporter:
    """The thread that looks at the changes of the fleet while this host has a role."""

    def __init__(self, mirror: Mirror) -> None:
        self._mirror = mirror
        self._duties: list[tuple[Role, Callable[[FleetState, Collection[str]], None]]] = []
        self._current: set[str] = set()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="fleet reporter", daemon=True)

    @property
    def roles(self) -> list[Role]:
        """Return the roles that this host offers itself for."""
        return [role for role, _ in self._duties]

    def add(self, role: Role, examine: Callable[[FleetState, Collection[str]], None]) -> None:
        """Call `examine` with the state and the names that changed (`EVERY`: all), while this host has the role."""
        self._duties.append((role, examine))

    def start(self) -> None:
        """Start the thread, if there is a role."""
        if self._duties:
            self._thread.start()

    def stop(self, timeout: float) -> None:
        """Stop the thread."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join(timeout)

    def _run(self) -> None:
        while not self._stopping.wait(_TICK):
            try:
                self.run_once()
            except (EtcdError, JournalError):
                self._current.clear()  # everything is examined again with the next state
            except Exception:
                log.exception("internal error in the reporter of the fleet")

    def run_once(self) -> None:
        """Examine what changed since the last call, for each role that this host has now."""
        held = [(role, examine) for role, examine in self._duties if role.is_ours]
        state = self._mirror.state() if held else None
        if not state:
            self._current.clear()
            return
        names = self._mirror.take_changed()
        for role, examine in held:
            new = {EVERY} if role.name not in self._current else names
            if new:
                examine(state, new)
        self._current = {role.name for role, _ in held}


def changed_checkouts(state: FleetState, names: Collection[str]) -> list[str]:
    """Return the checkouts that `names` of checkouts and repositories concern."""
    everything = {*state.statuses, *state.rollouts}
    if EVERY in names:
        return sorted(everything)
    return sorted(name for name in everything if name in names or name.partition("@")[0] in names)
