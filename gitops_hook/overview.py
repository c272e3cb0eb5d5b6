"""What an operator asks first: where each repository stands, and what needs a person.

The answer is put together from the journal and the checkouts as they are; nothing is kept here.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from gitops_hook.journal import JournalReader, Run
from gitops_hook.repository import Checkouts

#: Where a repository can stand, what needs a person first.
STATES = (
    "needs you",
    "rolled back",
    "waiting to retry",
    "syncing",
    "queued",
    "paused",
    "never synced",
    "in sync",
)

_STATE_OF_OUTCOME = {
    None: "syncing",
    "updated": "in sync",
    "unchanged": "in sync",
    "cloned": "in sync",
    "paused": "queued",  # the pause has ended since, or the setting would tell
    "unreachable": "waiting to retry",
    "rolled-back": "rolled back",
}


class Standing(NamedTuple):
    """Where one repository stands."""

    repository: str
    state: str
    #: Its checkout; None where there is none (any more).
    path: Path | None
    #: The newest run, and when a run last left the checkout where upstream was (seconds since the epoch).
    run: Run | None
    confirmed: float | None
    #: Deliveries that no run has settled yet.
    owed: int


def standings(journal: JournalReader, checkouts: Checkouts, only: Iterable[str] = ()) -> list[Standing]:
    """Where each repository stands that has a checkout or a run, or each of `only`; what needs a person comes first."""
    newest = {run.repository.lower(): run for run in journal.newest_runs()}
    confirmed = {name.lower(): when for name, when in journal.confirmations()}
    owed = {name.lower(): count for name, count in journal.owed_counts()}
    names = {run.repository.lower(): run.repository for run in newest.values()}
    names.update((name.lower(), name) for name in checkouts)
    wanted = {name.lower(): name for name in only} or names
    found = []
    for key, name in wanted.items():
        checkout = checkouts.find(name)
        run, owes = newest.get(key), owed.get(key, 0)
        paused = checkout is not None and _is_true(checkout.settings.get("paused", ""))
        state = _state(run, owes, paused=paused)
        path = checkout.path if checkout else None
        found.append(Standing(names.get(key, name), state, path, run, confirmed.get(key), owes))
    return sorted(found, key=lambda standing: (STATES.index(standing.state), standing.repository.lower()))


def _state(run: Run | None, owed: int, *, paused: bool) -> str:
    if run and run.outcome is None:
        return "syncing"
    if paused:
        return "paused"
    if owed and (not run or run.outcome not in ("unreachable", "rolled-back")):
        return "queued"
    return _STATE_OF_OUTCOME.get(run.outcome, "needs you") if run else "never synced"


def _is_true(value: str) -> bool:
    """Whether git takes a boolean setting for true (git-config(1))."""
    return value.lower() in ("true", "yes", "on", "1")
