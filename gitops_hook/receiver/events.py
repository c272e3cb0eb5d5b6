"""Events: from the verified request of a forge to a `Push`, a `Ping`, or the reason to ignore it.

This module does no I/O, keeps no state, writes no log and reads no clock. For any bytes, the result is an event or an
`HTTPError`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Union

from gitops_hook.errors import HTTPError
from gitops_hook.names import is_valid
from gitops_hook.receiver.forges import Forge
from gitops_hook.receiver.payload import RefChange, decode_payload, member
from gitops_hook.receiver.signatures import Headers, header_value, media_type
from gitops_hook.text import printable


class Push(NamedTuple):
    """A push. Bitbucket sends one event for all refs that a push changed; the other forges send one for each ref."""

    repository: str
    changes: Sequence[RefChange]
    #: The repository's default branch, or "" if the forge does not send it.
    default_branch: str
    pusher: str
    #: The full path of a repository whose owner is a nested group, else "".
    path: str = ""


class Ping(NamedTuple):
    """A test of a hook. A ping of an organization's hook names no repository.

    `hook` is the forge's id of the hook, or 0 if unknown; `target` the repository or organization that it belongs to;
    `url` the address that it sends to.
    """

    repository: str | None
    hook: int = 0
    target: str = ""
    url: str = ""


class Renamed(NamedTuple):
    """A repository that was renamed or transferred. `path` is its old full path if its owner is a nested group."""

    repository: str
    name: str
    path: str = ""


class Ignored(NamedTuple):
    """An authentic request that starts no run: the class of the reason, and the reason in a sentence."""

    repository: str | None
    kind: str
    reason: str


Event = Union[Push, Ping, Renamed, Ignored]


def parse_event(forge: Forge, headers: Headers, body: bytes) -> Event:
    """Return the event of a verified request. Raise `HTTPError`: 415 for the media type, 400 for the payload."""
    payload = decode_payload(media_type(headers), body)
    event = header_value(headers, forge.event)
    if not event:
        raise HTTPError(400, f"there is no {forge.event} header")
    path = _repository_path(forge, payload)
    name = _short_name(forge, path)
    repository = name if name and is_valid(name) else None
    if event == forge.ping:
        return _ping(payload, repository)
    renamed = forge.renamed(event, payload)
    if renamed:
        return _renamed(forge, *renamed)
    condition = forge.pushes.get(event)
    if condition is None or (condition and member(payload, condition) not in ("push", "tag_push")):
        return Ignored(repository, "event", f"the event `{printable(event)}` starts no run")
    if not name:
        raise HTTPError(400, "the payload names no repository")
    if not repository:
        return Ignored(None, "name", f"a checkout cannot have the name `{printable(name)}`")
    branch = member(payload, f"{forge.repository}.{forge.default_branch}")
    pusher = next((name for name in (member(payload, path) for path in forge.pusher) if name), None)
    return Push(
        repository=repository,
        changes=forge.changes(payload),
        default_branch=printable(branch, 250) if isinstance(branch, str) else "",
        pusher=printable(pusher) if isinstance(pusher, str) else "",
        path=printable(path, 1000) if path != name else "",
    )


def _repository_path(forge: Forge, payload: dict[str, Any]) -> str:
    """Return the repository's full path, which may not be valid, or "" if the payload has none."""
    repository = member(payload, forge.repository)
    names = (member(repository, path) for path in forge.full_name)
    name = next((name for name in names if name is not None), None)
    if not isinstance(name, str) or not name:
        return ""
    if forge.owner:
        return f"{member(repository, forge.owner)}/{name}"
    return name


def _short_name(forge: Forge, path: str) -> str:
    """Return the name of the repository at `path`: its last two parts, if owners nest."""
    return "/".join(path.rsplit("/", 2)[-2:]) if forge.nested else path


def _renamed(forge: Forge, old: str, new: str) -> Renamed | Ignored:
    repository, name = _short_name(forge, old), _short_name(forge, new)
    if not is_valid(repository) or not is_valid(name):
        return Ignored(None, "name", "the old or the new name of the repository is not one of a checkout")
    if repository.lower() == name.lower():
        return Ignored(repository, "nothing", "the name of the repository is the same")
    return Renamed(repository, name, printable(old, 1000) if old != repository else "")


def _ping(payload: dict[str, Any], repository: str | None) -> Ping:
    """Return a ping with the members that identify the hook (GitHub, "Webhook events and payloads", ping)."""
    number, url, login = (member(payload, path) for path in ("hook_id", "hook.config.url", "organization.login"))
    target = repository or (login if isinstance(login, str) and is_valid(login) else "")
    if not isinstance(number, float) or not 0 < number < 1 << 53 or not target or not isinstance(url, str):
        return Ping(repository)
    return Ping(repository, int(number), target, printable(url, 1000))
