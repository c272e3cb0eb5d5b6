"""The webhook's WSGI application.

Rules:

1. Verify first, for every event. A request without a valid signature gets 401 and learns nothing else.
2. 202 means that the delivery is committed to the journal. Any other 2xx means that nothing was recorded.
3. A push that changes nothing on this host is a success (200) with a reason. Forges disable hooks that fail.
4. Every response is JSON: ``status``, and ``repository``, ``delivery`` and ``reason`` if they are known.
5. Every response is counted by a pair of `RESULTS`. No peer can create other pairs.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from http import HTTPStatus
from typing import Any, NamedTuple, Protocol

from gitops_hook.config import WEBHOOK
from gitops_hook.errors import HTTPError, JournalError
from gitops_hook.journal.names import announce_rename
from gitops_hook.journal.writer import Journal
from gitops_hook.log import log
from gitops_hook.model import Delivery, HookPing
from gitops_hook.names import may_clone
from gitops_hook.receiver.events import Event, Ignored, Ping, Push, Renamed, parse_event
from gitops_hook.receiver.forges import Forge, claimed_forge
from gitops_hook.receiver.large import parse_in_child
from gitops_hook.receiver.payload import RefChange
from gitops_hook.receiver.signatures import FORM, JSON, header_value, media_type
from gitops_hook.secrets import Secrets
from gitops_hook.sync.checkouts import Checkouts
from gitops_hook.sync.settings import follows
from gitops_hook.text import printable

HEALTH = "/healthz"
#: The methods of each path.
METHODS = {WEBHOOK: ("POST",), HEALTH: ("GET", "HEAD")}
#: The size of the largest body in bytes: GitHub's own limit.
MAX_BODY = 25 << 20
#: The size in bytes above which a payload is parsed in a process of its own, one at a time; and the time in seconds
#: that a request waits for its turn. GitHub gives up after 10 s.
_LARGE_BODY = 1 << 20
_LARGE_WAIT = 8.0
#: The size in bytes of the largest form whose decoded field is signed, because it is decoded before it is verified.
#: The forges that sign so send few commits.
MAX_FORM = 1 << 20
#: The size above which such forms are verified one at a time.
_SMALL_FORM = 64 << 10
#: The value of Retry-After, in seconds.
_RETRY_AFTER = "10"
#: The reasons to ignore a push on this host that may not hold on the other hosts of a fleet.
_RELEVANT_ELSEWHERE = ("checkout", "branch")
#: The class of the reason for each HTTP status of a rejection.
_REJECTIONS = {
    400: "malformed", 401: "signature", 404: "path", 405: "method", 408: "late", 411: "length", 413: "size",
    415: "media",
}  # fmt: skip
#: The classes of the reasons to ignore an authentic request.
IGNORED = ("ping", "event", "name", "ref", "checkout", "deleted", "branch", "nothing")
#: Every result of a request with the class of its reason: the labels of the metric.
RESULTS = (
    ("accepted", "push"),
    ("accepted", "rename"),
    *(("ignored", reason) for reason in IGNORED),
    *(("refused", reason) for reason in _REJECTIONS.values()),
    *(("failed", reason) for reason in ("journal", "checkouts", "fault")),
)


class Response(NamedTuple):
    """A response: its HTTP status and the members of its JSON object, without those that are None."""

    http: int
    status: str
    repository: str | None = None
    delivery: str | None = None
    reason: str | None = None
    #: "committed" if the fleet has the event, or "pending"; None on a host without a fleet.
    fleet: str | None = None
    #: How it is counted, one of `RESULTS`. Not part of the JSON object.
    result: tuple[str, str] | None = None
    #: The new commit of an accepted push, for the log. Not part of the JSON object.
    commit: str | None = None

    def body(self) -> str:
        """Return the JSON object."""
        members = zip(self._fields[1:6], self[1:6])
        return json.dumps({name: value for name, value in members if value}) + "\n"


class Forwarder(Protocol):
    """The fleet's side of an accepted event."""

    def accept(
        self,
        deliveries: Sequence[Delivery],
        event: Delivery,
        *,
        default_branch: str = "",
        renamed: str = "",
        path: str = "",
    ) -> int:
        """Commit an event and its deliveries on this host; return a number to wait for. Raises JournalError."""

    def wait(self, row: int) -> str:
        """Return "committed" if the fleet has the event, or "pending" after a short time."""


