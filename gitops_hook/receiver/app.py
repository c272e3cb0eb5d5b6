"""The webhook's WSGI application: what is answered to whom.

Rules:

1. Verify first, whatever the event; an unproven request learns nothing but 401.
2. 202 means that the delivery is on the disk. Nothing is half-accepted: either it is, or the answer is no 2xx.
3. A push that moves nothing here is a success (200) with its reason: the forge would show anything else as failed.
4. Every answer is JSON: ``status``, and ``repository``, ``delivery`` and ``reason`` as far as they are known.
5. Every answer is counted, by its result and the class of its reason (`RESULTS`), whatever a peer sends.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from http import HTTPStatus
from typing import Any, NamedTuple, Protocol

from gitops_hook.config import WEBHOOK
from gitops_hook.errors import HTTPError, JournalError
from gitops_hook.journal.writer import Journal
from gitops_hook.log import log
from gitops_hook.model import Delivery, HookPing
from gitops_hook.names import may_clone
from gitops_hook.receiver.forges import Event, Forge, Move, Other, Ping, Push, claimed, header, parse
from gitops_hook.secrets import Secrets
from gitops_hook.sync.checkouts import Checkouts
from gitops_hook.text import printable

HEALTH = "/healthz"
#: GitHub's own bound on a payload.
MAX_BODY = 25 << 20
#: Above this a payload is parsed while no other such is: it takes many times its size in memory while it lasts.
_LARGE_BODY = 1 << 20
#: Seconds after which a forge, or the person who looks after it, may try again.
_RETRY_AFTER = "10"
#: The reasons to ignore a push on this host that do not hold on the other hosts of a fleet.
_MOVES_ELSEWHERE = ("checkout", "branch")
#: The classes of reasons for a refusal, by HTTP status.
_REFUSALS = {
    400: "malformed", 401: "signature", 404: "path", 405: "method", 408: "late", 411: "length", 413: "size",
    415: "media",
}  # fmt: skip
#: What deliveries can come to, and the class of the reason: all that is ever counted.
RESULTS = (
    ("accepted", "push"),
    *(("ignored", reason) for reason in ("ping", "event", "checkout", "deleted", "branch", "nothing")),
    *(("refused", reason) for reason in _REFUSALS.values()),
    *(("failed", reason) for reason in ("journal", "checkouts", "fault")),
)


class Answer(NamedTuple):
    """An HTTP status and the members of the JSON object that goes with it; a member that is None is left out."""

    http: int
    status: str
    repository: str | None = None
    delivery: str | None = None
    reason: str | None = None
    #: Whether the fleet has the push, on a host that belongs to one.
    fleet: str | None = None
    #: What it is counted as, one of `RESULTS`; no member of the object.
    result: tuple[str, str] | None = None
    #: The commit that an accepted push came to, for the log; no member either.
    commit: str | None = None

    def body(self) -> str:
        """The JSON object."""
        members = zip(self._fields[1:6], self[1:6])
        return json.dumps({name: value for name, value in members if value}) + "\n"


class Forwarder(Protocol):
    """The fleet's side of an accepted push."""

    def accept(self, deliveries: Sequence[Delivery], push: Delivery, default_branch: str) -> int:
        """Commit a push and its deliveries on this host; return a number to wait for. Raises JournalError."""

    def wait(self, row: int) -> str:
        """Return "committed" if the fleet has the push, or "pending" after a short time."""


class Ignored(NamedTuple):
    """Why a push moves nothing here: the class of the reason, and the reason in a sentence."""

    kind: str
    reason: str


def _refusal(status: int, reason: str, delivery: str | None = None) -> Answer:
    return Answer(status, "refused", None, delivery, reason, result=("refused", _REFUSALS[status]))


def _unavailable(what: str, reason: str, delivery: str | None) -> Answer:
    return Answer(503, "unavailable", None, delivery, reason, result=("failed", what))


