"""TODO."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Sequence

#: One part of a name. 100 characters is what GitHub and Gitea allow, and well under what a file system does.
_PART = re.compile(r"[A-Za-z0-9._][A-Za-z0-9._-]{0,99}")
_NOT_A_PART = {".", "..", ".git"}
#: A clone URL up to its path: a scheme and a host. The scp-like form and a plain path have no such.
_URL_HOST = re.compile(r"\A[a-z][a-z0-9+.-]*://[^/]*", re.IGNORECASE)
#: The last one or two parts of a clone URL's path, in any form that git takes (https, ssh, scp-like, a path).
_URL_TAIL = re.compile(r"(?:^|[/:])(?:([^/:]+)/)?([^/:]+?)(?:\.git)?/*\Z")


def is_valid(repository: str) -> bool:
    """Whether `repository` is a name that is safe to look for under the root: ``owner/name`` or ``name``."""
    parts = repository.split("/")
    return len(parts) <= 2 and all(_PART.fullmatch(part) and part.lower() not in _NOT_A_PART for part in parts)


def name_in_url(url: str) -> str | None:
    """The ``owner/name`` that a clone URL ends in, or ``name`` if that is all, or None if neither is valid."""
    tail = _URL_TAIL.search(_URL_HOST.sub("", url, count=1))
    if not tail:
        return None
    owner, name = tail.groups()
    if owner and is_valid(f"{owner}/{name}"):
        return f"{owner}/{name}"
    return name if is_valid(name) else None


def may_clone(repository: str, patterns: Sequence[str]) -> bool:
    """Whether a pattern such as ``acme/*`` names `repository`, case aside."""
    return any(fnmatch.fnmatchcase(repository.lower(), pattern.lower()) for pattern in patterns)
