"""The pages of a forge on which an operator enters a webhook or a deploy key.

To add a forge, add a row to `_FORGES`.
"""

from __future__ import annotations

import re
from typing import NamedTuple

#: A clone URL: with a scheme, or the scp-like form ``[user@]host:path``.
_URL = re.compile(
    r"(?:(?P<scheme>[a-z][a-z0-9+.-]*)://)?(?:[^/@]*@)?(?P<host>[A-Za-z0-9.-]+|\[[0-9a-fA-F:]+\])"
    r"(?P<port>:[0-9]+)?[:/](?P<path>[^\0]+?)(?:\.git)?/*"
)


class CloneUrl(NamedTuple):
    """The parts of a clone URL of a forge."""

    #: Empty for the scp-like form, which is SSH.
    scheme: str
    host: str
    port: int
    #: The path of the repository, without ``.git``.
    path: str


class _Forge(NamedTuple):
    #: A part of the host names of this forge.
    host: str
    webhooks: str
    deploy_keys: str


_FORGES = (
    _Forge("github", "settings/hooks/new", "settings/keys/new"),
    _Forge("gitlab", "-/hooks", "-/settings/repository"),
    _Forge("gitea", "settings/hooks", "settings/keys"),
    _Forge("forgejo", "settings/hooks", "settings/keys"),
    _Forge("codeberg", "settings/hooks", "settings/keys"),
    _Forge("bitbucket", "admin/webhooks", "admin/access-keys"),
)


def parse_clone_url(url: str) -> CloneUrl | None:
    """Return the parts of a clone URL, or None for a local path."""
    found = _URL.fullmatch(url)
    if not found or found["scheme"] == "file" or (not found["scheme"] and url.startswith((".", "/"))):
        return None
    return CloneUrl(found["scheme"] or "", found["host"], int((found["port"] or ":0")[1:]), found["path"].strip("/"))


def webhook_page(url: str) -> str:
    """Return where to enter a webhook for the repository at a clone URL: the URL of a page, or its name."""
    place, forge = _find(url)
    return f"{place}/{forge.webhooks}" if forge else f"{place}: Settings, Webhooks"


def deploy_key_page(url: str) -> str:
    """Return where to enter a deploy key for the repository at a clone URL: the URL of a page, or its name."""
    place, forge = _find(url)
    return f"{place}/{forge.deploy_keys}" if forge else f"{place}: Settings, Deploy keys"


def _find(url: str) -> tuple[str, _Forge | None]:
    """Return the web page of the repository at a clone URL, and its forge if the host's name identifies it."""
    parts = parse_clone_url(url)
    if not parts:
        return url, None
    # The port of a web server is part of an HTTP URL only. SSH has a port of its own.
    scheme, port = (parts.scheme, parts.port) if parts.scheme in ("http", "https") else ("https", 0)
    host = parts.host.removeprefix("ssh.")
    place = f"{scheme}://{host}{f':{port}' if port else ''}/{parts.path}"
    return place, next((forge for forge in _FORGES if forge.host in host.lower()), None)
