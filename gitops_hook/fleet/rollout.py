"""Roll-outs in stages, without a coordinator: what a host does next follows from its view of the keys. No I/O.

    tip of the branch --> stage 0 --passed/0--> stage 1 --passed/1--> ... --> the last stage
                          (in line, at most `at_once` hosts deploy)

Rules:

1. The first stage follows the tip of the tracked branch, as git shows it. Each other stage follows the commit that the
   stage before it proved. Without that decision nothing moves, so a canary that fails stops the fleet by default.
2. A host that needs the commit of its stage enters the line of the stage: one key on its lease. The hosts at the head
   of the line, `at_once` of them, deploy; the order is the order of the keys' creation. A stale view is safe: a host
   that sees its own key has seen every key before it, and those can only disappear.
3. A deploy that fails leaves the line and halts the commit in one transaction. Deploys that have begun go on; no other
   one begins. A newer commit is not halted.
4. A stage has passed a commit if every live host of it that keeps the checkout has the commit, and at least one does.
   Offline hosts are left out, and catch up when they return. A stage without a live host does not pass: nothing
   proved the commit. An operator can pass it (``fleet promote``).
5. Every decision is a comparison and a write in one transaction, so two hosts that decide at the same time agree.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from enum import Enum
from typing import NamedTuple

from gitops_hook.fleet.keys import EVERY_COMMIT, Decision, Have, Keys, dump
from gitops_hook.fleet.messages import Comparison, Operation, absent, delete, nested, put, unchanged

#: The label of the last stage, which every host without another stage belongs to.
REST = "rest"
#: The stored form of a plan that an operator deleted.
NO_PLAN = b'{"stages":[]}'
_ALL = "100%"
_LABEL = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
_WAIT = re.compile(r"([0-9]{1,6})([smh]?)")
_SECONDS = {"": 1, "s": 1, "m": 60, "h": 3600}

#: Outcomes of a checkout that is at the tip of its branch.
_AT_TIP = {"updated", "unchanged", "cloned"}
#: Outcomes of a checkout that is at the commit that it should have.
IN_PLACE = {*_AT_TIP, "held"}


class PlanError(ValueError):
    """A plan that cannot be read; the message says which part of it and why."""


class Stage(NamedTuple):
    """Hosts that deploy in one line. `at_once` is a number or a share in percent; `wait` is in seconds.

    `wait` lies between the last deploy of the stage and the moment when the stage has passed.
    """

    label: str
    at_once: str = _ALL
    wait: float = 0.0

    def limit(self, hosts: int) -> int:
        """Return how many of `hosts` may deploy at the same time. A share is rounded up, and is at least 1."""
        if self.at_once.endswith("%"):
            return max(1, math.ceil(hosts * int(self.at_once[:-1]) / 100))
        return int(self.at_once)

    def __str__(self) -> str:
        at_once = "" if self.at_once == _ALL else f":{self.at_once}"
        return f"{self.label}{at_once}" + (f",wait={self.wait:.0f}s" if self.wait else "")


class Plan(NamedTuple):
    """The stages of a roll-out, in order. The last one is `REST`, so that every host has a stage."""

    stages: Sequence[Stage]

    @classmethod
    def parse(cls, words: Sequence[str]) -> Plan:
        """Read a plan as an operator writes it: ``canary:1 web:25%,wait=2m rest``. Raises PlanError."""
        stages = [_parse_stage(word) for word in words]
        labels = [stage.label for stage in stages]
        if not labels or labels[-1] != REST:
            raise PlanError(f"the last stage must be `{REST}`: the hosts that no other stage names")
        if len(set(labels)) != len(labels):
            raise PlanError("a stage is named twice")
        return cls(tuple(stages))

    @classmethod
    def load(cls, stored: bytes) -> Plan | None:
        """Return a stored plan, or None if it is not one."""
        try:
            return cls.parse([str(word) for word in json.loads(stored)["stages"]])
        except (ValueError, TypeError, KeyError):
            return None

    def dump(self) -> bytes:
        """Return the stored form."""
        return json.dumps({"stages": [str(stage) for stage in self.stages]}).encode()

    def position(self, label: str) -> int:
        """Return the number of the stage of a host with this label."""
        labels = [stage.label for stage in self.stages]
        return labels.index(label) if label in labels else len(labels) - 1

    def __str__(self) -> str:
        return " ".join(map(str, self.stages))


def _parse_stage(word: str) -> Stage:
    head, *options = word.split(",")
    label, colon, at_once = head.partition(":")
    if not _LABEL.fullmatch(label):
        raise PlanError(f"`{word}` does not begin with a label of a-z, 0-9, `.`, `_` and `-`")
    if colon:
        share = at_once.endswith("%")
        digits = at_once[:-1] if share else at_once
        if not digits.isascii() or not digits.isdigit() or not 1 <= int(digits) <= (100 if share else 10**6):
            raise PlanError(f"`{word}`: after the colon goes a number of hosts, or a share from 1% to 100%")
        at_once = str(int(digits)) + ("%" if share else "")
    wait = 0.0
    for option in options:
        name, _, value = option.partition("=")
        match = _WAIT.fullmatch(value)
        if name != "wait" or not match:
            raise PlanError(f"`{word}`: `{option}` is not wait=NUMBER with `s`, `m` or `h`")
        wait = float(int(match[1]) * _SECONDS[match[2]])
    return Stage(label, at_once or _ALL, wait)


class Stored(NamedTuple):
    """A decision, and the revision at which it was written."""

    decision: Decision
    revision: int


class Turn(NamedTuple):
    """A host's place in the line of a stage; `revision` is the one that created it."""

    host: str
    commit: str
    revision: int


