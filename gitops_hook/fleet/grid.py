"""The fleet as a grid of checkouts by hosts, one page at a time, from the state of the keys."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

from gitops_hook.fleet.keys import EVERY_COMMIT, Have, Want
from gitops_hook.fleet.overview import FleetState
from gitops_hook.fleet.rollout import REST, Rollout
from gitops_hook.model import FleetCell, FleetGrid, FleetHalt, FleetHost, FleetRow, FleetStage
from gitops_hook.outcomes import BAD, FLEET_STATES, WAIT, severity_of

#: The roll-outs that a page shows as stages.
_ROLLOUTS = 10


class Grid:
    """Pages of one fleet's grid. It keeps the rows of the newest state, because a page in order needs all of them."""

    def __init__(self, fleet: str, read: Callable[[float], FleetState | None]) -> None:
        """Create a grid. `read` returns the state of the fleet, or None if there is none within a number of seconds."""
        self._fleet = fleet
        self._read = read
        # Replaced as a whole, so threads may share it.
        self._newest: tuple[FleetState, Sequence[FleetHost], Sequence[FleetRow]] | None = None

    def grid(self, words: str, state: str, page: int, size: int, patience: float) -> FleetGrid | None:
        """Return the page `page`, from 1, of `size` checkouts, those that need attention first.

        It has the checkouts whose names contain every word, and whose state is `state` if that is not empty. The result
        is None if there is no state of the fleet within `patience` seconds.
        """
        found = self._read(patience)
        if not found:
            return None
        hosts, rows = self._rows(found)
        wanted = words.lower().split()
        matching = [
            row for row in rows if (not state or row.state == state) and all(word in row.checkout for word in wanted)
        ]
        rollouts = sorted((row for row in rows if row.is_rolling_out), key=lambda row: not row.halt)
        return FleetGrid(
            self._fleet,
            found.revision,
            hosts,
            Counter(row.state for row in rows),
            len(matching),
            matching[(page - 1) * size : page * size],
            rollouts[:_ROLLOUTS],
            max(0, len(rollouts) - _ROLLOUTS),
        )

    def counts(self) -> dict[str, int]:
        """Return the number of checkouts by their state; nothing if there is no state of the fleet now."""
        found = self._read(0.0)
        numbers = Counter(row.state for row in self._rows(found)[1]) if found else Counter[str]()
        return {state: numbers[state] for state in FLEET_STATES} if found else {}

    def row(self, checkout: str, patience: float) -> FleetRow | None:
        """Return one checkout, or None as `grid` does. Raises KeyError if no host has it."""
        found = self._read(patience)
        return {row.checkout: row for row in self._rows(found)[1]}[checkout.lower()] if found else None

    def _rows(self, state: FleetState) -> tuple[Sequence[FleetHost], Sequence[FleetRow]]:
        newest = self._newest
        if not newest or newest[0] is not state:
            hosts = fleet_hosts(state)
            order = list(FLEET_STATES)
            rows = [fleet_row(state, name, hosts) for name in sorted({*state.statuses, *state.rollouts})]
            rows.sort(key=lambda row: order.index(row.state) if row.state else len(order))
            self._newest = newest = (state, hosts, rows)
        return newest[1], newest[2]


def fleet_hosts(state: FleetState) -> list[FleetHost]:
    """Return every host, those of one stage side by side; hosts without a stage come last."""
    hosts = [
        FleetHost(member.name, member.host.stage, member.is_live, member.host.seen, member.host.version)
        for member in state.members
    ]
    return sorted(hosts, key=lambda host: (not host.stage, host.stage, host.name))


def fleet_row(state: FleetState, checkout: str, hosts: Sequence[FleetHost]) -> FleetRow:
    """Return one checkout on all of these hosts that keep it."""
    statuses = state.statuses.get(checkout, {})
    want = state.wants.get(checkout.partition("@")[0], Want())
    rollout, tip = state.rollouts.get(checkout), state.tips.get(checkout, "")
    targets = {stage.label: rollout.target(stage, tip) for stage in rollout.plan.stages} if rollout else {}
    cells = [
        _cell(host, statuses[host.name], targets.get(host.stage, targets.get(REST, "")) if rollout else tip)
        for host in hosts
        if host.name in statuses
    ]
    return FleetRow(
        checkout,
        want.after,
        want.received or None,
        cells,
        _stages(rollout, tip, cells) if rollout else (),
        _halt(rollout) if rollout and rollout.halt else None,
    )


def _cell(host: FleetHost, have: Have, expected: str) -> FleetCell:
    severity = severity_of(have.outcome)
    if not host.is_live:
        state = "offline"
    elif have.paused:
        state = "paused"
    elif severity == BAD:
        state = "failed"
    elif severity == WAIT or have.commit != (expected or have.commit):
        state = "behind"
    else:
        state = "up to date"
    return FleetCell(host, state, have.commit, expected, have.outcome, have.message, have.ended)


def _stages(rollout: Rollout, tip: str, cells: Sequence[FleetCell]) -> list[FleetStage]:
    found = []
    for stage in rollout.plan.stages:
        members = [cell for cell in cells if cell.host.is_live and rollout.stage_of(cell.host.name) == stage]
        passed = rollout.passed.get(stage.label)
        found.append(
            FleetStage(
                str(stage),
                len(members),
                sum(cell.state == "up to date" for cell in members),
                rollout.target(stage, tip),
                passed.decision.commit if passed else "",
            )
        )
    return found


def _halt(rollout: Rollout) -> FleetHalt:
    assert rollout.halt
    decision = rollout.halt.decision
    commit = "" if decision.commit == EVERY_COMMIT else decision.commit
    return FleetHalt(commit, decision.by, decision.reason, decision.at)
