"""Payloads of webhooks: from a verified body to JSON, and from JSON to the refs that a push changed.

Every text that leaves this module is safe in a database row, a log line or an environment variable: names pass
`is_valid`, refs and commit ids have a fixed form, and nothing contains a control character or a lone surrogate.
"""

from __future__ import annotations

import json
import re
from typing import Any, NamedTuple

from gitops_hook.errors import HTTPError
from gitops_hook.receiver.signatures import FORM, JSON, form_field

HEADS = "refs/heads/"
_COMMIT = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
#: The rules of git-check-ref-format(1) without those on dots and slashes, because the ref is only compared; and without
#: line separators, which git allows.
_REF = re.compile(r"refs/[^\x00-\x20\x7f-\x9f~^:?*\[\\\u2028\u2029\ud800-\udfff]{1,250}")
#: The ref namespaces of Bitbucket's types of refs.
_BITBUCKET_REFS = {"branch": HEADS, "tag": "refs/tags/"}
#: int() takes quadratic time for a megabyte of digits, float() does not. No number of a payload needs more precision.
_decode = json.JSONDecoder(parse_int=float).decode


class RefChange(NamedTuple):
    """One ref that a push changed."""

    ref: str
    #: The old and the new commit id; "" if the forge does not send it.
    before: str
    after: str
    deleted: bool

    def is_branch(self, branch: str) -> bool:
        """Return True if the ref is exactly this branch. Merge queues push to ``gh-readonly-queue/main/...``."""
        return self.ref == HEADS + branch


def decode_payload(media_type: str, body: bytes) -> dict[str, Any]:
    """Return the JSON object in a body. Raise `HTTPError`: 415 for the media type, 400 for the content."""
    if media_type not in (JSON, FORM):
        raise HTTPError(415, f"the media type is neither {JSON} nor {FORM}")
    text = form_field(body) if media_type == FORM else body
    if text is None:
        raise HTTPError(400, "the form is not one field `payload`")
    try:
        payload = _decode(text.decode("utf-8"))
    except UnicodeDecodeError:
        raise HTTPError(400, "the body is not UTF-8") from None
    except (ValueError, RecursionError):
        raise HTTPError(400, "the payload is not JSON") from None
    if not isinstance(payload, dict):
        raise HTTPError(400, "the payload is not a JSON object")
    return payload


def member(value: Any, path: str) -> Any:
    """Return the member at `path`, such as ``mainbranch.name``, or None if it does not exist."""
    for name in path.split("."):
        value = value.get(name) if isinstance(value, dict) else None
    return value


def github_changes(payload: dict[str, Any]) -> list[RefChange]:
    """Return the one change of a push as GitHub, Gitea and GitLab send it.

    Only GitHub sends ``deleted``. From the others, a deletion is an ``after`` of zeros.
    """
    after = _text(payload.get("after"), "after", _COMMIT, "")
    deleted = payload.get("deleted") is True or (bool(after) and not after.strip("0"))
    before = _text(payload.get("before"), "before", _COMMIT, "")
    return [RefChange(_text(payload.get("ref"), "ref", _REF), before, after, deleted)]


def bitbucket_changes(payload: dict[str, Any]) -> list[RefChange]:
    """Return the changes of a push as Bitbucket Cloud sends them: the ``old`` and ``new`` state of each ref."""
    changes = member(payload, "push.changes")
    if not isinstance(changes, list):
        raise HTTPError(400, "the push has no list `changes`")
    return [_bitbucket_change(member(change, "old"), member(change, "new")) for change in changes]


def _bitbucket_change(old: Any, new: Any) -> RefChange:
    state = old if new is None else new
    kind, name = member(state, "type"), member(state, "name")
    known = isinstance(kind, str) and isinstance(name, str)
    return RefChange(
        ref=_text(_BITBUCKET_REFS.get(kind, "") + name if known else None, "name", _REF),
        before=_text(member(old, "target.hash"), "hash", _COMMIT, ""),
        after=_text(member(new, "target.hash"), "hash", _COMMIT, ""),
        deleted=new is None,
    )


def _text(value: Any, name: str, form: re.Pattern[str], default: str | None = None) -> str:
    """Return `value` if it has the right form, or `default` if it is absent. Raise `HTTPError` (400) otherwise."""
    if value is None and default is not None:
        return default
    if not isinstance(value, str) or not form.fullmatch(value):
        raise HTTPError(400, f"the push has no well-formed `{name}`")
    return value
