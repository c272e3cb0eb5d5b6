"""The commits that a run brought, read from its checkout once the run has ended: no push waits for it.

Rules:

1. One git process for a run that moved its checkout, and none for one that found it where it was known to be.
2. What a script or git says is text from outside: git is given commit ids alone, and what it answers is cut, and
   freed of control characters.
3. git looks at the checkout alone, never at a repository around it, and its own rule decides whose it may look into.
"""

from __future__ import annotations

import os
import re
import subprocess

from gitops_hook.errors import JournalError
from gitops_hook.journal.writer import Journal
from gitops_hook.log import log
from gitops_hook.model import COUNTED, Claim, Commit, Run
from gitops_hook.sync.checkouts import Checkout, Checkouts
from gitops_hook.sync.runner import Task
from gitops_hook.text import printable

#: So many commits of a run are kept: more than anybody reads of a push.
_KEPT = 50
#: The outcome after which the commit that was pushed is not the one that is checked out.
ROLLED_BACK = "rolled-back"
_ID = re.compile("[0-9a-f]{40}|[0-9a-f]{64}")
#: Seconds for git. It takes some milliseconds; a disk that hangs must not keep the repository from its next run.
_LIMIT = 10


class Commits:
    """A observer of runs that notes in the journal what each one brought."""

    def __init__(self, journal: Journal, checkouts: Checkouts) -> None:
        self._journal = journal
        self._checkouts = checkouts

    def began(self, claim: Claim, task: Task) -> None:
        """Nothing has been brought yet."""

    def ended(self, run: Run, claim: Claim, task: Task) -> None:
        """Note where the run left its checkout, and what it brought."""
        before, after = run.before or "", run.after or ""
        if not _ID.fullmatch(after) or (before and not _ID.fullmatch(before)):
            return
        moved = before != after
        rejected = claim.newest.after if run.outcome == ROLLED_BACK and claim.newest else ""
        try:
            checkout = self._checkouts.find(run.repository)
            if not checkout or not (moved or rejected or not self._journal.knows_commit(after)):
                return
            found = _read(checkout, before, after) if moved else []
            # Where it moved back, or did not move, nothing is new: only where it stands is noted.
            kept = found[:_KEPT] or _read(checkout, "", after, count=1)
            if rejected != after and _ID.fullmatch(rejected):
                kept += _read(checkout, "", rejected, count=1)
            self._journal.save_commits(run.id, kept, len(found))
        except (OSError, subprocess.SubprocessError, JournalError) as error:
            log.warning("the commits of a run are not known", repository=run.repository, run=run.id, reason=error)


def _read(checkout: Checkout, before: str, after: str, count: int = COUNTED) -> list[Commit]:
    """The commits that `after` has and `before` has not, newest first; raises where git cannot tell."""
    printed = subprocess.run(
        [
            *("git", "-C", checkout.path, "-c", "core.fsmonitor=false", "rev-list", f"--max-count={count}"),
            *("--encoding=UTF-8", "--format=%H%x00%ct%x00%an%x00%s", after, *([f"^{before}"] if before else [])),
        ],
        env={**os.environ, "GIT_CEILING_DIRECTORIES": str(checkout.path.parent), "GIT_NO_LAZY_FETCH": "1"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        timeout=_LIMIT,
        check=True,
    ).stdout.decode("utf-8", "replace")
    # Every other line is rev-list's own: "commit <id>".
    fields = (line.split("\0") for line in printed.split("\n")[1::2])
    return [Commit(id, printable(author), printable(subject, 200), float(time)) for id, time, author, subject in fields]
