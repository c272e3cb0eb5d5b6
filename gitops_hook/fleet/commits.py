"""The statuses of commits of a fleet, from the host that has the role `reporter.STATUSES`.

===========================================================  ===========
hosts                                                        status
===========================================================  ===========
the commit is halted by a host, or a live host without a     ``failure``, with the host and the reason
roll-out failed after the push
every live host of the last stage has the commit             ``success``
otherwise                                                    ``pending``
===========================================================  ===========

Only the newest push of a repository has a status, and only if a host tried it, so a payload alone causes none. Paused
and offline hosts do not count. Without a plan all hosts are one stage.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping
from typing import NamedTuple

from gitops_hook.fleet.keys import Have, Report, Want
from gitops_hook.fleet.overview import FleetState
from gitops_hook.fleet.reporter import Role, changed_checkouts
from gitops_hook.fleet.rollout import IN_PLACE, Rollout
from gitops_hook.model import CommitStatus
from gitops_hook.outcomes import BAD, severity_of

#: The longest description that GitHub accepts, in characters.
_DESCRIPTION = 140
#: Seconds after which a push without any report gets none: it is older than the fleet's first holder of the role.
_OLD = 86400.0


class Verdict(NamedTuple):
    """The status of a commit in the whole fleet."""

    commit: str
    state: str
    description: str


def verdict(state: FleetState, checkout: str) -> Verdict | None:
    """Return the status of the newest pushed commit of a checkout; None if no host tried it."""
    want = state.wants.get(checkout.partition("@")[0], Want())
    commit = want.after
    if not commit or state.tips.get(checkout) != commit:
        return None
    rollout = state.rollouts.get(checkout)
    live = {member.name for member in state.members if member.is_live}
    statuses = state.statuses.get(checkout, {})
    haves = {name: have for name, have in statuses.items() if name in live and not have.paused}
    if rollout and rollout.halt and rollout.halt.decision.commit == commit:
        halt = rollout.halt.decision
        return Verdict(commit, "failure", f"{halt.by}: {halt.reason}"[:_DESCRIPTION])
    if not rollout:
        revision = state.revisions.get(checkout.partition("@")[0], 0)
        failed = sorted(
            name
            for name, have in haves.items()
            # The receiver of a push may run before it follows its own push from etcd.
            if severity_of(have.outcome) == BAD and (have.want >= revision or have.guid == want.guid)
        )
        if failed:
            have = haves[failed[0]]
            return Verdict(commit, "failure", _failure(failed, have, len(haves)))
    last = _last_stage(rollout, haves) if rollout else list(haves.values())
    if last and all(have.commit == commit and have.outcome in IN_PLACE for have in last):
        return Verdict(commit, "success", f"on {len(haves)} live hosts" if not rollout else "the last stage has it")
    having = sum(have.commit == commit for have in haves.values())
    return Verdict(commit, "pending", f"{having} of {len(haves)} live hosts have it")


def _last_stage(rollout: Rollout, haves: Mapping[str, Have]) -> list[Have]:
    """Return the statuses of the last stage that has any."""
    by_stage = [
        [have for name, have in haves.items() if rollout.stage_of(name) == stage] for stage in rollout.plan.stages
    ]
    return next(filter(None, reversed(by_stage)), [])


def _failure(hosts: list[str], have: Have, total: int) -> str:
    more = f" and {len(hosts) - 1} more of {total} hosts" if hosts[1:] else ""
    return f"{hosts[0]}{more}: {have.outcome}: {have.message}"[:_DESCRIPTION]


class FleetCommits:
    """Stores the statuses of the fleet's commits in the journal, from which they are sent. One thread calls it."""

    def __init__(self, role: Role, save: Callable[[CommitStatus], None]) -> None:
        """Create the reporter of a role. `save` stores a status and has it sent. It may raise JournalError."""
        self._role = role
        self._save = save
        self._reports: dict[str, Report] | None = None

    def examine(self, state: FleetState, names: Collection[str]) -> None:
        """Report the statuses that changed. Raises EtcdError and JournalError."""
        if self._reports is None or "" in names:
            self._reports = self._role.reports()
        for checkout in changed_checkouts(state, names):
            found, last = verdict(state, checkout), self._reports.get(checkout)
            if not found or (last and (last.commit, last.state) == (found.commit, found.state)):
                continue
            received = state.wants[checkout.partition("@")[0]].received
            if last or time.time() - received < _OLD:
                self._save(CommitStatus(checkout, found.commit, 0, found.state, found.description, time.time()))
            report = Report(found.state, found.commit, at=round(time.time(), 3))
            self._role.record(checkout, report)
            self._reports[checkout] = report
