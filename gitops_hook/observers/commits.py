"""Store which commits a run deployed. They are read from the checkout after the run, so no push waits for it.

Rules:

1. A run that moved its checkout costs one git process. A run that found it where it was known to be costs none.
2. The script's result is text from outside: only commit ids reach git, and git's output is shortened and cleaned.
3. git examines this checkout only, never a repository around it, and obeys its own ownership check (`git_output`).
"""

from __future__ import annotations

import subprocess
from contextlib import suppress

from gitops_hook.errors import JournalError
from gitops_hook.journal.writer import Journal
from gitops_hook.log import log
from gitops_hook.model import COUNTED, Claim, Commit, Run
from gitops_hook.sync.checkouts import Checkout, Checkouts, position
from gitops_hook.sync.git import git_output, is_commit_id
from gitops_hook.sync.runner import Task
from gitops_hook.text import printable

#: The most commits of one run that are kept.
KEPT = 50
_SUBJECT_LENGTH = 200
#: The outcomes after which the commit that was pushed is not the one that is checked out.
_REJECTING = ("rolled-back", "dirty", "diverged", "unverified")


class Commits:
    """A run observer that stores the commits of each run. Threads may share it."""

    def __init__(self, journal: Journal, checkouts: Checkouts) -> None:
        self._journal = journal
        self._checkouts = checkouts

    def began(self, claim: Claim, task: Task) -> None:
        """Do nothing: a run that starts has deployed nothing yet."""

    def ended(self, run: Run, claim: Claim, task: Task) -> None:
        """Store the commits that a run deployed, the one that is checked out now, and the one that it rejected."""
        before, after = run.before or "", run.after or ""
        if not all(is_commit_id(commit) for commit in (before, after) if commit):
            return
        try:
            checkout = self._checkouts.find(run.repository)
            if not checkout:
                return
            moved, rejected = before != after, _rejected(run, claim, checkout)
            if not (moved or rejected) and (not after or self._journal.knows_commit(after)):
                return
            new = _read_commits(checkout, before, after) if moved else []
            # A run that moved back, or did not move, deployed no new commit: store only the current one.
            kept = new[:KEPT] or (_read_commits(checkout, "", after, limit=1) if after else [])
            if rejected != after and is_commit_id(rejected):
                with suppress(subprocess.CalledProcessError):  # the run did not fetch it
                    kept += _read_commits(checkout, "", rejected, limit=1)
            if kept:
                self._journal.save_commits(run.id, kept, len(new))
        except (OSError, subprocess.SubprocessError, JournalError) as error:
            log.warning("the commits of a run cannot be read", repository=run.repository, run=run.id, reason=error)


def _rejected(run: Run, claim: Claim, checkout: Checkout) -> str:
    """Return the commit that a run tried and did not leave checked out, or an empty string."""
    announced = claim.newest.after if claim.newest else ""
    if not run.after:  # it ended without a result
        return announced
    return (announced or position(checkout).upstream or "") if run.outcome in _REJECTING else ""


def _read_commits(checkout: Checkout, before: str, after: str, limit: int = COUNTED) -> list[Commit]:
    """Return at most `limit` commits that are reachable from `after` and not from `before`, newest first."""
    output = git_output(
        checkout.path,
        *("rev-list", f"--max-count={limit}", "--encoding=UTF-8", "--format=%H%x00%ct%x00%an%x00%s", after),
        *([f"^{before}"] if before else []),
    )
    lines = output.split("\n")[1::2]  # rev-list prints "commit <id>" before each formatted line
    fields = (line.split("\0") for line in lines)
    return [
        Commit(commit, printable(author), printable(subject, _SUBJECT_LENGTH), float(time))
        for commit, time, author, subject in fields
    ]
