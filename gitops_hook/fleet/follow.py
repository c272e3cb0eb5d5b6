"""From etcd to the journal: one thread watches the fleet and records the pushes that concern this host.

Rules:

1. Every connection begins the same way: read what was written after the cursor, then watch from the next revision on.
   So a short interruption, a week offline and a compaction are one path.
2. Deliveries and the cursor are one commit of the journal. A crash in between repeats the reading, not a run.
3. While it catches up, only the newest push of a repository is stored, and perhaps of another branch. So it notifies
   regardless of the ref, and also for a push that it received itself: this one may have replaced another host's push
   that this host did not see. A live event is filtered by the tracked branch and by its GUID.
4. A cluster that was wiped and rebuilt cannot be recognized by its ids. It has another ``w/life``. Then the listener
   restores what its host remembers before the cursor names the new life, everything is read from the start, and every
   checkout is synced once.
5. Without etcd the host works on alone: webhooks, sweeps and runs do not need it.
"""

from __future__ import annotations

import random
import threading
import uuid
from collections.abc import Callable, Iterator, Sequence

from gitops_hook.errors import JournalError
from gitops_hook.fleet.etcd import Etcd, Watch
from gitops_hook.fleet.keys import Keys, Want, load
from gitops_hook.fleet.messages import EtcdError, KeyValue, absent, get, put
from gitops_hook.fleet.view import FleetView
from gitops_hook.journal.fleet import Cursor, FleetJournal
from gitops_hook.log import log
from gitops_hook.model import Delivery
from gitops_hook.names import is_valid

#: The first and the longest wait between two connections, in seconds.
_FIRST_WAIT, _LONGEST_WAIT = 0.1, 5.0


class LifeChangedError(EtcdError):
    """The cluster is no longer the one that this host follows."""


class Listener:
    """The reactions to what the fleet's keys show. Methods are called by the following thread."""

    def wants(self, want: Want, *, is_live: bool) -> Sequence[str]:
        """Return the checkouts that a push or a new name concerns on this host."""
        raise NotImplementedError

    def notify(self, checkout: str) -> None:
        """Run what the journal has pending for a checkout."""
        raise NotImplementedError

    def restore(self) -> None:
        """Write the keys again that only this host remembers: the cluster was wiped. Raises EtcdError, JournalError."""
        raise NotImplementedError

    def connected(self, *, is_new_life: bool) -> None:
        """React to a new connection; the view is that of its snapshot."""
        raise NotImplementedError

    def changed(self, checkouts: set[str]) -> None:
        """React to a change of the view: of roll-outs by name, or with "" of the live hosts."""
        raise NotImplementedError


