"""The values that the parts of the daemon exchange: deliveries, runs, and the records that belong to them.

Rules:

1. A value has no behavior. The journal stores it, and every other module reads it.
2. Every time is in seconds since the epoch.
3. A field with the name of a column has the content of that column.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from gitops_hook.outcomes import FLEET_STATES

#: The most commits that one run counts. After a clone or a rewritten history, git would walk the whole history.
COUNTED = 1000


class Delivery(NamedTuple):
    """An accepted webhook, or the request of a command. `id` and `run` are 0 until the journal has assigned them."""

    guid: str
    event: str
    received: float
    repository: str
    ref: str
    before: str = ""
    after: str = ""
    pusher: str = ""
    id: int = 0
    #: The newest run that claimed it.
    run: int = 0
    #: True until a run settles it.
    pending: bool = True
    #: Whether a person asked to deploy even a commit that was rolled back.
    force: bool = False


class Run(NamedTuple):
    """One execution of the script. It is running while `outcome` is None."""

    id: int
    repository: str
    trigger: str
    started: float
    ended: float | None = None
    outcome: str | None = None
    exit: int | None = None
    before: str | None = None
    after: str | None = None
    message: str | None = None
    #: The times at which steps ended, None for a step that did not happen: fetch, deploy, health check.
    fetched: float | None = None
    deployed: float | None = None
    healthy: float | None = None
    #: The number of commits that it deployed; None while that is unknown.
    brought: int | None = None
    #: Why the daemon ended it, or why a person must act after it: a key of `outcomes.CAUSES`, or None.
    cause: str | None = None
    #: One command that repairs the problem, or empty. It works when pasted.
    fix: str | None = None


class Claim(NamedTuple):
    """A run that has started, and the deliveries that it claimed, oldest first, as they were before the claim.

    The `run` of a delivery is therefore 0 if no earlier run claimed it.
    """

    run: Run
    served: tuple[Delivery, ...] = ()
    #: The name that the forge has given to the repository since, as a webhook said, or empty.
    renamed: str = ""

    @property
    def deliveries(self) -> int:
        """Return the number of deliveries."""
        return len(self.served)

    @property
    def newest(self) -> Delivery | None:
        """Return the newest delivery, or None."""
        return self.served[-1] if self.served else None


class Served(NamedTuple):
    """The deliveries of a run: their number, the time of the first, and the oldest of them as rows."""

    number: int
    received: float | None
    deliveries: Sequence[Delivery]


class Waited(NamedTuple):
    """The pushes of one repository that waited for their run: the longest time in seconds, and the newest arrival."""

    repository: str
    pushes: int
    longest: float
    last: float


class Commit(NamedTuple):
    """A commit as the page shows it. `time` is the committer's."""

    id: str
    author: str
    subject: str
    time: float


class RunSpan(NamedTuple):
    """A run as a bar of a chart. The outcome and the end are None while it is running."""

    outcome: str | None
    started: float
    ended: float | None


class History(NamedTuple):
    """The records of one repository that its status derives from."""

    newest: Run
    #: When a run last confirmed that the checkout is where upstream is.
    confirmed: float | None = None
    #: The commit at which a run last left the checkout. Author and subject are empty if they are unknown.
    commit: Commit | None = None
    #: The outcome of the newest run that has ended, and when a run last deployed a new commit.
    last_outcome: str | None = None
    deployed: float | None = None


class Streak(NamedTuple):
    """The newest runs of one repository, as far as they say something about it."""

    newest: Run
    #: The end of the first of the newest runs that all have an outcome that is retried without help, or None.
    waiting_since: float | None
    #: The newest run before those, or None.
    before_waiting: Run | None
    #: The end of the first run that did not confirm "in sync" after the last one that did, or None.
    failing_since: float | None


class HookPing(NamedTuple):
    """A registered webhook and its newest ping, which proves that the webhook reaches this daemon with our secret."""

    #: The forge's id of the webhook.
    hook: int
    #: The repository or organization that has the webhook.
    target: str
    #: The URL that the webhook delivers to.
    url: str
    guid: str
    #: When it was received; 0 before the first ping.
    received: float
    #: The `secrets.fingerprint` of the secret that signed it.
    signed: str


class CommitStatus(NamedTuple):
    """A commit status to send to the forge. A newer status of the same commit replaces it and increments `version`."""

    repository: str
    commit: str
    run: int
    #: ``pending``, ``success`` or ``failure``.
    state: str
    description: str
    changed: float = 0.0
    version: int = 1
    #: When to send it; None after it was sent.
    due: float | None = None
    #: The number of failed attempts to send it.
    tries: int = 0
    #: The forge's id of the deployment of this commit, or 0.
    deployment: int = 0


class NoticeState(NamedTuple):
    """The last notice about a failing repository: the reason, since when it fails, and when the notice was sent."""

    repository: str
    outcome: str
    since: float
    at: float


class FleetHost(NamedTuple):
    """A host of a fleet. `stage` is its label, `seen` its last sign of life."""

    name: str
    stage: str
    is_live: bool
    seen: float
    version: str


class FleetCell(NamedTuple):
    """A checkout on one host of a fleet. `state` is a key of `outcomes.FLEET_STATES`."""

    host: FleetHost
    state: str
    commit: str
    #: The commit that the host should have; empty if that is not known.
    expected: str
    outcome: str
    message: str
    #: The end of the first run with this result; 0 without a run.
    ended: float


class FleetStage(NamedTuple):
    """A stage of a roll-out: `done` of its `hosts`, the live ones with the checkout, are up to date."""

    #: The stage as an operator writes it: ``web:25%,wait=120s``.
    plan: str
    hosts: int
    done: int
    #: The commit that the stage should have, and the one that it has passed; empty if there is none.
    target: str
    passed: str


class FleetHalt(NamedTuple):
    """The end of a roll-out by a failed deploy, or by an operator. `commit` is empty if it stops every commit."""

    commit: str
    by: str
    reason: str
    at: float


class FleetRow(NamedTuple):
    """A checkout on all hosts of a fleet. Without a plan it has no stages."""

    checkout: str
    #: The commit of the newest push, and when it was received; empty and None if there was none.
    requested: str
    received: float | None
    cells: Sequence[FleetCell]
    stages: Sequence[FleetStage] = ()
    halt: FleetHalt | None = None

    @property
    def state(self) -> str:
        """Return the state of the live host that needs the most attention; "offline" only if no host is live."""
        present = {cell.state for cell in self.cells if cell.host.is_live} or {cell.state for cell in self.cells}
        return next((state for state in FLEET_STATES if state in present), "")

    @property
    def is_rolling_out(self) -> bool:
        """Return True while a stage has not passed the commit of the stage before it, or the roll-out is halted."""
        passed = {stage.passed for stage in self.stages}
        return bool(self.stages) and (self.halt is not None or passed != {self.stages[0].target})


class FleetGrid(NamedTuple):
    """One page of the checkouts of a fleet, by hosts. `hosts` are all hosts, in the order of the columns."""

    fleet: str
    revision: int
    hosts: Sequence[FleetHost]
    #: The number of checkouts by the state that needs the most attention.
    counts: Mapping[str, int]
    #: The number of checkouts that match the query, and those of the page.
    matching: int
    rows: Sequence[FleetRow]
    #: The roll-outs that have not ended, halted ones first, and the number of those that are left out.
    rollouts: Sequence[FleetRow]
    more_rollouts: int
