"""The outcomes of a run: one row each, from which every other module derives its behavior.

The script chooses among the outcomes that its exit status allows. The daemon decides the last three itself.
Tests compare the table with ``EXIT`` in the script, with the README, and with docs/sync.md.

To add an outcome, add a row here, a row to ``EXIT`` in scripts/gitops_sync.sh, and a row to each document.
"""

from __future__ import annotations

from typing import NamedTuple

#: Severities, which are also the CSS classes of the page: all is well; the daemon continues without help; nothing
#: happens, as configured; a person must act.
GOOD, WAIT, REST, BAD = "good", "wait", "rest", "bad"

#: The states of a repository in the order of display, with their severities.
STATES = {
    "action needed": BAD,
    "missing": BAD,
    "rolled back": BAD,
    "waiting to retry": WAIT,
    "running": WAIT,
    "queued": WAIT,
    "paused": REST,
    "held": REST,
    "never synced": REST,
    "in sync": GOOD,
}
#: The states of a checkout on one host of a fleet, in the order of attention, with their severities.
FLEET_STATES = {"failed": BAD, "behind": WAIT, "offline": REST, "paused": REST, "up to date": GOOD}
#: Why a run ended that did not end by itself, or why a person must act after one that did, with the sentence that
#: people read. Code compares the key.
CAUSES = {
    "shutdown": "The daemon's shutdown ended this run. The next start repeats it.",
    "killed": "The process that did this run was killed. Its deliveries are pending again.",
    "cancelled": "A person cancelled this run.",
    "limit": "The run exceeded its time limit.",
    "internal": "An internal error ended this run. The daemon's log has the traceback.",
    "loop": "Does the deploy push to its own repository? The next runs are delayed.",
    "renamed": "The repository has another name at the forge.",
}
#: The causes after which a person must act, although the outcome does not say so.
_ACTION_CAUSES = ("cancelled", "loop", "renamed")
#: Those that the script may report.
SCRIPT_CAUSES = ("renamed",)
#: Those that a person has to be informed of. A person knows what a person cancelled.
NOTIFIED_CAUSES = ("loop", "renamed")
#: Shown instead of an outcome while a run has none.
RUNNING = "running"


class Outcome(NamedTuple):
    """The meaning of an outcome for each part of the program."""

    name: str
    #: The script's exit status; for an outcome that the daemon decides, the status of the ``sync`` command.
    exit: int
    severity: str
    #: The state of the repository after a run with this outcome.
    state: str
    #: How the run is retried, a key of `sync.backoff.RETRIES`. If it is not, it settles the deliveries that it claimed.
    retry: str = ""
    #: Whether the run confirmed that the checkout is where upstream is.
    confirms: bool = False
    #: The commit status to report to the forge, as GitHub calls it.
    commit_status: str = "failure"
    #: The rank among the outcomes of several runs: the command line exits with the status of the highest.
    rank: int = 0
    #: Whether the pushes that the run claimed stay pending, without a retry, for the run that ends the pause.
    keeps_pushes: bool = False
    #: Whether the script may choose it.
    by_script: bool = True

    @property
    def settles(self) -> bool:
        """Return True if the run settles the deliveries that it claimed."""
        return not self.retry


#: Every outcome. Among the outcomes of one exit status, the first is the default.
OUTCOMES = (
    Outcome("updated", 0, GOOD, "in sync", confirms=True, commit_status="success"),
    Outcome("unchanged", 0, GOOD, "in sync", confirms=True, commit_status="success"),
    Outcome("cloned", 0, GOOD, "in sync", confirms=True, commit_status="success"),
    # The pause is over if the setting is gone: then the next run is due.
    Outcome("paused", 0, REST, "queued", commit_status="pending", keeps_pushes=True),
    # Pinned, or not approved yet, and behind its branch.
    Outcome("held", 0, REST, "held", commit_status="pending"),
    Outcome("unreachable", 75, WAIT, "waiting to retry", retry="backoff", commit_status="pending", rank=1),
    # The remote does not show the announced commit yet.
    Outcome("early", 75, WAIT, "waiting to retry", retry="early", commit_status="pending", rank=1),
    # The remote rejects this host, or hides the repository from it. A person must act, and the next retry succeeds.
    Outcome("no-access", 75, BAD, "action needed", retry="longest", rank=1),
    Outcome("diverged", 65, BAD, "action needed", rank=3),
    Outcome("dirty", 65, BAD, "action needed", rank=3),
    Outcome("unverified", 65, BAD, "action needed", rank=3),
    Outcome("missing", 66, BAD, "action needed", rank=4),
    Outcome("mismatch", 66, BAD, "action needed", rank=4),
    Outcome("usage", 64, BAD, "action needed", rank=5),
    Outcome("denied", 77, BAD, "action needed", rank=6),
    Outcome("rolled-back", 71, BAD, "rolled back", rank=7),
    Outcome("deploy-failed", 70, BAD, "action needed", rank=8),
    Outcome(
        "interrupted", 130, WAIT, "waiting to retry", retry="backoff", commit_status="pending", rank=2, by_script=False
    ),
    Outcome("timed-out", 124, BAD, "action needed", rank=9, by_script=False),
    Outcome("failed", 1, BAD, "action needed", rank=10, by_script=False),
)

#: The outcomes by name.
BY_NAME = {outcome.name: outcome for outcome in OUTCOMES}
#: The names of the outcomes that confirm "in sync", in the order of the table.
CONFIRMING = tuple(outcome.name for outcome in OUTCOMES if outcome.confirms)
#: The names of the outcomes that are retried.
RETRIED = tuple(outcome.name for outcome in OUTCOMES if outcome.retry)
#: The outcomes that the script may choose, by its exit status; the first is the default.
BY_SCRIPT = {
    status: tuple(outcome.name for outcome in OUTCOMES if outcome.by_script and outcome.exit == status)
    for status in sorted({outcome.exit for outcome in OUTCOMES if outcome.by_script})
}
_FAILED = BY_NAME["failed"]


def outcome_of(name: str | None) -> Outcome:
    """Return the row of an outcome. An unknown name, from a later version's journal, is treated as ``failed``."""
    return BY_NAME.get(name or "", _FAILED)


def state_after(outcome: str | None, cause: str | None) -> str:
    """Return the state of a repository after a run with this outcome and cause."""
    return "action needed" if cause in _ACTION_CAUSES else outcome_of(outcome).state


def reason_to_notify(outcome: str | None, cause: str | None) -> str | None:
    """Return why a person must be informed of a run: its cause or its outcome, or None if all is well."""
    if cause in NOTIFIED_CAUSES:
        return cause
    return None if outcome_of(outcome).confirms else outcome


def severity_of(word: str | None) -> str:
    """Return the severity of a state, or of an outcome; None is the outcome of a run that has not ended."""
    return STATES.get(word or RUNNING) or FLEET_STATES.get(word or "") or outcome_of(word).severity


def settles(outcome: str | None) -> bool:
    """Return whether an outcome settles the deliveries of its run."""
    return outcome_of(outcome).settles
