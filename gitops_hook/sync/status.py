"""What an operator asks first: where each repository stands, and what needs a person.

Rules:

1. The answer is put together from the journal and the checkouts as they are; nothing is kept here.
2. How a state or an outcome is to be taken, and how long ago something was, is said here once, for the page, the JSON
   and the command line.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from gitops_hook.journal.reader import JournalReader
from gitops_hook.model import Commit, History, Run
from gitops_hook.outcomes import RUNNING, STATES, outcome_of
from gitops_hook.sync.checkouts import Checkout, Checkouts
from gitops_hook.text import redact


class RepositoryStatus(NamedTuple):
    """Where one repository stands."""

    repository: str
    state: str
    #: Its checkout; None where there is none (any more).
    path: Path | None
    #: The newest run, and when a run last left the checkout where upstream was (seconds since the epoch).
    run: Run | None
    confirmed: float | None
    #: Deliveries that no run has settled yet.
    pending: int
    #: Where a run last left the checkout.
    commit: Commit | None = None
    #: Its last runs, newest first: outcome (None in hand), started, ended.
    history: Sequence[tuple[str | None, float, float | None]] = ()

    @property
    def fix(self) -> str | None:
        """What the newest run has to say, where it did not go well and a person or time must see to it."""
        told = self.run and self.run.message
        return told if told and self.state in ("action needed", "rolled back", "waiting to retry") else None


def repository_statuses(
    journal: JournalReader, checkouts: Checkouts, only: Iterable[str] = ()
) -> list[RepositoryStatus]:
    """Where each repository stands that has a checkout or a run, or each of `only`; what needs a person comes first."""
    wanted = {name.lower(): name for name in only}
    remembered = (
        [past for name in wanted.values() for past in journal.histories(name)] if wanted else journal.histories()
    )
    histories = {past.newest.repository.lower(): past for past in remembered}
    owed = {name.lower(): count for name, count in journal.pending_counts()}
    names = {key: past.newest.repository for key, past in histories.items()}
    if not wanted:
        names.update((name.lower(), name) for name in checkouts)
    found = [
        _standing(names.get(key, name), checkouts.find(name), histories.get(key), owed.get(key, 0))
        for key, name in (wanted or names).items()
    ]
    return sorted(found, key=lambda standing: (list(STATES).index(standing.state), standing.repository.lower()))


def _standing(name: str, checkout: Checkout | None, past: History | None, owed: int) -> RepositoryStatus:
    paused = checkout is not None and _is_true(checkout.settings.get("paused", ""))
    run = past.newest if past else None
    return RepositoryStatus(
        repository=name,
        state=_state(run, owed, paused=paused),
        path=checkout.path if checkout else None,
        run=run,
        confirmed=past.confirmed if past else None,
        pending=owed,
        commit=past.commit if past else None,
        history=past.history if past else (),
    )


def _state(run: Run | None, owed: int, *, paused: bool) -> str:
    if run and run.outcome is None:
        return RUNNING
    if paused:
        return "paused"
    if owed and (not run or run.outcome not in ("unreachable", "rolled-back")):
        return "queued"
    if run and run.cause == "shutdown":
        return "action needed"  # a daemon that starts does it again, unless it has given up a deploy that restarts it
    return outcome_of(run.outcome).state if run else "never synced"


def _is_true(value: str) -> bool:
    """Whether git takes a boolean setting for true (git-config(1))."""
    return value.lower() in ("true", "yes", "on", "1")


class InForce(NamedTuple):
    """A setting of one repository, as it is in force."""

    name: str
    #: Its value; None where there is none, and then `origin` says what that means.
    value: str | None
    origin: str


#: Settings of a checkout, and what is in force where it does not have them (docs/sync.md): a value, or what it means
#: that there is none.
SETTINGS: Mapping[str, tuple[str | None, str]] = {
    "branch": (None, "upstream's default branch"),
    "deploy": (None, "moving the tree is the deploy"),
    "health": (None, "no check"),
    "healthTimeout": ("30", "default, in seconds"),
    "paths": (None, "any change is deployed"),
    "verify": ("false", "default"),
    "submodules": ("false", "default"),
    "paused": ("false", "default"),
    "diverged": ("refuse", "default"),
    "dirty": ("refuse", "default"),
    "environment": (None, "the host's name"),
    "timeout": (None, "the daemon's GITOPS_SYNC_TIMEOUT, in seconds"),
}


def settings_in_force(checkout: Checkout, sync_timeout: int) -> list[InForce]:
    """Every setting of the repository in `checkout`, and where each comes from; no password in a URL is among them."""
    own = dict(checkout.settings)
    found = [_in_force("origin", own.pop("origin", None), checkout, (None, "the checkout has no remote called origin"))]
    for name, (default, meaning) in SETTINGS.items():
        fallback = (str(sync_timeout), meaning) if name == "timeout" else (default, meaning)
        found.append(_in_force(name, own.pop(name.lower(), None), checkout, fallback))
    unknown = [InForce(name, value, "not a setting of gitops-hook: is it mistyped?") for name, value in own.items()]
    return [setting._replace(value=redact(setting.value or "") or None) for setting in found + unknown]


def _in_force(name: str, own: str | None, checkout: Checkout, fallback: tuple[str | None, str]) -> InForce:
    if own is None:
        return InForce(name, *fallback)
    return InForce(name, own, checkout.origins.get(name.lower(), "the checkout's git config"))