class WebhookApp:
    """The callable. Threads may share it."""

    def __init__(
        self,
        secrets: Callable[[], Secrets],
        checkouts: Checkouts,
        journal: Journal,
        wake: Callable[[str], None],
        clone: Sequence[str] = (),
        *,
        fleet: Forwarder | None = None,
        count: Callable[[str, str], None] = lambda result, reason: None,
        now: Callable[[], float] = time.time,
    ) -> None:
        """`secrets` gives those in force; `wake` is told each repository that a delivery is owed to.

        `count` is told what each answer comes to, one of `RESULTS`; `now` is the time in seconds since the epoch.
        """
        self._secrets = secrets
        self._checkouts = checkouts
        self._journal = journal
        self._wake = wake
        self._clone = clone
        self._fleet = fleet
        self._count = count
        self._now = now
        self._large = threading.Lock()  # held while a large body is parsed, see _LARGE_BODY

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        """Answer a request."""
        headers = []
        method, path = environ["REQUEST_METHOD"], environ.get("PATH_INFO", "")
        allowed = {WEBHOOK: ("POST",), HEALTH: ("GET", "HEAD")}.get(path)
        if allowed is None:
            answer = _refusal(404, "there is nothing at this path")
        elif method not in allowed:
            answer = _refusal(405, f"this path takes {' and '.join(allowed)} alone")
            headers = [("Allow", ", ".join(allowed))]
        elif path == HEALTH:
            answer = self._health()
        else:
            answer = self._deliver(environ)
        if answer.result:
            self._count(*answer.result)
        body = answer.body()
        if answer.http == HTTPStatus.SERVICE_UNAVAILABLE:
            headers.append(("Retry-After", _RETRY_AFTER))
        headers += [("Content-Type", "application/json"), ("Content-Length", str(len(body)))]
        start_response(f"{answer.http} {HTTPStatus(answer.http).phrase}", headers)
        return [b"" if method == "HEAD" else body.encode("ascii")]

    def _health(self) -> Answer:
        if self._journal.fault:
            self._journal.probe()  # it may have healed without anyone writing since
        if self._journal.fault:
            return Answer(503, "unavailable", reason="the journal cannot be written")
        return Answer(200, "ok")

    def _deliver(self, environ: dict[str, Any]) -> Answer:
        began = time.monotonic()
        forge = delivery = secret = event = None
        try:
            forge = claimed(environ)
            delivery = printable(header(environ, forge.delivery)) or None
            body = _read(environ)
            secrets = self._secrets()
            secret = secrets.match(forge.signature.proof(environ, body, self._now()))
            if secret is None:
                raise HTTPError(401, f"the signature {forge.signature.header} is missing or wrong")
            event = self._parse(forge, environ, body)
            if isinstance(event, Ping) and event.hook:
                self._keep(event, delivery, secrets.fingerprint(secret))
            answer = self._judge(event, delivery)
        except HTTPError as error:  # of this module, or of the server while it reads the body
            if error.status in _REFUSALS:
                answer = _refusal(error.status, error.reason, delivery if secret else None)
            else:
                answer = _unavailable("fault", error.reason, None)
        except JournalError:
            answer = _unavailable("journal", "the journal cannot be written now", delivery)
        except OSError as error:  # git cannot be run: no process, no descriptor, no memory, no git
            log.error("checkouts cannot be looked at", delivery=delivery, reason=error)
            answer = _unavailable("checkouts", "the checkouts cannot be looked at now", delivery)
        except Exception:
            self._count("failed", "fault")
            raise
        tell = log.info if answer.http < HTTPStatus.BAD_REQUEST else log.warning
        tell(
            f"webhook {answer.status}",
            fleet=answer.fleet,
            delivery=delivery,
            repository=answer.repository or (event.repository if event else None),
            event=printable(header(environ, forge.event)) or None if forge else None,
            commit=answer.commit,
            http=answer.http,
            secret=secret,
            forge=forge.name if forge else None,
            reason=answer.reason,
            peer=environ.get("REMOTE_ADDR"),
            ms=round((time.monotonic() - began) * 1000, 1),
        )
        return answer

    def _keep(self, ping: Ping, guid: str | None, signed: str) -> None:
        """Remember that this hook reaches us, for whoever registered it and waits to see that."""
        self._journal.record_ping(HookPing(ping.hook, ping.target, ping.url, guid or "", self._now(), signed))

    def _judge(self, event: Event, guid: str | None) -> Answer:
        if isinstance(event, Ping):
            return Answer(200, "pong", event.repository, guid, result=("ignored", "ping"))
        if isinstance(event, Other):
            reason = f"the event `{event.event}` moves nothing here"
            return Answer(200, "ignored", event.repository, guid, reason, result=("ignored", "event"))
        move = self._choose(event)
        if self._fleet and (not isinstance(move, Ignored) or move.kind in _MOVES_ELSEWHERE):
            return self._forward(event, move, guid, self._fleet)
        if isinstance(move, Ignored):
            return Answer(200, "ignored", event.repository, guid, move.reason, result=("ignored", move.kind))
        self._journal.record(self._delivery(event, move, guid))
        self._wake(event.repository)
        return Answer(202, "queued", event.repository, guid, result=("accepted", "push"), commit=move.after or None)

    def _delivery(self, push: Push, move: Move, guid: str | None) -> Delivery:
        return Delivery(
            guid=guid or "",
            event="push",
            received=self._now(),
            repository=push.repository,
            ref=move.ref,
            before=move.before,
            after=move.after,
            pusher=push.pusher,
        )

    def _forward(self, push: Push, move: Move | Ignored, guid: str | None, fleet: Forwarder) -> Answer:
        """Accept a push for this host, if it moves something here, and for the other hosts."""
        deliveries = [] if isinstance(move, Ignored) else [self._delivery(push, move, guid)]
        moves = [move for move in push.moves if not move.deleted]
        # Of several refs, other hosts may track any: they are announced without a name.
        announced = moves[0] if len(moves) == 1 else Move("", "", "", deleted=False)
        row = fleet.accept(deliveries, self._delivery(push, announced, guid), push.default_branch)
        if deliveries:
            self._wake(push.repository)
        return Answer(
            202,
            "queued",
            push.repository,
            guid,
            fleet=fleet.wait(row),
            result=("accepted", "push"),
            commit=announced.after or None,
        )

    def _parse(self, forge: Forge, environ: dict[str, Any], body: bytes) -> Event:
        if len(body) > _LARGE_BODY:
            with self._large:
                return parse(forge, environ, body)
        return parse(forge, environ, body)

    def _choose(self, push: Push) -> Move | Ignored:
        """The move of this push that may move something on this host, or why none does."""
        checkout = self._checkouts.find(push.repository)
        if not checkout and not may_clone(push.repository, self._clone):
            return Ignored("checkout", "there is no checkout of it on this host")
        moves = [move for move in push.moves if not move.deleted]
        if not moves:
            return (
                Ignored("deleted", "the ref was deleted") if push.moves else Ignored("nothing", "the push moved no ref")
            )
        branch = checkout.settings.get("branch") if checkout else None
        branch = branch or push.default_branch
        if not branch:  # the script finds out
            return moves[0]
        tracked = next((move for move in moves if move.is_of(branch)), None)
        return tracked or Ignored("branch", f"the tracked branch is `{printable(branch)}`")


def _read(environ: dict[str, Any]) -> bytes:
    """The raw body, whole."""
    length = environ.get("CONTENT_LENGTH", "")
    if not length.isascii() or not length.isdigit():
        raise HTTPError(411, "there is no Content-Length")
    if int(length) > MAX_BODY:
        raise HTTPError(413, f"the body is larger than {MAX_BODY >> 20} MiB")
    body: bytes = environ["wsgi.input"].read(int(length))
    if len(body) != int(length):
        raise HTTPError(400, "the body ends early")
    return body