class Follower:
    """The watching thread. `lock` guards `view`: the thread takes it to change the view, others to read it."""

    def __init__(
        self,
        etcd: Etcd,
        keys: Keys,
        journal: FleetJournal,
        listener: Listener,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self.view = FleetView(keys)
        self.lock = threading.Lock()
        #: The newest revision of each repository's push, by its name in lower case. Replaced entry by entry.
        self.revisions: dict[str, int] = {}
        self.is_connected = False
        #: The life of the cluster that the view shows.
        self.life = ""
        self._etcd = etcd
        self._keys = keys
        self._journal = journal
        self._listener = listener
        self._jitter = jitter
        self._watch: Watch | None = None
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="fleet follower", daemon=True)

    def start(self) -> None:
        """Begin to follow."""
        self._thread.start()

    def stop(self, timeout: float) -> None:
        """End the watch and the thread."""
        self._stopping.set()
        self.reconnect()
        self._thread.join(timeout)

    def reconnect(self, member: str = "") -> None:
        """End the current watch, if it is of another member than `member`."""
        watch = self._watch
        if watch and watch.endpoint != member:
            watch.close()

    # -- the thread ---------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        wait = _FIRST_WAIT
        fault = ""
        while not self._stopping.is_set():
            try:
                for _ in self._follow():
                    if fault:
                        log.info("the fleet is followed again")
                    wait, fault = _FIRST_WAIT, ""
            except (EtcdError, JournalError) as error:
                if not fault:
                    log.warning("the fleet cannot be followed; this host works on alone", reason=error)
                fault = str(error)
            except Exception:
                log.exception("the fleet's follower met a fault of its own")
                wait = _LONGEST_WAIT
            self.is_connected = False
            self._stopping.wait(wait * (0.5 + self._jitter()))
            wait = min(_LONGEST_WAIT, wait * 2)

    def _follow(self) -> Iterator[None]:
        """Connect, catch up and watch; yield after each step that succeeded, so that the caller sees progress."""
        cursor = self._journal.cursor()
        life = self._life()
        start = cursor.revision if cursor.life == life else 0
        if cursor.life not in ("", life):
            self._listener.restore()
        wants = self._etcd.read(self._keys.wants, min_mod_revision=start + 1)
        if wants.revision < start:  # a cluster that was restored from a backup
            start = 0
            wants = self._etcd.read(self._keys.wants)
        self._reset_view(wants.revision)
        self.life = life
        self._record(Cursor(life, wants.revision), wants.pairs, is_live=False)
        # The watch is made before the listener acts, so that it sees the events of its own writes.
        with self._etcd.watch(self._keys.watched, wants.revision + 1) as watch:
            self._watch = watch
            self.is_connected = True
            self._listener.connected(is_new_life=bool(cursor.life) and start == 0)
            yield
            for batch in watch:
                if self._stopping.is_set():
                    return
                self._apply(Cursor(life, batch.revision), batch.events)
                yield

    def _life(self) -> str:
        """Return the id of this life of the cluster; the first daemon of a life chooses it."""
        key = self._keys.life
        fresh = str(uuid.uuid4())
        answer = self._etcd.transact([absent(key)], [put(key, fresh.encode())], [get(key)])
        return fresh if answer.succeeded else str(answer.results[0][0].value.decode("utf-8", "replace"))

    def _reset_view(self, revision: int) -> None:
        pairs: list[KeyValue] = []
        for prefix in self._keys.viewed:
            pairs += self._etcd.read(prefix, revision=revision).pairs
        with self.lock:
            self.view.reset(revision, pairs)

    def _apply(self, cursor: Cursor, events: Sequence[KeyValue]) -> None:
        wants = [event for event in events if event.key.startswith(self._keys.wants)]
        others = [event for event in events if not event.key.startswith(self._keys.wants)]
        if any(event.key == self._keys.life for event in others):
            raise LifeChangedError("the cluster was wiped")
        if wants:
            self._record(cursor, wants, is_live=True)
        with self.lock:
            changes = {self.view.apply(event) for event in others}
            self.view.revision = max(self.view.revision, cursor.revision)
        # A role is no roll-out. The member's thread looks at the roles with each of its steps.
        names = {"" if change.kind == "host" else change.name for change in changes if change.kind != "role"}
        if names:
            self._listener.changed(names)

    def _record(self, cursor: Cursor, pairs: Sequence[KeyValue], *, is_live: bool) -> None:
        """Commit the deliveries of pushes together with the cursor, then notify."""
        deliveries = []
        renamed = {}
        for pair in pairs:
            want = load(Want, pair.value)
            if not want or pair.is_deleted or not is_valid(want.repository):
                continue
            if want.renamed and not is_valid(want.renamed):
                continue
            self.revisions[want.repository.lower()] = pair.mod_revision
            if want.renamed:
                renamed[want.guid] = want.renamed
            deliveries += [_delivery(want, name) for name in self._listener.wants(want, is_live=is_live)]
        for delivery in self._journal.follow(cursor, deliveries, renamed, keeps_known=not is_live):
            log.info(
                "rename from the fleet" if delivery.guid in renamed else "push from the fleet",
                repository=delivery.repository,
                delivery=delivery.guid,
                commit=delivery.after or None,
            )
            self._listener.notify(delivery.repository)


def _delivery(want: Want, checkout: str) -> Delivery:
    return Delivery(
        guid=want.guid,
        event="renamed" if want.renamed else "push",
        received=want.received,
        repository=checkout,
        ref=want.ref,
        before=want.before,
        after=want.after,
        pusher=want.pusher,
    )
