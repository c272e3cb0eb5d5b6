"""A copy of the fleet's keys for the page and for the reports of the fleet, kept by one watch while it is in use.

Rules:

1. A host watches the status keys of all hosts only while somebody needs them: each push costs one event per host and
   watcher. The page keeps the watch for `_IDLE` seconds; a host that reports for the fleet keeps it.
2. The copy is the state of one revision: a snapshot, and then each event in order. Every connection begins anew, so a
   compaction, a wiped cluster and a short interruption are one path.
3. While there is no connection there is no state: an old copy would show hosts as live that may be dead.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable

from gitops_hook.fleet.etcd import Etcd, Watch
from gitops_hook.fleet.keys import Keys
from gitops_hook.fleet.messages import EtcdError
from gitops_hook.fleet.overview import Collection, FleetState, read_collection
from gitops_hook.log import log

#: Seconds without a request for the state after which the watch ends.
_IDLE = 120.0
#: The first and the longest wait between two connections, in seconds.
_FIRST_WAIT, _LONGEST_WAIT = 0.5, 5.0
#: The name that `take_changed` returns for a change of hosts, and after a connection: every checkout may have changed.
EVERY = ""


class Mirror:
    """The copy, and the thread that keeps it. Any thread may call any method."""

    def __init__(
        self,
        etcd: Etcd,
        keys: Keys,
        *,
        idle: float = _IDLE,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        """Create a copy that does not run yet. `idle` is in seconds."""
        self._etcd = etcd
        self._keys = keys
        self._idle = idle
        self._jitter = jitter
        # Guards the rest, and announces its changes. Requests, the reporter and the mirror's thread take it.
        self._changed = threading.Condition()
        self._collection: Collection | None = None
        self._state: FleetState | None = None
        self._names: set[str] = set()
        self._used = 0.0
        self._watch: Watch | None = None
        self._thread: threading.Thread | None = None
        self._is_stopping = False

    def state(self, patience: float = 0.0) -> FleetState | None:
        """Return the newest state; None if there is none within `patience` seconds. This starts or keeps the watch."""
        with self._changed:
            self._used = time.monotonic()
            if not self._thread and not self._is_stopping:
                self._thread = threading.Thread(target=self._run, name="fleet mirror", daemon=True)
                self._thread.start()
            self._changed.wait_for(lambda: self._collection or self._is_stopping, patience)
            if self._collection and not self._state:
                self._state = self._collection.state()
            return self._state

    def take_changed(self) -> set[str]:
        """Return the names of checkouts and repositories that changed since the last call; `EVERY` stands for all."""
        with self._changed:
            names, self._names = self._names, set()
            return names

    def stop(self, timeout: float) -> None:
        """End the watch and the thread."""
        with self._changed:
            self._is_stopping = True
            self._changed.notify_all()
            thread, watch = self._thread, self._watch
        if watch:
            watch.close()
        if thread:
            thread.join(timeout)

    # -- the thread ---------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        wait = _FIRST_WAIT
        while not self._ends():
            try:
                self._follow()
                wait = _FIRST_WAIT
            except EtcdError:
                pass  # the follower reports it; the next attempt follows
            except Exception:
                log.exception("internal error in the copy of the fleet's keys")
            with self._changed:
                self._collection = self._state = self._watch = None
                self._changed.wait_for(lambda: self._is_stopping, wait * (0.5 + self._jitter()))
            wait = min(_LONGEST_WAIT, wait * 2)

    def _ends(self) -> bool:
        """Return True if the thread must end, and forget it then: the next request starts another one."""
        with self._changed:
            ends = self._is_stopping or time.monotonic() - self._used > self._idle
            if ends:
                self._thread = None
            return ends

    def _follow(self) -> None:
        collection = read_collection(self._etcd, self._keys)
        with self._etcd.watch(self._keys.root, collection.view.revision + 1) as watch:
            with self._changed:
                self._collection, self._watch = collection, watch
                self._names.add(EVERY)
                self._changed.notify_all()
                if self._is_stopping:
                    return
            for batch in watch:
                with self._changed:
                    self._names |= {name for event in batch.events if (name := collection.apply(event)) is not None}
                    collection.view.revision = max(collection.view.revision, batch.revision)
                    self._state = None if batch.events else self._state
                    if self._is_stopping or time.monotonic() - self._used > self._idle:
                        return
