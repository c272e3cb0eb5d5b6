"""The parts of a page about a run: the commit that it tried, the commits that it deployed, the next command."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from gitops_hook.dashboard.html import (
    ago,
    command,
    commit_line,
    commit_list,
    escape,
    label,
    message,
    repository_link,
    table,
    unbroken_span,
)
from gitops_hook.model import COUNTED, Commit, Run
from gitops_hook.outcomes import BAD, RUNNING, WAIT, severity_of
from gitops_hook.sync.holds import Hold
from gitops_hook.sync.status import MISSING, RepositoryStatus

#: The outcome after which the commit that was tried is not checked out, although the run may have moved the checkout.
_ROLLED_BACK = "rolled-back"
#: The outcomes of a run that did not try to deploy.
_NOT_TRIED = ("paused", "held", "unchanged", "unreachable", "early", "no-access")
#: The command that an operator runs next, by state. Every other state has the last one.
_STATE_COMMANDS = {
    "rolled back": "gitops-hook logs {}",
    "running": "gitops-hook logs -f {}",
    "paused": "gitops-hook resume {}",
    "held": "gitops-hook fleet status {}",
    "in sync": "gitops-hook runs {}",
}
_SYNC_COMMAND = "gitops-hook sync {}"
#: The commands for a checkout that was deleted: clone it again, or forget it.
_MISSING_COMMANDS = ("gitops-hook add {}", "gitops-hook remove {}")


class RunWithCommits(NamedTuple):
    """A run, its known commits, and the URL of the checkout's remote.

    The first commit is the one that the run left checked out. If the run rejected another one, that is the last.
    """

    run: Run
    commits: Sequence[Commit]
    origin: str = ""

    @property
    def tried(self) -> Commit | None:
        """Return the commit that the run tried to deploy, or None if it is unknown."""
        run = self.run
        if not self.commits or (run.outcome or RUNNING) in _NOT_TRIED:
            return None
        is_last = run.outcome == _ROLLED_BACK or (run.before or "") == (run.after or "")
        return self.commits[-1 if is_last else 0]

    @property
    def deployed(self) -> Sequence[Commit]:
        """Return the known commits that the run deployed, newest first."""
        return self.commits[: self.run.brought or 0] if self.run.outcome not in _NOT_TRIED else ()

    @property
    def deployed_count(self) -> str:
        """Return how many commits the run deployed."""
        return f"{self.run.brought} or more" if self.run.brought == COUNTED else str(self.run.brought)

    def listed(self, commits: Sequence[Commit]) -> str:
        """Return `commits` as a list, with the number of those that the run deployed before them."""
        rest = (self.run.brought or 0) - len(commits)
        more = f"<p>And {rest} {'or ' if self.run.brought == COUNTED else ''}more before these.</p>" if rest > 0 else ""
        return commit_list(commits, self.origin) + more


def next_command(state: str, newest: Run | None, repository: str, hold: Hold | None = None) -> str:
    """Return the command that an operator runs next: the fix of the newest run, or the command of the state."""
    if state == MISSING:
        return " or ".join(command(text.format(repository)) for text in _MISSING_COMMANDS)
    if newest and newest.fix and severity_of(state) in (BAD, WAIT):
        return command(newest.fix)
    if state == "held" and hold:
        return command(f"gitops-hook deploy {repository}")
    return command(_STATE_COMMANDS.get(state, _SYNC_COMMAND).format(repository))


def reason(status: RepositoryStatus) -> str:
    """Return why the newest run failed or the checkout cannot be synced, or nothing."""
    if status.state == MISSING:
        return "The checkout was deleted."
    return message(status.run) if status.run and status.problem else ""


def run_table(runs: Iterable[RunWithCommits], *, with_repository: bool = False) -> str:
    """Return a table of runs. Each leads with its commit."""
    rows = (
        (
            f'<a href="/runs/{shown.run.id}">{shown.run.id}</a>',
            *([repository_link(shown.run.repository)] if with_repository else ()),
            _run_commits(shown),
            label(shown.run.outcome or RUNNING),
            ago(shown.run.started),
            unbroken_span((shown.run.ended or time.time()) - shown.run.started),
            escape(shown.run.trigger),
        )
        for shown in runs
    )
    repository = ("Repository",) if with_repository else ()
    return table("runs", ("Run", *repository, "Commit", "Outcome", "Started", "Took", "Trigger"), rows)


def _run_commits(shown: RunWithCommits) -> str:
    """Return the commit that a run tried to deploy, and the others that it deployed with it."""
    if len(shown.deployed) < 2:
        return commit_line(shown.tried, shown.origin)
    return (
        f'<details id="r{shown.run.id}"><summary>{commit_line(shown.deployed[0])}'
        f' <span class="quiet">{shown.deployed_count} commits</span></summary>'
        f"{shown.listed(shown.deployed)}</details>"
    )
