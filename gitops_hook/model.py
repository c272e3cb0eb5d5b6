"""What the journal holds, as facts to pass around: deliveries and runs, and what hangs on them. Nothing here acts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

#: So many are counted: a history that was rewritten, or cloned, would have git walk all of it.
COUNTED = 1000
#: What is said of a run that the daemon's shutdown ended.
ENDED_BY_US = "The daemon's shutdown ended this run; it is done again at the next start."
#: What is said of a run that was ended with the command that did it.
ENDED_WITH_COMMAND = "A signal ended the command that did this run; the daemon tries it again in a minute or two."
#: What is said of a run that was in hand when its process died, the daemon or a command.
DIED = "The process that did this run died with it in hand; what it owed is done again."


class Delivery(NamedTuple):
    """An accepted webhook. `received` is in seconds since the epoch; `id` and `run` are 0 until they are known."""

    guid: str
    event: str
    received: float
    repository: str
    ref: str
    before: str = ""
    after: str = ""
    pusher: str = ""
    id: int = 0
    run: int = 0
    pending: bool = True


class HookPing(NamedTuple):
    """The newest ping of one webhook: the proof that it reaches us, and that its secret is ours.

    `hook` is the forge's id, `target` the repository or organisation that it belongs to, `url` where the forge sends;
    `signed` tells the secret by its `webhook.fingerprint`.
    """

    hook: int
    target: str
    url: str
    guid: str
    received: float
    signed: str


class CommitStatus(NamedTuple):
    """What the forge is to be told of a commit: ``pending``, ``success`` or ``failure``, and a sentence.

    A newer report on the same commit takes the place of this one and counts `version` up. `tries` have failed so far;
    `deployment` is the forge's id of the deployment made for the commit, or 0.
    """

    repository: str
    commit: str
    run: int
    state: str
    description: str
    changed: float = 0.0
    version: int = 1
    due: float | None = None
    tries: int = 0
    deployment: int = 0


class Run(NamedTuple):
    """One run of the script, in hand while `outcome` is None. Times are in seconds since the epoch."""

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
    #: When steps were over, those that came to pass: upstream asked, the deploy made, its health check passed.
    fetched: float | None = None
    deployed: float | None = None
    healthy: float | None = None
    #: How many commits it brought; None while that is not known.
    brought: int | None = None


class Commit(NamedTuple):
    """A commit, as far as it is shown. `time` is its committer's, in seconds since the epoch."""

    id: str
    author: str
    subject: str
    time: float


class Served(NamedTuple):
    """The deliveries that a run serves: how many, when the first was received, and the oldest of them."""

    number: int
    received: float | None
    deliveries: Sequence[Delivery]


class History(NamedTuple):
    """What is remembered of one repository."""

    newest: Run
    #: When a run last left the checkout where upstream was, in seconds since the epoch.
    confirmed: float | None
    #: Where a run last left the checkout; author and subject are empty where they are not known.
    commit: Commit | None
    #: Its last runs, newest first: outcome (None in hand), started, ended.
    history: Sequence[tuple[str | None, float, float | None]]


class Claim(NamedTuple):
    """A run that has begun, and the deliveries that it serves, oldest first, as they were before it claimed them.

    So the `run` of a delivery is 0 where this run is the first to serve it.
    """

    run: Run
    served: tuple[Delivery, ...] = ()

    @property
    def deliveries(self) -> int:
        """How many it serves."""
        return len(self.served)

    @property
    def newest(self) -> Delivery | None:
        """The one that came last."""
        return self.served[-1] if self.served else None


class NoticeState(NamedTuple):
    """What the operator was last told of a repository that fails: why, since when, and when that was said."""

    repository: str
    outcome: str
    since: float
    at: float
