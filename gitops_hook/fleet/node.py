"""One host as a member of the fleet: its lease, and the threads that forward, follow and report.

The daemon makes one `FleetNode` if ``GITOPS_FLEET`` is set, and imports this package only then.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress

from gitops_hook import __version__
from gitops_hook.config import Settings
from gitops_hook.errors import JournalError
from gitops_hook.fleet.commits import FleetCommits
from gitops_hook.fleet.deployer import Deployer
from gitops_hook.fleet.etcd import Etcd
from gitops_hook.fleet.follow import Follower, Listener
from gitops_hook.fleet.grid import Grid
from gitops_hook.fleet.keys import Host, Keys, Want, dump
from gitops_hook.fleet.messages import EtcdError, Rejected, put
from gitops_hook.fleet.mirror import EVERY, Mirror
from gitops_hook.fleet.notices import FleetNotices
from gitops_hook.fleet.outbox import Forwarder
from gitops_hook.fleet.overview import FleetState
from gitops_hook.fleet.reporter import NOTICES, STATUSES, Reporter, Role, changed_checkouts
from gitops_hook.fleet.statuses import Statuses
from gitops_hook.journal.fleet import FleetJournal
from gitops_hook.journal.writer import Journal
from gitops_hook.log import log
from gitops_hook.model import Claim, CommitStatus, Run
from gitops_hook.names import may_clone
from gitops_hook.sync.checkouts import Checkout, Checkouts
from gitops_hook.sync.runner import Task
from gitops_hook.sync.settings import follows

#: Seconds that the host's key outlives its last sign of life, and seconds between two signs.
LEASE = 20
_KEEP_ALIVE = 5.0
#: Seconds between two writes of the last sign of life, which remains when the lease has ended.
_SEEN = 300.0
#: Seconds between two looks at what is to be written.
_TICK = 1.0


class FleetNode(Listener):
    """The daemon's host in its fleet: an observer of runs. Call `prepare` before any run, and `start` after that."""

    def __init__(self, settings: Settings, journal: Journal, checkouts: Checkouts, etcd: Etcd) -> None:
        self._keys = Keys(settings.fleet)
        self._name = settings.fleet_host
        self._labels = settings.fleet_labels
        self._clone = settings.clone
        self._checkouts = checkouts
        self._etcd = etcd
        self._notify: Callable[[str], None] = lambda checkout: None
        self._sweep: Callable[[], None] = lambda: None
        self._fleet_journal = fleet_journal = FleetJournal(journal)
        self.forwarder = Forwarder(etcd, self._keys, fleet_journal, self._name)
        self.follower = Follower(etcd, self._keys, fleet_journal, self)
        self.statuses = Statuses(
            etcd, self._keys, self._name, checkouts=checkouts, journal=journal, revisions=self.follower.revisions
        )
        self.deployer = Deployer(
            etcd,
            self._keys,
            self._name,
            follower=self.follower,
            journal=fleet_journal,
            checkouts=checkouts,
            statuses=self.statuses,
            label=Host(settings.fleet_labels).stage,
        )
        self.deployer.wake = self._wake_up
        self.mirror = Mirror(etcd, self._keys)
        self.grid = Grid(settings.fleet, self.mirror.state)
        self._reporter = Reporter(self.mirror)
        self._notices = self._role(NOTICES)
        self.notices = FleetNotices(self._notices, self.mirror, journal.log_path("notice"))
        self._since = time.time()
        # The lease and its deadline belong to the member's thread.
        self._lease = 0
        self._next_sign = 0.0
        self._next_seen = 0.0
        self._needs_resync = threading.Event()
        self._wake = threading.Event()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="fleet member", daemon=True)

    def _role(self, name: str) -> Role:
        return Role(self._etcd, self._keys, self.follower, self._name, name)

    def send_notices(self, examine: Callable[[str], None]) -> None:
        """Offer this host for the notices of the fleet. Call it before `start`, as the next method.

        `examine` is called with each checkout that changed, or with "" for all.
        """

        def examine_all(state: FleetState, names: Collection[str]) -> None:
            for name in [EVERY] if EVERY in names else changed_checkouts(state, names):
                examine(name)

        self._reporter.add(self._notices, examine_all)

    def send_statuses(self, save: Callable[[CommitStatus], None]) -> None:
        """Offer this host for the commit statuses of the fleet; `save` stores one and has it sent."""
        role = self._role(STATUSES)
        self._reporter.add(role, FleetCommits(role, save).examine)

    def prepare(self) -> None:
        """Undo what an earlier process left. Call it before any run starts. Raises JournalError."""
        self.deployer.withdraw_permissions()

    def start(self, notify: Callable[[str], None], sweep: Callable[[], None]) -> None:
        """Start the threads. etcd need not be reachable.

        `notify` runs what the journal has pending for a checkout; `sweep` syncs every checkout once.
        """
        self._notify, self._sweep = notify, sweep
        self.deployer.notify = notify
        self.forwarder.start()
        self.follower.start()
        self._thread.start()
        self._reporter.start()

    def stop(self, timeout: float) -> None:
        """Write what is left, give up the lease, and end the threads. Call it after the last run."""
        if not self.follower.is_connected:
            self._etcd.close()  # nothing can be written: end the attempts of the threads
        self._stopping.set()
        self._wake.set()
        self.follower.stop(timeout)
        self._reporter.stop(timeout)
        self.mirror.stop(timeout)
        self.forwarder.stop(timeout)
        self._thread.join(timeout)
        self._etcd.close()

    def metrics(self) -> dict[str, dict[str, float]]:
        """Return the fleet's metrics: values by label, "" without one. Their number does not grow with the fleet."""
        with self.follower.lock:
            view = self.follower.view
            hosts, planned, halted = len(view.hosts), len(view.planned), len(view.halted)
        found = {"connected": {"": float(self.follower.is_connected)}}
        if self.follower.is_connected:
            found |= {"hosts": {"": hosts}, "rollouts": {"": planned}, "halted": {"": halted}}
        with suppress(JournalError):
            found["outbox"] = {"": self._fleet_journal.outbox_size()}
        roles = {role.name: float(role.is_ours) for role in self._reporter.roles}
        if any(roles.values()):
            found["checkouts"] = {state: float(number) for state, number in self.grid.counts().items()}
        return {**found, "role": roles}

    # -- what the follower shows --------------------------------------------------------------------------------------

    def wants(self, want: Want, *, is_live: bool) -> Sequence[str]:
        """Return the checkouts whose tracked branch a push may have moved, or the repository if it is to be cloned.

        A new name concerns every checkout; a run that shows it does not move a checkout that a roll-out holds.
        """
        if want.renamed:
            return [checkout.repository for checkout in self._checkouts.find_all(want.repository, want.path)]
        checkouts = self._checkouts.find_all(want.repository)
        if not checkouts:
            is_foreign = self._checkouts.find(want.repository) is not None
            is_new = not is_foreign and may_clone(want.repository, self._clone)
            return [want.repository] if is_new and not self.deployer.ignores_pushes(want.repository) else []
        moved = [checkout for checkout in checkouts if not is_live or _may_have_moved(checkout, want)]
        return [checkout.repository for checkout in moved if not self.deployer.ignores_pushes(checkout.repository)]

    def notify(self, checkout: str) -> None:
        """Run what is pending."""
        self._notify(checkout)

    def restore(self) -> None:
        """Restore the plans that this host remembers."""
        self.deployer.restore_plans()

    def connected(self, *, is_new_life: bool) -> None:
        """Compare the stored statuses; after a wipe, also sync every checkout."""
        self._needs_resync.set()
        self.deployer.changed({""})
        if is_new_life:
            log.warning("the fleet's etcd was wiped; every checkout is synced once")
            self._sweep()

    def changed(self, checkouts: set[str]) -> None:
        """Schedule the evaluation of the roll-outs of these checkouts."""
        self.deployer.changed(checkouts)

    # -- runs ---------------------------------------------------------------------------------------------------------

    def began(self, claim: Claim, task: Task) -> None:
        """Observe the start of a run."""
        self.statuses.began(claim, task)

    def ended(self, run: Run, claim: Claim, task: Task) -> None:
        """Observe the end of a run."""
        self.statuses.ended(run, claim, task)
        self.deployer.ended(run, claim, self.statuses.have(run.repository))

    # -- the member's thread ------------------------------------------------------------------------------------------

    def _run(self) -> None:
        while not self._stopping.is_set():
            self._attempt(self._tick)
            self._wake.wait(_TICK)
            self._wake.clear()
        self._attempt(self.statuses.flush)
        if self._lease:
            self._attempt(self._note_seen)
            self._attempt(lambda: self._etcd.revoke(self._lease, within=1.0))

    def _attempt(self, step: Callable[[], object]) -> None:
        try:
            step()
        except (EtcdError, JournalError):
            pass  # the follower and the journal report it; the next tick tries again
        except Exception:
            log.exception("the fleet's member met a fault of its own")

    def _tick(self) -> None:
        self._show_life()
        if self._needs_resync.is_set():
            self.statuses.resync()
            self._needs_resync.clear()
        self.statuses.flush()
        self.deployer.tick(self._lease)
        for role in self._reporter.roles:
            role.offer(self._lease)

    def _note_seen(self) -> None:
        """Keep the labels and the time, for when this host is offline."""
        host = self._host()._replace(seen=round(time.time(), 3))
        self._etcd.transact([], [put(self._keys.last_seen(self._name), dump(host))], within=1.0)
        self._next_seen = time.monotonic() + _SEEN

    def _host(self) -> Host:
        return Host(self._labels, __version__, round(self._since, 3))

    def _wake_up(self) -> None:
        self._wake.set()

    def _show_life(self) -> None:
        """Renew the lease, or begin a new one; the host's key exists while it does."""
        if time.monotonic() < self._next_sign:
            return
        if self._lease and not self._etcd.keep_alive(self._lease):
            self._lease = 0
        if not self._lease:
            lease = self._etcd.grant(LEASE)
            try:
                self._etcd.transact([], [put(self._keys.host(self._name), dump(self._host()), lease)])
            except Rejected as error:
                log.error("this host cannot join the fleet", reason=error)
                raise
            self._lease = lease
        self._next_sign = time.monotonic() + _KEEP_ALIVE
        if time.monotonic() >= self._next_seen:
            self._note_seen()
        # A member that is paused keeps its connections. If requests have moved on to another one, so must the watch.
        self.follower.reconnect(self._etcd.preferred)


def _may_have_moved(checkout: Checkout, want: Want) -> bool:
    return not want.ref or follows(checkout.settings, want.default_branch, want.ref)
