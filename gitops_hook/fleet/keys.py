"""The keys of a fleet in etcd, and their values. No I/O.

| key below ``/gitops-hook/<fleet>/`` | value | writer |
|---|---|---|
| ``w/life`` | a random id; a cluster that was wiped has another one | the first daemon |
| ``w/want/<owner/name>`` | `Want`: the newest push of the repository, or its new name | receivers |
| ``w/host/<host>`` | `Host`; exists while the host's lease does | the host |
| ``w/plan/<checkout>`` | the stages of a roll-out (`rollout.Plan`); none if the plan was deleted | an operator |
| ``w/passed/<checkout>/<stage>`` | `Decision`: the commit that the stage proved | the stage's hosts, an operator |
| ``w/halt/<checkout>`` | `Decision`: the commit that must not proceed | hosts, an operator |
| ``w/turn/<checkout>/<stage>/<host>`` | the commit; a place in the stage's line, on the host's lease | the host |
| ``w/role/<role>`` | the host that reports for the fleet, on its lease (`reporter`) | the first host that can |
| ``r/<role>/<checkout>`` | `Report`: the last one, which the next holder does not repeat | the host of the role |
| ``seen/<guid>`` | the repository; makes a second delivery of the same push harmless | receivers |
| ``s/<host>/host`` | `Host`, with the last sign of life; remains while the host is offline | the host |
| ``s/<host>/have/<checkout>`` | `Have`: the commit that the host deployed last | the host |

Each host watches ``w/`` and nothing else: if status keys were below it, each push would cost N x N events.
Names are in lower case, because forges compare them without regard to case.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple, TypeVar

#: The `Decision.commit` of a halt that an operator ordered: no commit proceeds.
EVERY_COMMIT = "*"


class Want(NamedTuple):
    """The newest event of a repository, as a receiver accepted it. Times are in seconds since the epoch.

    `ref` is empty if a push moved several; `via` is the host that received it. `renamed` is the name that the forge has
    given to the repository, "" for a push; `path` is then the old full path if its owner is a nested group. A push
    replaces an earlier new name: it shows that a repository has the old one again.
    """

    repository: str = ""
    ref: str = ""
    before: str = ""
    after: str = ""
    guid: str = ""
    received: float = 0.0
    pusher: str = ""
    default_branch: str = ""
    via: str = ""
    renamed: str = ""
    path: str = ""


class Host(NamedTuple):
    """A host: its labels, the start of its daemon (`since`) and its last sign of life (`seen`)."""

    labels: Mapping[str, str] = MappingProxyType({})
    version: str = ""
    since: float = 0.0
    seen: float = 0.0

    @property
    def stage(self) -> str:
        """Return the label that places the host in a stage; empty if it has none."""
        return self.labels.get("stage", "")


class Have(NamedTuple):
    """The state of a checkout on one host: the deployed commit, and the last run with its outcome.

    `paused` is True while an operator of the host holds the checkout (``gitops.paused``, ``gitops.pin``). `cause` is
    that of the run (`outcomes.CAUSES`), "" if it has none.
    """

    commit: str = ""
    outcome: str = ""
    run: int = 0
    guid: str = ""
    want: int = 0
    ended: float = 0.0
    message: str = ""
    paused: bool = False
    cause: str = ""


class Decision(NamedTuple):
    """A decision of a roll-out, and its author: a host, or an operator by name.

    `outcome` is that of the run that halted the commit; it is empty for every other decision.
    """

    commit: str = ""
    by: str = ""
    at: float = 0.0
    reason: str = ""
    outcome: str = ""


class Report(NamedTuple):
    """The last report about a checkout: a notice (`state` is its outcome), or the status of a commit."""

    state: str = ""
    commit: str = ""
    since: float = 0.0
    at: float = 0.0


class Keys:
    """The names of one fleet's keys."""

    def __init__(self, fleet: str) -> None:
        self.fleet = fleet
        self.root = f"/gitops-hook/{fleet}/"
        self.watched = self.root + "w/"
        self.life = self.watched + "life"
        self.wants = self.watched + "want/"
        self.hosts = self.watched + "host/"
        self.plans = self.watched + "plan/"
        self.statuses = self.root + "s/"
        #: Everything that a view holds: what is watched, except pushes and the life.
        self.viewed = [self.watched + kind for kind in ("host/", "plan/", "passed/", "halt/", "turn/", "role/")]

    def want(self, repository: str) -> str:
        """Return the key of a repository's newest push."""
        return self.wants + repository.lower()

    def seen(self, guid: str) -> str:
        """Return the key that marks a delivery as forwarded."""
        return f"{self.root}seen/{guid}"

    def host(self, host: str) -> str:
        """Return the key of a live host."""
        return self.hosts + host

    def plan(self, checkout: str) -> str:
        """Return the key of a checkout's plan."""
        return self.plans + checkout.lower()

    def passed(self, checkout: str, stage: str) -> str:
        """Return the key of the commit that a stage proved."""
        return f"{self.watched}passed/{checkout.lower()}/{stage}"

    def halt(self, checkout: str) -> str:
        """Return the key of the commit that must not proceed."""
        return f"{self.watched}halt/{checkout.lower()}"

    def turn(self, checkout: str, stage: str, host: str) -> str:
        """Return the key of a host's place in the line of a stage."""
        return f"{self.watched}turn/{checkout.lower()}/{stage}/{host}"

    def role(self, role: str) -> str:
        """Return the key of the host that has a role."""
        return f"{self.watched}role/{role}"

    def report(self, role: str, checkout: str = "") -> str:
        """Return the key of the last report about a checkout, or the prefix of all reports of a role."""
        return f"{self.root}r/{role}/{checkout.lower()}"

    def have(self, host: str, checkout: str) -> str:
        """Return the key of a host's status of a checkout."""
        return self.haves(host) + checkout.lower()

    def haves(self, host: str) -> str:
        """Return the prefix of a host's statuses."""
        return f"{self.statuses}{host}/have/"

    def last_seen(self, host: str) -> str:
        """Return the key that keeps a host's labels and last sign of life while it is offline."""
        return f"{self.statuses}{host}/host"

    def status_of(self, key: str) -> tuple[str, str]:
        """Return host and checkout of a status key; the checkout is empty for the host's own key."""
        host, _, rest = key[len(self.statuses) :].partition("/")
        return host, rest[len("have/") :] if rest.startswith("have/") else ""


#: The kinds of values that `load` reads.
T = TypeVar("T", Want, Host, Have, Decision, Report)


def dump(value: Want | Host | Have | Decision | Report) -> bytes:
    """Return the stored form of a value: JSON without the fields that have their default."""
    defaults = value._field_defaults
    fields = {name: field for name, field in value._asdict().items() if field != defaults[name]}
    return json.dumps(fields, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")


def load(kind: type[T], stored: bytes) -> T | None:
    """Return a stored value, or None if it is not one.

    Fields that this version does not know are ignored: a later version may have added them. So is a field of another
    type than its default.
    """
    try:
        fields = json.loads(stored)
    except ValueError:
        return None
    if not isinstance(fields, dict):
        return None
    return kind(**{name: fields[name] for name in kind._fields if _fits(kind._field_defaults[name], fields.get(name))})


def _fits(default: Any, value: Any) -> bool:
    if isinstance(default, Mapping):
        return isinstance(value, dict) and all(isinstance(field, str) for field in value.values())
    if isinstance(value, bool) or isinstance(default, bool):
        return isinstance(value, bool) and isinstance(default, bool)
    return isinstance(value, (int, float) if isinstance(default, float) else type(default))
