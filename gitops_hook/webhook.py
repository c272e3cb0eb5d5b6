"""Reading a forge's webhook: headers and a body go in, an event comes out.

Rules:

1. Verify first, over the raw bytes; parse only what is proven (`Secrets.match`, then `parse`).
2. No I/O, no state, no logging. Whatever bytes come, the answer is an event or a `Refused`, nothing else.
3. A false signature is an answer (None), never an exception.
4. What leaves here is clean: names fit `repository.is_valid`, refs and commit ids have their form, and no text
   holds a control character or a lone surrogate. Whoever comes next may put them in a row, a line or an environment.

Sources: GitHub, "Validating webhook deliveries" and "Webhook events and payloads"; Gitea and Forgejo send the same
headers, without ``deleted`` in a push, so a deletion is told by its zeros.
"""

from __future__ import annotations

import hmac
import json
import re
from collections.abc import Mapping
from typing import Any, NamedTuple, Union
from urllib.parse import parse_qs

from gitops_hook.repository import is_valid

#: Where forges deliver to.
WEBHOOK = "/api/webhook/gitops"

_SIGNATURE = re.compile(r"sha256=([0-9a-f]{64})")
_COMMIT = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
#: As git-check-ref-format has it, less its rules on dots and slashes, for this ref is compared, never opened; and
#: less what git allows but no line of text can take.
_REF = re.compile(r"refs/[^\x00-\x20\x7f-\x9f~^:?*\[\\\u2028\u2029\ud800-\udfff]{1,250}")
#: What may not stand in a line of text: control characters, and surrogates, which have no UTF-8.
_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")

_HEADS = "refs/heads/"
_JSON = "application/json"
_FORM = "application/x-www-form-urlencoded"

#: No number of a payload is used, and int() takes quadratic time over a megabyte of digits; float() does not.
_decode = json.JSONDecoder(parse_int=float).decode


