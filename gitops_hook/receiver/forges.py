"""The table of forges: everything that differs between them.

To add a forge, add a row to `FORGES`, a row to the table in docs/forges.md, and payloads to tests/receiver.

The header that names the event identifies the forge. No signature is tried for that, and a request that claims to come
from two forges is rejected, so a sender cannot choose the weaker scheme.

Sources: GitHub, "Webhook events and payloads". Gitea and Forgejo, "Webhooks". GitLab, "Webhook events". Bitbucket
Cloud, "Event payloads".
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

from gitops_hook.errors import HTTPError
from gitops_hook.receiver.payload import RefChange, bitbucket_changes, github_changes
from gitops_hook.receiver.signatures import Digest, Headers, Token, header_key


class Forge(NamedTuple):
    """The properties of a forge. A member of a payload is given by its path, such as ``mainbranch.name``."""

    name: str
    #: The header with the event's name, which identifies the forge; and the header with the delivery's id.
    event: str
    delivery: str
    signature: Digest | Token
    #: Other forges whose headers it sends as well, for the readers that know only those.
    also: Collection[str] = ()
    #: The names of its push events. If the value is not empty, the member at this path must be ``push``.
    pushes: Mapping[str, str] = {"push": ""}
    #: The name of its ping event.
    ping: str = ""
    #: The path of the repository; and below that, of its full name, of its short name if the two must agree, and of its
    #: default branch.
    repository: str = "repository"
    full_name: Sequence[str] = ("full_name", "name")
    short_name: str = "name"
    default_branch: str = "default_branch"
    #: Whether owners nest. Then the last two parts of ``a/b/c`` are the name, as at the end of a clone URL.
    nested: bool = False
    #: The paths of the pusher's name, in the order of preference.
    pusher: Sequence[str] = ("pusher.name", "pusher.login")
    #: The function that returns the changed refs of a push.
    changes: Callable[[dict[str, Any]], list[RefChange]] = github_changes


#: A forge that also sends another forge's headers stands before that one.
FORGES = (
    Forge(
        "Forgejo",
        event="X-Forgejo-Event",
        delivery="X-Forgejo-Delivery",
        signature=Digest("X-Forgejo-Signature", signs_field=True),
        also=("Gitea", "Gogs", "GitHub"),
    ),
    Forge(
        "Gitea",
        event="X-Gitea-Event",
        delivery="X-Gitea-Delivery",
        signature=Digest("X-Gitea-Signature", signs_field=True),
        also=("Gogs", "GitHub"),
    ),
    Forge(
        "Gogs",
        event="X-Gogs-Event",
        delivery="X-Gogs-Delivery",
        signature=Digest("X-Gogs-Signature", signs_field=True),
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
        nested=True,
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
        changes=bitbucket_changes,
    ),
)
GITHUB = next(forge for forge in FORGES if forge.name == "GitHub")


def claimed_forge(headers: Headers) -> Forge:
    """Return the forge that a request claims to come from; without any claim, GitHub.

    Raise `HTTPError` (401) if it claims two.
    """
    present = [forge for forge in FORGES if header_key(forge.event) in headers]
    for other in present[1:]:
        if other.name not in present[0].also:
            raise HTTPError(401, f"the request claims to come from {present[0].name} and from {other.name}")
    return present[0] if present else GITHUB
