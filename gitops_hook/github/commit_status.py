"""Decide which commit statuses a run reports. `status_sender` sends them.

Rules:

1. A status is a row of the journal before it is sent, so it survives a kill. A newer status of a commit replaces one
   that was not sent yet. The runs of commands store rows, too, and the daemon sends them.
2. A payload is not trusted. ``success`` is reported only for the live commit and its ancestors, and only if the remote
   has the live commit; git decides both in the checkout. A forged commit id therefore never gets ``success``.
3. Each ``pending`` is finished: when a run settles the deliveries of a checkout, every pending commit of that checkout
   gets a final status.

===============================================  =======================================================
run                                              statuses
===============================================  =======================================================
started by a push                                ``pending`` for the pushed commit
confirmed that the checkout is at upstream       ``success`` for the live commit, unless it was live before
                                                 and no push announced it
  ... other pending commits                      ``success`` for ancestors of the live commit, else ``failure``
retried, or prevented by a pause                 ``pending`` for the pushed commit
failed                                           ``failure`` for the pushed and all pending commits, or for the
                                                 deployed commit if no push asked for the run
===============================================  =======================================================
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable

from gitops_hook.errors import JournalError
from gitops_hook.journal.writer import Journal
from gitops_hook.log import log
from gitops_hook.model import Claim, CommitStatus, Run
from gitops_hook.outcomes import outcome_of
from gitops_hook.sync.checkouts import Checkout, Checkouts, position
from gitops_hook.sync.git import is_ancestor
from gitops_hook.sync.runner import Task

#: The longest description that GitHub accepts, in characters.
DESCRIPTION_LENGTH = 140


class CommitStatusReporter:
    """A run observer that stores the commit statuses of each run. Threads may share it."""

    def __init__(self, journal: Journal, checkouts: Checkouts, changed: Callable[[], None] = lambda: None) -> None:
        """Create a reporter, which calls `changed` after it has stored statuses."""
        self._journal = journal
        self._checkouts = checkouts
        self._changed = changed

    def began(self, claim: Claim, task: Task) -> None:
        """Store ``pending`` for the pushed commit."""
        if task.after:
            self._save(_status(claim.run, task.repository, task.after, "pending", "the run has started"))

    def ended(self, run: Run, claim: Claim, task: Task) -> None:
        """Store the statuses of a run that ended."""
        try:
            pending = self._pending_commits(run)
        except JournalError:  # the next run of the checkout, or the next start, finishes them
            pending = []
        if task.after:
            pending = list(dict.fromkeys([task.after, *pending]))
        self._save(*statuses_of(run, task, pending, self._checkouts.find(run.repository)))

    def catch_up(self) -> None:
        """Finish the pending statuses of runs that ended while no daemon could store their statuses.

        The deliveries of an interrupted run are still pending, so another run follows.
        """
        for begun in self._journal.pending_statuses():
            run = self._journal.run(begun.run)
            if run and run.outcome not in (None, "interrupted"):
                self.ended(run, Claim(run, ()), Task(begun.repository, run.id, after=begun.commit))

    def _pending_commits(self, run: Run) -> list[str]:
        if not outcome_of(run.outcome).settles or outcome_of(run.outcome).commit_status == "pending":
            return []
        repository = run.repository.lower()
        return [
            status.commit
            for status in self._journal.pending_statuses()
            if status.repository.lower() == repository and status.run <= run.id
        ]

    def _save(self, *statuses: CommitStatus) -> None:
        if statuses:
            self._journal.save_statuses(*statuses, then=self._changed)


def statuses_of(run: Run, task: Task, pushed: list[str], checkout: Checkout | None) -> list[CommitStatus]:
    """Return the statuses of a run that ended; `pushed` are the commits that wait for a final status."""
    outcome, live = outcome_of(run.outcome), run.after or ""
    duration = f"{(run.ended or run.started) - run.started:.1f} s"
    if not outcome.confirms:
        retried = outcome.commit_status == "pending"
        state, suffix = ("pending", "; it is repeated") if retried else ("failure", "")
        commits = pushed or ([live] if run.outcome == "deploy-failed" and live else [])
        return [
            _status(run, task.repository, commit, state, f"{run.outcome} after {duration}{suffix}")
            for commit in commits
        ]
    statuses = []
    verified = is_at_remote(checkout, live)
    text = f"{run.outcome} in {duration}"
    if verified and (live in pushed or run.outcome != "unchanged"):
        statuses.append(_status(run, task.repository, live, "success", text))
    for commit in pushed:
        if commit == live and verified:
            continue
        if verified and _is_in(checkout, commit, live):
            statuses.append(_status(run, task.repository, commit, "success", f"{text}; {live[:10]} is live"))
        else:
            statuses.append(
                _status(
                    run, task.repository, commit, "failure", f"not deployed; {live[:10] or 'another commit'} is live"
                )
            )
    return statuses


def is_at_remote(checkout: Checkout | None, commit: str) -> bool:
    """Return True if the tracked branch of the remote, as last fetched, contains a commit."""
    upstream = position(checkout).upstream if checkout else None
    return bool(upstream) and _is_in(checkout, commit, upstream or "")


def _is_in(checkout: Checkout | None, commit: str, other: str) -> bool:
    """Return True if a commit equals another or is its ancestor, in this checkout."""
    try:
        return checkout is not None and is_ancestor(checkout.path, commit, other)
    except (OSError, subprocess.SubprocessError) as error:
        log.warning("git cannot verify a commit", commit=commit, reason=error)
        return False


def _status(run: Run, repository: str, commit: str, state: str, description: str) -> CommitStatus:
    return CommitStatus(repository, commit, run.id, state, description[:DESCRIPTION_LENGTH], time.time())
