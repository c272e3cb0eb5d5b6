"""Reading a forge's webhook: headers and a body go in, an event comes out.

Rules:

1. A forge is a row of `FORGES`, which says all that is its own: what it is known by, how it signs, what stands where.
2. The header that names the event tells whose request it is. No signature is tried to find that out, and who claims to
   be two forges is refused (`claimed`).
3. Verify first; parse only what is proven (`Secrets.match`, then `parse`). Proven is the body as it came; Gitea and its
   kin sign what a form's field holds, so that much of a form is decoded before.
4. No I/O, no state, no logging, no clock. Whatever bytes come, the answer is an event or a `HTTPError`, nothing else.
5. A false signature is an answer (None), never an exception.
6. What leaves here is clean: names fit `repository.is_valid`, refs and commit ids have their form, and no text
   holds a control character or a lone surrogate. Whoever comes next may put them in a row, a line or an environment.

Sources: GitHub, "Validating webhook deliveries" and "Webhook events and payloads". Gitea and Forgejo, "Webhooks", and
the sources of Gitea (services/webhook/deliver.go) and Gogs (internal/database/webhook.go) for what exactly is signed.
GitLab, "Webhooks" and "Webhook events"; Standard Webhooks, "Signature scheme". Bitbucket Cloud, "Event payloads".
"""

from __future__ import annotations

import binascii
import hmac
import json
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import lru_cache
from hashlib import sha256
from typing import Any, NamedTuple, Union

from gitops_hook.errors import HTTPError
from gitops_hook.names import is_valid
from gitops_hook.secrets import Proof, decode_base64, signing_key
from gitops_hook.text import printable

#: A WSGI environment, for its headers.
Headers = Mapping[str, Any]
#: Seconds that a signed time may be from ours, either way: what the libraries of Standard Webhooks allow.
TOLERANCE = 300
_COMMIT = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
#: As git-check-ref-format has it, less its rules on dots and slashes, for this ref is compared, never opened; and
#: less what git allows but no line of text can take.
_REF = re.compile(r"refs/[^\x00-\x20\x7f-\x9f~^:?*\[\\\u2028\u2029\ud800-\udfff]{1,250}")
#: What cannot stand in the value of a form's only field.
_NO_VALUE = re.compile(rb"%(?![0-9A-Fa-f]{2})|[=&\x00-\x20\x7f-\xff]")
#: From a form's escapes to those of quoted-printable, which are the same but for their signs.
_QUOTED_PRINTABLE = bytes.maketrans(b"%+", b"= ")
#: A time in seconds since the epoch; a longer number is none that any clock shows.
_SECONDS = re.compile("[0-9]{1,12}")
_HEADS = "refs/heads/"
_REFS_OF_BITBUCKET = {"branch": _HEADS, "tag": "refs/tags/"}
_JSON = "application/json"
_FORM = "application/x-www-form-urlencoded"
#: No number of a payload is used, and int() takes quadratic time over a megabyte of digits; float() does not.
_decode = json.JSONDecoder(parse_int=float).decode


class Move(NamedTuple):
    """What a push did to one ref."""

    ref: str
    #: The commit ids that the ref left and came to; hints, so "" where the forge does not say.
    before: str
    after: str
    #: Whether the ref is gone.
    deleted: bool

    def is_of(self, branch: str) -> bool:
        """Whether `branch` moved; names match whole, for merge queues push to ``…queue/main/…``."""
        return self.ref == _HEADS + branch


class Push(NamedTuple):
    """Refs moved: one, but for Bitbucket, which tells all that a push did at once."""

    repository: str
    moves: Sequence[Move]
    #: The branch that the forge shows first, or "" where it does not say.
    default_branch: str
    pusher: str


class Ping(NamedTuple):
    """The forge tries the hook; an organisation's ping names no repository.

    `hook` is the forge's id of it, 0 where it does not say; `target` the repository or organisation that it belongs
    to, and `url` where it sends.
    """

    repository: str | None
    hook: int = 0
    target: str = ""
    url: str = ""


class Other(NamedTuple):
    """An event that moves nothing here."""

    repository: str | None
    event: str


Event = Union[Push, Ping, Other]