class Refused(Exception):
    """The peer's fault: the HTTP status to answer it with, and the reason in a sentence."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status
        self.reason = reason


class Push(NamedTuple):
    """A ref moved."""

    repository: str
    ref: str
    #: The commit ids that the ref left and came to; hints, so "" where the forge does not say.
    before: str
    after: str
    #: Whether the ref is gone.
    deleted: bool
    #: The branch that the forge shows first, or "" where it does not say.
    default_branch: str
    pusher: str

    def moves(self, branch: str) -> bool:
        """Whether this push moved `branch`; names match whole, for merge queues push to ``…queue/main/…``."""
        return self.ref == _HEADS + branch


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


class Secrets:
    """The shared secrets, any of which proves a body, each called by where it stands ("line 1")."""

    def __init__(self, secrets: Mapping[str, bytes]) -> None:
        if not secrets or not all(secrets.values()):
            raise ValueError("an empty secret proves nothing")
        self._secrets = dict(secrets)

    def match(self, body: bytes, signature: str | None) -> str | None:
        """What the secret that signed `body` is called; None if none did.

        `signature` is the value of ``X-Hub-Signature-256`` as WSGI gives it. Two such headers arrive joined by a
        comma, which does not have the form, so they are refused. Every secret is tried whichever matches, so the
        time taken tells nothing.
        """
        form = _SIGNATURE.fullmatch(signature or "")
        if not form:
            return None
        claimed = bytes.fromhex(form[1])  # bytes, for compare_digest of str raises on what is not ASCII
        matches = [
            name
            for name, secret in self._secrets.items()
            if hmac.compare_digest(hmac.digest(secret, body, "sha256"), claimed)
        ]
        return matches[0] if matches else None

    def fingerprint(self, name: str) -> str:
        """The `fingerprint` of the secret that is called so."""
        return fingerprint(self._secrets[name])


def parse(event: str | None, content_type: str | None, body: bytes) -> Event:
    """Read a proven `body` as the event that the header ``X-GitHub-Event`` names.

    Raises `Refused`: 415 for another media type, 400 for what is not a forge's payload.
    """
    payload = _payload(content_type or "", body)
    if not event:
        raise Refused(400, "there is no X-GitHub-Event header")
    if event != "push":
        name = _repository(payload, required=False)
        return _ping(payload, name) if event == "ping" else Other(name, printable(event))
    repository = _repository(payload, required=True)
    assert repository is not None
    branch = payload["repository"].get("default_branch")
    pusher = payload.get("pusher")
    pusher = pusher.get("name") or pusher.get("login") if isinstance(pusher, dict) else None
    after = _field(payload, "after", _COMMIT, "")
    return Push(
        repository=repository,
        ref=_field(payload, "ref", _REF),
        before=_field(payload, "before", _COMMIT, ""),
        after=after,
        deleted=payload.get("deleted") is True or (bool(after) and not after.strip("0")),
        default_branch=printable(branch, 250) if isinstance(branch, str) else "",
        pusher=printable(pusher) if isinstance(pusher, str) else "",
    )


def fingerprint(secret: bytes) -> str:
    """What tells a secret from another one, and nothing about it: 64 bits of an HMAC."""
    return hmac.digest(secret, b"gitops-hook: which secret is this?", "sha256")[:8].hex()


def printable(text: str, limit: int = 100) -> str:
    """`text` cut to `limit` characters, with every control character and surrogate as U+FFFD."""
    return _UNPRINTABLE.sub("\ufffd", text[:limit])


def _payload(content_type: str, body: bytes) -> dict[str, Any]:
    media_type = content_type.partition(";")[0].strip().lower()
    if media_type not in (_JSON, _FORM):
        raise Refused(415, f"the media type is neither {_JSON} nor {_FORM}")
    try:
        text = body.decode("utf-8")
        if media_type == _FORM:
            (text,) = parse_qs(text, max_num_fields=16)["payload"]
    except UnicodeDecodeError:
        raise Refused(400, "the body is not UTF-8") from None
    except (KeyError, ValueError):
        raise Refused(400, "the form does not have one field `payload`") from None
    try:
        payload = _decode(text)
    except (ValueError, RecursionError):
        raise Refused(400, "the payload is not JSON") from None
    if not isinstance(payload, dict):
        raise Refused(400, "the payload is not a JSON object")
    return payload


def _repository(payload: dict[str, Any], *, required: bool) -> str | None:
    repository = payload.get("repository")
    if not isinstance(repository, dict):
        if required:
            raise Refused(400, "the payload names no repository")
        return None
    name, full_name = repository.get("name"), repository.get("full_name", repository.get("name"))
    if not isinstance(full_name, str) or not is_valid(full_name):
        raise Refused(400, "the repository's name is missing or not one that a forge allows")
    if name is not None and name != full_name.rpartition("/")[2]:
        raise Refused(400, "the repository's name and full_name differ")
    return full_name


def _ping(payload: dict[str, Any], repository: str | None) -> Ping:
    """A ping, as far as it says whose hook it tries (GitHub, "Webhook events and payloads", ping)."""
    number, hook, organization = (payload.get(name) for name in ("hook_id", "hook", "organization"))
    config = hook.get("config") if isinstance(hook, dict) else None
    url = config.get("url") if isinstance(config, dict) else None
    login = organization.get("login") if isinstance(organization, dict) else None
    target = repository or (login if isinstance(login, str) and is_valid(login) else "")
    if not isinstance(number, float) or not 0 < number < 1 << 53 or not target or not isinstance(url, str):
        return Ping(repository)
    return Ping(repository, int(number), target, printable(url, 1000))


def _field(payload: dict[str, Any], name: str, form: re.Pattern[str], default: str | None = None) -> str:
    """The text at `name`, which must have this form; where there is none, `default` serves if given."""
    value = payload.get(name)
    if value is None and default is not None:
        return default
    if not isinstance(value, str) or not form.fullmatch(value):
        raise Refused(400, f"the push has no well-formed `{name}`")
    return value