def _rejection(status: int, reason: str, delivery: str | None = None) -> Response:
    return Response(int(status), "refused", None, delivery, reason, result=("refused", _REJECTIONS[status]))


def _unavailable(kind: str, reason: str, delivery: str | None) -> Response:
    return Response(503, "unavailable", None, delivery, reason, result=("failed", kind))


class WebhookApp:
    """The WSGI application. Any thread may call it."""

    def __init__(
        self,
        secrets: Callable[[], Secrets],
        checkouts: Checkouts,
        journal: Journal,
        notify: Callable[[str], None],
        clone: Sequence[str] = (),
        *,
        fleet: Forwarder | None = None,
        count: Callable[[str, str, str], None] = lambda result, reason, peer: None,
        now: Callable[[], float] = time.time,
    ) -> None:
        """Create the application.

        `secrets` returns the secrets in force. `notify` is called with each repository that has a new pending delivery.
        `clone` holds the patterns of repositories to clone on their first push. `fleet` forwards pushes to other hosts.
        `count` is called with a pair of `RESULTS` and the address of the peer for each response. `now` returns the time
        in seconds since the epoch.
        """
        self._secrets = secrets
        self._checkouts = checkouts
        self._journal = journal
        self._notify = notify
        self._clone = clone
        self._fleet = fleet
        self._count = count
        self._now = now
        # Held while a form is decoded and verified, by the thread that does it. Several at a time would keep the other
        # threads from the interpreter.
        self._decoding = threading.Lock()
        # Held while a child process parses a large payload, by the thread that waits for it. It limits the processes.
        self._parsing_large = threading.Lock()

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        """Respond to a request."""
        headers = []
        method, path = environ["REQUEST_METHOD"], environ.get("PATH_INFO", "")
        path = WEBHOOK if path == WEBHOOK + "/" else path
        allowed = METHODS.get(path)
        if allowed is None:
            response = _rejection(404, f"webhooks go to {WEBHOOK}")
        elif method not in allowed:
            response = _rejection(405, f"this path accepts only {' and '.join(allowed)}")
            headers = [("Allow", ", ".join(allowed))]
        elif path == HEALTH:
            response = self._health()
        else:
            response = self._receive(environ)
        if response.result:
            self._count(*response.result, environ.get("REMOTE_ADDR", ""))
        body = response.body()
        if response.http == HTTPStatus.SERVICE_UNAVAILABLE:
            headers.append(("Retry-After", _RETRY_AFTER))
        headers += [("Content-Type", "application/json"), ("Content-Length", str(len(body)))]
        start_response(f"{response.http} {HTTPStatus(response.http).phrase}", headers)
        return [b"" if method == "HEAD" else body.encode("ascii")]

    def _health(self) -> Response:
        if self._journal.fault:
            self._journal.probe()  # the disk may work again although nothing was written since
        if self._journal.fault:
            return Response(503, "unavailable", reason="the journal cannot be written")
        return Response(200, "ok")

    def _receive(self, environ: dict[str, Any]) -> Response:
        """Verify, parse and record a webhook. Write one line to the log."""
        started = time.monotonic()
        forge = delivery = secret = event = None
        try:
            forge = claimed_forge(environ)
            delivery = printable(header_value(environ, forge.delivery)) or None
            body = _read_body(environ)
            secrets = self._secrets()
            secret = self._verify(forge, environ, body, secrets)
            if secret is None:
                raise HTTPError(401, f"the signature {forge.signature.header} is missing or wrong")
            event = self._parse(forge, environ, body)
            if isinstance(event, Ping) and event.hook:
                self._record_ping(event, delivery, secrets.fingerprint(secret))
            response = self._respond(event, delivery)
        except HTTPError as error:  # raised here, or by the server while the body is read
            if error.status in _REJECTIONS:
                response = _rejection(error.status, error.reason, delivery if secret else None)
            else:
                response = _unavailable("fault", error.reason, None)
        except JournalError:
            response = _unavailable("journal", "the journal cannot be written now", delivery)
        except OSError as error:  # git cannot be started: no process, descriptor or memory is free, or it is missing
            log.error("checkouts cannot be read", delivery=delivery, reason=error)
            response = _unavailable("checkouts", "the checkouts cannot be read now", delivery)
        except Exception:
            self._count("failed", "fault", environ.get("REMOTE_ADDR", ""))
            raise
        write = log.info if response.http < HTTPStatus.BAD_REQUEST else log.warning
        write(
            f"webhook {response.status}",
            fleet=response.fleet,
            delivery=delivery,
            repository=response.repository or (event.repository if event else None),
            event=printable(header_value(environ, forge.event)) or None if forge else None,
            commit=response.commit,
            http=response.http,
            secret=secret,
            forge=forge.name if forge else None,
            reason=response.reason,
            peer=environ.get("REMOTE_ADDR"),
            ms=round((time.monotonic() - started) * 1000, 1),
        )
        return response

    def _verify(self, forge: Forge, environ: dict[str, Any], body: bytes, secrets: Secrets) -> str | None:
        """Return the name of the secret that signed a request, or None. Raise `HTTPError` (413) for a large form."""
        decodes = len(body) > _SMALL_FORM and forge.signature.signs_field and media_type(environ) == FORM
        if decodes and len(body) > MAX_FORM:
            raise HTTPError(413, f"forms are limited to {MAX_FORM >> 20} MiB; use {JSON}")
        with self._decoding if decodes else nullcontext():
            return secrets.match(forge.signature.proof(environ, body, self._now()))

    def _parse(self, forge: Forge, environ: dict[str, Any], body: bytes) -> Event:
        if len(body) <= _LARGE_BODY:
            return parse_event(forge, environ, body)
        if not self._parsing_large.acquire(timeout=_LARGE_WAIT):
            raise HTTPError(503, "too many large payloads are being parsed")
        try:
            return parse_in_child(forge, environ, body)
        finally:
            self._parsing_large.release()

    def _record_ping(self, ping: Ping, guid: str | None, signed: str) -> None:
        """Record that this hook reaches the daemon, for the command that created the hook and waits for its ping."""
        self._journal.record_ping(HookPing(ping.hook, ping.target, ping.url, guid or "", self._now(), signed))

    def _respond(self, event: Event, guid: str | None) -> Response:
        """Record a push that concerns this host. Return the response to any event."""
        if isinstance(event, Ping):
            return Response(200, "pong", event.repository, guid, result=("ignored", "ping"))
        if isinstance(event, Renamed):
            return self._record_rename(event, guid)
        changes = self._tracked_changes(event) if isinstance(event, Push) else event
        is_relevant = not isinstance(changes, Ignored) or changes.kind in _RELEVANT_ELSEWHERE
        if self._fleet and isinstance(event, Push) and is_relevant:
            return self._forward(event, {} if isinstance(changes, Ignored) else changes, guid, self._fleet)
        if isinstance(changes, Ignored):
            return Response(200, "ignored", changes.repository, guid, changes.reason, result=("ignored", changes.kind))
        assert isinstance(event, Push)
        self._journal.record(*(self._delivery(event, name, change, guid) for name, change in changes.items()))
        for name in changes:
            self._notify(name)
        commit = next(iter(changes.values())).after or None
        return Response(202, "queued", event.repository, guid, result=("accepted", "push"), commit=commit)

    def _record_rename(self, event: Renamed, guid: str | None) -> Response:
        """Ask for a run of each checkout of a renamed repository; the run reports the new name."""
        names = [checkout.repository for checkout in self._checkouts.find_all(event.repository, event.path)]
        if not names and not self._fleet:
            reason = "this host has no checkout of the repository"
            return Response(200, "ignored", event.repository, guid, reason, result=("ignored", "checkout"))
        received, row = self._now(), 0
        deliveries = [Delivery(guid or "", "renamed", received, name, "") for name in names]
        if self._fleet:
            own = Delivery(guid or "", "renamed", received, event.repository, "")
            row = self._fleet.accept(deliveries, own, renamed=event.name, path=event.path)
        else:
            announce_rename(self._journal, deliveries, event.name)
        for name in names:
            self._notify(name)
        fleet = self._fleet.wait(row) if self._fleet else None
        return Response(202, "queued", event.repository, guid, fleet=fleet, result=("accepted", "rename"))

    def _delivery(self, push: Push, checkout: str, change: RefChange, guid: str | None) -> Delivery:
        ref, before, after = change.ref, change.before, change.after
        return Delivery(guid or "", "push", self._now(), checkout, ref, before, after, push.pusher)

    def _forward(self, push: Push, tracked: dict[str, RefChange], guid: str | None, fleet: Forwarder) -> Response:
        """Record a push for the checkouts of this host that it concerns, and for the other hosts."""
        deliveries = [self._delivery(push, name, change, guid) for name, change in tracked.items()]
        changes = [change for change in push.changes if not change.deleted]
        # Other hosts may track any of several refs, so those are announced without a name.
        announced = changes[0] if len(changes) == 1 else RefChange("", "", "", deleted=False)
        own = self._delivery(push, push.repository, announced, guid)
        row = fleet.accept(deliveries, own, default_branch=push.default_branch)
        for name in tracked:
            self._notify(name)
        return Response(
            202,
            "queued",
            push.repository,
            guid,
            fleet=fleet.wait(row),
            result=("accepted", "push"),
            commit=announced.after or None,
        )

    def _tracked_changes(self, push: Push) -> dict[str, RefChange] | Ignored:
        """Return the change for each checkout whose tracked branch moved, by name, or the reason why there is none."""

        def ignored(kind: str, reason: str) -> Ignored:
            return Ignored(push.repository, kind, reason)

        checkouts = self._checkouts.find_all(push.repository, push.path)
        flat = push.repository.rpartition("/")[2]
        foreign = not checkouts and (self._checkouts.find(push.repository) or self._checkouts.find(flat))
        if foreign or not (checkouts or may_clone(push.repository, self._clone)):
            other = "the checkout of this name on this host belongs to another repository"
            return ignored("checkout", other if foreign else "this host has no checkout of the repository")
        if not push.changes:
            return ignored("nothing", "the push changed no ref")
        named = [change for change in push.changes if change.ref]
        if not named:
            return ignored("ref", "the name of the ref is missing, too long or unusual")
        present = [change for change in named if not change.deleted]
        if not present:
            return ignored("deleted", "the ref was deleted")
        # A repository to clone has no settings yet.
        settings = {checkout.repository: checkout.settings for checkout in checkouts} or {push.repository: {}}
        found: dict[str, RefChange] = {}
        for name, own in settings.items():
            change = next((change for change in present if follows(own, push.default_branch, change.ref)), None)
            if change:
                found[name] = change
        if found:
            return found
        branches = {own.get("branch") or push.default_branch for own in settings.values() if not own.get("tag")}
        tags = {own["tag"] for own in settings.values() if own.get("tag")}
        tracked = [
            f"the tracked {what} is {', '.join(f'`{printable(name)}`' for name in sorted(names))}"
            for what, names in (("branch", branches), ("pattern of tags", tags))
            if names
        ]
        return ignored("branch", "; ".join(tracked))


def _read_body(environ: dict[str, Any]) -> bytes:
    """Return the complete body. Raise `HTTPError`: 411 without a length, 413 if it is too large, 400 if it is cut."""
    too_large = HTTPError(413, f"the body is larger than {MAX_BODY >> 20} MiB")
    body: bytes
    if environ.get("wsgi.input_terminated"):  # chunked
        body = environ["wsgi.input"].read(MAX_BODY + 1)
        if len(body) > MAX_BODY:
            raise too_large
        return body
    length = environ.get("CONTENT_LENGTH", "")
    if not length.isascii() or not length.isdigit():
        raise HTTPError(411, "there is no Content-Length")
    if int(length) > MAX_BODY:
        raise too_large
    body = environ["wsgi.input"].read(int(length))
    if len(body) != int(length):
        raise HTTPError(400, "the body ends early")
    return body