class Rollout(NamedTuple):
    """The roll-out of one checkout at one revision of the store.

    `hosts` has the stage label of each live host; `passed` and `turns` are by the label of a stage.
    """

    checkout: str
    plan: Plan
    hosts: Mapping[str, str]
    passed: Mapping[str, Stored]
    turns: Mapping[str, Sequence[Turn]]
    halt: Stored | None = None

    def stage_of(self, host: str) -> Stage:
        """Return the stage of a live host."""
        return self.plan.stages[self.plan.position(self.hosts.get(host, ""))]

    def members(self, stage: Stage) -> list[str]:
        """Return the live hosts of a stage."""
        return sorted(host for host in self.hosts if self.stage_of(host) == stage)

    def before(self, stage: Stage) -> Stage | None:
        """Return the stage whose decision `stage` follows; None for the first."""
        number = self.plan.stages.index(stage)
        return self.plan.stages[number - 1] if number else None

    def target(self, stage: Stage, tip: str) -> str:
        """Return the commit that the hosts of a stage should have, or "" if there is none yet.

        `tip` is the tip of the tracked branch, as the host's git shows it.
        """
        before = self.before(stage)
        if not before:
            return tip
        passed = self.passed.get(before.label)
        return passed.decision.commit if passed else ""

    def is_halted(self, commit: str) -> bool:
        """Return True if `commit` must not proceed."""
        return self.halt is not None and self.halt.decision.commit in (commit, EVERY_COMMIT)

    def line(self, stage: Stage) -> list[Turn]:
        """Return the places of a stage in their order."""
        return sorted(self.turns.get(stage.label, ()), key=lambda turn: turn.revision)

    def owners(self, stage: Stage) -> list[str]:
        """Return the hosts that may deploy now."""
        return [turn.host for turn in self.line(stage)[: stage.limit(len(self.members(stage)))]]


class Action(Enum):
    """The next step of a host for one checkout."""

    #: It has the commit. A place in the line is given up.
    DONE = "done"
    #: It must not move. A place in the line is given up.
    HOLD = "hold"
    #: It needs a place in the line.
    QUEUE = "queue"
    #: It waits in the line.
    WAIT = "wait"
    #: It may deploy the commit.
    DEPLOY = "deploy"


class Step(NamedTuple):
    """The next action of one host, the commit that it concerns, and a reason for people."""

    action: Action
    commit: str = ""
    reason: str = ""


def next_step(rollout: Rollout, host: str, tip: str, have: Have) -> Step:
    """Return the next step of `host`, whose branch is at `tip` and whose last status is `have`."""
    stage = rollout.stage_of(host)
    commit = rollout.target(stage, tip)
    obstacle = _obstacle(rollout, host, commit, have)
    if not obstacle and have.commit == commit and have.outcome in IN_PLACE:
        return Step(Action.DONE, commit)
    if not obstacle and rollout.is_halted(commit):
        obstacle = _halt_reason(rollout)
    if obstacle:
        return Step(Action.HOLD, commit, obstacle)
    line = [turn.host for turn in rollout.line(stage)]
    if host not in line:
        return Step(Action.QUEUE, commit)
    if host in rollout.owners(stage):
        return Step(Action.DEPLOY, commit)
    return Step(Action.WAIT, commit, f"{line.index(host)} hosts of stage {stage.label} are ahead")


def _obstacle(rollout: Rollout, host: str, commit: str, have: Have) -> str:
    """Return why the host does not follow any decision, or ""."""
    if host not in rollout.hosts:
        return "this host's lease has ended"
    if have.paused:
        return "an operator paused or pinned the checkout on this host"
    before = rollout.before(rollout.stage_of(host))
    if not commit:
        return f"stage {before.label} has passed no commit" if before else "the tip of the branch is not known"
    return ""


def _halt_reason(rollout: Rollout) -> str:
    assert rollout.halt
    decision = rollout.halt.decision
    return f"halted by {decision.by}" + (f": {decision.reason}" if decision.reason else "")


class Passing(NamedTuple):
    """Whether a stage has passed: the commit, "" if none, from the moment `due` on; and why not, for people."""

    commit: str = ""
    due: float = 0.0
    reason: str = ""


