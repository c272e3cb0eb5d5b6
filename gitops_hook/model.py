"""The values that the parts of the daemon exchange: deliveries, runs, and the records that belong to them.

Rules:

1. A value has no behaviour. The journal stores it, and every other module reads it.
2. Every time is in seconds since the epoch.
3. A field with the name of a column has the content of that column.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

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


class Commit(NamedTuple):
    """A commit as the page shows it. `time` is the committer's."""

    id: str
    author: str
    subject: str
    time: float


class History(NamedTuple):
    """The records of one repository that its status derives from."""

    newest: Run
    #: When a run last confirmed that the checkout is where upstream is.
    confirmed: float | None
    #: The commit at which a run last left the checkout. Author and subject are empty if they are unknown.
    commit: Commit | None
    #: The newest runs, newest first: outcome (None while running), started, ended.
    history: Sequence[tuple[str | None, float, float | None]]


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