class Digest(NamedTuple):
    """A signature of the body: HMAC-SHA256 in hexadecimal."""

    header: str
    #: What stands before the digits.
    prefix: str = ""
    #: Whether a form is signed by what its field holds, not by its own bytes.
    of_field: bool = False

    def proof(self, headers: Headers, body: bytes, now: float) -> Proof | None:
        """What shows by which secret `body` was signed; None where there is no signature.

        Two headers arrive joined by a comma, which does not have the form, so they are none.
        """
        claim = re.fullmatch(self.prefix + "([0-9a-f]{64})", header(headers, self.header))
        signed: bytes | None = body
        if self.of_field and _media_type(headers) == _FORM:
            signed = _field_of_form(body)
        return _hmac(signed, [bytes.fromhex(claim[1])]) if claim and signed is not None else None


class Token(NamedTuple):
    """GitLab's two ways: the secret itself, or a signature as Standard Webhooks has it, with a time.

    Where there is a signature, it alone counts: a hook may be set to send both.
    """

    header: str = "X-Gitlab-Token"
    signature: str = "webhook-signature"

    def proof(self, headers: Headers, body: bytes, now: float) -> Proof | None:
        """What shows which secret was used; `now` is in seconds since the epoch.

        Raises `HTTPError` (401) for a time that is not about now: it is a replay, or a clock is wrong.
        """
        if _key(self.signature) in headers:
            return self._signature(headers, body, now)
        token = _latin(header(headers, self.header))
        digest = sha256(token).digest()  # of one length each, so that comparing tells nothing of the secret's
        return (lambda secret: hmac.compare_digest(sha256(secret).digest(), digest)) if token else None

    def _signature(self, headers: Headers, body: bytes, now: float) -> Proof | None:
        name, time = header(headers, "webhook-id"), header(headers, "webhook-timestamp")
        if not name or not _SECONDS.fullmatch(time):
            return None
        if abs(int(time) - now) > TOLERANCE:
            raise HTTPError(401, f"the webhook-timestamp is more than {TOLERANCE} s from this host's clock")
        claims = [
            decode_base64(_latin(word[3:])) for word in header(headers, self.signature).split() if word[:3] == "v1,"
        ]
        prove = _hmac(_latin(f"{name}.{time}.") + body, [claim for claim in claims if claim])

        def proof(secret: bytes) -> bool:
            key = signing_key(secret)
            return key is not None and prove(key)

        return proof


def _hmac(message: bytes, claims: Collection[bytes]) -> Proof:
    """Whether any of `claims` is the HMAC-SHA256 of `message`, bytes all, for compare_digest of str can raise."""

    def proof(key: bytes) -> bool:
        digest = hmac.digest(key, message, "sha256")
        return True in [hmac.compare_digest(digest, claim) for claim in claims]  # each is compared, whichever holds

    return proof


def _one_move(payload: dict[str, Any]) -> list[Move]:
    """As GitHub has it; without ``deleted``, as from all others, a deletion is told by its zeros."""
    after = _text(payload.get("after"), "after", _COMMIT, "")
    return [
        Move(
            ref=_text(payload.get("ref"), "ref", _REF),
            before=_text(payload.get("before"), "before", _COMMIT, ""),
            after=after,
            deleted=payload.get("deleted") is True or (bool(after) and not after.strip("0")),
        )
    ]


def _many_moves(payload: dict[str, Any]) -> list[Move]:
    """As Bitbucket has it: what each ref was (``old``) and is (``new``), null for none."""
    changes = _at(payload, "push.changes")
    if not isinstance(changes, list):
        raise HTTPError(400, "the push has no list `changes`")
    return [_move(_at(change, "old"), _at(change, "new")) for change in changes]


def _move(old: Any, new: Any) -> Move:
    ref = old if new is None else new
    kind, name = _at(ref, "type"), _at(ref, "name")
    known = isinstance(kind, str) and isinstance(name, str)
    return Move(
        ref=_text(_REFS_OF_BITBUCKET.get(kind, "") + name if known else None, "name", _REF),
        before=_text(_at(old, "target.hash"), "hash", _COMMIT, ""),
        after=_text(_at(new, "target.hash"), "hash", _COMMIT, ""),
        deleted=new is None,
    )