def passing(rollout: Rollout, stage: Stage, statuses: Mapping[str, Have]) -> Passing:
    """Return whether `stage` has proved a commit that `passed` does not name yet.

    `statuses` are those of the stage's live hosts; a host without one does not keep the checkout.
    """
    proving = {host: statuses[host] for host in rollout.members(stage) if host in statuses}
    proving = {host: have for host, have in proving.items() if not have.paused}
    if not proving:
        return Passing(reason=f"stage {stage.label} has no live host with this checkout")
    commit = rollout.target(stage, next(iter(proving.values())).commit)
    # The first stage follows no decision: its hosts prove the commit that is the tip of the branch for all of them.
    good = IN_PLACE if rollout.before(stage) else _AT_TIP
    for host, have in proving.items():
        if not commit or have.commit != commit or have.outcome not in good:
            return Passing(reason=f"{host} has {have.commit[:10] or 'no commit'} ({have.outcome or 'no run yet'})")
    if rollout.is_halted(commit):
        return Passing(reason=_halt_reason(rollout))
    passed = rollout.passed.get(stage.label)
    if passed and passed.decision.commit == commit:
        return Passing(reason="it has passed already")
    return Passing(commit, max(have.ended for have in proving.values()) + stage.wait)


# -- the memory of a host ---------------------------------------------------------------------------------------------


def remember(rollout: Rollout) -> bytes:
    """Return what a host stores of a roll-out: the plan, and an operator's halt of every commit.

    A wiped cluster needs nothing else. The stages pass again what their hosts have, and a bad commit fails again at the
    first stage.
    """
    halt = rollout.halt.decision if rollout.halt and rollout.halt.decision.commit == EVERY_COMMIT else None
    return json.dumps({**json.loads(rollout.plan.dump()), **({"halt": dump(halt).decode()} if halt else {})}).encode()


def restoration(keys: Keys, checkout: str, stored: bytes) -> Operation | None:
    """Return the operation that restores a remembered roll-out unless there is a plan; None if it is unreadable."""
    plan = Plan.load(stored)
    if not plan:
        return None
    writes = [put(keys.plan(checkout), plan.dump())]
    halt = json.loads(stored).get("halt")
    if isinstance(halt, str):
        writes.append(put(keys.halt(checkout), halt.encode()))
    return nested([absent(keys.plan(checkout))], writes)


# -- transactions -----------------------------------------------------------------------------------------------------


class Transaction(NamedTuple):
    """Comparisons, and what is written if all of them hold."""

    compare: Sequence[Comparison]
    then: Sequence[Operation]


def take_turn(keys: Keys, rollout: Rollout, host: str, commit: str, lease: int) -> Transaction:
    """Return the transaction that enters the line, if the decisions are still those of this view."""
    stage = rollout.stage_of(host)
    turn = keys.turn(rollout.checkout, stage.label, host)
    before = rollout.before(stage)
    return Transaction(
        [
            absent(turn),
            _halt_unchanged(keys, rollout),
            *([_passed_unchanged(keys, rollout, before)] if before else []),
        ],
        [put(turn, commit.encode(), lease)],
    )


def leave_turn(keys: Keys, rollout: Rollout, host: str) -> Transaction:
    """Return the transaction that gives up a place in any line of this checkout."""
    held = [stage.label for stage in rollout.plan.stages if host in [turn.host for turn in rollout.line(stage)]]
    return Transaction([], [delete(keys.turn(rollout.checkout, label, host)) for label in held])


def end_turn(keys: Keys, rollout: Rollout, host: str, have: Have, halt: Decision | None) -> Transaction:
    """Return the transaction that ends a turn: status written, place given up, and the commit halted if it failed.

    If somebody changed the halt in the meantime it does not apply, and the caller decides again.
    """
    writes = [put(keys.have(host, rollout.checkout), dump(have)), *leave_turn(keys, rollout, host).then]
    if not halt or rollout.is_halted(halt.commit):
        return Transaction([], writes)
    return Transaction([_halt_unchanged(keys, rollout)], [*writes, put(keys.halt(rollout.checkout), dump(halt))])


def pass_stage(keys: Keys, rollout: Rollout, stage: Stage, decision: Decision) -> Transaction:
    """Return the transaction that decides that a stage has passed, if no decision changed since this view."""
    before = rollout.before(stage)
    return Transaction(
        [
            _halt_unchanged(keys, rollout),
            _passed_unchanged(keys, rollout, stage),
            *([_passed_unchanged(keys, rollout, before)] if before else []),
        ],
        [put(keys.passed(rollout.checkout, stage.label), dump(decision))],
    )


def _halt_unchanged(keys: Keys, rollout: Rollout) -> Comparison:
    return unchanged(keys.halt(rollout.checkout), rollout.halt.revision if rollout.halt else 0)


def _passed_unchanged(keys: Keys, rollout: Rollout, stage: Stage) -> Comparison:
    passed = rollout.passed.get(stage.label)
    return unchanged(keys.passed(rollout.checkout, stage.label), passed.revision if passed else 0)
