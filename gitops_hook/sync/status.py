"""The state of each repository, and the settings in force.

Rules:

1. A status is computed from the journal and the checkouts at each call. Nothing is cached here.
2. The page, the JSON API and the command line show the same status.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from gitops_hook.journal.reader import JournalReader
from gitops_hook.model import Commit, History, Run, RunSpan
from gitops_hook.outcomes import RUNNING, STATES, outcome_of, state_after
from gitops_hook.sync.checkouts import Checkout, Checkouts, position
from gitops_hook.sync.holds import Hold, hold_in_force
from gitops_hook.sync.settings import SETTINGS
from gitops_hook.text import redact

#: The state of a repository whose checkout was deleted without `gitops-hook remove`.
MISSING = "missing"


class RepositoryStatus(NamedTuple):
    """The status of one repository."""

    repository: str
    state: str
    #: The directory of its checkout, or None if there is no checkout (any more).
    path: Path | None
    #: The newest run, and when a run last confirmed that the checkout is where upstream is (seconds since the epoch).
    run: Run | None
    confirmed: float | None
    #: The number of deliveries that no run has settled yet.
    pending: int
    #: The commit at which a run last left the checkout.
    commit: Commit | None = None
    #: The outcome of its newest run that has ended, and when a run last deployed a new commit.
    last_outcome: str | None = None
    deployed: float | None = None
    #: The operator's decision that keeps it from following its branch.
    hold: Hold | None = None
    #: The version tag that is deployed, if the checkout follows tags.
    tag: str | None = None
    #: The URL of the checkout's remote, or empty.
    origin: str = ""
    #: Its last runs, newest first. Only `with_history` reads them, because they are most of the work.
    history: Sequence[RunSpan] = ()

    @property
    def problem(self) -> str | None:
        """Return the message of the newest run if its problem persists."""
        if self.state == MISSING:
            return f"The checkout was deleted. To clone it again: gitops-hook add {self.repository}. To forget it:"
        message = self.run and self.run.message
        return message if message and self.state in ("action needed", "rolled back", "waiting to retry") else None

    @property
    def fix(self) -> str | None:
        """Return the command that repairs the problem, or None."""
        if self.state == MISSING:
            return f"sudo gitops-hook remove {self.repository}"
        return (self.run.fix or None) if self.run and self.problem else None


def repository_statuses(
    journal: JournalReader, checkouts: Checkouts, only: Iterable[str] = ()
) -> list[RepositoryStatus]:
    """Return the status of each repository that has a checkout or a run, or of each of `only`, most severe first."""
    wanted = {name.lower(): name for name in only}
    recorded = [past for name in wanted.values() for past in journal.histories(name)] if wanted else journal.histories()
    histories = {past.newest.repository.lower(): past for past in recorded}
    pending = {name.lower(): count for name, count in journal.pending_counts()}
    names = {key: past.newest.repository for key, past in histories.items()}
    if not wanted:
        names.update((name.lower(), name) for name in checkouts)
    found = [
        _status(names.get(key, name), checkouts.find(name), histories.get(key), pending.get(key, 0))
        for key, name in (wanted or names).items()
    ]
    return sorted(found, key=lambda status: (list(STATES).index(status.state), status.repository.lower()))


def with_history(journal: JournalReader, statuses: Sequence[RepositoryStatus]) -> list[RepositoryStatus]:
    """Return `statuses` with the last runs of each repository."""
    spans = journal.run_spans(status.repository for status in statuses)
    return [status._replace(history=runs) for status, runs in zip(statuses, spans)]


def _status(name: str, checkout: Checkout | None, past: History | None, pending: int) -> RepositoryStatus:
    hold = hold_in_force(checkout.settings, time.time()) if checkout else None
    run = past.newest if past else None
    state = _state(run, pending, hold)
    if not checkout and past and past.commit and state not in (RUNNING, "queued", "waiting to retry"):
        state = MISSING
    return RepositoryStatus(
        repository=name,
        state=state,
        path=checkout.path if checkout else None,
        run=run,
        confirmed=past.confirmed if past else None,
        pending=pending,
        commit=past.commit if past else None,
        last_outcome=past.last_outcome if past else None,
        deployed=past.deployed if past else None,
        hold=hold,
        tag=position(checkout).tag if checkout and "tag" in checkout.settings else None,
        origin=checkout.settings.get("origin", "") if checkout else "",
    )


def _state(run: Run | None, pending: int, hold: Hold | None) -> str:
    if run and run.outcome is None:
        return RUNNING
    if hold and hold.state in STATES:
        return hold.state
    if not run:
        return "queued" if pending else "never synced"
    state = state_after(run.outcome, run.cause)
    # The deliveries of a run that is retried stay pending, and so do those that a loop delays: its own state says more.
    is_delayed = run.cause == "loop" or (outcome_of(run.outcome).retry and run.cause != "cancelled")
    return "queued" if pending and not is_delayed and state != "rolled back" else state


class InForce(NamedTuple):
    """A setting of one repository that is in force."""

    name: str
    #: Its value; None if there is none, and then `origin` explains the effect.
    value: str | None
    origin: str
    #: Whether the checkout sets it. If not, the default is in force.
    is_set: bool = True


def settings_in_force(checkout: Checkout, sync_timeout: int) -> list[InForce]:
    """Return every setting of a checkout with its source, without passwords in URLs.

    `sync_timeout` is the daemon's time limit in seconds.
    """
    own = dict(checkout.settings)
    found = [_in_force("origin", own.pop("origin", None), checkout, None, "the checkout has no remote called origin")]
    for name, setting in SETTINGS.items():
        default = str(sync_timeout) if name == "timeout" else setting.default
        found.append(_in_force(name, own.pop(name.lower(), None), checkout, default, setting.meaning))
    unknown = [InForce(name, value, "not a setting of gitops-hook: is it mistyped?") for name, value in own.items()]
    return [setting._replace(value=redact(setting.value or "") or None) for setting in found + unknown]


def _in_force(name: str, own: str | None, checkout: Checkout, default: str | None, meaning: str) -> InForce:
    if own is None:
        return InForce(name, default, meaning, is_set=False)
    return InForce(name, own, checkout.origins.get(name.lower(), "the checkout's git config"))
