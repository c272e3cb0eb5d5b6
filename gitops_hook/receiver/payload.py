"""Payloads of webhooks: from a verified body to JSON, and from JSON to the refs that a push changed.

Rules:

1. Every text that leaves this module is safe in a database row, a log line or an environment variable: refs and commit
   ids have a fixed form, so nothing contains a control character or a lone surrogate.
2. A member with an unexpected form counts as absent. The request is authentic, and a forge disables a hook that gets an
   error response.
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
_BITBUCKET_REFS = {"branch": HEADS, "tag": "refs/tags/", "annotated_tag": "refs/tags/"}
#: int() takes quadratic time for a megabyte of digits, float() does not. No number of a payload needs more precision.
_decode = json.JSONDecoder(parse_int=float).decode


class RefChange(NamedTuple):
    """One ref that a push changed."""

    #: The full name; "" if it is too long or unusual for a row or a log line. No checkout can track such a ref.
    ref: str
    #: The old and the new commit id; "" if the forge does not send it. They are hints.
    before: str
    after: str
    deleted: bool


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
    after = _commit(payload.get("after"))
    deleted = payload.get("deleted") is True or _is_zero(after)
    return [RefChange(_ref(payload.get("ref")), _commit(payload.get("before")), after, deleted)]


def bitbucket_changes(payload: dict[str, Any]) -> list[RefChange]:
    """Return the changes of a push as Bitbucket Cloud sends them: the ``old`` and ``new`` state of each ref."""
    changes = []
    for change in _list(member(payload, "push.changes")):
        old, new = member(change, "old"), member(change, "new")
        state = old if new is None else new
        kind, name = member(state, "type"), member(state, "name")
        namespace = _BITBUCKET_REFS.get(kind) if isinstance(kind, str) else None
        ref = _ref(namespace + name) if namespace and isinstance(name, str) else ""
        before, after = _commit(member(old, "target.hash")), _commit(member(new, "target.hash"))
        changes.append(RefChange(ref, before, after, deleted=new is None))
    return changes


def data_center_changes(payload: dict[str, Any]) -> list[RefChange]:
    """Return the changes of a push as Bitbucket Data Center sends them. A deletion is a ``toHash`` of zeros."""
    changes = []
    for change in _list(payload.get("changes")):
        after = _commit(member(change, "toHash"))
        deleted = member(change, "type") == "DELETE" or _is_zero(after)
        changes.append(RefChange(_ref(member(change, "ref.id")), _commit(member(change, "fromHash")), after, deleted))
    return changes


def github_rename(event: str, payload: dict[str, Any]) -> tuple[str, str] | None:
    """Return the old and the new name of a repository from GitHub's ``repository`` event, or None."""
    if event != "repository" or payload.get("action") not in ("renamed", "transferred"):
        return None
    new = _text(member(payload, "repository.full_name"))
    owner, _, name = new.partition("/")
    changes = member(payload, "changes")
    owners = [member(changes, f"owner.from.{kind}.login") for kind in ("user", "organization")]
    old_owner = next((login for login in owners if login), owner)
    return f"{_text(old_owner)}/{_text(member(changes, 'repository.name.from')) or name}", new


def gitlab_rename(event: str, payload: dict[str, Any]) -> tuple[str, str] | None:
    """Return the old and the new path of a project from GitLab's system hooks, or None."""
    if event != "System Hook" or payload.get("event_name") not in ("project_rename", "project_transfer"):
        return None
    return _text(payload.get("old_path_with_namespace")), _text(payload.get("path_with_namespace"))


def bitbucket_rename(event: str, payload: dict[str, Any]) -> tuple[str, str] | None:
    """Return the old and the new name of a repository from Bitbucket Cloud's ``repo:updated`` event, or None."""
    change = member(payload, "changes.full_name") if event == "repo:updated" else None
    return (_text(member(change, "old")), _text(member(change, "new"))) if change else None


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _ref(value: Any) -> str:
    return value if isinstance(value, str) and _REF.fullmatch(value) else ""


def _commit(value: Any) -> str:
    return value if isinstance(value, str) and _COMMIT.fullmatch(value) else ""


def _is_zero(commit: str) -> bool:
    return bool(commit) and not commit.strip("0")
