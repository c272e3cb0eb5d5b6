"""From the journal's outbox to etcd: one thread forwards the pushes that this host accepted.

    accept (a receiver's thread) --> outbox row, on the disk --> transaction in etcd --> row removed
                                              ^                        |
                                              +---- not answered ------+  (tried again, for ever)

Rules:

1. A push is answered after the local commit. The receiver then waits a moment for the fleet, and reports whether the
   push is ``committed`` there or still ``pending``. etcd is never a reason to refuse a push.
2. A transaction whose result is unknown is repeated. It writes a push only if its GUID is not marked as seen, so a
   repetition, or a second receiver of the same webhook, writes nothing.
3. Pushes of different repositories share a transaction. Pushes of one repository keep their order.
4. A push that waited here may be older than the one that etcd has. It is written, because it may concern another branch
   and the watches of the hosts must show it. Then the newer one is written again.
"""

from __future__ import annotations

import random
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Sequence

from gitops_hook.errors import JournalError
from gitops_hook.fleet.etcd import Etcd
from gitops_hook.fleet.keys import Keys, Want, dump, load
from gitops_hook.fleet.messages import (
    NOT_FOUND,
    Answer,
    EtcdError,
    Operation,
    Rejected,
    absent,
    get,
    nested,
    put,
    unchanged,
)
from gitops_hook.journal.fleet import FleetJournal, Outgoing
from gitops_hook.log import log
from gitops_hook.model import Delivery

#: Pushes in one transaction. Each has one operation in it, of the 128 that etcd takes.
_BATCH = 60
#: Seconds that a receiver waits for the fleet.
PATIENCE = 2.0
#: The first and the longest wait between two attempts, in seconds.
_FIRST_WAIT, _LONGEST_WAIT = 0.2, 5.0
#: Seconds that a GUID stays marked. Forges deliver the same push again for three days, but on request only.
_SEEN_TTL = 25 * 3600
#: Seconds for which pushes share one lease. A lease for each would cost etcd more than the push.
_LEASE_SHARED = 3600.0


class Forwarder:
    """The outbox's thread, and the side of it that receivers use."""

    def __init__(
        self,
        etcd: Etcd,
        keys: Keys,
        journal: FleetJournal,
        host: str,
        *,
        clock: Callable[[], float] = time.monotonic,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._etcd = etcd
        self._keys = keys
        self._journal = journal
        self._host = host
        self._clock = clock
        self._jitter = jitter
        self._lease = 0
        self._lease_until = 0.0
        self._stopping = False
        # Guards the three below, and announces their changes. Receivers and the thread take it, for a few steps.
        self._changed = threading.Condition()
        self._has_work = True  # what an earlier process left
        self._forwarded: deque[int] = deque(maxlen=10_000)
        #: Why the last attempt failed, or "".
        self.fault = ""
        self._thread = threading.Thread(target=self._run, name="fleet outbox", daemon=True)

    def start(self) -> None:
        """Begin to forward."""
        self._thread.start()

    def stop(self, timeout: float) -> None:
        """Stop after the current attempt. Rows that are left are forwarded by the next process."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        self._thread.join(timeout)

    # -- receivers ----------------------------------------------------------------------------------------------------

    def accept(
        self,
        deliveries: Sequence[Delivery],
        event: Delivery,
        *,
        default_branch: str = "",
        renamed: str = "",
        path: str = "",
    ) -> int:
        """Commit an event and its deliveries on this host to the journal; return the row to `wait` for.

        `renamed` is the new name of the repository, "" for a push; `path` is its old full path if groups nest. An event
        without a GUID gets one, which its deliveries share. Raises JournalError; nothing is accepted then.
        """
        guid = event.guid or str(uuid.uuid4())
        _, _, received, repository, ref, before, after, pusher = event[:8]
        outgoing = Outgoing(guid, received, repository, ref, before, after, pusher, default_branch, renamed, path)
        row = self._journal.accept([delivery._replace(guid=guid) for delivery in deliveries], outgoing)
        with self._changed:
            self._has_work = True
            self._changed.notify_all()
        return row

    def wait(self, row: int, patience: float = PATIENCE) -> str:
        """Return "committed" once the fleet has the push, or "pending" after `patience` seconds or a failed attempt."""
        with self._changed:
            self._changed.wait_for(lambda: row in self._forwarded or self.fault or self._stopping, patience)
            return "committed" if row in self._forwarded else "pending"

    # -- the thread ---------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        wait = _FIRST_WAIT
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._has_work or self._stopping)
                if self._stopping:
                    return
                self._has_work = False
            try:
                while self.run_once():
                    wait = _FIRST_WAIT
                self._note("")
            except (EtcdError, JournalError) as error:
                self._note(str(error))
                with self._changed:
                    self._has_work = True
                    self._changed.wait_for(lambda: self._stopping, wait * (0.5 + self._jitter()))
                wait = min(_LONGEST_WAIT, wait * 2)
            except Exception:
                log.exception("the fleet's outbox met a fault of its own")
                time.sleep(_LONGEST_WAIT)

    def run_once(self) -> bool:
        """Forward one batch; return False if there was nothing to forward."""
        batch = _distinct(self._journal.outgoing(_BATCH))
        if not batch:
            return False
        lease = self._shared_lease()
        try:
            self._restore_newer(batch, self._etcd.transact([], [self._operation(push, lease) for push in batch]))
        except Rejected as error:
            if error.code == NOT_FOUND:  # the lease ended, for example with a cluster that was wiped
                self._lease = 0
            raise
        rows = [push.id for push in batch]
        self._journal.forwarded(rows)
        with self._changed:
            self._forwarded.extend(rows)
            self.fault = ""
            self._changed.notify_all()
        return True

    def _operation(self, push: Outgoing, lease: int) -> Operation:
        seen, key = self._keys.seen(push.guid), self._keys.want(push.repository)
        fields = push._asdict()
        del fields["id"]
        want = Want(**fields, via=self._host)
        return nested([absent(seen)], [get(key), put(seen, push.repository.encode(), lease), put(key, dump(want))])

    def _restore_newer(self, batch: Sequence[Outgoing], answer: Answer) -> None:
        """Write what the pushes of a batch replaced although it was received later."""
        writes = []
        for push, result in zip(batch, answer.results):
            for pair in result.results[0] if result.succeeded else ():
                want = load(Want, pair.value)
                if want and want.received > push.received:
                    writes.append(nested([unchanged(pair.key, answer.revision)], [put(pair.key, pair.value)]))
        if writes:
            self._etcd.transact([], writes)

    def _shared_lease(self) -> int:
        if not self._lease or self._clock() >= self._lease_until:
            self._lease = self._etcd.grant(_SEEN_TTL)
            self._lease_until = self._clock() + _LEASE_SHARED
        return self._lease

    def _note(self, fault: str) -> None:
        with self._changed:
            if fault and not self.fault:
                log.warning("pushes wait in the outbox: the fleet's etcd does not take them", reason=fault)
            elif self.fault and not fault:
                log.info("the fleet's etcd takes pushes again")
            self.fault = fault
            self._changed.notify_all()


def _distinct(pushes: Sequence[Outgoing]) -> list[Outgoing]:
    """Return the first push of each repository, since etcd takes no key twice in a transaction."""
    chosen: dict[str, Outgoing] = {}
    guids: set[str] = set()
    for push in pushes:
        name = push.repository.lower()
        if name not in chosen and push.guid not in guids:
            chosen[name] = push
            guids.add(push.guid)
    return list(chosen.values())
