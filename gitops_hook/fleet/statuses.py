"""The status keys of this host: for each checkout the deployed commit and the last outcome.

Rules:

1. A status is computed from the checkout's refs and its last run, so a lost one is simply computed again.
2. Only changes are written, once a second, and at most `_PER_TRANSACTION` of them together. A run that changed nothing
   keeps the time of the first run that had this result.
3. After a connection, the stored keys are compared with the computed ones, and the difference is written.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping

from gitops_hook.errors import JournalError
from gitops_hook.fleet.etcd import Etcd
from gitops_hook.fleet.keys import Have, Keys, dump, load
from gitops_hook.fleet.messages import delete, put
from gitops_hook.journal.reader import JournalReader
from gitops_hook.log import log
from gitops_hook.model import Claim, Run
from gitops_hook.sync.checkouts import Checkouts, position
from gitops_hook.sync.holds import is_paused
from gitops_hook.sync.runner import Task

#: Operations in one transaction, of the 128 that etcd takes.
_PER_TRANSACTION = 100
#: The longest message of a run that is stored, in characters.
_MESSAGE = 200


class Statuses:
    """An observer of runs that keeps this host's status keys up to date."""

    def __init__(
        self,
        etcd: Etcd,
        keys: Keys,
        host: str,
        *,
        checkouts: Checkouts,
        journal: JournalReader,
        revisions: Mapping[str, int],
    ) -> None:
        """Start without statuses. `revisions` has the revision of each repository's newest push that was followed."""
        self._etcd = etcd
        self._keys = keys
        self._host = host
        self._checkouts = checkouts
        self._journal = journal
        self._revisions = revisions
        self._served: dict[int, int] = {}
        # Guards the next two. Workers, the fleet's threads and commands of the page take it for a few steps.
        self._lock = threading.Lock()
        self._current: dict[str, Have] = {}
        self._unwritten: dict[str, Have | None] = {}

    # -- runs ---------------------------------------------------------------------------------------------------------

    def began(self, claim: Claim, task: Task) -> None:
        """Note which push the run can have seen."""
        self._served[claim.run.id] = self._revisions.get(claim.run.repository.lower(), 0)

    def ended(self, run: Run, claim: Claim, task: Task) -> None:
        """Compute the status of the checkout, to be written soon."""
        self.update(run, guid=task.delivery, want=self._served.pop(run.id, 0))

    def update(self, run: Run, guid: str = "", want: int = 0) -> Have:
        """Compute, keep and return the status of a checkout after `run`."""
        have = self._compute(run, guid, want)
        name = run.repository.lower()
        with self._lock:
            old = self._current.get(name)
            if not old or not _is_same(old, have):
                self._current[name] = self._unwritten[name] = have
            return self._current[name]

    def have(self, checkout: str) -> Have:
        """Return the newest status of a checkout; an empty one if there was no run."""
        with self._lock:
            return self._current.get(checkout.lower(), Have())

    def written(self, checkout: str, have: Have) -> None:
        """Note that somebody else wrote this status."""
        with self._lock:
            if self._unwritten.get(checkout.lower()) == have:
                del self._unwritten[checkout.lower()]

    def _compute(self, run: Run, guid: str, want: int) -> Have:
        checkout = self._checkouts.find(run.repository)
        deployed = position(checkout).deployed if checkout else None
        settings = checkout.settings if checkout else {}
        return Have(
            commit=deployed or "",
            outcome=run.outcome or "",
            run=run.id,
            guid=guid,
            want=want,
            ended=round(run.ended or 0.0, 3),
            message=(run.message or "")[:_MESSAGE],
            paused=is_paused(settings, time.time()) or bool(settings.get("pin")),
            cause=run.cause or "",
        )

    # -- etcd ---------------------------------------------------------------------------------------------------------

    def resync(self) -> None:
        """Compute every status again, and schedule what differs from the stored keys. Raises EtcdError."""
        prefix = self._keys.haves(self._host)
        stored = {self._keys.status_of(pair.key)[1]: load(Have, pair.value) for pair in self._etcd.read(prefix).pairs}
        try:
            for history in self._journal.histories():
                if history.newest.outcome and self._checkouts.find(history.newest.repository):
                    self.update(history.newest)
        except (JournalError, OSError) as error:
            log.warning("statuses cannot be computed", reason=error)
            return
        with self._lock:
            for name in {*stored, *self._current}:
                current, old = self._current.get(name), stored.get(name)
                if current and old and _is_same(old, current):
                    self._current[name] = old
                    self._unwritten.pop(name, None)
                elif current != old:
                    self._unwritten[name] = current

    def flush(self) -> None:
        """Write what has changed. Raises EtcdError; what was not written stays scheduled."""
        while True:
            with self._lock:
                batch = dict(list(self._unwritten.items())[:_PER_TRANSACTION])
            if not batch:
                return
            keys = {name: self._keys.have(self._host, name) for name in batch}
            self._etcd.transact(
                [], [put(keys[name], dump(have)) if have else delete(keys[name]) for name, have in batch.items()]
            )
            with self._lock:
                for name, have in batch.items():
                    if name in self._unwritten and self._unwritten[name] == have:
                        del self._unwritten[name]


def _is_same(old: Have, new: Have) -> bool:
    """Return True if nothing but the run changed that reports the status."""
    return old == new._replace(run=old.run, guid=old.guid, want=old.want, ended=old.ended)
