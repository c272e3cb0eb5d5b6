"""Check the names of repositories, and find them in clone URLs."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Sequence

#: One part of a name. GitHub and Gitea allow 100 characters; file systems allow more.
_PART = re.compile(r"[A-Za-z0-9._][A-Za-z0-9._-]{0,99}")
_NOT_A_PART = {".", "..", ".git"}
#: An environment: the part after the ``@`` in the name of an additional checkout.
_ENVIRONMENT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,49}")
#: The scheme and the host of a clone URL. The scp-like form and a plain path have none.
_URL_HOST = re.compile(r"\A[a-z][a-z0-9+.-]*://[^/]*", re.IGNORECASE)
#: The last one or two parts of a clone URL's path, in every form that git accepts.
_URL_TAIL = re.compile(r"(?:^|[/:])(?:([^/:]+)/)?([^/:]+?)(?:\.git)?/*\Z")


def is_valid(repository: str) -> bool:
    """Return True if `repository` is ``owner/name`` or ``name`` and is safe as a path below the root."""
    parts = repository.split("/")
    return len(parts) <= 2 and all(_PART.fullmatch(part) and part.lower() not in _NOT_A_PART for part in parts)


def is_valid_checkout(checkout: str) -> bool:
    """Return True if `checkout` is a valid repository, or one followed by ``@`` and the name of an environment."""
    repository, at, environment = checkout.partition("@")
    return is_valid(repository) and (not at or bool(_ENVIRONMENT.fullmatch(environment)))


def repository_of(checkout: str) -> str:
    """Return the repository of a checkout: its name without the environment."""
    return checkout.partition("@")[0]


def name_in_url(url: str) -> str | None:
    """Return the ``owner/name`` or the ``name`` at the end of a clone URL, or None if neither is valid."""
    tail = _URL_TAIL.search(_URL_HOST.sub("", url, count=1))
    if not tail:
        return None
    owner, name = tail.groups()
    if owner and is_valid(f"{owner}/{name}"):
        return f"{owner}/{name}"
    return name if is_valid(name) else None


def is_in_url(path: str, url: str) -> bool:
    """Return True if a clone URL ends in `path`, such as ``group/owner/name``, ignoring case.

    If the URL has fewer components, only those are compared: an alias in ssh_config may stand for the others.
    """
    tail = _URL_HOST.sub("", url, count=1)
    host, colon, rest = tail.partition(":")
    tail = rest if colon and "/" not in host else tail  # the scp-like form
    found = [
        part for part in tail.lower().removesuffix("/").removesuffix(".git").split("/") if part not in ("", ".", "..")
    ]
    wanted = path.lower().split("/")
    compared = min(len(found), len(wanted))
    return found[len(found) - compared :] == wanted[len(wanted) - compared :]


def replace_in_url(url: str, old: str, new: str) -> str:
    """Return a clone URL with the repository `old` at its end replaced by `new`; unchanged if it ends otherwise."""
    end = re.search(rf"(?<=[/:]){re.escape(old)}(?=(?:\.git)?/*\Z)", url, re.IGNORECASE)
    return f"{url[: end.start()]}{new}{url[end.end() :]}" if end else url


def may_clone(repository: str, patterns: Sequence[str]) -> bool:
    """Return True if a pattern such as ``acme/*`` matches `repository`, ignoring case; never for an environment."""
    return "@" not in repository and any(
        fnmatch.fnmatchcase(repository.lower(), pattern.lower()) for pattern in patterns
    )
