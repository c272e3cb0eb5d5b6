"""Link a commit to its page at the forge. The address comes from the checkout's remote, never from a payload."""

from __future__ import annotations

import re

#: The path of a commit below its repository, by a part of the forge's host name, such as gitlab.example.org.
_COMMIT_PATHS = {
    "github": "commit",
    "gitlab": "-/commit",
    "gitea": "commit",
    "forgejo": "commit",
    "codeberg": "commit",
    "bitbucket": "commits",
}
#: A clone URL: https with an optional port, or ssh in both forms of git. Credentials and the port of ssh are dropped.
_CLONE_URL = re.compile(
    r"(?:https://(?:[^/@]*@)?(?P<web>[a-z0-9.-]+(?::[0-9]+)?)/|(?:ssh://)?[^/@:]+@(?P<ssh>[a-z0-9.-]+)(?::[0-9]+/|[:/]))"
    r"(?P<path>[\w.~-]+(?:/[\w.~-]+)+)/*",
    re.ASCII | re.IGNORECASE,
)


def is_github(origin: str) -> bool:
    """Return whether a clone URL leads to GitHub, whose failed deliveries `gitops-hook audit` lists."""
    found = _CLONE_URL.fullmatch(origin)
    return found is not None and "github" in (found["web"] or found["ssh"]).lower().split(".")


def commit_url(origin: str, commit: str) -> str | None:
    """Return the URL of a commit's page, or None if the forge at the clone URL `origin` is unknown."""
    found = _CLONE_URL.fullmatch(origin)
    if not found or found["path"].startswith("scm/"):  # Bitbucket Data Center, whose pages have another path
        return None
    host = (found["web"] or found["ssh"]).lower()
    path = next((path for part, path in _COMMIT_PATHS.items() if part in host.split(".")), None)
    return f"https://{host}/{found['path'].removesuffix('.git')}/{path}/{commit}" if path else None