class Forge(NamedTuple):
    """How a forge speaks. Members of a payload are given by their paths, such as ``mainbranch.name``."""

    name: str
    #: The header that names the event, and so the forge; and the header that numbers the delivery.
    event: str
    delivery: str
    #: How it proves who it is.
    signature: Digest | Token
    #: The other forges whose headers it sends too, for readers that know only those.
    also: Collection[str] = ()
    #: What the event is called when refs moved, and where the payload says `push` too if the event can be another.
    pushes: Mapping[str, str] = {"push": ""}
    #: What it is called when the hook is tried.
    ping: str = ""
    #: Where the repository stands; and in it, its full name, its short one where that has to agree, its main branch.
    repository: str = "repository"
    full_name: Sequence[str] = ("full_name", "name")
    short_name: str = "name"
    default_branch: str = "default_branch"
    #: Whether owners nest. Of ``a/b/c`` the last two parts are the name, as they are where a clone's URL ends.
    nests: bool = False
    #: Where it says who pushed.
    pusher: Sequence[str] = ("pusher.name", "pusher.login")
    #: What of a payload tells which refs moved.
    moves: Callable[[dict[str, Any]], list[Move]] = _one_move


#: Whoever sends the headers of others too stands before them.
FORGES = (
    Forge(
        "Forgejo",
        event="X-Forgejo-Event",
        delivery="X-Forgejo-Delivery",
        signature=Digest("X-Forgejo-Signature", of_field=True),
        also=("Gitea", "Gogs", "GitHub"),
    ),
    Forge(
        "Gitea",
        event="X-Gitea-Event",
        delivery="X-Gitea-Delivery",
        signature=Digest("X-Gitea-Signature", of_field=True),
        also=("Gogs", "GitHub"),
    ),
    Forge(
        "Gogs",
        event="X-Gogs-Event",
        delivery="X-Gogs-Delivery",
        signature=Digest("X-Gogs-Signature", of_field=True),
        also=("GitHub",),
    ),
    Forge(
        "GitHub",
        event="X-GitHub-Event",
        delivery="X-GitHub-Delivery",
        signature=Digest("X-Hub-Signature-256", prefix="sha256="),
        ping="ping",
    ),
    Forge(
        "GitLab",
        event="X-Gitlab-Event",
        delivery="X-Gitlab-Event-UUID",
        signature=Token(),
        pushes={"Push Hook": "", "System Hook": "event_name"},
        repository="project",
        full_name=("path_with_namespace",),
        short_name="",
        nests=True,
        pusher=("user_username", "user_name"),
    ),
    Forge(
        "Bitbucket",
        event="X-Event-Key",
        delivery="X-Request-UUID",
        signature=Digest("X-Hub-Signature", prefix="sha256="),
        pushes={"repo:push": ""},
        full_name=("full_name",),
        short_name="",
        default_branch="mainbranch.name",
        pusher=("actor.nickname", "actor.display_name"),
        moves=_many_moves,
    ),
)
GITHUB = next(forge for forge in FORGES if forge.name == "GitHub")


def claimed(headers: Headers) -> Forge:
    """The forge that a request claims to come from: GitHub, where it claims none.

    Raises `HTTPError` (401) where it claims two.
    """
    present = [forge for forge in FORGES if _key(forge.event) in headers]
    for other in present[1:]:
        if other.name not in present[0].also:
            raise HTTPError(401, f"the request claims to come from {present[0].name} and from {other.name}")
    return present[0] if present else GITHUB


def header(headers: Headers, name: str) -> str:
    """The value of the header called `name`, as WSGI gives it; "" if there is none."""
    return str(headers.get(_key(name), ""))


