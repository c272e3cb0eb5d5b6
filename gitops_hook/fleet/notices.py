"""The notices of a fleet: one about a checkout that fails on any of its hosts, from the host that has the role.

`FleetNotices` takes the place of the journal in the notifier: it shows each checkout of the fleet as one repository,
whose newest run is the most frequent failure of its hosts.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from gitops_hook.errors import JournalError
from gitops_hook.fleet.keys import Have, Report
from gitops_hook.fleet.messages import EtcdError
from gitops_hook.fleet.mirror import Mirror
from gitops_hook.fleet.overview import FleetState
from gitops_hook.fleet.reporter import Role
from gitops_hook.fleet.rollout import IN_PLACE
from gitops_hook.model import History, NoticeState, Run, Streak
from gitops_hook.outcomes import BAD, NOTIFIED_CAUSES, WAIT, severity_of

#: The hosts that a notice names.
_NAMED = 3


class FleetNotices:
    """The records that the notifier needs, of the whole fleet. Any thread may call any method."""

    def __init__(self, role: Role, mirror: Mirror, output: Path) -> None:
        """Create the records of a role. `output` is the file for the output of the notifier's command."""
        self._role = role
        self._mirror = mirror
        self._output = output

    def notices(self) -> dict[str, NoticeState]:
        """Return the last notice about each checkout with one; nothing while another host has the role."""
        if not self._role.is_ours:
            return {}
        try:
            reports = self._role.reports()
        except EtcdError as error:
            raise JournalError(f"the notices of the fleet cannot be read: {error}") from error
        return {name: NoticeState(name, report.state, report.since, report.at) for name, report in reports.items()}

    def histories(self, repository: str | None = None) -> list[History]:
        """Return the newest run of each checkout as the fleet shows it; nothing while another host has the role."""
        if not self._role.is_ours:
            return []
        state = self._state()
        runs = [run for name in state.statuses if (run := _run(state, name))]
        return [History(run) for run in runs]

    def streak(
        self, repository: str, waiting: Sequence[str], resting: Sequence[str], unrelated: Sequence[str]
    ) -> Streak | None:
        """Return the newest run of a checkout; None while another host has the role, or if no live host shows any."""
        state = self._state() if self._role.is_ours else None
        run = _run(state, repository.lower()) if state else None
        if not run:
            return None
        since = None if severity_of(run.outcome) != WAIT else run.started
        return Streak(run, since, None, run.started)

    def record_notice(self, notice: NoticeState) -> None:
        """Record a notice that was sent."""
        self._record(notice.repository, Report(notice.outcome, "", notice.since, notice.at))

    def forget_notice(self, repository: str) -> None:
        """Forget the notice about a checkout that works again, or that no host has any more."""
        self._record(repository, None)

    def log_path(self, run: int | str) -> Path:
        """Return the file for the output of the command. The output of a run is on its host: there is no such file."""
        return self._output if run == "notice" else self._output.with_name("on-another-host.log")

    def _record(self, checkout: str, report: Report | None) -> None:
        try:
            self._role.record(checkout, report)
        except EtcdError as error:
            raise JournalError(f"a notice of the fleet cannot be recorded: {error}") from error

    def _state(self) -> FleetState:
        state = self._mirror.state()
        if not state:
            raise JournalError("the state of the fleet is not available")
        return state


def _run(state: FleetState, checkout: str) -> Run | None:
    """Return a checkout on all hosts as one run: the most frequent problem, or else an update.

    `started` is when the first of these hosts began to fail. A halt that a host ordered is a failure, although a later
    run of this host is `held`. None if no live host has a result.
    """
    live = {member.name for member in state.members if member.is_live}
    haves = {name: have for name, have in state.statuses.get(checkout, {}).items() if name in live and not have.paused}
    rollout = state.rollouts.get(checkout)
    halt = rollout.halt.decision if rollout and rollout.halt else None
    failing = {name: have for name, have in haves.items() if severity_of(have.outcome) == BAD}
    if halt and halt.outcome and halt.by not in failing:
        failing[halt.by] = Have(halt.commit, halt.outcome, ended=halt.at, message=halt.reason)
    failing = failing or {name: have for name, have in haves.items() if have.cause in NOTIFIED_CAUSES}
    failing = failing or {name: have for name, have in haves.items() if severity_of(have.outcome) == WAIT}
    now = time.time()
    if not failing:
        working = any(have.outcome in IN_PLACE for have in haves.values())
        return Run(0, checkout, "push", now, now, "updated") if working else None
    outcome, cause = Counter((have.outcome, have.cause) for have in failing.values()).most_common(1)[0][0]
    names = sorted(name for name, have in failing.items() if (have.outcome, have.cause) == (outcome, cause))
    first = failing[names[0]]
    hosts = ", ".join(names[:_NAMED]) + (f" and {len(names) - _NAMED} more" if names[_NAMED:] else "")
    total = len(state.statuses.get(checkout, {}))
    reason = first.message[len(checkout) + 2 :] if first.message.lower().startswith(f"{checkout}: ") else first.message
    message = f"{checkout}: on {hosts} of {total} hosts: {reason}"
    since = min(have.ended for have in failing.values())
    return Run(0, checkout, "push", since, now, outcome, after=first.commit, message=message, cause=cause)