def parse(forge: Forge, headers: Headers, body: bytes) -> Event:
    """Read a proven `body`, which came with `headers`, as `forge` writes it.

    Raises `HTTPError`: 415 for another media type, 400 for what is not a forge's payload.
    """
    payload = _payload(_media_type(headers), body)
    event = header(headers, forge.event)
    if not event:
        raise HTTPError(400, f"there is no {forge.event} header")
    says_so = forge.pushes.get(event)
    if says_so is None or (says_so and _at(payload, says_so) != "push"):
        name = _repository(forge, payload, required=False)
        return _ping(payload, name) if event == forge.ping else Other(name, printable(event))
    repository = _repository(forge, payload, required=True)
    assert repository is not None
    branch = _at(payload, f"{forge.repository}.{forge.default_branch}")
    pusher = next((name for name in (_at(payload, path) for path in forge.pusher) if name), None)
    return Push(
        repository=repository,
        moves=forge.moves(payload),
        default_branch=printable(branch, 250) if isinstance(branch, str) else "",
        pusher=printable(pusher) if isinstance(pusher, str) else "",
    )


def _payload(media_type: str, body: bytes) -> dict[str, Any]:
    if media_type not in (_JSON, _FORM):
        raise HTTPError(415, f"the media type is neither {_JSON} nor {_FORM}")
    field = _field_of_form(body) if media_type == _FORM else body
    if field is None:
        raise HTTPError(400, "the form is not one field `payload`")
    try:
        payload = _decode(field.decode("utf-8"))
    except UnicodeDecodeError:
        raise HTTPError(400, "the body is not UTF-8") from None
    except (ValueError, RecursionError):
        raise HTTPError(400, "the payload is not JSON") from None
    if not isinstance(payload, dict):
        raise HTTPError(400, "the payload is not a JSON object")
    return payload


def _field_of_form(body: bytes) -> bytes | None:
    """What the form's only field, ``payload``, holds; None for another form.

    It is decoded in C, within a second for the largest body: whoever sends it may not have been proven yet.
    """
    name, _, value = body.partition(b"=")
    if name != b"payload" or _NO_VALUE.search(value):
        return None
    return binascii.a2b_qp(value.translate(_QUOTED_PRINTABLE))


def _repository(forge: Forge, payload: dict[str, Any], *, required: bool) -> str | None:
    repository = _at(payload, forge.repository)
    if not isinstance(repository, dict):
        if required:
            raise HTTPError(400, "the payload names no repository")
        return None
    name = next((repository[member] for member in forge.full_name if member in repository), None)
    if forge.nests and isinstance(name, str):
        name = "/".join(name.rsplit("/", 2)[-2:])
    if not isinstance(name, str) or not is_valid(name):
        raise HTTPError(400, "the repository's name is missing or not one that a forge allows")
    short = repository.get(forge.short_name)
    if short is not None and short != name.rpartition("/")[2]:
        raise HTTPError(400, "the repository's name and full_name differ")
    return name


def _ping(payload: dict[str, Any], repository: str | None) -> Ping:
    """A ping, as far as it says whose hook it tries (GitHub, "Webhook events and payloads", ping)."""
    number, url, login = (_at(payload, path) for path in ("hook_id", "hook.config.url", "organization.login"))
    target = repository or (login if isinstance(login, str) and is_valid(login) else "")
    if not isinstance(number, float) or not 0 < number < 1 << 53 or not target or not isinstance(url, str):
        return Ping(repository)
    return Ping(repository, int(number), target, printable(url, 1000))


def _at(value: Any, path: str) -> Any:
    """What stands at `path` below `value`; None if nothing does."""
    for name in path.split("."):
        value = value.get(name) if isinstance(value, dict) else None
    return value


def _text(value: Any, name: str, form: re.Pattern[str], default: str | None = None) -> str:
    """`value`, the payload's `name`, which must have this form; where there is none, `default` serves if given."""
    if value is None and default is not None:
        return default
    if not isinstance(value, str) or not form.fullmatch(value):
        raise HTTPError(400, f"the push has no well-formed `{name}`")
    return value


def _media_type(headers: Headers) -> str:
    return str(headers.get("CONTENT_TYPE", "")).partition(";")[0].strip().lower()


@lru_cache(maxsize=64)  # those of the table, and a few more
def _key(name: str) -> str:
    """What a header is called in a WSGI environment."""
    return "HTTP_" + name.upper().replace("-", "_")


def _latin(text: str) -> bytes:
    """The bytes of a header's text, as WSGI has it; what is beyond can be no header's."""
    return text.encode("latin-1", "replace")
